"""SIGTERM, as schedulers send it, becomes an exception: what is open is closed, the exit code says: start me again."""

from __future__ import annotations

import os
import signal
import sys
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
    """Inside, SIGTERM raises Interrupted, so that a job that its scheduler stops still ends its run.

    Those that come while this clears up change nothing. Where nothing can be raised, as in a `__del__`, Python drops
    the exception: whoever is at work for long asks `end_if_asked` now and then.
    """
    ours = threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    if ours:
        signal.signal(signal.SIGTERM, _Handler())
    try:
        yield
    finally:
        if ours:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)


def end_if_asked() -> None:
    """Raise Interrupted if SIGTERM came since `interruptible` was entered, and what it raised was dropped."""
    handler = signal.getsignal(signal.SIGTERM)
    if isinstance(handler, _Handler) and handler.asked:
        raise Interrupted


class _Handler:
    """What SIGTERM calls; `asked` tells whether it has."""

    asked = False

    def __call__(self, number: int, frame: object) -> None:
        self.asked = True
        if not _clears_up(sys.exception()):
            raise Interrupted


def _clears_up(handled: BaseException | None) -> bool:
    """Whether Interrupted was caught, by an `except` or a `finally` that is at work, or by one around it."""
    return handled is not None and (isinstance(handled, Interrupted) or _clears_up(handled.__context__))
