"""Counts, means and scatter of the features of each class, which most collapse metrics are computed from.

Moments are streaming and mergeable: those of two parts merge into those of the whole. The merge is pairwise in (count,
mean, scatter) and in float64. It never uses Σhhᵀ - nμμᵀ, which cancels at collapse.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property, partial

import torch
from torch import Tensor

from ncflow.checks import OutOfRange, as_tensors, check_samples, check_targets, check_whole
from ncflow.metrics.frame import Frame
from ncflow.metrics.rounding import EPS, Rounding, precision

CHUNK = 1024  # samples in float64 at a time: copies do not grow with N, and a chunk of 512 features fits in the cache
BLOCKS = 4  # column blocks of a Gram matrix: blocks above the diagonal, 3/8 of the products, are mirrored from below
NARROWEST = 512  # minimum columns of a block: narrower products are not faster than one full product


@dataclass(frozen=True)
class ClassMoments:
    """counts (K,), means (K, d), within_traces (K,) = Σ‖h - μ_k‖² of each class, within_scatter (d, d) of all samples.

    The scatter is Σ(h - μ_y)(h - μ_y)ᵀ, or None where it was not requested. All in float64. The mean of a class without
    samples is 0, and statistics over classes omit such classes. eps (0-dim) is the precision of the input features, the
    coarsest of all merged parts. It decides which differences between means are rounding.

    Examples:
        >>> import torch
        >>> features, targets = torch.tensor([[1.0, 0.0], [3.0, 0.0], [0.0, 2.0]]), torch.tensor([0, 0, 1])
        >>> moments = ClassMoments.from_features(features, targets, 2)
        >>> moments.means.tolist(), moments.within_traces.tolist()
        ([[2.0, 0.0], [0.0, 2.0]], [2.0, 0.0])
    """

    counts: Tensor
    means: Tensor
    within_traces: Tensor
    within_scatter: Tensor | None
    eps: Tensor

    @classmethod
    def empty(cls, num_classes: int, num_features: int, *, device: torch.device | str | None = None) -> ClassMoments:
        """The moments of no samples: the neutral element of `merge`."""
        check_whole(num_classes=num_classes, num_features=num_features)
        zeros = partial(torch.zeros, dtype=torch.float64, device=device)
        means, scatter = zeros(num_classes, num_features), zeros(num_features, num_features)
        return cls(zeros(num_classes), means, zeros(num_classes), scatter, means.new_tensor(EPS))

    @classmethod
    def from_features(
        cls, features: Tensor, targets: Tensor, num_classes: int, *, scatter: bool = True
    ) -> ClassMoments:
        """The moments of features (N, d) with targets (N,) in 0..K-1, in two passes.

        The scatter takes most of the time: O(Nd²), without it O(Nd). Raises ValueError for features that hold NaN,
        infinities or numbers too large to square, and for targets of the wrong length or range.
        """
        features, targets = as_tensors(features, targets)
        check_samples(features, targets)
        check_targets(targets, num_classes)
        targets = targets.long()
        counts = torch.bincount(targets, minlength=num_classes).double()
        means = features.new_zeros(num_classes, features.shape[1], dtype=torch.float64)
        origin = features[:1].double().sum(0)  # subtracted before summing, so a common offset costs no digits
        for h, y in float64_chunks(features, targets):
            means.index_add_(0, y, h.sub_(origin))
        means.div_(counts.clamp(min=1).unsqueeze(1)).add_((counts > 0).unsqueeze(1) * origin)
        traces = torch.zeros_like(counts)
        gram = GramSum(features.shape[1], features.device) if scatter else None
        for deviations, y in within_deviations(features, targets, means):
            traces.index_add_(0, y, torch.linalg.vector_norm(deviations, dim=1).square())
            if gram:
                gram.add(deviations)
        if not bool(torch.isfinite(traces).all()):
            raise OutOfRange("features hold NaN, infinities or numbers too large to square")
        return cls(counts, means, traces, gram.total() if gram else None, counts.new_tensor(precision(features)))

    def merge(self, other: ClassMoments) -> ClassMoments:
        """The moments of both sets of samples combined. Associative up to rounding. Chan, Golub and LeVeque 1979."""
        counts = self.counts + other.counts
        share = other.counts / counts.clamp(min=1)
        gap = other.means - self.means
        # A class that is absent on one side has weight 0 there, so its mean of 0 has no effect.
        weight = self.counts * share
        scatter = None
        if self.within_scatter is not None and other.within_scatter is not None:
            scatter = self.within_scatter + other.within_scatter + (gap.mT * weight) @ gap
        return ClassMoments(
            counts,
            torch.where((self.counts > 0).unsqueeze(1), self.means + share.unsqueeze(1) * gap, other.means),
            self.within_traces + other.within_traces + weight * gap.square().sum(1),
            scatter,
            torch.maximum(self.eps, other.eps),
        )

    def present(self) -> ClassMoments:
        """The same moments over the classes that have samples, K' <= K of them."""
        seen = self.counts > 0
        return replace(self, counts=self.counts[seen], means=self.means[seen], within_traces=self.within_traces[seen])

    @property
    def num_samples(self) -> Tensor:
        """N, 0-dim."""
        return self.counts.sum()

    @property
    def sample_mean(self) -> Tensor:
        """μ_N (d,), with equal weight for each sample, so large classes dominate."""
        return self.counts @ self.means / self.num_samples

    @property
    def class_mean(self) -> Tensor:
        """μ_K (d,), with equal weight for each class: the center of an ETF. Requires that all classes are present."""
        return self.means.mean(0)

    @property
    def centered_means(self) -> Tensor:
        """μ_k - μ_K (K, d)."""
        return self.frame.rows

    @cached_property
    def frame(self) -> Frame:
        """The centered means as a frame. Requires that all classes are present."""
        variances = self.within_traces / self.counts
        return Frame(self.means - self.class_mean, self.rounding, centered=True, variances=variances)

    @cached_property
    def rounding(self) -> Rounding:
        """The rounding of the means: that of the features, or that of sums over so many samples if coarser."""
        squares = self.means.square().sum(1) + self.within_traces / self.counts.clamp(min=1)  # mean ‖h‖² of each class
        eps = torch.maximum(self.eps, self.counts.max() * EPS)
        return Rounding(eps, squares.max().sqrt(), self.means.shape[1])

    @cached_property
    def between_axes(self) -> tuple[Tensor, Tensor]:
        """s (r,) and orthonormal rows u (r, d) with Σ_B = Σ s² u uᵀ, r <= K-1, without directions that are rounding."""
        s, axes = self.frame.axes
        kept = s > self.rounding.level(len(self.means))
        return s[kept] / len(self.means) ** 0.5, axes[kept]

    @property
    def within_cov(self) -> Tensor:
        """Σ_W (d, d) = (1/N) Σ(h - μ_y)(h - μ_y)ᵀ."""
        assert self.within_scatter is not None
        return self.within_scatter / self.num_samples

    @property
    def means_or_nan(self) -> Tensor:
        """Class means (K, d), NaN for a class without samples, so that such a class is never the nearest."""
        return self.means.masked_fill((self.counts == 0).unsqueeze(1), torch.nan)


class GramSum:
    """Σ hᵀh (d, d) over chunks h (n, d) of rows. Sums only the lower block triangle and mirrors it at the end."""

    def __init__(self, num_features: int, device: torch.device) -> None:
        self._sum = torch.zeros(num_features, num_features, dtype=torch.float64, device=device)
        self._width = max(NARROWEST, -(-num_features // BLOCKS))
        self._waiting: list[Tensor] = []  # batched, because a product of few rows takes as long as one of many

    @classmethod
    def of(cls, gram: Tensor) -> GramSum:
        """The sum that begins with a Gram matrix (d, d), which it changes in place."""
        made = cls(0, gram.device)
        made._sum, made._width = gram, max(NARROWEST, -(-len(gram) // BLOCKS))
        return made

    def add(self, rows: Tensor) -> None:
        """Add the Gram matrix of the columns of rows (n, d). Do not change the rows afterwards."""
        self._waiting.append(rows)
        if sum(map(len, self._waiting)) >= CHUNK:
            self._multiply()

    def add_gram(self, gram: Tensor) -> None:
        """Add a Gram matrix (d, d) that is already computed."""
        self._sum += gram

    def total(self) -> Tensor:
        """The sum so far (d, d), symmetric to the last bit."""
        self._multiply()
        return self._sum.tril() + self._sum.tril(-1).mT

    def _multiply(self) -> None:
        if not self._waiting:
            return
        rows = self._waiting[0] if len(self._waiting) == 1 else torch.cat(self._waiting)
        self._waiting = []
        for start in range(0, len(self._sum), self._width):
            columns = rows[:, start : start + self._width]
            self._sum[start:, start : start + self._width].addmm_(rows[:, start:].mT, columns)


def variances_of(within_cov: Tensor, axes: Tensor) -> Tensor:
    """Within-class variances u Σ_W uᵀ (r,) along axes u (r, d), from Σ_W (d, d)."""
    return ((axes @ within_cov) * axes).sum(1).clamp(min=0)


def variances_along(features: Tensor, targets: Tensor, moments: ClassMoments, axes: Tensor) -> Tensor:
    """Within-class variances (r,) along axes u (r, d), from the samples in O(Nrd) and without a (d, d) matrix."""
    sums = torch.zeros_like(axes[:, 0])
    for deviations, _ in within_deviations(features, targets, moments.means):
        sums += (axes @ deviations.mT).square().sum(1)  # this order is twice as fast for few axes
    return sums / moments.num_samples


def within_deviations(features: Tensor, targets: Tensor, means: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield h - μ_y (n, d) and y (n,) for each chunk."""
    for h, y in float64_chunks(features, targets):
        yield h.sub_(means.index_select(0, y)), y


def float64_chunks(features: Tensor, *others: Tensor, size: int | None = None) -> Iterator[tuple[Tensor, ...]]:
    """Yield consecutive slices of features (N, d), copied in float64, with the same slices of the other tensors."""
    size = size or CHUNK
    for start in range(0, len(features), size):
        part = slice(start, start + size)
        yield features[part].to(torch.float64, copy=True), *(other[part] for other in others)
