"""Figures of single classes: accuracy by class size and by epoch, groups of classes, and norms by class."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import PercentFormatter

from ncflow.metrics.shots import SHOTS
from ncflow.reports.arms import Arm
from ncflow.reports.canvas import Plate, Size, draw_line, literal, panels, shorten
from ncflow.reports.looks import Looks, as_bars
from ncflow.reports.predictions import predict
from ncflow.reports.rows import (
    Array,
    all_runs,
    block,
    class_accuracies,
    class_labels,
    dumps,
    finals,
    largest_first,
    lines,
    representatives,
    table,
)
from ncflow.runs.reader import Run

GROUPS = {**{name: f"test/acc/{name}" for name in SHOTS}, "all": "test/acc/balanced"}
MOST_POINTS = 1500  # drawn as vectors
FEW_CLASSES = 12  # at most so many classes have their names on an axis


def read_classwise(arms: Sequence[Arm]) -> pd.DataFrame:
    """A row per run and class: its training samples, and its test accuracy."""
    rows = (
        block(
            whose,
            class_name=class_labels(run),
            train_samples=run.dump["class_counts"].numpy(),
            value=class_accuracies(run.dump),
        )
        for whose, run in all_runs(arms)
        if len(run.dump["targets"])
    )
    return table(rows, "no run has predictions on a test split").dropna(subset="value")


def draw_classwise(data: pd.DataFrame, looks: Looks, size: Size) -> Plate:
    """Draw a class's test accuracy against its training samples: a point per class and seed, a line of means."""
    plate, (axes,) = panels(size, [""], legend=looks, ratio=0.5)
    for arm, part in data.groupby("arm", sort=False):
        style = looks[arm]
        at = part["train_samples"].clip(lower=0.5)
        axes.scatter(
            at,
            part["value"],
            s=8,
            alpha=0.35,
            color=style["color"],
            marker=style["marker"],
            linewidths=0,
            rasterized=len(data) > MOST_POINTS,
        )
        axes.plot(
            *_mean_by_size(at.to_numpy(float), part["value"].to_numpy()), label=literal(arm), markersize=3, **style
        )
        said = zip(part["class_name"], part["train_samples"], part["value"], strict=True)
        plate.tip(axes, at, part["value"], (f"{arm}\n{name} ({n} samples): {100 * v:.1f} %" for name, n, v in said))
    axes.set_xscale("log")
    axes.set(xlabel="training samples of the class", ylabel="test accuracy", ylim=(-0.03, 1.03))
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    return plate


def read_groups(arms: Sequence[Arm]) -> pd.DataFrame:
    """A row per run and group of classes: its mean test accuracy at the last analysis."""
    names = {key: name for name, key in GROUPS.items()}
    found = [row | {"group": names[row.pop("metric")]} for row in finals(arms, names)]
    return table(found, f"no run measured {', '.join(names)}")


def draw_groups(data: pd.DataFrame, looks: Looks, size: Size) -> Plate:
    """Draw a bar per arm for the mean over seeds, with its standard deviation over seeds."""
    bars = as_bars(looks)
    plate, (axes,) = panels(size, [""], legend=bars, ratio=0.45)
    groups = [name for name in GROUPS if name in set(data["group"])]
    width = 0.8 / len(looks)
    for number, arm in enumerate(looks):
        part = data[data["arm"] == arm].groupby("group")["value"].agg(["mean", "std", "count"]).reindex(groups)
        at = np.arange(len(groups)) + width * (number - (len(looks) - 1) / 2)
        axes.bar(at, part["mean"], width=0.92 * width, label=literal(arm), **bars[arm])
        axes.errorbar(at, part["mean"], yerr=part["std"], fmt="none", ecolor="black", elinewidth=0.7, capsize=1.5)
        said = zip(groups, part["mean"], part["std"].fillna(0), part["count"].fillna(0), strict=True)
        plate.tip(
            axes,
            at,
            part["mean"],
            (f"{arm}\n{g}: {100 * m:.1f} ± {100 * s:.1f} % ({c:.0f} runs)" for g, m, s, c in said),
        )
    axes.set_xticks(range(len(groups)), groups)
    axes.grid(visible=False, axis="x")
    axes.set(ylabel="test accuracy", ylim=(0, 1.03))
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    return plate


def read_norms(arms: Sequence[Arm]) -> pd.DataFrame:
    """A row per run, class and kind (rows or means): its norm over the root mean square norm, and theory's."""
    return table((part for whose, run in all_runs(arms) for part in _norms(whose, run)), "no run has class means")


def draw_norms(data: pd.DataFrame, looks: Looks, size: Size) -> Plate:
    """Draw norms by class, the largest class first: the median over seeds, and theory's as thin dashes."""
    titles = {kind: title for kind, title in NORMS.items() if kind in set(data["kind"])}
    plate, grid = panels(size, list(titles.values()), legend=looks, columns=2 if size.columns > 2 else 1, ratio=0.6)
    found = lines(data, ["kind", "arm"], along="rank")
    for axes, kind in zip(grid, titles, strict=True):
        for arm, style in looks.items():
            if (line := found.get((kind, arm))) is None:
                continue
            draw_line(plate, axes, line, style, said=arm, place="class")
            ideal = (
                data[(data["kind"] == kind) & (data["arm"] == arm)].drop_duplicates("rank").set_index("rank")["theory"]
            )
            if ideal.notna().any():
                axes.plot(ideal.index, ideal, color=style["color"], linewidth=0.6, linestyle=(0, (4, 2)))
        axes.set_ylim(0, None)
        axes.set_ylabel("norm / rms")
        _class_axis(axes, data)
    return plate


def read_heatmap(arms: Sequence[Arm]) -> pd.DataFrame:
    """A row per class and analyzed epoch of each arm's lowest seed: the class's test accuracy."""
    rows = (
        block(
            whose,
            epoch=epoch,
            rank=np.arange(1, len(order) + 1),
            class_name=class_labels(run)[order],
            value=class_accuracies(dump)[order],
        )
        for whose, run in representatives(arms)
        for order in [largest_first(run)]
        for epoch, dump in dumps(run)
        if len(dump["targets"])
    )
    return table(rows, "no run has predictions on a test split")


def draw_heatmap(data: pd.DataFrame, looks: Looks, size: Size) -> Plate:
    """Draw one panel per arm: classes, the largest at the top, against epochs."""
    shown = [arm for arm in looks if arm in set(data["arm"])]
    few = data["rank"].max() <= FEW_CLASSES
    plate, grid = panels(size, shown, ratio=0.8, left=6.5 if few else 4.0, right=1.0)
    for axes, arm in zip(grid, shown, strict=True):
        part = data[data["arm"] == arm]
        values = part.pivot(index="rank", columns="epoch", values="value")
        image = axes.imshow(values, vmin=0, vmax=1, cmap="cividis", interpolation="nearest", aspect="auto")
        at = np.unique(np.linspace(0, values.shape[1] - 1, min(4, values.shape[1])).astype(int))
        axes.set_xticks(at, [str(values.columns[place]) for place in at])
        names = part.drop_duplicates("rank").set_index("rank")["class_name"]
        axes.set_yticks(range(len(names)) if few else (), [literal(shorten(name)) for name in names] if few else ())
        axes.set(xlabel="epoch", ylabel="" if few else "class, largest first")
        axes.grid(visible=False)
    plate.colorbar_below(image, ticks=[0, 0.5, 1], percent=True)
    return plate


def _norms(whose: dict[str, Any], run: Run) -> Iterator[pd.DataFrame]:
    """The norms of the rows of the classifier as they are, and of the class means about their mean."""
    order, names = largest_first(run), class_labels(run)
    prediction = predict(run)
    ideal = {"rows": prediction.optimum.weight, "means": prediction.optimum.class_means} if prediction else {}
    for kind, tensor in (("rows", run.dump.get("weight")), ("means", run.dump["class_means"])):
        if tensor is not None:
            theory = _relative(kind, ideal[kind])[order] if ideal else np.nan
            yield block(
                whose,
                kind=kind,
                rank=np.arange(1, len(order) + 1),
                class_name=names[order],
                train_samples=run.dump["class_counts"].numpy()[order],
                value=_relative(kind, tensor)[order],
                theory=theory,
            )


def _relative(kind: str, tensor: Any) -> Array:
    rows = tensor.double().numpy()
    norms = np.linalg.norm(rows - np.nanmean(rows, axis=0) if kind == "means" else rows, axis=1)
    scale = np.sqrt(np.nanmean(norms**2))
    relative: Array = norms / scale if scale > 0 else norms
    return relative


def _class_axis(axes: Axes, data: pd.DataFrame) -> None:
    """Ranks of classes on the x axis; their names if they are few, and the same in every arm."""
    names = data.groupby("rank")["class_name"].unique()
    if len(names) <= FEW_CLASSES and names.map(len).max() == 1:
        texts = [literal(shorten(name[0], 6)) for name in names]
        turned = 90 if any(len(text) > 2 for text in texts) else 0
        axes.set_xticks(names.index, texts, rotation=turned)
    axes.set_xlabel("class, largest first")


def _mean_by_size(sizes: Array, values: Array, per_decade: int = 8) -> tuple[Array, Array]:
    """Mean size and mean value over classes of similar size: keeps ten classes apart, makes a hundred readable."""
    _, group, totals = np.unique(np.round(per_decade * np.log10(sizes)), return_inverse=True, return_counts=True)
    return np.bincount(group, sizes) / totals, np.bincount(group, values) / totals


NORMS = {"rows": "Norm of classifier rows", "means": "Norm of centered class means"}
