"""Figures that compare arms: collapse and accuracy over epochs, and the accuracy of a class against its size."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import Any, TypeAlias

import matplotlib
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from ncflow.lookup import fact
from ncflow.nn.heads import HEADS
from ncflow.reports.arms import Arm, labels, varying
from ncflow.reports.figures import literal
from ncflow.reports.highlights import highlights, shown_in
from ncflow.runs.reader import Run

Array: TypeAlias = npt.NDArray[Any]


def curves_figure(arms: Sequence[Arm], title: str = "") -> Figure:
    """Draw metrics over epochs: each arm's median over its seeds, in a band from minimum to maximum.

    If the runs have a validation part, dotted lines show the test highlights on it.
    """
    keys = shown_in("curves")
    rows = math.ceil(len(keys) / COLUMNS)
    figure = Figure(figsize=(4 * COLUMNS, 3.5 * rows), layout="constrained")
    panels = figure.subplots(rows, COLUMNS, squeeze=False).flat
    for axes, key in zip(panels, keys, strict=False):
        on_validation = key.replace("test/", "val/", 1)
        for arm, label, style in zip(arms, labels(arms), arm_styles(arms), strict=True):
            _draw_curve(axes, [run.curve(key) for run in arm.runs], label, style)
            if on_validation != key and any(validation := [run.curve(on_validation) for run in arm.runs]):
                _draw_validation(axes, validation, style)
        _dress_curve(axes, key)
    for axes in panels:  # panels without a metric
        axes.remove()
    legend_below(figure, figure.axes[0])
    figure.suptitle(literal(title), fontsize=12)
    return figure


def classwise_figure(arms: Sequence[Arm], title: str = "") -> Figure:
    """Draw a class's test accuracy against its training samples: a point per class and seed, a line of means."""
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    for arm, label, style in zip(arms, labels(arms), arm_styles(arms), strict=True):
        sizes = np.concatenate([run.dump["class_counts"].numpy() for run in arm.runs])
        accuracies = np.concatenate([_class_accuracies(run) for run in arm.runs])
        axes.scatter(sizes, accuracies, s=20, alpha=0.35, color=style["color"], marker=style["marker"], linewidths=0)
        axes.plot(*_mean_by_size(sizes, accuracies), label=literal(label), markersize=4, **style)
    axes.set_xscale("log")
    axes.set(xlabel="training samples of the class", ylabel="test accuracy of the class", ylim=(-0.03, 1.03))
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    axes.grid(alpha=0.25)
    legend_below(figure, axes)
    figure.suptitle(literal(title), fontsize=12)
    return figure


def arm_styles(arms: Sequence[Arm]) -> list[dict[str, Any]]:
    """The style of each arm. With several heads, color and marker show the head, and the dash the arm.

    With one head, each arm has its own style: shades from dark to light if the choice is a number, else colors.
    """
    heads = list(dict.fromkeys(arm.head for arm in arms))
    if len(heads) == 1 < len(arms):
        return [{**look, "linestyle": "-"} for look in _looks(arms)]
    taken = {look["color"] for name in HEADS if (look := look_of(name))}
    spare = cycle([look for look in LOOKS if look["color"] not in taken] or LOOKS)
    looks = {head: look_of(head) or next(spare) for head in heads}
    dashes = {head: cycle(DASHES) for head in heads}
    return [{**looks[arm.head], "linestyle": next(dashes[arm.head])} for arm in arms]


def look_of(head: str) -> dict[str, str] | None:
    """The color and the marker in a head's row; None for a head without a color."""
    row = HEADS.get(head)
    color, marker = fact(row, "color"), fact(row, "marker")
    return {"color": color, "marker": marker or "o"} if color else None


def legend_below(figure: Figure, axes: Axes) -> None:
    """Add one legend for all panels, with as many columns as fit."""
    handles, labels = axes.get_legend_handles_labels()
    characters = 12 * figure.get_figwidth()
    columns = max(1, int(characters / max(len(label) + 8 for label in labels)))
    figure.legend(handles, labels, loc="outside lower center", ncols=min(columns, len(labels)), frameon=False)


def _looks(arms: Sequence[Arm]) -> list[dict[str, Any]]:
    """A color and a marker for each arm of one head."""
    markers = cycle(look["marker"] for look in LOOKS)
    keys = varying(arms)
    values = [arm.choices[key] for arm in arms for key in keys]
    if len(keys) != 1 or not all(isinstance(value, (int, float)) for value in values):
        return [{**look, "marker": marker} for look, marker, _ in zip(cycle(LOOKS), markers, arms)]
    ranks = np.argsort(np.argsort(values)) / (len(values) - 1)
    shades = matplotlib.colormaps["viridis"](0.9 * ranks)  # the yellow end is too light on white
    return [{"color": to_hex(shade), "marker": marker} for shade, marker in zip(shades, markers, strict=False)]


def _draw_curve(axes: Axes, curves: Sequence[Mapping[int, float]], label: str, style: Mapping[str, Any]) -> None:
    """Draw median and range, which look the same on a linear and on a logarithmic axis."""
    epochs = sorted({epoch for curve in curves for epoch in curve})
    values = [[curve[epoch] for curve in curves if epoch in curve] for epoch in epochs]
    axes.plot(epochs, [np.median(v) for v in values], label=literal(label), markersize=4, **style)
    axes.fill_between(
        epochs, [min(v) for v in values], [max(v) for v in values], color=style["color"], alpha=0.15, lw=0
    )


def _draw_validation(axes: Axes, curves: Sequence[Mapping[int, float]], style: Mapping[str, Any]) -> None:
    epochs = sorted({epoch for curve in curves for epoch in curve})
    medians = [np.median([curve[epoch] for curve in curves if epoch in curve]) for epoch in epochs]
    axes.plot(epochs, medians, color=style["color"], linestyle=":", linewidth=1)


def _dress_curve(axes: Axes, key: str) -> None:
    highlight = highlights()[key]
    measured = np.concatenate([line.get_ydata() for line in axes.lines])
    if not measured.size:
        axes.text(0.5, 0.5, "not measured", transform=axes.transAxes, ha="center", color="gray")
    axes.set_title(f"{highlight.title}\n{key}", fontsize=10)
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.grid(alpha=0.25)
    if highlight.log and (measured > 0).any():
        axes.set_yscale("log", nonpositive="mask")
    elif highlight.at_collapse is not None:
        axes.axhline(highlight.at_collapse, color="gray", linewidth=0.8)
    if highlight.percent:
        axes.yaxis.set_major_formatter(PercentFormatter(1))


def _class_accuracies(run: Run) -> Array:
    """Test accuracy by class (K,); NaN for a class that the test split lacks, which matplotlib skips."""
    targets = run.dump["targets"].numpy()
    hits = run.dump["predictions"].numpy() == targets
    totals = np.bincount(targets, minlength=len(run.dump["class_counts"]))
    return np.where(totals, np.bincount(targets, hits, minlength=len(totals)) / totals.clip(1), np.nan)


def _mean_by_size(sizes: Array, values: Array, per_decade: int = 8) -> tuple[Array, Array]:
    """Mean size and mean value over classes of similar size: keeps ten classes apart, makes a hundred readable."""
    known = ~np.isnan(values)
    sizes, values = sizes[known], values[known]
    _, group, totals = np.unique(np.round(per_decade * np.log10(sizes)), return_inverse=True, return_counts=True)
    return np.bincount(group, sizes) / totals, np.bincount(group, values) / totals


# Okabe and Ito's palette, which color-blind readers can distinguish; markers work without color.
LOOKS = (
    {"color": "#0072B2", "marker": "o"},
    {"color": "#D55E00", "marker": "s"},
    {"color": "#009E73", "marker": "^"},
    {"color": "#CC79A7", "marker": "D"},
    {"color": "#E69F00", "marker": "v"},
    {"color": "#56B4E9", "marker": "P"},
    {"color": "#000000", "marker": "X"},
)
COLUMNS = 3  # of panels
DASHES = ("-", "--", ":", "-.")
