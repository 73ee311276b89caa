"""Cross-entropy on balanced classes: the optimum is a simplex ETF, and weight decay sets its size."""

from __future__ import annotations

import math

import torch

from ncflow.theory.optimum import Counts, Optimum, check_problem, log_pressure, optimum_of_logits, shown


def balanced_ce_optimum(class_counts: Counts, *, lambda_w: float, lambda_h: float) -> Optimum:
    """The optimum of cross-entropy without bias on K classes of n samples each.

    With c = sqrt(n λ_W λ_H) < 1/K: Z = α (I - J/K), α = log(1/c - (K-1)), ‖w_k‖² = sqrt(n λ_H/λ_W) α (K-1)/K and
    ‖h_k‖² = sqrt(λ_W/(n λ_H)) α (K-1)/K. Both are a simplex ETF. For c >= 1/K both are 0. K = 10, n = 100,
    λ_W = λ_H = 5e-4: α = 5.25, ‖w‖² = 47.2, ‖h‖² = 0.472. Raises ValueError for classes of different sizes.
    Zhu et al. 2021.
    """
    counts = check_problem(class_counts, lambda_w, lambda_h)
    if bool((counts != counts[0]).any()):
        raise ValueError(f"expected classes of one size, got class_counts={shown(counts)}; see step_ce_optimum")
    num_classes = len(counts)
    log_m = log_pressure(counts, lambda_w=lambda_w, lambda_h=lambda_h)[0].item()  # m = c K
    alpha = math.log1p(-(num_classes - 1) * math.expm1(log_m)) - log_m if log_m < 0 else 0.0
    etf = torch.eye(num_classes, dtype=torch.float64) - 1 / num_classes
    return optimum_of_logits(alpha * etf, counts, lambda_w=lambda_w, lambda_h=lambda_h)
