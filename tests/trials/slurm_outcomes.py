"""What must come of the job scripts of docs/clusters.md: shared work, resumed runs, nodes that lack something."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from kill import differences, outcome
from services import free_port
from site_of_slurm import PAGE, Cluster, Jobs, asked
from trial import Project, expect, wait_for

from ncflow import stages
from ncflow.runs.provenance import read_provenance

OVERRIDES = "dataset.name=ufm10 model.num_features=32 train.epochs=40"
SUITE = ("exp12", "--set", OVERRIDES, "--head", "nearest_etf", "--grid", "seed=0..3")
RUNS = [f"exp12_ufm10_d32_nearest_etf_seed{seed}" for seed in range(4)]
TWO, ONE = ("--array=0-1", "--cpus-per-task=1"), ("--array=0-0", "--cpus-per-task=1")
FREE = [
    word
    for value in (
        "model.name=free_features",
        "dataset.name=ufm10",
        "model.num_features=32",
        "dataset.imb_type=none",
        "train.epochs=20",
        "train.batch_size=1000",
        "train.lr=10",
        "train.analyze_freq=20",
    )
    for word in ("--set", value)
]
FINISHED = ("COMPLETED", "COMPLETED")


def shared(cluster: Cluster, project: Project) -> str:
    """an array of two tasks trains every run once, each task some of them"""
    jobs, _ = undisturbed(cluster)
    trained = [re.findall(r"\] (\S+) done in", jobs.text(task)) for task in (0, 1)]
    expect(all(trained), f"a task without a run: {trained}")
    expect(sorted(trained[0] + trained[1]) == RUNS, f"trained twice: {trained}")
    expect(attempts(jobs.project) == dict.fromkeys(RUNS, 1), f"attempts {attempts(jobs.project)}")
    return f"{len(trained[0])} + {len(trained[1])} runs, each trained once, one FINISHED MLflow run each"


def terminated(cluster: Cluster, project: Project) -> str:
    """`scancel --signal=TERM` ends the last task with 75; only this task is queued again, and its run resumes"""
    jobs = cluster.submit(project, *SUITE, options=TWO)
    run = in_training(cluster, jobs, task=1)
    jobs.signal(1, "--signal=TERM")
    tasks = jobs.wait(*FINISHED)
    restarts = [task["Restarts"] for task in tasks.values()]
    expect(restarts == ["0", "1"], f"restarts {restarts}")
    expect("Exited with exit code 75" in jobs.text(1), jobs.text(1))
    return f"{as_undisturbed(cluster, jobs, resumed=[run])}, restarts of the tasks: {', '.join(restarts)}"


def signal_at_start(cluster: Cluster, project: Project) -> str:
    """a signal before the suite has started a run queues the task again, too"""
    jobs = cluster.submit(project, *SUITE, options=ONE)
    wait_for(jobs.has_process, "the command")
    jobs.signal(0, "--signal=TERM")
    wait_for(lambda: jobs.tasks()[0]["Restarts"] == "1", "the restart", 60)
    expect("starts" not in jobs.text(0), f"too late: {jobs.text(0)}")
    return " ".join(jobs.text(0).splitlines()[-3:])


def cancelled(cluster: Cluster, project: Project) -> str:
    """`scancel` saves the runs and queues nothing again; the same `sbatch` resumes them"""
    jobs = cluster.submit(project, *SUITE, options=TWO)
    runs = [in_training(cluster, jobs, task=task) for task in (0, 1)]
    jobs.signal(0)
    jobs.signal(1)
    jobs.wait("CANCELLED", "CANCELLED")
    time.sleep(8)
    jobs.wait("CANCELLED", "CANCELLED")
    again = cluster.submit(project, *SUITE, options=TWO)
    again.wait(*FINISHED)
    return as_undisturbed(cluster, again, resumed=runs)


def time_limit(cluster: Cluster, project: Project) -> str:
    """before the time is up the task ends with 75; it is queued again, and its run resumes"""
    jobs = cluster.submit(project, *SUITE, options=(*ONE, "--time=2", "--signal=TERM@30"))
    run = in_training(cluster, jobs, task=0)
    with frozen(
        cluster.writers(jobs.tasks()[0]["NodeList"], log(project, run))
    ):  # the run is shorter than a minute, which is SLURM's unit
        wait_for(lambda: "CANCELLED" in jobs.text(0), "the signal", 180)
    wait_for(lambda: jobs.tasks()[0]["Restarts"] == "1", "the restart")
    asked("scontrol", "update", f"JobId={jobs.number}_0", "TimeLimit=30")  # no second interruption on a slow machine
    jobs.wait("COMPLETED")
    expect("Exited with exit code 75" in jobs.text(0), jobs.text(0))
    expect("TIME LIMIT" not in jobs.text(0), jobs.text(0))
    return f"{as_undisturbed(cluster, jobs, resumed=[run])}, one restart"


def node_killed(cluster: Cluster, project: Project) -> str:
    """a node that dies in mid-run loses nothing: SLURM queues its task again, and the run resumes"""
    jobs = cluster.submit(project, *SUITE, options=TWO)
    run = in_training(cluster, jobs, task=1)
    node = jobs.tasks()[1]["NodeList"]
    cluster.kill(node)
    wait_for(lambda: jobs.tasks()[1]["Restarts"] == "1", "the restart")
    cluster.restart(node)
    jobs.wait(*FINISHED)
    return as_undisturbed(cluster, jobs, resumed=[run])


def node_without_ncflow(cluster: Cluster, project: Project) -> str:
    """a node that does not see the environment with ncflow ends the task with one message, and trains nothing"""
    with cluster.without("n2", Path(sys.prefix)):
        jobs = cluster.submit(project, *SUITE, options=(*ONE, "--nodelist=n2"))
        jobs.wait("FAILED")
    said = [line for line in jobs.text(0).splitlines() if not line.startswith(("warning:", "srun:"))]
    expect("ncflow" in said[0] and len(said) < 4, jobs.text(0))
    expect(not (project.root / "models").exists(), "it trained")
    return "; ".join(said)


def folder_empty(cluster: Cluster, project: Project) -> str:
    """a node with another folder at the project's path ends the task with one message there, and trains nothing"""
    with cluster.without("n2", project.root) as node:
        jobs = cluster.submit(project, *SUITE, options=(*ONE, "--nodelist=n2"))
        jobs.wait("FAILED")
        there = Path(f"/proc/{node.process.pid}/root{project.root}")
        said = (there / f"slurm-{jobs.number}_0.out").read_text()
        expect([path.suffix for path in there.iterdir()] == [".out"], f"it left files: {[*there.iterdir()]}")
    expect("params.yaml" in said and said.count("\n") == 1, said)
    return said.strip()


def folder_missing(cluster: Cluster, project: Project) -> str:
    """a node without the project's folder cannot write the task's output: SLURM ends the task, and shows 0:53"""
    with cluster.without("n2", project.root.parent):
        jobs = cluster.submit(project, *SUITE, options=(*ONE, "--nodelist=n2"))
        (task,) = jobs.wait("FAILED").values()
    expect(task["ExitCode"] == "0:53" and not jobs.text(0), f"{task['ExitCode']}: {jobs.text(0)}")
    expect(not (project.root / "models").exists(), "it trained")
    return f"ExitCode={task['ExitCode']}, no output"


def two_nodes(cluster: Cluster, project: Project) -> str:
    """one run in two processes on two nodes equals one process to 1e-5"""
    where = ("--config_file", str(PAGE.parent / "accelerate" / "two_machines_cpu.yaml"))
    words = (*where, "--main_process_port", str(free_port()), "-m", "ncflow", "train", "--set", "exp_name=two", *FREE)
    jobs = cluster.submit(project, *words, options=("--gpus-per-node=1", "--cpus-per-task=1"), number=1)
    jobs.wait("COMPLETED")
    project.ncflow("train", "--set", "exp_name=one", *FREE).wait()
    one, two = (project.root / "models" / name for name in ("one", "two"))
    count = [read_provenance(folder).hardware for folder in (one, two)]
    expect([each and each.processes for each in count] == [1, 2], f"{count}")
    ours, theirs = (json.loads((folder / "metrics_epoch_20.json").read_text()) for folder in (one, two))
    apart = {
        f"{split}/{name}": abs(value - theirs[split][name]) / max(abs(value), 1)
        for split in ("train", "test")
        for name, value in ours[split].items()
    }
    worst = max(apart, key=lambda name: apart[name])
    expect(apart[worst] < 1e-5, f"{worst} differs by {apart[worst]:.1e}")
    return f"{len(apart)} metrics, the largest difference is {apart[worst]:.0e}, of {worst}"


@cache
def undisturbed(cluster: Cluster) -> tuple[Jobs, dict[str, Any]]:
    """An array that meets no fault, and what each of its runs has left."""
    project = Project(cluster.folder / "projects" / "undisturbed")
    jobs = cluster.submit(project, *SUITE, options=TWO)
    jobs.wait(*FINISHED)
    return jobs, {run: outcome(project.root, run) for run in RUNS}


def as_undisturbed(cluster: Cluster, jobs: Jobs, *, resumed: list[str]) -> str:
    """Each run has the files, numbers and MLflow run of one that nothing disturbed; only `resumed` started twice."""
    _, expected = undisturbed(cluster)
    for run in RUNS:
        found = differences(outcome(jobs.project.root, run), expected[run])
        expect(not found, f"{run}: {'; '.join(found[:5])}")
    count = attempts(jobs.project)
    expect(count == {run: 1 + (run in resumed) for run in RUNS}, f"attempts {count}, resumed {resumed}")
    return f"the final files are those of undisturbed runs, resumed: {', '.join(resumed)}"


def attempts(project: Project) -> dict[str, int]:
    """How often each run has begun to train. A process that finds the run in other hands ends before."""
    return {run: log(project, run).read_text().count(" process on cpu") for run in RUNS}


def in_training(cluster: Cluster, jobs: Jobs, *, task: int) -> str:
    """The run that a task trains, once its first epoch is saved."""

    node = running(jobs, task)["NodeList"]

    def found() -> list[str]:
        return [run for run in RUNS if is_saved(jobs, run) and cluster.writers(node, log(jobs.project, run))]

    wait_for(lambda: found() or jobs.ended(), f"an epoch of task {task}")
    expect(runs := found(), f"no run in training: {jobs.text(task)[-2000:]}")
    return runs[0]


def running(jobs: Jobs, task: int) -> dict[str, str]:
    """What SLURM knows of a task, once it runs."""
    wait_for(lambda: jobs.tasks().get(task, {}).get("JobState") == "RUNNING", f"the start of task {task}")
    return jobs.tasks()[task]


def is_saved(jobs: Jobs, run: str) -> bool:
    """Whether a run has an epoch to resume from, and one process: of two that started it at once, one has ended."""
    saved = any(jobs.project.root.glob(f"{stages.STATES}/{run}-*/epoch_*.pt"))
    text = log(jobs.project, run).read_text() if saved else ""
    return saved and text.count("-m ncflow train") == 1 + text.count("another process trains")


def log(project: Project, run: str) -> Path:
    return project.root / ".ncflow" / "suite" / f"{run}.log"


@contextmanager
def frozen(processes: list[int]) -> Iterator[None]:
    """Inside, these processes are stopped and receive no other signal."""
    for number in processes:
        os.kill(number, signal.SIGSTOP)
    try:
        yield
    finally:
        for number in processes:
            os.kill(number, signal.SIGCONT)


OUTCOMES: dict[str, Callable[[Cluster, Project], str]] = {
    "shared": shared,
    "terminated": terminated,
    "signal_at_start": signal_at_start,
    "cancelled": cancelled,
    "time_limit": time_limit,
    "node_killed": node_killed,
    "node_without_ncflow": node_without_ncflow,
    "folder_empty": folder_empty,
    "folder_missing": folder_missing,
    "two_nodes": two_nodes,
}
