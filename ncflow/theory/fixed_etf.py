"""A classifier fixed to a simplex ETF: features align with it and have equal norms for all class sizes."""

from __future__ import annotations

import math

import torch

from ncflow.geometry import simplex_etf
from ncflow.theory.logs import log_one_plus
from ncflow.theory.optimum import Counts, Optimum, check_positive, check_problem
from ncflow.theory.roots import rising_root


def fixed_etf_optimum(class_counts: Counts, *, feature_norm: float, weight_norm: float = 1.0) -> Optimum:
    """The features of least cross-entropy among ‖h‖ <= r, W a simplex ETF with rows of length ω: h_k = (r/ω) w_k.

    The class sizes have no effect. The logits are r ω at the own class and -r ω/(K-1) elsewhere. K = 10, r = 5, ω = 1:
    5 and -.556. There, dot regression ½ (w_y·h - sqrt(E_W E_H))²/sqrt(E_W E_H) is 0 for r² = E_H, ω² = E_W. Raises
    ValueError for r < 0 or ω <= 0. [Yang et al. 2022](https://arxiv.org/abs/2203.09081).
    """
    counts = check_problem(class_counts, 1.0, 1.0)
    if not (feature_norm >= 0 and weight_norm > 0):
        raise ValueError(f"expected feature_norm >= 0 and weight_norm > 0, got {feature_norm} and {weight_norm}")
    check_positive(LONGEST, feature_norm=feature_norm or 1.0, weight_norm=weight_norm)
    etf = simplex_etf(len(counts), dtype=counts.dtype)
    return Optimum(weight_norm * etf, feature_norm * etf, counts)


def fixed_etf_relu_optimum(class_counts: Counts, *, feature_norm: float, weight_norm: float = 1.0) -> Optimum:
    """The features of least cross-entropy with 0 <= h, ‖h‖ <= r, W the canonical ETF in d >= K: h_k = r e_k.

    h cannot match the negative entries of w_k, so cos(h_k, w_k) = sqrt((K-1)/K). The logits are
    r ω sqrt(K/(K-1)) (e_k - 1/K). Own minus other is r ω sqrt(K/(K-1)); for features of any sign it is larger by that
    root. K = 10, r = 5, ω = 1: 4.74 and -.527. A rotated ETF has another optimum. Raises ValueError for r < 0 or
    ω <= 0.
    """
    etf = fixed_etf_optimum(class_counts, feature_norm=feature_norm, weight_norm=weight_norm)
    axes = torch.eye(len(etf.class_counts), dtype=torch.float64)
    return Optimum(etf.weight, feature_norm * axes, etf.class_counts)


def fixed_etf_feature_norm(class_counts: Counts, *, lambda_h: float, weight_norm: float = 1.0) -> float:
    """The optimal ‖h‖ = r under cross-entropy with weight decay λ_H on the features, equal for all classes.

    With s = ω K/(K-1), the probability of the other classes is 1 - p = (K-1)/(K-1 + exp(s r)). r is the root of
    s (1 - p) = N λ_H r. Only the sum N = Σ n_k of the class sizes matters. K = 10, N = 1000, λ_H = 5e-4, ω = 1:
    r = 1.44.
    """
    counts = check_problem(class_counts, 1.0, lambda_h)
    check_positive(LONGEST, weight_norm=weight_norm)
    log_others = math.log(len(counts) - 1)
    log_stretch = math.log(weight_norm) + math.log(len(counts)) - log_others
    ease = 2 * log_stretch - counts.sum().log().item() - math.log(lambda_h)  # log s²/(N λ_H)

    def pull(log_x: float) -> float:  # log of the equation in x = s r: log x - log(1 - p) = log s²/(N λ_H)
        return log_x + log_one_plus(math.exp(log_x) - log_others) - ease

    largest = max(1.0, ease + log_others)
    log_x = rising_root(pull, ease - log_one_plus(largest - log_others) - 1, math.log(largest))
    return math.exp(log_x - log_stretch)


LONGEST = 1e150  # limit of row and feature norms: their product, the logits, must fit in float64
