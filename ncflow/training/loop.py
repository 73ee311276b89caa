"""The training loop, a generator: its consumer logs, saves or stops. It yields one record an epoch."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast
from torch import Tensor

from ncflow.checks import OutOfRange
from ncflow.nn import Classifier
from ncflow.nn.processes import sum_over_processes, synchronize_batch_norms
from ncflow.training.compiling import CompiledBackbone, refuse_compiling
from ncflow.training.evaluation import Analysis, Evaluation, Splits, evaluate_splits
from ncflow.training.hardware import create_accelerator, reproducible_convolutions
from ncflow.training.objective import Objective
from ncflow.training.plan import Course, Plan
from ncflow.training.state import Parts, State, apply_state, collect_state
from ncflow.training.step import Step
from ncflow.training.stopping import EarlyStopping
from ncflow.training.streaming import TrainingStream

if TYPE_CHECKING:
    from ncflow.data.loaders import Batches


@dataclass(frozen=True)
class EpochRecord:
    """The results of one epoch, counted from 1. `analysis` is empty, or the Evaluation of each split.

    loss and accuracy are means over the samples in training mode, before each step; seconds are the training time. lr
    is the rate of the last step, the largest one if layers differ. `last` is whether training ends with this epoch.
    state() returns what `fit` needs to resume from here. To use it, every process calls it before the next record.

    Examples:
        >>> record = EpochRecord(epoch=1, lr=0.1, loss=2.3, accuracy=0.1, seconds=1.0, images_per_second=500.0)
        >>> record.analysis, record.last
        ({}, False)
    """

    epoch: int
    lr: float
    loss: float
    accuracy: float
    seconds: float
    images_per_second: float
    analysis: dict[str, Evaluation] = field(default_factory=dict)
    last: bool = False
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
    plan: Plan | None = None,
    precision: str = "fp32",
    accelerator: Accelerator | None = None,
    resume: State | None = None,
) -> Iterator[EpochRecord]:
    """Train in place and yield an EpochRecord after every epoch, with the measurements that `analysis` selects.

    Test and validation splits are only measured. `schedule` maps the share of the training done, in [0, 1), to a factor
    of the learning rate. `plan` has further options of the steps, and may end training before its last epoch. Several
    processes, each with its share of the batches, train as one process does with all of them. This holds if the
    criterion is a mean over samples. `resume`, the state() of a record, continues after that record. On a CPU the
    result has the same bits as an uninterrupted run.

    Raises Diverged, naming epoch, step and learning rate, when the loss or the features of an analysis are not finite.

    Examples:
        >>> from ncflow import Classifier, LinearHead, Objective, Snapshot, Splits
        >>> from ncflow import create_backbone, create_loss, create_optimizer, load_batches
        >>> digits = Snapshot.create(folder / "digits", name="digits", samples_per_class=100)
        >>> train, test = (load_batches(digits, split, image_size=8) for split in ("train", "test"))
        >>> classifier = Classifier(create_backbone("resnet20"), LinearHead(64, 10))
        >>> optimizer = create_optimizer("sgd", classifier.parameters(), lr=0.1)
        >>> splits = Splits(train, test, digits.class_counts)
        >>> for record in fit(classifier, splits, Objective(create_loss("ce")), optimizer, epochs=1):
        ...     found = record.epoch, record.loss, record.analysis["train"].metrics["nc1/pinv"]
    """
    accelerator, plan = accelerator or create_accelerator(), plan or Plan()
    classifier.to(memory_format=torch.channels_last)
    classifier.backbone = synchronize_batch_norms(classifier.backbone, accelerator.device)
    # The default placement imports torch.distributed.tensor, which takes 0.6 seconds, to look for sharded parameters.
    placement = [accelerator.device_placement] * 2
    model, optimizer = accelerator.prepare(classifier, optimizer, device_placement=placement)
    scaler = torch.amp.GradScaler(accelerator.device.type, enabled=precision == "fp16")
    parts = Parts(classifier, optimizer, scaler, analysis.average, plan.stop)
    step = Step(classifier, model, objective, optimizer, scaler, accelerator, precision, plan, analysis.average)
    course, rates = plan.course(epochs, len(splits.train)), Rates(optimizer, schedule)
    if plan.compiled:
        refuse_compiling(num_processes=accelerator.num_processes)
    computing = CompiledBackbone(classifier.backbone).training if plan.compiled else nullcontext
    done = apply_state(resume, parts, accelerator.process_index) if resume else 0
    measured_model = classifier if analysis.average is None else analysis.average.classifier
    for epoch in range(done + 1, course.epochs + 1):
        if plan.stop is not None and plan.stop.stopped:  # resumed after its end
            return
        last = epoch == course.epochs
        analyzed = epoch % analysis.every == 0 or last
        stream = TrainingStream(classifier.head, precision) if analysis.streaming and analyzed and not last else None
        started = time.perf_counter()
        with reproducible_convolutions(allow_tf32=True), computing():
            loss, accuracy = _train_epoch(step, splits.train, epoch, course, rates, stream)
        seconds = time.perf_counter() - started
        measured: dict[str, Evaluation] = {}
        if analyzed:
            broadcast(list(measured_model.buffers()))  # use the first process's, as in training
            measure = partial(evaluate_splits, measured_model, splits, analysis, accelerator=accelerator)
            try:
                known = None if stream is None else stream.evaluation(splits.class_counts, accelerator)
                measured = measure(on_train=known)
                if _ends(plan.stop, epoch, measured, accelerator):
                    last, measured = True, measured if known is None else measure()
            except OutOfRange as error:  # in every process, since each measures all features
                raise _diverged(error.args[0], f"at epoch {epoch}", optimizer) from error
        speed = sum(splits.train.sizes[: course.steps(epoch)]) / seconds
        state = partial(collect_state, epoch, parts)
        yield EpochRecord(epoch, rates.largest, loss, accuracy, seconds, speed, measured, last, state)
        if last:
            return


class Rates:
    """The learning rates of an optimizer's groups, which follow a schedule."""

    def __init__(self, optimizer: torch.optim.Optimizer, schedule: Callable[[float], float]) -> None:
        self._optimizer, self._schedule = optimizer, schedule
        self._base = [group["lr"] for group in optimizer.param_groups]
        self.largest = max(self._base)

    def follow(self, progress: float) -> None:
        """Set the rates of a share of the training."""
        factor = self._schedule(progress)
        for group, rate in zip(self._optimizer.param_groups, self._base, strict=True):
            group["lr"] = rate * factor
        self.largest = max(self._base) * factor


def _ends(stop: EarlyStopping | None, epoch: int, measured: Mapping[str, Evaluation], accelerator: Accelerator) -> bool:
    """Whether early stopping ends training after an analysis; the first process decides for all."""
    if stop is None:
        return False
    stop.update(epoch, measured)
    stop.waited = int(broadcast(torch.tensor(stop.waited, device=accelerator.device)).item())
    return stop.stopped is not None


def _train_epoch(
    step: Step, train: Batches, epoch: int, course: Course, rates: Rates, stream: TrainingStream | None
) -> tuple[float, float]:
    """Do the steps of an epoch; return mean loss and accuracy over all samples of all processes."""
    device, optimizer = step.accelerator.device, step.optimizer
    step.model.train()
    losses: list[Tensor] = []
    hits: list[Tensor] = []

    def check(part_of_loss: Tensor) -> None:
        losses.append(sum_over_processes(part_of_loss))  # the same in every process: if one diverges, all stop
        if device.type == "cpu":  # on a GPU reading every loss would stall the queue
            _refuse_if_diverged(losses[-1:], epoch, len(losses), optimizer)

    sizes = train.sizes[: course.steps(epoch)]
    try:
        batches = islice(train.shuffled(epoch), len(sizes))
        for number, ((images, targets), size) in enumerate(zip(batches, sizes, strict=True)):
            progress = course.progress(epoch, number)
            rates.follow(progress)
            images = images.contiguous(memory_format=torch.channels_last)
            forward = step(images, targets, size=size, progress=progress, check=check)
            hits.append(forward.right)
            if stream is not None:
                stream.add(forward.features, forward.logits, targets)
    except OutOfRange:  # features that are not finite, in every process
        losses.append(torch.tensor(torch.nan, device=device))
    _refuse_if_diverged(losses, epoch, 1, optimizer)
    weights = torch.tensor(sizes, dtype=torch.float64, device=device)
    total_loss = weights @ torch.stack(losses).double()
    total_hits = sum_over_processes(torch.stack(hits).sum())
    return total_loss.item() / sum(sizes), total_hits.item() / sum(sizes)


def _refuse_if_diverged(losses: list[Tensor], epoch: int, step: int, optimizer: torch.optim.Optimizer) -> None:
    """Raise Diverged at the first loss that is not finite; `step` is the number of the first loss."""
    finite = torch.isfinite(torch.stack(losses))
    if not bool(finite.all()):
        step += int((~finite).int().argmax())
        loss = losses[int((~finite).int().argmax())].item()
        raise _diverged(f"the loss is {loss}", f"at epoch {epoch}, step {step}", optimizer)


def _diverged(what: str, when: str, optimizer: torch.optim.Optimizer) -> Diverged:
    rate = max(group["lr"] for group in optimizer.param_groups)
    return Diverged(f"{what} {when}, learning rate {rate:g}; try a smaller train.lr, or train.precision=fp32")
