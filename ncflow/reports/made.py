"""Whether a report is up to date: a file next to it has a hash of what it was made of, and of what was made."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ncflow.data.identity import Listing
from ncflow.files import write_text
from ncflow.runs.layout import posthoc_file
from ncflow.runs.reader import Run

PAGE = "index.html"
PACKAGE = Path(__file__).parents[1]


def stamp(runs: Sequence[Run], out: Path, *texts: Any) -> str | None:
    """A hash of the files of the runs, of the report in `out`, of the code, and of `texts`; None without a report.

    Sizes and times stand for contents. So another machine, or a copy, has another hash.
    """
    if not (out / PAGE).is_file():
        return None
    of_runs = [file for run in runs for file in (*run.path.iterdir(), posthoc_file(run.path)) if file.is_file()]
    code = (file for file in PACKAGE.rglob("*") if file.is_file() and file.suffix != ".pyc")
    made = (file for file in out.rglob("*") if file.is_file())
    files = [Listing.of_files(None, listed).stamp for listed in (of_runs, code, made)]
    return hashlib.sha256(json.dumps([version("matplotlib"), *files, *texts]).encode()).hexdigest()


def is_up_to_date(runs: Sequence[Run], out: Path, *texts: Any) -> bool:
    """Whether `remember` was the last to touch the runs and the report, with these texts, on this machine."""
    try:
        kept = _record(out).read_text(encoding="utf-8")
    except (OSError, ValueError):
        return False
    return kept == stamp(runs, out, *texts)


def remember(runs: Sequence[Run], out: Path, *texts: Any) -> None:
    """Note that the report in `out` was made of these runs. If writing fails, the report is made again next time."""
    try:
        write_text(_record(out), stamp(runs, out, *texts) or "")
    except OSError:
        return


def _record(out: Path) -> Path:
    """The file next to a report that belongs to this machine alone."""
    return out.parent / f".{out.name}.made"
