"""What users hand over, looked at before it is computed with: tensors, whole numbers and the sizes of classes."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral
from reprlib import repr as shortened

import torch
from torch import Tensor

LARGEST = 2**17  # a square matrix of so many rows takes 137 GB; what is larger is no number of classes or features


WITHOUT_FLOAT64 = {"mps"}  # types of devices


class OutOfRange(ValueError):
    """Numbers that are not finite, or too large to square, as those of a training that diverges; says which."""

    def __str__(self) -> str:
        return f"{self.args[0]}; did the training diverge?"


def has_float64(tensor: Tensor) -> bool:
    """Whether the device of a tensor computes in float64. Apple's MPS does not: work in it is done on the CPU."""
    return tensor.device.type not in WITHOUT_FLOAT64


def where_float64_is(tensor: Tensor) -> Tensor:
    """The tensor on its device, or on the CPU where that has no float64."""
    return tensor if has_float64(tensor) else tensor.cpu()


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
    """Raise where targets are neither whole numbers (B,) below K nor soft ones (B, K), for rows (B, ...), B >= 1.

    Soft targets are shares of the K classes: not negative, and one in all for each sample. On an accelerator their
    range is left to the kernels that use them: to look at it here is to wait for it.
    """
    kind = _kind_of_targets(targets, rows, num_classes)
    if kind is None:
        found = f"{tuple(targets.shape)} {targets.dtype}" if isinstance(targets, Tensor) else type(targets).__name__
        expected = f"whole numbers (B,) or floats (B, {num_classes}), for each of {len(rows)} samples, B >= 1"
        raise ValueError(f"targets must be {expected}, got {found}")
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        return
    assert isinstance(targets, Tensor)
    if kind == "soft":
        _check_shares(targets)
    elif targets.device.type == "cpu":
        low, high = (
            int(end) for end in targets.long().aminmax()
        )  # torch cannot compare unsigned numbers of all widths
        if not 0 <= low <= high < num_classes:
            raise ValueError(f"targets must lie in 0..{num_classes - 1} for {num_classes} classes, got {low} to {high}")


def _kind_of_targets(targets: object, rows: Tensor, num_classes: int) -> str | None:
    if not isinstance(targets, Tensor) or not len(rows) or len(targets.shape) == 0 or len(targets) != len(rows):
        return None
    if targets.is_floating_point():
        return "soft" if targets.shape == (len(rows), num_classes) else None
    whole = targets.shape == rows.shape[:1] and targets.dtype != torch.bool and not targets.is_complex()
    return "hard" if whole else None


def _check_shares(targets: Tensor) -> None:
    """Raise where soft targets (B, K) on a CPU are no shares."""
    if targets.device.type != "cpu":
        return
    sums = targets.sum(1)
    close = (sums - 1).abs() <= max(1e-3, 4 * torch.finfo(targets.dtype).eps)
    if not bool(close.all() and (targets >= 0).all()):  # nor NaN
        raise ValueError(
            f"soft targets must be shares of the classes, >= 0 and one in all, got sums from {sums.min().item():g} to "
            f"{sums.max().item():g} and a smallest share of {targets.min().item():g}"
        )


def counts_tensor(class_counts: Sequence[float] | Tensor) -> Tensor:
    """Class sizes (K,) in float64, on their device; a ValueError for what holds no finite number for each class."""
    try:
        if isinstance(class_counts, Tensor):
            class_counts = where_float64_is(class_counts)
        counts = torch.as_tensor(class_counts, dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        raise ValueError(f"class_counts must hold a number for each class, got {shortened(class_counts)}") from None
    if bool(counts.isinf().any()):
        raise ValueError(f"class_counts must be finite, got {shortened(counts.tolist())}")
    return counts
