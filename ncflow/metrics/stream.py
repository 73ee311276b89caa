"""The class moments of a stream of batches, updated in place: the cost of a batch does not grow with the classes.

`ClassMoments.merge` combines two sets of moments of all K classes. A batch of a language model holds few of 50,000
classes, so `MomentSum` touches only the classes of the batch.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ncflow.checks import OutOfRange, as_tensors, check_samples, check_targets
from ncflow.metrics.moments import ClassMoments, GramSum, float64_chunks
from ncflow.metrics.rounding import precision

SIZE = 8192  # samples at a time: their deviations and the shifts of their classes share one product


class MomentSum:
    """The moments of all samples that were added. Memory: K·d + d² numbers in float64.

    Without num_classes, the classes are 0 to the largest target so far. Equal to the moments of all samples at once, up
    to rounding. Chan, Golub and LeVeque 1979.
    """

    def __init__(self, num_features: int, num_classes: int | None = None, *, device: Any = None) -> None:
        self._known = num_classes
        empty = ClassMoments.empty(num_classes or 1, num_features, device=device)
        self._counts, self._means, self._traces, self._eps = empty.counts, empty.means, empty.within_traces, empty.eps
        self._gram = GramSum(num_features, empty.means.device)

    @classmethod
    def of(cls, moments: ClassMoments) -> MomentSum:
        """The sum that begins with these moments, whose tensors in float64 it changes in place."""
        assert moments.within_scatter is not None
        made = cls(1, 1)
        made._known = len(moments.counts)
        made._counts, made._means = moments.counts.double(), moments.means.double()
        made._traces, made._eps = moments.within_traces.double(), moments.eps.double()
        made._gram = GramSum.of(moments.within_scatter.double())
        return made

    def add(self, features: Tensor, targets: Tensor) -> None:
        """Add features (B, d) with targets (B,). An empty batch has no effect.

        Raises ValueError for another d, targets out of range, and features that hold NaN or infinities.
        """
        features, targets = as_tensors(features, targets)
        check_samples(features, targets)
        if features.shape[1] != self._means.shape[1]:
            raise ValueError(f"features must have shape (B, {self._means.shape[1]}), got {tuple(features.shape)}")
        if not len(targets):
            return
        targets = targets.long()
        check_targets(targets, self._known or int(targets.max()) + 1)
        if not all(bool(h.square().sum().isfinite()) for (h,) in float64_chunks(features)):  # before the sums change
            raise OutOfRange("features hold NaN, infinities or numbers too large to square")
        self._make_room(int(targets.max()) + 1)
        self._eps = self._eps.clamp(min=precision(features))
        for h, y in float64_chunks(features, targets, size=SIZE):
            self._add(h, y)

    def _add(self, h: Tensor, y: Tensor) -> None:
        """Add h (n, d) in float64, which is overwritten, with targets y (n,)."""
        classes, where, sizes = torch.unique(y, return_inverse=True, return_counts=True)
        sizes = sizes.double()
        before = self._means[classes]
        gaps = torch.zeros_like(before).index_add_(0, where, h.sub_(before[where]))  # from the means so far
        gaps /= sizes.unsqueeze(1)
        deviations = h.sub_(gaps[where])
        traces = torch.zeros_like(sizes).index_add_(0, where, deviations.square().sum(1))
        counts = self._counts[classes]
        share = sizes / (counts + sizes)
        weights = counts * share
        traces += weights * gaps.square().sum(1)
        self._means[classes] = before + share.unsqueeze(1) * gaps
        self._traces[classes] += traces
        self._counts[classes] = counts + sizes
        several, moved = sizes[where] > 1, weights > 0  # the other rows are 0
        self._gram.add(deviations[several])
        self._gram.add((weights.sqrt().unsqueeze(1) * gaps)[moved])

    def total(self) -> ClassMoments:
        """The moments so far, over the K classes. Raises ValueError before the first sample."""
        if not bool(self._counts.any()):
            raise ValueError("no samples: expected at least one batch of features with targets")
        number = self._known or int(self._counts.nonzero().max()) + 1
        parts = (self._counts, self._means, self._traces)
        counts, means, traces = (part if len(part) == number else part[:number] for part in parts)
        return ClassMoments(counts, means, traces, self._gram.total(), self._eps)

    def _make_room(self, num_classes: int) -> None:
        missing = num_classes - len(self._counts)
        if missing > 0:  # at least doubled, so that growing costs no more than filling
            missing = max(missing, len(self._counts))
            pad = torch.nn.functional.pad
            self._counts, self._traces = pad(self._counts, (0, missing)), pad(self._traces, (0, missing))
            self._means = pad(self._means, (0, 0, 0, missing))
