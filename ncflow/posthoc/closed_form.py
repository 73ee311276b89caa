"""Post-hoc classifiers in closed form: adjusted logits, normalized rows, and the geometry of the class means."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ncflow import geometry
from ncflow.lookup import facts
from ncflow.posthoc.frozen import Frozen, Lacking, LinearMap
from ncflow.training.evaluation import DEFAULT_TAU, TAUS

TENTHS = tuple(tenth / 10 for tenth in range(11))


@facts(candidates={"tau": TAUS}, needs=("log_probabilities", "sizes_uncorrected"))
def logit_adjustment(frozen: Frozen, *, tau: float = DEFAULT_TAU) -> LinearMap:
    """z - τ log π with class priors π: the bias b - τ log π. τ = 0 is the classifier itself.

    The default τ = 1 is Fisher consistent for the balanced error. [Menon et al.
    2021](https://arxiv.org/abs/2007.07314).
    """
    return LinearMap(frozen.weight, frozen.bias - _exponent(tau) * frozen.priors.log())


@facts(candidates={"tau": TENTHS}, needs=("sizes_uncorrected",))
def multiplicative(frozen: Frozen, *, tau: float = 0.4) -> LinearMap:
    """z·π^(-τ) with class priors π: longer rows for rare classes. τ = 0 is the classifier itself.

    Suits rows of equal length, as those of an ETF. Default: let features spread around their means in proportion to
    n^(-1/2). Then the best boundary between orthogonal rows moves, to first order, as with τ = π/8 ≈ 0.4 (here π is the
    circle's). [Hasegawa and Sato 2025](https://arxiv.org/abs/2409.17582).
    """
    return _scaled(frozen, frozen.priors.pow(-_exponent(tau)))


@facts(candidates={"tau": tuple(tenth / 10 for tenth in range(21))})
def tau_norm(frozen: Frozen, *, tau: float = 0.7) -> LinearMap:
    """z_k/‖w_k‖^τ: rows of more equal length, and τ = 1 gives unit rows. τ = 0 is the classifier itself.

    A bias is scaled with its row; the paper drops it. Kang et al. choose τ on validation data: the default is their
    value for ImageNet-LT. [Kang et al. 2020](https://arxiv.org/abs/1910.09217). Raises Lacking for a zero row.
    """
    norms = torch.linalg.vector_norm(frozen.weight, dim=1)
    if tau and not bool((norms > 0).all()):
        raise Lacking(f"tau_norm needs classifier rows of positive length, got a shortest of {norms.min().item():g}")
    return _scaled(frozen, norms.pow(-_exponent(tau)))


def ncm(frozen: Frozen) -> LinearMap:
    """The nearest class mean: w = μ and b = -‖μ‖²/2, so that argmax_k w_k·h + b_k = argmin_k ‖h - μ_k‖.

    [Mensink et al. 2013](https://doi.org/10.1109/TPAMI.2013.83).
    """
    return LinearMap(frozen.class_means, -frozen.class_means.square().sum(1) / 2)


def nearest_etf(frozen: Frozen) -> LinearMap:
    """The simplex ETF nearest to the class means, applied to features minus the mean of the class means.

    On class means that are an ETF, shifted and scaled by any amount, it decides as `ncm`. Raises Lacking for d < K-1.
    [Markou et al. 2024](https://arxiv.org/abs/2411.01248).
    """
    means = frozen.class_means
    num_classes, num_features = means.shape
    if num_features < num_classes - 1:
        raise Lacking(
            f"nearest_etf needs num_features >= num_classes - 1, got {num_features} and {num_classes}; use ncm instead"
        )
    rows = geometry.nearest_etf(means)
    return LinearMap(rows, -rows @ means.mean(0))


def _scaled(frozen: Frozen, scales: Tensor) -> LinearMap:
    """The classifier with logits s_k z_k, for scales s (K,)."""
    return LinearMap(scales.unsqueeze(1) * frozen.weight, scales * frozen.bias)


def _exponent(tau: float) -> float:
    if not 0 <= tau < math.inf:
        raise ValueError(f"expected a finite tau >= 0, got {tau}")
    return tau
