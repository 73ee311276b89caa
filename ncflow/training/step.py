"""One step of training: forward, loss, backward, update; for sharpness-aware minimization a second time nearby."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from ncflow.checks import where_float64_is
from ncflow.nn import Classifier
from ncflow.nn.processes import common_batch_norms
from ncflow.training.accumulation import CachedForward, copies, first_row, interleaved, restore, sum_gradients
from ncflow.training.average import MovingAverage
from ncflow.training.hardware import autocast
from ncflow.training.objective import Objective
from ncflow.training.plan import Plan

if TYPE_CHECKING:
    from accelerate import Accelerator


class Forward(NamedTuple):
    """A forward of a batch: mean loss, features (B, d), logits (B, K), number of samples classified right.

    `parts` is the forward of the backbone if it ran in parts.
    """

    loss: Tensor
    features: Tensor
    logits: Tensor
    right: Tensor
    parts: CachedForward | None


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
    plan: Plan
    average: MovingAverage | None = None

    def __call__(
        self, images: Tensor, targets: Tensor, *, size: int, progress: float, check: Callable[[Tensor], None]
    ) -> Forward:
        """Do one step; return the forward right before it.

        `size` is that of the batch over all processes. `check` gets this process's part of the mean loss before the
        update.
        """
        part = len(targets) / size
        sharp = self.objective.sam_radius > 0
        before = copies(self.classifier.buffers()) if sharp else []
        forward = self._forward(images, targets, size, progress)
        check(forward.loss.detach() * part)
        self._backward(forward, part)
        if sharp:
            with _ascended(self.classifier, self.objective.sam_radius, before):
                self._backward(self._forward(images, targets, size, progress), part)
        self._clip()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.average is not None:
            self.average.update(self.classifier)
        return forward

    def _forward(self, images: Tensor, targets: Tensor, size: int, progress: float) -> Forward:
        rank, processes = self.accelerator.process_index, self.accelerator.num_processes
        number, head = self.plan.num_parts(size, processes), self.classifier.head
        parts = None
        if number > 1:
            rows = interleaved(number, first_row(size, rank, processes))
            parts = CachedForward(self.classifier.backbone, images, rows, self._computing)
        with self._computing():
            if parts is None:
                logits, features = self.model(images, targets)
            else:
                features = head.embed(parts.features)
                logits = head.classify(features, targets)
        loss = self.objective(logits, features, targets, head.weight, progress=progress)
        return Forward(loss, features, logits, _hits(logits.detach().argmax(1), targets), parts)

    @contextmanager
    def _computing(self) -> Iterator[None]:
        """The context of a forward: its precision, and batch norms over all processes."""
        with ExitStack() as stack:
            stack.enter_context(autocast(self.precision, self.accelerator.device))
            stack.enter_context(common_batch_norms())
            yield

    def _backward(self, forward: Forward, part: float) -> None:
        self.optimizer.zero_grad()
        loss = forward.loss * part
        if forward.parts is None:
            processes = self.accelerator.num_processes
            self.accelerator.backward(self.scaler.scale(loss * processes))  # DDP averages; this sums
        else:
            self.accelerator.backward(self.scaler.scale(loss))
            forward.parts.backward()
            sum_gradients(self.classifier.parameters())

    def _clip(self) -> None:
        """Scale the gradients down to the largest norm that the plan allows."""
        if self.plan.max_grad_norm is not None:
            self.scaler.unscale_(self.optimizer)  # float16: the limit is for the gradients themselves
            nn.utils.clip_grad_norm_(self.classifier.parameters(), self.plan.max_grad_norm)


@contextmanager
def _ascended(classifier: nn.Module, radius: float, before: list[Tensor]) -> Iterator[None]:
    """Inside, the weights are at w + ρ g/‖g‖, to first order the point of highest loss within ρ of w.

    The buffers are those `before` this batch. Afterwards weights and buffers are as the first forward left them. So
    batch statistics and class means move once for each batch. Foret, Kleiner, Mobahi and Neyshabur 2021.
    """
    moved = [parameter for parameter in classifier.parameters() if parameter.grad is not None]
    weights, after = copies(moved), copies(classifier.buffers())
    gradients = [parameter.grad for parameter in moved if parameter.grad is not None]
    norm = torch.stack([gradient.norm() for gradient in gradients]).norm()
    scale = torch.where(norm > 0, radius / norm, 0.0)
    restore(moved, [weight + scale * gradient for weight, gradient in zip(weights, gradients, strict=True)])
    restore(classifier.buffers(), before)
    try:
        yield
    finally:
        restore(moved, weights)
        restore(classifier.buffers(), after)


def _hits(predictions: Tensor, targets: Tensor) -> Tensor:
    """How many predictions (B,) are right. With soft targets (B, K) a prediction counts with its class's share."""
    if targets.ndim == 1:
        return (predictions == targets).sum()
    shares = targets.gather(1, predictions.unsqueeze(1))
    return where_float64_is(shares).sum(dtype=torch.float64)
