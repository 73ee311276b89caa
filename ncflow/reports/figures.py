"""Figures of one analysis: cosine matrices and confusion matrices, drawn from tensors only."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from ncflow.reports.canvas import literal

Array: TypeAlias = npt.NDArray[Any]
LONGEST = 10  # the most letters of a class name on an axis


def cosine_figure(
    class_means: torch.Tensor,
    weight: torch.Tensor | None,
    *,
    class_counts: torch.Tensor | None = None,
    class_names: Sequence[str] | None = None,
    predicted: tuple[str, torch.Tensor, torch.Tensor] | None = None,
    title: str = "",
) -> Figure:
    """Draw cosines between centered class means (K,d), between classifier rows (K,d), and in the simplex ETF.

    With class_counts (K,), the largest class comes first: minority collapse is then a red corner at the lower right.
    `predicted` holds a theory's name, class means (K,d) and rows (K,d), drawn next to the measured ones. The axes
    show class_names (K,), or the numbers of the classes. Without a weight there is no panel of rows.
    """
    order = _largest_first(class_counts, len(class_means))
    panels = {"centered class means": cosines(centered(class_means)[order])}
    if weight is not None:
        panels["classifier rows"] = cosines(_array(weight)[order])
    panels["simplex ETF"] = _etf_cosines(len(order))
    if predicted:
        theory, ideal_means, ideal_weight = predicted
        panels[f"means by theory: {theory}"] = cosines(centered(ideal_means)[order])
        panels[f"rows by theory: {theory}"] = cosines(_array(ideal_weight)[order])
    inches = 2.8 * len(panels)
    edges = {"left": 0.6 / inches, "right": 1 - 0.9 / inches, "bottom": 0.1, "top": 0.8, "wspace": 0.12}
    figure = Figure(figsize=(inches, 3.1))
    grid = figure.subplots(1, len(panels), gridspec_kw=edges)
    for axes, (name, matrix) in zip(grid, panels.items(), strict=True):
        image = axes.imshow(matrix, vmin=-1, vmax=1, cmap="RdBu_r", interpolation="nearest")
        axes.set_title(literal(name), fontsize=10)
        _class_ticks(axes, order, class_names, both=axes is grid[0])
    bar = figure.add_axes((1 - 0.8 / inches, 0.1, 0.13 / inches, 0.7))
    figure.colorbar(image, cax=bar, label="cosine", ticks=[-1, -0.5, 0, 0.5, 1])
    figure.suptitle(literal(title), fontsize=11)
    return figure


def confusion_figure(
    predictions: torch.Tensor,
    targets: torch.Tensor,
    num_classes: int,
    *,
    class_counts: torch.Tensor | None = None,
    class_names: Sequence[str] | None = None,
    title: str = "",
) -> Figure:
    """Draw the share of each true class (rows) that got each label (columns), from predictions and targets (N,).

    With class_counts (K,), the largest class comes first. The axes show class_names (K,), or the class numbers.
    """
    order = _largest_first(class_counts, num_classes)
    shares = confusion(predictions, targets, num_classes)[np.ix_(order, order)]
    figure = Figure(figsize=(4.4, 4))
    axes = figure.add_axes((0.12, 0.13, 0.69, 0.75))
    image = axes.imshow(shares, vmin=0, vmax=1, cmap="Blues", interpolation="nearest")
    _class_ticks(axes, order, class_names)
    axes.set_xlabel("predicted class", labelpad=14)
    axes.set_ylabel("true class", labelpad=14)
    _annotate_shares(axes, shares)
    figure.colorbar(image, cax=figure.add_axes((0.84, 0.13, 0.03, 0.75)), format=PercentFormatter(1))
    figure.suptitle(literal(title), fontsize=9)
    return figure


def to_image(figure: Figure) -> npt.NDArray[np.uint8]:
    """The figure as pixels (H,W,3) uint8, for image logs."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="rgba", dpi=figure.dpi)
    width, height = figure.canvas.get_width_height()
    return np.frombuffer(buffer.getvalue(), np.uint8).reshape(height, width, 4)[..., :3].copy()


def to_png(figure: Figure, *, dpi: int = 130) -> bytes:
    """The figure as a PNG file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi)
    return buffer.getvalue()


def _largest_first(class_counts: torch.Tensor | None, num_classes: int) -> Array:
    """Order of the classes, largest first; the original order for equal classes and without counts."""
    return np.arange(num_classes) if class_counts is None else np.argsort(-_array(class_counts), kind="stable")


def class_ticks(axes: Axes, labels: Sequence[str], *, font: float, both: bool = True) -> None:
    """Add a label per class, vertical on the x axis if one is long; no labels, no ticks."""
    turned = any(len(label) > 2 for label in labels)
    axes.set_xticks(())  # faster: a tick of Matplotlib is five artists, and an analysis has sixty ticks
    axes.set_yticks(())
    below, beside = axes.get_xaxis_transform(), axes.get_yaxis_transform()
    look: dict[str, Any] = {"fontsize": font, "parse_math": False}
    for place, label in enumerate(labels):
        axes.text(place, -0.02, label, transform=below, ha="center", va="top", rotation=90 if turned else 0, **look)
        if both:
            axes.text(-0.02, place, label, transform=beside, ha="right", va="center", **look)


def _class_ticks(axes: Axes, order: Array, names: Sequence[str] | None, *, both: bool = True) -> None:
    """Add a label per class if the labels fit; long names are cut."""
    size = 8 if len(order) <= 10 else 6
    labels = [_short(str(k if names is None else names[k])) for k in order] if len(order) <= 20 else []
    turned = any(len(label) > 2 for label in labels)
    class_ticks(axes, labels, font=size if not turned else min(size, 7), both=both)


def _short(name: str) -> str:
    """At most LONGEST letters of a name, without line breaks."""
    name = " ".join(name.split())
    return name if len(name) <= LONGEST else f"{name[: LONGEST - 1]}…"


def _annotate_shares(axes: Axes, shares: Array) -> None:
    """Write the shares in whole percent, if there is room."""
    if len(shares) > 12:
        return
    for (row, column), share in np.ndenumerate(shares):
        if share >= 0.005:
            color = "white" if share > 0.6 else "black"
            axes.text(column, row, f"{100 * share:.0f}", ha="center", va="center", fontsize=8, color=color)


def centered(rows: torch.Tensor) -> Array:
    """Rows (K,d) minus their mean, in float64."""
    array = _array(rows)
    moved: Array = array - array.mean(axis=0)
    return moved


def cosines(rows: Array) -> Array:
    """(K,d) -> (K,K); a zero row has cosine 0 with every row."""
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    unit = np.divide(rows, norms, out=np.zeros_like(rows), where=norms > 0)
    found: Array = unit @ unit.T
    return found


def _etf_cosines(num_classes: int) -> Array:
    """1 on the diagonal, −1/(K−1) off it."""
    identity = np.eye(num_classes)
    return identity - (1 - identity) / (num_classes - 1)


def confusion(predictions: torch.Tensor, targets: torch.Tensor, num_classes: int) -> Array:
    """Shares (K,K); the rows of classes with samples sum to 1."""
    pairs = _array(targets).astype(int) * num_classes + _array(predictions).astype(int)
    counts: Array = np.bincount(pairs, minlength=num_classes**2).reshape(num_classes, num_classes)
    shares: Array = counts / counts.sum(axis=1, keepdims=True).clip(1)
    return shares


def _array(tensor: torch.Tensor) -> Array:
    """A tensor of any device and precision as a float64 array."""
    array: Array = tensor.detach().to("cpu", torch.float64).numpy()
    return array
