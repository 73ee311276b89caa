"""Whether a report is up to date: a file next to it has a hash of what it was made of, and of what was made."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ncflow.data.identity import Listing
from ncflow.files import write_text
from ncflow.runs.layout import posthoc_file

PAGE = "index.html"
PACKAGE = Path(__file__).parents[1]


def listed(folders: Sequence[Path]) -> str:
    """A hash of the files of runs, and of the code. Take it before the runs are read: they may change meanwhile.

    Sizes and times stand for contents. So another machine, or a copy, has another hash.
    """
    inside = [file for folder in folders if folder.is_dir() for file in folder.iterdir()]
    runs = [file for file in (*inside, *map(posthoc_file, folders)) if file.is_file()]
    code = [file for file in PACKAGE.rglob("*") if file.is_file() and file.suffix != ".pyc"]
    return _sha256(version("matplotlib"), Listing.of_files(None, runs).stamp, Listing.of_files(None, code).stamp)


def is_up_to_date(out: Path, *made_of: Any) -> bool:
    """Whether the report in `out` was made of the same things, on this machine, and nothing has touched it since."""
    try:
        kept = _record(out).read_text(encoding="utf-8")
    except (OSError, ValueError):
        return False
    return (out / PAGE).is_file() and kept == _stamp(out, *made_of)


def remember(out: Path, *made_of: Any) -> None:
    """Note what the report in `out` was made of. If writing fails, the report is made again next time."""
    with suppress(OSError):
        write_text(_record(out), _stamp(out, *made_of))


def _stamp(out: Path, *made_of: Any) -> str:
    return _sha256(Listing.of_files(None, (file for file in out.rglob("*") if file.is_file())).stamp, *made_of)


def _sha256(*values: Any) -> str:
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()


def _record(out: Path) -> Path:
    """The file next to a report that belongs to this machine alone."""
    return out.parent / f".{out.name}.made"
