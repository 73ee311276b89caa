"""The closed form as one would write it first: an SVD in float64, and autograd for all that is around it."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def nearest_etf_svd(class_means: Tensor, *, anchor: Tensor, proximal: float) -> Tensor:
    """W (K, d) by the polar factor of (2/sqrt(K-1)) H̄M + δ P_prev (d, K), of which the direction of 1 drops out."""
    num_classes = len(class_means)
    means = class_means.double()
    centered = means - means.mean(0)
    stretch = math.sqrt(num_classes / (num_classes - 1))
    target = 2 / math.sqrt(num_classes - 1) * centered / centered.norm() + proximal / stretch * anchor
    # Any vector outside of the span of A completes it; d > K-1 has one.
    u, _, vh = _svd(target.mT)
    return (stretch * (u @ vh).mT).to(class_means)


def _svd(a: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    u, s, vh = torch.linalg.svd(a, full_matrices=False)
    return u[:, :-1], s[:-1], vh[:-1]
