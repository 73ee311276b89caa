"""Cross-entropy as weight decay vanishes: simplex-encoded-labels interpolation (SELI), for all class sizes."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ncflow.geometry import seli_frame
from ncflow.theory.optimum import MOST, Counts, Optimum, check_positive, check_problem, exchanged


def seli_optimum(class_counts: Counts, *, lambda_w: float = 1.0, lambda_h: float = 1.0) -> Optimum:
    """The least W and H̄ with every margin (w_y - w_c)·h >= 1, the support vector machine of free features.

    Z = I - J/K. With (I - J/K) D (I - J/K) = V Λ² Vᵀ: W Wᵀ = sqrt(λ_H/λ_W) V Λ Vᵀ, H̄ H̄ᵀ = sqrt(λ_W/λ_H) V Λ⁺ Vᵀ.
    `ncflow.geometry.seli_frame` gives the rows. Cross-entropy approaches these directions logarithmically as λ goes to
    0. [Thrampoulidis et al. 2022](https://arxiv.org/abs/2208.05512).

    Examples:
        >>> optimum = seli_optimum([100, 10, 10])
        >>> optimum.weight.shape[0]
        3
    """
    counts = check_problem(class_counts, lambda_w, lambda_h)
    weight, means = seli_frame(counts)
    return exchanged(weight, means, counts, lambda_w=lambda_w, lambda_h=lambda_h)


@dataclass(frozen=True)
class StepGeometry:
    """The SELI classifier of K/2 frequent and K/2 rare classes: squared norms and cosines within and between them."""

    major_norm_squared: float
    minor_norm_squared: float
    major_cosine: float
    minor_cosine: float
    between_cosine: float


def seli_step(num_classes: int, ratio: float) -> StepGeometry:
    """The classifier of `seli_optimum` for K/2 classes of R samples and K/2 of one, in closed form; K even and >= 4.

    With s = sqrt((R+1)/2): ‖w_maj‖² = sqrt(R)(1 - 2/K) + s/K, ‖w_min‖² = (1 - 2/K) + s/K, cos(maj,maj) =
    (s - 2 sqrt(R))/(sqrt(R)(K-2) + s), cos(min,min) = (s-2)/(K-2+s), ⟨w_maj, w_min⟩ = -s/K. K = 10: cos(min,min) =
    -.111, .033, .338, .671 at R = 1, 10, 100, 1000. Raises ValueError for other K, or R <= 0.
    """
    check_step(num_classes, ratio)
    s, root = math.sqrt((ratio + 1) / 2), math.sqrt(ratio)
    major, minor = root * (num_classes - 2) + s, num_classes - 2 + s  # K ‖w‖²
    return StepGeometry(
        major_norm_squared=major / num_classes,
        minor_norm_squared=minor / num_classes,
        major_cosine=(s - 2 * root) / major,
        minor_cosine=(s - 2) / minor,
        between_cosine=-s / math.sqrt(major * minor),
    )


def check_step(num_classes: int, ratio: float) -> None:
    """Raise ValueError for a step profile without two halves of at least two classes each."""
    if num_classes < 4 or num_classes % 2 or not ratio > 0:
        raise ValueError(f"expected an even num_classes >= 4 and ratio > 0, got {num_classes} and {ratio}")
    check_positive(MOST, ratio=ratio)
