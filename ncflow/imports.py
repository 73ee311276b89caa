"""Import a user's files, which add rows to ncflow's tables. Their content is part of a run's identity."""

from __future__ import annotations

import hashlib
import importlib
import sys
from collections.abc import Mapping
from pathlib import Path

from ncflow.files import checksum
from ncflow.params import Params

IMPORTED: dict[str, str] = {}  # name of a file -> digest of its content when this process imported it


def import_file(file: Path) -> None:
    """Import a file as a module, with its folder on the path. Installed modules come first.

    Raises ValueError if the file is missing or another module has its name.
    """
    if not file.is_file():
        raise ValueError(f"--import expects a Python file, got {file}")
    sys.path.append(str(file.parent))
    other = getattr(importlib.import_module(file.stem), "__file__", None)
    if other != str(file):
        raise ValueError(f"--import {file}: the name {file.stem} belongs to {other}; rename the file")
    IMPORTED[file.name] = hashlib.sha256(file.read_bytes()).hexdigest()[:12]


def run_digest(params: Params, checkpoint: str | None = None, imported: Mapping[str, str] | None = None) -> str:
    """12 hex digits that two runs share if their configurations and files are equal, apart from names.

    The files are those that were imported, and the one that model.checkpoint names: `checkpoint` is its sha256.
    `imported` is file -> digest; None takes what this process has imported.
    """
    imported = IMPORTED if imported is None else imported
    files = [*sorted(imported.values()), *([checkpoint] if checkpoint else [])]
    return hashlib.sha256(" ".join([params.digest(), *files]).encode()).hexdigest()[:12] if files else params.digest()


def checkpoint_sha256(params: Params) -> str | None:
    """The sha256 of the file that model.checkpoint names; None without one. Raises ValueError if it is missing."""
    if params.model.checkpoint is None:
        return None
    file = Path(params.model.checkpoint)
    if not file.is_file():
        raise ValueError(f"no checkpoint {file}; expected a file of weights as model.checkpoint")
    return checksum(file)
