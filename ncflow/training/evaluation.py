"""Evaluation: one forward over a split gives its features, its logits and every metric, in float32 and eval mode.

It is float32 for every training precision, because bfloat16 rounding would limit the collapse that can be measured.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ncflow.metrics import ClassMoments, collapse_metrics
from ncflow.metrics.accuracy import accuracies
from ncflow.metrics.table import LAYER_METRICS
from ncflow.nn import Classifier, capture, posthoc_adjustment
from ncflow.training.average import MovingAverage
from ncflow.training.hardware import reproducible_convolutions
from ncflow.training.objective import FeatureObjective

if TYPE_CHECKING:
    from accelerate import Accelerator

    from ncflow.data.loaders import Batches


ADJUSTED = "posthoc/logit_adjustment"
DEFAULT_TAU = 1.0  # Fisher consistent for the balanced error, Menon et al. 2021
TAUS = tuple(step / 4 for step in range(9))  # 0 to 2


@dataclass(frozen=True)
class Evaluation:
    """Results on one split: metrics by name, logits (N, K) and targets (N,) in stored order, and two kinds of means.

    class_means (K, d) has NaN for absent classes. sample_mean (d,) is μ_N, the drift vector. features (N, d) are kept
    where `Analysis.features` asks for them. layer_means: layer -> its class means (K, d_l). `streamed` is whether all
    is from the forwards of training, in their order.

    Examples:
        >>> import torch
        >>> rows, means = torch.zeros(4, 2), torch.zeros(2, 3)
        >>> result = Evaluation({"acc/overall": 0.5}, rows, torch.tensor([0, 1, 0, 1]), means, means[0])
        >>> result.metrics["acc/overall"]
        0.5
    """

    metrics: dict[str, float]
    logits: Tensor
    targets: Tensor
    class_means: Tensor
    sample_mean: Tensor
    features: Tensor | None = None
    streamed: bool = False
    layer_means: dict[str, Tensor] = field(default_factory=dict)

    @property
    def predictions(self) -> Tensor:
        """Predicted classes (N,)."""
        return self.logits.argmax(1)


@dataclass(frozen=True)
class Splits:
    """The batches of every split, and the class sizes (K,) of the training split.

    Examples:
        >>> from ncflow import Snapshot, load_batches
        >>> snapshot = Snapshot.create(folder / "digits", name="digits", samples_per_class=40, imb_factor=0.1)
        >>> train, test = (load_batches(snapshot, split, image_size=8) for split in ("train", "test"))
        >>> splits = Splits(train, test, class_counts=snapshot.class_counts)
    """

    train: Batches
    test: Batches
    class_counts: Sequence[int]
    validation: Batches | None = None

    @property
    def places(self) -> dict[str, str]:
        """Split -> where its pixels are."""
        named = {"train": self.train, "val": self.validation, "test": self.test}
        return {split: batches.pictures.place for split, batches in named.items() if batches is not None}


@dataclass(frozen=True)
class Analysis:
    """Selects the measurements, and after how many epochs they run; they always run after the last epoch.

    layers: the rows of LAYER_METRICS of every stage of the backbone, from the same forward. solver: also `head/<name>`
    of the head's solver. posthoc_tau: `posthoc/logit_adjustment/acc/<name>` on unseen splits, the accuracies of logits
    adjusted post hoc by the training class sizes, and the τ; None chooses τ on the validation split, or takes 1 without
    one; 0 measures none. objective: its value, and its gap to theory, on the train split. average: a moving average of
    the classifier, which `fit` updates after each step and measures instead. features: keep the features of every split
    in its evaluation. streaming: the training split is measured by the forwards of training, without a second pass; the
    last analysis is exact.

    Examples:
        >>> Analysis(every=10, layers=True).every
        10
    """

    every: int = 1
    layers: bool = False
    solver: bool = False
    posthoc_tau: float | None = 0.0
    objective: FeatureObjective | None = None
    average: MovingAverage | None = None
    features: bool = False
    streaming: bool = False


def evaluate(
    classifier: Classifier,
    batches: Batches,
    *,
    class_counts: Sequence[int],
    train_means: Tensor | None = None,
    train_layer_means: Mapping[str, Tensor] | None = None,
    analysis: Analysis = Analysis(),
    accelerator: Accelerator | None = None,
) -> Evaluation:
    """Return every metric of a classifier on one split. Each sample counts once, for any number of processes.

    class_counts (K,) are those of the training split, and train_means (K, d) its class means. None means that this is
    the training split itself. Only the training split has the objective. train_layer_means are the training split's
    `layer_means`; an unseen split has layers/<layer>/ncc_accuracy only with them.
    """
    features, logits, by_layer = extract(classifier, batches, layers=analysis.layers)
    features, logits = gather_rows(accelerator, features), gather_rows(accelerator, logits)
    targets = batches.targets
    moments = ClassMoments.from_features(features, targets, len(class_counts), scatter=False)
    metrics = collapse_metrics(
        features,
        targets,
        classifier.head.weight,
        classifier.head.bias,
        class_counts=class_counts,
        train_means=train_means,
        moments=moments,
    )
    if analysis.objective is not None and train_means is None:
        metrics |= analysis.objective(features, targets, classifier.head)
    layer_means: dict[str, Tensor] = {}
    for layer, part in by_layer.items():
        rows = gather_rows(accelerator, part)
        of_layer = ClassMoments.from_features(rows, targets, len(class_counts), scatter=False)
        layer_means[layer] = of_layer.means_or_nan
        centers = (train_layer_means or {}).get(layer)
        ncc = train_means is None or centers is not None  # never the class centers of unseen samples
        metrics |= layer_metrics(layer, rows, targets, of_layer, train_means=centers, ncc=ncc)
    kept = features if analysis.features else None
    means, center = moments.means_or_nan, moments.sample_mean
    return Evaluation(metrics, logits, targets, means, center, kept, layer_means=layer_means)


def evaluate_splits(
    classifier: Classifier,
    splits: Splits,
    analysis: Analysis = Analysis(),
    *,
    accelerator: Accelerator | None = None,
    on_train: Evaluation | None = None,
) -> dict[str, Evaluation]:
    """Return {"train": …, "test": …} and, if there is a validation split, "val".

    `on_train` is the result on the training split, if it is already known. Unseen samples are compared with the class
    means of training. The metrics of the train split include the head's diagnostics as `head/<name>`.

    Examples:
        >>> from ncflow import Classifier, LinearHead, Snapshot, Splits, create_backbone, load_batches
        >>> snapshot = Snapshot.create(folder / "digits", name="digits", samples_per_class=40, imb_factor=0.1)
        >>> train, test = (load_batches(snapshot, split, image_size=8) for split in ("train", "test"))
        >>> splits = Splits(train, test, snapshot.class_counts)
        >>> classifier = Classifier(create_backbone("resnet20"), LinearHead(64, 10)).eval()
        >>> found = evaluate_splits(classifier, splits)
        >>> sorted(found), found["test"].logits.shape
        (['test', 'train'], torch.Size([360, 10]))
    """
    measure = partial(
        evaluate, classifier, class_counts=splits.class_counts, analysis=analysis, accelerator=accelerator
    )
    on_train = measure(splits.train) if on_train is None else on_train
    diagnostics = classifier.head.diagnostics(solver=analysis.solver)
    on_train.metrics.update({f"head/{name}": value for name, value in diagnostics.items()})
    unseen = {"test": splits.test} | ({"val": splits.validation} if splits.validation is not None else {})
    against = partial(measure, train_means=on_train.class_means, train_layer_means=on_train.layer_means)
    measured = {split: against(batches) for split, batches in unseen.items()}
    _adjust(measured, splits.class_counts, analysis.posthoc_tau)
    return {"train": on_train} | measured


def _adjust(measured: Mapping[str, Evaluation], class_counts: Sequence[int], tau: float | None) -> None:
    """Add the accuracies of adjusted logits to the metrics of unseen splits. A class without samples has no prior."""
    if tau == 0 or (tau is None and 0 in class_counts):
        return
    if tau is None:
        tau = chosen_tau(measured["val"], class_counts) if "val" in measured else DEFAULT_TAU
    for result in measured.values():
        adjusted = posthoc_adjustment(result.logits, class_counts, tau=tau)
        found = logit_metrics(f"{ADJUSTED}/acc", adjusted, result.targets, class_counts)
        result.metrics.update(found | {f"{ADJUSTED}/tau": tau})


def chosen_tau(validation: Evaluation, class_counts: Sequence[int]) -> float:
    """The τ of TAUS with the highest balanced accuracy on a validation split, the smallest of equals."""

    def balanced(tau: float) -> float:
        adjusted = posthoc_adjustment(validation.logits, class_counts, tau=tau)
        return logit_metrics("acc", adjusted, validation.targets, class_counts)["acc/balanced"]

    return max(TAUS, key=balanced)


@torch.no_grad()
def extract(
    classifier: Classifier, batches: Batches, *, layers: bool = False
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Return features (N, d), logits (N, K) and, with `layers`, pooled features (N, d_l) of every stage.

    All come from one forward over this process's share of a split, in stored order.
    """
    count = len(batches.share)
    if not count:  # fewer samples than processes: the first process's give the widths, and are dropped
        batches = replace(batches, process_index=0)
    rows: list[Tensor] = []  # filled batch by batch, since joining parts needs twice the memory
    done = 0
    watch: AbstractContextManager[dict[str, Tensor]] = capture(classifier.backbone) if layers else nullcontext({})
    with _evaluating(classifier), watch as pooled:
        for images, _ in batches.ordered():
            output = classifier(images.contiguous(memory_format=torch.channels_last))
            parts = [output.features, output.logits, *pooled.values()]
            rows = rows or [part.new_empty(len(batches.share), part.shape[1]) for part in parts]
            for whole, part in zip(rows, parts, strict=True):
                whole[done : done + len(part)] = part
            done += len(images)
        features, logits, *by_layer = (whole[:count] for whole in rows)
        return features, logits, dict(zip(pooled, by_layer, strict=True))


def logit_metrics(prefix: str, logits: Tensor, targets: Tensor, class_counts: Sequence[int]) -> dict[str, float]:
    """Return the accuracies of logits (N, K), as <prefix>/<name>."""
    ranks = (logits > logits.gather(1, targets.unsqueeze(1))).sum(1)
    counts = torch.tensor(class_counts, dtype=torch.float64, device=logits.device)
    values = accuracies(logits.argmax(1), ranks, targets, counts)
    return {f"{prefix}/{name}": value.item() for name, value in values.items()}


def layer_metrics(
    layer: str,
    features: Tensor,
    targets: Tensor,
    moments: ClassMoments,
    *,
    train_means: Tensor | None = None,
    ncc: bool = True,
) -> dict[str, float]:
    """Return LAYER_METRICS of one layer's pooled features (N, d_l) with their moments, as layers/<layer>/<name>.

    train_means (K, d_l) are the layer's class means on the training split; None means those of these features.
    `ncc=False` leaves out ncc_accuracy.
    """
    chosen = {short: name for short, name in LAYER_METRICS.items() if ncc or short != "ncc_accuracy"}
    metrics = collapse_metrics(
        features,
        targets,
        num_classes=len(moments.counts),
        train_means=train_means,
        moments=moments,
        only=chosen.values(),
    )
    return {f"layers/{layer}/{short}": metrics[name] for short, name in chosen.items() if name in metrics}


def gather_rows(accelerator: Accelerator | None, rows: Tensor) -> Tensor:
    """Return the rows of all processes, in the order of the processes; every process gets all of them."""
    if accelerator is None or accelerator.num_processes == 1:
        return rows
    lengths = accelerator.gather(torch.tensor([len(rows)], device=rows.device)).tolist()
    padded = accelerator.pad_across_processes(rows, dim=0)
    shares = accelerator.gather(padded).split(len(padded))
    return torch.cat([share[:length] for share, length in zip(shares, lengths, strict=True)])


@contextmanager
def _evaluating(classifier: Classifier) -> Iterator[None]:
    """Set eval mode, and full float32 convolutions where a GPU would round to TF32. Restore each module's mode."""
    modes = [(module, module.training) for module in classifier.modules()]
    classifier.eval()
    try:
        with reproducible_convolutions(allow_tf32=False):
            yield
    finally:
        for module, mode in modes:
            module.training = mode
