"""What theory says a run must come to: the closed form that holds for its configuration, beside what was measured."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ncflow.metrics.imbalance import minority_cosine
from ncflow.reports.runs import Run
from ncflow.theory import (
    Optimum,
    fixed_etf_feature_norm,
    fixed_etf_optimum,
    predicted_optimum,
    relative_drift,
    relu_ce_optimum,
    seli_optimum,
)


@dataclass(frozen=True, eq=False)
class Prediction:
    """An optimum, the name and the assumptions of the theory that has it; without `scale` its lengths mean nothing."""

    theory: str
    optimum: Optimum
    scale: bool = True

    @property
    def assumptions(self) -> str:
        return ASSUMPTIONS[self.theory]


def predict(run: Run) -> Prediction | None:
    """The prediction for a run, None where no closed form applies to its configuration."""
    loss_options = any(key.startswith("train.loss_options.") for key in run.options)
    counts = run.dump["class_counts"]
    if loss_options or not _is_plain(run, PLAIN) or not bool((counts > 0).all()) or run.head not in BY_HEAD:
        return None
    return BY_HEAD[run.head](run, counts)


def measure(run: Run) -> Optimum:
    """The classifier and the class means of a run at its last analysis, as an optimum to hold beside the predicted."""
    weight, means, counts = (run.dump[key].double() for key in ("weight", "class_means", "class_counts"))
    return Optimum(weight, means, counts)


def quantities(optimum: Optimum, *, scale: bool = True) -> dict[str, float]:
    """The numbers by which a geometry is told; without `scale` those alone that do not depend on it."""
    chosen = SCALED | QUANTITIES if scale else QUANTITIES
    return {name: float(function(optimum)) for name, function in chosen.items()}


def obeys_cross_entropy(run: Run) -> bool:
    """Whether nothing but cross-entropy shapes a learned classifier, so that its limits are a reference for the run."""
    return run.head == "linear" and run.options["train.loss"] == "ce" and _is_plain(run, PLAIN | PLAIN_LINEAR)


def drift_references(class_counts: Tensor) -> dict[str, float]:
    """drift/relative of cross-entropy as weight decay vanishes, for features of any sign and for nonnegative ones."""
    vanishing = 1e-150  # the nonnegative optimum has no form for the limit; from here it is less than 1 % away
    nonnegative = relu_ce_optimum(class_counts, lambda_w=vanishing, lambda_h=vanishing)
    return {
        "SELI": relative_drift(seli_optimum(class_counts)),
        "nonnegative features": relative_drift(nonnegative),
    }


def decays(options: Mapping[str, Any], num_samples: int) -> tuple[float, float]:
    """λ_W and λ_H of a run with free features: parameters with the weight decay of all, unless told otherwise."""
    weight_decay = options.get("train.optimizer_options.weight_decay", options.get("train.weight_decay")) or 0.0
    on_features = 0.0 if options.get("train.decay") == "head" else weight_decay
    return weight_decay, on_features + options.get("train.feature_decay", 0.0) / num_samples


def _linear(run: Run, counts: Tensor) -> Prediction | None:
    """The exact optimum of free features, else the limit of cross-entropy."""
    loss = run.options["train.loss"]
    if not _is_plain(run, PLAIN_LINEAR):
        return None
    if _is_free(run):
        lambda_w, lambda_h = decays(run.options, int(counts.sum()))
        try:
            return Prediction("optimum", predicted_optimum(loss, counts, lambda_w=lambda_w, lambda_h=lambda_h))
        except ValueError:  # theory refuses: another loss, no weight decay, or classes of too many sizes
            pass
    return Prediction("SELI", seli_optimum(counts), scale=False) if loss == "ce" else None


def _fixed_etf(run: Run, counts: Tensor) -> Prediction | None:
    """Features along the rows of the ETF, as long as the head makes them or as weight decay leaves them."""
    if run.options["train.loss"] != "ce":
        return None
    feature_norm = run.options.get("head.temperature")
    if feature_norm is None:
        lambda_h = decays(run.options, int(counts.sum()))[1]
        if not _is_free(run) or not lambda_h:
            return None
        feature_norm = fixed_etf_feature_norm(counts, lambda_h=lambda_h)
    return Prediction("fixed ETF", fixed_etf_optimum(counts, feature_norm=feature_norm))


def _is_free(run: Run) -> bool:
    """Whether features are parameters and weight decay a term of the loss, which AdamW and AGD do not make it."""
    return run.options["model.name"] == "free_features" and run.options["train.optimizer"] in ("sgd", "adam", "rmsprop")


def _is_plain(run: Run, plain: Mapping[str, Any]) -> bool:
    return all(run.options.get(key, value) == value for key, value in plain.items())


def _most(lengths: Tensor, counts: Tensor) -> Tensor:
    """The mean over the largest classes: those of one size share an optimum."""
    return lengths[counts == counts.max()].mean()


def _fewest(lengths: Tensor, counts: Tensor) -> Tensor:
    return lengths[counts == counts.min()].mean()


def _longest_to_shortest(rows: Tensor) -> Tensor:
    lengths = rows.norm(dim=1)
    ratio: Tensor = lengths.max() / lengths.min()
    return ratio


def _smallest_margin(optimum: Optimum) -> Tensor:
    """The least, over classes, of its own logit less the largest other."""
    logits = optimum.logits
    others = logits.clone().fill_diagonal_(-torch.inf)
    return (logits.diagonal() - others.amax(1)).min()


def _centered(rows: Tensor) -> Tensor:
    """(K, d) less their mean."""
    return rows - rows.mean(0)


PLAIN = {  # what every closed form assumes, where a configuration speaks of it
    "train.drift_penalty": 0.0,
    "train.reweight": None,
    "train.sampling": "shuffled",
    "dataset.label_noise": 0.0,
}
PLAIN_LINEAR = {"head.bias": False, "head.normalize": False, "head.temperature": None}
BY_HEAD: dict[str, Callable[[Run, Tensor], Prediction | None]] = {"linear": _linear, "fixed_etf": _fixed_etf}
ASSUMPTIONS = {
    "optimum": "features free to take any value, weight decay on features and classifier, a minimum reached; "
    "then exact in lengths and angles",
    "SELI": "cross-entropy on features free to take any value, in the limit of vanishing weight decay and endless "
    "training; angles and ratios of lengths only. Real features, nonnegative behind a ReLU, may end elsewhere",
    "fixed ETF": "a network that can move every feature where it likes; class sizes do not matter",
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
