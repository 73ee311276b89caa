"""Signatures of imbalance: minority collapse, the SELI geometry, and norms that follow the class sizes.

Classifier rows and centered class means (K, d) in float64; class_counts (K,) are those of the training split.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ncflow.metrics.pairs import pairwise_cosines, unit_rows


def minority_cosine(weight: Tensor, class_counts: Tensor) -> Tensor:
    """Mean cosine between classifier rows of the rarest third of the classes (at least two).

    -1/(K-1) for a simplex ETF, 1 when the minority classes have collapsed onto each other. Fang et al. 2021.
    """
    return pairwise_cosines(weight[_minority(class_counts)]).mean()


def majority_minority_cosine(weight: Tensor, class_counts: Tensor) -> Tensor:
    """Mean cosine between classifier rows of the rarest third of the classes (at least two) and those of the others.

    -1/(K-1) for a simplex ETF. Not defined for two classes, which are the rarest both. Fang et al. 2021.
    """
    minority = torch.zeros(len(weight), dtype=torch.bool, device=weight.device)
    minority[_minority(class_counts)] = True
    unit = unit_rows(weight)
    return (unit[minority] @ unit[~minority].mT).mean()


def seli_error(gram: Tensor, ideal_rows: Tensor) -> Tensor:
    """Distance of a Gram matrix (K, K) to that of SELI rows (K, K), both of unit norm. In [0, sqrt(2)], 0 under SELI.

    `geometry.seli_frame` gives the rows of the classifier and of the class means. Thrampoulidis et al. 2022.
    """
    ideal = ideal_rows @ ideal_rows.mT
    return torch.linalg.matrix_norm(gram / torch.linalg.matrix_norm(gram) - ideal / torch.linalg.matrix_norm(ideal))


def norm_slope(rows: Tensor, class_counts: Tensor, blur: Tensor | float = 0.0) -> Tensor:
    """Least-squares slope of the log norm of rows (K, d) on log n_k. 0 at collapse.

    Not defined when all classes are of one size, or where a row is no longer than `blur`, which is rounding.
    """
    sizes = class_counts.log()
    sizes = sizes - sizes.mean()
    norms = torch.linalg.vector_norm(rows, dim=1)
    return sizes @ norms.masked_fill(norms <= blur, torch.nan).log() / sizes.square().sum()


def _minority(class_counts: Tensor) -> Tensor:
    """The indices of the rarest third of the classes, at least two."""
    return rarest(class_counts, max(2, round(len(class_counts) / 3)))


def rarest(class_counts: Tensor, number: int) -> Tensor:
    """The indices of the `number` classes with the fewest samples; among equals the later ones."""
    return torch.argsort(class_counts, descending=True, stable=True)[-number:]
