"""Penalties on features: (features (B, d), targets, weight (K, d), class_counts (K,)) -> scalar, added to the loss.

Targets are classes (B,) or shares (B, K) of the classes, as mixing makes them. Sums run over all processes. So p
processes on B/p samples each have the penalty of one process on B. Every penalty is 0 at collapse, or least there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ncflow.checks import check_batch, check_tensors, counts_tensor
from ncflow.lookup import check_options, explained_options, fact, facts, lookup
from ncflow.nn.processes import rows_of_processes, sum_over_processes

Penalty = Callable[[Tensor, Tensor, Tensor], Tensor]


def create_penalty(name: str, class_counts: Sequence[int] | Tensor, **options: Any) -> Penalty:
    """Return the penalty called `name`, ready to call with (features, targets, weight).

    class_counts (K,) are the sizes of the training classes. Raises ValueError for a name or an option that does not
    exist, and for values out of range.

    Examples:
        >>> import torch
        >>> penalty = create_penalty("drift", [3, 3])
        >>> penalty(torch.tensor([[3.0, 4.0], [3.0, 4.0]]), torch.tensor([0, 1]), torch.zeros(2, 2)).item()
        25.0
    """
    row = lookup(PENALTIES, name, "penalty")
    check_options(row, options, f"penalty '{name}'")
    with explained_options(f"penalty '{name}'", options):  # reject options out of range before the first epoch
        row(torch.eye(3).repeat(2, 1), torch.arange(6) % 3, torch.eye(3), torch.ones(3), **options)
    counts = counts_tensor(class_counts)

    def penalty(features: Tensor, targets: Tensor, weight: Tensor) -> Tensor:
        return row(features, targets, weight, counts, **options)

    return penalty


def drift_penalty(features: Tensor) -> Tensor:
    """‖mean of the batch‖² of features (B, d), over all processes: the squared drift of the global mean. >= 0.

    Examples:
        >>> import torch
        >>> drift_penalty(torch.tensor([[1.0, 0.0], [3.0, 0.0]])).item()
        4.0
    """
    _check_features(features)
    ones = torch.ones_like(features[:, :1])
    sums = sum_over_processes(torch.cat([features, ones], dim=1).sum(0))
    return (sums[:-1] / sums[-1]).square().sum()


def feature_penalty(features: Tensor) -> Tensor:
    """½ mean of ‖h‖² over the batch of features (B, d): weight decay for the features themselves. >= 0.

    With factor λ it is (λ_H/2) Σ‖h‖² over all N samples of the unconstrained-feature model, λ = N λ_H.
    """
    _check_features(features)
    return features.square().sum(1).mean() / 2


def drift(features: Tensor, targets: Tensor, weight: Tensor, class_counts: Tensor) -> Tensor:
    """‖batch mean‖², the squared drift of the global mean."""
    return drift_penalty(features)


def feature_decay(features: Tensor, targets: Tensor, weight: Tensor, class_counts: Tensor) -> Tensor:
    """½ mean of ‖h‖²: weight decay for the features themselves."""
    return feature_penalty(features)


def center(features: Tensor, targets: Tensor, weight: Tensor, class_counts: Tensor) -> Tensor:
    """½ mean of ‖h - μ_y‖² with the class means μ of the batch: the centre loss. >= 0, and 0 at collapse.

    [Wen et al. 2016](https://doi.org/10.1007/978-3-319-46478-7_31). They learn the centers; these are the means
    themselves.
    """
    shares = _shares(features, targets, weight)
    means, _ = _class_means(features, shares)
    return (shares * _squared_distances(features, means)).sum(1).mean() / 2


def nc1(features: Tensor, targets: Tensor, weight: Tensor, class_counts: Tensor) -> Tensor:
    """tr Σ_W / tr Σ_B of the batch: scatter within classes over scatter between their means. >= 0, and 0 at collapse.

    Both traces average over samples and over the classes in the batch. 0 where the batch has one class. [Papyan et al.
    2020](https://doi.org/10.1073/pnas.2015509117).
    """
    shares = _shares(features, targets, weight)
    means, present = _class_means(features, shares)
    if int(present.sum()) < 2:
        return (features * 0).sum()
    between = _centered(means[present]).square().sum(1).mean()
    within = (shares * _squared_distances(features, means)).sum(1).mean()
    return within / between.clamp(min=torch.finfo(between.dtype).tiny)


def nc2(features: Tensor, targets: Tensor, weight: Tensor, class_counts: Tensor) -> Tensor:
    """Mean over pairs of classes of (cos + 1/(K-1))² of the batch's centered class means. >= 0, and 0 at a simplex ETF.

    K is the number of classes in the batch. 0 where it has fewer than two. [Papyan et al.
    2020](https://doi.org/10.1073/pnas.2015509117).
    """
    means, present = _class_means(features, _shares(features, targets, weight))
    count = int(present.sum())
    if count < 2:
        return (features * 0).sum()
    directions = F.normalize(_centered(means[present]), dim=1)
    gaps = (directions @ directions.mT + 1 / (count - 1)).square()
    return (gaps.sum() - gaps.diagonal().sum()) / (count * (count - 1))


@facts(hard_targets=True)
def supcon(
    features: Tensor, targets: Tensor, weight: Tensor, class_counts: Tensor, *, temperature: float = 0.1
) -> Tensor:
    """Supervised contrastive loss: -mean over positives of log softmax(cos(h, h')/T) over the others of the batch.

    Samples whose class has no other sample in the batch count 0. >= 0. [Khosla et al.
    2020](https://arxiv.org/abs/2004.11362).
    """
    if not 0 < temperature < math.inf:
        raise ValueError(f"supcon needs temperature > 0, got {temperature}")
    check_batch(features, targets, len(weight))
    everything, first = rows_of_processes(F.normalize(features, dim=1))
    labels, _ = rows_of_processes(targets.unsqueeze(1).to(features.dtype))
    own = torch.arange(len(features), device=features.device) + first
    scores = everything[own] @ everything.mT / temperature
    itself = F.one_hot(own, len(everything)).bool()
    positives = (labels[own] == labels.mT) & ~itself
    log_p = scores.masked_fill(itself, -torch.inf).log_softmax(1).masked_fill(itself, 0)
    counts = positives.sum(1)
    return (-(log_p * positives).sum(1) / counts.clamp(min=1)).mean()


def needs_hard_targets(name: str) -> bool:
    """Whether a penalty works with classes alone, and not with the shares that mixing makes."""
    return bool(fact(PENALTIES.get(name), "hard_targets"))


def _check_features(features: Tensor) -> None:
    check_tensors(features=features)
    if features.ndim != 2 or not len(features) or not features.is_floating_point():
        raise ValueError(f"features must be floats (B, d), B >= 1, got {tuple(features.shape)} {features.dtype}")


def _shares(features: Tensor, targets: Tensor, weight: Tensor) -> Tensor:
    """Targets as shares (B, K) of the classes."""
    _check_features(features)
    check_batch(features, targets, len(weight))
    return targets.to(features) if targets.ndim == 2 else F.one_hot(targets.long(), len(weight)).to(features)


def _class_means(features: Tensor, shares: Tensor) -> tuple[Tensor, Tensor]:
    """Class means (K, d) over the batch of all processes, zeros for absent classes; and which are present (K,)."""
    sums = sum_over_processes(torch.cat([shares.mT @ features, shares.sum(0).unsqueeze(1)], dim=1))
    counts = sums[:, -1:].detach()
    return sums[:, :-1] / torch.where(counts > 0, counts, 1), counts.squeeze(1) > 0


def _squared_distances(features: Tensor, means: Tensor) -> Tensor:
    """‖h - μ_k‖² (B, K) for every class, without cancellation."""
    return torch.cdist(features, means, compute_mode="donot_use_mm_for_euclid_dist").square()


def _centered(means: Tensor) -> Tensor:
    return means - means.mean(0)


# A row: (features (B, d), targets (B,) or (B, K), weight (K, d), class_counts (K,), options by keyword) -> scalar.
# Its fact, optional: hard_targets is True where it needs classes, and not the shares that mixing makes
PENALTIES: dict[str, Callable[..., Tensor]] = {
    "drift": drift,
    "feature_decay": feature_decay,
    "center": center,
    "nc1": nc1,
    "nc2": nc2,
    "supcon": supcon,
}
