"""Other trackers get what MLflow gets, once for each step, and only on request."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from ncflow import tracking
from ncflow.assembly import check
from ncflow.params import make_params
from ncflow.tracking import MIRRORS

CONFIG = {"train": {"lr": 0.1}, "head": {"name": "linear"}}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "params.yaml").touch()
    return tmp_path


def events(root: Path) -> EventAccumulator:
    """What TensorBoard shows of the only run of a project."""
    (folder,) = (root / "tensorboard").iterdir()
    accumulator = EventAccumulator(str(folder))
    accumulator.Reload()
    return accumulator


def scalars(root: Path, name: str) -> list[tuple[int, float]]:
    return [(event.step, event.value) for event in events(root).Scalars(name)]


def test_tensorboard_has_the_metrics_images_and_configuration_of_mlflow(root: Path) -> None:
    with tracking.start_run(root=root, name="mine", config=CONFIG, also=["tensorboard"]) as run:
        for epoch in (1, 2):
            run.metrics({"test/nc1/pinv": 0.5 / epoch}, step=epoch)
        run.images({"cosines": np.full((4, 6, 3), 128, np.uint8)}, step=2)
    assert scalars(root, "test/nc1/pinv") == [(1, 0.5), (2, 0.25)]
    (image,) = events(root).Images("cosines")
    assert (image.step, image.width, image.height) == (2, 6, 4)
    (text,) = events(root).Tensors("configuration/text_summary")
    assert b"train.lr: 0.1" in text.tensor_proto.string_val[0]
    with tracking.store(root) as mlflow:
        assert [point.value for point in mlflow.MlflowClient().get_metric_history(run.run_id, "test/nc1/pinv")] == [
            0.5,
            0.25,
        ]


def test_a_step_that_is_logged_again_after_a_kill_is_there_once(root: Path) -> None:
    def train(epochs: list[int], *, killed_in: int | None = None) -> None:
        with tracking.start_run(root=root, name="mine", config=CONFIG, attempt="one", also=["tensorboard"]) as run:
            for epoch in epochs:
                if epoch == killed_in:  # the mirror has the step, MLflow does not
                    run.mirrors[0].metrics({"fit/loss": -1.0}, epoch)
                    raise KeyboardInterrupt
                run.metrics({"fit/loss": float(epoch)}, step=epoch)

    with pytest.raises(KeyboardInterrupt):
        train([1, 2], killed_in=2)
    train([1, 2, 3])
    assert scalars(root, "fit/loss") == [(1, 1.0), (2, 2.0), (3, 3.0)]


def test_without_a_mirror_no_other_tracker_leaves_a_file(root: Path) -> None:
    with tracking.start_run(root=root, name="mine", config=CONFIG) as run:
        run.metrics({"fit/loss": 1.0}, step=1)
    assert not (root / "tensorboard").exists() and not (root / "wandb").exists()


@pytest.mark.slow
def test_wandb_offline_keeps_the_run_under_its_mlflow_id(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    with tracking.start_run(root=root, name="mine", config=CONFIG, also=["wandb"]) as run:
        run.metrics({"test/nc1/pinv": 0.5}, step=1)
        run.images({"cosines": np.zeros((4, 6, 3), np.uint8)}, step=1)
    (file,) = (root / "wandb").glob(f"offline-run-*/run-{run.run_id}.wandb")
    assert b"test/nc1/pinv" in file.read_bytes()


def test_an_unknown_tracker_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match="tensorboard"):
        check(make_params({}, ["tracking.also=[tensorbord]"]))


@pytest.mark.parametrize("name", MIRRORS)
def test_copies_do_not_change_which_run_it_is(name: str) -> None:
    plain, copied = make_params({}), make_params({}, [f"tracking.also=[{name}]"])
    assert plain.digest() == copied.digest()
