"""The page of a search: the best trials, the importance of each parameter, and all trials in parallel coordinates."""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from ncflow.files import folder_next_to, replace_folder
from ncflow.reports.canvas import literal
from ncflow.reports.figures import to_png
from ncflow.reports.made import PAGE
from ncflow.reports.tables import Table, as_html

FIGURES = "figures"


class Coordinate(NamedTuple):
    """An axis of parallel coordinates: its key, and its choices or its range."""

    key: str
    choices: tuple[Any, ...] = ()
    low: float = 0.0
    high: float = 0.0
    log: bool = False

    def place(self, value: Any) -> float:
        """Where a value is, from 0 at the lower end to 1 at the upper end."""
        if self.choices:
            return self.choices.index(value) / max(len(self.choices) - 1, 1)
        low, high, value = (math.log(each) if self.log else each for each in (self.low, self.high, value))
        return (value - low) / (high - low) if high > low else 0.5

    def ticks(self) -> dict[float, str]:
        """Place -> label: the choices, or the ends and the powers of ten or the middle between them."""
        if self.choices:
            return {self.place(value): str(value) for value in self.choices}
        inside = _powers(self.low, self.high) if self.log else [(self.low + self.high) / 2]
        apart = {self.place(value): f"{value:.3g}" for value in inside if 0.08 < self.place(value) < 0.92}
        return {0.0: f"{self.low:.3g}", **apart, 1.0: f"{self.high:.3g}"}


class Tried(NamedTuple):
    """A trial: the name of its run, its state, its values, its objective if it is complete, and a reason."""

    run: str
    state: str
    values: Mapping[str, Any]
    objective: float | None = None
    reason: str = ""


def write_page(
    out_dir: Path,
    *,
    title: str,
    objective: str,
    maximize: bool,
    coordinates: Sequence[Coordinate],
    trials: Sequence[Tried],
    importances: Mapping[str, float],
    table: Table,
    command: str,
) -> Path:
    """Write index.html and figures/*.png to `out_dir` and return the page; other files in the folder stay.

    Numbers of the test split do not appear. Without importances there is no figure of them.
    """
    figures = {"parallel": parallel_figure(trials, coordinates, objective, maximize=maximize)}
    if importances:
        figures = {"importance": importance_figure(importances, objective)} | figures
    with folder_next_to(out_dir) as new:
        (new / FIGURES).mkdir()
        images = {name: to_png(figure) for name, figure in figures.items()}
        for name, png in images.items():
            (new / FIGURES / f"{name}.png").write_bytes(png)
        page = (
            _environment()
            .get_template("search.html.j2")
            .render(
                title=title,
                objective=objective,
                better="higher" if maximize else "lower",
                counts={state: sum(trial.state == state for trial in trials) for state in STATES},
                table=as_html(table),
                failed=[trial for trial in trials if trial.state == "fail"],
                images={
                    name: "data:image/png;base64," + base64.b64encode(png).decode() for name, png in images.items()
                },
                command=command,
            )
        )
        (new / PAGE).write_text(page, encoding="utf-8")
        out_dir.mkdir(exist_ok=True)
        replace_folder(new / FIGURES, out_dir / FIGURES)
        (new / PAGE).replace(out_dir / PAGE)
    return out_dir / PAGE


def importance_figure(importances: Mapping[str, float], objective: str) -> Figure:
    """Draw the share of the objective's variation that each key explains, the largest at the top."""
    shares = sorted(importances.items(), key=lambda item: item[1])
    figure = Figure(figsize=(7, 1.3 + 0.35 * len(shares)), layout="constrained")
    axes = figure.subplots()
    bars = axes.barh([literal(key) for key, _ in shares], [share for _, share in shares], color=COLOR, height=0.6)
    axes.bar_label(bars, [f"{100 * share:.0f} %" for _, share in shares], padding=3, fontsize=9)
    axes.set_xlim(0, 1.12 * max(max(importances.values()), 1e-9))
    axes.set_xticks(())
    axes.spines[["top", "right", "bottom"]].set_visible(False)
    axes.set_title(literal(f"Importance for {objective}"), fontsize=11)
    return figure


def parallel_figure(
    trials: Sequence[Tried], coordinates: Sequence[Coordinate], objective: str, *, maximize: bool
) -> Figure:
    """Draw a line per trial through its values; complete trials end at their objective, in its color.

    Pruned and failed trials are gray and stop at the last parameter. The best trial is the thick line.
    """
    complete = sorted((each.objective, each) for each in trials if each.objective is not None)
    worst_first = [trial for _, trial in (complete if maximize else complete[::-1])]
    values = [value for value, _ in complete]
    last = Coordinate(objective, low=min(values), high=max(values))
    every = [*coordinates, last]
    figure = Figure(figsize=(1.6 + 1.9 * len(every), 4.2), layout="constrained")
    axes = figure.subplots()
    shades = colormaps["viridis" if maximize else "viridis_r"]
    norm = Normalize(last.low, last.high if last.high > last.low else last.low + 1)
    for trial in (each for each in trials if each.objective is None and each.state in ("pruned", "fail")):
        places = [each.place(trial.values[each.key]) for each in coordinates]
        axes.plot(range(len(places)), places, color="#b4b8bf", linewidth=0.8, linestyle="--" if _failed(trial) else "-")
    for trial in worst_first:
        places = [*(each.place(trial.values[each.key]) for each in coordinates), last.place(trial.objective)]
        best = trial is worst_first[-1]
        color = BEST if best else shades(norm(trial.objective or 0.0))
        axes.plot(range(len(places)), places, color=color, linewidth=2.8 if best else 1.3, alpha=1 if best else 0.8)
    _draw_axes(axes, every)
    figure.colorbar(ScalarMappable(norm, shades), ax=axes, label=literal(objective), pad=0.01)
    best_run = literal(worst_first[-1].run)
    axes.set_title(f"Best: {best_run} (red); gray: pruned, dashed: failed", fontsize=10)
    return figure


def _draw_axes(axes: Axes, every: Sequence[Coordinate]) -> None:
    """A vertical line for each coordinate, with its ticks at the left and its key below."""
    for x, coordinate in enumerate(every):
        axes.axvline(x, color="#1d2129", linewidth=0.9, zorder=0)
        for place, label in coordinate.ticks().items():
            box = {"facecolor": "white", "edgecolor": "none", "alpha": 0.75, "pad": 0.8}
            look: dict[str, Any] = {"fontsize": 8, "ha": "right", "va": "center", "bbox": box, "zorder": 5}
            axes.text(x - 0.03, place, literal(label), **look)
    axes.set_xticks(range(len(every)), [literal(each.key) for each in every], fontsize=9)
    axes.set_yticks(())
    axes.set_xlim(-0.45, len(every) - 0.9)
    axes.set_ylim(-0.06, 1.06)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


def _failed(trial: Tried) -> bool:
    return trial.state == "fail"


def _powers(low: float, high: float) -> list[float]:
    """The powers of ten inside a range, at most about four of them."""
    exponents = np.arange(math.ceil(math.log10(low)), math.floor(math.log10(high)) + 1)
    return [10.0 ** int(exponent) for exponent in exponents[:: max(len(exponents) // 4, 1)]]


def _environment() -> Environment:
    folder = Path(__file__).parent
    return Environment(
        loader=FileSystemLoader(folder),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


COLOR, BEST = "#0072B2", "#D55E00"
STATES = ("complete", "pruned", "fail", "running")
