"""Check arguments: tensors, whole numbers, class sizes, and whether features, targets and classifier fit."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral
from reprlib import repr as shortened
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

LARGEST = 2**17  # a square float64 matrix of this size takes 137 GB: larger numbers are mistakes
WITHOUT_FLOAT64 = {"mps"}  # device types
UNSIGNED = (torch.uint16, torch.uint32, torch.uint64)


class OutOfRange(ValueError):
    """Error for numbers that are not finite, or too large to square. A training that diverges produces them."""

    def __str__(self) -> str:
        return f"{self.args[0]}; did the training diverge?"


def has_float64(tensor: Tensor) -> bool:
    """Whether the device of a tensor computes in float64. Apple's MPS does not: ncflow then uses the CPU."""
    return tensor.device.type not in WITHOUT_FLOAT64


def where_float64_is(tensor: Tensor) -> Tensor:
    """The tensor on its device, or on the CPU where the device has no float64."""
    return tensor if has_float64(tensor) else tensor.cpu()


def check_tensors(**values: object) -> None:
    """Check that each value is a tensor of real numbers. Raises ValueError with its name where it is not."""
    for name, value in values.items():
        if not isinstance(value, Tensor) or value.is_complex():
            found = value.dtype if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(f"{name} must be a tensor of real numbers, got {found}")


def check_whole(*, least: int = 1, most: int = LARGEST, **values: object) -> None:
    """Check that each value is a whole number from `least` to `most`. Raises ValueError with its name if not."""
    for name, value in values.items():
        if not isinstance(value, Integral) or isinstance(value, bool) or not least <= int(value) <= most:
            raise ValueError(f"{name} must be a whole number from {least} to {most}, got {shortened(value)}")


def check_batch(rows: Tensor, targets: object, num_classes: int) -> None:
    """Check targets for rows (B, ...), B >= 1: whole numbers (B,) below K, or soft targets (B, K).

    Soft targets are shares of the K classes: not negative, with sum 1 for each sample. Raises ValueError otherwise.
    On an accelerator the kernels check the range: a check here would wait for the device.
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
        # torch cannot compare unsigned numbers of all widths
        low, high = (int(end) for end in targets.long().aminmax())
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
    """Raise where soft targets (B, K) on a CPU are not shares."""
    if targets.device.type != "cpu":
        return
    sums = targets.sum(1)
    close = (sums - 1).abs() <= max(1e-3, 4 * torch.finfo(targets.dtype).eps)
    if not bool(close.all() and (targets >= 0).all()):  # also rejects NaN
        raise ValueError(
            f"soft targets must be shares of the classes, >= 0 with sum 1, got sums from {sums.min().item():g} to "
            f"{sums.max().item():g} and a smallest share of {targets.min().item():g}"
        )


def counts_tensor(class_counts: Sequence[float] | Tensor) -> Tensor:
    """Class sizes (K,) in float64, on their device. Raises ValueError where a size is not a finite number."""
    try:
        if isinstance(class_counts, Tensor):
            class_counts = where_float64_is(class_counts)
        counts = torch.as_tensor(class_counts, dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        raise ValueError(f"class_counts must hold a number for each class, got {shortened(class_counts)}") from None
    if bool(counts.isinf().any()):
        raise ValueError(f"class_counts must be finite, got {shortened(counts.tolist())}")
    return counts


def check_inputs(
    features: Tensor,
    targets: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    num_classes: int | None,
    class_counts: Sequence[int] | Tensor | None,
    train_means: Tensor | None,
) -> int:
    """Return the number of classes. Raises ValueError with the expected and the given shape where inputs do not fit."""
    optional = {"weight": weight, "bias": bias, "train_means": train_means}
    given = {name: tensor for name, tensor in optional.items() if tensor is not None}
    check_tensors(**given)
    check_samples(features, targets, fewest=1)
    if class_counts is not None:
        given["class_counts"] = counts_tensor(class_counts)
    if num_classes is None:
        by_class = (given.get(name) for name in ("weight", "class_counts", "train_means"))
        sizes = (len(tensor) for tensor in by_class if tensor is not None and tensor.ndim)
        num_classes = next(sizes, int(targets.max()) + 1)
    check_targets(targets, num_classes)
    if "class_counts" in given:
        check_counts(given.pop("class_counts"), num_classes)
    for name, tensor in given.items():
        _check_rows(name, tensor, (num_classes, features.shape[1]))
    return num_classes


def as_tensors(*values: Any) -> list[Any]:
    """NumPy arrays as tensors over the same memory; other values unchanged.

    Unsigned tensors wider than uint8 become int64, because torch has neither minimum nor order for them. Tensors on a
    device without float64 move to the CPU.
    """
    tensors = [_from_numpy(value) if isinstance(value, np.ndarray) else value for value in values]
    return [_usable(value) if isinstance(value, Tensor) else value for value in tensors]


def _usable(tensor: Tensor) -> Tensor:
    tensor = tensor.long() if tensor.dtype in UNSIGNED else tensor
    return where_float64_is(tensor)


def _from_numpy(array: npt.NDArray[Any]) -> Any:
    """A tensor of an array. Copies it where torch cannot share it: reversed, read-only, or of the other byte order.

    An array of other things than numbers stays an array. The checks reject it.
    """
    if array.dtype.kind not in "fiub" or array.dtype.itemsize > 8:
        return array
    array = array.astype(array.dtype.newbyteorder("="), copy=False)
    array = array.astype(np.int64) if array.dtype.kind == "u" and array.dtype.itemsize > 1 else array
    shareable = array.flags.writeable and all(stride >= 0 for stride in array.strides)
    return torch.from_numpy(array if shareable else array.copy())


def check_samples(features: Tensor, targets: Tensor, *, fewest: int = 0) -> None:
    """Check features (N, d), N >= `fewest` and d >= 1, and as many targets (N,). Raises ValueError if they are not."""
    check_tensors(features=features, targets=targets)
    if features.ndim != 2 or not features.is_floating_point() or not features.shape[1] or len(features) < fewest:
        raise ValueError(f"features must be floats (N, d), N and d >= 1, got {tuple(features.shape)} {features.dtype}")
    if targets.shape != features.shape[:1] or targets.is_floating_point() or targets.dtype == torch.bool:
        expected = f"integers ({len(features)},)"
        raise ValueError(f"targets must be {expected}, one per feature, got {tuple(targets.shape)} {targets.dtype}")


def check_ood(ood_features: Tensor, features: Tensor) -> None:
    """Check for finite floats (M, d), M >= 1, with d of the features (N, d). Raises ValueError if they are not."""
    check_tensors(ood_features=ood_features)
    shape, width = tuple(ood_features.shape), features.shape[1]
    if len(shape) != 2 or not ood_features.is_floating_point() or not shape[0] or shape[1] != width:
        raise ValueError(f"ood_features must be floats (M, {width}), M >= 1, got {shape} {ood_features.dtype}")
    if not bool(torch.linalg.vector_norm(ood_features.double()).square().isfinite()):
        raise OutOfRange("ood_features hold NaN, infinities or numbers too large to square")


def check_targets(targets: Tensor, num_classes: int) -> None:
    """Check the number of classes, and that every target is below it. Raises ValueError otherwise."""
    check_whole(num_classes=num_classes)
    low, high = (int(targets.min()), int(targets.max())) if len(targets) else (0, 0)
    if not 0 <= low <= high < num_classes:
        raise ValueError(f"targets must lie in 0..{num_classes - 1} for {num_classes} classes, got {low}..{high}")


def check_counts(class_counts: Sequence[int] | Tensor, num_classes: int) -> Tensor:
    """The sizes (K,) of the classes as a tensor. Raises ValueError where they are not K sizes >= 0."""
    counts = counts_tensor(class_counts)
    if counts.shape != (num_classes,) or not bool((counts >= 0).all()):
        raise ValueError(f"class_counts must hold {num_classes} sizes >= 0, got {counts.tolist()}")
    return counts


def _check_rows(name: str, tensor: Tensor, shape: tuple[int, int]) -> None:
    """Raise where a tensor does not have this shape (K, d), a bias (K,), or is not finite. Absent means may be NaN."""
    expected = shape[:1] if name == "bias" else shape
    if tuple(tensor.shape) != expected:
        raise ValueError(f"{name} must have shape {expected}, got {tuple(tensor.shape)}")
    known = tensor.double().nan_to_num(0.0, torch.inf, -torch.inf) if name == "train_means" else tensor.double()
    if not bool(torch.linalg.vector_norm(known).square().isfinite()):
        raise OutOfRange(f"{name} holds NaN or infinities, or numbers too large to square")
