"""What fits together: features, targets, a classifier and what belongs to the training split."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ncflow.geometry.inputs import check_tensors, check_whole, counts_tensor

MOST_CLASSES = 2**16  # whose Gram matrix takes 34 GB; larger numbers are identifiers rather than classes


def check_inputs(
    features: Tensor,
    targets: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    num_classes: int | None,
    class_counts: Sequence[int] | Tensor | None,
    train_means: Tensor | None,
) -> int:
    """The number of classes; raises ValueError, naming what was expected and what came, where things do not fit."""
    optional = {"weight": weight, "bias": bias, "train_means": train_means}
    given = {name: tensor for name, tensor in optional.items() if tensor is not None}
    check_tensors(**given)
    check_samples(features, targets)
    if not len(features):
        raise ValueError(f"features must be floats (N, d), N and d >= 1, got {tuple(features.shape)}")
    if class_counts is not None:
        given["class_counts"] = counts_tensor(class_counts)
    if num_classes is None:
        by_class = (given.get(name) for name in ("weight", "class_counts", "train_means"))
        sizes = (len(tensor) for tensor in by_class if tensor is not None and tensor.ndim)
        num_classes = next(sizes, int(targets.max()) + 1)
    check_targets(targets, num_classes)
    counts = given.pop("class_counts", None)
    if counts is not None and (counts.shape != (num_classes,) or not bool((counts >= 0).all())):
        raise ValueError(f"class_counts must hold {num_classes} sizes >= 0, got {counts.tolist()}")
    rows = (num_classes, features.shape[1])
    for name, tensor in given.items():
        shape = rows[:1] if name == "bias" else rows
        if tuple(tensor.shape) != shape:
            raise ValueError(f"{name} must have shape {shape}, got {tuple(tensor.shape)}")
        known = tensor.double().nan_to_num(0.0, torch.inf, -torch.inf) if name == "train_means" else tensor.double()
        if not bool(torch.linalg.vector_norm(known).square().isfinite()):
            raise ValueError(f"{name} holds NaN or infinities, or numbers too large to square; did training diverge?")
    return num_classes


def check_samples(features: Tensor, targets: Tensor) -> None:
    """Raise where these are not features (N, d), d >= 1, and as many targets (N,)."""
    check_tensors(features=features, targets=targets)
    if features.ndim != 2 or not features.is_floating_point() or not features.shape[1]:
        raise ValueError(f"features must be floats (N, d), N and d >= 1, got {tuple(features.shape)} {features.dtype}")
    if targets.shape != features.shape[:1] or targets.is_floating_point() or targets.dtype == torch.bool:
        expected = f"integers ({len(features)},)"
        raise ValueError(f"targets must be {expected}, one per feature, got {tuple(targets.shape)} {targets.dtype}")


def check_targets(targets: Tensor, num_classes: int) -> None:
    """Raise where this is no number of classes, or where a target is not below it."""
    check_whole(num_classes=num_classes)
    if not 1 <= num_classes <= MOST_CLASSES:
        raise ValueError(f"num_classes must be 1 to {MOST_CLASSES}, got {num_classes}; number the classes from 0")
    if len(targets) and not 0 <= (low := int(targets.min())) <= (high := int(targets.max())) < num_classes:
        raise ValueError(f"targets must lie in 0..{num_classes - 1} for {num_classes} classes, got {low}..{high}")
