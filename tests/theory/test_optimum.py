"""What holds for the optimum of every regime: it is a global minimum, and what is minimized finds it."""

from __future__ import annotations

import math

import minimization
import pytest
import torch

from ncflow.geometry import random_orthonormal
from ncflow.theory import OPTIMA, Optimum, optimum_of_logits, predicted_optimum, pressure

LOSSES = {"ce": minimization.cross_entropy, "mse": minimization.squared_error}
PROBLEMS = {  # loss, class_counts, lambda_w, lambda_h
    "balanced ce": ("ce", [50] * 6, 2e-3, 5e-4),
    "balanced ce, two classes": ("ce", [7] * 2, 1e-2, 1e-2),
    "balanced ce, nearly dead": ("ce", [100] * 4, 0.024, 0.024),
    "balanced ce, dead": ("ce", [100] * 4, 0.03, 0.03),
    "step ce": ("ce", [200, 20, 200, 20, 200, 20], 1e-3, 4e-3),
    "step ce, minority collapse": ("ce", [200] * 3 + [8] * 3, 10**0.5 / 624, 10**0.5 / 624),
    "step ce, both groups just dead": ("ce", [60] * 3 + [40] * 2, 0.03, 0.03),
    "step ce, groups merged": ("ce", [100] * 4 + [4], 0.015, 0.015),
    "step ce, dead": ("ce", [30] * 3 + [20] * 3, 0.2, 0.2),
    "step ce, one against one": ("ce", [90, 10], 1e-2, 1e-3),
    "step ce, one against many": ("ce", [90, 10, 10, 10, 10], 1e-2, 1e-3),
    "step ce, many against one": ("ce", [90, 90, 90, 90, 10], 1e-2, 1e-3),
    "step ce, weak decay": ("ce", [1000] * 5 + [10] * 5, 1e-8, 1e-8),
    "mse": ("mse", [300, 100, 30, 10], 1e-3, 4e-3),
    "mse, the rare classes dead": ("mse", [300, 100, 30, 10], 1e-2, 1e-2),
    "mse, all dead": ("mse", [5, 4], 1.0, 1.0),
}


@pytest.fixture(params=PROBLEMS)
def problem(request: pytest.FixtureRequest) -> tuple:
    return PROBLEMS[request.param]


def test_every_loss_with_a_closed_form_has_a_problem_here():
    assert {loss for loss, *_ in PROBLEMS.values()} == set(OPTIMA)


def test_the_closed_form_is_the_global_minimum(problem):
    loss, counts, lambda_w, lambda_h = problem
    optimum = predicted_optimum(loss, counts, lambda_w=lambda_w, lambda_h=lambda_h)
    assert minimization.defect(LOSSES[loss], optimum, lambda_w=lambda_w, lambda_h=lambda_h) < 1e-9


def test_minimizing_over_classifier_and_features_finds_the_closed_form(problem):
    loss, counts, lambda_w, lambda_h = problem
    optimum = predicted_optimum(loss, counts, lambda_w=lambda_w, lambda_h=lambda_h)
    found = minimization.minimum(LOSSES[loss], counts, lambda_w=lambda_w, lambda_h=lambda_h)
    scale = max(1.0, optimum.logits.abs().max().item())
    torch.testing.assert_close(found.logits, optimum.logits, rtol=1e-3, atol=1e-4 * scale)
    for norms, cosines in (("weight_norms", "weight_cosines"), ("mean_norms", "mean_cosines")):
        expected = getattr(optimum, norms)
        torch.testing.assert_close(getattr(found, norms), expected, rtol=1e-3, atol=1e-5)
        alive = expected > 1e-3
        pairs = (getattr(each, cosines)[alive][:, alive] for each in (found, optimum))
        torch.testing.assert_close(*pairs, rtol=0, atol=1e-3)


@pytest.mark.parametrize("wrong", [0.99, 1.01])
def test_a_point_beside_the_minimum_is_not_taken_for_it(wrong):
    optimum = predicted_optimum("ce", [50] * 6, lambda_w=2e-3, lambda_h=5e-4)
    for weight, means in ((wrong, 1), (1, wrong), (wrong, 1 / wrong)):
        beside = Optimum(weight * optimum.weight, means * optimum.class_means, optimum.class_counts)
        assert minimization.defect(minimization.cross_entropy, beside, lambda_w=2e-3, lambda_h=5e-4) > 1e-4


def test_the_order_of_the_classes_does_not_matter(problem):
    loss, counts, lambda_w, lambda_h = problem
    optimum = predicted_optimum(loss, counts, lambda_w=lambda_w, lambda_h=lambda_h)
    order = torch.randperm(len(counts), generator=torch.Generator().manual_seed(1))
    moved = predicted_optimum(loss, torch.tensor(counts)[order], lambda_w=lambda_w, lambda_h=lambda_h)
    torch.testing.assert_close(moved.logits, optimum.logits[order][:, order])
    for gram in (lambda it: it.weight @ it.weight.mT, lambda it: it.class_means @ it.class_means.mT):
        torch.testing.assert_close(gram(moved), gram(optimum)[order][:, order])


def test_the_product_of_decays_moves_logits_and_the_ratio_norms(problem):
    loss, counts, lambda_w, lambda_h = problem
    optimum = predicted_optimum(loss, counts, lambda_w=lambda_w, lambda_h=lambda_h)
    traded = predicted_optimum(loss, counts, lambda_w=lambda_w / 16, lambda_h=lambda_h * 16)
    torch.testing.assert_close(traded.logits, optimum.logits)
    torch.testing.assert_close(traded.weight, 4 * optimum.weight)
    torch.testing.assert_close(traded.class_means, optimum.class_means / 4)


def test_no_other_factors_of_the_same_logits_are_cheaper():
    source = torch.Generator().manual_seed(0)
    logits, counts = torch.randn(4, 4, generator=source, dtype=torch.float64), torch.tensor([9.0, 5.0, 2.0, 1.0])
    best = optimum_of_logits(logits, counts, lambda_w=0.3, lambda_h=0.1)
    torch.testing.assert_close(best.logits, logits)
    price = minimization.cost(minimization.squared_error, best, lambda_w=0.3, lambda_h=0.1)
    for _ in range(20):
        change = torch.eye(4) + 0.1 * torch.randn(4, 4, generator=source, dtype=torch.float64)
        other = Optimum(best.weight @ change, best.class_means @ torch.linalg.inv(change).mT, best.class_counts)
        torch.testing.assert_close(other.logits, logits)
        assert minimization.cost(minimization.squared_error, other, lambda_w=0.3, lambda_h=0.1) > price


def test_norms_and_cosines_do_not_depend_on_the_rotation():
    optimum = predicted_optimum("mse", [30, 20, 10], lambda_w=1e-3, lambda_h=1e-3)
    q = random_orthonormal(7, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64).mT
    rotated = Optimum(optimum.weight @ q, optimum.class_means @ q, optimum.class_counts)
    for name in ("logits", "weight_norms", "mean_norms", "weight_cosines", "mean_cosines"):
        torch.testing.assert_close(getattr(rotated, name), getattr(optimum, name), msg=name)


def test_the_cosine_with_a_class_that_died_is_undefined():
    optimum = predicted_optimum("mse", [300, 100, 30, 10], lambda_w=1e-2, lambda_h=1e-2)
    assert optimum.weight_cosines[3].isnan().all() and optimum.mean_cosines[:, 3].isnan().all()
    torch.testing.assert_close(optimum.weight_cosines[:3, :3], torch.eye(3, dtype=torch.float64))


def test_the_pressure_on_a_class_is_one_at_the_threshold():
    counts = torch.tensor([70.0, 20.0, 10.0])
    m = pressure(counts, lambda_w=20 / 100**2, lambda_h=1.0)
    assert m[1].item() == pytest.approx(1)
    torch.testing.assert_close(m * counts.sqrt(), torch.full((3,), math.sqrt(20), dtype=torch.float64))


@pytest.mark.parametrize("loss", OPTIMA)
@pytest.mark.parametrize(
    "counts, decays, message",
    [
        ([5, 0], (1e-3, 1e-3), "at least two classes, each with samples, got class_counts="),
        ([5], (1e-3, 1e-3), "at least two classes"),
        ([[5, 2]], (1e-3, 1e-3), "at least two classes"),
        ([5, 2], (0.0, 1e-3), "lambda_w > 0 and lambda_h > 0, got 0.0 and 0.001; .* seli_optimum"),
        ([5, 2], (1e-3, -1.0), "lambda_w > 0 and lambda_h > 0"),
        ([5, 2], (1e-3, math.nan), "lambda_w > 0 and lambda_h > 0"),
    ],
)
def test_problems_without_an_optimum_are_refused(loss, counts, decays, message):
    with pytest.raises(ValueError, match=message):
        predicted_optimum(loss, counts, lambda_w=decays[0], lambda_h=decays[1])


def test_a_loss_without_a_closed_form_is_refused_with_the_choices():
    with pytest.raises(ValueError, match="unknown loss with a closed form 'focal'. Choices: ce, mse"):
        predicted_optimum("focal", [5, 5], lambda_w=1e-3, lambda_h=1e-3)


def test_cross_entropy_on_more_than_two_sizes_is_refused():
    with pytest.raises(ValueError, match=r"classes of exactly two sizes, got class_counts=\[9.0, 3.0, 1.0\]"):
        predicted_optimum("ce", [9, 3, 1], lambda_w=1e-3, lambda_h=1e-3)
