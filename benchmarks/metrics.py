"""Collapse metrics of a feature matrix: the four that a three-pass library has, all of them, and at a thousand classes.

Features are Gaussian clusters around Gaussian class means (K, d) in float32, the classifier a noisy copy of the means.
`baselines/three_passes.py` goes over them once for each kind of metric and adds up in float32; ncflow computes the same
four with `only=`, in float64, and never builds the d x d scatter for them. "exact" is the definition in float64, from
whole matrices. In "graded" clusters the singular values of the features of a class fall over six decades, as they do
late in training: then those below 1e-4 of the largest are computed a second time.

Predicted: NC1 in 9 directions instead of 512 is 57 times less arithmetic than the scatter, so that conversions to
float64 are most of what is left; 2 to 3 times faster than the baseline. All metrics at K = 10: one Gram matrix of each
class for its nuclear norm and for the scatter, 31 GFLOP, instead of two, 1.35 to 0.85 s on two threads; graded, where
the mean of a class no longer makes its other directions small, 1.9 to 1.2 s. A thousand classes: half of the scatter,
262 GFLOP in blocks, and the logits, 205 GFLOP: no products with the class means, as every sample is nearer to its own
than half of the way to the next; 24 to 16 CPU seconds with the decompositions.
Came, in CPU seconds of one thread beside other work on the machine, before and after in turn: all 1.94 to 1.25, graded
3.15 to 2.07, a thousand classes 25.8 to 20.3 (decompositions with eigenvectors cost more than thought). ImageNet-LT's
size peaks at 1.9 GB for the whole process.
Found on the way: a chunk of 8,192 rows of 512 takes 10 times as long to convert as eight of 1,024, for its memory is
new each time; for few classes W times the transposed features is twice as fast as the features times the transposed W,
for many the other way round reads faster; argmin over a transposed matrix takes 14 times as long as min; a Cholesky
factorization tells whether eigenvectors will be needed for a fifth of the price of the eigenvalues; a product of
64 columns of a symmetric matrix is 1.6 times slower than computing both halves; small results kept from every chunk
pinned the freed large ones, 1 GB at a thousand classes; padding classes to equal length made their Gram matrices
singular, so that each was decomposed twice.
What the four take, in CPU milliseconds of one thread on a busy machine: 45 for the moments, 50 for the variances along
nine axes, 79 for the decisions. Two products, of 9 and 20 rows, are 65 of these, at 23 and 36 GFLOP/s where large
ones have 50; four copies in float64 are 29, class means under each sample 25. Without margins, which are none of the
four, decisions take 61; before against after in turn: 1.11 times (1.04 to 1.29), with the same bits. Chunks of 128 to
512 rows are no faster, one-hot products are three times slower than `index_add_`, and a class-by-class variance along
the axes from h·u - μ·u would cancel at collapse.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.baselines.three_passes import three_passes
from benchmarks.frame import DEVICE, Case, run
from ncflow.metrics import collapse_metrics

FOUR = ["nc1/pinv", "nc1/quotient", "nc1/cdnv", "nc4/ncc_mismatch"]
Call = Callable[[], Any]


def cases(quick: bool) -> list[Case]:
    """All comparisons; the quick ones are two of the smallest."""
    if quick:
        return [four(2000, 64, 10), Case("all metrics, 2,000 x 64, K = 10", partial(ours, 2000, 64, 10))]
    made = [
        four(60_000, 512, 10, least_ratio=2),
        Case("all, 60,000 x 512, K = 10", partial(ours, 60_000, 512, 10), most_seconds=1.5),
        Case("all, 60,000 x 512, K = 10, graded", partial(ours, 60_000, 512, 10, decades=6)),
        Case("all, 15,000 x 512, K = 10", partial(ours, 15_000, 512, 10)),  # as much memory as for 60,000
    ]
    # Goals for the whole process: 2 GB and 4 GB, less the features and half a GB of Python and torch.
    least, most = 2000 - 410 - 500, 4000 - 950 - 500
    medium, large = (50_000, 2048, 1000), (115_846, 2048, 1000)  # the second: ImageNet-LT
    made += [Case("all, 50,000 x 2,048, K = 1,000", partial(ours, *medium), most_seconds=12, most_megabytes=least)]
    return [*made, Case("all, 115,846 x 2,048, K = 1,000", partial(ours, *large), most_megabytes=most)]


def four(n: int, d: int, k: int, **goals: float) -> Case:
    """The metrics that the baseline has."""
    return Case(
        f"four metrics, {n:,} x {d}, K = {k}",
        partial(ours, n, d, k, only=FOUR),
        partial(baseline, n, d, k),
        tolerance=1e-4,  # what float32 sums lose
        exact=partial(exact, n, d, k),
        exact_tolerance=1e-11,
        **goals,
    )


def problem(n: int, d: int, k: int, *, decades: float = 0.0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """features (N, d), targets (N,), weight (K, d), bias (K,)."""
    generator = torch.Generator().manual_seed(0)
    targets = torch.randint(k, (n,), generator=generator)
    means = torch.randn(k, d, generator=generator)
    spread = torch.logspace(0, -decades, d)
    features = torch.empty(n, d)
    for h, y in zip(features.split(4096), targets.split(4096), strict=True):
        h.copy_(means[y] + 0.5 * spread * torch.randn(h.shape, generator=generator))
    weight = means + 0.3 * torch.randn(k, d, generator=generator)
    bias = torch.randn(k, generator=generator)
    return features.to(DEVICE), targets.to(DEVICE), weight.to(DEVICE), bias.to(DEVICE)


def ours(n: int, d: int, k: int, *, decades: float = 0.0, only: list[str] | None = None) -> Call:
    return partial(collapse_metrics, *problem(n, d, k, decades=decades), only=only)


def baseline(n: int, d: int, k: int) -> Call:
    return partial(three_passes, *problem(n, d, k))


def exact(n: int, d: int, k: int) -> Call:
    """The four by their definitions, in float64."""
    features, targets, weight, bias = (x.double() if x.is_floating_point() else x for x in problem(n, d, k))

    def call() -> dict[str, float]:
        means = torch.stack([features[targets == label].mean(0) for label in range(k)])
        deviations = features - means[targets]
        within, centered = deviations.mT @ deviations / n, means - means.mean(0)
        spreads = torch.stack([deviations[targets == label].square().sum(1).mean() for label in range(k)])
        i, j = torch.triu_indices(k, k, offset=1)
        decided = (features @ weight.mT + bias).argmax(1)
        between = centered.mT @ centered / k
        return {
            "nc1/pinv": torch.trace(torch.linalg.pinv(between, rtol=1e-10, hermitian=True) @ within).item() / k,
            "nc1/quotient": (within.trace() / between.trace()).item(),
            "nc1/cdnv": ((spreads[i] + spreads[j]) / 2 / (means[i] - means[j]).square().sum(1)).mean().item(),
            "nc4/ncc_mismatch": (decided != torch.cdist(features, means).argmin(1)).double().mean().item(),
        }

    return call


if __name__ == "__main__":
    run(cases)
