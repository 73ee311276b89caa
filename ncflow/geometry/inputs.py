"""What users hand over, looked at before it is computed with: tensors, whole numbers and the sizes of classes."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral
from reprlib import repr as shortened

import torch
from torch import Tensor

LARGEST = 2**17  # a square matrix of so many rows takes 137 GB; what is larger is no number of classes or features


class OutOfRange(ValueError):
    """Numbers that are not finite, or too large to square, as those of a training that diverges; says which."""

    def __str__(self) -> str:
        return f"{self.args[0]}; did the training diverge?"


def check_tensors(**values: object) -> None:
    """Raise where a value, called by its name, is no tensor of real numbers."""
    for name, value in values.items():
        if not isinstance(value, Tensor) or value.is_complex():
            found = value.dtype if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(f"{name} must be a tensor of real numbers, got {found}")


def check_whole(*, least: int = 1, most: int = LARGEST, **values: object) -> None:
    """Raise where a value, called by its name, is no whole number in this range."""
    for name, value in values.items():
        if not isinstance(value, Integral) or isinstance(value, bool) or not least <= int(value) <= most:
            raise ValueError(f"{name} must be a whole number from {least} to {most}, got {shortened(value)}")


def check_batch(rows: Tensor, targets: object, num_classes: int) -> None:
    """Raise where targets are not whole numbers (B,) below K, one for each of rows (B, ...), B >= 1.

    On an accelerator their range is left to the kernels that use them: to look at it here is to wait for it.
    """
    if (
        not isinstance(targets, Tensor)
        or targets.dtype != torch.long
        or targets.shape != rows.shape[:1]
        or not len(rows)
    ):
        found = f"{tuple(targets.shape)} {targets.dtype}" if isinstance(targets, Tensor) else type(targets).__name__
        raise ValueError(f"targets must be int64 (B,), one for each of {len(rows)} samples, B >= 1, got {found}")
    if targets.device.type == "cpu" and not 0 <= int(targets.min()) <= int(targets.max()) < num_classes:
        raise ValueError(
            f"targets must lie in 0..{num_classes - 1} for {num_classes} classes, got {int(targets.min())} to "
            f"{int(targets.max())}"
        )


def counts_tensor(class_counts: Sequence[float] | Tensor) -> Tensor:
    """Class sizes (K,) in float64, on their device; a ValueError for what holds no finite number for each class."""
    try:
        counts = torch.as_tensor(class_counts, dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        raise ValueError(f"class_counts must hold a number for each class, got {shortened(class_counts)}") from None
    if bool(counts.isinf().any()):
        raise ValueError(f"class_counts must be finite, got {shortened(counts.tolist())}")
    return counts
