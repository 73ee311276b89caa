"""Cross-entropy on nonnegative features, as after a ReLU: orthogonal class means for all class sizes."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ncflow.theory.optimum import Counts, Optimum, check_problem, exchanged, log_pressure


def relu_ce_optimum(class_counts: Counts, *, lambda_w: float, lambda_h: float) -> Optimum:
    """The optimum of cross-entropy without bias on features h >= 0, with one coordinate axis per class.

    With m_k = N sqrt(λ_W λ_H (K-1)/(K n_k)) and α_k = log((K-1)(1-m_k)/m_k) while m_k < (K-1)/K, else 0: h_k = ‖h_k‖
    e_k with ‖h_k‖² = sqrt(λ_W (K-1)/(λ_H n_k K)) α_k, and logits z_k = α_k (e_k - 1/K). The classes decouple, and one
    vanishes exactly when n_k <= N² λ_W λ_H K/(K-1). Counts (90, 10), λ_W = λ_H = 0.01: α = (2.52, 1.24), ‖h‖² = (0.188,
    0.278). [Dang et al. 2024](https://arxiv.org/abs/2401.02058).
    """
    counts = check_problem(class_counts, lambda_w, lambda_h)
    num_classes = len(counts)
    share = (num_classes - 1) / num_classes
    log_m = log_pressure(counts, lambda_w=lambda_w, lambda_h=lambda_h) + math.log(share) / 2
    alpha = math.log(num_classes - 1) + torch.log1p(-log_m.exp().clamp(max=share)) - log_m
    return _on_axes(alpha.clamp(min=0), counts, lambda_w=lambda_w, lambda_h=lambda_h)


def relu_limit(class_counts: Counts, *, lambda_w: float = 1.0, lambda_h: float = 1.0) -> Optimum:
    """The least W and H̄ >= 0 with every margin (w_y - w_c)·h >= 1: `seli_optimum` for nonnegative features.

    h_k = ‖h_k‖ e_k with ‖h_k‖² = sqrt(λ_W (K-1)/(λ_H n_k K)), and logits I - J/K. Cross-entropy on nonnegative features
    approaches these directions logarithmically as λ goes to 0. ‖h_k‖ is proportional to n_k^(-¼). [Dang et al.
    2024](https://arxiv.org/abs/2401.02058).
    """
    counts = check_problem(class_counts, lambda_w, lambda_h)
    return _on_axes(torch.ones_like(counts), counts, lambda_w=lambda_w, lambda_h=lambda_h)


def _on_axes(alpha: Tensor, counts: Tensor, *, lambda_w: float, lambda_h: float) -> Optimum:
    """The factors of least cost of logits z_k = α_k (e_k - 1/K), with features on axes, one axis per class."""
    num_classes = len(counts)
    share = (num_classes - 1) / num_classes  # ‖e_k - 1/K‖²
    norms = (share / counts).pow(0.25) * alpha.sqrt()
    slopes = (counts / share).pow(0.25) * alpha.sqrt()  # α_k / ‖h_k‖, also where both are 0
    weight = (torch.eye(num_classes, dtype=torch.float64, device=counts.device) - 1 / num_classes) * slopes
    return exchanged(weight, norms.diag(), counts, lambda_w=lambda_w, lambda_h=lambda_h)
