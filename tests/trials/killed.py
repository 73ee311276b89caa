"""Faults of a suite: kill -9 of one of its training processes, and of the suite itself."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path

from kill import mlflow_outcome
from trial import Command, Project, expect, untroubled, wait_for

from ncflow import stages

SUITE = ("suite", "quickstart", "--jobs", "2")
RUNS = [
    f"quickstart_{head}_{loss}_seed0"
    for head in ("linear", "fixed_etf", "nearest_etf")
    for loss in ("ce", "balanced_softmax")
]


def worker(project: Project) -> str:
    """its run starts again and goes on, the others are not disturbed, the suite ends with 0"""
    suite = project.ncflow(*SUITE)
    victim = _at_work(project, RUNS[1], suite)
    os.kill(victim, signal.SIGKILL)
    suite.wait()
    expect(_attempts(project) == [1, 2, 1], f"attempts {_attempts(project)}")
    _every_run_is_whole(project)
    (line,) = re.findall(rf"{RUNS[1]} (waits: .*)", suite.text)
    return f"{line}; attempts {_attempts(project)}, every run FINISHED once"


def driver(project: Project) -> str:
    """its training processes end with it; the same command trains what is missing, and what was done stays as it is"""
    suite = project.ncflow(*SUITE)
    _at_work(project, RUNS[2], suite)  # it starts when one of the others has ended
    suite.kill()
    wait_for(lambda: not _trainings(project), "the training processes to end")
    done = [run for run in RUNS if f"{run} done" in suite.text]
    before = _attempts(project)
    again = project.ncflow(*SUITE).wait()
    for run, attempts, earlier in zip(RUNS, _attempts(project), before, strict=True):
        expect(attempts == earlier + (run not in done), f"{run}: {earlier} attempts, then {attempts}")
        expect((f"{run} done before" in again.text) == (run in done), f"{run}: {again.text[-2000:]}")
    expect(done, "nothing was done when the suite was killed")
    _every_run_is_whole(project)
    return f"done before: {', '.join(done)}; attempts {_attempts(project)}, every run FINISHED once"


def _at_work(project: Project, run: str, suite: Command) -> int:
    """The process that trains a run, once it has a state to go on from."""
    pattern = f"{stages.STATES}/{run}-*/epoch_1.pt"
    wait_for(lambda: any(project.root.glob(pattern)) or not suite.process.is_alive(), f"the first epoch of {run}")
    (pid,) = [pid for pid, command in _trainings(project).items() if f"/{run}-" in command]
    return pid


def _trainings(project: Project) -> dict[int, str]:
    """The training processes of the project's suites and their command lines."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            command = (folder / "cmdline").read_text().replace("\0", " ")
        except OSError:  # it has ended meanwhile
            continue
        if f"{project.root}/.ncflow/suite/" in command:
            found[int(folder.name)] = command
    return found


def _attempts(project: Project) -> list[int]:
    """How often each run was started."""
    logs = (project.root / ".ncflow" / "suite" / f"{run}.log" for run in RUNS)
    return [len(re.findall(r"--- \d{4}-\d\d-\d\d", log.read_text())) if log.exists() else 0 for log in logs]


def _every_run_is_whole(project: Project) -> None:
    """One FINISHED MLflow run for each, every step once; nothing to go on with is left."""
    expected = untroubled()["mlflow"]
    for run in RUNS:
        found = mlflow_outcome(project.root, run)
        expect(found["status"] == "FINISHED" and found["models"] == expected["models"], f"{run}: {found['status']}")
        for key in ("fit/loss", "test/acc/overall"):
            expect(found["steps"][key] == expected["steps"][key], f"{run}: {key} at {found['steps'][key]}")
    expect(not list((project.root / stages.STATES).glob("*")), "a state of a finished run is left")
