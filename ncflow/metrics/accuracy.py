"""Accuracies that a long-tailed study reports, from predictions and targets (N,). All in [0, 1]."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ncflow.metrics.imbalance import rarest

GROUPS = ("overall", "balanced", "top5", "many", "medium", "few", "tail20", "worst", "macro_f1")
SHOTS = ("many", "medium", "few")
MANY, FEW = 100, 20  # training samples: many-shot above the first, few-shot below the second. Liu et al. 2019.


def accuracies(predictions: Tensor, ranks: Tensor, targets: Tensor, class_counts: Tensor) -> dict[str, Tensor]:
    """Those in GROUPS; a group without a class, or top5 of <= 5 classes, is absent.

    ranks (N,) says how many classes score above the target; class_counts (K,) are those of the training split. Every
    group is the mean recall of its classes; tail20 the rarest 20 % of all classes. worst is the least recall of a
    class, macro_f1 the mean F1 of the classes that have samples.
    """
    num_classes = len(class_counts)
    recalls = class_recalls(predictions, targets, num_classes)
    tail = torch.zeros_like(class_counts, dtype=torch.bool)
    tail[rarest(class_counts, math.ceil(num_classes / 5))] = True
    groups = {
        "balanced": torch.ones_like(tail),
        **shot_groups(class_counts),
        "tail20": tail,
    }
    seen = torch.isfinite(recalls)
    values = {name: recalls[group & seen].mean() for name, group in groups.items() if bool((group & seen).any())}
    if num_classes > 5:
        values["top5"] = (ranks < 5).double().mean()
    values["worst"] = recalls[seen].min()
    values["macro_f1"] = class_f1(predictions, targets, num_classes)[seen].mean()
    return {"overall": (predictions == targets).double().mean(), **values}


def shot_groups(class_counts: Tensor) -> dict[str, Tensor]:
    """name -> mask (K,) of the many-, medium- and few-shot classes, by their training sizes (K,). Liu et al. 2019."""
    return {
        "many": class_counts > MANY,
        "medium": (class_counts <= MANY) & (class_counts >= FEW),
        "few": class_counts < FEW,
    }


def class_recalls(predictions: Tensor, targets: Tensor, num_classes: int) -> Tensor:
    """Share of each class's samples that are predicted right: (K,) float64, NaN for a class without samples."""
    hits = torch.bincount(targets[predictions == targets], minlength=num_classes)
    return hits.double() / torch.bincount(targets, minlength=num_classes)


def class_f1(predictions: Tensor, targets: Tensor, num_classes: int) -> Tensor:
    """F1 (K,) of each class, 2·hits/(predicted + actual): float64 in [0, 1], NaN for a class without either."""
    hits = torch.bincount(targets[predictions == targets], minlength=num_classes)
    predicted, actual = (torch.bincount(labels, minlength=num_classes) for labels in (predictions, targets))
    return 2 * hits.double() / (predicted + actual)
