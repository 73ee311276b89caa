"""Files that are complete or not there: written beside their place, synced, renamed; read back only when unchanged."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO
from zipfile import ZipFile

import torch

from ncflow.training.faults import unwritable


def write_tensors(path: Path, content: Mapping[str, Any]) -> Path:
    """torch.save, complete or not at all; `read_tensors` reads it."""
    return write_atomically(path, lambda file: torch.save(dict(content), file))


def read_tensors(path: Path) -> Any:
    """What `write_tensors` wrote: tensors and plain data, never code. A ValueError names a file that is damaged."""
    try:
        with ZipFile(path) as archive:  # torch stores checksums but does not look at them
            if changed := archive.testzip():
                raise ValueError(f"the checksum of {changed} does not match")
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ValueError(f"{path} is damaged or not a checkpoint: {error}") from error


def write_atomically(path: Path, write: Callable[[BinaryIO], Any]) -> Path:
    """Let `write` fill a temporary sibling, sync it to the disk and give it the name `path`.

    Where the disk is full or may not be written, what was there stays, and an OSError says what to do.
    """
    with _sibling(path) as temporary, temporary.open("wb") as file:
        write(file)
        file.flush()
        os.fsync(file.fileno())
    return path


def publish(source: Path, path: Path) -> Path:
    """Give a complete file a second name, in one step; a copy where the file system cannot."""
    with _sibling(path) as temporary:
        try:
            temporary.hardlink_to(source)
        except OSError:
            shutil.copy2(source, temporary)
    return path


@contextmanager
def _sibling(path: Path) -> Iterator[Path]:
    """A temporary name beside `path`; what has it at the end takes the place of `path`, unless something failed."""
    temporary = path.with_name(f".{path.name}.partial")
    try:
        yield temporary
        temporary.replace(path)
        _sync_folder(path.parent)
    except (OSError, RuntimeError) as error:
        raise _explained(path, error) from error
    finally:  # renaming one name of a file to another of its names leaves both
        with suppress(OSError):
            temporary.unlink()


def _explained(path: Path, error: Exception) -> Exception:
    """The same error with the file and what to do in it; torch hides that of the disk behind one of its own."""
    cause = error if isinstance(error, OSError) else error.__context__
    if not isinstance(cause, OSError):
        return error
    return unwritable(path, cause.strerror or cause)


def _sync_folder(folder: Path) -> None:
    """A new name survives a power failure once its folder is synced."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
