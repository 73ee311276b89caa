"""Metrics for many classes: growth with K, and a stream of features that nobody holds.

Class means (K, d) are Gaussian, features are Gaussian clusters around them in float32, and the classifier is a noisy
copy of the means. Class sizes of the stream follow Zipf's law. "All" is `collapse_metrics` of three samples a class.
"Moments" is `moment_metrics`, without samples. The stream adds batches of 8,192 features to a `MomentSum`. Times of the
stream include drawing them, about a sixth. `tests/trials/vocabulary.py` is the size of a language model.

Predicted: one product of all pairs each for means and classifier, K²d operations, so time grows with K² and memory
with K. The baseline is the definition: every pair in one K x K matrix.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.frame import DEVICE, Case, run
from ncflow.metrics import ClassMoments, collapse_metrics, moment_metrics
from ncflow.metrics.stream import MomentSum

PAIRS = ["nc2/equiangularity_means", "nc2/maximal_angle_means", "nc2/max_cosine_means", "nc2/gnc2_log", "nc1/cdnv"]
BATCH = 8192


def cases(quick: bool) -> list[Case]:
    """All sizes; the quick ones are two of the smallest."""
    if quick:
        return [pairs(300, 32), Case("stream, N = 20,000, K = 300, d = 32", partial(stream, 20_000, 300, 32))]
    return [
        pairs(3000, 512),
        Case("all, K = 1,000, d = 512", partial(everything, 1000, 512)),
        Case("all, K = 3,000, d = 512", partial(everything, 3000, 512)),
        Case("moments, K = 10,000, d = 512", partial(moments, 10_000, 512), most_seconds=10, most_megabytes=1500),
        Case("stream, N = 100,000, K = 10,000, d = 512", partial(stream, 100_000, 10_000, 512)),
    ]


def pairs(k: int, d: int) -> Case:
    """The metrics of pairs of class means, against a matrix of all pairs."""
    return Case(
        f"five metrics of pairs, K = {k:,}, d = {d}", partial(five, k, d), partial(matrix, k, d), tolerance=1e-9
    )


def problem(k: int, d: int, per_class: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    """features (N, d), targets (N,), weight (K, d)."""
    generator = torch.Generator().manual_seed(0)
    means, targets = torch.randn(k, d, generator=generator), torch.arange(per_class * k) % k
    features = means[targets] + 0.5 * torch.randn(len(targets), d, generator=generator)
    weight = means + 0.3 * torch.randn(k, d, generator=generator)
    return features.to(DEVICE), targets.to(DEVICE), weight.to(DEVICE)


def five(k: int, d: int) -> Any:
    features, targets, _ = problem(k, d)
    return partial(collapse_metrics, features, targets, only=PAIRS)


def everything(k: int, d: int) -> Any:
    return partial(collapse_metrics, *problem(k, d))


def moments(k: int, d: int) -> Any:
    features, targets, weight = problem(k, d)
    return partial(moment_metrics, ClassMoments.from_features(features, targets, k), weight)


def matrix(k: int, d: int) -> Any:
    """The five by their definitions, from K x K matrices."""
    features, targets, _ = problem(k, d)

    def call() -> dict[str, float]:
        h = features.double()
        means = torch.zeros(k, d, dtype=h.dtype, device=h.device).index_add_(0, targets, h) / (len(h) // k)
        spread = (h - means[targets]).square().sum(1)
        variances = torch.zeros(k, dtype=h.dtype, device=h.device).index_add_(0, targets, spread) / (len(h) // k)
        centered = means - means.mean(0)
        unit = centered / torch.linalg.vector_norm(centered, dim=1, keepdim=True)
        i, j = torch.triu_indices(k, k, offset=1, device=h.device)
        cosines = (unit @ unit.mT)[i, j]
        terms = (variances[i] + variances[j]) / (2 * torch.cdist(means, means)[i, j].square())
        return {
            "nc1/cdnv": terms.mean().item(),
            "nc2/equiangularity_means": cosines.std().item(),
            "nc2/gnc2_log": -(2 - 2 * cosines).log().mean().item() / 2,
            "nc2/max_cosine_means": cosines.max().item(),
            "nc2/maximal_angle_means": (cosines + 1 / (k - 1)).abs().mean().item(),
        }

    return call


def stream(n: int, k: int, d: int) -> Any:
    """A stream of n features, whose classes follow Zipf's law, and the metrics of its moments."""

    def call() -> dict[str, float]:
        generator = torch.Generator().manual_seed(0)
        shares = 1 / (torch.arange(k) + 2.7)
        until = (shares / shares.sum()).cumsum(0)
        means = torch.randn(k, d, generator=generator)
        weight = means + 0.3 * torch.randn(k, d, generator=generator)
        total = MomentSum(d, k, device=DEVICE)
        for start in range(0, n, BATCH):
            size = min(BATCH, n - start)
            targets = torch.searchsorted(until, torch.rand(size, generator=generator)).clamp(max=k - 1)
            features = means[targets] + 0.5 * torch.randn(size, d, generator=generator)
            total.add(features.to(DEVICE), targets.to(DEVICE))
        return moment_metrics(total.total(), weight.to(DEVICE))

    return call


if __name__ == "__main__":
    run(cases)
