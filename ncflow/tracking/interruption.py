"""SIGTERM, as schedulers send it, becomes an exception: what is open is closed, the exit code says: start me again."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Interrupted(SystemExit):
    """SIGTERM came, as schedulers send it; the exit code, 75, says that the same command goes on where this one was."""

    def __init__(self) -> None:
        super().__init__(os.EX_TEMPFAIL)

    def __str__(self) -> str:
        return "stopped by SIGTERM; the same command goes on after the last finished epoch"


@contextmanager
def interruptible() -> Iterator[None]:
    """Inside, SIGTERM raises Interrupted, so that a job that its scheduler stops still ends its run."""
    ours = threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL

    def interrupt(number: int, frame: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a second one must not disturb the clearing up
        raise Interrupted

    if ours:
        signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        if ours:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
