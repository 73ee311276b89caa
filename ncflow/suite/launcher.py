"""One run in several processes of this machine: start them together and end them together."""

from __future__ import annotations

import os
import socket
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress

from ncflow.exits import Exit
from ncflow.interruption import end_if_asked
from ncflow.suite.process import GRACE, cpus, python

PATIENCE = 10.0  # seconds for the other processes to log why the first one ended
MOMENT = 2.0  # seconds for a failed process to end by itself


def is_launched() -> bool:
    """Whether a launcher has started this process: `launch`, torchrun or Accelerate."""
    return "LOCAL_RANK" in os.environ


def is_first() -> bool:
    """Whether this is the first process of a launcher, or the only process."""
    return os.environ.get("RANK", "0") == "0"


def launch(arguments: Sequence[str], processes: int) -> int:
    """Run Python in `processes` processes that train together; return 0 or the exit code of the first failure.

    If one process fails, all others end, too. SIGTERM, as `interruptible` raises it, is sent to all of them.
    """
    together = {"WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes, "MASTER_PORT": _free_port()}
    share = {"MASTER_ADDR": "127.0.0.1", **{name: str(value) for name, value in together.items()}}
    share = {"OMP_NUM_THREADS": str(max(cpus() // processes, 1))} | os.environ | share
    running: list[subprocess.Popen[bytes]] = []
    try:
        for rank in range(processes):
            environment = share | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            running.append(subprocess.Popen(python(*arguments), env=environment))
        while None in (codes := [process.poll() for process in running]) and not any(codes):
            end_if_asked()
            time.sleep(0.1)
        if {Exit.AGAIN, Exit.TAKEN} & {*codes}:  # no error, but the others would wait for a process that has ended
            _wait(running, min(PATIENCE, MOMENT))  # one that lost another may end before it: keep the other's code
            _ask_to_end(running)
    except SystemExit:
        _ask_to_end(running)
        raise
    finally:
        _end(running)
    return _exit_code([code for code in codes if code])


def _exit_code(failed: Sequence[int]) -> int:
    """A signal comes first, coded as in shells, then the codes of ncflow: other failures are only consequences."""
    code = min(failed, key=lambda code: (code >= 0, code not in (Exit.CHANGE, Exit.TAKEN), code), default=0)
    return 128 - code if code < 0 else code


def _ask_to_end(running: Sequence[subprocess.Popen[bytes]]) -> None:
    for process in running:
        if process.poll() is None:
            process.terminate()


def _end(running: Sequence[subprocess.Popen[bytes]]) -> None:
    """Wait, ask all processes to end, wait again, then kill them."""
    _wait(running, PATIENCE)
    _ask_to_end(running)
    _wait(running, GRACE)
    for process in running:
        process.kill()
        process.wait()


def _wait(running: Sequence[subprocess.Popen[bytes]], seconds: float) -> None:
    until = time.monotonic() + seconds
    with suppress(subprocess.TimeoutExpired):
        for process in running:
            process.wait(max(until - time.monotonic(), 0))


def _free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return int(server.getsockname()[1])
