"""Curves show what the runs measured, and an arm looks the same wherever it appears."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from ncflow.nn import HEADS
from ncflow.reports.arms import Arm, arms, labels
from ncflow.reports.canvas import WIDE, Plate
from ncflow.reports.curves import curve_panels
from ncflow.reports.figures import to_image
from ncflow.reports.highlights import highlights
from ncflow.reports.looks import arm_styles, look_of
from ncflow.reports.paper import draw
from ncflow.runs.reader import load_runs

MakeRun = Callable[..., Path]

pytestmark = pytest.mark.filterwarnings("error")  # an empty logarithmic axis is a warning


KEYS = [panel.key for panel in curve_panels()]


def curves_figure(compared: list[Arm]) -> Plate:
    return draw("curves", compared, WIDE).figure


def classwise_figure(compared: list[Arm]) -> Plate:
    return draw("classwise", compared, WIDE).figure


def test_curves_run_through_the_medians_in_the_band_of_all_seeds(make_run: MakeRun) -> None:
    heads, seeds = ("linear", "nearest_etf"), range(3)
    grouped = arms(load_runs([make_run(f"{head}-{seed}", head=head, seed=seed) for head in heads for seed in seeds]))
    panels = curves_figure(grouped).axes
    for axes, key in zip(panels[1:], KEYS[1:], strict=True):
        split, _, metric = key.partition("/")
        if metric not in grouped[0].runs[0].analyses[0][split]:
            continue
        drawn = [line for line in axes.lines if line.get_linewidth() > 1]
        for arm, label, line, band in zip(grouped, labels(grouped), drawn, axes.collections, strict=True):
            expected = np.array([[a[split][metric] for a in run.analyses] for run in arm.runs])
            assert line.get_label() == label
            np.testing.assert_allclose(line.get_ydata(), np.median(expected, axis=0))
            heights = band.get_paths()[0].vertices[:, 1]
            assert (heights.min(), heights.max()) == (expected.min(), expected.max())


def test_the_first_panel_is_the_error_of_both_splits(make_run: MakeRun) -> None:
    (run,) = load_runs([make_run("digits")])
    test, train = curves_figure(arms([run])).axes[0].lines[:2]
    for line, split in ((test, "test"), (train, "train")):
        np.testing.assert_allclose(line.get_ydata(), [1 - a[split]["acc/overall"] for a in run.analyses])


def test_zero_training_error_is_marked_where_the_last_seed_reaches_it(make_run: MakeRun) -> None:
    runs = load_runs([make_run(f"digits{seed}", seed=seed) for seed in range(2)])
    for run, first in zip(runs, (6, 9), strict=True):
        for analysis in run.analyses:
            analysis["train"]["acc/overall"] = float(analysis["epoch"] >= first)
    marks = [line for line in curves_figure(arms(runs)).axes[1].lines if len(set(line.get_xdata())) == 1]
    assert [set(line.get_xdata()) for line in marks] == [{9.0}]
    runs[0].analyses[1]["train"]["acc/overall"] = runs[0].analyses[2]["train"]["acc/overall"] = 0.5
    runs[0].analyses[3]["train"]["acc/overall"] = 0.5
    assert all(len(set(line.get_xdata())) > 1 for line in curves_figure(arms(runs)).axes[1].lines)


def test_only_logarithmic_highlights_have_a_logarithmic_axis(three_heads: list[Path]) -> None:
    scales = [axes.get_yscale() for axes in curves_figure(arms(load_runs(three_heads))).axes]
    assert scales == ["log" if panel.log else "linear" for panel in curve_panels()]
    assert {panel.key for panel in curve_panels() if panel.log} == {k for k, v in highlights().items() if v.log}


def test_a_metric_that_nobody_measured_says_so(make_run: MakeRun) -> None:
    figure = curves_figure(arms(load_runs([make_run("bare", without=("nc1/pinv",))])))
    to_image(figure)
    said = [[text.get_text() for text in axes.texts] for axes in figure.axes]
    assert said[KEYS.index("train/nc1/pinv")] == ["not measured"]
    assert said[KEYS.index("test/acc/balanced")] == []


def test_collapse_to_the_last_bit_is_drawn_where_a_logarithm_cannot(make_run: MakeRun) -> None:
    (run,) = load_runs([make_run("exact")])
    for analysis in run.analyses:
        analysis["train"]["nc1/pinv"] = 0.0
    figure = curves_figure(arms([run]))
    to_image(figure)
    assert figure.axes[KEYS.index("train/nc1/pinv")].get_yscale() == "linear"


def test_the_validation_part_is_dotted_beside_the_test_split(make_run: MakeRun) -> None:
    accuracies = (0.3, 0.7, 0.6, 0.5)
    axes = curves_figure(arms(load_runs([make_run("digits", validation=accuracies)]))).axes
    dotted = [line for line in axes[KEYS.index("test/acc/balanced")].lines if line.get_linestyle() == ":"]
    assert [tuple(line.get_ydata()) for line in dotted] == [accuracies]
    assert not [line for line in axes[KEYS.index("train/nc1/pinv")].lines if line.get_linestyle() == ":"]


def test_a_head_keeps_its_color_in_every_company(three_heads: list[Path]) -> None:
    everyone = arms(load_runs(three_heads))
    for arm, style in zip(everyone, arm_styles(everyone), strict=True):
        assert arm_styles([arm]) == [style]
        assert style.items() >= look_of(arm.head).items()


def test_compared_heads_keep_one_color_and_differ_in_dash(make_run: MakeRun) -> None:
    paths = [make_run(f"{h}{lr}", head=h, overrides={"train": {"lr": lr}}) for h in HEADS for lr in (0.1, 0.2)]
    styles = arm_styles(arms(load_runs(paths)))
    assert [style["color"] for style in styles] == [look_of(head)["color"] for head in HEADS for _ in range(2)]
    assert len({(style["color"], style["linestyle"]) for style in styles}) == 2 * len(HEADS)


@pytest.mark.parametrize("values", [(0.1, 0.01, 0.5), ("ce", "mse", "focal")])
def test_arms_of_one_head_alone_have_colors_and_markers_of_their_own(make_run: MakeRun, values: tuple[object]) -> None:
    styles = arm_styles(arms(load_runs([make_run(f"run{v}", overrides={"train": {"knob": v}}) for v in values])))
    assert len({style["color"] for style in styles}) == len({style["marker"] for style in styles}) == len(values)


def test_shades_follow_the_number_not_the_order_of_the_runs(make_run: MakeRun) -> None:
    paths = {lr: make_run(f"lr{lr}", overrides={"train": {"lr": lr}}) for lr in (0.1, 0.01, 0.5)}
    one, other = (
        {arm.choices["train.lr"]: style["color"] for arm, style in zip(group, arm_styles(group), strict=True)}
        for group in (arms(load_runs(paths.values())), arms(load_runs(reversed(paths.values()))))
    )
    assert one == other


def test_heads_of_the_users_own_get_looks_of_their_own(make_run: MakeRun) -> None:
    runs = load_runs([make_run(f"run-{head}", head=head) for head in ("linear", "mine", "yours")])
    looks = [(style["color"], style["marker"]) for style in arm_styles(arms(runs))]
    assert len(set(looks)) == 3


def test_classwise_points_are_accuracy_over_class_size(make_run: MakeRun) -> None:
    (run,) = load_runs([make_run("digits")])
    axes = classwise_figure(arms([run])).axes[0]
    targets, hits = run.dump["targets"], run.dump["predictions"] == run.dump["targets"]
    points = np.array(axes.collections[0].get_offsets())
    np.testing.assert_allclose(points[:, 0], run.dump["class_counts"])
    np.testing.assert_allclose(points[:, 1], [hits[targets == k].double().mean() for k in range(10)])
    assert axes.get_xscale() == "log"
    np.testing.assert_allclose(
        axes.lines[0].get_ydata(), points[::-1, 1]
    )  # ten classes of ten sizes: the line is the points


@pytest.mark.parametrize("counts", [[40] * 10, [50] * 5 + [2] * 5])
def test_classes_of_one_size_are_one_point_of_the_line(make_run: MakeRun, counts: list[int]) -> None:
    (run,) = load_runs([make_run("digits")])
    run.dump["class_counts"] = torch.tensor(counts)
    line = classwise_figure(arms([run])).axes[0].lines[0]
    assert sorted(line.get_xdata()) == sorted(set(counts))


def test_a_class_without_test_samples_leaves_the_line_whole(make_run: MakeRun) -> None:
    (run,) = load_runs([make_run("digits")])
    kept = run.dump["targets"] != 3
    run.dump.update(targets=run.dump["targets"][kept], predictions=run.dump["predictions"][kept])
    line = classwise_figure(arms([run])).axes[0].lines[0]
    assert len(line.get_xdata()) == 9
    assert np.isfinite(line.get_ydata()).all()
