"""Import a user's files, which add rows to ncflow's tables. Their content is part of a run's identity."""

from __future__ import annotations

import hashlib
import importlib
import sys
from pathlib import Path

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


def run_digest(params: Params) -> str:
    """12 hex digits that two runs share if their configurations and imported files are equal, apart from names."""
    if not IMPORTED:
        return params.digest()
    parts = (params.digest(), *sorted(IMPORTED.values()))
    return hashlib.sha256(" ".join(parts).encode()).hexdigest()[:12]
