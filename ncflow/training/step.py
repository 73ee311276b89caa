"""One step of training: forward, loss, backward, update; for sharpness-aware minimization a second time nearby."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ncflow.checks import where_float64_is
from ncflow.nn import Classifier
from ncflow.nn.processes import common_batch_norms
from ncflow.training.average import MovingAverage
from ncflow.training.hardware import autocast
from ncflow.training.objective import Objective

if TYPE_CHECKING:
    from accelerate import Accelerator


@dataclass(frozen=True)
class Step:
    """The parts of a training that every step uses. `model` is the classifier as Accelerate prepared it.

    `average` is the moving average of the classifier, if there is one.
    """

    classifier: Classifier
    model: nn.Module
    objective: Objective
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    accelerator: Accelerator
    precision: str
    average: MovingAverage | None = None

    def __call__(
        self, images: Tensor, targets: Tensor, *, part: float, progress: float, check: Callable[[Tensor], None]
    ) -> Tensor:
        """Do one step; return how many of this process's samples were classified right before it.

        `part` is this process's share of the batch. `check` gets its part of the mean loss before the update.
        """
        sharp = self.objective.sam_radius > 0
        before = _copies(self.classifier.buffers()) if sharp else []
        loss, right = self._forward(images, targets, progress)
        check(loss.detach() * part)
        self._backward(loss * part)
        if sharp:
            with _ascended(self.classifier, self.objective.sam_radius, before):
                self._backward(self._forward(images, targets, progress)[0] * part)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.average is not None:
            self.average.update(self.classifier)
        return right

    def _forward(self, images: Tensor, targets: Tensor, progress: float) -> tuple[Tensor, Tensor]:
        with autocast(self.precision, self.accelerator.device), common_batch_norms():
            logits, features = self.model(images, targets)
        loss = self.objective(logits, features, targets, self.classifier.head.weight, progress=progress)
        return loss, _hits(logits.detach().argmax(1), targets)

    def _backward(self, loss: Tensor) -> None:
        self.optimizer.zero_grad()
        self.accelerator.backward(self.scaler.scale(loss * self.accelerator.num_processes))  # DDP averages; this sums


@contextmanager
def _ascended(classifier: nn.Module, radius: float, before: list[Tensor]) -> Iterator[None]:
    """Inside, the weights are at w + ρ g/‖g‖, to first order the point of highest loss within ρ of w.

    The buffers are those `before` this batch. Afterwards weights and buffers are as the first forward left them. So
    batch statistics and class means move once for each batch. Foret, Kleiner, Mobahi and Neyshabur 2021.
    """
    moved = [parameter for parameter in classifier.parameters() if parameter.grad is not None]
    weights, after = _copies(moved), _copies(classifier.buffers())
    gradients = [parameter.grad for parameter in moved if parameter.grad is not None]
    norm = torch.stack([gradient.norm() for gradient in gradients]).norm()
    scale = torch.where(norm > 0, radius / norm, 0.0)
    _restore(moved, [weight + scale * gradient for weight, gradient in zip(weights, gradients, strict=True)])
    _restore(classifier.buffers(), before)
    try:
        yield
    finally:
        _restore(moved, weights)
        _restore(classifier.buffers(), after)


def _hits(predictions: Tensor, targets: Tensor) -> Tensor:
    """How many predictions (B,) are right. With soft targets (B, K) a prediction counts with its class's share."""
    if targets.ndim == 1:
        return (predictions == targets).sum()
    shares = targets.gather(1, predictions.unsqueeze(1))
    return where_float64_is(shares).sum(dtype=torch.float64)


def _copies(tensors: Iterable[Tensor]) -> list[Tensor]:
    return [tensor.detach().clone() for tensor in tensors]


@torch.no_grad()
def _restore(tensors: Iterable[Tensor], values: list[Tensor]) -> None:
    for tensor, value in zip(tensors, values, strict=True):
        tensor.copy_(value)
