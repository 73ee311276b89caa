"""Faults of the machine, reported with the setting that the user can change."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from ncflow.exits import Exit
from ncflow.files import UNWRITABLE, unwritable
from ncflow.interruption import RESUMES


class Disconnected(SystemExit):
    """Another process of this run no longer answers. If not caught, it ends this process with `Exit.AGAIN`."""

    def __init__(self, reason: str) -> None:
        super().__init__(Exit.AGAIN)
        self.reason = reason

    def __str__(self) -> str:
        return (
            f"lost the connection to another process of this run: {self.reason}. That process ended, or its machine or "
            f"the network is down. Rerun the same command on every machine: {RESUMES}"
        )


class OutOfMemory(MemoryError):
    """The device or the machine has less memory than the run needs."""


@contextmanager
def explained_faults(*, batch_size: int | str, precision: str) -> Iterator[None]:
    """Inside, running out of memory raises OutOfMemory with options that need less; a disk error names its file.

    An error of the network between the processes of a run raises Disconnected.
    """
    try:
        yield
    except OutOfMemory:  # already explained
        raise
    except OSError as error:
        if error.errno not in UNWRITABLE:
            raise
        raise unwritable(error.filename2 or error.filename or "a temporary file", error.strerror) from error
    except (MemoryError, RuntimeError) as error:
        if is_disconnected(error):
            raise Disconnected(_network_reason(error)) from error
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


def is_disconnected(error: BaseException) -> bool:
    """Return whether a collective failed because another process does not answer.

    Other errors of gloo and NCCL are mistakes that a restart would repeat. Only the text shows the difference.
    """
    text = str(error)
    by_gloo = "/gloo/" in text and any(phrase in text for phrase in NETWORK)
    return isinstance(error, torch.distributed.DistNetworkError) or by_gloo or "ncclRemoteError" in text


def _network_reason(error: BaseException) -> str:
    """The first sentence of an error, without the source file of the library that raised it."""
    first, *_ = str(error).splitlines() or [""]
    return re.sub(r"^\[\S+\]\s*", "", first).partition(". ")[0].strip(" .")


PHRASES = ("out of memory", "not enough memory", "can't allocate memory", "Cannot allocate memory")
NETWORK = (
    "Timed out waiting",
    "Connection closed by peer",
    "Connection reset by peer",
    "Connection timed out",
    "Broken pipe",
    "No route to host",
    "Network is unreachable",
)
