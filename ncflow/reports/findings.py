"""Findings of a comparison in sentences: which arm leads, and how far each choice moves accuracy and collapse."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from typing import NamedTuple

from ncflow.reports.arms import Arm, names, short, value_text, varying
from ncflow.runs.reader import Run

ACCURACY = "test/acc/balanced"
ENOUGH = 2.0  # standard deviations over seeds that an effect must exceed to be called one


class Question(NamedTuple):
    """A measure of a run, and how to say a difference of two of its values."""

    name: str
    value: Callable[[Run], float | None]
    difference: Callable[[float], str]
    least: float  # a smaller difference reads as none


def verdict(arms: Sequence[Arm]) -> str:
    """Which arm has the highest mean accuracy, and by how much against the spread over seeds; empty without one.

    It describes the arms at their last analysis and chooses none of them: for that, use a validation part.
    """
    question = QUESTIONS[0]
    means = {
        name: mean
        for name, arm in zip(names(arms), arms, strict=True)
        if (mean := _mean(question, arm.runs)) is not None
    }
    if not means:
        return ""
    first, *others = sorted(means, key=lambda name: means[name], reverse=True)
    runs = {name: len(arm.runs) for name, arm in zip(names(arms), arms, strict=True)}
    seeds = f"mean of {runs[first]} seeds" if runs[first] > 1 else "one seed"
    spread = _spread(question, arms)
    known = "One seed: no spread is known" if spread is None else f"The spread over seeds (std) is {_points(spread)}"
    if not others:
        return f"{first} reaches {100 * means[first]:.1f} % balanced test accuracy ({seeds}). {known}."
    lead = means[first] - means[others[0]]
    said = (
        f"Of {len(means)} arms, {first} has the highest balanced test accuracy: {100 * means[first]:.1f} % ({seeds}), "
        f"{_points(lead)} above the next, {others[0]}. {known}"
    )
    close = [name for name in others if spread is not None and means[first] - means[name] <= ENOUGH * spread]
    if spread is None:
        return f"{said}."
    if not close:
        return f"{said}: the lead is more than {ENOUGH:g} times as large."
    which = close[0] if len(close) == 1 else f"{len(close)} other arms"
    return f"{said}: {first} does not separate from {which}."


def findings(arms: Sequence[Arm]) -> list[str]:
    """A sentence on post-hoc classifiers, then one for each question and each choice that varies between the arms.

    The arms must be a whole grid: otherwise an effect of one choice may be that of another. The effect of a choice is
    the range over its values of the mean over all arms with that value. An effect below ENOUGH standard deviations over
    seeds is not called one. Without repetitions no spread is known, and the sentence says that.
    """
    answers = [sentence for question in QUESTIONS for sentence in _answers(question, arms)] if len(arms) > 1 else []
    return [*_after_training(arms), *answers]


def _after_training(arms: Sequence[Arm]) -> list[str]:
    """Which post-hoc classifier has the highest mean accuracy, and what it adds to its own arm; none without any."""
    question, means = QUESTIONS[0], {}
    for name, arm in zip(names(arms), arms, strict=True):
        measured = [run.posthoc for run in arm.runs if run.posthoc is not None]
        own = _mean(question, arm.runs)
        if len(measured) < len(arm.runs) or own is None:
            continue  # a mean over some of the seeds is no mean of the arm
        for method in measured[0].methods:
            values = [value for of in measured if (value := of.value(method, ACCURACY)) is not None]
            if len(values) == len(arm.runs):
                means[name, method] = statistics.fmean(values), own
    if not means:
        return []
    (name, method), (mean, own) = max(means.items(), key=lambda item: item[1][0])
    which, tried = f" of {name}" if len(arms) > 1 else "", f" of {len(means)} tried" if len(means) > 1 else ""
    return [
        f"After training, {method} on the features{which} has the highest balanced test accuracy{tried}: "
        f"{100 * mean:.1f} %, {_points(abs(mean - own))} {'above' if mean >= own else 'below'} the trained classifier."
    ]


def _answers(question: Question, arms: Sequence[Arm]) -> list[str]:
    means = {arm: mean for arm in arms if (mean := _mean(question, arm.runs)) is not None}
    if len(means) < 2 or not _is_grid(list(means)):
        return []
    spread, keys = _spread(question, arms), list(arms[0].choices)
    effects = {key: _effect(key, means) for key in varying(list(means))}
    ranked = sorted(effects, key=lambda key: effects[key][0], reverse=True)
    return [_sentence(question, short(key, keys), *effects[key], spread) for key in ranked]


def _is_grid(arms: Sequence[Arm]) -> bool:
    """Whether there is an arm for each combination of the values of the choices."""
    values = [{repr(arm.choices[key]) for arm in arms} for key in varying(arms)]
    return len(arms) == math.prod(map(len, values))


def _effect(key: str, means: dict[Arm, float]) -> tuple[float, object, object]:
    """The range of the means over the values of a choice, and the values with the highest and the lowest mean."""
    values = {repr(arm.choices[key]): arm.choices[key] for arm in means}
    levels = {
        name: statistics.fmean(mean for arm, mean in means.items() if repr(arm.choices[key]) == name) for name in values
    }
    high, low = max(levels, key=lambda name: levels[name]), min(levels, key=lambda name: levels[name])
    return levels[high] - levels[low], values[high], values[low]


def _sentence(question: Question, key: str, size: float, high: object, low: object, spread: float | None) -> str:
    if not size:
        return f"{question.name}: {key} does not move it."
    if size < question.least:
        return f"{question.name}: {key} moves it by less than {question.difference(question.least)}."
    ends = f"from {value_text(low)} to {value_text(high)}"
    said = f"{question.name}: {key} moves it by {question.difference(size)}, {ends}"
    if spread is None:
        return f"{said}. One seed: no spread is known."
    verdict = "" if size > ENOUGH * spread else "; this does not separate from the spread over seeds"
    return f"{said}{verdict}. The spread over seeds (std) is {question.difference(spread)}."


def _mean(question: Question, runs: Sequence[Run]) -> float | None:
    values = [value for run in runs if (value := question.value(run)) is not None]
    return statistics.fmean(values) if values else None


def _spread(question: Question, arms: Sequence[Arm]) -> float | None:
    """The pooled standard deviation over seeds, None without repetitions."""
    groups = [[value for run in arm.runs if (value := question.value(run)) is not None] for arm in arms]
    repeated = [group for group in groups if len(group) > 1]
    if not repeated:
        return None
    squares = sum(statistics.variance(group) * (len(group) - 1) for group in repeated)
    return math.sqrt(squares / sum(len(group) - 1 for group in repeated))


def _log_nc1(run: Run) -> float | None:
    value = run.final("train/nc1/pinv")
    return math.log10(value) if value else None


def _points(difference: float) -> str:
    return f"{100 * difference:.1f} points"


def _factor(difference: float) -> str:
    factor = 10**difference
    return f"a factor of {factor:.2f}" if factor < 1.5 else f"a factor of {factor:.2g}"


QUESTIONS = (
    Question("Balanced accuracy on the test split", lambda run: run.final(ACCURACY), _points, 0.001),
    Question("nc1 on the training split", _log_nc1, _factor, math.log10(1.02)),
)
