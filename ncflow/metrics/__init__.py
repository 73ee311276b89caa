"""Every collapse metric of a feature matrix in one call: `collapse_metrics`. Only torch is needed."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ncflow.checks import as_tensors, check_counts, check_inputs, check_ood
from ncflow.lookup import lookup
from ncflow.metrics.accuracy import class_recalls
from ncflow.metrics.analysis import Analysis
from ncflow.metrics.moments import ClassMoments
from ncflow.metrics.rounding import EPS, precision
from ncflow.metrics.rows import Formula, Metric
from ncflow.metrics.table import METRICS

if TYPE_CHECKING:
    from ncflow.metrics.torchmetric import NeuralCollapse

__all__ = ["METRICS", "ClassMoments", "Metric", "NeuralCollapse", "class_recalls", "collapse_metrics", "moment_metrics"]


@torch.no_grad()
def collapse_metrics(
    features: Tensor,
    targets: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    num_classes: int | None = None,
    class_counts: Sequence[int] | Tensor | None = None,
    train_means: Tensor | None = None,
    ood_features: Tensor | None = None,
    moments: ClassMoments | None = None,
    only: Collection[str] | None = None,
) -> dict[str, float]:
    """All metrics of features (N, d) with targets (N,), as name -> value. A classifier adds its own metrics.

    Inputs are tensors or NumPy arrays. Targets are whole numbers of any width. The classifier is weight (K, d) and bias
    (K,), with logits features · weightᵀ + bias. class_counts (K,) and train_means (K, d) belong to the training split;
    groups of classes and nc4 use them. Rows of train_means for unseen classes are NaN. By default both come from these
    features. K is num_classes, else the length of weight, class_counts or train_means, else the largest target plus
    one. ood_features (M, d) belong to no known class; nc5 uses them. `moments` are those of the features, if already
    known. `only` holds the names of the requested metrics; the others are not computed.

    A metric that is not defined for the input (one class, all features equal, an empty group) is absent, never NaN.
    Computed in float64. Names, ranges and values at collapse: docs/metrics.md. Raises ValueError for shapes that do not
    match, targets out of range, features that are not finite, and unknown names.

    Examples:
        >>> import torch
        >>> from ncflow import simplex_etf
        >>> targets, frame = torch.arange(30) % 3, simplex_etf(3, 4)
        >>> metrics = collapse_metrics(2 * frame[targets], targets, frame)
        >>> [round(metrics[name], 6) for name in ("acc/overall", "nc1/pinv", "nc2/etf_error_means", "nc3/self_duality")]
        [1.0, 0.0, 0.0, 0.0]
    """
    features, targets, weight, bias, train_means = as_tensors(features, targets, weight, bias, train_means)
    (ood_features,) = as_tensors(ood_features)
    num_classes = check_inputs(features, targets, weight, bias, num_classes, class_counts, train_means)
    if ood_features is not None:
        check_ood(ood_features, features)
    targets = targets.long()
    wanted = METRICS if only is None else {name: lookup(METRICS, name, "metric") for name in only}
    needs = {row.needs for row in wanted.values()}
    scatter = "scatter" in needs
    if moments is None:
        alone = scatter and "spectra" not in needs  # "spectra" computes the scatter anyway, without extra cost
        moments = ClassMoments.from_features(features, targets, num_classes, scatter=alone)
    analysis = Analysis(
        moments,
        _train_counts(class_counts, moments),
        samples=(features, targets),
        classifier=_float64(weight, bias),
        train_means=None if train_means is None else train_means.double(),
        ood=None if ood_features is None else _as_one_class(ood_features),
        scatter=scatter,
        margins="margins" in needs,
        weight_eps=EPS if weight is None else precision(weight),
        means_eps=EPS if train_means is None else precision(train_means),
    )
    return _defined(analysis, wanted)


@torch.no_grad()
def moment_metrics(
    moments: ClassMoments,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    class_counts: Sequence[int] | Tensor | None = None,
) -> dict[str, float]:
    """The metrics that need only the moments of the features: all of NC1 to NC3 except nc1/numerical_rank."""
    weight, bias = as_tensors(weight, bias)
    analysis = Analysis(
        moments,
        _train_counts(class_counts, moments),
        classifier=_float64(weight, bias),
        weight_eps=EPS if weight is None else precision(weight),
    )
    return _defined(analysis, METRICS)


def _as_one_class(features: Tensor) -> ClassMoments:
    targets = torch.zeros(len(features), dtype=torch.long, device=features.device)
    return ClassMoments.from_features(features, targets, 1, scatter=False)


def _float64(weight: Tensor | None, bias: Tensor | None) -> tuple[Tensor, Tensor] | None:
    """The classifier in float64. A missing bias becomes 0."""
    if weight is None:
        return None
    weight = weight.double()
    return weight, torch.zeros_like(weight[:, 0]) if bias is None else bias.double()


def _train_counts(class_counts: Sequence[int] | Tensor | None, moments: ClassMoments) -> Tensor:
    return (
        moments.counts if class_counts is None else check_counts(class_counts, len(moments.counts)).to(moments.counts)
    )


def _defined(analysis: Analysis, formulas: Mapping[str, Formula]) -> dict[str, float]:
    values = {name: formula(analysis) for name, formula in sorted(formulas.items())}
    found = {name: value.double() for name, value in values.items() if value is not None}
    numbers = torch.stack(list(found.values())).tolist() if found else []  # a single transfer from the device
    return {name: number for name, number in zip(found, numbers, strict=True) if math.isfinite(number)}


def __getattr__(name: str) -> Any:
    if name == "NeuralCollapse":  # torchmetrics takes seconds to import
        from ncflow.metrics.torchmetric import NeuralCollapse

        return NeuralCollapse
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
