"""Figures of class means and classifier rows: spectra, histograms of angles, and a plane."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from ncflow.metrics.shots import shot_groups
from ncflow.reports.arms import Arm
from ncflow.reports.canvas import Plate, Size, draw_line, literal, panels
from ncflow.reports.figures import cosines
from ncflow.reports.looks import LOOKS, Looks
from ncflow.reports.rows import Array, all_runs, block, class_labels, lines, representatives, table
from ncflow.runs.layout import EPOCH_FEATURES, files_of_epochs
from ncflow.runs.reader import Run
from ncflow.tensors import read_tensors

MEANS, ROWS = "class means", "classifier rows"
NO_SHARES = {"share_x": 0.0, "share_y": 0.0}
POINTS = 600  # of features in a plane


def read_spectra(arms: Sequence[Arm]) -> pd.DataFrame:
    """A row per run, matrix and index: the singular value over the largest, of centered means and of rows."""
    rows = (
        block(whose, matrix=name, index=np.arange(1, len(values) + 1), value=values)
        for whose, run in all_runs(arms)
        for name, rows in _frame(run).items()
        if (values := _spectrum(rows)) is not None
    )
    return table(rows, "no run has class means that differ")


def draw_spectra(data: pd.DataFrame, looks: Looks, size: Size) -> Plate:
    """Draw the median over seeds in a band from minimum to maximum. A simplex ETF has K − 1 equal values."""
    shown = [name for name in (MEANS, ROWS) if name in set(data["matrix"])]
    plate, grid = panels(size, [f"Spectrum of {name}" for name in shown], legend=looks, columns=2)
    found = lines(data, ["matrix", "arm"], along="index")
    for axes, name in zip(grid, shown, strict=True):
        for arm, style in looks.items():
            if (line := found.get((name, arm))) is not None:
                draw_line(plate, axes, line, style, said=arm, place="value")
        axes.set(xlabel="index", ylabel="singular value / largest", ylim=(0, 1.05))
    return plate


def read_angles(arms: Sequence[Arm]) -> pd.DataFrame:
    """A row per run, matrix and bin of cosine: the share of the pairs of classes in it."""
    rows = (
        block(whose, matrix=name, cosine=middles(len(shares)), ideal=-1 / (len(rows) - 1), value=shares)
        for whose, run in all_runs(arms)
        for name, rows in _frame(run).items()
        if (shares := _shares(rows)) is not None
    )
    return table(rows, "no run has class means that differ")


def draw_angles(data: pd.DataFrame, looks: Looks, size: Size) -> Plate:
    """Draw histograms of the cosines of all pairs, all seeds of an arm together; a gray line at −1/(K − 1)."""
    shown = [name for name in (MEANS, ROWS) if name in set(data["matrix"])]
    plate, grid = panels(
        size,
        [f"Cosines of {name}" for name in shown],
        legend={a: {**s, "marker": ""} for a, s in looks.items()},
        columns=2,
    )
    found = dict(tuple(data.groupby(["matrix", "arm"], sort=False)))
    for axes, name in zip(grid, shown, strict=True):
        for ideal in data["ideal"].unique():
            axes.axvline(ideal, color="gray", linewidth=0.6)
        for arm, style in looks.items():
            if (part := found.get((name, arm))) is not None:
                shares = part.groupby("cosine")["value"].mean()
                axes.stairs(
                    shares,
                    np.linspace(-1, 1, len(shares) + 1),
                    color=style["color"],
                    linestyle=style["linestyle"],
                    label=literal(arm),
                    linewidth=1.1,
                )
                said = (
                    f"{arm}\ncosine {at:.2f}: {100 * share:.1f} % of pairs" for at, share in shares.items() if share
                )
                kept = shares[shares > 0]
                plate.tip(axes, kept.index, kept, said)
        axes.set(xlabel="cosine of a pair", ylabel="share of pairs", xlim=_limits(data, name), ylim=(0, None))
    return plate


def read_plane(arms: Sequence[Arm]) -> pd.DataFrame:
    """A row per point of each arm's lowest seed in the plane of the first two principal directions of the means.

    Points are class means, classifier rows and, of runs with train.save_features=true, training features. Means and
    features are about the mean of the means; all are over the root mean square norm of the means, or of the rows.
    """
    rows = (part for whose, run in representatives(arms) for part in _plane(whose, run))
    return table(rows, "no run has class means that differ")


def draw_plane(data: pd.DataFrame, looks: Looks, size: Size) -> Plate:
    """Draw one panel per arm: means as marks, rows as lines from the origin, features as points, by group."""
    shown = [arm for arm in looks if arm in set(data["arm"])]
    plate, grid = panels(size, shown, legend=PLANE, ratio=1.0, left=5.6, bottom=3.4, right=0.6)
    for axes, arm in zip(grid, shown, strict=True):
        part = data[data["arm"] == arm]
        for (kind, group), points in part.groupby(["kind", "group"], sort=False):
            _draw_points(axes, kind, points, PLANE[f"{group}-shot"])
        means = part[part["kind"] == "mean"]
        plate.tip(axes, means["x"], means["y"], (f"{arm}\nclass {name}" for name in means["class_name"]))
        share = part[["share_x", "share_y"]].iloc[0]
        axes.set_xlabel(f"1st direction ({100 * share['share_x']:.0f} %)")
        axes.set_ylabel(f"2nd ({100 * share['share_y']:.0f} %)")
        limit = 1.1 * float(part[["x", "y"]].abs().to_numpy().max() or 1)
        axes.set(xlim=(-limit, limit), ylim=(-limit, limit))
    return plate


def middles(bins: int) -> Array:
    """The middles of equal bins of [−1, 1]."""
    edges = np.linspace(-1, 1, bins + 1)
    middle: Array = (edges[:-1] + edges[1:]) / 2
    return middle


def _frame(run: Run) -> dict[str, Array]:
    """The centered class means and the classifier's rows, of classes that have a training sample."""
    means = run.dump["class_means"].double().numpy()
    known = np.isfinite(means).all(axis=1)
    found = {MEANS: means[known] - means[known].mean(axis=0)}
    if "weight" in run.dump:
        found[ROWS] = run.dump["weight"].double().numpy()
    return {name: rows for name, rows in found.items() if len(rows) > 1}


def _spectrum(rows: Array) -> Array | None:
    values = np.linalg.svd(rows, compute_uv=False)
    return values / values[0] if values[0] > 0 else None


def _shares(rows: Array) -> Array | None:
    if not np.linalg.norm(rows, axis=1).all():
        return None
    pairs = cosines(rows)[np.triu_indices(len(rows), 1)]
    bins = 20 if len(rows) <= 20 else 80  # 20 classes have 190 pairs
    counts, _ = np.histogram(np.clip(pairs, -1, 1), bins, (-1, 1))
    return counts / len(pairs)


def _limits(data: pd.DataFrame, name: str) -> tuple[float, float]:
    used = data.loc[(data["matrix"] == name) & (data["value"] > 0), "cosine"]
    return max(-1.0, used.min() - 0.1), min(1.0, used.max() + 0.1)


def _plane(whose: Mapping[str, Any], run: Run) -> Iterator[pd.DataFrame]:
    frame = _frame(run)
    if MEANS not in frame or not frame[MEANS].any():
        return
    all_means = run.dump["class_means"].double().numpy()
    known = np.isfinite(all_means).all(axis=1)
    center, scale = all_means[known].mean(axis=0), _rms(frame[MEANS])
    _, values, axes = np.linalg.svd(frame[MEANS], full_matrices=False)
    axes = axes[:2] * np.sign(np.take_along_axis(axes[:2], np.abs(axes[:2]).argmax(axis=1)[:, None], axis=1))
    shares = dict(zip(("share_x", "share_y"), (values**2 / (values**2).sum())[:2], strict=True))
    names, groups = class_labels(run), _groups(run)
    yield _points(whose, "mean", frame[MEANS] / scale, axes, names[known], groups[known], shares)
    if ROWS in frame and (size := _rms(frame[ROWS])) > 0:
        yield _points(whose, "row", frame[ROWS] / size, axes, names, groups, shares)
    if files := files_of_epochs(run.path, EPOCH_FEATURES):
        kept = read_tensors(files[-1])
        features, targets = kept["train/features"].double().numpy(), kept["train/targets"].numpy()
        some = np.unique(np.linspace(0, len(features) - 1, min(POINTS, len(features))).astype(int))
        points = (features[some] - center) / scale
        yield _points(whose, "feature", points, axes, names[targets[some]], groups[targets[some]], shares)


def _points(
    whose: Mapping[str, Any],
    kind: str,
    rows: Array,
    axes: Array,
    names: Array,
    groups: Array,
    shares: Mapping[str, float],
) -> pd.DataFrame:
    x, y = (rows @ axes.T).T if len(axes) == 2 else (rows @ axes[0], np.zeros(len(rows)))
    return block(
        dict(whose),
        kind=kind,
        class_name=names,
        group=groups,
        x=x,
        y=y,
        **NO_SHARES | dict(shares),
    )


def _groups(run: Run) -> Array:
    found = np.full(len(run.dump["class_counts"]), "few", dtype=object)
    for name, mask in shot_groups(run.dump["class_counts"]).items():
        found[mask.numpy()] = name
    return found


def _draw_points(axes: Axes, kind: str, points: pd.DataFrame, look: Mapping[str, Any]) -> None:
    color = look["color"]
    if kind == "row":
        ends = np.zeros((len(points), 3, 2))  # from the origin to the row, then a gap: one path for all rows
        ends[:, 1], ends[:, 2] = points[["x", "y"]], np.nan
        axes.plot(*ends.reshape(-1, 2).T, color=color, linewidth=0.8)
    elif kind == "feature":
        axes.scatter(points["x"], points["y"], s=2, color=color, alpha=0.3, linewidths=0, rasterized=True)
    else:
        axes.plot(
            points["x"], points["y"], markersize=4, markeredgecolor="white", markeredgewidth=0.4, zorder=3, **look
        )


def _rms(rows: Array) -> float:
    return float(np.sqrt((rows**2).sum(axis=1).mean()))


PLANE = {
    f"{group}-shot": {"color": look["color"], "marker": look["marker"], "linestyle": ""}
    for group, look in zip(("many", "medium", "few"), LOOKS, strict=False)
}
