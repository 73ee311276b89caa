"""Published configurations that ncflow can run: the recipe of the source, its number, and whether ours agrees.

`REPRODUCTIONS` is the table. A row refers to a number in published.csv and holds no number itself.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from ncflow.dotted import flatten, nest
from ncflow.experiments.grids import Settings
from ncflow.lookup import lookup
from ncflow.params import Params, make_params
from ncflow.reports.against_published import MEASURED, mean_and_std
from ncflow.reports.published import Published, published_numbers, read_published
from ncflow.reports.tables import Row, Table
from ncflow.runs.reader import Run

__all__ = ["REPRODUCTIONS", "Published", "Reproduction", "conclude", "configurations", "differences", "listing"]
__all__ += ["published_numbers", "read_published", "tolerance"]


class Reproduction(NamedTuple):
    """A published configuration: the number it reproduces, the recipe, and what ncflow does in another way."""

    method: str
    dataset: str
    imb_factor: float
    source: str
    settings: Settings
    differs: str

    @property
    def published(self) -> Published:
        """The number in published.csv."""
        wanted = self.method, self.dataset, self.imb_factor, self.source
        (number,) = (n for n in published_numbers() if (n.method, n.dataset, n.imb_factor, n.source) == wanted)
        return number


def configurations(name: str, *, seeds: int = 3, overrides: Iterable[str] = ()) -> list[Params]:
    """The runs of a published configuration with seeds 0, 1, …, with overrides such as "dataset.root=/data" on top.

    Overrides that change the experiment also change the names, so that such runs never replace those of the recipe.
    Raises ValueError for an unknown name, and for keys that the configuration sets itself.
    """
    row, overrides = lookup(REPRODUCTIONS, name, "published configuration"), list(overrides)
    if seeds < 1:
        raise ValueError(f"expected at least 1 seed, got {seeds}")
    keys = {override.partition("=")[0].strip().partition(".")[0] for override in overrides}
    if taken := sorted(keys & {"exp_name", "grid", "seed"}):
        raise ValueError(f"{', '.join(taken)} cannot be overridden here: the name says what is reproduced; use --seeds")
    changed = "_changed" if _differences(row, make_params(nest(row.settings), overrides)) else ""
    return [
        make_params(nest(row.settings | {"exp_name": f"{name}{changed}_seed{seed}", "seed": seed}), overrides)
        for seed in range(seeds)
    ]


def differences(name: str, run: Params) -> list[str]:
    """The keys in which a run differs from the published recipe and that matter for its accuracy."""
    return _differences(lookup(REPRODUCTIONS, name, "published configuration"), run)


def tolerance(dataset: str, imb_factor: float) -> float:
    """How far two results may be apart, in points: the largest difference of one method between two drawn splits.

    The two splits are those of BagofTricks-LT, which ran the same code on both. A number that the source copied from
    another paper does not count.
    """
    first, second = (
        {n.method: n.value for n in published_numbers() if (n.dataset, n.imb_factor, n.source) == key}
        for key in ((dataset, imb_factor, f"BagofTricks-LT gallery {page}") for page in "AB")
    )
    return max(abs(first[method] - second[method]) for method in first.keys() & second.keys() - {"CE"})


def conclude(name: str, runs: Sequence[Run], changed: Sequence[str]) -> str:
    """The end of a reproduction as text: measured, published, tolerance, and whether they agree.

    `changed` are the `differences` of the runs; with any of them there is no verdict. Raises ValueError for runs
    without the metric.
    """
    row = lookup(REPRODUCTIONS, name, "published configuration")
    number, values = row.published, [run.final(MEASURED) for run in runs]
    known = [100 * value for value in values if value is not None]
    if len(known) < len(values) or not known:
        raise ValueError(f"{name} needs {MEASURED} of every run, got it of {len(known)} of {len(values)}")
    allowed = tolerance(row.dataset, row.imb_factor)
    lines = {
        "measured": f"{mean_and_std(known)} % balanced test accuracy at epoch {runs[0].epoch}, {_seeds(runs)}",
        "published": f"{number.value:g} %, {number.source}: {row.method}, {row.dataset}, {1 / row.imb_factor:g}:1",
        "tolerance": f"{allowed:.2f} points, the largest difference of one method between two splits of these data",
        "known to differ": row.differs,
        "verdict": _verdict(statistics.fmean(known) - number.value, allowed, changed),
    }
    return "\n".join(f"{label:16} {text}" for label, text in lines.items())


def listing() -> Table:
    """The table of all published configurations that ncflow can run."""
    rows = []
    for name, row in REPRODUCTIONS.items():
        data = f"{row.dataset} {1 / row.imb_factor:g}:1"
        numbers = f"{row.published.value:g}", f"{tolerance(row.dataset, row.imb_factor):.2f}"
        rows.append(Row((name, row.method, data, row.source, *numbers)))
    words = tuple(("", word) for word in ("name", "method", "data", "source"))
    return Table((*words, ("published", "top-1 %"), ("tolerance", "points")), tuple(rows), words=4)


def _differences(row: Reproduction, run: Params) -> list[str]:
    recipe, ours = flatten(make_params(nest(row.settings)).resolved()), flatten(run.resolved())
    return sorted(key for key in recipe.keys() | ours.keys() if recipe.get(key) != ours.get(key) and key not in NEUTRAL)


def _verdict(gap: float, allowed: float, changed: Sequence[str]) -> str:
    if changed:
        return f"not comparable: differs in {', '.join(changed)}"
    return f"{'agrees' if abs(gap) <= allowed else 'does not agree'}: {gap:+.1f} points"


def _seeds(runs: Sequence[Run]) -> str:
    return f"{len(runs)} seed{'s' if len(runs) > 1 else ''}"


def _reproductions() -> dict[str, Reproduction]:
    """Each method of METHODS on each of its data sets, such as ldam_drw_cifar10_100."""
    return {
        f"{method.lower().replace(' + ', '_').replace(' ', '_').replace('-', '_')}_{dataset}_{1 / factor:.0f}": (
            Reproduction(
                method,
                dataset,
                factor,
                source,
                CIFAR | {"dataset.name": dataset, "dataset.imb_factor": factor} | settings,
                differs,
            )
        )
        for method, (source, settings, differs) in METHODS.items()
        for dataset in ("cifar10", "cifar100")
        for factor in (0.01, 0.02)
    }


# Keys that do not change the experiment: names, places, hardware, and how often it is measured.
NEUTRAL = frozenset(
    {"exp_name", "seed", "dataset.root", "train.device", "train.precision", "train.posthoc_tau"}
    | {f"train.analyze_{what}" for what in ("freq", "layers", "solver")}
    | {f"train.save_{what}" for what in ("logits", "features")}
    | {"data.resident_bytes", "data.workers", "tracking.also", "tracking.register"}
)
# The recipe of Cao et al. 2019 (cifar_train.py of LDAM-DRW), which the sources below follow: configs/cao_cifar and
# configs/cui_cifar of BagofTricks-LT, config/cifar10 and config/cifar100 of MiSLAS.
CIFAR: Settings = {
    "dataset.imb_type": "exp",
    "model.name": "resnet32",
    "head.bias": True,
    "train.epochs": 200,
    "train.batch_size": 128,
    "train.optimizer": "sgd",
    "train.lr": 0.1,
    "train.momentum": 0.9,
    "train.weight_decay": 2e-4,
    "train.schedule": "step",
    "train.schedule_options.milestones": [0.8, 0.9],  # epochs 160 and 180
    "train.schedule_options.gamma": 0.01,
    "train.warmup": 0.025,  # 5 epochs
    "train.augment": "crop_flip",
    "train.analyze_freq": 20,
}
# LDAM-DRW's use_norm and BagofTricks' FCNorm: logits are cosines, and the loss scales them.
COSINES: Settings = {"head.bias": False, "head.normalize": True, "head.temperature": 1.0}
LDAM: Settings = COSINES | {
    "train.loss": "ldam",
    "train.loss_options.max_margin": 0.5,
    "train.loss_options.scale": 30.0,
}
NESTEROV: Settings = {"train.optimizer_options.nesterov": True}  # of BagofTricks-LT
DRW: Settings = {"train.reweight": 0.9999, "train.reweight_after": 0.8}
MIXUP: Settings = {"train.mix": "mixup", "train.mix_options.alpha": 1.0}
REMIX: Settings = {
    "train.mix": "remix",
    "train.mix_options.alpha": 1.0,
    "train.mix_options.kappa": 3.0,
    "train.mix_options.tau": 0.5,
}
# BagofTricks-LT mixes for 400 epochs, with milestones at 320 and 360.
MIXED: Settings = NESTEROV | {"train.epochs": 400, "train.warmup": 0.0125, "train.loss": "balanced_softmax"}
# MiSLAS decays by 0.1 instead of 0.01 at epochs 160 and 180.
MISLAS: Settings = {"train.schedule_options.gamma": 0.1, "train.loss": "ce"}
README, A, C = (f"BagofTricks-LT {page}" for page in ("README", "gallery A", "combinations"))
BEST = "the source keeps the best epoch on the test split"
# The warm-up from a third is that of the BBN code on which BagofTricks-LT builds (assumed: its own file was not seen).
TRICKS = f"{BEST}, drops incomplete batches, and warms up from a third of the rate"
FILES = f"{TRICKS}; it trains on the split files of Cui et al. 2019"
# method -> source, settings on top of CIFAR, what is known to differ. The focal loss of BagofTricks-LT is a sigmoid of
# each class, which ncflow lacks. Its CE on Cao's splits is in its README; the one in gallery A is a copy of Cao's.
METHODS: dict[str, tuple[str, Settings, str]] = {
    "CE": (README, NESTEROV | {"train.loss": "ce"}, TRICKS),
    "LDAM": (A, NESTEROV | LDAM, TRICKS),
    "LDAM-DRW": (
        A,
        NESTEROV | LDAM | DRW,
        f"{TRICKS}; it scales class weights in each batch, ncflow over the training split",
    ),
    "CDT": (A, NESTEROV | {"train.loss": "cdt", "train.loss_options.gamma": 0.2}, TRICKS),
    "balanced softmax": (A, NESTEROV | {"train.loss": "balanced_softmax"}, TRICKS),
    "mixup": ("MiSLAS", MISLAS | MIXUP, BEST),
    "mixup + balanced softmax": (C, MIXED | MIXUP, FILES),
    "remix + balanced softmax": (C, MIXED | REMIX, FILES),
}
# Add your own: REPRODUCTIONS["mine"] = Reproduction(method, dataset, imb_factor, source, settings, differs)
REPRODUCTIONS: dict[str, Reproduction] = _reproductions()
