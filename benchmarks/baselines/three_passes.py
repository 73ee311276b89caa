"""Collapse metrics as libraries compute them: a pass over the features for each, with float32 accumulators."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

BATCH = 4096


def three_passes(features: Tensor, targets: Tensor, weight: Tensor, bias: Tensor) -> dict[str, float]:
    """nc1/pinv, nc1/quotient, nc1/cdnv and nc4/ncc_mismatch of features (N, d) in float32; classes all present."""
    num_classes, num_samples = len(weight), len(features)
    counts = torch.bincount(targets, minlength=num_classes).float()
    sums = torch.zeros_like(weight)
    for h, y in _batches(features, targets):
        sums.index_add_(0, y, h)
    means = sums / counts.unsqueeze(1)
    centered = means - means.mean(0)
    within = torch.zeros(features.shape[1], features.shape[1])
    for h, y in _batches(features, targets):
        deviations = h - means[y]
        within += deviations.mT @ deviations
    between = centered.mT @ centered / num_classes
    variances = torch.zeros(num_classes)
    for h, y in _batches(features, targets):
        variances.index_add_(0, y, (h - means[y]).square().sum(1))
    mismatches = sum(
        int(((h @ weight.mT + bias).argmax(1) != torch.cdist(h, means).argmin(1)).sum())
        for h, _ in _batches(features, targets)
    )
    i, j = torch.triu_indices(num_classes, num_classes, offset=1)
    spreads = variances / counts
    return {
        "nc1/pinv": torch.trace(torch.linalg.pinv(between) @ within).item() / num_samples / num_classes,
        "nc1/quotient": float(variances.sum() / num_samples / centered.square().sum(1).mean()),
        "nc1/cdnv": ((spreads[i] + spreads[j]) / (2 * (means[i] - means[j]).square().sum(1))).mean().item(),
        "nc4/ncc_mismatch": mismatches / num_samples,
    }


def _batches(features: Tensor, targets: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    yield from zip(features.split(BATCH), targets.split(BATCH), strict=True)
