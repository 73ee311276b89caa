"""Figures of a knob: final accuracy, drift and collapse against the value of one option."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import PercentFormatter

from ncflow.reports.arms import Arm, knobs, names, short, value_text
from ncflow.reports.arms import lines as lines_along
from ncflow.reports.canvas import Plate, Size, literal, log_scale, panels, shorten
from ncflow.reports.highlights import highlights, shown_in
from ncflow.reports.looks import Looks
from ncflow.reports.predictions import drift_limit
from ncflow.reports.rows import Lacking, lines, table

IMBALANCE, DRIFT = "dataset.imb_factor", "train/drift/relative"
MEASURED, THEORY = "measured", "theory"


def read_knob(arms: Sequence[Arm], key: str = "") -> pd.DataFrame:
    """A row per run and metric at the last analysis: the value of the option `key`, and where it stands on the axis.

    By default the first option that varies. A line joins the arms that differ only in it, and has their name without
    it. Rows of kind "theory" hold the drift that theory predicts for these class sizes.
    """
    varying = knobs(arms)
    if not varying:
        raise Lacking("the runs differ in no option but the head")
    key = key or varying[0]
    if key not in arms[0].choices:
        raise ValueError(f"the runs do not differ in '{key}'; they differ in: {', '.join(varying)}")
    places = knob_values(arms, key)
    joined = lines_along(arms, along=key)
    rows = [
        {"arm": name, "run": run.name, "seed": run.seed, "option": key, "value_of_option": value_text(value)}
        | {"place": _positions(places)[places.index(value)], "metric": metric, "kind": MEASURED, "value": measured}
        for name, line in zip(names([line[0] for line in joined]), joined, strict=True)
        for arm in line
        for value in [arm.choices[key]]
        for run in arm.runs
        for metric in shown_in("knobs")
        if (measured := run.final(metric)) is not None
    ]
    return table([*rows, *(_theory_rows(arms, places) if key == IMBALANCE else [])], "no run measured these").assign(
        numeric=_numeric(places)
    )


def first_of_lines(arms: Sequence[Arm], key: str = "") -> list[Arm]:
    """The first arm of each line of the figure, whose styles the lines have."""
    varying = knobs(arms)
    return [line[0] for line in lines_along(arms, along=key or varying[0])] if varying else list(arms)


def draw_knob(data: pd.DataFrame, looks: Looks, size: Size) -> Plate:
    """Draw the median over seeds, with bars from minimum to maximum; values that are names are on the vertical axis."""
    upright, metrics = bool(data["numeric"].iloc[0]), shown_in("knobs")
    measured = data[data["kind"] == MEASURED]
    ticks = measured.drop_duplicates("place").sort_values("place").set_index("place")["value_of_option"]
    theories = _theory_looks(data)
    letters = max(map(len, ticks))
    turned = upright and _is_tight(ticks)
    plate, grid = panels(
        size,
        size.titles(f"{highlights()[metric].title}\n{metric}" for metric in metrics),
        legend={**looks, **theories},
        columns=size.columns if upright else size.columns - 1,
        left=5.2 if upright else min(0.62 * letters + 1.0, 0.45 * size.width / size.em / (size.columns - 1)),
        ratio=0.8 if upright else max(0.45, 0.16 * len(ticks)),
        bottom=3.4 + 0.62 * min(letters, 12) if turned else 3.2,
    )
    found = lines(measured, ["metric", "arm"], along="place")
    nearest = float(min(np.diff(ticks.index), default=1.0))
    apart = min(0.03, 0.5 * nearest / len(looks)) if upright else min(0.12, 0.8 / len(looks))
    for axes, metric in zip(grid, metrics, strict=True):
        for number, (arm, style) in enumerate(looks.items()):
            if (line := found.get((metric, arm))) is not None:
                aside = apart * (number - (len(looks) - 1) / 2)
                _draw_points(plate, axes, line, ticks, upright, aside, arm, style)
        if metric == DRIFT:
            for name, style in theories.items():
                curve = data[(data["kind"] == THEORY) & (data["arm"] == name)].sort_values("place")
                axes.plot(curve["place"], curve["value"], linewidth=0.9, label=literal(name), **style)
        _dress(axes, data["option"].iloc[0], metric, ticks, upright)
    return plate


def knob_values(arms: Sequence[Arm], key: str) -> list[Any]:
    """The values of a choice: numbers sorted, names in their order, None first."""
    values = list({repr(arm.choices[key]): arm.choices[key] for arm in arms}.values())
    return sorted(values, key=lambda value: -1.0 if value is None else value) if _numeric(values) else values


def _draw_points(
    plate: Plate,
    axes: Axes,
    line: pd.DataFrame,
    ticks: pd.Series,
    upright: bool,
    aside: float,
    arm: str,
    style: dict[str, Any],
) -> None:
    """Draw a line of points; the lines at one place stand side by side."""
    place = line.index.to_numpy(float) + aside
    middle, low, high = (line[name].to_numpy() for name in ("median", "min", "max"))
    bars = np.array([middle - low, high - middle])
    thin = {"marker": style["marker"] or ".", "elinewidth": 0.7 if style["marker"] else 0.3}  # of many lines
    style = {**style, **thin}
    if upright:
        axes.errorbar(place, middle, yerr=bars, markersize=3, linewidth=1.1, label=literal(arm), **style)
    else:
        look = {**style, "linestyle": ""}
        axes.errorbar(middle, place, xerr=bars, markersize=4, label=literal(arm), **look)
    said = (f"{arm}\n{ticks[at]}: {value:.4g}" for at, value in zip(line.index, middle, strict=True))
    plate.tip(axes, *((place, middle) if upright else (middle, place)), said)


def _theory_rows(arms: Sequence[Arm], places: Sequence[Any]) -> list[dict[str, Any]]:
    """The drift that theory predicts for these class sizes, one curve per theory and number of classes."""
    rows: dict[tuple[str, float], dict[str, Any]] = {}
    for arm in arms:
        if limit := drift_limit(arm.representative):
            theory, drift = limit
            value = arm.choices[IMBALANCE]
            name = f"theory: {theory}, K = {len(arm.representative.dump['class_counts'])}"
            place = _positions(places)[places.index(value)]
            rows[name, place] = {
                "arm": name,
                "option": IMBALANCE,
                "value_of_option": value_text(value),
                "place": place,
                "metric": DRIFT,
                "kind": THEORY,
                "value": drift,
            }
    return list(rows.values())


def _theory_looks(data: pd.DataFrame) -> Looks:
    names = data.loc[data["kind"] == THEORY, "arm"].unique()
    return {name: {"color": "gray", "linestyle": dash} for name, dash in zip(names, cycle(("--", ":")))}


def _dress(axes: Axes, key: str, metric: str, ticks: pd.Series, upright: bool) -> None:
    highlight = highlights()[metric]
    measured, named = (axes.yaxis, axes.xaxis) if upright else (axes.xaxis, axes.yaxis)
    shown = _apart(ticks) if upright else ticks
    texts = [literal(shorten(text, 30)) for text in shown]
    named.set_ticks(shown.index, texts, rotation=90 if upright and _is_tight(ticks) else 0)
    if upright:
        axes.set_xlabel(literal(short(key, [key])))
        axes.set_xlim(-0.4, ticks.index.max() + 0.4)
    else:
        axes.set_ylim(len(ticks) - 0.4, -0.6)  # the first at the top
    low, high = measured.get_data_interval()
    if highlight.log and high > 10 * low > 0:  # a shorter logarithmic axis has almost no ticks
        log_scale(axes, "y" if upright else "x")
    if highlight.percent:
        measured.set_major_formatter(PercentFormatter(1))


def _is_tight(ticks: pd.Series) -> bool:
    """Whether labels below the axis must be vertical."""
    return len("".join(ticks)) > 20 or min(np.diff(ticks.index), default=1) < 0.06 * len(ticks)


def _apart(ticks: pd.Series) -> pd.Series:
    """The ticks without those that are too close to the one before."""
    kept: list[float] = []
    for place in ticks.index:
        if not kept or place - kept[-1] > 0.05 * ticks.index.max():
            kept.append(place)
    return ticks.loc[kept]


def _positions(places: Sequence[Any]) -> list[float]:
    """Where the values stand, from 0 to n - 1: positive numbers by their logarithm, others at equal distances."""
    if len(places) < 2 or not all(type(value) in (int, float) and value > 0 for value in places):
        return [float(number) for number in range(len(places))]
    logs = np.log10(places)
    return [float(place) for place in (logs - logs[0]) / (logs[-1] - logs[0]) * (len(places) - 1)]


def _numeric(values: Sequence[Any]) -> bool:
    return all(isinstance(value, (int, float, type(None))) for value in values)
