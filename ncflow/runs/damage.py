"""Errors for damaged files of a run folder: they name the file and the key, and show no foreign content."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from ncflow.runs.layout import LAST_EPOCH


def is_number(value: object) -> bool:
    """Whether a value is a number that a figure can show; NaN and infinity are numbers, too."""
    return isinstance(value, float) or (
        isinstance(value, int) and not isinstance(value, bool) and abs(value) <= LAST_EPOCH**2
    )


def damaged(file: Path, expected: str, found: object) -> ValueError:
    """The error that names the file, the expected content, and the kind of content found."""
    found = str(found) if isinstance(found, int | float) and not isinstance(found, bool) else found
    plain = isinstance(found, str) and re.fullmatch(r"[\w (),.+-]{1,120}", found)  # hide other foreign text
    shown = found if plain else "nothing" if found is None else type(found).__name__
    return ValueError(f"'{file}' is damaged: expected {expected}, got {shown}; train the run again")


def check_mapping(file: Path, value: object, name: str) -> None:
    """Raise ValueError unless a value is a mapping with text as keys."""
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise damaged(file, f"a mapping as {name}", value)


def check_epoch(file: Path, value: object, name: str) -> None:
    """Raise ValueError unless a value is the number of an epoch."""
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= LAST_EPOCH:
        raise damaged(file, f"a whole number from 0 to {LAST_EPOCH} as {name}", value)
