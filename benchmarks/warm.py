"""Suites of runs of seconds: each run a new process, or a fork of a server that has the imports done.

Every row is a group of experiments with few epochs, as `ncflow suite` runs it in a new project: exp12 (free features)
and exp11 (ResNet-18) on 8x8 digits. What the suite itself takes, its imports and its report, is measured by the same
command with all runs finished, and left out. What remains is divided by the number of runs; it includes the start of
the server and the training. "equal" counts the runs whose files are the same to the last bit.

Predicted: a third of the time, as in a prototype; half of what is left is the export of the model.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.frame import publish

GROUPS = {  # name -> options of the suite
    "exp12": ["train.epochs=20"],
    "exp11": ["dataset.name=digits", "model.image_size=8", "train.epochs=1"],
}
SMALL = ["model.image_size=8", "train.epochs=1", "grid.head=[linear]", "grid.loss=null", "grid.seed=[0]"]  # one run
STORE = "from pathlib import Path; from ncflow.tracking import store; store(Path()).__enter__()"
LEAST = 3.0  # the goal
TIMED = ("seconds", "images_per_second")  # what no two runs have equal


class Cost(NamedTuple):
    """Seconds on the clock and of all CPUs."""

    wall: float
    cpu: float


def measure(options: argparse.Namespace) -> list[dict[str, Any]]:
    """One row per group and number of jobs."""
    if options.quick:
        return [row("main", SMALL, 1, net=False)]
    return [row(group, settings, jobs) for group, settings in GROUPS.items() for jobs in (1, 2)]


def row(group: str, settings: list[str], jobs: int, *, net: bool = True) -> dict[str, Any]:
    """New processes and forks, one after the other, and whether they left the same files."""
    with tempfile.TemporaryDirectory() as first, tempfile.TemporaryDirectory() as second:
        cold, files = per_run(Path(first), group, settings, jobs, warm=False, net=net)
        warm, same = per_run(Path(second), group, settings, jobs, warm=True, net=net)
    ratio = cold.wall / warm.wall
    print(f"{group}, {jobs} jobs: {cold.wall:.1f} s -> {warm.wall:.1f} s", flush=True)
    return {
        "suite": f"{group}, {len(files)} runs, {jobs} at a time",
        "process: s per run": f"{cold.wall:.1f}, CPU {cold.cpu:.1f}",
        "fork: s per run": f"{warm.wall:.1f}, CPU {warm.cpu:.1f}",
        "ratio": f"**{ratio:.1f}×**, CPU {cold.cpu / warm.cpu:.1f}×",
        "equal": f"{sum(files[name] == same.get(name) for name in files)} of {len(files)}",
        "goal": f"≥ {LEAST:g}× {'reached' if ratio >= LEAST else '**missed**'}",
    }


def per_run(
    root: Path, group: str, settings: list[str], jobs: int, *, warm: bool, net: bool
) -> tuple[Cost, dict[str, dict[str, bytes]]]:
    """The cost of a run in a suite, and the files of every run. `net` leaves out what the suite itself takes."""
    (root / "params.yaml").touch()
    if net:
        command(root, ["-c", STORE])  # the first run of a project would make it
    words = ["-m", "ncflow", "suite", group, "--jobs", str(jobs), *chosen(settings)]
    whole = command(root, words, warm=warm)
    without = command(root, words, warm=warm) if net else Cost(0.0, 0.0)
    runs = {folder.name: content(folder) for folder in (root / "models").iterdir() if folder.is_dir()}
    return Cost((whole.wall - without.wall) / len(runs), (whole.cpu - without.cpu) / len(runs)), runs


def chosen(settings: list[str]) -> list[str]:
    return [word for setting in settings for word in ("--set", setting)]


def command(root: Path, words: list[str], *, warm: bool = True) -> Cost:
    """The cost of a command, with cached bytecode, as users have it."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    environment |= {"PYTHONPATH": str(Path(__file__).parents[1]), "NCFLOW_WARM": str(int(warm))}
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run([sys.executable, *words], cwd=root, env=environment, check=True, capture_output=True)
    wall, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    return Cost(wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)


def content(folder: Path) -> dict[str, bytes]:
    """The bytes of a run's files; of the history without the times."""
    files = {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()}
    history = [
        {key: epoch[key] for key in epoch if key not in TIMED} for epoch in json.loads(files.pop("history.json"))
    ]
    return files | {"history": json.dumps(history).encode()}


if __name__ == "__main__":
    publish(measure)
