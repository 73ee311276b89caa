"""Accuracy under another class balance at test time: Σ p_k·recall_k for long-tailed test priors p. All in [0, 1].

A prior is an exponential profile over the classes of the split, in the order of their training sizes: the forward
priors in the same order, the backward ones in the reverse. The uniform prior gives acc/balanced, which is not repeated
here. Hong et al. 2021; Menon et al. 2021.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ncflow.metrics.rows import Formula, Metric

RATIOS = (50, 25, 10, 5, 2)  # of the most to the least likely class. Hong et al. 2021.


def exponential_prior(num_classes: int, ratio: float, *, like: Tensor | None = None) -> Tensor:
    """p (K,), which sums to 1: p_k in proportion to ratio^(-k/(K-1)), so p_1/p_K = ratio > 0.

    A ratio of 1 is the uniform prior. 1/ratio gives the same prior in the reverse order. `like` sets dtype and device.
    """
    if not 0 < ratio < math.inf:
        raise ValueError(f"a prior needs a finite ratio > 0 of its first to its last class, got {ratio}")
    options = {"dtype": torch.float64} if like is None else {"dtype": like.dtype, "device": like.device}
    return torch.softmax(torch.linspace(0, -math.log(ratio), num_classes, **options), dim=0)


def prior_accuracies(recalls: Tensor, class_counts: Tensor) -> dict[str, Tensor]:
    """The accuracy under each prior of PRIORS, from recalls (K,), NaN for a class without samples.

    class_counts (K,) are those of the training split: their order is that of the profile. Among equal sizes the later
    class counts as rarer. The profile goes over the classes that have samples, so its ratio is exact and it sums to 1.
    """
    seen = torch.isfinite(recalls)
    largest_first = torch.argsort(class_counts[seen], descending=True, stable=True)
    ordered = recalls[seen][largest_first]
    priors = torch.stack([exponential_prior(len(ordered), ratio, like=ordered) for ratio in PRIORS.values()])
    return dict(zip(PRIORS, priors @ ordered, strict=True))


def _under(prior: str) -> Formula:
    return lambda a: a.prior_accuracies.get(prior)


def _row(prior: str, meaning: str) -> Metric:
    return Metric(_under(prior), meaning, "[0, 1]", "1", "test", HONG)


HONG = "Hong et al. 2021"
# name -> ratio of the prior of the most frequent training class to that of the rarest
PRIORS: dict[str, float] = {
    **{f"forward_{ratio}": ratio for ratio in RATIOS},
    **{f"backward_{ratio}": 1 / ratio for ratio in reversed(RATIOS)},
}
METRICS: dict[str, Metric] = {
    **{
        f"prior/forward_{ratio}": _row(
            f"forward_{ratio}", f"Σ p_k·recall_k, p exponential, {ratio} times larger for the most frequent class"
        )
        for ratio in RATIOS
    },
    **{
        f"prior/backward_{ratio}": _row(
            f"backward_{ratio}", f"Σ p_k·recall_k, p exponential, {ratio} times larger for the rarest class"
        )
        for ratio in reversed(RATIOS)
    },
}
