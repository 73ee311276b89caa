"""The prediction of theory for a run: the closed form for its configuration, or why none applies."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ncflow.lookup import fact
from ncflow.metrics.imbalance import minority_cosine
from ncflow.nn import ENDINGS, HEADS, feature_ending
from ncflow.runs.reader import Run
from ncflow.theory import (
    NONNEGATIVE,
    Optimum,
    fixed_etf_feature_norm,
    fixed_etf_optimum,
    fixed_etf_relu_optimum,
    predicted_optimum,
    relative_drift,
    relu_limit,
    seli_optimum,
    with_room,
)

Options = Mapping[str, Any]  # a configuration by dotted key


@dataclass(frozen=True, eq=False)
class Prediction:
    """An optimum, the name of its theory and its assumptions; without `scale` only ratios of lengths have a meaning."""

    theory: str
    optimum: Optimum
    scale: bool = True

    @property
    def assumptions(self) -> str:
        return ASSUMPTIONS[self.theory]


class NoTheory(ValueError):
    """The reason why no closed form applies to a run, in one line."""


def predict(run: Run) -> Prediction | None:
    """The prediction for a run; None if no closed form applies to its configuration."""
    try:
        return _prediction(run)
    except NoTheory:
        return None


def why_not(run: Run) -> str | None:
    """The reason why no closed form applies to a run, in one line; None if one applies."""
    try:
        _prediction(run)
    except NoTheory as reason:
        return str(reason)
    return None


def exact_optimum(options: Options, class_counts: Tensor, num_features: int) -> Optimum:
    """The optimum of a linear head on features that only weight decay limits. Raises NoTheory with the reason if none.

    This holds for free features. It also holds for a network in which only the head's rows and the features decay.
    """
    _require(options, {"head.name": ("linear",)} | PLAIN | PLAIN_LINEAR)
    _require_loss(options, *NONNEGATIVE)
    _refuse_missing_classes(class_counts)
    if not _is_free(options) and options.get("train.decay") != "head":
        raise NoTheory("weight decay on a network's weights does not act on its features: use train.decay=head")
    lambda_w, lambda_h = _l2_decays(options, class_counts, exact=True)
    if not (lambda_w and lambda_h):
        raise NoTheory("without weight decay on classifier and features lengths grow without end")
    values = _feature_values(options)
    if values not in ("any", "nonnegative"):
        raise NoTheory(f"features {values} are not free: {_ending(options)} bounds them")
    try:
        return predicted_optimum(
            str(options.get("train.loss")),
            class_counts,
            lambda_w=lambda_w,
            lambda_h=lambda_h,
            num_features=num_features,
            nonnegative=values == "nonnegative",
        )
    except ValueError as refusal:
        raise NoTheory(str(refusal)) from None


def measure(run: Run) -> Optimum:
    """The classifier and class means of a run at its last analysis, as an Optimum to compare with the prediction."""
    weight, means, counts = (run.dump[key].double() for key in ("weight", "class_means", "class_counts"))
    return Optimum(weight, means, counts)


def quantities(optimum: Optimum, *, scale: bool = True) -> dict[str, float]:
    """The numbers that describe a geometry; without `scale` only those that do not depend on the scale."""
    chosen = SCALED | QUANTITIES if scale else QUANTITIES
    return {name: float(function(optimum)) for name, function in chosen.items()}


def drift_limit(run: Run) -> tuple[str, float] | None:
    """The theory for a run as weight decay vanishes, and its drift/relative; None if no theory applies."""
    try:
        if _theory_of(run.head) != "linear":
            return None
        _require(run.options, PLAIN | PLAIN_LINEAR)
        limit = _limit(run.options, run.dump["class_counts"], _width(run))
    except NoTheory:
        return None
    return limit.theory, relative_drift(limit.optimum)


def decays(options: Options, num_samples: int) -> tuple[float, float]:
    """λ_W and λ_H of a run with free features, which decay like all parameters unless options change this."""
    weight_decay = options.get("train.optimizer_options.weight_decay", options.get("train.weight_decay")) or 0.0
    feature_decay = options.get("train.feature_decay", 0.0)
    if not isinstance(weight_decay, int | float) or not isinstance(feature_decay, int | float):
        raise NoTheory(f"expected numbers as train.weight_decay and train.feature_decay, got {weight_decay!r:.40}")
    on_features = 0.0 if options.get("train.decay") == "head" else weight_decay
    return weight_decay, on_features + feature_decay / num_samples


def _prediction(run: Run) -> Prediction:
    counts = run.dump["class_counts"]
    theory = _theory_of(run.head)
    if theory is None:
        raise NoTheory(f"no closed form is known for head.name={run.head}")
    _require(run.options, PLAIN)
    _refuse_missing_classes(counts)
    return THEORIES[theory](run.options, counts, _width(run))


def _theory_of(head: str) -> str | None:
    """The theory in a head's row; None if it has none."""
    theory: str | None = fact(HEADS.get(head), "theory")
    return theory


def _linear(options: Options, counts: Tensor, num_features: int) -> Prediction:
    """The exact optimum for free features, else the limit of cross-entropy."""
    _require(options, PLAIN_LINEAR)
    if not _is_free(options):
        return _limit(options, counts, num_features)
    try:
        return Prediction(EXACT, exact_optimum(options, counts, num_features))
    except NoTheory as reason:
        if options.get("train.loss") != "ce":
            raise
        try:
            return _limit(options, counts, num_features)
        except NoTheory as other:
            both = dict.fromkeys((str(reason), str(other)))
            raise NoTheory("; as weight decay vanishes, ".join(both)) from None


def _limit(options: Options, counts: Tensor, num_features: int) -> Prediction:
    """The limit of cross-entropy as weight decay vanishes: SELI, or orthogonal means for nonnegative features."""
    _require_loss(options, "ce")
    _refuse_missing_classes(counts)
    lambda_w, lambda_h = _l2_decays(options, counts)
    if bool(lambda_w) != bool(lambda_h):
        raise NoTheory("of classifier and features only one decays: use train.decay=all, or train.feature_decay > 0")
    values = _feature_values(options)
    if values not in LIMITS:
        raise NoTheory(f"features {values} are not free: {_ending(options)} bounds them")
    theory, optimum_of = LIMITS[values]
    try:
        return Prediction(theory, with_room(optimum_of(counts), num_features), scale=False)
    except ValueError as refusal:
        raise NoTheory(str(refusal)) from None


def _fixed_etf(options: Options, counts: Tensor, num_features: int) -> Prediction:
    """Features along the rows of the ETF, or as near as a ReLU allows; the head or the decay sets their length."""
    _require_loss(options, "ce")
    values = _feature_values(options)
    if values not in ("any", "nonnegative"):
        raise NoTheory(f"features {values} are not free: {_ending(options)} bounds them")
    feature_norm = options.get("head.temperature") or _free_feature_norm(options, counts)
    if values == "any":
        return Prediction("fixed ETF", fixed_etf_optimum(counts, feature_norm=feature_norm))
    turned = any(options.get(f"head.{seed}") is not None for seed in ("rotation_seed", "frame_seed"))
    if turned or num_features < len(counts):
        raise NoTheory("nonnegative features cannot follow the rows of a rotated ETF; no closed form is known")
    return Prediction("fixed ETF, ReLU", fixed_etf_relu_optimum(counts, feature_norm=feature_norm))


def _fixed_frame(options: Options, counts: Tensor, num_features: int) -> Prediction:
    """The prediction of the fixed ETF, where the frame is one."""
    _require(options, {"head.frame": ("simplex_etf",)})
    return _fixed_etf(options, counts, num_features)


def _free_feature_norm(options: Options, counts: Tensor) -> float:
    """The length of free features under weight decay, with a fixed ETF."""
    if not _is_free(options):
        raise NoTheory("without head.temperature no theory gives the length of a network's features")
    lambda_h = _l2_decays(options, counts, exact=True)[1]
    if not lambda_h:
        raise NoTheory("without weight decay on features, or head.temperature, lengths grow without end")
    return fixed_etf_feature_norm(counts, lambda_h=lambda_h)


def _l2_decays(options: Options, counts: Tensor, *, exact: bool = False) -> tuple[float, float]:
    """λ_W and λ_H. Raises NoTheory if the optimizer minimizes no loss with these decays (`exact`: not exactly)."""
    from ncflow.training import ADAPTIVE, L2_DECAY

    optimizer = str(options.get("train.optimizer"))
    if optimizer not in L2_DECAY:
        raise NoTheory(f"the weight decay of optimizer {optimizer} is no term of an objective: use train.optimizer=sgd")
    lambda_w, lambda_h = decays(options, int(counts.sum()))
    if optimizer in ADAPTIVE and not (lambda_w and lambda_h):
        raise NoTheory(f"without weight decay {optimizer} goes to the limit of another norm than ‖W‖² + ‖H‖²")
    if exact and optimizer in ADAPTIVE and not _in_full_batches(options, counts):
        raise NoTheory(f"{optimizer} follows the full objective only in full batches: use train.batch_size=full")
    return lambda_w, lambda_h


def _in_full_batches(options: Options, counts: Tensor) -> bool:
    size = options.get("train.batch_size")
    return size == "full" or (isinstance(size, int) and size >= int(counts.sum()))


def _feature_values(options: Options) -> str:
    """The values that features can take, as in ENDINGS. Raises NoTheory if they are unknown."""
    ending = _ending(options)
    if ending is None:
        raise NoTheory(
            f"nothing says which values the features of model {options.get('model.name')} can take: "
            "choose model.neck=batch_norm, or mark its builder with ncflow.nn.ends_in"
        )
    if ending == "batch_norm" and options.get("model.affine") is False:
        return "of variance one"
    return ENDINGS[ending]


def _ending(options: Options) -> str | None:
    chosen = {key: options.get(f"model.{key}") for key in ("neck", "final_norm", "num_features")}
    try:
        return feature_ending(str(options.get("model.name")), **chosen)
    except ValueError:  # an alias with contradictory options
        return None


def _is_free(options: Options) -> bool:
    """Whether the features are parameters."""
    return _ending(options) == "parameters"


def _width(run: Run) -> int:
    return int(run.dump["class_means"].shape[1])


def _require(options: Options, plain: Mapping[str, tuple[Any, ...]]) -> None:
    """Raise NoTheory for the first option whose objective differs from that of the closed forms."""
    of_others: dict[str, tuple[Any, ...]] = {key: () for key in options if key.startswith(OTHER_OBJECTIVES)}
    for key, allowed in (dict(plain) | of_others).items():
        value = options.get(key, *allowed[:1])
        if value not in allowed:
            raise NoTheory(f"no closed form is known for {key}={value}")


def _require_loss(options: Options, *losses: str) -> None:
    _require({"train.loss": None} | dict(options), {"train.loss": losses})


def _refuse_missing_classes(counts: Tensor) -> None:
    if missing := int((counts == 0).sum()):
        raise NoTheory(f"{missing} of {len(counts)} classes have no training sample")


def _most(lengths: Tensor, counts: Tensor) -> Tensor:
    """The mean length over the largest classes; classes of one size share an optimum."""
    return lengths[counts == counts.max()].mean()


def _fewest(lengths: Tensor, counts: Tensor) -> Tensor:
    return lengths[counts == counts.min()].mean()


def _longest_to_shortest(rows: Tensor) -> Tensor:
    lengths = rows.norm(dim=1)
    ratio: Tensor = lengths.max() / lengths.min()
    return ratio


def _smallest_margin(optimum: Optimum) -> Tensor:
    """The smallest margin over classes: a class's own logit minus the largest other logit."""
    logits = optimum.logits
    others = logits.clone().fill_diagonal_(-torch.inf)
    return (logits.diagonal() - others.amax(1)).min()


def _centered(rows: Tensor) -> Tensor:
    """Rows (K, d) minus their mean."""
    return rows - rows.mean(0)


OTHER_OBJECTIVES = ("train.loss_options.", "train.penalties.")  # what keys of another objective begin with
PLAIN: dict[str, tuple[Any, ...]] = {  # values that every closed form allows; the first is the default
    "train.drift_penalty": (0.0,),
    "train.reweight": (None,),
    "train.label_smoothing": (0.0,),
    "train.mix": ("none",),
    "train.sam": (0.0,),
    "train.ema": (0.0,),
    "model.trainable": ("all",),
    "train.sampling": ("shuffled", "stratified"),  # every sample once
    "dataset.label_noise": (0.0,),  # a network cannot interpolate wrong labels
}
PLAIN_LINEAR: dict[str, tuple[Any, ...]] = {
    "head.bias": (False,),
    "head.normalize": (False,),
    "head.temperature": (None,),
}
# The theory in a head's row -> its prediction from options, class sizes and the width of the features.
THEORIES: dict[str, Callable[[Options, Tensor, int], Prediction]] = {
    "linear": _linear,
    "fixed_etf": _fixed_etf,
    "fixed_frame": _fixed_frame,
}
LIMITS: dict[str, tuple[str, Callable[[Tensor], Optimum]]] = {
    "any": ("SELI", seli_optimum),
    "nonnegative": ("ReLU", relu_limit),
}
EXACT = "optimum"
ASSUMPTIONS = {
    EXACT: "features free to take any value, weight decay on features and classifier, training at a minimum; "
    "then exact in lengths and angles",
    "SELI": "cross-entropy on features free to take any value, in the limit of vanishing weight decay and infinite "
    "training; angles and ratios of lengths only. Features of a real network may end elsewhere",
    "ReLU": "cross-entropy on features free to take any nonnegative value, as a ReLU leaves them, in the limit of "
    "vanishing weight decay and infinite training; angles and ratios of lengths only. Features of a real network may "
    "end elsewhere",
    "fixed ETF": "a network that can move each feature freely; class sizes do not matter",
    "fixed ETF, ReLU": "a network that can move each feature freely except below zero, and an ETF that is not "
    "rotated; class sizes do not matter",
}
QUANTITIES: dict[str, Callable[[Optimum], Tensor | float]] = {
    "‖w‖ max : min": lambda o: _longest_to_shortest(o.weight),
    "‖μ̃‖ max : min": lambda o: _longest_to_shortest(_centered(o.class_means)),
    "cos(w,w) rarest third": lambda o: minority_cosine(o.weight, o.class_counts),
    "cos(μ̃,μ̃) rarest third": lambda o: minority_cosine(_centered(o.class_means), o.class_counts),
    "drift/ relative": relative_drift,
}
SCALED: dict[str, Callable[[Optimum], Tensor | float]] = {
    "‖w‖ frequent": lambda o: _most(o.weight_norms, o.class_counts),
    "‖w‖ rare": lambda o: _fewest(o.weight_norms, o.class_counts),
    "‖h‖ frequent": lambda o: _most(o.mean_norms, o.class_counts),
    "‖h‖ rare": lambda o: _fewest(o.mean_norms, o.class_counts),
    "smallest margin": _smallest_margin,
}
