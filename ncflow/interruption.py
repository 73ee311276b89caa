"""SIGTERM, as schedulers send it, and Ctrl-C become exceptions: what is open is closed, and the exit code says why."""

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

AGAIN = "give the same command again"
RESUMES = "the same command goes on after the last finished epoch"
IMPATIENT = 3  # so many times Ctrl-C ends what is not to be disturbed, too


class Interrupted(SystemExit):
    """SIGTERM came, as schedulers send it; the exit code, 75, says that the same command is to be given again."""

    def __init__(self, advice: str = AGAIN) -> None:
        super().__init__(Exit.AGAIN)
        self.advice = advice

    def __str__(self) -> str:
        return f"stopped by SIGTERM; {self.advice}"


@contextmanager
def interruptible(advice: str | None = None) -> Iterator[None]:
    """Inside, SIGTERM raises Interrupted and Ctrl-C KeyboardInterrupt, so that a job that is stopped ends its run.

    `advice` says what the same command does when it is given again. Signals that come while this clears up change
    nothing. Where nothing can be raised, as in a `__del__`, Python drops the exception: who works for long calls
    `end_if_asked` now and then.
    """
    ours = _Handler() if _is_free() else None
    if ours:
        # A job that a script started in the background ignores Ctrl-C, and keeps ignoring it.
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
    """Inside, a signal waits: an exception within a transaction would leave it open, and all others locked out."""
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
    """Inside, SIGTERM ends the process `seconds` later at the latest, also while C++ waits, where no exception comes.

    So waits a collective for a peer that is dead. What was finished stays, and the same command resumes.
    """
    handler = _handler()
    if handler is None:
        yield
        return
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    before = signal.set_wakeup_fd(
        writer.fileno(), warn_on_full_buffer=False
    )  # written to at once, whatever Python does
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
    """Raise if a signal came since `interruptible` was entered, and what it raised was dropped."""
    handler = _handler()
    if handler and handler.asked:
        handler.end()


class _Handler:
    """What the signals call. asked: the first that came; waiting: one came that must not disturb yet."""

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
        """Raise the error of the first signal, unless that has been raised and this is the clearing up."""
        if not _clears_up(sys.exception()):
            raise KeyboardInterrupt if self.asked == signal.SIGINT else Interrupted(self.advice)


def _is_free() -> bool:
    """Whether the signals are nobody's, and this thread may take them."""
    main = threading.current_thread() is threading.main_thread()
    return main and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def _handler() -> _Handler | None:
    """The handler at work, in the thread that it interrupts."""
    handler = signal.getsignal(signal.SIGTERM)
    main = threading.current_thread() is threading.main_thread()
    return handler if main and isinstance(handler, _Handler) else None


def _clears_up(handled: BaseException | None) -> bool:
    """Whether the interruption was caught, by an `except` or a `finally` that is at work, or by one around it."""
    return handled is not None and (
        isinstance(handled, Interrupted | KeyboardInterrupt) or _clears_up(handled.__context__)
    )
