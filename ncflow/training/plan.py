"""The plan of a training: how long it lasts, when the schedule moves, and how each step treats its batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ncflow.training.stopping import EarlyStopping


@dataclass(frozen=True)
class Plan:
    """Options of the steps of a training; the defaults change nothing.

    accumulate: each batch goes through the backbone in so many parts, one after another. The step is that of the whole
    batch. max_grad_norm: gradients of a larger global norm are scaled down to it. max_steps: training ends after so
    many steps, also in the middle of an epoch. schedule_per: the learning rate follows the schedule from epoch to
    epoch, or from step to step. stop: ends training early. compiled: torch compiles the backbone for training.
    """

    accumulate: int = 1
    max_grad_norm: float | None = None
    max_steps: int | None = None
    schedule_per: Literal["epoch", "step"] = "epoch"
    stop: EarlyStopping | None = None
    compiled: bool = False

    def __post_init__(self) -> None:
        if self.accumulate < 1:
            raise ValueError(f"accumulate is a number of parts of a batch, at least 1, got {self.accumulate}")
        if self.max_grad_norm is not None and not self.max_grad_norm > 0:
            raise ValueError(f"max_grad_norm must be > 0, or None for no limit, got {self.max_grad_norm}")
        if self.max_steps is not None and self.max_steps < 1:
            raise ValueError(f"max_steps must be at least 1, or None for whole epochs, got {self.max_steps}")
        if self.schedule_per not in ("epoch", "step"):
            raise ValueError(f"schedule_per must be epoch or step, got {self.schedule_per!r}")

    def course(self, epochs: int, steps_per_epoch: int) -> Course:
        """The course of a training of at most `epochs` epochs.

        Raises ValueError if these epochs have fewer than `max_steps` steps.
        """
        total = epochs * steps_per_epoch
        if self.max_steps is not None and self.max_steps > total:
            raise ValueError(
                f"train.max_steps={self.max_steps} is more than the {total} steps of train.epochs={epochs}, with "
                f"{steps_per_epoch} steps an epoch; raise train.epochs, or lower train.max_steps"
            )
        return Course(steps_per_epoch, self.max_steps or total, self.schedule_per == "step")

    def num_parts(self, size: int, num_processes: int) -> int:
        """The parts of a batch of `size` samples over all processes. Each part keeps two samples of each process.

        A batch norm cannot train on one sample.
        """
        return max(1, min(self.accumulate, size // (2 * num_processes)))


@dataclass(frozen=True)
class Course:
    """The epochs and steps of a training. The last epoch may be shorter. Epochs count from 1, their steps from 0."""

    steps_per_epoch: int
    total: int
    per_step: bool = False

    @property
    def epochs(self) -> int:
        """The number of epochs, with the one that has begun."""
        return -(-self.total // self.steps_per_epoch)

    def steps(self, epoch: int) -> int:
        """The number of steps of an epoch."""
        return min(self.steps_per_epoch, self.total - (epoch - 1) * self.steps_per_epoch)

    def progress(self, epoch: int, step: int) -> float:
        """The share of the training that is done before a step, in [0, 1): that of its epoch, unless `per_step`."""
        return ((epoch - 1) * self.steps_per_epoch + (step if self.per_step else 0)) / self.total
