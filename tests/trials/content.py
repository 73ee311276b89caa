"""Faults of what is read: a snapshot damaged by one bit, pictures that are not there, states that are not whole."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
from PIL import Image
from trial import SNAPSHOT, Project, expect

from ncflow import stages


def snapshot_bit(project: Project) -> str:
    """refused by the name of the file, with how to make it anew; made anew, the run is the same"""
    project.ncflow("snapshot").wait()
    file = project.root / SNAPSHOT / "train.parquet"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    refused = project.ncflow("train").wait(65, saying="train.parquet is damaged … rename the folder … ncflow snapshot")
    project.nothing_half_written(states=False)
    shutil.rmtree(project.root / SNAPSHOT)
    project.finishes_as_if_nothing_had_been()
    return refused.message


def source_missing(project: Project) -> str:
    """the folder named that should be there and what it should hold, for each split; then the same command trains"""
    options = ("dataset.name=imagefolder", "dataset.root=pictures", "dataset.imb_factor=0.1", "train.epochs=1")
    words = ("train", *(word for option in options for word in ("--set", option)))
    first = project.ncflow(*words).wait(65, saying="pictures")
    _draw(project.root / "pictures" / "train")
    second = project.ncflow(*words).wait(65, saying="pictures … test")
    project.nothing_half_written(states=False)
    _draw(project.root / "pictures" / "test")
    project.ncflow(*words).wait()
    return f"{first.message} / {second.message}"


def state_truncated(project: Project) -> str:
    """refused by name in a warning, the state before it used, and the same outcome"""
    newest = _killed_with_states(project)
    newest.write_bytes(newest.read_bytes()[: newest.stat().st_size // 2])
    return _goes_back(project, newest, "is damaged or not a checkpoint")


def state_foreign(project: Project) -> str:
    """the state of another run under the name of one of this: refused by name, the one before it used"""
    newest = _killed_with_states(project)
    other = Project(project.root / "other")
    shutil.copy(_killed_with_states(other, "--set", "exp_name=run-other", "--set", "train.lr=0.2"), newest)
    return _goes_back(project, newest, "is not the state of this run after epoch 3")


def _killed_with_states(project: Project, *options: str) -> Path:
    """Train until there is a state of the third epoch and kill -9; the file of that state."""
    training = project.ncflow("train", *options).freeze_at(f"{stages.STATES}/run-*/epoch_3.pt", project.root)
    training.kill()
    (newest,) = project.root.glob(f"{stages.STATES}/run-*/epoch_3.pt")
    return newest


def _goes_back(project: Project, newest: Path, saying: str) -> str:
    """The same command says what is wrong with the newest state and goes on after the second epoch."""
    last = project.finishes_as_if_nothing_had_been()
    (warning,) = re.findall(rf"Warning: (.*{newest.name} {saying}.*it is left out)", last.text)
    expect(re.search(r"2/4 \[", last.text) and not re.search(r" [013]/4 \[00:00<\?", last.text), "not from epoch 2")
    return str(warning)


def _draw(folder: Path) -> None:
    """Twenty pictures of noise in two classes."""
    noise = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (folder / name).mkdir(parents=True)
        for number in range(10):
            Image.fromarray(noise.integers(0, 256, (8, 8, 3), np.uint8)).save(folder / name / f"{number}.png")
