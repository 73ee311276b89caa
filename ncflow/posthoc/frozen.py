"""What every post-hoc classifier starts from: frozen features of the training split, and the trained classifier."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from ncflow.checks import as_tensors, check_inputs, counts_tensor
from ncflow.metrics import ClassMoments


class Lacking(ValueError):
    """The error of a method that needs something that the run does not have."""


class LinearMap(NamedTuple):
    """weight (K, d) and bias (K,) of a classifier. Calling it maps features (N, d) to logits (N, K)."""

    weight: Tensor
    bias: Tensor

    def __call__(self, features: Tensor) -> Tensor:
        return features @ self.weight.mT + self.bias


@dataclass(frozen=True, eq=False)
class Frozen:
    """Features (N, d) and targets (N,) of the whole training split, a classifier, and the class sizes (K,).

    Features are the input of the head's linear map, weight (K, d) and bias (K,). `freeze_features` makes and checks it.
    """

    features: Tensor
    targets: Tensor
    weight: Tensor
    bias: Tensor
    class_counts: Tensor

    @property
    def classifier(self) -> LinearMap:
        """The trained classifier itself."""
        return LinearMap(self.weight, self.bias)

    @property
    def priors(self) -> Tensor:
        """π (K,), the share of each class in the training split; sum 1."""
        return self.class_counts / self.class_counts.sum()

    @cached_property
    def class_means(self) -> Tensor:
        """μ (K, d), the mean feature of each class."""
        moments = ClassMoments.from_features(self.features, self.targets, len(self.weight), scatter=False)
        return moments.means.to(self.features)


def freeze_features(
    features: Tensor,
    targets: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    class_counts: Sequence[int] | Tensor | None = None,
) -> Frozen:
    """Check features (N, d), targets (N,), weight (K, d), bias (K,) and class sizes (K,), and convert them to float64.

    A missing bias is zero. Missing class sizes are counted. Raises ValueError for shapes that do not fit, for a class
    without samples, and for class sizes that differ from the number of targets.

    Example::

        frozen = freeze_features(features, targets, head.weight, head.bias)
        weight, bias = POSTHOC["tau_norm"](frozen, tau=0.7)
    """
    features, targets, weight, bias = as_tensors(features, targets, weight, bias)
    num_classes = check_inputs(features, targets, weight, bias, None, class_counts, None)
    found = torch.bincount(targets, minlength=num_classes).double()
    if not bool(found.all()):
        raise ValueError(f"frozen features need samples in every class, got class sizes {found.long().tolist()}")
    if class_counts is not None and not torch.equal(counts_tensor(class_counts).to(found), found):
        given = counts_tensor(class_counts).long().tolist()
        raise ValueError(f"class_counts must be the numbers of targets, {found.long().tolist()}, got {given}")
    rows = weight.detach().to(features.device, torch.float64)
    shift = rows.new_zeros(num_classes) if bias is None else bias.detach().to(rows)
    return Frozen(features.detach().double(), targets.long(), rows, shift, found)
