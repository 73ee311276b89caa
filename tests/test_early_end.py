"""Runs that end before their last epoch: they are finished, say why, resume, and cannot be extended."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ncflow import stages, tracking
from ncflow.nn import BACKBONES
from ncflow.params import Params, make_params
from ncflow.runs.layout import is_finished
from ncflow.runs.provenance import read_provenance
from ncflow.training import StateFolder

SMALL: dict[str, Any] = {
    "dataset": {"name": "digits", "imb_factor": 0.02, "val_fraction": 0.1},
    "model": {"name": "small", "image_size": 8},
    "train": {"epochs": 9, "batch_size": 64, "analyze_freq": 1, "lr": 1e-9, "precision": "fp32"},
}
STOP = "train.stop={patience: 2}"
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")


class Small(torch.nn.Sequential):
    """A backbone that is quick to train."""

    num_features = 16

    def __init__(self) -> None:
        super().__init__(torch.nn.Flatten(), torch.nn.Linear(3 * 8 * 8, 16), torch.nn.ReLU())


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("project")


@pytest.fixture
def train(root: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Train in a project, without what takes long and is not the question."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setitem(BACKBONES, "small", Small)
    monkeypatch.setattr(tracking.RunLogger, "model", lambda *arguments, **options: "")

    def train(name: str, *overrides: str, **options: Any) -> Path:
        folder = root / "models" / name
        stages.train(configure(name, *overrides), folder=folder, data=root / "data" / "digits", root=root, **options)
        return folder

    return train


def configure(name: str, *overrides: str) -> Params:
    return make_params(SMALL | {"exp_name": name}, overrides)


def epochs(folder: Path) -> list[int]:
    return [record["epoch"] for record in json.loads((folder / "history.json").read_text())]


class Killed(Exception):
    """As if the process ended."""


@pytest.mark.slow
def test_a_run_that_stopped_early_is_finished_and_says_why(train, root, monkeypatch, capsys):
    """At a rate near zero nothing improves. Killed after its last state, the run ends when it resumes."""
    write = StateFolder.write

    def write_and_die(states: StateFolder, state: dict) -> Path:
        file = write(states, state)
        if state["epoch"] == 3:
            raise Killed
        return file

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(StateFolder, "write", write_and_die)
        train("early", STOP)
    assert not is_finished(root / "models" / "early")
    folder = train("early", STOP)
    assert is_finished(folder) and epochs(folder) == [1, 2, 3]
    stopped = read_provenance(folder).stopped
    assert stopped is not None and (stopped["epoch"], stopped["best_epoch"], stopped["patience"]) == (3, 1, 2)
    assert "early: stopped after epoch 3: val/acc/balanced did not improve" in capsys.readouterr().err
    assert stages.result(folder).startswith("epoch 3: ")
    assert stages.evaluate(folder, root / "data" / "digits", root / "out.json")
    with pytest.raises(ValueError, match=r"cannot extend a run whose end is set by train.stop"):
        train("early", STOP, "train.epochs=20", extend=True)


def test_a_run_of_so_many_steps_ends_in_an_epoch(train, root):
    options = ["train.max_steps=9", "train.schedule_per=step", "train.accumulate=2", "train.analyze=streaming"]
    folder = train("steps", *options)
    last = epochs(folder)[-1]
    assert is_finished(folder) and 1 < last < 9 and read_provenance(folder).stopped is None
    analyses = [json.loads((folder / f"metrics_epoch_{epoch}.json").read_text()) for epoch in range(1, last + 1)]
    assert [analysis.get("analyze") for analysis in analyses] == ["streaming"] * (last - 1) + [None]
    assert stages.evaluate(folder, root / "data" / "digits", root / "out.json")["train"] == analyses[-1]["train"]
    with pytest.raises(ValueError, match=r"cannot extend a run whose end is set by train.max_steps=9"):
        train("steps", *options, "train.epochs=20", extend=True)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["train.max_steps=1000"], r"train.max_steps=1000 is more than the \d+ steps of train.epochs=9"),
        (["train.schedule_per=step", "train.epochs=20"], "train.schedule_per=step the learning rates"),
    ],
)
def test_what_does_not_fit_is_refused_before_training(train, root, overrides, message):
    with pytest.raises(ValueError, match=message):
        train("refused", *overrides, extend="epochs" in overrides[-1])
    assert not (root / "models" / "refused").exists()


def test_early_stopping_without_a_validation_split_is_refused(train, tmp_path):
    with pytest.raises(ValueError, match=r"Expected dataset.val_fraction > 0, got 0; try dataset.val_fraction=0.1"):
        train("unseen", STOP, "dataset.val_fraction=0")
    with pytest.raises(ValueError, match=r"looks at the validation split alone"):
        train("unseen", "train.stop={metric: test/acc/balanced}")
