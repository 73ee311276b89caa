"""A theory is given only where it can hold: enough features for the optimum's rank, and the sign that they can have."""

from __future__ import annotations

import math

import minimization
import pytest
import torch

from ncflow.nn import create_loss
from ncflow.theory import Optimum, predicted_optimum, relu_limit, seli_optimum, with_room
from ncflow.training import FeatureObjective

LOSSES = {"ce": minimization.cross_entropy, "mse": minimization.squared_error}
PROBLEMS = {  # loss, class_counts, decay of both, nonnegative, rank
    "balanced": ("ce", [20] * 5, 2e-3, False, 4),
    "two sizes": ("ce", [40, 4, 40, 4], 5e-3, False, 3),
    "minority collapse": ("ce", [200] * 3 + [8] * 3, 10**0.5 / 624, False, 3),
    "squared error": ("mse", [40, 20, 8, 3], 3e-3, False, 4),
    "squared error, two classes dead": ("mse", [300, 100, 3, 1], 1e-2, False, 2),
    "nonnegative": ("ce", [40, 20, 8], 5e-3, True, 3),
    "nonnegative, a class dead": ("ce", [400, 20, 2], 6.3e-3, True, 2),
    "nonnegative, squared error": ("mse", [40, 20, 8], 3e-3, True, 3),
}


def best(loss: str, counts: list[int], decay: float, nonnegative: bool, d: int) -> float:
    """The least objective in d features that minimization finds from a few starts."""
    decays = {"lambda_w": decay, "lambda_h": decay}
    options = {"num_features": d, "nonnegative": nonnegative}
    found = [minimization.minimum(LOSSES[loss], counts, seed=seed, **options, **decays) for seed in range(6)]
    return min(minimization.cost(LOSSES[loss], each, **decays) for each in found)


@pytest.mark.parametrize("name", PROBLEMS)
def test_the_rank_is_the_least_width_in_which_minimization_reaches_the_optimum(name):
    loss, counts, decay, nonnegative, rank = PROBLEMS[name]
    problem = {"lambda_w": decay, "lambda_h": decay, "nonnegative": nonnegative}
    optimum = predicted_optimum(loss, counts, **problem)
    assert optimum.rank == rank
    least = minimization.cost(LOSSES[loss], optimum, lambda_w=decay, lambda_h=decay)
    assert best(loss, counts, decay, nonnegative, rank) == pytest.approx(least, rel=1e-6)
    assert best(loss, counts, decay, nonnegative, rank - 1) > least * (1 + 1e-3)


@pytest.mark.parametrize("name", PROBLEMS)
def test_in_fewer_features_than_its_rank_the_optimum_is_refused(name):
    loss, counts, decay, nonnegative, rank = PROBLEMS[name]
    problem = {"lambda_w": decay, "lambda_h": decay, "nonnegative": nonnegative}
    held = predicted_optimum(loss, counts, num_features=rank, **problem)
    torch.testing.assert_close(held.logits, predicted_optimum(loss, counts, **problem).logits)
    with pytest.raises(ValueError, match=f"expected num_features >= {rank}, the rank of the optimum, got {rank - 1}"):
        predicted_optimum(loss, counts, num_features=rank - 1, **problem)


def test_ten_classes_in_four_features_cost_more_than_the_simplex_etf():
    """An objective of .4431 is the best that minimization finds there; the ETF of nine dimensions has .3767."""
    counts, decays = [100] * 10, {"lambda_w": 1e-3, "lambda_h": 5e-4}
    etf = predicted_optimum("ce", counts, num_features=9, **decays)
    options = {"num_features": 4, **decays}
    in_four = [minimization.minimum(minimization.cross_entropy, counts, seed=seed, **options) for seed in range(3)]
    costs = [minimization.cost(minimization.cross_entropy, each, **decays) for each in (etf, *in_four)]
    assert (costs[0], min(costs[1:])) == pytest.approx((0.3767, 0.4431), abs=5e-5)
    with pytest.raises(ValueError, match="num_features >= 9"):
        predicted_optimum("ce", counts, **options)


@pytest.mark.parametrize("counts", [[5, 5, 5], [500, 50, 5, 1], [10**12, 10**6, 1]])
def test_the_limits_span_k_less_one_dimensions_and_behind_a_relu_k(counts):
    assert seli_optimum(counts).rank == len(counts) - 1
    assert relu_limit(counts).rank == len(counts)
    assert seli_optimum(counts, lambda_w=1e-300, lambda_h=1e300).rank == len(counts) - 1


def test_an_optimum_at_which_every_class_has_died_has_room_everywhere():
    dead = predicted_optimum("mse", [5, 4], lambda_w=1.0, lambda_h=1.0, num_features=1)
    assert dead.rank == 0 and not dead.logits.any()


def test_the_rank_does_not_depend_on_the_size_of_rows():
    rows = torch.randn(4, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) @ torch.eye(2, 5).double()
    for size in (1e-150, 1.0, 1e150):
        assert Optimum(size * rows, rows / size, torch.ones(4)).rank == 2


def test_nonnegative_features_cost_more_than_free_ones():
    counts, decays = [40, 4, 40, 4], {"lambda_w": 5e-3, "lambda_h": 5e-3}
    free, nonnegative = (predicted_optimum("ce", counts, nonnegative=sign, **decays) for sign in (False, True))
    costs = [minimization.cost(minimization.cross_entropy, each, **decays) for each in (free, nonnegative)]
    assert costs[0] < costs[1] and math.isfinite(costs[1])


def test_without_a_width_there_is_always_room():
    assert with_room(seli_optimum([5, 4, 3]), None).rank == 2


@pytest.mark.parametrize("name", PROBLEMS)
def test_the_least_objective_of_a_run_is_the_cost_of_its_optimum(name):
    loss, counts, decay, nonnegative, _ = PROBLEMS[name]
    optimum = predicted_optimum(loss, counts, lambda_w=decay, lambda_h=decay, nonnegative=nonnegative)
    objective = FeatureObjective(create_loss(loss), weight_decay=decay, row_decay=decay, optimum=optimum)
    expected = minimization.cost(LOSSES[loss], optimum, lambda_w=decay, lambda_h=decay)
    assert objective.least == pytest.approx(expected, rel=1e-12)
