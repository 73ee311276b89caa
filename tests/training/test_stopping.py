"""Early stopping: on the validation split alone, after so many analyses without a better value, also when resumed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import pytest
import torch

from ncflow.nn import create_loss
from ncflow.training import (
    Analysis,
    EarlyStopping,
    Objective,
    Plan,
    StateFolder,
    create_accelerator,
    create_optimizer,
    fit,
    misfit,
)


class Measured(NamedTuple):
    metrics: dict[str, float]


def follow(stop: EarlyStopping, values: list[float | None]) -> list[int]:
    """The waiting after each analysis, until training would end."""
    name, waited = stop.metric.removeprefix("val/"), []
    for epoch, value in enumerate(values, start=1):
        stop.update(epoch, {"val": Measured({} if value is None else {name: value})})
        waited.append(stop.waited)
        if stop.stopped:
            break
    return waited


def test_training_ends_after_so_many_analyses_without_a_better_value():
    stop = EarlyStopping(patience=3)
    assert follow(stop, [0.5, 0.6, 0.6, 0.55, 0.7, 0.7, 0.1, 0.69, 0.9]) == [0, 0, 1, 2, 0, 1, 2, 3]
    stopped = stop.stopped
    assert (stopped.epoch, stopped.best, stopped.best_epoch, stopped.patience) == (8, 0.7, 5, 3)
    assert str(stopped) == ("stopped after epoch 8: val/acc/balanced did not improve on 0.7, of epoch 5, in 3 analyses")


@pytest.mark.parametrize("metric", ["val/nc1/pinv", "val/calibration/ece"])
def test_a_metric_that_falls_towards_collapse_improves_downwards(metric):
    assert follow(EarlyStopping(metric, 2), [1.0, 0.5, 0.7, 0.5, 0.1]) == [0, 0, 1, 2]


def test_a_value_that_is_missing_later_is_no_better_one():
    assert follow(EarlyStopping(patience=2), [0.5, None, None]) == [0, 1, 2]


@pytest.mark.parametrize(
    "measured", [{}, {"test": Measured({"acc/balanced": 1.0})}, {"val": Measured({"acc/many": 1})}]
)
def test_a_metric_that_no_analysis_has_is_reported_at_the_first(measured):
    with pytest.raises(ValueError, match="early stopping needs val/acc/balanced, which the analysis after epoch 2"):
        EarlyStopping().update(2, measured)


@pytest.mark.parametrize(
    ("metric", "message"),
    [
        ("test/acc/balanced", "validation split alone.*try train.stop.metric=val/acc/balanced"),
        ("train/nc1/pinv", "validation split alone.*try train.stop.metric=val/nc1/pinv"),
        ("acc", "validation split alone"),
        ("val/acc/balansed", "unknown metric 'acc/balansed'. Did you mean 'acc/balanced'"),
        ("val/margin/mean", "has no better end"),
    ],
)
def test_a_metric_that_training_must_not_follow_is_refused(metric, message):
    with pytest.raises(ValueError, match=message):
        EarlyStopping(metric)
    with pytest.raises(ValueError, match="patience"):
        EarlyStopping(patience=0)


def test_the_memory_is_plain_data():
    first, second = EarlyStopping(patience=3), EarlyStopping(patience=3)
    follow(first, [0.5, 0.4, 0.3])
    second.load_state_dict(first.state_dict())
    assert second.state_dict() == first.state_dict()
    assert follow(first, [0.2]) == follow(second, [0.2]) == [3] and first.stopped == second.stopped


# --- in training ---


@pytest.fixture
def start(whole, few) -> Callable:
    """A training whose accuracy can no longer change after the first step, with a validation part."""

    def start(patience: int, *, epochs=9, every=2, **options):
        classifier, stop = few(), EarlyStopping(patience=patience)
        optimizer = create_optimizer("sgd", classifier.parameters(), lr=1e-30)
        splits = replace(whole, validation=whole.test)
        options = {"plan": Plan(stop=stop), "analysis": Analysis(every=every)} | options
        return (
            classifier,
            stop,
            fit(classifier, splits, Objective(create_loss("ce")), optimizer, epochs=epochs, **options),
        )

    return start


def test_a_stopped_training_ends_with_an_analysis_and_says_so(start):
    _, stop, records = start(2)
    records = list(records)
    assert [record.epoch for record in records if record.analysis] == [2, 4, 6]
    assert [record.last for record in records] == [False] * 5 + [True]
    assert (stop.stopped.epoch, stop.stopped.best_epoch) == (6, 2)


def test_a_training_that_reaches_its_end_did_not_stop(start):
    _, stop, records = start(5, epochs=4)
    *_, last = records
    assert last.epoch == 4 and last.last and stop.stopped is None


@pytest.mark.parametrize("after", [1, 2, 3, 5, 6])
def test_resumed_it_stops_where_it_would_have(after, start, tmp_path):
    states = StateFolder(tmp_path)
    _, _, records = start(2)
    for _ in range(after):
        states.write(next(records).state())
    _, stop, rest = start(2, resume=states.newest(create_accelerator("cpu")))
    assert [record.epoch for record in rest] == list(range(after + 1, 7))
    assert (stop.stopped.epoch, stop.stopped.best_epoch) == (6, 2)


def test_following_a_metric_changes_no_bit(start):
    ours, _, records = start(50, epochs=2)
    list(records)
    theirs, _, records = start(50, epochs=2, plan=Plan())
    list(records)
    for name, tensor in ours.state_dict().items():
        assert torch.equal(theirs.state_dict()[name], tensor), name


def test_a_state_without_the_memory_does_not_fit(start):
    classifier, _, records = start(2, plan=Plan())
    state = next(records).state()
    optimizer = create_optimizer("sgd", classifier.parameters())
    assert misfit(state, classifier, optimizer) is None
    assert misfit(state, classifier, optimizer, stopping=True) == "it lacks stop"
