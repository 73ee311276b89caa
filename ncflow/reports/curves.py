"""Figures over training: collapse and error by epoch, and the distances of the means to three ideal geometries."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator, PercentFormatter

from ncflow.reports.arms import Arm
from ncflow.reports.canvas import Plate, Size, draw_line, draw_thin, log_scale, panels
from ncflow.reports.highlights import highlights, shown_in
from ncflow.reports.looks import CROWD, LOOKS, Looks
from ncflow.reports.rows import WHOSE, all_runs, lines, table
from ncflow.runs.reader import Run


class Panel(NamedTuple):
    """A metric over epochs; `thin` is a second one in the same axes, drawn thin."""

    title: str
    key: str
    thin: str = ""
    log: bool = False
    percent: bool = False
    at_collapse: float | None = None


def read_curves(arms: Sequence[Arm]) -> pd.DataFrame:
    """A row per run, epoch and metric. The column first_zero is the first epoch without a training error."""
    wanted = [key for panel in curve_panels() for key in (panel.key, panel.thin, on_validation(panel.key)) if key]
    return table(_curve_rows(arms, wanted), "no run has an analysis")


def draw_curves(data: pd.DataFrame, looks: Looks, size: Size) -> Plate:
    """Draw each arm's median over its seeds, in a band from minimum to maximum; a vertical line at zero error.

    If the runs have a validation part, dotted lines show the test metrics on it.
    """
    shown = curve_panels()
    plate, grid = panels(size, size.titles(panel.title for panel in shown), legend=looks)
    found = lines(data, ["metric", "arm"], along="epoch")
    for axes, panel in zip(grid, shown, strict=True):
        for arm, style in looks.items():
            if (line := found.get((panel.key, arm))) is not None:
                draw_line(plate, axes, line, style, said=arm, place="epoch")
            if len(looks) > CROWD:
                continue
            for other, look in ((panel.thin, {}), (on_validation(panel.key), {"linestyle": ":"})):
                if (line := found.get((other, arm))) is not None:
                    draw_thin(axes, line, {**style, **look})
        _dress(axes, panel)
        if len(looks) <= CROWD:
            _mark_zero_error(axes, data, looks)
    return plate


def read_frames(arms: Sequence[Arm]) -> pd.DataFrame:
    """A row per run, epoch and geometry: the error of the Gram matrix of class means, and of classifier rows."""
    keys = [key for pair in FRAMES.values() for key in pair]
    return table(_curve_rows(arms, keys), f"no run measured {', '.join(keys)}")


def draw_frames(data: pd.DataFrame, looks: Looks, size: Size) -> Plate:
    """Draw one panel per arm, with the three distances on one axis: class means, and rows as thin lines."""
    shown = [arm for arm in looks if arm in set(data["arm"])]
    styles = {
        name: {**look, "linestyle": dash} for name, look, dash in zip(FRAMES, LOOKS, ("-", "--", ":"), strict=False)
    }
    plate, grid = panels(size, shown, legend=styles)
    found = lines(data, ["metric", "arm"], along="epoch")
    for axes, arm in zip(grid, shown, strict=True):
        for name, (means, weight) in FRAMES.items():
            if (line := found.get((means, arm))) is not None:
                draw_line(plate, axes, line, styles[name], said=name, place="epoch")
            if (line := found.get((weight, arm))) is not None:
                draw_thin(axes, line, styles[name])
        axes.set(xlabel="epoch", ylabel="Gram error", ylim=(0, None))
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True, min_n_ticks=1))
    return plate


def curve_panels() -> list[Panel]:
    """The error, then the highlights of curves; the two parts of NC2 come before the distance to an ETF."""
    found = [ERROR]
    for key in shown_in("curves"):
        if "/nc2/" in key and not any(panel in found for panel in NC2):
            found += NC2
        view = highlights()[key]
        found.append(Panel(f"{view.title}\n{key}", key, "", view.log, view.percent, view.at_collapse))
    return found


def on_validation(key: str) -> str:
    """The same metric on the validation part; empty for a metric of another split than test."""
    return f"val/{key.removeprefix('test/')}" if key.startswith("test/") else ""


def first_zero_error(run: Run) -> int | None:
    """The first analyzed epoch in which no training sample is classified wrong; None if there is none."""
    return next((epoch for epoch, accuracy in run.curve("train/acc/overall").items() if accuracy == 1), None)


def _curve_rows(arms: Sequence[Arm], keys: Sequence[str]) -> Iterator[dict[str, Any]]:
    for whose, run in all_runs(arms):
        first = first_zero_error(run)
        for key in keys:
            for epoch, value in _curve(run, key).items():
                yield whose | {"metric": key, "epoch": epoch, "value": value, "first_zero": first}


def _curve(run: Run, key: str) -> dict[int, float]:
    if not key.endswith("/error"):
        return run.curve(key)
    return {epoch: 1 - value for epoch, value in run.curve(key.replace("/error", "/acc/overall")).items()}


def _mark_zero_error(axes: Axes, data: pd.DataFrame, looks: Looks) -> None:
    """A vertical line at the epoch from which every seed of an arm has reached zero training error."""
    firsts = data.drop_duplicates(WHOSE).groupby("arm")["first_zero"].max(skipna=False)
    for arm, style in looks.items():
        if arm in firsts and pd.notna(firsts[arm]):
            axes.axvline(float(firsts[arm]), color=style["color"], linewidth=0.6, linestyle=(0, (1, 2)), zorder=0)


def _dress(axes: Axes, panel: Panel) -> None:
    values = np.concatenate([np.asarray(line.get_ydata(), float) for line in axes.lines] or [np.empty(0)])
    if not values.size:
        axes.text(0.5, 0.5, "not measured", transform=axes.transAxes, ha="center", color="gray")
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True, min_n_ticks=1))
    if panel.log and (values > 0).any():
        log_scale(axes, "y")
    elif panel.at_collapse is not None:
        axes.axhline(panel.at_collapse, color="gray", linewidth=0.6)
    if panel.percent:
        axes.yaxis.set_major_formatter(PercentFormatter(1))


ERROR = Panel("Test error (thin: training)", "test/error", "train/error", percent=True)
NC2 = (
    Panel(
        "NC2: norms of means (thin: of rows)", "train/nc2/equinorm_means", "train/nc2/equinorm_weight", at_collapse=0
    ),
    Panel(
        "NC2: angles of means (thin: of rows)",
        "train/nc2/equiangularity_means",
        "train/nc2/equiangularity_weight",
        at_collapse=0,
    ),
)
# Geometry -> the error of the Gram matrix of class means, and that of classifier rows. Thrampoulidis et al. 2022.
FRAMES = {
    "simplex ETF": ("train/nc2/etf_error_means", "train/nc2/etf_error_weight"),
    "SELI": ("train/imbalance/seli_error_means", "train/imbalance/seli_error_weight"),
    "orthogonal": ("train/nc2/orthogonal_error_means", "train/nc2/orthogonal_error_weight"),
}
