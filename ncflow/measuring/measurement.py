"""All metrics of features that somebody trained, on the training split and, if there is one, on a test split."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from ncflow.checks import as_tensors, check_inputs, counts_tensor
from ncflow.metrics import ClassMoments, collapse_metrics

FEW = 5  # classes that a message names


class Measurement(NamedTuple):
    """Metrics by split: {"train": {"nc1/pinv": …}} and, if there is a test split, {"test": {…}}.

    class_means (K, d) are those of the training split, NaN for a class without samples. class_counts (K,) are the sizes
    of its classes.
    """

    metrics: dict[str, dict[str, float]]
    class_means: torch.Tensor
    class_counts: torch.Tensor


@torch.no_grad()
def measure(
    features: Any,
    targets: Any,
    *,
    weight: Any = None,
    bias: Any = None,
    train: tuple[Any, Any] | None = None,
    class_counts: Sequence[int] | None = None,
    class_names: Sequence[str] | None = None,
) -> Measurement:
    """Measure features (N, d) with targets (N,): arrays or tensors, computed in float64.

    Without `train` these are the training features. With `train`, a pair of features and targets, they are unseen ones:
    then nc4 and the groups of classes use the training split. weight (K, d) and bias (K,) are the classifier on these
    features. class_counts (K,) are the sizes of the training classes, by default counted. class_names name classes
    without samples in a warning. Raises ValueError for inputs that do not fit, and for features that are not finite.

    Example::

        measure(features, targets, weight=model.fc.weight, bias=model.fc.bias).metrics["train"]["nc1/pinv"]
    """
    own, rows = as_tensors(features, targets), as_tensors(weight, bias)
    seen = own if train is None else as_tensors(*train)
    for name, (h, y) in {"train": seen, "test": own}.items():
        _check_finite(name if train is not None else "the", h, y)
    weight, bias = rows
    num_classes = max(check_inputs(h, y, weight, bias, None, class_counts, None) for h, y in (seen, own))
    means = ClassMoments.from_features(seen[0], seen[1].long(), num_classes, scatter=False)
    counts = means.counts if class_counts is None else counts_tensor(class_counts)
    _warn_of_empty_classes(means.counts, class_names)
    known: dict[str, Any] = {"num_classes": num_classes, "class_counts": counts}
    on_train = collapse_metrics(seen[0], seen[1], weight, bias, moments=means, **known)
    if train is None:
        return Measurement({"train": on_train}, means.means_or_nan, counts)
    moments = ClassMoments.from_features(own[0], own[1].long(), num_classes, scatter=False)
    known |= {"train_means": means.means_or_nan, "moments": moments}
    unseen = collapse_metrics(own[0], own[1], weight, bias, **known)
    return Measurement({"train": on_train, "test": unseen}, means.means_or_nan, counts)


def _check_finite(name: str, features: Any, targets: Any) -> None:
    """Raise for rows that are not finite, with their number and the first one; other faults are found later."""
    if not isinstance(features, torch.Tensor) or features.ndim != 2 or not features.is_floating_point():
        return
    wrong = (~features.isfinite().all(1)).nonzero().squeeze(1)
    if len(wrong):
        raise ValueError(
            f"{name} features must be finite, got NaN or infinity in {len(wrong)} of {len(features)} rows, the first "
            f"is row {int(wrong[0])}; leave these samples out, or look for the layer that diverged"
        )


def _warn_of_empty_classes(counts: torch.Tensor, class_names: Sequence[str] | None) -> None:
    empty = (counts == 0).nonzero().squeeze(1).tolist()
    if empty:
        names = [str(class_names[k]) if class_names else str(k) for k in empty[:FEW]]
        more = f" and {len(empty) - FEW} more" if len(empty) > FEW else ""
        warnings.warn(f"no training sample of class {', '.join(names)}{more}: metrics use the others", stacklevel=3)
