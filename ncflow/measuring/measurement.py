"""All metrics of features that somebody trained, on the training split and, if there is one, on a test split."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ncflow.checks import as_tensors, check_counts, check_inputs, check_samples, counts_tensor
from ncflow.metrics import ClassMoments, collapse_metrics, moment_metrics
from ncflow.metrics.stream import MomentSum

FEW = 5  # classes that a message names
ROWS = 2**16  # features that are checked at a time


class Measurement(NamedTuple):
    """Metrics by split: {"train": {"nc1/pinv": …}} and, if there is a test split, {"test": {…}}.

    class_means (K, d) are those of the training split, NaN for a class without samples. class_counts (K,) are the sizes
    of its classes. Both are arrays where the features are arrays, else tensors.

    Examples:
        >>> import numpy as np
        >>> from ncflow import measure
        >>> measured = measure(np.eye(3)[[0, 1, 2, 0, 1, 2]], np.array([0, 1, 2, 0, 1, 2]))
        >>> measured.class_counts.tolist(), measured.metrics["train"]["nc1/quotient"]
        ([2.0, 2.0, 2.0], 0.0)
    """

    metrics: dict[str, dict[str, float]]
    class_means: Any
    class_counts: Any


@torch.no_grad()
def measure(
    features: Any,
    targets: Any = None,
    *,
    weight: Any = None,
    bias: Any = None,
    train: Any = None,
    class_counts: Sequence[int] | None = None,
    class_names: Sequence[str] | None = None,
) -> Measurement:
    """Measure features (N, d) with targets (N,): arrays, tensors, or a stream of batches, computed in float64.

    Without `train` these are the training features. With `train`, a pair of features and targets, they are unseen ones:
    then nc4 and the groups of classes use the training split. weight (K, d) and bias (K,) are the classifier on these
    features. class_counts (K,) are the sizes of the training classes, by default counted. class_names name classes
    without samples in a warning.

    Without targets, features is an iterable of batches (features (B, d), targets (B,)), and so may train be. Each batch
    is read once, so a stream may be larger than memory. It gives the metrics that class moments define: NC1 to NC3
    without nc1/numerical_rank, drift and imbalance, but no accuracies, margins or nc4.

    Raises ValueError for inputs that do not fit, and for features that are not finite.

    Examples:
        >>> import torch
        >>> features, targets = torch.randn(30, 4), torch.arange(30) % 3
        >>> found = measure(features, targets, weight=torch.randn(3, 4)).metrics["train"]
        >>> streamed = measure([(features[:20], targets[:20]), (features[20:], targets[20:])]).metrics["train"]
        >>> abs(found["nc1/pinv"] - streamed["nc1/pinv"]) < 1e-9
        True
    """
    rows = as_tensors(weight, bias)
    known: dict[str, Any] = {"class_counts": class_counts, "class_names": class_names}
    if targets is None:
        if isinstance(features, Tensor | np.ndarray):
            raise ValueError("features need targets (N,); or give an iterable of batches (features, targets)")
        return _measure_streams(features, train, *rows, **known)
    own = as_tensors(features, targets)
    measured = _measure_samples(own, None if train is None else as_tensors(*train), *rows, **known)
    if not isinstance(features, np.ndarray):
        return measured
    return measured._replace(class_means=measured.class_means.numpy(), class_counts=measured.class_counts.numpy())


def _measure_samples(
    own: Sequence[Tensor],
    train: Sequence[Tensor] | None,
    weight: Tensor | None,
    bias: Tensor | None,
    *,
    class_counts: Sequence[int] | None,
    class_names: Sequence[str] | None,
) -> Measurement:
    seen = own if train is None else train
    for name, (h, _) in {"train": seen, "test": own}.items():
        _check_finite(f"{name} features" if train is not None else "the features", h)
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


def _measure_streams(
    own: Iterable[tuple[Any, Any]],
    train: Iterable[tuple[Any, Any]] | None,
    weight: Tensor | None,
    bias: Tensor | None,
    *,
    class_counts: Sequence[int] | None,
    class_names: Sequence[str] | None,
) -> Measurement:
    given = len(weight) if weight is not None else None if class_counts is None else len(class_counts)
    seen = _summed("the" if train is None else "train", own if train is None else train, given)
    num_classes = len(seen.counts)
    if weight is not None:
        check_inputs(seen.means[:1], torch.zeros(1, dtype=torch.long), weight, bias, num_classes, None, None)
    counts = seen.counts if class_counts is None else check_counts(class_counts, num_classes)
    _warn_of_empty_classes(seen.counts, class_names, stacklevel=4)
    metrics = {"train": moment_metrics(seen, weight, bias, class_counts=counts)}
    if train is not None:
        metrics["test"] = moment_metrics(_summed("test", own, num_classes), weight, bias, class_counts=counts)
    return Measurement(metrics, seen.means_or_nan, counts)


def _summed(name: str, batches: Iterable[tuple[Any, Any]], num_classes: int | None) -> ClassMoments:
    """The moments of a stream of batches. Raises ValueError for what is no pair of features and targets."""
    moments: MomentSum | None = None
    before = 0
    for batch in batches:
        if not isinstance(batch, tuple | list) or len(batch) != 2:
            raise ValueError(f"expected batches of a pair, features and targets, got {type(batch).__name__}")
        features, targets = as_tensors(*batch)
        check_samples(features, targets)
        _check_finite(f"{name} features", features, before=before)
        moments = moments or MomentSum(features.shape[1], num_classes, device=features.device)
        moments.add(features, targets)
        before += len(features)
    if moments is None:
        raise ValueError(f"expected at least one batch of {name} features, got none")
    return moments.total()


def _check_finite(name: str, features: Any, *, before: int = 0) -> None:
    """Raise for rows that are not finite, with their number and the first one, after rows `before` of a stream."""
    if not isinstance(features, Tensor) or features.ndim != 2 or not features.is_floating_point():
        return  # other faults are found later
    finite = torch.cat([part.isfinite().all(1) for part in torch.split(features, ROWS)])
    wrong = (~finite).nonzero().squeeze(1)
    if len(wrong):
        raise ValueError(
            f"{name} must be finite, got NaN or infinity in {len(wrong)} of {len(features)} rows, the first is row "
            f"{before + int(wrong[0])}; leave these samples out, or look for the layer that diverged"
        )


def _warn_of_empty_classes(counts: Tensor, class_names: Sequence[str] | None, *, stacklevel: int = 4) -> None:
    empty = (counts == 0).nonzero().squeeze(1).tolist()
    if empty:
        names = [str(class_names[k]) if class_names else str(k) for k in empty[:FEW]]
        more = f" and {len(empty) - FEW} more" if len(empty) > FEW else ""
        message = f"no training sample of class {', '.join(names)}{more}: metrics use the others"
        warnings.warn(message, stacklevel=stacklevel)
