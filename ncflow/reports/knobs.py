"""Figures of a knob: final accuracy, drift and collapse against the value of one option."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle
from statistics import median
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from ncflow.reports.arms import Arm, facets, labels, lines, short, value_text
from ncflow.reports.curves import Array, arm_styles, legend_below
from ncflow.reports.figures import literal
from ncflow.reports.highlights import highlights, shown_in
from ncflow.reports.predictions import drift_limit

IMBALANCE, DRIFT = "dataset.imb_factor", "train/drift/relative"


def knob_figures(arms: Sequence[Arm], key: str) -> dict[str, Figure]:
    """Title -> figure of the metrics at the last analysis against `key`, one line per setting of the other choices."""
    places = knob_values(arms, key)
    return {title: _knob_figure(title, members, key, places) for title, members in facets(arms, along=key).items()}


def knob_values(arms: Sequence[Arm], key: str) -> list[Any]:
    """The values of a choice: numbers sorted, names in their order, None first."""
    values = list({repr(arm.choices[key]): arm.choices[key] for arm in arms}.values())
    return sorted(values, key=lambda value: -1.0 if value is None else value) if _numeric(values) else values


def _knob_figure(title: str, arms: Sequence[Arm], key: str, places: Sequence[Any]) -> Figure:
    """Draw the metrics against the values; names are on the vertical axis."""
    upright = _numeric(places)
    metrics = shown_in("knobs")
    height = 3.8 if upright else 1.8 + 0.27 * len(places)
    figure = Figure(figsize=(4 * len(metrics), height), layout="constrained")
    panels = figure.subplots(1, len(metrics), sharey=not upright)
    drawn = lines(arms, along=key)
    first = [line[0] for line in drawn]
    names, styles = labels(first), arm_styles(first)
    nearest = min(np.diff(_positions(places)), default=1.0)
    apart = min(0.03, 0.5 * nearest / len(drawn)) if upright else 0.12  # between the bars of two lines
    for axes, metric in zip(panels, metrics, strict=True):
        for number, (line, label, style) in enumerate(zip(drawn, names, styles, strict=True)):
            dodge = apart * (number - (len(drawn) - 1) / 2)
            points = _points(line, key, metric, places, dodge)
            _draw_points(axes, points, upright, label=literal(label), **style)
        if (key, metric) == (IMBALANCE, DRIFT):
            _draw_references(axes, arms, places)
        _dress(axes, key, metric, places)
    legend_below(figure, panels[metrics.index(DRIFT)])
    figure.suptitle(literal(title), fontsize=12)
    return figure


def _points(line: Sequence[Arm], key: str, metric: str, places: Sequence[Any], dodge: float) -> Array:
    """Place, median, minimum and maximum over seeds (n, 4) for the arms that measured the metric, sorted by place."""
    points = []
    for arm in line:
        values = [value for run in arm.runs if (value := run.final(metric)) is not None]
        if values:
            points.append(
                (_positions(places)[places.index(arm.choices[key])] + dodge, median(values), min(values), max(values))
            )
    return np.array(sorted(points)).reshape(-1, 4)


def _draw_points(axes: Axes, points: Array, upright: bool, **style: Any) -> None:
    place, middle, low, high = points.T
    spread = np.array([middle - low, high - middle])
    if upright:
        axes.errorbar(place, middle, yerr=spread, markersize=5, linewidth=1.4, elinewidth=1, **style)
    else:
        axes.errorbar(middle, place, xerr=spread, markersize=6, elinewidth=1, **style | {"linestyle": ""})


def _draw_references(axes: Axes, arms: Sequence[Arm], places: Sequence[Any]) -> None:
    """Draw the drift that theory predicts for these class sizes, one curve per theory and number of classes."""
    curves: dict[str, dict[float, float]] = {}
    for arm in arms:
        if limit := drift_limit(arm.representative):
            theory, drift = limit
            name = f"{theory}, K = {len(arm.representative.dump['class_counts'])}"
            curves.setdefault(name, {})[_positions(places)[places.index(arm.choices[IMBALANCE])]] = drift
    for (name, curve), dash in zip(curves.items(), cycle(("--", ":"))):
        axes.plot(
            *zip(*sorted(curve.items()), strict=True), color="gray", linestyle=dash, label=literal(f"theory: {name}")
        )


def _dress(axes: Axes, key: str, metric: str, places: Sequence[Any]) -> None:
    highlight, upright = highlights()[metric], _numeric(places)
    ticks, texts = _positions(places), [literal(value_text(value)) for value in places]
    measured, named = (axes.yaxis, axes.xaxis) if upright else (axes.xaxis, axes.yaxis)
    tight = len("".join(texts)) > 45 or min(np.diff(ticks), default=1) < 0.06 * len(ticks)
    named.set_ticks(ticks, texts, fontsize=8, rotation=90 if upright and tight else 0)
    if upright:
        axes.set_xlabel(short(key, [key]))
        axes.set_xlim(-0.4, len(places) - 0.6)
    else:
        axes.set_ylim(len(places) - 0.4, -0.6)  # the first at the top
    low, high = measured.get_data_interval()
    if highlight.log and high > 10 * low > 0:  # a shorter logarithmic axis has almost no ticks
        (axes.set_yscale if upright else axes.set_xscale)("log")
    if highlight.percent:
        measured.set_major_formatter(PercentFormatter(1))
    axes.set_title(f"{highlight.title}\n{metric}", fontsize=10)
    axes.grid(alpha=0.25)


def _positions(places: Sequence[Any]) -> list[float]:
    """Where the values stand, from 0 to n - 1: positive numbers by their logarithm, others at equal distances."""
    if len(places) < 2 or not all(type(value) in (int, float) and value > 0 for value in places):
        return [float(number) for number in range(len(places))]
    logs = np.log10(places)
    return [float(place) for place in (logs - logs[0]) / (logs[-1] - logs[0]) * (len(places) - 1)]


def _numeric(values: Sequence[Any]) -> bool:
    return all(isinstance(value, (int, float, type(None))) for value in values)
