"""Write files and folders completely or not at all: write next to their place, sync, rename."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, BinaryIO

UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)  # error codes that only writing raises
_WINDOWS = os.name == "nt"
PARTIAL = ".partial"  # ending of temporary files
LOCK = "lock"  # held in a temporary folder by the process that fills it
YOUNG = 5  # seconds in which a temporary folder may not have its lock yet


def write_text(path: Path, text: str) -> Path:
    """Write a text file in UTF-8. A reader finds the new file or the old one, never a part."""
    return write_atomically(path, lambda file: file.write(text.encode()))


def write_atomically(path: Path, write: Callable[[BinaryIO], Any]) -> Path:
    """Let `write` fill a temporary file in the same folder, sync it to the disk and rename it to `path`.

    Of several processes that write at the same time, the last one stays. Removes what killed processes left. Raises
    OSError with a remedy on a full or read-only disk; the old file then stays.
    """
    with _sibling(path) as temporary:
        with _created(temporary) as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
            if not _WINDOWS:
                temporary.replace(path)
        if _WINDOWS:  # it renames no open file, and nobody sweeps there
            temporary.replace(path)
    return path


def publish(source: Path, path: Path) -> Path:
    """Give a complete file the second name `path` in one step. Copies it where the file system has no hard links."""
    with _sibling(path) as temporary, source.open("rb") as file:
        try:
            temporary.hardlink_to(source)
        except OSError:
            return write_atomically(path, lambda stream: shutil.copyfileobj(file, stream))
        _lock(file)
        if _WINDOWS:  # it renames no open file, and nobody sweeps there
            file.close()
        elif not _is_at(file, temporary):  # swept before it had the lock, or a newer source was linked
            temporary.unlink(missing_ok=True)
            return write_atomically(path, lambda stream: shutil.copyfileobj(file, stream))
        temporary.replace(path)
    return path


@contextmanager
def _sibling(path: Path) -> Iterator[Path]:
    """A temporary file name next to `path`, which no other process uses. Errors name `path` and the remedy."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}{PARTIAL}")
    try:
        _sweep_files(path)
        yield temporary
        _sync_folder(path.parent)
    except (OSError, RuntimeError) as error:
        raise _explained(path, error) from error
    finally:  # a rename between two names of one file keeps both
        with suppress(OSError):
            temporary.unlink()


@contextmanager
def _created(path: Path) -> Iterator[BinaryIO]:
    """Create a file and hold its lock. A sweep may remove the file before the lock is held: then create it again."""
    while True:
        with path.open("wb") as file:
            _lock(file)
            if _is_at(file, path):
                yield file
                return


def _is_at(file: BinaryIO, path: Path) -> bool:
    """Whether a path is still a name of an open file."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _lock(file: BinaryIO, *, wait: bool = True) -> bool:
    """Lock an open file, if the system can, until it is closed. Return whether this process has the lock."""
    try:
        import fcntl
    except ImportError:  # Windows removes no open file
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:  # held by another process, or a file system without locks
        return False
    return True


def _sweep_files(path: Path) -> None:
    """Remove the temporary files for `path` whose process is dead: their lock is free."""
    ours = re.compile(rf"\.{re.escape(path.name)}\.[0-9a-f]{{8}}{re.escape(PARTIAL)}")
    for left in [file for file in path.parent.iterdir() if ours.fullmatch(file.name)]:
        with suppress(OSError), left.open("rb") as file:
            # Another sweep may have removed the file, and its owner may have created it again.
            if _lock(file, wait=False) and _is_at(file, left):
                left.unlink()


def _explained(path: Path, error: Exception) -> Exception:
    """The same error with the file and a remedy. torch raises another error on top of the disk's error."""
    cause = error if isinstance(error, OSError) else error.__context__
    if not isinstance(cause, OSError):
        return error
    return unwritable(path, cause.strerror or cause)


def checksum(path: Path) -> str:
    """The sha256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def folder_next_to(path: Path) -> Iterator[Path]:
    """Yield a temporary folder next to `path`, to replace `path` later. Removes those left by killed processes.

    Raises OSError that names `path` where the disk is full or not writable.
    """
    from filelock import FileLock

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _sweep(path)
        with TemporaryDirectory(dir=path.parent, prefix=f".{path.name}-") as name, FileLock(Path(name, LOCK)):
            yield Path(name)
    except OSError as error:
        if error.errno not in (*UNWRITABLE, errno.EACCES) or not _is_below(error.filename, path.parent):
            raise
        raise unwritable(path, os.strerror(error.errno or 0)) from error


def replace_folder(new: Path, path: Path) -> None:
    """Replace the folder `path`, with its content, by the folder `new`."""
    old = new.with_name(f"{new.name}.old")
    with suppress(FileNotFoundError):
        path.rename(old)
    new.rename(path)
    _sync_folder(path.parent)
    shutil.rmtree(old, ignore_errors=True)


def unwritable(place: object, reason: object) -> OSError:
    """The error for a place that cannot be written: the place, the reason, the remedy."""
    return OSError(f"cannot write {place}: {reason}; make room or allow it, and rerun the same command")


def _sweep(path: Path) -> None:
    """Remove the temporary folders for `path` whose process is dead: their lock is free."""
    from filelock import FileLock, Timeout

    ours = re.compile(rf"\.{re.escape(path.name)}-[a-z0-9_]{{8}}")
    for folder in path.parent.iterdir():
        if not ours.fullmatch(folder.name) or folder.is_symlink() or time.time() - folder.stat().st_mtime < YOUNG:
            continue
        with suppress(OSError, Timeout), FileLock(folder / LOCK, timeout=0):
            shutil.rmtree(folder)


def _is_below(file: Any, folder: Path) -> bool:
    """Whether an error may be about a file in this folder. An error that names no file may be."""
    return file is None or Path(os.fsdecode(file)).is_relative_to(folder)


def _sync_folder(folder: Path) -> None:
    """Sync a folder. After that, new names in it survive a power failure."""
    if _WINDOWS:  # it opens no folders
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
