"""Kill training at random moments and rerun the same command, until it is done; then look for any difference.

    python tests/trials/kill.py --kills 20

Every start is a process forked from a server that has the imports done. A run that was left alone says what must come
out: the same files, bit for bit, and in MLflow one finished run in which every step is there once.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ncflow import stages, tracking
from ncflow.nn import BACKBONES
from ncflow.params import Params, make_params

PRELOADED = ["ncflow.stages", "ncflow.reports.figures", "ncflow.tracking.preloaded"]
TABLE = "class_accuracies.json"
SMALL = {
    "dataset": {"name": "digits", "imb_factor": 0.02},
    "model": {"name": "dropping", "image_size": 8},
    "train": {"batch_size": 64, "analyze_freq": 2, "augment": "crop_flip", "precision": "fp32"},
}


class Dropping(nn.Sequential):
    """A small backbone with a norm's statistics and with dropout, which draws from torch's generator."""

    num_features = 16

    def __init__(self) -> None:
        super().__init__(nn.Flatten(), nn.Linear(3 * 8 * 8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.3))


def configure(name: str, epochs: int = 4) -> Params:
    return make_params(SMALL | {"exp_name": name, "head": "nearest_etf"}, [f"train.epochs={epochs}"])


def train(root: Path, params: Params, kill_at: int | None = None) -> None:
    """The command, in this process; `kill_at` counts the writes of files and to MLflow until it kills itself."""
    torch.set_num_threads(1)
    BACKBONES["dropping"] = Dropping
    log = (root / "log.txt").open("a")
    for stream in (sys.stdout, sys.stderr):
        os.dup2(log.fileno(), stream.fileno())
    if kill_at is not None:
        count_writes(lambda number: number == kill_at and os.kill(os.getpid(), signal.SIGKILL))
    stages.train(params, folder=root / "models" / params.exp_name, data=root / "data" / "digits", root=root)


def count_writes(then: Callable[[int], object]) -> None:
    """Call then(n) after the n-th system call that renames or links a file, or commits to the store."""
    from sqlalchemy.engine import Connection

    number = 0

    def counted(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            nonlocal number
            result = function(*args, **options)
            number += 1
            then(number)
            return result

        return call

    os.replace, os.link = counted(os.replace), counted(os.link)
    Connection._commit_impl = counted(Connection._commit_impl)


def start(root: Path, params: Params, kill_at: int | None = None) -> multiprocessing.process.BaseProcess:
    """The command in a process of its own."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    process = context.Process(target=train, args=(root, params, kill_at))
    process.start()
    return process


def kill_after(seconds: float | None, root: Path, params: Params) -> bool:
    """Start, and kill -9 after so long; False where the run was done before, as it is without a limit."""
    process = start(root, params)
    process.join(seconds)
    process.kill()
    process.join()
    if process.exitcode not in (0, -signal.SIGKILL):
        raise RuntimeError(f"exit code {process.exitcode}:\n{(root / 'log.txt').read_text()[-3000:]}")
    model = root / "models" / params.exp_name / "final_model.pth"
    return not model.exists() or any((root / stages.STATES).glob(f"{params.exp_name}-*"))


def outcome(root: Path, name: str) -> dict[str, Any]:
    """Everything that must not depend on how often a run was killed."""
    folder = root / "models" / name
    history = [
        {key: epoch[key] for key in ("epoch", "lr", "loss", "accuracy")}
        for epoch in json.loads((folder / "history.json").read_text())
    ]
    content = {file.name: file.read_bytes() for file in folder.glob("*_epoch_*")}
    return {
        "files": sorted(file.name for file in folder.iterdir()),
        "folders": sorted(path.name for path in folder.parent.iterdir() if path.name.startswith(name + ".")),
        "states": [path.name for path in (root / stages.STATES).glob(f"{name}-*")],
        "history": history,
        "content": content | {"final_model": (folder / "final_model.pth").read_bytes()},
        "mlflow": mlflow_outcome(root, name),
    }


def mlflow_outcome(root: Path, name: str) -> dict[str, Any]:
    with tracking.store(root) as mlflow:
        client = mlflow.MlflowClient()
        runs = mlflow.search_runs(["0"], filter_string=f"attributes.run_name = '{name}'", output_format="list")
        (run,) = runs
        run_id = run.info.run_id
        files = {path for folder in ("", "images") for path in _artifacts(client, run_id, folder)}
        models = mlflow.search_logged_models(["0"], filter_string=f"source_run_id = '{run_id}'", output_format="list")
        return {
            "status": run.info.status,
            "tags": sorted(run.data.tags),
            "steps": {key: [p.step for p in client.get_metric_history(run_id, key)] for key in run.data.metrics},
            "values": {key: value for key, value in run.data.metrics.items() if "second" not in key},
            "artifacts": sorted(files),
            "table": sorted(mlflow.load_table(TABLE, run_ids=[run_id])["step"]) if TABLE in files else [],
            "data": len(run.inputs.dataset_inputs),
            "models": [model.status for model in models],
        }


def differences(ours: Any, theirs: Any, path: str = "") -> list[str]:
    """The paths at which two outcomes differ."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        keys = sorted(ours.keys() | theirs.keys())
        return [found for key in keys for found in differences(ours.get(key), theirs.get(key), f"{path}/{key}")]
    short = f"{path}: {ours!r:.200} instead of {theirs!r:.200}"
    return [] if ours == theirs else [short]


def _artifacts(client: Any, run_id: str, folder: str) -> list[str]:
    return [file.path for file in client.list_artifacts(run_id, folder)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    moments = random.Random(asked.seed)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        stages.snapshot(configure("alone"), root / "data" / "digits")
        kill_after(None, root, configure("warm"))  # creates the database and starts the server
        begun = time.perf_counter()
        kill_after(None, root, configure("alone"))
        length = time.perf_counter() - begun
        say(f"a run that is left alone takes {length:.1f} s")
        expected, kills, number = outcome(root, "alone"), 0, 0
        while kills < asked.kills:
            number += 1
            params, moments_killed = configure(f"killed{number}"), []
            while kill_after(seconds := moments.uniform(0, length) if kills < asked.kills else None, root, params):
                kills += 1
                moments_killed.append(f"{seconds:.2f}")
            found = differences(outcome(root, params.exp_name), expected)
            say(f"{params.exp_name}: killed after [{' '.join(moments_killed)}] s, {len(found)} differences", *found)


def say(*lines: str) -> None:
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
