"""NC5: features of no known class are orthogonal to the class means, or it says how far from it."""

from __future__ import annotations

import pytest
import references
import torch

from ncflow.metrics import collapse_metrics, nc5

MEANS = torch.eye(3, 5, dtype=torch.float64)


@pytest.mark.parametrize("seed", range(3))
def test_it_is_what_its_definition_says(seed):
    problem = references.draw_problem(seed)
    features, targets, *_ = problem.tensors
    found = collapse_metrics(features, targets, ood_features=problem.ood, only=["nc5/ood_cosine"])
    assert found == pytest.approx({"nc5/ood_cosine": references.ood_cosine(problem)}, rel=1e-12)


def test_ood_cosine_is_zero_for_an_orthogonal_mean():
    assert nc5.ood_cosine(MEANS, torch.tensor([0.0, 0, 0, 2, 1]).double()).item() == 0
    assert nc5.ood_cosine(MEANS, torch.tensor([0.0, -4, 0, 0, 0]).double()).item() == pytest.approx(1 / 3)


def test_a_mean_that_is_rounding_has_no_angle():
    """Float32 features that cancel in their mean leave a mean of some 1e-8."""
    half = torch.randn(50, 5, generator=torch.Generator().manual_seed(0))
    ood = torch.cat([half, -half * (1 + 2**-23)])
    features, targets = MEANS.repeat(4, 1), torch.arange(3).repeat(4)
    assert collapse_metrics(features, targets, ood_features=ood, only=["nc5/ood_cosine"]) == {}
    assert collapse_metrics(features, targets, ood_features=half, only=["nc5/ood_cosine"]).keys() == {"nc5/ood_cosine"}
