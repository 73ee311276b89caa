"""A knob's figure shows the end of every run at its value, beside theory where theory speaks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from ncflow.reports.arms import arms
from ncflow.reports.canvas import WIDE
from ncflow.reports.figures import to_image
from ncflow.reports.highlights import shown_in
from ncflow.reports.knobs import DRIFT, IMBALANCE, knob_values
from ncflow.reports.paper import draw
from ncflow.reports.rows import Lacking
from ncflow.runs.reader import Run, load_runs
from ncflow.theory import seli_step_relative_drift

MakeRun = Callable[..., Path]

pytestmark = pytest.mark.filterwarnings("error")

FACTORS = (1.0, 0.1, 0.01)


def step_run(make_run: MakeRun, factor: float, loss: str = "ce", seed: int = 0, neck: str = "none") -> Path:
    overrides = {
        "dataset": {"name": "digits", "imb_type": "step", "imb_factor": factor},
        "model": {"name": "resnet20", "neck": neck},
        "train": {"loss": loss, "epochs": 12, "optimizer": "sgd"},
    }
    counts = (1000,) * 5 + (round(1000 * factor),) * 5
    return make_run(f"{loss}-{factor}-{seed}-{neck}", seed=seed, class_counts=counts, overrides=overrides)


@pytest.fixture
def runs(make_run: MakeRun) -> list[Run]:
    return load_runs([step_run(make_run, factor, seed=seed) for factor in FACTORS for seed in range(3)])


def test_points_are_medians_at_the_last_analysis_with_bars_over_all_seeds(runs: list[Run]) -> None:
    figure = draw("knob", arms(runs), WIDE, along=IMBALANCE).figure
    for axes, key in zip(figure.axes, shown_in("knobs"), strict=True):
        split, _, metric = key.partition("/")
        ends = np.array([[run.final(key) for run in runs if run.options[IMBALANCE] == f] for f in sorted(FACTORS)])
        points, _, (bars,) = axes.containers[0]
        np.testing.assert_allclose(points.get_ydata(), np.median(ends, axis=1))
        np.testing.assert_allclose([bar[:, 1] for bar in bars.get_segments()], np.stack([ends.min(1), ends.max(1)], 1))
        assert [text.get_text() for text in axes.get_xticklabels()] == ["0.01", "0.1", "1"]


@pytest.mark.parametrize("neck, theory, other", [("batch_norm", "SELI", "ReLU"), ("none", "ReLU", "SELI")])
def test_the_drift_limit_stands_next_to_the_measured_drift(make_run, neck, theory, other) -> None:
    runs = load_runs([step_run(make_run, factor, neck=neck) for factor in FACTORS])
    figure = draw("knob", arms(runs), WIDE, along=IMBALANCE).figure
    curves = {line.get_label(): line.get_ydata() for line in figure.axes[shown_in("knobs").index(DRIFT)].lines}
    sizes = [(1000,) * 5 + (round(1000 * factor),) * 5 for factor in sorted(FACTORS)]
    closed_form = {
        "SELI": [seli_step_relative_drift(10, 1 / factor) for factor in sorted(FACTORS)],
        "ReLU": [(sum(n**1.5 for n in s) / (sum(s) * sum(n**0.5 for n in s))) ** 0.5 for s in sizes],
    }
    np.testing.assert_allclose(curves[f"theory: {theory}, K = 10"], closed_form[theory], atol=1e-9)
    assert f"theory: {other}, K = 10" not in curves


def test_no_theory_is_drawn_for_another_loss_nor_against_another_knob(make_run: MakeRun) -> None:
    focal = load_runs([step_run(make_run, factor, loss="focal") for factor in FACTORS])
    rates = load_runs([make_run(f"lr{lr}", overrides={"train": {"lr": lr, "loss": "ce"}}) for lr in (0.1, 0.2)])
    for runs, key in ((focal, IMBALANCE), (rates, "train.lr")):
        figure = draw("knob", arms(runs), WIDE, along=key).figure
        assert not [line for axes in figure.axes for line in axes.lines if "theory" in str(line.get_label())]


def test_names_go_down_the_side_in_the_order_of_the_runs(make_run: MakeRun) -> None:
    losses = ["focal", "ce", "mse"]
    runs = load_runs([make_run(name, overrides={"train": {"loss": name}}) for name in losses])
    figure = draw("knob", arms(runs), WIDE, along="train.loss").figure
    to_image(figure)
    axes = figure.axes[0]
    assert [text.get_text() for text in axes.get_yticklabels()] == losses
    assert axes.yaxis_inverted()
    ends = [run.final("test/acc/balanced") for run in runs]
    np.testing.assert_allclose(axes.containers[0][0].get_xdata(), ends)


def test_numbers_are_in_order_and_none_comes_first(make_run: MakeRun) -> None:
    runs = load_runs([make_run(f"lr{lr}", overrides={"train": {"lr": lr}}) for lr in (0.5, None, 1e-3)])
    assert knob_values(arms(runs), "train.lr") == [None, 1e-3, 0.5]


@pytest.mark.parametrize(
    ("values", "places"),
    [
        ((0.01, 0.1, 1.0, 10.0), (0, 1, 2, 3)),
        ((1.0, 10.0, 0.1, 0.001), (3, 2.25, 1.5, 0)),
        ((64, 128, 512), (0, 2 / 3, 2)),
        ((0.0, 0.1, 1.0, 100.0), (0, 1, 2, 3)),
        ((None, 0.1, 10.0, 0.2), (0, 1, 2, 3)),
    ],
)
def test_positive_numbers_stand_on_a_logarithmic_axis(make_run: MakeRun, values, places) -> None:
    runs = load_runs([make_run(f"knob{value}", overrides={"train": {"knob": value}}) for value in values])
    figure = draw("knob", arms(runs), WIDE, along="train.knob").figure
    axes = figure.axes[0]
    np.testing.assert_allclose(axes.containers[0][0].get_xdata(), sorted(places), atol=1e-12)
    np.testing.assert_allclose(axes.get_xticks(), sorted(places), atol=1e-12)


def test_a_knob_without_a_measured_metric_has_no_figure(make_run: MakeRun) -> None:
    without = tuple(key.partition("/")[2] for key in shown_in("knobs"))
    runs = load_runs([make_run(f"lr{lr}", without=without, overrides={"train": {"lr": lr}}) for lr in (0.1, 0.2)])
    with pytest.raises(Lacking, match="no run measured"):
        draw("knob", arms(runs), WIDE, along="train.lr")


def test_an_option_that_does_not_vary_is_refused_with_those_that_do(make_run: MakeRun) -> None:
    runs = load_runs([make_run(f"lr{lr}", overrides={"train": {"lr": lr}}) for lr in (0.1, 0.2)])
    with pytest.raises(ValueError, match=r"do not differ in 'train.loss'; they differ in: train.lr"):
        draw("knob", arms(runs), WIDE, along="train.loss")
