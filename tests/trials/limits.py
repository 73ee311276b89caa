"""Faults of the run itself: a loss that is not a number any more, more memory asked for than there is."""

from __future__ import annotations

import json
import resource
from pathlib import Path

from kill import mlflow_outcome
from trial import Project, expect

MEGABYTE = 2**20
WIDE = ("--set", "model.image_size=64", "--set", "train.epochs=1", "--set")


def not_a_number(project: Project) -> str:
    """epoch, step and learning rate named, the MLflow run FAILED with the reason, the epochs before kept in both"""
    # Weight decay at a high rate grows the weights tenfold a step, until they overflow in a later epoch.
    rates = [f"train.{option}" for option in ("lr=10", "weight_decay=10", "schedule=none", "epochs=40", "momentum=0")]
    ended = project.ncflow("train", *(word for rate in rates for word in ("--set", rate)))
    ended.wait(65, saying="the loss is … at epoch … step … learning rate 10; try a smaller train.lr")
    project.nothing_half_written()
    history = json.loads((project.root / "models" / "run" / "history.json").read_text())
    run = mlflow_outcome(project.root, "run")
    expect(run["status"] == "FAILED" and "error" in run["tags"], f"{run['status']} with {run['tags']}")
    expect(run["steps"]["fit/loss"] == [*range(1, len(history) + 1)] != [], f"steps {run['steps']['fit/loss']}")
    expect("history.json" in run["artifacts"], f"artifacts {run['artifacts']}")
    return f"{ended.message} ({len(history)} epochs kept)"


def diverged_at_once(project: Project) -> str:
    """a rate that is beyond all: the same in the first epoch"""
    ended = project.ncflow("train", "--set", "train.lr=1e9")
    ended.wait(65, saying="the loss is … at epoch 1, step … learning rate 1e+09; try a smaller train.lr")
    project.nothing_half_written(states=False)
    expect(mlflow_outcome(project.root, "run")["status"] == "FAILED", "not FAILED")
    return ended.message


def out_of_memory(project: Project) -> str:
    """the batch size named and a smaller one, or bfloat16, proposed; with a small one it trains in the same memory"""
    ended = project.ncflow("train", *WIDE, "train.batch_size=full", limit=_short_of_memory)
    ended.wait(65, saying="out of memory with train.batch_size=full; try train.batch_size=256, or train.precision=bf16")
    project.nothing_half_written(states=False)
    expect(mlflow_outcome(project.root, "run")["status"] == "FAILED", "not FAILED")
    project.ncflow("train", *WIDE, "train.batch_size=16", limit=_short_of_memory).wait()
    return ended.message


def _short_of_memory() -> None:
    """Leave this process 900 MB beyond what it has taken already."""
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (taken + 900 * MEGABYTE,) * 2)
