"""Runs that a trial launches on two machines: a small project with results that can be compared."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch
import yaml
from kill import outcome
from site_of_nodes import PAGE, Machines, Node, command
from trial import PARAMS, Project, expect, wait_for

import ncflow
from ncflow import stages

TORCHRUN, ACCELERATE = "torchrun --nnodes 2 --nproc_per_node 1", "accelerate launch --config_file docs/accelerate/two_"
LONGER = " --set train.epochs=8 --set train.analyze_freq=4"
SMALL = '''"""A small backbone with a batch norm. Rounding does not grow in it, so results can be compared."""
from torch import nn

from ncflow.nn import BACKBONES


class Small(nn.Sequential):
    """A convolution, a batch norm and a layer."""

    num_features = 16

    def __init__(self):
        maps = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten())
        super().__init__(maps, nn.Linear(8 * 3 * 3, 16))


BACKBONES["small"] = Small
'''


def in_training(project: Project, nodes: list[Node]) -> None:
    """Wait until the first epoch is saved."""
    states = project.root / stages.STATES
    ended = lambda: any(node.process.poll() is not None for node in nodes)  # noqa: E731
    wait_for(lambda: any(states.glob("run-*/epoch_*.pt")) or ended(), "an epoch", seconds=200)
    expect(not ended(), f"ended early: {' / '.join(node.text[-2000:] for node in nodes)}")


def both(
    machines: Machines, project: Project, line: str, *, environment: Mapping[str, str] | None = None
) -> list[Node]:
    return [machines.start(number, line, project, environment=environment) for number in (0, 1)]


@cache
def alone(machines: Machines) -> Project:
    """A finished run of one process."""
    project = small(Path(os.environ["TRIALS"], "alone"))
    machines.start(0, "ncflow train", project).wait()
    return project


@cache
def undisturbed(machines: Machines) -> dict[str, Any]:
    """The outcome of a run on both machines that meets no fault."""
    project = small(Path(os.environ["TRIALS"], "undisturbed"))
    for node in both(machines, project, command(TORCHRUN) + LONGER):
        node.wait()
    return outcome(project.root, "run")


def small(root: Path) -> Project:
    """A project of a run whose results can be compared, with the pages' configurations of Accelerate."""
    root.mkdir(parents=True, exist_ok=True)
    project = Project(root / "project")
    (project.root / "small.py").write_text(SMALL)
    (project.root / "docs").symlink_to(PAGE.parent)
    train = {**PARAMS["train"], "lr": 0.05, "epochs": 2}
    model = {"name": "small", "image_size": 8}
    (project.root / "params.yaml").write_text(yaml.safe_dump(PARAMS | {"model": model, "train": train}))
    project.environment["NCFLOW_IMPORT"] = str(project.root / "small.py")
    return project


def shared(root: Path, *names: str) -> tuple[list[dict[Path, Path]], Project]:
    """A project at a path where each machine sees the folder of its name."""
    project = small(root)
    for name in names:
        if not (root / name).exists():
            shutil.copytree(project.root, root / name, symlinks=True)
    return [{project.root: root / name} for name in names], project


def copy_of_ncflow(folder: Path) -> Path:
    """A folder for PYTHONPATH."""
    shutil.copytree(Path(ncflow.__file__).parent, folder / "ncflow", ignore=shutil.ignore_patterns("__pycache__"))
    return folder


def finished(project: Project) -> bool:
    return (project.root / "models" / "run" / "final_model.pth").exists()


def trains(process: int) -> bool:
    """Whether a process trains; torchrun's own command line ends in the same words."""
    words = Path(f"/proc/{process}/cmdline").read_bytes().split(b"\0")
    return b"train" in words and not any(b"torchrun" in word for word in words)


def deviations(one: Project, two: Project) -> dict[str, float]:
    """How far each metric and each tensor of two runs differ; relative where it is above 1."""
    folders = [project.root / "models" / "run" for project in (one, two)]
    ours, theirs = (json.loads((folder / "metrics_epoch_2.json").read_text()) for folder in folders)
    weights, others = (torch.load(folder / "final_model.pth", weights_only=True) for folder in folders)
    found = {}
    for split in ("train", "test"):
        expect(ours[split].keys() == theirs[split].keys(), f"other metrics of {split}")
        for name, value in ours[split].items():
            found[f"{split}/{name}"] = abs(value - theirs[split][name]) / max(abs(value), 1)
    for name, tensor in weights.items():
        difference = (tensor.double() - others[name].double()).abs().max().item()
        found[name] = difference / max(tensor.abs().max().item(), 1)
    return found
