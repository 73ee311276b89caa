"""Signatures of imbalance: minority collapse, the SELI geometry, and norms that follow the class sizes.

Classifier rows and centered class means (K, d) in float64; class_counts (K,) are those of the training split.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ncflow.metrics.pairs import pairwise_cosines


def minority_cosine(weight: Tensor, class_counts: Tensor) -> Tensor:
    """Mean cosine between classifier rows of the rarest third of the classes (at least two).

    -1/(K-1) for a simplex ETF, 1 when the minority classes have collapsed onto each other. Fang et al. 2021.
    """
    return pairwise_cosines(weight[rarest(class_counts, max(2, round(len(weight) / 3)))]).mean()


def seli_error(gram: Tensor, ideal_rows: Tensor) -> Tensor:
    """Distance of a Gram matrix (K, K) to that of SELI rows (K, K), both of unit norm. In [0, sqrt(2)], 0 under SELI.

    `geometry.seli_frame` gives the rows of the classifier and of the class means. Thrampoulidis et al. 2022.
    """
    ideal = ideal_rows @ ideal_rows.mT
    return torch.linalg.matrix_norm(gram / torch.linalg.matrix_norm(gram) - ideal / torch.linalg.matrix_norm(ideal))


def norm_slope(weight: Tensor, class_counts: Tensor) -> Tensor:
    """Least-squares slope of log‖w_k‖ on log n_k. 0 at collapse; not defined when all classes are of one size."""
    sizes = class_counts.log()
    sizes = sizes - sizes.mean()
    return sizes @ torch.linalg.vector_norm(weight, dim=1).log() / sizes.square().sum()


def rarest(class_counts: Tensor, number: int) -> Tensor:
    """The indices of the `number` classes with the fewest samples; among equals the later ones."""
    return torch.argsort(class_counts, descending=True, stable=True)[-number:]
