"""What a head tells of itself reaches the metrics of the train split, under head/, and nothing else."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from ncflow import stages
from ncflow.nn import HEADS
from ncflow.training import Analysis, Objective, Splits, evaluate_splits, fit

SEARCH = {f"head/riemannian_{name}" for name in ("gap", "gradient_norm", "iterations", "converged", "seconds")}


@pytest.fixture
def few(splits):
    """The first samples of each split."""
    return {split: replace(batches, targets=batches.targets[:64]) for split, batches in splits.items()}


@pytest.mark.parametrize("head", HEADS)
def test_an_analysis_has_what_the_head_tells_on_the_train_split_alone(head, make_classifier, few, digits):
    classifier = make_classifier(head)
    with torch.no_grad():
        classifier(*next(few["train"].shuffled(1)))
    for solver in (False, True):
        splits = Splits(**few, class_counts=digits.class_counts)
        analysis = evaluate_splits(classifier, splits, Analysis(solver=solver))
        told = {name for name in analysis["train"].metrics if name.startswith("head/")}
        own = {"head/objective", "head/distance"} | (SEARCH if solver else set())
        assert told == (own if head == "nearest_etf" else set())
        assert not any(name.startswith("head/") for name in analysis["test"].metrics)


def test_training_analyzes_the_solver_when_asked(make_classifier, few, digits):
    classifier = make_classifier("nearest_etf")
    (record,) = fit(
        classifier,
        Splits(**few, class_counts=digits.class_counts),
        Objective(torch.nn.functional.cross_entropy),
        torch.optim.SGD(classifier.parameters(), lr=0.1),
        epochs=1,
        analysis=Analysis(solver=True),
    )
    metrics = record.analysis["train"].metrics
    assert metrics.keys() >= SEARCH
    assert abs(metrics["head/riemannian_gap"]) < 1e-9
    assert 0 < metrics["head/objective"] <= metrics["head/distance"]


def test_a_checkpoint_must_match_head_diagnostics_but_no_search(tmp_path):
    measured = {"train": {"head/objective": 0.25}}
    searched = {"train": {"head/objective": 0.25, "head/riemannian_seconds": 1.5}}
    other = {"train": {"head/objective": 0.5, "head/riemannian_seconds": 1.5}}
    stages._refuse_if_different(measured, searched, tolerance=0.0, folder=tmp_path)
    with pytest.raises(ValueError, match="train/head/objective of the checkpoint is 0.25, but training measured 0.5"):
        stages._refuse_if_different(measured, other, tolerance=0.0, folder=tmp_path)
