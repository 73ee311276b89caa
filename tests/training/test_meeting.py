"""Processes meet, or say within seconds what they were waiting for; leftovers of a launch are named."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time

import pytest

from ncflow.training.meeting import TIMEOUT, WAIT, launched_processes, seconds_of

WAITS = """
from ncflow.training import create_accelerator
from ncflow.interruption import interruptible
print("here", flush=True)
with interruptible():
    try:
        print(create_accelerator("cpu").num_processes)
    except ValueError as error:
        raise SystemExit(f"ncflow: {error}")
"""


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    for name in list(os.environ):
        if name.startswith(("PMI_", "OMPI_", "MV2_", "TORCHELASTIC")) or name in (
            "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT",
        ):  # fmt: skip
            monkeypatch.delenv(name)


def leftovers(rank: int = 0, **more: str) -> dict[str, str]:
    """The environment of a launch of two processes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    launch = {"WORLD_SIZE": "2", "RANK": str(rank), "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": "2"}
    return os.environ | launch | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1"} | more


def waiting(environment: dict[str, str]) -> subprocess.Popen[str]:
    pipe = subprocess.PIPE
    return subprocess.Popen([sys.executable, "-c", WAITS], env=environment, stdout=pipe, stderr=pipe, text=True)


@pytest.mark.parametrize("rank", [0, 1])
def test_missing_processes_are_named_with_their_environment_variables(rank):
    process = waiting(leftovers(rank, NCFLOW_WAIT="2"))
    _, said = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "WORLD_SIZE=2" in said and f"RANK={rank}" in said and "within 2 s" in said and "unset RANK" in said


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_waiting_at_once(rank, number):
    process = waiting(leftovers(rank))
    assert process.stdout is not None
    process.stdout.readline()
    time.sleep(1)
    process.send_signal(number)
    process.communicate(timeout=10)
    assert process.returncode == -number


def test_two_that_come_together_are_a_group_with_the_given_limit():
    first = leftovers(NCFLOW_TIMEOUT="77")
    both = [waiting(first | {"RANK": str(rank), "LOCAL_RANK": str(rank)}) for rank in (0, 1)]
    assert [process.communicate(timeout=60)[0] for process in both] == ["here\n2\n"] * 2


WHOLE = {"RANK": "0", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
WRONG = {
    "RANK alone": ({"RANK": "0"}, "got RANK without WORLD_SIZE"),
    "LOCAL_RANK alone": ({"LOCAL_RANK": "0"}, "got LOCAL_RANK without RANK"),
    "no address": ({"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}, "without MASTER_ADDR, MASTER_PORT"),
    "MPI": ({"PMI_SIZE": "4", "PMI_RANK": "0"}, "PMI_SIZE=4 says that MPI started"),
    "Open MPI": ({"OMPI_COMM_WORLD_SIZE": "2"}, "OMPI_COMM_WORLD_SIZE=2 says that MPI started"),
    "no number": (WHOLE | {"WORLD_SIZE": "two"}, "WORLD_SIZE to be a whole number >= 0, got 'two'"),
    "a rank too high": (WHOLE | {"WORLD_SIZE": "2", "RANK": "2"}, "RANK below WORLD_SIZE=2, got RANK=2"),
}


@pytest.mark.parametrize("case", WRONG)
def test_an_environment_that_contradicts_itself_is_told_by_its_names(case, monkeypatch):
    variables, words = WRONG[case]
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=words):
        launched_processes()


@pytest.mark.parametrize("variables", [{}, {"WORLD_SIZE": "1"}, {"WORLD_SIZE": "1", "RANK": "0"}, {"PMI_SIZE": "1"}])
def test_one_process_is_one_process(variables, monkeypatch):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert launched_processes() == 1


@pytest.mark.parametrize("variable", [WAIT, TIMEOUT])
@pytest.mark.parametrize("seconds", ["soon", "-1", "0", "nan", "86401"])
def test_a_patience_that_is_none_is_refused(variable, seconds, monkeypatch):
    monkeypatch.setenv(variable, seconds)
    with pytest.raises(ValueError, match=f"{variable} to be seconds"):
        seconds_of(variable, 1.0)


def test_a_patience_that_is_not_given_is_the_usual_one(monkeypatch):
    for text, expected in (("", 7.0), ("2.5", 2.5)):
        monkeypatch.setenv(WAIT, text)
        assert seconds_of(WAIT, 7.0) == expected
