"""Warm runs: forks of a server that has the imports done. Runs of seconds then take a third to a half of the time."""

from __future__ import annotations

import ctypes
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import IO, Any

from ncflow.exits import RESULT
from ncflow.imports import IMPORTED
from ncflow.suite.process import Process, Task, environment_of, python, spawn

SWITCH = "NCFLOW_WARM"  # environment variable: 0 starts every run as a new process
PATIENCE = 300.0  # seconds for the imports; a shared disk may be slow
GET_SUBREAPER, SET_SUBREAPER = 37, 36  # <linux/prctl.h>


class WarmStarter:
    """Starts tasks as forks of one server, which it starts for the first task. Ends the server with itself.

    A task gets a new process where a fork would differ from one, or if the server does not start. Raises ValueError
    for an unknown value of NCFLOW_WARM.
    """

    def __init__(self, modules: Sequence[str] | None = None) -> None:
        self._modules = PRELOADED if modules is None else modules
        self._server: Server | None = None
        self._wanted = _is_wanted()

    def takes(self, task: Task) -> bool:
        """Whether to fork this task: on Linux, a module in one process, without GPUs and files of the user.

        A server with CUDA cannot be forked. Files of the user may do at import what a server must not do.
        """
        own_files = IMPORTED or os.environ.get("NCFLOW_IMPORT")
        module = task.arguments[:1] == ("-m",)
        return self._wanted and module and task.processes == 1 and not task.gpus and not own_files

    def start(self, task: Task) -> Process:
        """Fork the server. Start another server if it has died, and a process if a new server does not help."""
        environment = environment_of(task)
        if self._server and not self._server.fits(environment):
            self._server = None
        while self._wanted:
            is_new = self._server is None
            try:
                self._server = self._server or Server(self._modules, str(task.cwd), environment)
                return self._server.fork(task, environment)
            except OSError as error:
                self._server = None
                if is_new:
                    self._wanted = False
                    logging.getLogger("ncflow").warning("each run starts as a new process, which is slower: %s", error)
        return spawn(task)


class Server:
    """A process of `ncflow.suite.server`. Raises OSError if it does not start."""

    def __init__(self, modules: Sequence[str], cwd: str, environment: Mapping[str, str]) -> None:
        self._environment = _shared(environment)
        self._control, theirs = socket.socketpair()
        self._control.settimeout(PATIENCE)
        self._answers = self._control.makefile("rb")
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - as long as the server
        with theirs:
            self._process = subprocess.Popen(
                python("-m", "ncflow.suite.server", str(theirs.fileno()), *modules),
                cwd=cwd,
                env=ALLOCATOR | dict(environment),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=self._errors,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )
        self._end = weakref.finalize(self, _end, self._process, self._answers, self._control, self._errors)
        self._answer()

    @property
    def pid(self) -> int:
        return self._process.pid

    def fits(self, environment: Mapping[str, str]) -> bool:
        """Whether it was started with this environment; libraries read some variables when they are imported."""
        return self._environment == _shared(environment)

    def fork(self, task: Task, environment: Mapping[str, str]) -> Forked:
        """Start a task, in about a tenth of a second. Raises OSError if the server has died or cannot fork."""
        order = {
            "arguments": task.arguments,
            "cwd": str(task.cwd),
            "log": str(task.log),
            "environment": dict(environment),
        }
        with adopting():
            self._control.sendall(json.dumps(order).encode() + b"\n")
            return Forked(self._answer()["pid"])

    def _answer(self) -> dict[str, Any]:
        line = self._answers.readline()
        answer = json.loads(line) if line.endswith(b"\n") else {"error": f"the fork server has ended{self._reason()}"}
        if "error" in answer:
            self._end()
            raise ChildProcessError(answer["error"])
        return dict(answer)

    def _reason(self) -> str:
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").split("\n")
        return next((f": {line.strip()}" for line in reversed(lines) if line.strip()), "")


class Forked:
    """A child process with the methods of `subprocess.Popen` that an attempt needs."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._code: int | None = None

    def poll(self) -> int | None:
        """The exit code, negative for a signal; None while it runs."""
        if self._code is None:
            try:
                ended, status = os.waitpid(self.pid, os.WNOHANG)
            except ChildProcessError:  # SIGCHLD is ignored, so Linux forgets the code; Popen returns 0 as well
                ended, status = self.pid, 0
            if ended:
                self._code = os.waitstatus_to_exitcode(status)
        return self._code

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end and return the exit code. Raises subprocess.TimeoutExpired."""
        until = time.monotonic() + (float("inf") if timeout is None else timeout)
        while (code := self.poll()) is None:
            if time.monotonic() > until:
                raise subprocess.TimeoutExpired(str(self.pid), timeout or 0.0)
            time.sleep(0.02)
        return code

    def terminate(self) -> None:
        self._send(signal.SIGTERM)

    def kill(self) -> None:
        self._send(signal.SIGKILL)

    def _send(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)


@contextmanager
def adopting() -> Iterator[None]:
    """Inside, Linux makes this process the parent of its descendants that lose theirs."""
    prctl, before = ctypes.CDLL(None).prctl, ctypes.c_int()
    prctl(GET_SUBREAPER, ctypes.byref(before))
    prctl(SET_SUBREAPER, 1)
    try:
        yield
    finally:
        prctl(SET_SUBREAPER, before.value)


def _end(process: subprocess.Popen[bytes], *streams: IO[bytes] | socket.socket) -> None:
    """End a server; its runs continue."""
    process.kill()
    process.wait()
    for stream in streams:
        stream.close()


def _is_wanted() -> bool:
    """Whether NCFLOW_WARM and the system allow forks."""
    if (value := os.environ.get(SWITCH, "")) not in ("", "0", "1"):
        raise ValueError(f"expected {SWITCH}=0 or 1, got '{value}'; 0 starts every run as a new process")
    return value != "0" and sys.platform == "linux"


def _shared(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables that all runs of a suite share."""
    return {name: value for name, value in environment.items() if name != RESULT}


# Arrow's allocator would start a thread when it is imported.
ALLOCATOR = {"JE_ARROW_MALLOC_CONF": "background_thread:false"}

# What a run imports. None of these starts a thread, runs a tensor operation or opens a store.
PRELOADED = (
    "ncflow.cli",
    "ncflow.group",
    "ncflow.reports.figures",
    "ncflow.tracking.preloaded",
    "matplotlib.backends.backend_agg",
    "pyarrow.parquet",
    "PIL.BmpImagePlugin",
    "PIL.GifImagePlugin",
    "PIL.JpegImagePlugin",
    "PIL.PpmImagePlugin",
    "PIL.WebPImagePlugin",
)
