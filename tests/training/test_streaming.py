"""Streaming analysis: what training saw, equal to the exact analysis where nothing moves, and no change of training."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import nn

from ncflow.data import load_batches
from ncflow.metrics import METRICS, collapse_metrics
from ncflow.nn import HEADS, Classifier, create_head, create_loss
from ncflow.runs.writer import summarize
from ncflow.training import (
    Analysis,
    Diverged,
    EarlyStopping,
    Objective,
    Plan,
    create_optimizer,
    fit,
)

NEEDS_SAMPLES = {
    "nc1/numerical_rank",
    *(name for name in METRICS if name.startswith(("nc4/", "margin/", "calibration/", "prior/"))),
}


class Double(nn.Flatten):
    """Pictures as vectors in float64, so that only mathematics can differ."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return super().forward(images).double()


def flat() -> nn.Module:
    return nn.Sequential(Double(), nn.Linear(192, 16), nn.ReLU())


class Watched(nn.Module):
    """A backbone with dropout and a batch norm, which keeps the features of every forward in training."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.seen = nn.Sequential(flat(), nn.BatchNorm1d(16), nn.Dropout(0.2)), []

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        features = self.body(images)
        if self.training:
            self.seen.append(features.detach())
        return features


@pytest.fixture
def start(whole) -> Callable:
    def start(backbone=flat, *, head="linear", lr=0.0, epochs=2, streaming=True, splits=None, plan=None, **options):
        torch.manual_seed(0)
        classifier = Classifier(backbone(), create_head(head, 16, 10, **options)).double()
        optimizer = create_optimizer("sgd", classifier.parameters(), lr=lr)
        objective, analysis = Objective(create_loss("ce")), Analysis(streaming=streaming)
        return classifier, fit(
            classifier, splits or whole, objective, optimizer, epochs=epochs, analysis=analysis, plan=plan
        )

    return start


@pytest.mark.parametrize("head", HEADS)
def test_where_nothing_moves_it_equals_the_exact_analysis(head, start):
    """At learning rate 0, without batch norm and augmentation; but the nearest ETF of a batch is not the stored one."""
    streamed, exact = (next(start(head=head, streaming=kind)[1]).analysis for kind in (True, False))
    ours, theirs = streamed["train"].metrics, exact["train"].metrics
    shared = ours.keys() & {name for name in theirs if head == "linear" or not name.startswith("acc/")}  # rows tie
    assert {name: ours[name] for name in shared} == pytest.approx(
        {name: theirs[name] for name in shared}, rel=1e-8, abs=1e-9
    )
    assert {"nc1/pinv", "nc2/etf_distance_means", "nc3/self_duality", "drift/norm", "acc/overall"} <= ours.keys()
    missing = {name for name in theirs.keys() - ours.keys() if name.partition("/")[0] != "acc"}
    assert missing <= NEEDS_SAMPLES | {name for name in METRICS if name.startswith("acc/")}
    torch.testing.assert_close(streamed["train"].class_means, exact["train"].class_means)
    assert streamed["test"].metrics == pytest.approx(exact["test"].metrics, rel=1e-8, abs=1e-9)


def test_the_moments_are_those_of_the_features_that_training_saw(start, whole, digits):
    """With dropout, a batch norm, augmentation and a rate: every feature of the epoch, as training saw it."""
    splits = replace(whole, train=load_batches(digits, "train", image_size=8, batch_size=64, augment="crop_flip"))
    classifier, records = start(Watched, lr=0.1, splits=splits)
    measured = next(records).analysis["train"]
    features = torch.cat(classifier.backbone.seen)
    targets = torch.cat([targets for _, targets in splits.train.shuffled(1)])
    weight = classifier.head.weight.detach()
    expected = collapse_metrics(features, targets, weight, class_counts=digits.class_counts)
    ours = {name: value for name, value in measured.metrics.items() if not name.startswith(("acc/", "head/"))}
    assert ours == pytest.approx({name: expected[name] for name in ours}, rel=1e-8, abs=1e-10)
    assert torch.equal(measured.targets, targets) and len(measured.logits) == len(targets)
    assert measured.metrics["acc/overall"] == pytest.approx((measured.predictions == targets).double().mean().item())


def test_it_changes_no_bit_of_training_and_the_last_analysis_is_exact(start):
    streamed, exact = (start(lr=0.05, streaming=kind, epochs=3) for kind in (True, False))
    ours, theirs = list(streamed[1]), list(exact[1])
    assert [record.loss for record in ours] == [record.loss for record in theirs]
    assert [record.analysis["train"].streamed for record in ours] == [True, True, False]
    assert ours[-1].analysis["train"].metrics == theirs[-1].analysis["train"].metrics
    for name, tensor in streamed[0].state_dict().items():
        assert torch.equal(exact[0].state_dict()[name], tensor), name
    assert [summarize(record).get("analyze") for record in ours] == ["streaming", "streaming", None]


def test_the_analysis_that_ends_a_training_early_is_exact(start, whole):
    plan = Plan(stop=EarlyStopping(patience=1))
    _, records = start(splits=replace(whole, validation=whole.test), epochs=9, plan=plan)
    assert [record.analysis["train"].streamed for record in records] == [True, False]


def test_steps_in_parts_show_the_same_features(start):
    whole_steps, parts = (next(start(lr=0.05, plan=Plan(accumulate=number))[1]) for number in (1, 3))
    ours, theirs = parts.analysis["train"].metrics, whole_steps.analysis["train"].metrics
    assert ours == pytest.approx(theirs, rel=1e-7, abs=1e-9)


def test_features_that_are_not_finite_end_training_as_ever(start):
    class Failing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.calls = flat(), 0

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            self.calls += 1
            return self.body(images) * (math.nan if self.calls == 3 else 1.0)

    with pytest.raises(Diverged, match="the loss is nan at epoch 1, step 3"):
        next(start(Failing)[1])


def test_a_head_with_embedded_features_streams_what_its_map_takes(start):
    streamed, exact = (next(start(streaming=kind, temperature=3.0)[1]).analysis["train"] for kind in (True, False))
    torch.testing.assert_close(streamed.class_means, exact.class_means)
    assert streamed.class_means.norm(dim=1).max() <= 3.0 + 1e-9
