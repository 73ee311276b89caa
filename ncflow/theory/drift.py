"""Drift: imbalance moves the global mean of collapsed features towards the large classes, up to a limit."""

from __future__ import annotations

import math

from ncflow.theory.optimum import Optimum, lengths
from ncflow.theory.seli import check_step


def drift_norm(optimum: Optimum) -> float:
    """‖μ_N‖ of an optimum, μ_N = Σ (n_k/N) h_k: the value of drift/norm. >= 0, 0 for balanced classes without ReLU."""
    counts = optimum.class_counts
    return float(lengths((counts / counts.sum() @ optimum.class_means).unsqueeze(0)))


def relative_drift(optimum: Optimum) -> float:
    """‖μ_N‖ over the root mean square of ‖h‖ of an optimum: the value of the metric drift/relative. In [0, 1].

    NaN where every feature is 0.
    """
    counts = optimum.class_counts
    root_mean_square = lengths(((counts / counts.sum()).sqrt() * optimum.mean_norms).unsqueeze(0))
    return float(drift_norm(optimum) / root_mean_square)


def seli_step_drift(num_classes: int, ratio: float) -> float:
    """‖μ_N‖ of SELI, K/2 classes of R samples and K/2 of one: sqrt((R-1)²/(K (R+1)²) · sqrt(2/(R+1))); λ_W = λ_H.

    The class-weighted mean stays 0. K = 10: 0.169, 0.116, 0.067 at R = 10, 100, 1000. `seli_step` gives the classifier.
    Raises ValueError for an odd K, K < 4 or R <= 0.
    """
    check_step(num_classes, ratio)
    return abs(ratio - 1) / (ratio + 1) * math.sqrt(math.sqrt(2 / (ratio + 1)) / num_classes)


def seli_step_relative_drift(num_classes: int, ratio: float) -> float:
    """`seli_step_drift` over the RMS of ‖h‖: with s = sqrt((R+1)/2), (R-1)/sqrt((R+1) s ((K-2)(sqrt(R)+1) + 2s)).

    It saturates. K = 10: .287, .366, .382 at R = 10, 100, 1000. Its limit is sqrt(sqrt(2)/(K - 2 + sqrt(2))) = .388.
    Raises ValueError for an odd K, K < 4 or R <= 0.
    """
    check_step(num_classes, ratio)
    s = math.sqrt((ratio + 1) / 2)
    return abs(ratio - 1) / math.sqrt((ratio + 1) * s * ((num_classes - 2) * (math.sqrt(ratio) + 1) + 2 * s))
