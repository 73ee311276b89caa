"""The analysis of the training split from the forwards of training itself, without a second pass over the data.

Every step has the features of its batch. Their class moments, summed over an epoch, give all of NC1 to NC3 but
nc1/numerical_rank, the drift and the imbalance. These features are those of training: in training mode, of augmented
pictures, and of weights that move. The exact analysis sees the weights after the epoch, in evaluation mode and float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ncflow.checks import OutOfRange
from ncflow.metrics import ClassMoments, moment_metrics
from ncflow.metrics.stream import SIZE, MomentSum
from ncflow.nn.heads import Head
from ncflow.training.evaluation import Evaluation, gather_rows, logit_metrics
from ncflow.training.hardware import DTYPES

if TYPE_CHECKING:
    from accelerate import Accelerator


class TrainingStream:
    """What the forwards of an epoch have shown. Memory: that of the moments, and the logits of all samples."""

    def __init__(self, head: Head, precision: str) -> None:
        self._head, self._eps = head, torch.finfo(DTYPES[precision]).eps
        self._sum = MomentSum(head.num_features, head.num_classes, device=head.weight.device)
        self._logits: list[Tensor] = []
        self._targets: list[Tensor] = []
        self._waiting: list[tuple[Tensor, Tensor]] = []
        self._error: OutOfRange | None = None

    def add(self, features: Tensor, logits: Tensor, targets: Tensor) -> None:
        """Add this process's part of a batch: features (B, d), logits (B, K) and targets (B,)."""
        self._logits.append(logits.detach())
        self._targets.append(targets)
        self._waiting.append((features.detach(), targets))
        if sum(len(rows) for rows, _ in self._waiting) >= SIZE:
            self._flush()

    def evaluation(self, class_counts: Sequence[int], accelerator: Accelerator) -> Evaluation:
        """Return the analysis of the epoch, the same in every process; class_counts (K,) are those of the split.

        Raises OutOfRange for features that were not finite.
        """
        self._flush()
        if self._error is not None:
            raise self._error
        moments = merge_over_processes(self._sum.total(), accelerator)
        moments = replace(moments, eps=moments.eps.clamp(min=self._eps))
        logits, targets = (gather_rows(accelerator, torch.cat(rows)) for rows in (self._logits, self._targets))
        metrics = moment_metrics(moments, self._head.weight, self._head.bias, class_counts=class_counts)
        metrics |= logit_metrics("acc", logits, targets, class_counts)
        return Evaluation(metrics, logits, targets, moments.means_or_nan, moments.sample_mean, streamed=True)

    def _flush(self) -> None:
        """Add the waiting rows to the moments. Many at once cost less than each batch alone."""
        features, targets = ([row[part] for row in self._waiting] for part in (0, 1))
        self._waiting = []
        try:
            if features and self._error is None:
                self._sum.add(torch.cat(features), torch.cat(targets))
        except OutOfRange as error:  # maybe in one process alone: raised where all take part
            self._error = error


def merge_over_processes(moments: ClassMoments, accelerator: Accelerator) -> ClassMoments:
    """Return the moments of the samples of all processes, the same in every process."""
    if accelerator.num_processes == 1:
        return moments
    assert moments.within_scatter is not None
    own = (moments.counts, moments.means, moments.within_traces, moments.within_scatter, moments.eps)
    everyones = zip(*(accelerator.gather(part.unsqueeze(0)) for part in own), strict=True)
    first, *others = (ClassMoments(*parts) for parts in everyones)
    for other in others:
        first = first.merge(other)
    return first
