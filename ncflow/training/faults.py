"""Faults of the machine, reported with the setting that the user can change."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ncflow.files import UNWRITABLE, unwritable


class OutOfMemory(MemoryError):
    """The device or the machine has less memory than the run needs."""


@contextmanager
def explained_faults(*, batch_size: int | str, precision: str) -> Iterator[None]:
    """Inside, running out of memory raises OutOfMemory with options that need less; a disk error names its file."""
    try:
        yield
    except OutOfMemory:  # already explained
        raise
    except OSError as error:
        if error.errno not in UNWRITABLE:
            raise
        raise unwritable(error.filename2 or error.filename or "a temporary file", error.strerror) from error
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        smaller = max(batch_size // 2, 2) if isinstance(batch_size, int) else 256
        shorter = "" if precision in ("bf16", "fp16") else ", or train.precision=bf16"
        raise OutOfMemory(
            f"out of memory with train.batch_size={batch_size}; try train.batch_size={smaller}{shorter}"
        ) from error


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether memory ran out, on a GPU or on a CPU. On a CPU only the text of torch's RuntimeErrors shows it."""
    return isinstance(error, MemoryError) or any(phrase in str(error) for phrase in PHRASES)


PHRASES = ("out of memory", "not enough memory", "can't allocate memory", "Cannot allocate memory")
