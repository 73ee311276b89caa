"""Calibration: how well the confidence of a decision matches the probability that it is correct."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ncflow.metrics.rows import Metric

if TYPE_CHECKING:
    from ncflow.metrics.analysis import Analysis


def expected_calibration_error(confidences: Tensor, correct: Tensor, *, num_bins: int = 15) -> Tensor:
    """Mean |accuracy - confidence| over equal bins of confidence, weighted by samples: (N,), (N,) -> 0-dim. In [0, 1].

    Guo, Pleiss, Sun and Weinberger 2017.
    """
    bins = (confidences * num_bins).ceil().long().clamp(1, num_bins) - 1  # bins (0, 1/15], (1/15, 2/15], …
    gaps = torch.zeros(num_bins, dtype=torch.float64, device=confidences.device)
    gaps.index_add_(0, bins, correct.double() - confidences.double())
    return gaps.abs().sum() / len(confidences)


def _ece(a: Analysis) -> Tensor | None:
    if a.samples is None or a.decisions is None:
        return None
    return expected_calibration_error(a.decisions.confidences, a.decisions.predictions == a.samples[1])


def _nll(a: Analysis) -> Tensor | None:
    return a.decisions.losses.mean() if a.decisions else None


METRICS: dict[str, Metric] = {
    "calibration/ece": Metric(
        _ece,
        "Σ over 15 equal bins of their share of samples times abs(accuracy − mean confidence)",
        "[0, 1]",
        "—",
        "test",
        "Guo et al. 2017",
    ),
    "calibration/nll": Metric(
        _nll, "mean cross-entropy −log softmax(Wh + b)_y, without weights or adjustment", "[0, ∞)", "—", "test"
    ),
}
