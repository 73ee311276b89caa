"""One training process on this machine: its share of CPUs and GPUs, its log, how to end it, and why it ended."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from ncflow.exits import RESULT, Exit, read_reason
from ncflow.suite.jobs import Job
from ncflow.suite.versions import other_version, versions

PROCESSES = "NCFLOW_PROCESSES"  # environment variable: the number of training processes
GRACE = 60.0  # seconds between asking a process to end and killing it


@dataclass(frozen=True)
class Task:
    """Arguments of Python, number of processes, threads of each: everything another machine needs to start training.

    `gpus` are the GPUs that it may use; None means all GPUs of the machine. `versions` are those of packages where the
    task was made.
    """

    arguments: tuple[str, ...]
    cwd: Path
    log: Path
    result: Path
    processes: int = 1
    threads: int = 1
    gpus: tuple[str, ...] | None = None
    environment: dict[str, str] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, job: Job, **share: Any) -> Task:
        """The task of a job, with its share of a machine as the other fields."""
        return cls(job.arguments, job.root, job.log, job.result, versions=versions(), **share)


@dataclass(frozen=True)
class Ending:
    """An exit code, negative for a signal, and the reason in one line."""

    code: int
    reason: str


class Process(Protocol):
    """What an attempt needs of a process; it leads a session. `subprocess.Popen` has it."""

    @property
    def pid(self) -> int: ...
    def poll(self) -> int | None: ...
    def wait(self, timeout: float | None = None) -> int: ...
    def terminate(self) -> None: ...
    def kill(self) -> None: ...


class Attempt:
    """A running task on this machine; `poll` returns its ending, None while it runs.

    `start` starts its process; the default is `spawn`.
    """

    def __init__(self, task: Task, start: Callable[[Task], Process] | None = None) -> None:
        # A suite on another machine sees by the first line that this machine has started the task.
        _log(task, f"--- {time.strftime('%Y-%m-%d %H:%M:%S')} {shlex.join(task.arguments)}")
        self._result = task.result
        self._result.unlink(missing_ok=True)  # of an earlier attempt
        self._process = (start or spawn)(task)

    def has_started(self) -> bool:
        """Whether a machine has started it; always true here."""
        return True

    def poll(self) -> Ending | None:
        code = self._process.poll()
        return None if code is None else Ending(code, explain(code, self._result))

    def ask_to_end(self) -> None:
        """Send SIGTERM, as schedulers do: training then saves its state and exits."""
        if self._process.poll() is None:
            self._process.terminate()

    def end(self, grace: float = GRACE) -> None:
        """Ask it to end, wait at most `grace` seconds, then kill its process group."""
        self.ask_to_end()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(grace)
        kill_group(self._process)
        self._process.wait()


def spawn(task: Task) -> Process:
    """Start a task in a new process, in its own session: Ctrl-C in a terminal reaches only the suite."""
    with task.log.open("ab") as log:
        return subprocess.Popen(
            python(*task.arguments),
            cwd=task.cwd,
            env=environment_of(task),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def kill_group(process: Process) -> None:
    """Kill a process that leads a session, and its child processes; on Windows only the process itself."""
    with suppress(ProcessLookupError):
        if hasattr(os, "killpg"):
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()


def run_task(task: Task) -> Ending:
    """Run a task and return its ending; an interruption ends the task first.

    It may have been made on another machine. If that machine has another ncflow, the task ends before it trains. If it
    has another torch, the task's log gets a warning.
    """
    if problem := other_version(task.versions, "ncflow"):
        return Ending(Exit.CHANGE, f"{problem}; install the same version on every machine")
    if problem := other_version(task.versions, "torch"):
        _log(task, f"ncflow: {problem}; results may differ by rounding")
    # A script that starts the suite in the background makes it ignore SIGINT. Ray interrupts tasks by SIGINT.
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.default_int_handler)
    attempt = Attempt(task)
    try:
        while (ending := attempt.poll()) is None:
            time.sleep(0.2)
        return ending
    finally:
        attempt.end()


def _log(task: Task, line: str) -> None:
    task.log.parent.mkdir(parents=True, exist_ok=True)
    with task.log.open("ab") as log:
        log.write(f"{line}\n".encode())


def python(*arguments: str) -> list[str]:
    """The command that starts Python; on Linux the process gets SIGTERM when its parent dies."""
    if sys.platform != "linux":  # only Linux supports it
        return [sys.executable, *arguments]
    return [sys.executable, "-ISc", _END_WITH_PARENT, sys.executable, *arguments]


def explain(code: int, result: Path) -> str:
    """Why a process ended, in one line: the signal that killed it, else the reason it wrote, else its exit code."""
    if name := _signal(code):
        return f"killed by {name}" + (", as the system does when memory runs out" if name == "SIGKILL" else "")
    return read_reason(result) or f"exit code {code}"


def _signal(code: int) -> str:
    """The signal of an exit code, else empty: below 0, or above 128 for one of several processes."""
    names = {number.value: number.name for number in signal.Signals}
    return names.get(-code, f"signal {-code}") if code < 0 else names.get(code - 128, "")


def cpus() -> int:
    """The number of CPUs that this process may use; on a cluster often fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def environment_of(task: Task) -> dict[str, str]:
    """The environment of a task's process: that of this process, and its share of the machine."""
    return os.environ | _share(task)


def _share(task: Task) -> dict[str, str]:
    """The environment variables that limit a task to its share of the machine."""
    share = {PROCESSES: str(task.processes), "OMP_NUM_THREADS": str(task.threads), RESULT: str(task.result)}
    if task.gpus is not None:
        share["CUDA_VISIBLE_DEVICES"] = ",".join(task.gpus)
    return task.environment | share


# Asks Linux to send SIGTERM to this process when its parent dies, then becomes the task.
_END_WITH_PARENT = """
import ctypes, os, sys
getattr(ctypes.CDLL(None), "prctl", lambda *options: None)(1, 15)
os.execv(sys.argv[1], sys.argv[1:])
"""
