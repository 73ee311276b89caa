"""Squared error on classes of any size: an orthogonal frame whose axes shrink for rare classes and finally vanish."""

from __future__ import annotations

from ncflow.theory.optimum import Counts, Optimum, optimum_of_logits, pressure


def mse_optimum(class_counts: Counts, *, lambda_w: float, lambda_h: float) -> Optimum:
    """The optimum of ½‖z - e_y‖² without bias, where the classes do not interact.

    Z = diag(z) with z_k = max(0, 1 - N sqrt(λ_W λ_H/n_k)), ‖w_k‖² = sqrt(n_k λ_H/λ_W) z_k and ‖h_k‖² = sqrt(λ_W/(n_k
    λ_H)) z_k, with all rows orthogonal. A class vanishes exactly when n_k <= N² λ_W λ_H. Counts (90, 10), λ_W = λ_H =
    0.01: z = (0.895, 0.684), ‖w‖² = (8.49, 2.16). To multiply the loss by s is equivalent to dividing both λ by s.
    [Dang et al. 2023](https://arxiv.org/abs/2301.00437).
    """
    m = pressure(class_counts, lambda_w=lambda_w, lambda_h=lambda_h)
    return optimum_of_logits((1 - m).clamp(min=0).diag(), class_counts, lambda_w=lambda_w, lambda_h=lambda_h)
