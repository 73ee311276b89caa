"""The objective of training: the loss of a batch, and the full objective of unconstrained features.

`Objective` is the loss of a batch. `FeatureObjective` is the regularized objective of unconstrained features, at the
measured features and classifier:

    criterion(logits, targets) + drift ‖μ_N‖² + (λ_h/2) mean ‖h‖² + (λ_W/2) ‖θ‖² + (λ_H/2) Σ ‖h‖²

Features h (N, d) are those of all training samples, θ the parameters of the head that decay. Training minimizes it if
nothing else decays: for free features, and for networks whose head alone has weight decay.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ncflow.nn.heads import Head
from ncflow.nn.losses import Loss
from ncflow.nn.penalties import Penalty
from ncflow.theory import Optimum
from ncflow.training.optimizers import DECAYS


@dataclass(frozen=True)
class Objective:
    """criterion(logits, targets) + Σ factor·penalty(features, targets, weight), for each (factor, penalty).

    `deferred` is a share of the training, in [0, 1], and the criterion that applies from then on. With a `sam_radius` ρ
    a step follows the gradient at the point of highest loss within ρ, to first order. Foret et al. 2021.

    Examples:
        >>> from ncflow import create_loss, create_penalty
        >>> objective = Objective(create_loss("ce"), penalties=[(0.1, create_penalty("center", [100, 10]))])
    """

    criterion: Loss
    deferred: tuple[float, Loss] | None = None
    penalties: Sequence[tuple[float, Penalty]] = ()
    sam_radius: float = 0.0

    def __call__(
        self, logits: Tensor, features: Tensor, targets: Tensor, weight: Tensor, *, progress: float = 0.0
    ) -> Tensor:
        """Return the loss of logits (B, K), features (B, d), targets (B,) or (B, K) and the classifier's rows (K, d).

        `progress` is the share of the training that is done.
        """
        late = self.deferred is not None and progress >= self.deferred[0]
        criterion = self.deferred[1] if self.deferred is not None and late else self.criterion
        loss = criterion(logits, targets)
        for factor, penalty in self.penalties:
            loss = loss + factor * penalty(features, targets, weight)
        return loss


@dataclass(frozen=True)
class FeatureObjective:
    """The objective of full-batch training: λ_W is `weight_decay`, λ_H `row_decay`, λ_h `feature_weight`.

    `decay` selects the parameters of the head that decay, as in `parameter_groups`. `optimum` is that of theory, if
    any.
    """

    criterion: Loss
    weight_decay: float
    row_decay: float = 0.0
    feature_weight: float = 0.0
    drift_weight: float = 0.0
    decay: str = "all"
    optimum: Optimum | None = None

    @torch.no_grad()
    def __call__(self, features: Tensor, targets: Tensor, head: Head) -> dict[str, float]:
        """Return objective/value and, if theory has the minimum, objective/gap: its excess, >= 0 up to rounding."""
        value = self.value(features, targets, head).item()
        return {"objective/value": value} | ({} if self.optimum is None else {"objective/gap": value - self.least})

    def value(self, features: Tensor, targets: Tensor, head: Head) -> Tensor:
        """The objective at features (N, d), one row for each training sample, of classes (N,); in float64."""
        rows, bias = features.double(), None if head.bias is None else head.bias.double()
        value = self.criterion(F.linear(rows, head.weight.double(), bias), targets)
        value = value + self.drift_weight * rows.mean(0).square().sum()
        value = value + self.feature_weight / 2 * rows.square().sum(1).mean() + self.row_decay / 2 * rows.square().sum()
        return value + self.weight_decay / 2 * self._decayed(head)

    @property
    def least(self) -> float:
        """The objective at theory's optimum, summed by class, since all samples of a class have one feature."""
        assert self.optimum is not None
        counts = self.optimum.class_counts
        labels = torch.arange(len(counts), device=counts.device)
        pairs = zip(self.optimum.logits.unsqueeze(1), labels.unsqueeze(1), strict=True)
        losses = torch.stack([self.criterion(logits, label) for logits, label in pairs])
        length = counts @ self.optimum.class_means.square().sum(1)
        decay = self.weight_decay * self.optimum.weight.square().sum()
        rows = (self.row_decay + self.feature_weight / counts.sum()) * length
        return (counts @ losses / counts.sum() + (decay + rows) / 2).item()

    def _decayed(self, head: Head) -> Tensor:
        """Return ‖θ‖² of the head's parameters that decay."""
        decays = DECAYS[self.decay]
        squares = [p.double().square().sum() for name, p in head.named_parameters("head") if decays(name, p)]
        return sum(squares, start=torch.zeros((), dtype=torch.float64, device=head.weight.device))
