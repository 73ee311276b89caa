"""Figures of stored logits: calibration, accuracy under logit adjustment, and margins by group of classes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.ticker import PercentFormatter

from ncflow.metrics.shots import SHOTS, shot_groups
from ncflow.reports.arms import Arm
from ncflow.reports.canvas import Plate, Size, draw_line, literal, panels
from ncflow.reports.looks import Looks, as_points
from ncflow.reports.rows import Array, all_runs, block, lines, table
from ncflow.runs.damage import damaged
from ncflow.runs.layout import GEOMETRY
from ncflow.runs.reader import Run

NO_LOGITS = "no run has logits in its dump; train with train.save_logits=true"
LEAST = 5  # samples of a bin that is drawn
BINS = 15  # of confidence, as in calibration/ece
TAUS = np.arange(0, 2.01, 0.1).round(1)
QUANTILES = {"low": 0.05, "quarter": 0.25, "median": 0.5, "three_quarters": 0.75, "high": 0.95}


def read_reliability(arms: Sequence[Arm]) -> pd.DataFrame:
    """A row per run and bin of confidence on the test split: samples, mean confidence, accuracy."""
    return table((_bins(whose, run) for whose, run in _with_logits(arms)), NO_LOGITS)


def draw_reliability(data: pd.DataFrame, looks: Looks, size: Size) -> Plate:
    """Draw accuracy against confidence, all seeds of an arm together; the diagonal is perfect calibration."""
    errors = {arm: 100 * _calibration_error(part) for arm, part in data.groupby("arm", sort=False)}
    said = {arm: f"{arm}: ECE {errors[arm]:.1f} %" for arm in looks if arm in errors}
    plate, (axes,) = panels(size, [""], legend={said[arm]: looks[arm] for arm in said}, ratio=0.6)
    axes.plot((0, 1), (0, 1), color="gray", linewidth=0.6)
    for arm in said:
        part = data[data["arm"] == arm]
        sums = part.assign(c=part["confidence"] * part["samples"], a=part["accuracy"] * part["samples"])
        sums = sums.groupby("bin")[["samples", "c", "a"]].sum()
        sums = sums[sums["samples"] >= LEAST]
        x, y = sums["c"] / sums["samples"], sums["a"] / sums["samples"]
        axes.plot(x, y, label=literal(arm), linewidth=1.2, markersize=3, **looks[arm])
        texts = (
            f"{arm}\nconfidence {100 * c:.0f} %: accuracy {100 * a:.1f} %, {n} samples"
            for c, a, n in zip(x, y, sums["samples"], strict=True)
        )
        plate.tip(axes, x, y, texts)
    axes.set(xlabel="confidence", ylabel="test accuracy", xlim=(0, 1.02), ylim=(0, 1.03))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(PercentFormatter(1))
    return plate


def read_adjustment(arms: Sequence[Arm]) -> pd.DataFrame:
    """A row per run and τ: balanced test accuracy of the logits less τ·log of the training class shares.

    The column chosen marks the τ that the validation part chose for this run, where `ncflow posthoc` did so.
    """
    rows = (_adjusted(whose, run) for whose, run in _with_logits(arms) if bool((run.dump["class_counts"] > 0).all()))
    return table(rows, f"{NO_LOGITS}, and with a sample of each class")


def draw_adjustment(data: pd.DataFrame, looks: Looks, size: Size) -> Plate:
    """Draw the median over seeds in a band from minimum to maximum; a vertical line at each chosen τ."""
    plate, (axes,) = panels(size, [""], legend=looks, ratio=0.5)
    found = lines(data, ["arm"], along="tau")
    for (arm,), line in found.items():
        draw_line(plate, axes, line, looks[arm], said=arm, place="τ =")
        for tau in data.loc[(data["arm"] == arm) & data["chosen"], "tau"].unique():
            axes.axvline(tau, ymax=0.06, color=looks[arm]["color"], linewidth=1.5)
    axes.set(xlabel="τ of logit adjustment", ylabel="balanced test accuracy")
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    return plate


def read_margins(arms: Sequence[Arm]) -> pd.DataFrame:
    """A row per run and group of classes: quantiles over test samples of p_y − max over j≠y of p_j, in [−1, 1]."""
    return table((row for whose, run in _with_logits(arms) for row in _margins(whose, run)), NO_LOGITS)


def draw_margins(data: pd.DataFrame, looks: Looks, size: Size) -> Plate:
    """Draw the median, the middle half (thick) and the middle nine tenths (thin) of each group; seeds averaged."""
    groups = [name for name in SHOTS if name in set(data["group"])]
    plate, (axes,) = panels(size, [""], legend=as_points(looks), ratio=0.45)
    middle = data.groupby(["arm", "group"])[list(QUANTILES)].mean()
    for number, arm in enumerate(looks):
        for place, group in enumerate(groups):
            if (arm, group) in middle.index:
                at, row = place + 0.8 * ((number + 0.5) / len(looks) - 0.5), middle.loc[(arm, group)]
                color = looks[arm]["color"]
                axes.plot((at, at), (row["low"], row["high"]), color=color, linewidth=0.7)
                axes.plot((at, at), (row["quarter"], row["three_quarters"]), color=color, linewidth=2.5, alpha=0.5)
                axes.plot(at, row["median"], color=color, marker=looks[arm]["marker"] or "o", markersize=4)
                plate.tip(axes, [at], [row["median"]], [f"{arm}, {group}\nmedian margin {row['median']:.3f}"])
    axes.axhline(0, color="gray", linewidth=0.6)
    axes.set_xticks(range(len(groups)), groups)
    axes.grid(visible=False, axis="x")
    axes.set(ylabel="margin of test samples", ylim=(-1.05, 1.05))
    return plate


def _with_logits(arms: Sequence[Arm]) -> Iterator[tuple[dict[str, Any], Run]]:
    """The runs with logits of a test split. Raises ValueError for logits of another shape than the dump's."""
    for whose, run in all_runs(arms):
        dump = run.dump
        if "logits" not in dump or not len(dump["targets"]):
            continue
        if dump["logits"].shape != (len(dump["targets"]), len(dump["class_counts"])):
            shape = f"({len(dump['targets'])}, {len(dump['class_counts'])})"
            raise damaged(run.path / GEOMETRY.format(run.epoch), f"logits {shape}", tuple(dump["logits"].shape))
        yield whose, run


def _probabilities(run: Run) -> Array:
    return run.dump["logits"].double().softmax(dim=1).numpy()


def _bins(whose: dict[str, Any], run: Run) -> pd.DataFrame:
    """Bins (0, 1/15], (1/15, 2/15], …, those that have samples."""
    probabilities, targets = _probabilities(run), run.dump["targets"].numpy()
    confidences, hits = probabilities.max(axis=1), probabilities.argmax(axis=1) == targets
    places = np.clip(np.ceil(confidences * BINS).astype(int), 1, BINS)
    totals = np.bincount(places, minlength=BINS + 1)
    used = np.flatnonzero(totals)
    means = (np.bincount(places, values, minlength=BINS + 1)[used] / totals[used] for values in (confidences, hits))
    confidence, accuracy = means
    return block(whose, bin=used, samples=totals[used], confidence=confidence, accuracy=accuracy)


def _calibration_error(part: pd.DataFrame) -> float:
    """The mean over runs of their expected calibration errors."""
    gaps = (part["accuracy"] - part["confidence"]).abs() * part["samples"]
    return float((gaps.groupby(part["run"]).sum() / part["samples"].groupby(part["run"]).sum()).mean())


def _adjusted(whose: dict[str, Any], run: Run) -> pd.DataFrame:
    logits, targets = run.dump["logits"].double().numpy(), run.dump["targets"].numpy()
    counts = run.dump["class_counts"].double().numpy()
    totals = np.bincount(targets, minlength=len(counts))
    seen = totals > 0
    decided = (logits[None] - TAUS[:, None, None] * np.log(counts / counts.sum())).argmax(axis=2)
    recalls = [np.bincount(targets, row == targets, minlength=len(counts))[seen] / totals[seen] for row in decided]
    chosen = run.posthoc.options_of("logit_adjustment").get("tau") if run.posthoc else None
    by_validation = run.posthoc is not None and run.posthoc.chosen_by.get("logit_adjustment") == "val"
    marked = np.isclose(TAUS, chosen) if by_validation and chosen is not None else np.zeros(len(TAUS), bool)
    return block(whose, tau=TAUS, value=np.mean(recalls, axis=1), chosen=marked)


def _margins(whose: dict[str, Any], run: Run) -> Iterator[dict[str, Any]]:
    probabilities, targets = _probabilities(run), run.dump["targets"].numpy()
    own = np.take_along_axis(probabilities, targets[:, None], axis=1)[:, 0]
    np.put_along_axis(probabilities, targets[:, None], -np.inf, axis=1)
    margins = own - probabilities.max(axis=1)
    for group, mask in shot_groups(run.dump["class_counts"]).items():
        inside = margins[mask.numpy()[targets]]
        if len(inside):
            values = np.quantile(inside, list(QUANTILES.values()))
            yield whose | {"group": group, "samples": len(inside)} | dict(zip(QUANTILES, values, strict=True))
