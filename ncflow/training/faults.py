"""Faults of the machine, said so that the user knows what to change."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager


class OutOfMemory(MemoryError):
    """The device or the machine has less memory than the run needs."""


@contextmanager
def explained_faults(*, batch_size: int | str, precision: str) -> Iterator[None]:
    """Inside, running out of memory raises OutOfMemory with the options that need less of it, and a disk is named."""
    try:
        yield
    except OutOfMemory:  # one that has been told already
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


def unwritable(place: object, reason: object) -> OSError:
    """The error that says what cannot be written, why, and what to do."""
    return OSError(f"cannot write {place}: {reason}; mend this, and the same command goes on from the last whole epoch")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, on a GPU or on a CPU, where torch raises RuntimeErrors that only their text tells."""
    return isinstance(error, MemoryError) or any(phrase in str(error) for phrase in PHRASES)


UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)  # of no error in reading
PHRASES = ("out of memory", "not enough memory", "can't allocate memory", "Cannot allocate memory")
