"""Figures of matrices over classes: cosines of means and rows, and confusion; the largest class first."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from ncflow.reports.arms import Arm
from ncflow.reports.canvas import Plate, Size, panels, shorten
from ncflow.reports.classes import FEW_CLASSES
from ncflow.reports.figures import centered, class_ticks, confusion, cosines
from ncflow.reports.geometry import MEANS, ROWS
from ncflow.reports.looks import Looks
from ncflow.reports.predictions import predict
from ncflow.reports.rows import Array, block, class_labels, largest_first, representatives, table
from ncflow.runs.reader import Run

MOST_CLASSES = 100  # of a drawn matrix: a column of a paper has no pixels for more


def read_cosines(arms: Sequence[Arm]) -> pd.DataFrame:
    """A row per pair of classes of each arm's lowest seed: cosines of centered means, of rows, and theory's."""
    return _matrices(arms, _cosine_matrices, "no run has class means")


def draw_cosines(data: pd.DataFrame, looks: Looks, size: Size) -> Plate:
    """Draw a row of matrices per arm, the largest class first. At collapse all pairs have −1/(K − 1)."""
    return _draw_matrices(data, looks, size, vmin=-1, vmax=1, cmap="RdBu_r")


def read_confusion(arms: Sequence[Arm]) -> pd.DataFrame:
    """A row per pair of classes of each arm's lowest seed: the share of the true class that got the other label."""
    return _matrices(arms, _confusion_matrix, "no run has predictions on a test split")


def draw_confusion(data: pd.DataFrame, looks: Looks, size: Size) -> Plate:
    """Draw a matrix per arm: true classes down, predicted classes across, the largest class first."""
    return _draw_matrices(data, looks, size, vmin=0, vmax=1, cmap="Blues")


def _matrices(arms: Sequence[Arm], of_run: Any, lacking: str) -> pd.DataFrame:
    def rows() -> Iterator[pd.DataFrame]:
        for whose, run in representatives(arms):
            order, names = _some(largest_first(run)), class_labels(run)
            first, second = (places.ravel() for places in np.indices((len(order), len(order))))
            for name, matrix in of_run(run).items():
                yield block(
                    whose,
                    matrix=name,
                    row=first + 1,
                    column=second + 1,
                    row_class=names[order][first],
                    column_class=names[order][second],
                    value=matrix[np.ix_(order, order)].ravel(),
                )

    return table(rows(), lacking)


def _some(order: Array) -> Array:
    """The classes of a matrix: all, or MOST_CLASSES at equal distances in their order by size."""
    places = np.linspace(0, len(order) - 1, min(len(order), MOST_CLASSES)).round().astype(int)
    some: Array = order[places]
    return some


def _cosine_matrices(run: Run) -> dict[str, Array]:
    found = {MEANS: cosines(centered(run.dump["class_means"]))}
    if "weight" in run.dump:
        found[ROWS] = cosines(run.dump["weight"].double().numpy())
    if prediction := predict(run):
        found["means by theory"] = cosines(centered(prediction.optimum.class_means))
        found["rows by theory"] = cosines(prediction.optimum.weight.double().numpy())
    return found


def _confusion_matrix(run: Run) -> dict[str, Array]:
    dump = run.dump
    if not len(dump["targets"]):
        return {}
    return {"": confusion(dump["predictions"], dump["targets"], len(dump["class_counts"]))}


def _draw_matrices(data: pd.DataFrame, looks: Looks, size: Size, **image: Any) -> Plate:
    """One arm: a panel per matrix. Several arms: also the arm in the title."""
    keys = list(data.groupby(["arm", "matrix"], sort=False).groups)
    titles = [": ".join(filter(None, (arm if len(looks) > 1 else "", name))) for arm, name in keys]
    widest = max(sum(arm == other for other, _ in keys) for arm in looks)
    columns = widest if 2 <= widest <= size.columns + 1 else size.columns
    few = int(data["row"].max()) <= FEW_CLASSES
    plate, grid = panels(
        size, titles, columns=columns, ratio=1.0, left=4.4 if few else 1.2, bottom=4.0 if few else 1.0, right=0.4
    )
    parts = dict(tuple(data.groupby(["arm", "matrix"], sort=False)))
    for axes, key in zip(grid, keys, strict=True):
        part = parts[key]
        count = math.isqrt(len(part))
        values = part["value"].to_numpy().reshape(count, count)
        shown = axes.imshow(values, interpolation="nearest", **image)
        axes.grid(visible=False)
        names = [shorten(name, 7) for name in part["column_class"].iloc[:count]]
        class_ticks(axes, names if few else [], font=size.font - 2)
        if few:
            _tip_cells(plate, axes, values, names, key[0])
    ticks = [image["vmin"], (image["vmin"] + image["vmax"]) / 2, image["vmax"]]
    plate.colorbar_below(shown, ticks=ticks, percent=image["vmin"] == 0)
    return plate


def _tip_cells(plate: Plate, axes: Axes, values: Array, names: Sequence[str], arm: str) -> None:
    cells = list(np.ndindex(values.shape))
    said = (f"{arm}\n{names[row]} → {names[column]}: {values[row, column]:.3f}" for row, column in cells)
    plate.tip(axes, [column for _, column in cells], [row for row, _ in cells], said)
