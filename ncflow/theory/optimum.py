"""What neural collapse leads to: one feature per class and one classifier row per class, known up to a rotation.

The objective of unconstrained features, K classes of n_k samples, N = Σ n_k, loss ℓ of the logits z_k = W h_k:

    (1/N) Σ_k n_k ℓ(z_k, k) + (λ_W/2) ‖W‖² + (λ_H/2) Σ_k n_k ‖h_k‖²

It is the loss of full-batch training with weight decay λ_W on the classifier and λ_H on the features. In the logits Z
(K, K), row k those of class k, it is convex: data(Z) + sqrt(λ_W λ_H) ‖D^½ Z‖_*, D = diag(n). The factors of D^½ Z then
follow from its singular value decomposition, so a regime has only to say which logits are optimal.
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

    Cosines of a row that has died, and so has no direction, are NaN.
    """

    weight: Tensor
    class_means: Tensor
    class_counts: Tensor

    @property
    def logits(self) -> Tensor:
        """(K, K), row k those of the samples of class k."""
        return self.class_means @ self.weight.mT

    @property
    def rank(self) -> int:
        """How many dimensions the rows span: the least width d that has room for them. In [0, K]."""
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
        """cos(h_i, h_j) (K, K), of the class means as they are, not centered."""
        return _cosines(self.class_means)


def optimum_of_logits(logits: Tensor, class_counts: Counts, *, lambda_w: float, lambda_h: float) -> Optimum:
    """The W and H̄ of least (λ_W/2)‖W‖² + (λ_H/2) Σ n_k‖h_k‖² with H̄Wᵀ = logits (K, K), row k those of class k.

    With the singular value decomposition D^½ Z = U S Vᵀ: W = (λ_H/λ_W)^¼ V S^½ Vᵀ, H̄ = (λ_W/λ_H)^¼ D^-½ U S^½ Vᵀ.
    """
    counts = check_problem(class_counts, lambda_w, lambda_h)
    roots = counts.sqrt().unsqueeze(1)
    scaled = roots * logits.double().to(counts.device)
    u, s, vh = torch.linalg.svd(scaled)
    # The root would turn a singular value of rounding size, 1e-16, into a visible 1e-8.
    quarter = torch.where(s > rounding_level(scaled), s, 0).sqrt()
    return exchanged((vh.mT * quarter) @ vh, (u * quarter) @ vh / roots, counts, lambda_w=lambda_w, lambda_h=lambda_h)


def exchanged(weight: Tensor, class_means: Tensor, counts: Tensor, *, lambda_w: float, lambda_h: float) -> Optimum:
    """The optimum with the same logits, λ_W and λ_H apart, from W and H̄ that are optimal for λ_W = λ_H.

    The cheaper of the two grows: W times (λ_H/λ_W)^¼, H̄ divided by it.
    """
    exchange = lambda_h**0.25 / lambda_w**0.25
    return Optimum(exchange * weight, class_means / exchange, counts)


def pressure(class_counts: Counts, *, lambda_w: float, lambda_h: float) -> Tensor:
    """What a class costs against what it earns, m_k = N sqrt(λ_W λ_H / n_k) (K,): from 1 on it does not pay.

    The one number that decides in every regime: at m_k >= 1, that is n_k <= N² λ_W λ_H, a class vanishes under squared
    error, and merges with those of its size under cross-entropy. inf where it is no float64.
    """
    return log_pressure(class_counts, lambda_w=lambda_w, lambda_h=lambda_h).exp()


def log_pressure(class_counts: Counts, *, lambda_w: float, lambda_h: float) -> Tensor:
    """log m_k (K,), finite for every λ: the product of two small ones, and m itself, may be no float64."""
    counts = check_problem(class_counts, lambda_w, lambda_h)
    return counts.sum().log() + (math.log(lambda_w) + math.log(lambda_h) - counts.log()) / 2


def check_problem(class_counts: Counts, lambda_w: float, lambda_h: float) -> Tensor:
    """The class counts (K,) in float64; a ValueError for what has no optimum, or none of this form."""
    counts = counts_tensor(class_counts)
    if counts.ndim != 1 or len(counts) < 2 or not bool((counts > 0).all()):
        raise ValueError(f"expected at least two classes, each with samples, got class_counts={shown(counts)}")
    if not MOST**-1 <= counts.min() <= counts.max() <= MOST:
        raise ValueError(f"expected class sizes from {MOST**-1:g} to {MOST:g}, got class_counts={shown(counts)}")
    if not (0 < lambda_w < math.inf and 0 < lambda_h < math.inf):
        raise ValueError(
            f"expected lambda_w > 0 and lambda_h > 0, got {lambda_w} and {lambda_h}; without weight decay "
            "the norms grow for ever, and seli_optimum has the limit of their directions"
        )
    check_positive(HUGE, lambda_w=lambda_w, lambda_h=lambda_h)
    return counts


def check_positive(most: float, **values: float) -> None:
    """Raise where a value, called by its name, does not lie between 1/most and `most`, where float64 has room."""
    for name, value in values.items():
        if not 1 / most <= value <= most:
            raise ValueError(f"expected {name} from {1 / most:g} to {most:g}, got {value}")


def lengths(rows: Tensor) -> Tensor:
    """‖row‖ (K,) of rows (K, d) of any size: squares of 1e-200 and 1e200 have no float64 of their own."""
    scale = 2.0 ** math.frexp(rows.abs().max().item())[1]  # a power of two changes no digit
    return torch.linalg.vector_norm(rows / scale, dim=1) * scale


def shown(counts: Tensor) -> str:
    """Class sizes in an error: a few in full, of many the first."""
    return shortened(counts.tolist()) if len(counts.reshape(-1)) > MANY else str(counts.tolist())


def _rank(rows: Tensor) -> int:
    """Singular values that are not rounding, nor next to none."""
    values: Tensor = torch.linalg.svdvals(rows / rows.abs().max().clamp(min=torch.finfo(rows.dtype).tiny))
    return int((values > 1e-8 * values.max()).sum())


def _cosines(rows: Tensor) -> Tensor:
    units = rows / lengths(rows).unsqueeze(1)
    return units @ units.mT


MOST = 1e15  # samples of a class: beyond, float64 does not count one by one
HUGE = 1e300  # of a factor of weight decay
MANY = 12  # class sizes that an error shows in full
