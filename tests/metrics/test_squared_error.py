"""The squared error: its parts are those of the definition, add up to the loss, and vanish at collapse."""

from __future__ import annotations

import numpy as np
import pytest
import references
import torch

from ncflow.geometry import simplex_etf
from ncflow.metrics import collapse_metrics

SEEDS = range(3)
PARTS = ("squared_error/within", "squared_error/means", "squared_error/classifier")
CASES = {
    "ordinary": {},
    "absent classes": {"sizes": (25, 0, 12, 0, 6, 3)},
    "fewer features than classes": {"num_features": 3},
    "one feature": {"num_features": 1},
    "two classes": {"sizes": (9, 4), "class_counts": (150, 8)},
    "hardly separable": {"spread": 20},
    "offset": {"offset": 100},
}


def measured(*tensors: torch.Tensor) -> list[float]:
    found = collapse_metrics(*tensors, only=PARTS)
    return [found[name] for name in PARTS]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("case", CASES)
def test_the_parts_are_those_of_a_least_squares_fit(case, seed):
    problem = references.draw_problem(seed, **CASES[case])
    expected = references.squared_error_parts(problem)
    assert measured(*problem.tensors) == pytest.approx(expected, rel=1e-8, abs=1e-12)


@pytest.mark.parametrize("seed", SEEDS)
def test_the_parts_add_up_to_the_loss_of_the_classifier(seed):
    problem = references.draw_problem(seed)
    losses = [references.squared_error(z, y) for z, y in zip(problem.logits, problem.targets, strict=True)]
    assert sum(measured(*problem.tensors)) == pytest.approx(np.mean(losses), rel=1e-10)


@pytest.mark.parametrize("seed", SEEDS)
def test_the_best_classifier_has_no_part_of_its_own(seed):
    problem = references.draw_problem(seed)
    inputs = np.column_stack([problem.features, np.ones(len(problem.features))])
    best = torch.from_numpy(np.linalg.lstsq(inputs, np.eye(6)[problem.targets], rcond=None)[0].T)
    features, targets, *_ = problem.tensors
    assert measured(features, targets, best[:, :-1].contiguous(), best[:, -1].contiguous())[2] < 1e-12


@pytest.mark.parametrize("spread", [0.0, 1e-12, 1e-6])
def test_collapse_leaves_only_what_is_the_classifiers(spread):
    etf, targets = simplex_etf(5, 7, dtype=torch.float64), torch.arange(5).repeat(20)
    noise = torch.randn(100, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    within, means, _ = measured(etf[targets] + spread * noise, targets, etf, torch.zeros(5).double())
    assert 0 <= within <= 10 * spread**2 + 1e-30
    assert 0 <= means <= 100 * spread**4 + 1e-30


def test_classes_whose_means_merge_keep_half_of_their_indicators():
    """Two of K equal classes share a mean: the best output for both is 1/2 each, which leaves ½·(2/K)·½."""
    etf = simplex_etf(6, 7, dtype=torch.float64)
    etf[5] = etf[4]
    targets = torch.arange(6).repeat(10)
    within, means, _ = measured(etf[targets], targets, etf)
    assert within == pytest.approx(0, abs=1e-15)
    assert means == pytest.approx(1 / 12, rel=1e-12)


def test_features_that_tell_nothing_leave_the_variance_of_the_targets():
    """Then the best outputs are the class shares: ½(1 - Σπ²)."""
    targets = torch.tensor([0] * 600 + [1] * 300 + [2] * 100)
    features = torch.randn(1000, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    within, means, _ = measured(features, targets, torch.zeros(3, 2))
    assert within + means == pytest.approx((1 - 0.36 - 0.09 - 0.01) / 2, rel=0.02)
