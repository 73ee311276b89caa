"""Theory is held against exactly the runs that it speaks of."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch

from ncflow.reports.arms import arms, labels
from ncflow.reports.beside import lengths_figure, predictions, theory_table
from ncflow.reports.figures import to_image
from ncflow.reports.predictions import ASSUMPTIONS, decays, drift_references, measure, predict, quantities
from ncflow.reports.runs import Run, read_run
from ncflow.theory import fixed_etf_feature_norm, predicted_optimum, seli_optimum

MakeRun = Callable[..., Path]

FREE = {"name": "free_features", "image_size": 8}
TRAIN = {"loss": "ce", "optimizer": "sgd", "weight_decay": 5e-3}
LINEAR = {"name": "linear", "bias": False, "normalize": False, "temperature": None}


@pytest.fixture
def configured(make_run: MakeRun) -> Callable[..., Run]:
    """A run of free features, changed section by section."""

    number = count()

    def configure(counts: tuple[int, ...] = (10, 10, 10, 10), **sections: Any) -> Run:
        configuration = {"model": FREE, "head": LINEAR, "train": TRAIN}
        overrides = configuration | {name: configuration.get(name, {}) | s for name, s in sections.items()}
        shape = {"num_classes": len(counts), "class_counts": counts, "epochs": (3,)}
        return read_run(make_run(f"run{next(number)}", **shape, overrides=overrides))

    return configure


@pytest.mark.parametrize(
    "loss, counts", [("ce", (10, 10, 10, 10)), ("ce", (40, 4, 40, 4)), ("mse", (40, 20, 8, 3)), ("mse", (9, 9))]
)
def test_free_features_are_held_against_their_exact_optimum(configured, loss: str, counts: tuple[int, ...]) -> None:
    prediction = predict(configured(counts, train={"loss": loss}))
    expected = predicted_optimum(loss, counts, lambda_w=5e-3, lambda_h=5e-3)
    assert (prediction.theory, prediction.scale) == ("optimum", True)
    torch.testing.assert_close(prediction.optimum.logits, expected.logits)


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"counts": (40, 20, 8, 3)}, id="cross-entropy on classes of many sizes"),
        pytest.param({"train": {"weight_decay": 0.0}}, id="no weight decay"),
        pytest.param({"train": {"optimizer": "adamw"}}, id="decoupled weight decay is no term of the loss"),
        pytest.param({"train": {"decay": "head"}}, id="no decay of the features"),
        pytest.param({"model": {"name": "resnet20"}}, id="a real network"),
    ],
)
def test_where_cross_entropy_has_no_exact_optimum_its_limit_is_the_reference(configured, changes: Any) -> None:
    run = configured(**changes)
    prediction = predict(run)
    assert (prediction.theory, prediction.scale) == ("SELI", False)
    expected = seli_optimum(run.dump["class_counts"])
    torch.testing.assert_close(prediction.optimum.weight, expected.weight)


@pytest.mark.parametrize(
    "changes",
    [
        {"train": {"loss": "focal"}},
        {"train": {"loss": "mse", "loss_options": {"emphasis": 5.0}}},
        {"train": {"loss": "mse"}, "model": {"name": "resnet20"}},
        {"train": {"drift_penalty": 0.1}},
        {"train": {"reweight": 0.9}},
        {"train": {"sampling": "class_balanced"}},
        {"dataset": {"label_noise": 0.1}},
        {"head": {"bias": True}},
        {"head": {"normalize": True}},
        {"head": {"temperature": 5.0}},
        {"counts": (10, 10, 10, 0)},
    ],
)
def test_what_no_theory_speaks_of_has_no_prediction(configured, changes: Any) -> None:
    assert predict(configured()) is not None
    assert predict(configured(**changes)) is None


def test_before_a_fixed_etf_features_are_as_long_as_the_head_or_weight_decay_makes_them(make_run: MakeRun) -> None:
    def fixed(name: str, temperature: float | None, model: dict[str, Any], loss: str = "ce") -> Run:
        head = {"name": "fixed_etf", "temperature": temperature}
        overrides = {"head": head, "model": model, "train": TRAIN | {"loss": loss}}
        return read_run(make_run(name, head="fixed_etf", num_classes=3, class_counts=(30, 9, 1), overrides=overrides))

    network = {"name": "resnet20"}
    told = predict(fixed("told", 5.0, network))
    left = predict(fixed("left", None, FREE))
    torch.testing.assert_close(told.optimum.mean_norms, torch.full((3,), 5.0, dtype=torch.float64))
    norm = fixed_etf_feature_norm((30, 9, 1), lambda_h=5e-3)
    torch.testing.assert_close(left.optimum.mean_norms, torch.full((3,), norm, dtype=torch.float64))
    assert predict(fixed("network", None, network)) is None
    assert predict(fixed("loss", 5.0, network, loss="mse")) is None


def test_the_nearest_etf_head_has_no_closed_form(make_run: MakeRun) -> None:
    assert predict(read_run(make_run("run", head="nearest_etf"))) is None


@pytest.mark.parametrize(
    "options, expected",
    [
        ({"train.weight_decay": 1e-3}, (1e-3, 1e-3)),
        ({"train.weight_decay": 1e-3, "train.decay": "matrices"}, (1e-3, 1e-3)),
        ({"train.weight_decay": 1e-3, "train.decay": "head", "train.feature_decay": 0.5}, (1e-3, 5e-3)),
        ({"train.weight_decay": 1e-3, "train.decay": "all", "train.feature_decay": 0.5}, (1e-3, 6e-3)),
        ({"train.weight_decay": None}, (0.0, 0.0)),
    ],
)
def test_decays_are_those_of_the_unconstrained_feature_model(options: dict[str, Any], expected: Any) -> None:
    assert decays(options, num_samples=100) == pytest.approx(expected)


def test_numbers_of_an_optimum_do_not_depend_on_its_rotation_nor_those_without_scale_on_its_scale() -> None:
    optimum = predicted_optimum("mse", (40, 20, 8, 3), lambda_w=5e-3, lambda_h=5e-3)
    rotation = torch.linalg.qr(torch.randn(4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))[0]
    rotated = type(optimum)(optimum.weight @ rotation, optimum.class_means @ rotation, optimum.class_counts)
    scaled = type(optimum)(3 * optimum.weight, 7 * optimum.class_means, optimum.class_counts)
    assert quantities(rotated) == pytest.approx(quantities(optimum))
    assert quantities(scaled, scale=False) == pytest.approx(quantities(optimum, scale=False))
    assert set(quantities(optimum, scale=False)) < set(quantities(optimum))


def test_minority_collapse_shows_in_the_numbers() -> None:
    decay = math.sqrt(10) / 624
    collapsed = quantities(predicted_optimum("ce", [200] * 3 + [8] * 3, lambda_w=decay, lambda_h=decay))
    assert collapsed["cos(w,w) rarest third"] == pytest.approx(1)
    assert collapsed["smallest margin"] == pytest.approx(0, abs=1e-9)


def test_drift_references_without_imbalance_are_none_and_that_of_orthogonal_means() -> None:
    references = drift_references(torch.tensor([7] * 10))
    assert references["SELI"] == pytest.approx(0, abs=1e-9)
    assert references["nonnegative features"] == pytest.approx(10**-0.5)


@pytest.mark.parametrize("counts", [(500, 50, 5), (100,) * 5 + (1,) * 5])
def test_the_drift_of_nonnegative_features_approaches_its_limit(counts: tuple[int, ...]) -> None:
    """There ‖h_k‖² goes as n_k^(-½), on one axis per class."""
    n = torch.tensor(counts, dtype=torch.float64)
    limit = n.pow(1.5).sum().sqrt() / (n.sum() * n.sqrt().sum()).sqrt()
    assert drift_references(n)["nonnegative features"] == pytest.approx(limit.item(), rel=1e-2)


def test_a_run_at_its_optimum_reads_as_predicted_in_table_and_figure(configured) -> None:
    run = configured((40, 4, 40, 4))
    optimum = predict(run).optimum
    run.dump.update(weight=optimum.weight, class_means=optimum.class_means)
    compared = arms([run])
    (predicted,) = predictions(compared).values()
    ideal, measured = theory_table(predicted, dict(zip(compared, labels(compared), strict=True))).rows
    assert ideal.cells[:2] == ("linear", "optimum")
    assert measured.cells[:2] == ("linear", "measured")
    assert ideal.cells[2:] == measured.cells[2:]
    figure = lengths_figure(predicted)
    to_image(figure)
    for axes in figure.axes:
        dashes, points = (line.get_ydata() for line in axes.lines)
        torch.testing.assert_close(torch.as_tensor(dashes), torch.as_tensor(points))
        assert axes.get_ylim()[1] > max(points)


def test_lengths_without_a_scale_are_relative_and_largest_class_first(configured) -> None:
    run = configured((4, 40, 4, 40), model={"name": "resnet20"})
    (predicted,) = predictions(arms([run])).values()
    dashes = torch.as_tensor(lengths_figure(predicted).axes[0].lines[0].get_ydata())
    assert dashes.square().mean().item() == pytest.approx(1)
    assert (dashes.diff() <= 1e-9).all()


def test_every_prediction_says_what_it_assumes(configured) -> None:
    theories = {predict(configured(**changes)).theory for changes in ({}, {"model": {"name": "resnet20"}})}
    assert theories | {"fixed ETF"} == ASSUMPTIONS.keys()


def test_the_measured_geometry_is_that_of_the_dump(configured) -> None:
    run = configured()
    torch.testing.assert_close(measure(run).class_means, run.dump["class_means"].double())
    torch.testing.assert_close(measure(run).weight, run.dump["weight"].double())
