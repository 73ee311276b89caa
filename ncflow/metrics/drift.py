"""Drift: the distance of the global mean of the features from the origin. Imbalance moves it to large classes."""

from __future__ import annotations

import torch
from torch import Tensor

from ncflow.metrics.moments import ClassMoments
from ncflow.metrics.rows import Metric, View, of_moments


def norm(moments: ClassMoments) -> Tensor:
    """‖μ_N‖, the sample-weighted global mean. >= 0; 0 for centered features of balanced classes."""
    return torch.linalg.vector_norm(moments.sample_mean)


def norm_balanced(moments: ClassMoments) -> Tensor:
    """‖μ_K‖, the class-weighted global mean. >= 0; 1/sqrt(K) of the feature norm for nonnegative orthogonal means."""
    return torch.linalg.vector_norm(moments.class_mean)


def relative(moments: ClassMoments) -> Tensor:
    """‖μ_N‖ over the root mean square of ‖h‖. In [0, 1]."""
    squared = moments.within_traces + moments.counts * moments.means.square().sum(1)
    return (norm(moments) / (squared.sum() / moments.num_samples).sqrt()).clamp(max=1)


METRICS: dict[str, Metric] = {
    "drift/norm": Metric(of_moments(norm), "‖μ_N‖", "[0, ∞)", "—", "train"),
    "drift/norm_balanced": Metric(of_moments(norm_balanced), "‖μ_K‖", "[0, ∞)"),
    "drift/relative": Metric(
        of_moments(relative),
        "‖μ_N‖ over the root mean square of ‖h‖",
        "[0, 1]",
        "—",
        "train",
        view=View(
            "Drift of the global mean",
            "norm of the mean feature over the root mean square feature norm; imbalance alone keeps it above 0",
            "train",
            ("table", "curves", "knobs"),
            at_collapse=0,
        ),
    ),
}
