"""Diagnostics of the nearest-ETF head: the objective of its solution, and that of an independent search."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ncflow.checks import where_float64_is
from ncflow.geometry import nearest_etf


def solution_diagnostics(class_means: Tensor, etf: Tensor, *, proximal: float) -> dict[str, float]:
    """Return the value of an ETF W (K, d) in its next step's problem, for class means (K, d).

    H̄ are the centered means of unit Frobenius norm, and δ = `proximal`. The problem is the minimum over the ETFs V of
    ‖H̄ - V/√K‖²_F + (δ/2)(K-1)/K ‖V - W‖²_F, [Markou et al. 2024](https://arxiv.org/abs/2411.01248). "objective" is the
    minimum, in [0, 4]. "distance" is the value of W itself, ‖H̄ - W/√K‖²_F in [0, 4]: 0 at collapse. It is never below
    the objective. The difference is how far W lags behind the means: 0 for δ = 0. Means that all coincide have H̄ = 0.
    The objective stays below 2 for δ = 0. A large δ holds V at W, which may point away from the means: W = -√K H̄ has
    both at 4.
    """
    means, anchor = (where_float64_is(rows).double() for rows in (class_means, etf))
    nearest = nearest_etf(means, proximal=proximal, anchor=anchor)
    return {
        "objective": _objective(nearest, means, anchor, proximal),
        "distance": _objective(anchor, means, anchor, proximal),
    }


def search_diagnostics(
    class_means: Tensor, etf: Tensor, *, proximal: float, tolerance: float = 1e-10, **options: Any
) -> dict[str, float]:
    """Solve the same problem by Riemannian trust regions, without the closed form, and return how the search ended.

    "riemannian_gap" is the search's value minus the closed form's: 0 up to rounding if it found the optimum, else above
    0. "riemannian_converged" is 1 if the gradient fell below the tolerance, and 0 if the search stopped for another
    reason. Seconds include the compilation of the derivatives.
    """
    from ncflow.geometry.riemannian import nearest_etf_riemannian  # imports pymanopt and JAX

    means, anchor = (where_float64_is(rows).double() for rows in (class_means, etf))
    _, search = nearest_etf_riemannian(means, proximal=proximal, anchor=anchor, tolerance=tolerance, **options)
    best = _objective(nearest_etf(means, proximal=proximal, anchor=anchor), means, anchor, proximal)
    return {
        "riemannian_gap": search.objective - best,
        "riemannian_gradient_norm": search.gradient_norm,
        "riemannian_iterations": float(search.iterations),
        "riemannian_converged": float(search.gradient_norm < tolerance),
        "riemannian_seconds": search.seconds,
    }


def _objective(etf: Tensor, class_means: Tensor, anchor: Tensor, proximal: float) -> float:
    """‖H̄ - V/√K‖²_F + (δ/2)(K-1)/K ‖V - W‖²_F of V = `etf`, W = `anchor`, all (K, d)."""
    num_classes = len(etf)
    centered = class_means - class_means.mean(0)
    norm = centered.norm()
    unit = centered / norm if norm > 0 else centered
    lag = (num_classes - 1) / num_classes * (etf - anchor).square().sum()
    # The head stores float32: a large δ would turn its rounding into a distance.
    lag = lag if lag > LEVEL**2 * num_classes else torch.zeros_like(lag)
    return float((unit - etf / math.sqrt(num_classes)).square().sum() + proximal / 2 * lag)


LEVEL = 2 * torch.finfo(torch.float32).eps  # rounding of an ETF's rows
