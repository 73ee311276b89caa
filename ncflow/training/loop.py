"""The training loop, a generator: its consumer logs, saves or stops. It yields one record an epoch."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast
from torch import Tensor

from ncflow.checks import OutOfRange
from ncflow.nn import Classifier
from ncflow.nn.processes import sum_over_processes, synchronize_batch_norms
from ncflow.training.evaluation import Analysis, Evaluation, Splits, evaluate_splits
from ncflow.training.hardware import create_accelerator, reproducible_convolutions
from ncflow.training.objective import Objective
from ncflow.training.state import Parts, State, apply_state, collect_state
from ncflow.training.step import Step

if TYPE_CHECKING:
    from ncflow.data.loaders import Batches


@dataclass(frozen=True)
class EpochRecord:
    """The results of one epoch, counted from 1. `analysis` is empty, or the Evaluation of each split.

    loss and accuracy are means over the samples in training mode, before each step; seconds are the training time.
    state() returns what `fit` needs to resume from here. To use it, every process calls it before the next record.
    """

    epoch: int
    lr: float
    loss: float
    accuracy: float
    seconds: float
    images_per_second: float
    analysis: dict[str, Evaluation] = field(default_factory=dict)
    state: Callable[[], State] = field(default=dict, repr=False)


class Diverged(FloatingPointError):
    """The loss, or a quantity that an analysis measures, is no longer finite."""


def fit(
    classifier: Classifier,
    splits: Splits,
    objective: Objective,
    optimizer: torch.optim.Optimizer,
    *,
    epochs: int,
    schedule: Callable[[float], float] = lambda progress: 1.0,
    analysis: Analysis = Analysis(),
    precision: str = "fp32",
    accelerator: Accelerator | None = None,
    resume: State | None = None,
) -> Iterator[EpochRecord]:
    """Train in place and yield an EpochRecord after every epoch, with the measurements that `analysis` selects.

    Test and validation splits are only measured. `schedule` maps the share of epochs done, in [0, 1), to a factor of
    the learning rate. Several processes, each with its share of the batches, train as one process does with all of
    them. This holds if the criterion is a mean over samples. `resume`, the state() of a record, continues after that
    record. On a CPU the result has the same bits as an uninterrupted run.

    Raises Diverged, naming epoch, step and learning rate, when the loss or the features of an analysis are not finite.

    Example::

        splits = Splits(train, test, digits.class_counts)
        for record in fit(classifier, splits, Objective(create_loss("ce")), optimizer, epochs=10):
            print(record.epoch, record.loss, record.analysis["train"].metrics["nc1/pinv"])
    """
    accelerator = accelerator or create_accelerator()
    classifier.to(memory_format=torch.channels_last)
    classifier.backbone = synchronize_batch_norms(classifier.backbone, accelerator.device)
    model, optimizer = accelerator.prepare(classifier, optimizer)
    scaler = torch.amp.GradScaler(accelerator.device.type, enabled=precision == "fp16")
    parts = Parts(classifier, optimizer, scaler, analysis.average)
    step = Step(classifier, model, objective, optimizer, scaler, accelerator, precision, analysis.average)
    base_rates = [group["lr"] for group in optimizer.param_groups]
    done = apply_state(resume, parts, accelerator.process_index) if resume else 0
    measured_model = classifier if analysis.average is None else analysis.average.classifier
    for epoch in range(done + 1, epochs + 1):
        progress = (epoch - 1) / epochs
        factor = schedule(progress)
        for group, rate in zip(optimizer.param_groups, base_rates, strict=True):
            group["lr"] = rate * factor
        started = time.perf_counter()
        with reproducible_convolutions(allow_tf32=True):
            loss, accuracy = _train_epoch(step, splits.train, epoch, progress)
        seconds = time.perf_counter() - started
        measured = {}
        if epoch % analysis.every == 0 or epoch == epochs:
            broadcast(list(measured_model.buffers()))  # use the first process's, as in training
            try:
                measured = evaluate_splits(measured_model, splits, analysis, accelerator=accelerator)
            except OutOfRange as error:  # in every process, since each measures all features
                raise _diverged(error.args[0], f"at epoch {epoch}", optimizer) from error
        rate = base_rates[0] * factor
        speed = splits.train.num_samples / seconds
        state = partial(collect_state, epoch, parts)
        yield EpochRecord(epoch, rate, loss, accuracy, seconds, speed, measured, state)


def _train_epoch(step: Step, train: Batches, epoch: int, progress: float) -> tuple[float, float]:
    """Train on every batch once; return mean loss and accuracy over all samples of all processes."""
    device, optimizer = step.accelerator.device, step.optimizer
    step.model.train()
    losses: list[Tensor] = []
    hits: list[Tensor] = []

    def check(part_of_loss: Tensor) -> None:
        losses.append(sum_over_processes(part_of_loss))  # the same in every process: if one diverges, all stop
        if device.type == "cpu":  # on a GPU reading every loss would stall the queue
            _refuse_if_diverged(losses[-1:], epoch, len(losses), optimizer)

    try:
        for (images, targets), size in zip(train.shuffled(epoch), train.sizes, strict=True):
            images = images.contiguous(memory_format=torch.channels_last)
            hits.append(step(images, targets, part=len(targets) / size, progress=progress, check=check))
    except OutOfRange:  # features that are not finite, in every process
        losses.append(torch.tensor(torch.nan, device=device))
    _refuse_if_diverged(losses, epoch, 1, optimizer)
    weights = torch.tensor(train.sizes, dtype=torch.float64, device=device)
    total_loss = weights @ torch.stack(losses).double()
    total_hits = sum_over_processes(torch.stack(hits).sum())
    return total_loss.item() / train.num_samples, total_hits.item() / train.num_samples


def _refuse_if_diverged(losses: list[Tensor], epoch: int, step: int, optimizer: torch.optim.Optimizer) -> None:
    """Raise Diverged at the first loss that is not finite; `step` is the number of the first loss."""
    finite = torch.isfinite(torch.stack(losses))
    if not bool(finite.all()):
        step += int((~finite).int().argmax())
        loss = losses[int((~finite).int().argmax())].item()
        raise _diverged(f"the loss is {loss}", f"at epoch {epoch}, step {step}", optimizer)


def _diverged(what: str, when: str, optimizer: torch.optim.Optimizer) -> Diverged:
    rate = optimizer.param_groups[0]["lr"]
    return Diverged(f"{what} {when}, learning rate {rate:g}; try a smaller train.lr, or train.precision=fp32")
