"""NeuralCollapse: the collapse metrics as a streaming torchmetrics Metric, exact across batches and processes."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module
from torchmetrics import Metric

from ncflow.checks import as_tensors, check_counts, check_samples, has_float64
from ncflow.lookup import lookup
from ncflow.metrics import METRICS, moment_metrics
from ncflow.metrics.moments import ClassMoments
from ncflow.metrics.stream import MomentSum

FIELDS = [field.name for field in dataclasses.fields(ClassMoments)]


class NeuralCollapse(Metric):
    """Collapse metrics over a stream: update(features (B, d), targets (B,)) per batch, compute() -> {"nc1/pinv": …}.

    Holds K·d + d² float64 numbers for any number of samples. `classifier` is any module with .weight (K, d) and
    optionally .bias (K,). It adds the metrics of the classifier and of its duality with the class means. Only
    `collapse_metrics` has the metrics that need the samples again (nc1/numerical_rank, nc4, margins, accuracies).
    class_counts (K,) are the class sizes of the training split, by default those of the stream. Pass them on a test
    split, because they define the groups of classes. `only` is the name of one metric: compute() then returns it alone,
    as a 0-dim tensor, NaN where it is not defined. So `self.log` of Lightning and MetricTracker take it. Raises
    ValueError for sizes that are not K numbers >= 0, and for an unknown name.

    Examples:
        >>> import torch
        >>> metric = NeuralCollapse(num_classes=3, num_features=4)  # with classifier=model.fc, also its metrics
        >>> for features, targets in [(torch.randn(30, 4), torch.arange(30) % 3)] * 2:
        ...     metric.update(features, targets)
        >>> metric.compute()["nc1/pinv"] > 0  # in Lightning: self.log_dict(metric.compute()), then metric.reset()
        True
    """

    full_state_update = True  # moments merge jointly, but torchmetrics' shortcut reduces each state separately
    is_differentiable = False
    counts: Tensor
    means: Tensor
    within_traces: Tensor
    within_scatter: Tensor
    eps: Tensor

    def __init__(
        self,
        num_classes: int,
        num_features: int,
        *,
        class_counts: Sequence[int] | Tensor | None = None,
        classifier: torch.nn.Module | None = None,
        only: str | None = None,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        if only is not None:
            lookup(METRICS, only, "metric")
        self.only = only
        self.num_classes = num_classes
        self.class_counts = None if class_counts is None else check_counts(class_counts, num_classes)
        # The tuple keeps the classifier's parameters out of the metric's parameters.
        self._classifier = (classifier,)
        empty = ClassMoments.empty(num_classes, num_features)
        for field in FIELDS:
            self.add_state(field, getattr(empty, field), dist_reduce_fx=None)  # None stacks the processes' states

    def update(self, features: Tensor, targets: Tensor) -> None:
        """Add features (B, d) with targets (B,) in 0..K-1. An empty batch has no effect.

        Raises ValueError for shapes, targets or numbers that are not valid.
        """
        features, targets = as_tensors(features, targets)
        check_samples(features, targets)
        if features.shape[1] != self.means.shape[-1]:
            raise ValueError(f"features must have shape (B, {self.means.shape[-1]}), got {tuple(features.shape)}")
        if not len(targets):
            return
        moments = MomentSum.of(self.moments())  # a batch costs the same for any number of classes
        moments.add(features, targets)
        merged = moments.total()
        for field in FIELDS:
            setattr(self, field, getattr(merged, field))

    def _apply(self, fn: Callable[[Tensor], Tensor], *options: Any, **named: Any) -> Module:
        """Move the states to another device. Without float64 there, the states stay on their device."""
        return super()._apply(fn, *options, **named) if has_float64(fn(torch.zeros(1))) else self

    def moments(self) -> ClassMoments:
        """The moments of all samples so far. After synchronization, of all processes."""
        if self.counts.ndim == 1:
            return ClassMoments(*(getattr(self, field) for field in FIELDS))
        by_process = zip(*(getattr(self, field) for field in FIELDS), strict=True)
        return reduce(ClassMoments.merge, (ClassMoments(*states) for states in by_process))

    def compute(self) -> Any:
        """The metrics of all samples so far, with the names of `collapse_metrics`. {} before the first sample.

        With `only` the value of this metric, 0-dim in float64.
        """
        found = self._metrics()
        return found if self.only is None else self.means.new_tensor(found.get(self.only, math.nan))

    def merge_state(self, incoming_state: dict[str, Any] | Metric) -> None:
        """Add the samples of another NeuralCollapse, or of its states by name."""
        others: Any = incoming_state.metric_state if isinstance(incoming_state, Metric) else incoming_state
        merged = self.moments().merge(ClassMoments(*(others[field].to(self.counts.device) for field in FIELDS)))
        for field in FIELDS:
            setattr(self, field, getattr(merged, field))
        self._update_count += 1
        self._computed = None

    def plot(self, val: Any = None, ax: Any = None) -> Any:
        """Draw the metrics of compute(), or a list of them over steps, and return figure and axes.

        Values have all magnitudes, so the axis is logarithmic, and linear near 0. A metric that is absent in one step
        is left out.
        """
        values = self.compute() if val is None else val
        steps = [values] if isinstance(values, Mapping) else list(values) if isinstance(values, Sequence) else []
        if not steps or not all(isinstance(step, Mapping) for step in steps):
            return self._plot(values, ax)
        names = [name for name in steps[0] if all(name in step for step in steps)]
        drawn = [{name: torch.as_tensor(float(step[name])) for name in names} for step in steps]
        axes: Any
        figure, axes = self._plot(drawn if isinstance(values, Sequence) else drawn[0], ax)
        axes.set_yscale("symlog", linthresh=1e-3)
        if isinstance(values, Mapping):  # names below the points are easier to find than in a legend
            axes.get_legend().remove()
            axes.get_xaxis().set_visible(True)
            axes.set_xticks(range(len(names)), names, rotation=90, fontsize="x-small")
        else:
            axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), ncol=2, fontsize="xx-small")
        return figure, axes

    def _metrics(self) -> dict[str, float]:
        moments = self.moments()
        if not bool(moments.counts.any()):
            return {}
        classifier = self._classifier[0]
        weight, bias = (getattr(classifier, name, None) for name in ("weight", "bias"))
        return moment_metrics(moments, weight, bias, class_counts=self.class_counts)
