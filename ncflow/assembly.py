"""Build the parts of a run from its parameters: classifier, batches of every split, and a training ready to start."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any, cast

import torch

from ncflow.consistency import posthoc_tau, refuse_contradictions
from ncflow.data import (
    SAMPLINGS,
    SOURCES,
    Recipe,
    Share,
    Snapshot,
    Storage,
    create_augmentation,
    create_mix,
    load_batches,
)
from ncflow.data.decoding import resizing_of
from ncflow.data.loaders import stored_size
from ncflow.data.sources import count_classes, given_options
from ncflow.dotted import flatten
from ncflow.lookup import fact, lookup, takes
from ncflow.nn import (
    HEADS,
    Classifier,
    create_backbone,
    create_head,
    create_loss,
    create_penalty,
    freeze,
    load_checkpoint,
    refuse_missing_weights,
)
from ncflow.params import Params
from ncflow.rehearsal import rehearse
from ncflow.reports.predictions import NoTheory, decays, exact_optimum
from ncflow.runs.provenance import Preprocessing
from ncflow.tracking import check_mirrors
from ncflow.training import (
    L2_DECAY,
    Analysis,
    EarlyStopping,
    EpochRecord,
    FeatureObjective,
    MovingAverage,
    Objective,
    OutOfMemory,
    Plan,
    Splits,
    StateFolder,
    Stopped,
    create_optimizer,
    create_schedule,
    fit,
    get_randomness,
    initialize,
    is_out_of_memory,
    misfit,
    parameter_groups,
    refuse_compiling,
    remove_affine,
    set_randomness,
    set_seed,
)

MEASURED_AT_ONCE = 256  # samples per process, where training takes the whole split at once


@dataclass(frozen=True)
class Built:
    """A classifier with its initial weights, and the state of the random generators after initialization."""

    classifier: Classifier
    num_classes: int
    randomness: dict[str, Any]


def check(params: Params) -> Built | None:
    """Reject unknown names, wrong options and contradictions before anything is loaded or trained.

    The number of classes of some sources is known only after reading. Their widths are checked after the snapshot.
    Returns the classifier for `start`, or None where training builds another one. Raises ValueError for wrong options.
    """
    lookup(SOURCES, params.dataset.name, "data set")
    lookup(SAMPLINGS, params.train.sampling, "sampling")
    options = Recipe(**params.dataset.model_dump()).source_options
    given_options(params.dataset.name, options)
    refuse_contradictions(params)
    check_mirrors(params.tracking.also)
    _augmentation(params)
    if params.model.pretrained:
        refuse_missing_weights(params.model.name)
    per_class = [len(option) for option in params.train.loss_options.values() if isinstance(option, list)]
    num_classes = count_classes(params.dataset.name, params.dataset.root, **options) or max(per_class, default=2)
    set_seed(params.seed)
    classifier = _tried_classifier(params, num_classes)
    built: Built | None = Built(classifier, num_classes, get_randomness(cuda=False))
    _schedule(params)
    _plan(params)
    freeze(classifier, params.model.trainable)
    _optimizer(params, classifier)
    counts = torch.ones(num_classes)
    criterion = _criterion(params, counts, reweight=params.train.reweight)
    _penalties(params, counts)
    if _mix(params, counts):
        _refuse_unmixable(params, criterion, num_classes)
    try:
        rehearsed = deepcopy(classifier)
    except Exception:  # a user's module may not support copying
        rehearsed, built = classifier, None
    if params.model.checkpoint:
        load_checkpoint(params.model.checkpoint, rehearsed)
    rehearse(rehearsed, criterion, image_size=params.model.image_size, num_classes=num_classes)
    by_sizes = takes(HEADS[params.head.name], "class_counts")  # which only the snapshot has
    return None if params.model.pretrained or by_sizes else built


def _refuse_unmixable(params: Params, criterion: Any, num_classes: int) -> None:
    """Raise ValueError where a loss does not take the shares of classes that mixing makes."""
    try:
        criterion(torch.zeros(2, num_classes), torch.full((2, num_classes), 1 / num_classes))
    except Exception as error:
        raise ValueError(
            f"train.mix={params.train.mix} needs a loss that takes shares (B, K) of classes as targets. Loss "
            f"'{params.train.loss}' raises {type(error).__name__}: {error}; try train.mix=none, or another loss"
        ) from error


def _tried_classifier(params: Params, num_classes: int) -> Classifier:
    """Build the classifier. Running out of memory here raises OutOfMemory with the options that set its size."""
    try:
        return build_classifier(params, num_classes, class_counts=[1] * num_classes)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        model = params.model
        raise OutOfMemory(
            f"out of memory with model.name={model.name}, model.num_features={model.num_features} and "
            f"model.image_size={model.image_size}; try a smaller one"
        ) from error


def build_classifier(
    params: Params, num_classes: int, *, class_counts: Sequence[int] | None = None, pretrained: bool = False
) -> Classifier:
    """The backbone and head of these parameters, freshly initialized from torch's global generator.

    class_counts (K,) are the sizes of the training classes, for heads that use them. `pretrained` downloads the
    published weights that the parameters name. Without it, they only set the shapes.
    """
    options = params.model.keywords(num_classes)
    backbone = create_backbone(params.model.name, **options if pretrained else options | {"pretrained": None})
    if not params.model.affine:
        remove_affine(backbone)
    num_features = cast(int, backbone.num_features)
    options = params.head.model_dump(exclude={"name"})
    head = create_head(params.head.name, num_features, num_classes, class_counts=class_counts, **options)
    return Classifier(backbone, head)


def snapshot_name(params: Params) -> str:
    """The name of the snapshot of these parameters, such as digits-exp-0.02-seed0."""
    return Snapshot.default_name(**params.dataset.model_dump())


@dataclass(frozen=True)
class Training:
    """A training that is ready to start, or to resume after epoch `done`.

    `classifier` is the measured one: the trained one, or its moving average. `note` names the weights it started from.
    `epochs` are those of the whole training, unless `stop` ends it before.
    """

    classifier: Classifier
    splits: Splits
    records: Iterator[EpochRecord]
    epochs: int
    done: int = 0
    note: str = ""
    stop: EarlyStopping | None = None

    @property
    def stopped(self) -> Stopped | None:
        """Why training ended early; None if it did not."""
        return None if self.stop is None else self.stop.stopped


def start(
    params: Params,
    images: Snapshot,
    accelerator: Any,
    precision: str,
    states: StateFolder | None = None,
    built: Built | None = None,
) -> Training:
    """The training of a run, ready to start. A state of another classifier or optimizer is skipped with a warning.

    `built`, from `check`, is used where it has as many classes as the images.
    """
    resume = states.newest(accelerator) if states else None
    train = params.train
    set_seed(params.seed)
    if built and built.num_classes == images.num_classes:
        classifier = built.classifier
        set_randomness(built.randomness)
    else:
        classifier = build_classifier(params, images.num_classes, class_counts=images.class_counts, pretrained=True)
    initialize(train.optimizer, classifier)
    note = load_checkpoint(params.model.checkpoint, classifier) if params.model.checkpoint else ""
    freeze(classifier, params.model.trainable)
    classifier.to(accelerator.device)
    if accelerator.process_index:  # equal initial weights, then other random numbers in each process
        set_seed((params.seed + accelerator.process_index) % 2**32)
    splits = load_splits(params, images, accelerator)
    optimizer = _optimizer(params, classifier)
    average = MovingAverage(classifier, train.ema) if train.ema else None
    plan = _plan(params)
    course = plan.course(train.epochs, len(splits.train))
    if plan.stop is not None and splits.validation is None:
        raise ValueError(
            f"train.stop={train.stop} looks at the validation split, and these data have none; try "
            "dataset.val_fraction=0.1, or train.stop=null"
        )
    fits = {"averaged": average is not None, "stopping": plan.stop is not None}
    if states and resume and (reason := misfit(resume, classifier, optimizer, **fits)):
        if states.began_after() == resume["epoch"]:  # it is the state of the finished run
            accelerator.wait_for_everyone()
            if accelerator.is_main_process:
                states.remove()
            raise ValueError(
                f"--extend found a state of the finished run '{params.exp_name}' after epoch {resume['epoch']} that "
                f"does not fit: {reason}; train without --extend"
            )
        states.leave_out(resume["epoch"], reason)
        resume = None
    records = fit(
        classifier,
        splits,
        _objective(params, torch.tensor(images.class_counts, device=accelerator.device)),
        optimizer,
        epochs=train.epochs,
        schedule=_schedule(params),
        analysis=replace(analysis(params, classifier, images.class_counts), average=average),
        plan=plan,
        precision=precision,
        accelerator=accelerator,
        resume=resume,
    )
    measured = classifier if average is None else average.classifier
    done = resume["epoch"] if resume else 0
    return Training(measured, splits, records, course.epochs, done, note, plan.stop)


def analysis(params: Params, classifier: Classifier, class_counts: Sequence[int]) -> Analysis:
    """The measurements that the parameters select."""
    train = params.train
    return Analysis(
        every=train.analyze_freq,
        layers=train.analyze_layers,
        solver=train.analyze_solver,
        posthoc_tau=posthoc_tau(params),
        objective=feature_objective(params, classifier, class_counts),
        features=train.save_features,
        streaming=train.analyze == "streaming",
    )


def refuse_to_extend(params: Params, done: int) -> None:
    """Check that a run of `done` epochs is the start of the longer run of these parameters.

    It is the start if every finished epoch has the same learning rate and the same loss in both.
    Raises ValueError with the reason where it is not.
    """
    train, schedule = params.train, _schedule(params)
    if train.max_steps is not None or train.stop is not None:
        given = f"train.max_steps={train.max_steps}" if train.max_steps is not None else f"train.stop={train.stop}"
        raise ValueError(
            f"cannot extend a run whose end is set by {given}: more epochs would not lengthen it; train from the start "
            "without --extend"
        )
    if train.schedule_per == "step" and (train.schedule != "none" or train.warmup):
        raise ValueError(
            f"cannot extend a run of {done} epochs to {train.epochs}: with train.schedule_per=step the learning rates "
            f"of train.schedule={train.schedule} depend on train.epochs at each step; train from the start without "
            "--extend, or use train.schedule=none and train.warmup=0 in both runs"
        )
    shares = [(epoch / done, epoch / train.epochs) for epoch in range(done)]
    if any(schedule(short) != schedule(long) for short, long in shares):
        warm = f" and train.warmup={train.warmup:g}" if train.warmup else ""
        raise ValueError(
            f"cannot extend a run of {done} epochs to {train.epochs}: the learning rates of "
            f"train.schedule={train.schedule}{warm} depend on train.epochs; train from the start without --extend, or "
            "use train.schedule=none and train.warmup=0 in both runs"
        )
    after = train.reweight_after
    if train.reweight is not None and any((short >= after) != (long >= after) for short, long in shares):
        raise ValueError(
            f"cannot extend a run of {done} epochs to {train.epochs}: train.reweight_after={after:g} is a share of "
            "train.epochs; train from the start without --extend, or use train.reweight_after=0 in both runs"
        )


def is_extendable(params: Params) -> bool:
    """Whether a run of twice as many epochs would start with the same epochs as this run."""
    longer = params.model_copy(update={"train": params.train.model_copy(update={"epochs": 2 * params.train.epochs})})
    try:
        refuse_to_extend(longer, params.train.epochs)
    except ValueError:
        return False
    return True


def feature_objective(params: Params, classifier: Classifier, class_counts: Sequence[int]) -> FeatureObjective | None:
    """The objective of unconstrained features, if these parameters train exactly that; otherwise None.

    Its gap to theory is measured where `exact_optimum` gives the minimum.
    """
    train, free = params.train, params.model.name == "free_features"
    if not free and train.decay != "head":  # then the decay of the backbone's weights is part of the objective
        return None
    if train.optimizer not in L2_DECAY or params.head.option("temperature") is not None:
        return None  # another objective, or other features than those that decay
    if fact(HEADS[params.head.name], "rows") not in ("learned", "fixed"):
        return None  # rows that follow the batch, or unknown ones
    if train.reweight is not None or train.sampling == "class_balanced":
        return None
    if train.augment != "none" or train.mix != "none":
        return None
    if train.penalties.keys() - {"drift", "feature_decay"} or train.sam or train.ema or params.model.trainable != "all":
        return None
    factors = _factors(params)
    counts = torch.tensor(class_counts)
    options = flatten(params.resolved())
    lambda_w, _ = decays(options, sum(class_counts))
    try:
        optimum = exact_optimum(options, counts, classifier.head.num_features)
    except NoTheory:
        optimum = None
    return FeatureObjective(
        _criterion(params, counts.to(classifier.head.weight.device)),
        weight_decay=lambda_w,
        row_decay=lambda_w if free and train.decay != "head" else 0.0,
        feature_weight=factors["feature_decay"],
        drift_weight=factors["drift"],
        decay=train.decay,
        optimum=optimum,
    )


def load_splits(params: Params, images: Snapshot, accelerator: Any, *, resizing: str | None = None) -> Splits:
    """The batches of every split of a snapshot. `resizing` is that of a finished run; None is that of new runs."""
    share = Share(accelerator.process_index, accelerator.num_processes)
    augment, mix = _augmentation(params), _mix(params, torch.tensor(images.class_counts))
    batches = {
        split: load_batches(
            images,
            split,
            image_size=params.model.image_size,
            batch_size=_batch_size(params, split, accelerator.num_processes),
            device=accelerator.device,
            augment=augment,
            mix=mix if split == "train" else None,
            sampling=params.train.sampling,
            seed=params.seed,
            share=share,
            storage=Storage(params.data.resident_bytes, params.data.workers),
            resizing=resizing,
        )
        for split in images.splits
    }
    return Splits(batches["train"], batches["test"], images.class_counts, validation=batches.get("val"))


def preprocessing(params: Params, images: Snapshot) -> Preprocessing:
    """What `load_splits` does with test pictures, as plain values."""
    size, manifest = params.model.image_size, images.manifest
    return Preprocessing(
        image_mode=manifest["image_mode"],
        image_size=size,
        resize=stored_size(images, size, _augmentation(params)),
        pixel_mean=list(manifest["pixel_mean"]),
        pixel_std=list(manifest["pixel_std"]),
        resizing=resizing_of(manifest["image_mode"]),
    )


def _batch_size(params: Params, split: str, num_processes: int) -> int | None:
    """Samples per batch; None for the whole training split. Other splits are only measured, so in smaller batches."""
    size = params.train.batch_size
    if size != "full":
        return cast(int, size)
    return None if split == "train" else MEASURED_AT_ONCE * num_processes


def _objective(params: Params, counts: torch.Tensor) -> Objective:
    train = params.train
    late = (train.reweight_after, _criterion(params, counts, reweight=train.reweight)) if train.reweight else None
    return Objective(_criterion(params, counts), late, _penalties(params, counts), train.sam)


def _factors(params: Params) -> dict[str, float]:
    """The factor of each penalty by name; 0 for one that is not used."""
    train = params.train
    # In the order of names: equal configurations must add up in one order, to the last bit.
    others = {name: factor for name, factor in sorted(train.penalties.items()) if factor}
    return {"drift": train.drift_penalty, "feature_decay": train.feature_decay} | others


def _penalties(params: Params, counts: torch.Tensor) -> list[tuple[float, Any]]:
    options = params.train.penalty_options
    return [
        (factor, create_penalty(name, counts, **options.get(name, {})))
        for name, factor in _factors(params).items()
        if factor
    ]


def _augmentation(params: Params) -> Any:
    train = params.train
    return create_augmentation(train.augment, image_size=params.model.image_size, options=train.augment_options)


def _mix(params: Params, counts: torch.Tensor) -> Any:
    return create_mix(params.train.mix, counts, **params.train.mix_options)


def _criterion(params: Params, class_counts: torch.Tensor, *, reweight: float | None = None) -> Any:
    train = params.train
    smoothing = train.label_smoothing
    return create_loss(train.loss, class_counts, reweight=reweight, label_smoothing=smoothing, **train.loss_options)


def _schedule(params: Params) -> Any:
    train = params.train
    return create_schedule(train.schedule, warmup=train.warmup, **train.schedule_options)


def _plan(params: Params) -> Plan:
    train = params.train
    if train.compile:
        refuse_compiling()
    return Plan(
        accumulate=train.accumulate,
        max_grad_norm=train.max_grad_norm,
        max_steps=train.max_steps,
        schedule_per=train.schedule_per,
        stop=None if train.stop is None else EarlyStopping(train.stop.metric, train.stop.patience),
        compiled=train.compile,
    )


def _optimizer(params: Params, classifier: Classifier) -> torch.optim.Optimizer:
    train = params.train
    options = {"lr": train.lr, "weight_decay": train.weight_decay, "momentum": train.momentum} | train.optimizer_options
    groups = parameter_groups(classifier, decay=train.decay, layer_decay=train.layer_decay)
    return create_optimizer(train.optimizer, groups, **options)
