"""The fork server of warm runs: it has imported what a run needs, and each run is a fork of it.

    python -m ncflow.suite.server DESCRIPTOR MODULE…

It reads orders from a socket and answers each with the process ID of a run. It does nothing else: no tensor operation,
no store, no thread. After one parallel region, a fork would wait without end for the threads that it did not get.

A run becomes a child of the suite, not of the server. The suite collects its exit code, and Linux sends the run SIGTERM
when the suite dies. The death of the server ends no run.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import json
import os
import runpy
import signal
import socket
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from ncflow.exits import end_process

Order = dict[str, Any]  # arguments, cwd, log, environment
SET_DEATH_SIGNAL = 1  # <linux/prctl.h>
PATIENCE = 30.0  # seconds until a fork has become a child of the suite


def main() -> None:
    """Import the modules, then fork a run for each order until the suite closes the socket."""
    suite = os.getppid()
    control = socket.socket(fileno=int(sys.argv[1]))
    for module in sys.argv[2:]:
        with suppress(ImportError):  # the run reports it, if it needs the module
            importlib.import_module(module)
    gc.collect()
    gc.freeze()  # a collection in a run would copy the memory that it shares with the server
    _refuse_threads()
    _answer(control, ready=True)
    orders = control.makefile("rb")
    for line in orders:
        if _fork(json.loads(line), suite, control):
            break
    else:
        os._exit(0)
    orders.close()
    control.close()
    _run(json.loads(line)["arguments"])


def _fork(order: Order, suite: int, control: socket.socket) -> bool:
    """Fork twice; return True in the run, whose parent is then the suite, and False in the server."""
    try:
        between = os.fork()
    except OSError as error:
        _answer(control, error=str(error))
        return False
    if between:
        os.waitpid(between, 0)
        return False
    try:
        between = os.getpid()
        if os.fork():
            os._exit(0)  # the run loses its parent, and Linux gives it to the suite
        _follow(suite, between)
        _become(order)
        _answer(control, pid=os.getpid())
    except BaseException as error:
        _answer(control, error=f"{type(error).__name__}: {error}")
        os._exit(1)
    return True


def _follow(suite: int, between: int) -> None:
    """Wait until the suite is the parent of this process, and ask Linux for SIGTERM when the suite dies."""
    until = time.monotonic() + PATIENCE
    while os.getppid() == between and time.monotonic() < until:
        time.sleep(0.0005)
    ctypes.CDLL(None).prctl(SET_DEATH_SIGNAL, int(signal.SIGTERM))
    if os.getppid() != suite:
        raise ChildProcessError(f"expected process {suite} as parent, got {os.getppid()}")


def _become(order: Order) -> None:
    """Give this process what a new one would have: session, folder, log, environment, arguments and random numbers."""
    os.setsid()  # Ctrl-C in a terminal reaches only the suite, which then ends its jobs in order
    os.chdir(order["cwd"])
    log = os.open(order["log"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(log)
    os.environ.clear()
    os.environ.update(order["environment"])
    sys.argv = order["arguments"][1:]
    if not sys.flags.safe_path:
        sys.path[0] = str(Path.cwd())
    # Python's generator gets another seed in each fork, these do not.
    if "numpy.random" in sys.modules:
        sys.modules["numpy.random"].seed()
    if "torch" in sys.modules:
        sys.modules["torch"].default_generator.seed()


def _run(arguments: list[str]) -> None:
    """Run a module as `python -m` does, and end this process."""
    code = 0
    try:
        runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
    except SystemExit as stop:
        if not isinstance(stop.code, int | None):
            raise
        code = stop.code or 0
    end_process(code)


def _answer(control: socket.socket, **answer: object) -> None:
    control.sendall(json.dumps(answer).encode() + b"\n")


def _refuse_threads() -> None:
    """Raise RuntimeError if an import has started a thread: it would be missing in every fork."""
    if not (fork := os.fork()):
        os._exit(0)  # OpenBLAS ends its threads before a fork, and starts them when they are needed
    os.waitpid(fork, 0)
    if (count := len([*Path("/proc/self/task").iterdir()])) > 1:
        raise RuntimeError(f"expected one thread after the imports, got {count}")


if __name__ == "__main__":
    main()
