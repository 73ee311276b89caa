"""Faults of where runs are kept: a server that is gone for a while or for good, a database that others write to."""

from __future__ import annotations

import os
import shlex
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

from kill import differences, mlflow_outcome
from trial import Project, expect, untroubled, wait_for

from ncflow import stages

WRITERS = 8
LOCKED = 10.0  # seconds; MLflow waits for 20


def server_away(project: Project) -> str:
    """training waits, and ends as if the server had been there: one MLflow run, each step once"""
    with serving(project) as server:
        training = project.ncflow("train").freeze_at(f"{stages.STATES}/run-*/epoch_2.pt", project.root)
        server.stop()
        training.thaw().process.join(project.absence)
        waited = training.process.is_alive()
        server.start()
        training.wait()
        project.as_if_nothing_had_been()
    expect(waited, "it did not wait for the server")
    return f"it waited {project.absence:.0f} s and went on"


def server_lost(project: Project) -> str:
    """once MLflow's retries are used up, the store named, the states kept; the same command goes on in the same run"""
    project.environment["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] = "2"
    with serving(project) as server:
        training = project.ncflow("train").freeze_at(f"{stages.STATES}/run-*/epoch_2.pt", project.root)
        server.stop()
        ended = training.thaw().wait(65, saying="MLflow's store failed, fix it and rerun the same command")
        project.nothing_half_written()
        server.start()
        project.finishes_as_if_nothing_had_been()
    return ended.message


def database_locked(project: Project) -> str:
    """eight trainings at once, and another program that locks the database: every metric of each arrives, once"""
    names = [f"run{number}" for number in range(WRITERS)]
    project.ncflow("snapshot").wait()
    trainings = [project.ncflow("train", "--set", f"exp_name={name}") for name in names]
    wait_for(lambda: any(project.root.glob(f"{stages.STATES}/*/epoch_1.pt")), "the first epoch")
    with closing(sqlite3.connect(project.root / "mlflow.db", timeout=60, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        time.sleep(LOCKED)
        other.execute("ROLLBACK")
    for training in trainings:
        training.wait()
    expected = untroubled()["mlflow"]
    for name in names:
        found = differences(mlflow_outcome(project.root, name), expected)
        expect(not found, f"{name}: {'; '.join(found[:5])}")
    return f"{WRITERS} runs FINISHED with each metric once, after a lock of {LOCKED:.0f} s"


class Server:
    """`mlflow server` on 127.0.0.1, which keeps runs and artifacts below `folder`."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        options = f"--backend-store-uri sqlite:///{folder}/mlflow.db --artifacts-destination {folder}/kept --workers 1"
        where = f"--host 127.0.0.1 --port {self.port}"
        self.command = [sys.executable, "-m", "mlflow", "server", *shlex.split(f"{options} {where}")]
        self.log = (folder / "server.txt").open("ab")
        self.start()

    def start(self) -> None:
        environment = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        self._process = subprocess.Popen(
            self.command, env=environment, stdout=self.log, stderr=subprocess.STDOUT, start_new_session=True
        )
        wait_for(self._answers, "MLflow's server")

    def stop(self) -> None:
        """Killed, with its worker, in the middle of whatever it does."""
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def _answers(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0


@contextmanager
def serving(project: Project) -> Iterator[Server]:
    """Inside, the project's runs go to a server."""
    server = Server(project.root)
    project.environment["MLFLOW_TRACKING_URI"] = f"http://127.0.0.1:{server.port}"
    try:
        yield server
    finally:
        server.stop()
