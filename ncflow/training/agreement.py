"""Processes of one launch agree before they train: the same ncflow, the same options, one shared folder."""

from __future__ import annotations

import hashlib
import os
import socket
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

MOST = 5  # differences that a message names
SHARING = 10.0  # seconds until a file of one machine must be seen on the others


def agree(accelerator: Accelerator, facts: Mapping[str, Any]) -> None:
    """Check that every process has the same code and the same `facts`.

    Every process calls it. Raises the same ValueError in all of them; it names what differs, and where.
    """
    if accelerator.num_processes == 1:
        return
    ours = {"ncflow's code": code_digest(), "torch": torch.__version__, **facts}
    found: list[tuple[str, dict[str, Any]]] = gather_object([(_here(accelerator), ours)])
    (first, expected), *others = found
    for other, theirs in others:
        if differing := differences(expected, theirs):
            raise ValueError(
                f"expected all processes of a run to have the same options and the same ncflow. {first} and {other} "
                f"differ in: {differing}. Start them with the same command, params.yaml and environment"
            )


def refuse_unshared(accelerator: Accelerator, folder: Path) -> None:
    """Check that every process sees the files of the first one in `folder`. Every process calls it.

    Raises the same ValueError in all of them if one does not.
    """
    if accelerator.num_processes == 1:
        return
    name = from_first(accelerator, f".meeting-{uuid.uuid4().hex}")
    file = folder / ".ncflow" / name
    try:
        if accelerator.is_main_process:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.touch()
        accelerator.wait_for_everyone()
        seen = gather_object([(_here(accelerator), str(folder), _appears(file))])
    finally:
        if accelerator.is_main_process:
            file.unlink(missing_ok=True)
    (first, path, _), *others = seen
    for other, theirs, sees in others:
        if not sees:
            raise ValueError(
                f"expected a project folder that all machines share. {other} does not see in {theirs} what {first} "
                f"wrote to {path}. Put the project on a file system that all of them mount, such as NFS"
            )


def from_first(accelerator: Accelerator, value: Any) -> Any:
    """Return the first process's value in every process. Every process calls it."""
    return gather_object([value])[0] if accelerator.num_processes > 1 else value


def _here(accelerator: Accelerator) -> str:
    return f"process {accelerator.process_index} on {socket.gethostname()}"


def differences(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> str:
    """Return in words what differs between the facts of two processes; empty if nothing does."""
    keys = [key for key in dict(ours) | dict(theirs) if ours.get(key) != theirs.get(key)]
    words = [f"{key} ({ours.get(key)} and {theirs.get(key)})" for key in keys[:MOST]]
    return ", ".join(words) + (f" and {len(keys) - MOST} more" if len(keys) > MOST else "")


def code_digest(package: Path = Path(__file__).parents[1]) -> str:
    """12 hex digits of the content of a package's Python files. Two checkouts of one version may differ in it."""
    digest = hashlib.sha256()
    for file in sorted(package.rglob("*.py")):
        digest.update(f"{file.relative_to(package).as_posix()}\n".encode() + file.read_bytes())
    return digest.hexdigest()[:12]


def _appears(file: Path) -> bool:
    until = time.monotonic() + SHARING
    while not os.access(file, os.F_OK):
        if time.monotonic() > until:
            return False
        time.sleep(0.1)
    return True
