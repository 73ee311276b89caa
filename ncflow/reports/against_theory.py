"""Theory next to measurement: a table of numbers that describe a geometry, and the lengths by class."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import median

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from ncflow.reports.arms import Arm, labels
from ncflow.reports.curves import arm_styles, legend_below
from ncflow.reports.figures import literal
from ncflow.reports.predictions import EXACT, Prediction, measure, predict, quantities, why_not
from ncflow.reports.tables import ABSENT, Row, Table, number

Predicted = Sequence[tuple[Arm, Prediction]]


def predictions(arms: Sequence[Arm]) -> dict[str, list[tuple[Arm, Prediction]]]:
    """Theory -> the arms that it covers, each with its prediction; empty if no theory applies."""
    grouped: dict[str, list[tuple[Arm, Prediction]]] = {}
    for arm in arms:
        if prediction := predict(arm.representative):
            grouped.setdefault(prediction.theory, []).append((arm, prediction))
    return grouped


def without_theory(arms: Sequence[Arm], names: Mapping[Arm, str]) -> dict[str, list[str]]:
    """Reason why no theory applies, in one line -> the names of the arms with this reason."""
    grouped: dict[str, list[str]] = {}
    for arm in arms:
        if reason := why_not(arm.representative):
            grouped.setdefault(reason, []).append(names[arm])
    return grouped


def theory_table(predicted: Predicted, names: Mapping[Arm, str]) -> Table:
    """A table with two rows per arm: the prediction, and the measured median over seeds."""
    rows: list[Row] = []
    for arm, prediction in predicted:
        ideal = quantities(prediction.optimum, scale=prediction.scale)
        found = [quantities(measure(run), scale=prediction.scale) for run in arm.runs]
        if prediction.theory == EXACT:
            least, values = _objectives(arm)
            ideal |= {"objective/ value": least}
            found = [each | {"objective/ value": value} for each, value in zip(found, values, strict=True)]
        measured = [median(each[name] for each in found) for name in ideal]
        rows.append(Row((names[arm], prediction.theory, *map(_cell, ideal.values())), aggregate=True))
        rows.append(Row((names[arm], "measured", *map(_cell, measured))))
    headings = [(upper, lower) for upper, _, lower in (name.partition(" ") for name in ideal)]
    return Table((("", "arm"), ("", ""), *headings), tuple(rows))


def lengths_figure(predicted: Predicted, title: str = "") -> Figure:
    """Draw lengths of classifier rows and class means, largest class first: dashes are predicted, points measured.

    If the theory does not fix the scale, rows and means are centered and divided by their root mean square.
    """
    figure = Figure(figsize=(10, 3.8), layout="constrained")
    arms = [arm for arm, _ in predicted]
    panels = figure.subplots(1, 2)
    for (arm, prediction), label, style in zip(predicted, labels(arms), arm_styles(arms), strict=True):
        measured = measure(arm.representative)
        order = torch.argsort(measured.class_counts, descending=True, stable=True)
        for axes, rows in zip(panels, ("weight", "class_means"), strict=True):
            both = (getattr(each, rows) for each in (prediction.optimum, measured))
            ideal, found = (_lengths(each, prediction.scale)[order] for each in both)
            _draw(axes, ideal, found, label, style)
    scale = predicted[0][1].scale
    for axes, name in zip(panels, ("‖w‖" if scale else "‖w‖ / rms", "‖h‖" if scale else "‖μ̃‖ / rms"), strict=True):
        axes.set(xlabel="class, largest first", ylabel=name, ylim=(0, 1.15 * axes.dataLim.y1))
        axes.grid(alpha=0.25)
    legend_below(figure, panels[0])
    figure.suptitle(literal(title), fontsize=12)
    return figure


def _objectives(arm: Arm) -> tuple[float, list[float]]:
    """The smallest objective by theory, and that of each run at its last analysis; NaN if it was not logged."""
    final = [[run.final(f"train/objective/{name}") for name in ("value", "gap")] for run in arm.runs]
    pairs = [(math.nan, math.nan) if value is None or gap is None else (value, gap) for value, gap in final]
    return pairs[0][0] - pairs[0][1], [value for value, _ in pairs]


def _draw(axes: Axes, ideal: Tensor, found: Tensor, label: str, style: Mapping[str, str]) -> None:
    ranks = range(1, len(ideal) + 1)
    axes.plot(ranks, ideal, color=style["color"], linestyle="--", linewidth=1)
    axes.plot(
        ranks, found, color=style["color"], marker=style["marker"], linestyle="", markersize=4, label=literal(label)
    )


def _lengths(rows: Tensor, scale: bool) -> Tensor:
    """‖row‖ (K,); without `scale`, of the centered rows, relative to their root mean square."""
    lengths = torch.linalg.vector_norm(rows if scale else rows - rows.mean(0), dim=1)
    relative: Tensor = lengths / (1.0 if scale else lengths.square().mean().sqrt())
    return relative


def _cell(value: float) -> str:
    return number(value) if math.isfinite(value) else ABSENT
