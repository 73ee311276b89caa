"""The optimum that neural collapse leads to: one feature and one classifier row per class, up to a rotation.

The objective of unconstrained features has K classes of n_k samples, N = Σ n_k, and a loss ℓ of the logits z_k = W h_k:

    (1/N) Σ_k n_k ℓ(z_k, k) + (λ_W/2) ‖W‖² + (λ_H/2) Σ_k n_k ‖h_k‖²

It is the loss of full-batch training with weight decay λ_W on the classifier and λ_H on the features. In the logits Z
(K, K), with row k for class k, it is convex: data(Z) + sqrt(λ_W λ_H) ‖D^½ Z‖_*, D = diag(n). The singular value
decomposition of D^½ Z then gives W and H̄. Each regime therefore needs to find only the optimal logits.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from reprlib import repr as shortened

import torch
from torch import Tensor

from ncflow.checks import counts_tensor
from ncflow.geometry.frames import rounding_level

Counts = Sequence[float] | Tensor


@dataclass(frozen=True, eq=False)
class Optimum:
    """weight (K, d) and class_means (K, d), up to a rotation of R^d, for class_counts (K,); all in float64.

    Cosines of a zero row are NaN, because it has no direction.
    """

    weight: Tensor
    class_means: Tensor
    class_counts: Tensor

    @property
    def logits(self) -> Tensor:
        """Z (K, K), with row k for the samples of class k."""
        return self.class_means @ self.weight.mT

    @property
    def rank(self) -> int:
        """The number of dimensions that the rows span, which is the least possible width d. In [0, K]."""
        return max(_rank(self.weight), _rank(self.class_means))

    @property
    def weight_norms(self) -> Tensor:
        """‖w_k‖ (K,)."""
        return lengths(self.weight)

    @property
    def mean_norms(self) -> Tensor:
        """‖h_k‖ (K,)."""
        return lengths(self.class_means)

    @property
    def weight_cosines(self) -> Tensor:
        """cos(w_i, w_j) (K, K)."""
        return _cosines(self.weight)

    @property
    def mean_cosines(self) -> Tensor:
        """cos(h_i, h_j) (K, K), of the class means, not centered."""
        return _cosines(self.class_means)


def optimum_of_logits(logits: Tensor, class_counts: Counts, *, lambda_w: float, lambda_h: float) -> Optimum:
    """The W and H̄ of least (λ_W/2)‖W‖² + (λ_H/2) Σ n_k‖h_k‖² with H̄Wᵀ = logits (K, K), row k for class k.

    With the singular value decomposition D^½ Z = U S Vᵀ: W = (λ_H/λ_W)^¼ V S^½ Vᵀ, H̄ = (λ_W/λ_H)^¼ D^-½ U S^½ Vᵀ.
    """
    counts = check_problem(class_counts, lambda_w, lambda_h)
    roots = counts.sqrt().unsqueeze(1)
    scaled = roots * logits.double().to(counts.device)
    u, s, vh = torch.linalg.svd(scaled)
    # The root would turn a rounding error of 1e-16 in a singular value into a visible 1e-8.
    quarter = torch.where(s > rounding_level(scaled), s, 0).sqrt()
    return exchanged((vh.mT * quarter) @ vh, (u * quarter) @ vh / roots, counts, lambda_w=lambda_w, lambda_h=lambda_h)


def exchanged(weight: Tensor, class_means: Tensor, counts: Tensor, *, lambda_w: float, lambda_h: float) -> Optimum:
    """The optimum with the same logits for λ_W and λ_H, from W and H̄ that are optimal for λ_W = λ_H.

    W is multiplied by (λ_H/λ_W)^¼, and H̄ is divided by it.
    """
    exchange = lambda_h**0.25 / lambda_w**0.25
    return Optimum(exchange * weight, class_means / exchange, counts)


def pressure(class_counts: Counts, *, lambda_w: float, lambda_h: float) -> Tensor:
    """The ratio of cost to gain of a class, m_k = N sqrt(λ_W λ_H / n_k) (K,). In (0, ∞].

    At m_k >= 1, that is n_k <= N² λ_W λ_H, a class vanishes under squared error. Under cross-entropy it then merges
    with the classes of its size. This number is decisive in every regime. inf where it overflows float64.
    """
    return log_pressure(class_counts, lambda_w=lambda_w, lambda_h=lambda_h).exp()


def log_pressure(class_counts: Counts, *, lambda_w: float, lambda_h: float) -> Tensor:
    """log m_k (K,), finite for every λ, even where λ_W λ_H or m_k is out of the range of float64."""
    counts = check_problem(class_counts, lambda_w, lambda_h)
    return counts.sum().log() + (math.log(lambda_w) + math.log(lambda_h) - counts.log()) / 2


def check_problem(class_counts: Counts, lambda_w: float, lambda_h: float) -> Tensor:
    """The class counts (K,) in float64. Raises ValueError where there is no optimum of this form."""
    counts = counts_tensor(class_counts)
    if counts.ndim != 1 or len(counts) < 2 or not bool((counts > 0).all()):
        raise ValueError(f"expected at least two classes, each with samples, got class_counts={shown(counts)}")
    if not MOST**-1 <= counts.min() <= counts.max() <= MOST:
        raise ValueError(f"expected class sizes from {MOST**-1:g} to {MOST:g}, got class_counts={shown(counts)}")
    if not (0 < lambda_w < math.inf and 0 < lambda_h < math.inf):
        raise ValueError(
            f"expected lambda_w > 0 and lambda_h > 0, got {lambda_w} and {lambda_h}; without weight decay "
            "the norms grow without bound; for the limit of their directions use seli_optimum"
        )
    check_positive(HUGE, lambda_w=lambda_w, lambda_h=lambda_h)
    return counts


def check_positive(most: float, **values: float) -> None:
    """Raise ValueError where a value is not in [1/most, most], the range that float64 can handle."""
    for name, value in values.items():
        if not 1 / most <= value <= most:
            raise ValueError(f"expected {name} from {1 / most:g} to {most:g}, got {value}")


def lengths(rows: Tensor) -> Tensor:
    """‖row‖ (K,) of rows (K, d) of any size, including 1e-200 and 1e200, whose squares are out of float64's range."""
    scale = 2.0 ** math.frexp(rows.abs().max().item())[1]  # a power of two changes no digit
    return torch.linalg.vector_norm(rows / scale, dim=1) * scale


def shown(counts: Tensor) -> str:
    """The class sizes as text for an error message, shortened to the first ones if there are many."""
    return shortened(counts.tolist()) if len(counts.reshape(-1)) > MANY else str(counts.tolist())


def _rank(rows: Tensor) -> int:
    """The number of singular values that are not negligible."""
    values: Tensor = torch.linalg.svdvals(rows / rows.abs().max().clamp(min=torch.finfo(rows.dtype).tiny))
    return int((values > 1e-8 * values.max()).sum())


def _cosines(rows: Tensor) -> Tensor:
    units = rows / lengths(rows).unsqueeze(1)
    return units @ units.mT


MOST = 1e15  # samples of a class; beyond this, float64 cannot count in steps of one
HUGE = 1e300  # limit of a weight decay factor
MANY = 12  # up to this number of class sizes, an error shows all
