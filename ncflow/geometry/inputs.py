"""What users hand over, looked at before it is computed with: tensors, whole numbers and the sizes of classes."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral
from reprlib import repr as shortened

import torch
from torch import Tensor


def check_tensors(**values: object) -> None:
    """Raise where a value, called by its name, is no tensor of real numbers."""
    for name, value in values.items():
        if not isinstance(value, Tensor) or value.is_complex():
            found = value.dtype if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(f"{name} must be a tensor of real numbers, got {found}")


def check_whole(**values: object) -> None:
    """Raise where a value, called by its name, is no whole number."""
    for name, value in values.items():
        if not isinstance(value, Integral) or isinstance(value, bool):
            raise ValueError(f"{name} must be a whole number, got {shortened(value)}")


def counts_tensor(class_counts: Sequence[float] | Tensor) -> Tensor:
    """Class sizes (K,) in float64, on their device; a ValueError for what holds no finite number for each class."""
    try:
        counts = torch.as_tensor(class_counts, dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        raise ValueError(f"class_counts must hold a number for each class, got {shortened(class_counts)}") from None
    if bool(counts.isinf().any()):
        raise ValueError(f"class_counts must be finite, got {shortened(counts.tolist())}")
    return counts
