"""Choice of the options of post-hoc classifiers on validation data, and their accuracies on every unseen split."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import product
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ncflow.lookup import fact, lookup, options_of
from ncflow.metrics import class_recalls
from ncflow.posthoc.frozen import Frozen, Lacking, LinearMap
from ncflow.posthoc.table import POSTHOC
from ncflow.training.evaluation import logit_metrics


class Unseen(NamedTuple):
    """A split that training does not use: features (N, d), the run's own logits (N, K), targets (N,)."""

    features: Tensor
    logits: Tensor
    targets: Tensor


class Choice(NamedTuple):
    """A post-hoc classifier, the options that have candidates, and "val", "default" or "" (no option to choose)."""

    classifier: LinearMap
    options: dict[str, float]
    chosen_by: str


@torch.no_grad()
def choose(row: Callable[..., LinearMap], frozen: Frozen, validation: Unseen | None = None) -> Choice:
    """The row with the options of highest balanced accuracy on validation data, or with its defaults without such data.

    The defaults win a tie, then the first candidate. The test split is never used.
    """
    defaults = {name: options_of(row)[name].default for name in fact(row, "candidates", {})}
    if not defaults:
        return Choice(row(frozen), {}, "")
    if validation is None:
        return Choice(row(frozen, **defaults), defaults, "default")
    tried = [Choice(row(frozen, **options), options, "val") for options in _candidates(row, defaults)]
    return max(tried, key=lambda choice: _balanced_accuracy(choice.classifier, validation, len(frozen.weight)))


def measure_posthoc(
    frozen: Frozen, unseen: Mapping[str, Unseen], *, methods: Sequence[str] = (), lacks: Mapping[str, str] = {}
) -> dict[str, Any]:
    """Measure methods on every unseen split, "test" and perhaps "val". Without `methods`, those that the run allows.

    Returns the accuracies by split, as acc/<name> of the run itself and as posthoc/<method>/acc/<name>. "options" holds
    posthoc/<method>/<option>. "chosen_by" and "skipped" hold a word and a reason for each method. `lacks` maps keys of
    NEEDS to the reasons why the run does not meet them. Raises Lacking for a method in `methods` that needs one.
    """
    counts = frozen.class_counts.long().tolist()
    results: dict[str, Any] = {"options": {}, "chosen_by": {}, "skipped": {}}
    results |= {split: logit_metrics("acc", data.logits, data.targets, counts) for split, data in unseen.items()}
    for name in methods or POSTHOC:
        row = lookup(POSTHOC, name, "post-hoc method")
        try:
            _refuse_lacking(name, row, lacks)
            choice = choose(row, frozen, unseen.get("val"))
        except Lacking as reason:
            if methods:
                raise
            results["skipped"][name] = str(reason)
            continue
        results["options"] |= {f"posthoc/{name}/{option}": value for option, value in choice.options.items()}
        results["chosen_by"][name] = choice.chosen_by
        for split, data in unseen.items():
            logits, targets = _classified(choice.classifier, data)
            results[split] |= logit_metrics(f"posthoc/{name}/acc", logits, targets, counts)
    return results


def _candidates(row: Callable[..., LinearMap], defaults: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The defaults, then every combination of candidates."""
    yield dict(defaults)
    candidates: Mapping[str, Sequence[Any]] = fact(row, "candidates", {})
    for values in product(*candidates.values()):
        yield dict(zip(candidates, values, strict=True))


def _balanced_accuracy(classifier: LinearMap, data: Unseen, num_classes: int) -> float:
    logits, targets = _classified(classifier, data)
    return class_recalls(logits.argmax(1), targets, num_classes).nanmean().item()


def _classified(classifier: LinearMap, data: Unseen) -> tuple[Tensor, Tensor]:
    """The logits (N, K) of a post-hoc classifier and the targets (N,), on its device."""
    return classifier(data.features.to(classifier.weight)), data.targets.to(classifier.weight.device)


def _refuse_lacking(name: str, row: Callable[..., LinearMap], lacks: Mapping[str, str]) -> None:
    for need in fact(row, "needs", ()):
        if need in lacks:
            raise Lacking(f"{name} needs {NEEDS[need]}, but {lacks[need]}")


# What a row may need of a run: the key that its fact names -> words for messages.
NEEDS = {
    "log_probabilities": "logits that are log-probabilities",
    "sizes_uncorrected": "a training that does not correct for class sizes, or validation data to choose its option",
}
