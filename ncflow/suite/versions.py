"""The versions of ncflow and torch where a task is made, compared with those where it runs."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from importlib.metadata import PackageNotFoundError, version


@cache
def versions() -> dict[str, str]:
    """The versions of ncflow and torch that are installed here. Imports neither of them."""
    found = {}
    for package in ("ncflow", "torch"):
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


def other_version(made: Mapping[str, str], package: str, here: Mapping[str, str] | None = None) -> str:
    """How the version of a package here differs from that of the machine that made a task; empty if it does not.

    `made` are the versions where the task was made. A package that is not installed on one of them is not compared.
    """
    expected, found = made.get(package), (versions() if here is None else here).get(package)
    if expected is None or found in (None, expected):
        return ""
    return f"{socket.gethostname()} has {package} {found}, but the suite was started with {package} {expected}"
