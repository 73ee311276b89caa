"""SIGTERM and Ctrl-C become exceptions: open files and runs are closed, and the exit code gives the reason."""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from ncflow.exits import Exit, leave_result

AGAIN = "rerun the same command"
RESUMES = "the same command resumes after the last finished epoch"
IMPATIENT = 3  # after this many Ctrl-C, even a write is interrupted


class Interrupted(SystemExit):
    """SIGTERM arrived, as schedulers send it. Exit code 75 means: rerun the same command."""

    def __init__(self, advice: str = AGAIN) -> None:
        super().__init__(Exit.AGAIN)
        self.advice = advice

    def __str__(self) -> str:
        return f"stopped by SIGTERM; {self.advice}"


@contextmanager
def interruptible(advice: str | None = None) -> Iterator[None]:
    """Inside, SIGTERM raises Interrupted and Ctrl-C raises KeyboardInterrupt, which lets a stopped job close its run.

    `advice` describes the effect of a rerun. Signals that arrive during the cleanup are ignored. Python drops an
    exception that is raised inside a `__del__`. Long loops therefore call `end_if_asked` regularly.
    """
    ours = _Handler() if _is_free() else None
    if ours:
        # A job in the background of a script ignores Ctrl-C. Keep that.
        ignored = signal.getsignal(signal.SIGINT) != signal.default_int_handler
        numbers = (signal.SIGTERM,) if ignored else (signal.SIGTERM, signal.SIGINT)
        before = {number: signal.signal(number, ours) for number in numbers}
    handler = _handler()
    advice_before = handler.advice if handler else AGAIN
    if handler and advice:
        handler.advice = advice
    try:
        yield
    finally:
        if handler:
            handler.advice = advice_before
        if ours:
            for number, action in before.items():
                signal.signal(number, action)


@contextmanager
def undisturbed() -> Iterator[None]:
    """Inside, delay signals. An exception within a transaction would leave it open and lock the database."""
    handler = _handler()
    if handler is None or handler.depth:
        yield
        return
    handler.depth += 1
    try:
        yield
    finally:
        handler.depth -= 1
        if handler.waiting:
            handler.waiting = False
            handler.end()


@contextmanager
def watched(seconds: float = 30.0) -> Iterator[None]:
    """Inside, SIGTERM ends the process within `seconds`, even while C++ code blocks Python.

    A collective operation that waits for a dead process blocks Python. Finished epochs stay, and the same command
    resumes.
    """
    handler = _handler()
    if handler is None:
        yield
        return
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    # A signal writes to this socket immediately, even while Python is blocked.
    before = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    threading.Thread(target=_watch, args=(reader, handler, seconds), daemon=True).start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        writer.close()


def _watch(reader: socket.socket, handler: _Handler, seconds: float) -> None:
    with reader:
        while number := reader.recv(1):
            if number[0] != signal.SIGTERM:
                continue
            until = time.monotonic() + seconds
            while handler.asked is None and time.monotonic() < until:
                time.sleep(0.1)
            if handler.asked is None:
                reason = f"{Interrupted(handler.advice)}, while it waited for another process"
                os.write(2, f"ncflow: {reason}\n".encode())
                leave_result(Exit.AGAIN, reason)
                os._exit(Exit.AGAIN)


def end_if_asked() -> None:
    """Raise the exception of a signal that Python dropped since `interruptible` was entered."""
    handler = _handler()
    if handler and handler.asked:
        handler.end()


class _Handler:
    """The signal handler. asked: the first signal; waiting: a signal arrived inside `undisturbed`."""

    def __init__(self) -> None:
        self.asked: int | None = None
        self.advice = AGAIN
        self.depth, self.times, self.waiting = 0, 0, False

    def __call__(self, number: int, frame: object) -> None:
        self.asked = self.asked or number
        self.times += number == signal.SIGINT
        if self.times >= IMPATIENT:
            raise KeyboardInterrupt
        if self.depth:
            self.waiting = True
        else:
            self.end()

    def end(self) -> None:
        """Raise the exception of the first signal, unless it was raised before and this is the cleanup."""
        if not _clears_up(sys.exception()):
            if self.asked == signal.SIGINT:
                raise KeyboardInterrupt(f"stopped by Ctrl-C; {self.advice}")
            raise Interrupted(self.advice)


def _is_free() -> bool:
    """Whether no other handler is set and this thread may set one."""
    main = threading.current_thread() is threading.main_thread()
    return main and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def _handler() -> _Handler | None:
    """The active handler, if this is the thread that it interrupts."""
    handler = signal.getsignal(signal.SIGTERM)
    main = threading.current_thread() is threading.main_thread()
    return handler if main and isinstance(handler, _Handler) else None


def _clears_up(handled: BaseException | None) -> bool:
    """Whether an active `except` or `finally`, or one around it, handles the interruption."""
    return handled is not None and (
        isinstance(handled, Interrupted | KeyboardInterrupt) or _clears_up(handled.__context__)
    )
