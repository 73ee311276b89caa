"""The accuracies of long-tailed studies, from predictions and targets (N,). All in [0, 1]."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ncflow.metrics.imbalance import rarest
from ncflow.metrics.rows import Formula, Metric, View
from ncflow.metrics.shots import shot_groups


def accuracies(
    predictions: Tensor,
    ranks: Tensor,
    targets: Tensor,
    class_counts: Tensor,
    *,
    recalls: Tensor | None = None,
) -> dict[str, Tensor]:
    """The accuracies by the names of METRICS, without "acc/". Each is 0-dim, in [0, 1].

    ranks (N,) is the number of classes that score above the target. class_counts (K,) are those of the training split.
    The value of a group is the mean recall of its classes. tail20 is the rarest 20 % of all classes. worst is the least
    recall of a class. macro_f1 is the mean F1 of the classes that have samples. A group without classes is absent, and
    so is top5 for K <= 5. `recalls` (K,) are those of `class_recalls`, if already known.
    """
    num_classes = len(class_counts)
    recalls = class_recalls(predictions, targets, num_classes) if recalls is None else recalls
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


def class_recalls(predictions: Tensor, targets: Tensor, num_classes: int) -> Tensor:
    """Share of each class's samples that are predicted correctly: (K,) float64, NaN for a class without samples."""
    hits = torch.bincount(targets[predictions == targets], minlength=num_classes)
    return hits.double() / torch.bincount(targets, minlength=num_classes)


def class_f1(predictions: Tensor, targets: Tensor, num_classes: int) -> Tensor:
    """F1 (K,) of each class, 2·hits/(predicted + actual): float64 in [0, 1], NaN for a class without either."""
    hits = torch.bincount(targets[predictions == targets], minlength=num_classes)
    predicted, actual = (torch.bincount(labels, minlength=num_classes) for labels in (predictions, targets))
    return 2 * hits.double() / (predicted + actual)


def _of(group: str) -> Formula:
    return lambda a: a.accuracies.get(group)


LIU = "Liu et al. 2019"
METRICS: dict[str, Metric] = {
    "acc/overall": Metric(_of("overall"), "share of samples with argmax(Wh + b) = y", "[0, 1]", "1", "test"),
    "acc/balanced": Metric(
        _of("balanced"),
        "mean over classes of their recall",
        "[0, 1]",
        "1",
        "test",
        view=View(
            "Balanced accuracy",
            "mean over classes of the accuracy within each class",
            "test",
            ("table", "curves", "knobs"),
            percent=True,
        ),
    ),
    "acc/top5": Metric(
        _of("top5"), "share of samples with fewer than 5 classes scoring above y", "[0, 1]", "1", "test"
    ),
    "acc/many": Metric(
        _of("many"), "mean recall of classes of more than 100 training samples", "[0, 1]", "1", "test", LIU
    ),
    "acc/medium": Metric(_of("medium"), "of classes of 20 to 100", "[0, 1]", "1", "test", LIU),
    "acc/few": Metric(
        _of("few"),
        "of classes of fewer than 20",
        "[0, 1]",
        "1",
        "test",
        LIU,
        view=View(
            "Few-shot accuracy",
            "accuracy on classes with fewer than 20 training samples",
            "test",
            ("table",),
            percent=True,
        ),
    ),
    "acc/tail20": Metric(
        _of("tail20"),
        "of the rarest 20 % of the classes",
        "[0, 1]",
        "1",
        "test",
        view=View("Tail accuracy", "accuracy on the rarest 20 % of the classes", "test", ("table",), percent=True),
    ),
    "acc/worst": Metric(_of("worst"), "the least recall of a class", "[0, 1]", "1", "test"),
    "acc/macro_f1": Metric(
        _of("macro_f1"),
        "mean over classes of F1 = 2·hits/(samples decided for the class + samples of it)",
        "[0, 1]",
        "1",
        "test",
    ),
}
