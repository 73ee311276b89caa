"""Published numbers next to measured ones: one table per source, for arms of its data, imbalance and backbone."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from ncflow.reports.arms import Arm
from ncflow.reports.published import Published, published_numbers
from ncflow.reports.tables import ABSENT, Row, Table

MEASURED = "test/acc/balanced"  # on a balanced test split it is top-1 accuracy
Setting = tuple[str, float, str]
Options = Mapping[str, Any]  # of a run, by dotted key


class Comparison(NamedTuple):
    """The numbers of one source next to the measured ones."""

    source: str
    link: str
    table: Table


class Measured(NamedTuple):
    """What an arm measured for a published method: its label, epochs, and accuracies in percent, one per seed."""

    label: str
    epochs: int
    values: list[float]


def comparisons(names: Mapping[Arm, str], numbers: Sequence[Published] | None = None) -> list[Comparison]:
    """The tables of all sources that have numbers for a setting of these arms; `names` are the labels of the arms."""
    arms: dict[Setting, list[Arm]] = {}
    for arm in names:
        if setting := setting_of(arm.representative.options):
            arms.setdefault(setting, []).append(arm)
    by_source: dict[str, list[Published]] = {}
    for number in published_numbers() if numbers is None else numbers:
        if number.setting in arms:
            by_source.setdefault(number.source, []).append(number)
    return [Comparison(source, listed[0].link, _table(listed, arms, names)) for source, listed in by_source.items()]


def setting_of(options: Options) -> Setting | None:
    """Data set, imbalance factor and backbone of a run as the papers name them; None if it changes one of them."""
    backbone = BACKBONES.get(str(options.get("model.name")))
    if backbone is None or not _is_usual(options, USUAL_SETTING) or _has(options, "model.options."):
        return None
    return str(options["dataset.name"]), float(options.get("dataset.imb_factor", 0.01)), backbone


def method_of(options: Options) -> str | None:
    """The method of a run as the papers name it; None if no published method has this configuration."""
    loss = options["train.loss"]
    usual = USUAL_TRAINING | ({"head.normalize": (True,), "head.temperature": (1.0,)} if loss == "ldam" else {})
    base = _named_loss(options)
    if base is None or not _is_usual(options, usual) or _has(options, "train.penalties."):
        return None
    if options.get("train.reweight") is not None:
        if not options.get("train.reweight_after", 0.8):
            return None  # weights from the start are another method than deferred ones
        base = f"{base}-DRW"
    mix = options.get("train.mix", "none")
    return base if mix == "none" else mix if base == "CE" else f"{mix} + {base}"


def _named_loss(options: Options) -> str | None:
    """The name of a loss; `vs` and `logit_adjustment` are other losses at some of their options."""
    loss, tau = options["train.loss"], options.get("train.loss_options.tau", 1.0)
    scaled = loss == "vs" and options.get("train.loss_options.gamma", 0.15) != 0
    if loss in ("vs", "logit_adjustment"):
        return {(0, False): "CE", (0, True): "CDT", (1, False): "balanced softmax"}.get((tau, scaled))
    return LOSSES.get(loss)


def _table(listed: Sequence[Published], arms: Mapping[Setting, Sequence[Arm]], names: Mapping[Arm, str]) -> Table:
    rows = [row for number in listed for row in _rows(number, _measurements(number, arms[number.setting], names))]
    return Table(HEADINGS, tuple(rows), words=4, notes=tuple(_notes(listed)))


def _rows(number: Published, measured: Sequence[Measured]) -> Iterator[Row]:
    """A row for each arm of the method, or one without a measurement."""
    data = f"{number.dataset}, {_imbalance(number.imb_factor)}, {number.backbone}"
    published = f"{number.value:g}", str(number.epochs or ABSENT)
    for label, epochs, values in measured or [Measured(ABSENT, 0, [])]:
        found = (mean_and_std(values), str(len(values)), str(epochs)) if values else (ABSENT,) * 3
        yield Row((number.method, data, number.split, label, *published, *found))


def mean_and_std(values: Sequence[float]) -> str:
    """Percentages as text: their mean, with the standard deviation (ddof = 1) of more than one."""
    std = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.1f}{std}"


def _measurements(number: Published, arms: Sequence[Arm], names: Mapping[Arm, str]) -> list[Measured]:
    """What arms measured for the method of a number, by training or post hoc on a model of cross-entropy."""
    found = []
    for arm in arms:
        base, posthoc = method_of(arm.representative.options), POSTHOC.get(number.method)
        if base == number.method:
            values = [run.final(MEASURED) for run in arm.runs]
        elif base == "CE" and posthoc:
            values = [run.posthoc.value(posthoc, MEASURED) for run in arm.runs if run.posthoc]
        else:
            continue
        if known := [100 * value for value in values if value is not None]:
            found.append(Measured(names[arm], arm.representative.epoch, known))
    return found


def _notes(listed: Sequence[Published]) -> Iterator[str]:
    """Each remark once, with its methods."""
    methods: dict[str, dict[str, None]] = {}
    for number in listed:
        if number.notes:
            methods.setdefault(number.notes, {})[number.method] = None
    for note, names in methods.items():
        yield f"{', '.join(names)}: {note}."


def _imbalance(factor: float) -> str:
    return "native imbalance" if factor == -1 else f"{1 / factor:g}:1"


def _is_usual(options: Options, usual: Mapping[str, tuple[Any, ...]]) -> bool:
    """Whether each key has one of its usual values; a key that a run of an earlier version lacks has the first."""
    return all(options.get(key, values[0]) in values for key, values in usual.items())


def _has(options: Options, prefix: str) -> bool:
    return any(key.startswith(prefix) for key in options)


HEADINGS = (
    *(("", "method"), ("", "data"), ("", "split of the source"), ("", "arm")),
    *(("published", "top-1 %"), ("published", "epochs")),
    *(("measured", "balanced %"), ("measured", "seeds"), ("measured", "epochs")),
)
# model.name -> the backbone as papers name it, where both are the same network
BACKBONES = {"resnet32": "ResNet-32", "timm/resnext50_32x4d": "ResNeXt-50"}
# train.loss -> its name in papers
LOSSES = {
    "ce": "CE",
    "focal": "focal",
    "ldam": "LDAM",
    "cdt": "CDT",
    "balanced_softmax": "balanced softmax",
    "arb": "balanced softmax",
}
# published method -> the post-hoc classifier on the features of a model of cross-entropy
POSTHOC = {"tau-norm": "tau_norm", "NCM": "ncm", "cRT": "crt", "LWS": "lws"}
# key -> values that leave data and backbone as published
USUAL_SETTING: dict[str, tuple[Any, ...]] = {
    "dataset.imb_type": ("exp",),
    "dataset.val_fraction": (0,),
    "dataset.test_fraction": (0,),
    "dataset.label_noise": (0,),
    "dataset.samples_per_class": (None,),
    "dataset.class_order": ("name",),
    "model.neck": (None, "none"),
    "model.num_features": (None,),
    "model.pretrained": (None, False),
    "model.checkpoint": (None,),
    "model.drop_path": (None, 0),
    "model.trainable": ("all",),
    "model.affine": (True,),
}
# key -> values that leave the method as named
USUAL_TRAINING: dict[str, tuple[Any, ...]] = {
    "head.name": ("linear",),
    "head.normalize": (False,),
    "head.temperature": (None,),
    "train.sampling": ("shuffled", "stratified"),
    "train.drift_penalty": (0,),
    "train.feature_decay": (0,),
    "train.label_smoothing": (0,),
    "train.sam": (0,),
    "train.ema": (0,),
}
