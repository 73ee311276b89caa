"""Figures across runs and layers: a final metric against accuracy over runs, and metrics along the depth."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.ticker import PercentFormatter

from ncflow.reports.arms import Arm
from ncflow.reports.canvas import Plate, Size, draw_line, literal, log_scale, panels
from ncflow.reports.looks import Looks, as_points
from ncflow.reports.rows import all_runs, lines, table

ACCURACY = "test/acc/balanced"
LEAST = 3  # runs: a line through two points always fits
AGAINST = {  # metric -> its title, and whether its axis is logarithmic
    "train/nc1/pinv": ("NC1", True),
    "train/nc2/equinorm_means": ("NC2: norms of means", False),
    "train/nc2/equiangularity_means": ("NC2: angles of means", False),
    "train/nc3/self_duality": ("NC3: self-duality", False),
    "test/nc4/ncc_mismatch": ("NC4: mismatch on test", False),
    "train/drift/relative": ("Relative drift", False),
}


def read_correlation(arms: Sequence[Arm]) -> pd.DataFrame:
    """A row per run and metric at the last analysis, with balanced test accuracy, and R² of a line over all runs.

    The line of a metric with a logarithmic axis is one in its logarithm; runs at 0 are then left out.
    """
    rows = [
        whose | {"metric": key, "value": value, "accuracy": accuracy}
        for key, (_, log) in AGAINST.items()
        for whose, run in all_runs(arms)
        if (value := run.final(key)) is not None and (accuracy := run.final(ACCURACY)) is not None
        if np.isfinite(value) and (value > 0 or not log)
    ]
    data = table(rows, f"no run measured {ACCURACY} and {', '.join(AGAINST)}")
    fitted = [part.assign(r2=fit(part)[2]) for _, part in data.groupby("metric", sort=False) if len(part) >= LEAST]
    return table(fitted, f"fewer than {LEAST} runs measured the same metric")


def draw_correlation(data: pd.DataFrame, looks: Looks, size: Size) -> Plate:
    """Draw a point per run, with the line of least squares where R² is defined."""
    shown = {key: part for key, part in data.groupby("metric", sort=False)}
    titles = [
        f"{AGAINST[key][0]}\nR² = {part['r2'].iloc[0]:.2f}".replace("nan", "undefined") for key, part in shown.items()
    ]
    plate, grid = panels(size, titles, legend=as_points(looks))
    marks = as_points(looks)
    for place, (axes, (key, part)) in enumerate(zip(grid, shown.items(), strict=True)):
        for arm, points in part.groupby("arm", sort=False):
            axes.plot(points["value"], points["accuracy"], markersize=3.5, alpha=0.8, label=literal(arm), **marks[arm])
        said = (
            f"{run}\n{v:.4g}: {100 * a:.1f} %"
            for run, v, a in zip(part["run"], part["value"], part["accuracy"], strict=True)
        )
        plate.tip(axes, part["value"], part["accuracy"], said)
        slope, start, r2 = fit(part)
        ends = np.array([part["value"].min(), part["value"].max()])
        if np.isfinite(r2):
            axes.plot(ends, start + slope * (np.log10(ends) if AGAINST[key][1] else ends), color="gray", linewidth=0.8)
        if AGAINST[key][1]:
            log_scale(axes, "x")
        axes.yaxis.set_major_formatter(PercentFormatter(1))
        axes.set_ylabel("" if place % size.columns else "balanced test accuracy")
    return plate


def fit(part: pd.DataFrame) -> tuple[float, float, float]:
    """Slope, start and R² of the line of least squares of accuracy on one metric; NaN if the metric does not vary."""
    x, y = part["value"].to_numpy(float), part["accuracy"].to_numpy(float)
    x = np.log10(x) if AGAINST[part["metric"].iloc[0]][1] else x
    dx, dy = x - x.mean(), y - y.mean()
    if not (dx @ dx > 0 and dy @ dy > 0):
        return np.nan, np.nan, np.nan
    slope = float(dx @ dy / (dx @ dx))
    return slope, float(y.mean() - slope * x.mean()), float((dx @ dy) ** 2 / ((dx @ dx) * (dy @ dy)))


def read_layers(arms: Sequence[Arm]) -> pd.DataFrame:
    """A row per run, layer and metric of the training split at the last analysis, in the order of the network."""
    return table(_layer_rows(arms), "no run measured its layers; train with train.analyze_layers=true")


def draw_layers(data: pd.DataFrame, looks: Looks, size: Size) -> Plate:
    """Draw each metric along the depth: the median over seeds in a band from minimum to maximum."""
    shown = list(dict.fromkeys(data["metric"]))
    plate, grid = panels(
        size,
        [LAYER_TITLES.get(name, name) for name in shown],
        legend=looks,
        bottom=5.4 if size.columns < 3 else 4.0,
        columns=min(3, size.columns),
    )
    found = lines(data, ["metric", "arm"], along="depth")
    names = data.drop_duplicates("depth").set_index("depth")["layer"].sort_index()
    few = len(names) <= 16
    narrow = sum(map(len, names)) > 36
    for axes, metric in zip(grid, shown, strict=True):
        for arm, style in looks.items():
            if (line := found.get((metric, arm))) is not None:
                draw_line(plate, axes, line, style, said=arm, place="layer")
        alike = data.groupby("depth")["layer"].nunique().max() == 1
        if few and alike:
            axes.set_xticks(names.index, [literal(name) for name in names], rotation=90 if narrow else 0)
        axes.set_xlabel("" if few and alike else "layer")
        values = data.loc[data["metric"] == metric, "value"]
        if (values > 0).all() and values.max() > 10 * values.min():
            log_scale(axes, "y")
    return plate


def _layer_rows(arms: Sequence[Arm]) -> Iterator[dict[str, Any]]:
    for whose, run in all_runs(arms):
        depths: dict[str, int] = {}
        for name, value in run.analyses[-1].get("train", {}).items():
            if found := LAYER.fullmatch(name):
                layer, metric = found.groups()
                depth = depths.setdefault(layer, len(depths) + 1)
                yield whose | {"depth": depth, "layer": layer, "metric": metric, "value": value}


LAYER = re.compile("layers/([^/]+)/(.+)")
LAYER_TITLES = {
    "drift": "Drift ‖μ_N‖",
    "nc1": "NC1",
    "equiangularity": "Equiangularity",
    "ncc_accuracy": "NCC accuracy",
    "numerical_rank": "Effective rank",
}
