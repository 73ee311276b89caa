"""The project on disk: its root folder and its git commit."""

from __future__ import annotations

import subprocess
from pathlib import Path

ROOT_MARKS = ("params.yaml", "dvc.yaml")


def project_root(start: Path | None = None) -> Path:
    """The nearest folder at or above `start` (default: here) with params.yaml or dvc.yaml, or `start` if none has."""
    start = (start or Path.cwd()).resolve()
    marked = (folder for folder in (start, *start.parents) if any((folder / mark).is_file() for mark in ROOT_MARKS))
    return next(marked, start)


def git_commit(root: Path) -> str | None:
    """The hash of HEAD, with `-dirty` appended if tracked files differ from it; None if there is no commit."""
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
