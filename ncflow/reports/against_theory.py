"""Theory next to measurement: a table of numbers that describe a geometry, and the lengths by class."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from ncflow.reports.arms import Arm
from ncflow.reports.canvas import Plate, Size, literal, panels
from ncflow.reports.looks import Looks
from ncflow.reports.predictions import EXACT, Prediction, measure, predict, quantities, why_not
from ncflow.reports.rows import block, class_labels, largest_first, representatives, table
from ncflow.reports.tables import ABSENT, Row, Table, number
from ncflow.runs.reader import Run

Predicted = Sequence[tuple[Arm, Prediction]]


def predictions(arms: Sequence[Arm]) -> dict[str, list[tuple[Arm, Prediction]]]:
    """Theory -> the arms that it covers, each with its prediction; empty if no theory applies."""
    grouped: dict[str, list[tuple[Arm, Prediction]]] = {}
    for arm in arms:
        if prediction := predict(arm.representative):
            grouped.setdefault(prediction.theory, []).append((arm, prediction))
    return grouped


def without_theory(arms: Sequence[Arm], names: Mapping[Arm, str]) -> dict[str, list[str]]:
    """Reason why no theory applies, in one line -> what to call the arms with this reason."""
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


def read_theory(arms: Sequence[Arm]) -> pd.DataFrame:
    """A row per class and kind (rows or means) of each arm's lowest seed: measured and predicted length.

    If the theory does not fix the scale, rows and means are centered and divided by their root mean square.
    """
    rows = (_lengths_of(whose, run, prediction) for whose, run in representatives(arms) if (prediction := predict(run)))
    return table(rows, "no theory applies to these runs")


def draw_theory(data: pd.DataFrame, looks: Looks, size: Size) -> Plate:
    """Draw lengths of classifier rows and class means, largest class first: dashes are predicted, points measured."""
    theories = list(dict.fromkeys(data["theory"]))
    keys = [(theory, kind) for theory in theories for kind in LENGTHS]
    titles = [f"{LENGTHS[kind]}: {theory}" for theory, kind in keys]
    points = {arm: {**look, "linestyle": ""} for arm, look in looks.items() if arm in set(data["arm"])}
    plate, grid = panels(size, titles, legend=points, columns=2 if size.columns > 2 else 1, ratio=0.6)
    for axes, (theory, kind) in zip(grid, keys, strict=True):
        part = data[(data["theory"] == theory) & (data["kind"] == kind)]
        for arm, line in part.groupby("arm", sort=False):
            axes.plot(line["rank"], line["predicted"], color=looks[arm]["color"], linestyle="--", linewidth=0.8)
            axes.plot(line["rank"], line["value"], label=literal(arm), markersize=3, **points[arm])
            said = zip(line["class_name"], line["value"], line["predicted"], strict=True)
            plate.tip(
                axes, line["rank"], line["value"], (f"{arm}\n{name}: {v:.4g}, theory {p:.4g}" for name, v, p in said)
            )
        scaled = bool(part["scaled"].iloc[0])
        axes.set(xlabel="class, largest first", ylabel="length" if scaled else "length / rms", ylim=(0, None))
    return plate


def _objectives(arm: Arm) -> tuple[float, list[float]]:
    """The smallest objective by theory, and that of each run at its last analysis; NaN if it was not logged."""
    final = [[run.final(f"train/objective/{name}") for name in ("value", "gap")] for run in arm.runs]
    pairs = [(math.nan, math.nan) if value is None or gap is None else (value, gap) for value, gap in final]
    return pairs[0][0] - pairs[0][1], [value for value, _ in pairs]


def _lengths_of(whose: dict[str, Any], run: Run, prediction: Prediction) -> pd.DataFrame:
    measured, order, scaled = measure(run), largest_first(run), prediction.scale
    return pd.concat(
        block(
            whose,
            theory=prediction.theory,
            kind=kind,
            rank=range(1, len(order) + 1),
            class_name=class_labels(run)[order],
            value=_lengths(getattr(measured, kind), scaled).numpy()[order],
            predicted=_lengths(getattr(prediction.optimum, kind), scaled).numpy()[order],
            scaled=scaled,
        )
        for kind in LENGTHS
    )


def _lengths(rows: Tensor, scale: bool) -> Tensor:
    """‖row‖ (K,); without `scale`, of the centered rows, relative to their root mean square."""
    lengths = torch.linalg.vector_norm(rows if scale else rows - rows.mean(0), dim=1)
    relative: Tensor = lengths / (1.0 if scale else lengths.square().mean().sqrt())
    return relative


def _cell(value: float) -> str:
    return number(value) if math.isfinite(value) else ABSENT


LENGTHS = {"weight": "Rows", "class_means": "Means"}
