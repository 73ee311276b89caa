"""Signatures of imbalance: minority collapse, the SELI geometry, and norms that follow the class sizes.

Classifier rows and centered class means (K, d) in float64; class_counts (K,) are those of the training split.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ncflow.metrics import crowded
from ncflow.metrics.pairs import unit_rows
from ncflow.metrics.rows import EITHER, Metric

if TYPE_CHECKING:
    from ncflow.metrics.analysis import Analysis
    from ncflow.metrics.frame import Frame


def minority_cosine(weight: Tensor, class_counts: Tensor) -> Tensor:
    """Mean cosine between classifier rows of the rarest third of the classes (at least two).

    -1/(K-1) for a simplex ETF, 1 when the minority classes have collapsed onto each other. Fang et al. 2021.
    """
    unit = unit_rows(weight[_minority(class_counts)])
    return (unit.sum(0).square().sum() - unit.square().sum()) / (len(unit) * (len(unit) - 1))


def majority_minority_cosine(weight: Tensor, class_counts: Tensor) -> Tensor:
    """Mean cosine between classifier rows of the rarest third of the classes (at least two) and those of the others.

    -1/(K-1) for a simplex ETF. Not defined for two classes, because both are in the rarest third. Fang et al. 2021.
    """
    minority = torch.zeros(len(weight), dtype=torch.bool, device=weight.device)
    minority[_minority(class_counts)] = True
    unit = unit_rows(weight)
    return unit[minority].mean(0) @ unit[~minority].mean(0)


def seli_error(gram: Tensor, ideal_rows: Tensor) -> Tensor:
    """Distance of a Gram matrix (K, K) to that of SELI rows (K, K), both of unit norm. In [0, sqrt(2)], 0 under SELI.

    `geometry.seli_frame` gives the rows of the classifier and of the class means. Thrampoulidis et al. 2022.
    """
    ideal = ideal_rows @ ideal_rows.mT
    return torch.linalg.matrix_norm(gram / torch.linalg.matrix_norm(gram) - ideal / torch.linalg.matrix_norm(ideal))


def norm_slope(rows: Tensor, class_counts: Tensor, blur: Tensor | float = 0.0) -> Tensor:
    """Least-squares slope of the log norm of rows (K, d) on log n_k. 0 at collapse.

    Not defined when all classes have the same size, or when a row is rounding, not longer than `blur`.
    """
    sizes = class_counts.log()
    sizes = sizes - sizes.mean()
    norms = torch.linalg.vector_norm(rows, dim=1)
    return sizes @ norms.masked_fill(norms <= blur, torch.nan).log() / sizes.square().sum()


def _minority(class_counts: Tensor) -> Tensor:
    """The indices of the rarest third of the classes, at least two."""
    return rarest(class_counts, max(2, round(len(class_counts) / 3)))


def rarest(class_counts: Tensor, number: int) -> Tensor:
    """The indices of the `number` classes with the fewest samples. Ties go to the later classes."""
    return torch.argsort(class_counts, descending=True, stable=True)[-number:]


def _minority_cosine(a: Analysis) -> Tensor | None:
    return minority_cosine(a.rows.rows, a.class_counts) if a.rows else None


def _majority_minority_cosine(a: Analysis) -> Tensor | None:
    if a.rows is None or len(a.class_counts) < 3:
        return None
    return majority_minority_cosine(a.rows.rows, a.class_counts)


def _seli_error_weight(a: Analysis) -> Tensor | None:
    if a.rows is None or not bool((a.class_counts > 0).all()):
        return None
    if a.rows.crowded:
        return crowded.seli_error(a.rows, a.class_counts, of="weight")
    return seli_error(a.rows.gram, a.seli[0])


def _seli_error_means(a: Analysis) -> Tensor | None:
    counts = a.class_counts[a.moments.counts > 0]
    if a.means is None or not bool((counts > 0).all()):
        return None
    if a.means.crowded:
        return crowded.seli_error(a.means, counts, of="means")
    return seli_error(a.means.gram, a.seli_means)


def _norm_slope(frame: Frame | None, sizes: Tensor) -> Tensor | None:
    if frame is None or not bool((sizes > 0).all() and (sizes != sizes[0]).any()):
        return None
    return norm_slope(frame.rows, sizes, frame.blur)


FANG, THRAMPOULIDIS = "Fang et al. 2021", "Thrampoulidis et al. 2022"
METRICS: dict[str, Metric] = {
    "imbalance/minority_cosine": Metric(
        _minority_cosine,
        "mean cos(w_i, w_j) over pairs of the rarest third of the classes; 1 is minority collapse",
        "[−1, 1]",
        "−1/(K−1)",
        EITHER,
        FANG,
    ),
    "imbalance/majority_minority_cosine": Metric(
        _majority_minority_cosine,
        "mean cos(w_i, w_j), i in the rarest third of the classes and j not",
        "[−1, 1]",
        "−1/(K−1)",
        EITHER,
        FANG,
    ),
    "imbalance/seli_error_weight": Metric(
        _seli_error_weight,
        "‖G/‖G‖_F − S/‖S‖_F‖_F, G = WWᵀ, S = VΛVᵀ with MDM = VΛ²Vᵀ",
        "[0, √2]",
        "0",
        EITHER,
        THRAMPOULIDIS,
    ),
    "imbalance/seli_error_means": Metric(
        _seli_error_means, "the same, G = μ̃μ̃ᵀ, S = VΛ⁺Vᵀ", "[0, √2]", "0", "train", THRAMPOULIDIS
    ),
    "imbalance/norm_slope": Metric(
        lambda a: _norm_slope(a.rows, a.class_counts),
        "slope of log‖w_k‖ on log n_k, by least squares",
        "(−∞, ∞)",
        "—",
        EITHER,
    ),
    "imbalance/norm_slope_means": Metric(
        lambda a: _norm_slope(a.means, a.class_counts[a.moments.counts > 0]),
        "the same of ‖μ̃_k‖",
        "(−∞, ∞)",
        "—",
        "train",
    ),
}
