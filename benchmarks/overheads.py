"""What ncflow takes besides training: the command line, the run around the epochs, and what is kept of an epoch.

"around training" is a whole `ncflow train` on 8x8 digits less the seconds of its epochs: imports, snapshot, MLflow, the
analysis, artifacts and the model. "logging" is what happens between two epochs of a ResNet-20 or ResNet-18 but for the
state: files, metrics, images and tables to MLflow, with an analysis in every epoch; "state" is the writing of what a
stopped run goes on from. Their shares are those of an epoch of ten seconds.

Predicted: 0.15 s for the help, of which Python takes a tenth; 8 s around training, most of it imports; 0.1 s for
pictures and tables, and 0.1 s for the 90 MB of a ResNet-18's state.
Came: 11 to 12 s around training; 0.24 to 0.34 s for pictures, table and metrics in five runs of this, two thirds of it
Matplotlib's, after a quarter of that was saved with the ticks of its axes.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

from benchmarks.frame import Budget, publish
from ncflow import recording, stages
from ncflow.assembly import Training
from ncflow.params import Params, make_params
from ncflow.runs.reader import load_run
from ncflow.training import EpochRecord, StateFolder

EPOCH = 10.0  # seconds
SETTINGS = ["dataset.name=digits", "dataset.imb_factor=0.02", "model.image_size=8"]


def measure(options: argparse.Namespace) -> list[dict[str, Any]]:
    """One row per overhead: seconds, and the goal."""
    models = ("resnet20",) if options.quick else ("resnet20", "resnet18")
    budget = Budget(options.budget, cases=2 + len(models))
    rounds = budget.rounds(options.pairs, budget.start_case())
    rows = [row("ncflow --help", 0.3, [command("--help") for _ in rounds])]
    if not options.quick:
        with tempfile.TemporaryDirectory() as folder:  # the first run makes the store
            end = budget.start_case()
            around_training(Path(folder), options.pairs)
            around = [around_training(Path(folder), number) for number in budget.rounds(options.pairs, end)]
        rows.append(row("around training", 12.0, around))
    for model in models:
        with tempfile.TemporaryDirectory() as folder:
            recorded, states = between_epochs(Path(folder), model, epochs=1 + options.pairs)
        logged = [both - state for both, state in zip(recorded, states, strict=True)]
        rows.append(row(f"logging, {model}", 0.03 * EPOCH, logged[1:]))
        rows.append(row(f"state, {model}", 0.03 * EPOCH, states[1:]))
    return rows


def row(what: str, goal: float, seconds: list[float]) -> dict[str, Any]:
    median = statistics.median(seconds)
    print(f"{what}: {median:.3g} s", flush=True)
    return {
        "what": what,
        "seconds": f"{median:.3g} ({min(seconds):.3g} to {max(seconds):.3g})",
        "share of an epoch of 10 s": f"{median / EPOCH:.1%}" if what.startswith(("logging", "state")) else None,
        "goal": f"≤ {goal:g} s {'reached' if median <= goal else '**missed**'}",
    }


def command(*words: str, cwd: Path | None = None) -> float:
    """Seconds of an ncflow command in a process of its own, with cached bytecode, as users have it."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    environment["PYTHONPATH"] = str(Path(__file__).parents[1])
    started = time.perf_counter()
    subprocess.run([sys.executable, "-m", "ncflow", *words], cwd=cwd, env=environment, check=True, capture_output=True)
    return time.perf_counter() - started


def around_training(root: Path, number: int) -> float:
    """Seconds of a run of one epoch less those of the epoch."""
    chosen = [*SETTINGS, "model.name=resnet20", "train.epochs=1", f"exp_name=run_{number}"]
    whole = command("train", *(word for setting in chosen for word in ("--set", setting)), cwd=root)
    return whole - sum(epoch["seconds"] for epoch in load_run(root / "models" / f"run_{number}").history)


def between_epochs(root: Path, model: str, epochs: int) -> tuple[list[float], list[float]]:
    """Seconds from the end of each epoch to the demand for the next, and those of writing the state in between."""
    recorded: list[float] = []
    states: list[float] = []

    def record(params: Params, training: Training, *rest: Any, **options: Any) -> None:
        recording.record(params, replace(training, records=timed_records(training.records)), *rest, **options)

    def timed_records(records: Iterator[EpochRecord]) -> Iterator[EpochRecord]:
        for finished in records:
            started = time.perf_counter()
            yield finished
            recorded.append(time.perf_counter() - started)

    def write(folder: StateFolder, state: dict[str, Any]) -> Path:
        started = time.perf_counter()
        file = write_state(folder, state)
        states.append(time.perf_counter() - started)
        return file

    write_state = StateFolder.write
    more = [f"model.name={model}", f"train.epochs={epochs}", "train.analyze_freq=1", f"exp_name={model}"]
    params = make_params({}, [*SETTINGS, *more])
    with patch.object(stages, "record", record), patch.object(StateFolder, "write", write):
        stages.train(params, folder=root / "models" / model, data=root / "data" / "digits", root=root)
    return recorded, states


if __name__ == "__main__":
    publish(measure)
