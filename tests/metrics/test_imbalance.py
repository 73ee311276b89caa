"""Imbalance: minority collapse, the SELI geometry and norms that follow the class sizes are told apart."""

from __future__ import annotations

import pytest
import references
import torch

from ncflow.geometry import random_orthonormal, seli_frame, simplex_etf
from ncflow.metrics import imbalance

SEEDS = range(3)
COUNTS = torch.tensor([500.0, 120.0, 60.0, 20.0, 7.0, 2.0], dtype=torch.float64)


def seli_errors(rows: torch.Tensor, counts: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Of rows (K, d) as a classifier and as class means."""
    weight, means = seli_frame(counts)
    return imbalance.seli_error(rows @ rows.mT, weight), imbalance.seli_error(rows @ rows.mT, means)


FUNCTIONS = {
    "imbalance/minority_cosine": imbalance.minority_cosine,
    "imbalance/majority_minority_cosine": imbalance.majority_minority_cosine,
    "imbalance/seli_error_weight": lambda rows, counts: seli_errors(rows, counts)[0],
    "imbalance/norm_slope": imbalance.norm_slope,
}


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_it_is_what_its_definition_says(name, seed):
    problem = references.draw_problem(seed)
    counts = torch.tensor(problem.class_counts, dtype=torch.float64)
    found = FUNCTIONS[name](torch.from_numpy(problem.weight), counts).item()
    assert found == pytest.approx(references.METRICS[name](problem), rel=1e-10)


@pytest.mark.parametrize("seed", SEEDS)
def test_the_seli_error_of_means_leaves_out_absent_classes(seed):
    problem = references.draw_problem(seed, sizes=(9, 0, 7, 0, 5, 4))
    counts = torch.tensor(problem.class_counts, dtype=torch.float64)[problem.labels]
    found = seli_errors(torch.from_numpy(problem.centered_means), counts)[1].item()
    assert found == pytest.approx(references.seli_error_means(problem), rel=1e-10)


@pytest.mark.parametrize("seed", SEEDS)
def test_seli_frames_have_no_seli_error_in_any_rotation(seed):
    weight, means = seli_frame(COUNTS)
    turn = random_orthonormal(9, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).mT
    assert seli_errors(5 * weight @ turn, COUNTS)[0].item() == pytest.approx(0, abs=1e-12)
    assert seli_errors(5 * means @ turn, COUNTS)[1].item() == pytest.approx(0, abs=1e-12)
    assert seli_errors(means, COUNTS)[0].item() > 0.5  # the two geometries differ under imbalance
    assert seli_errors(simplex_etf(6, dtype=torch.float64), COUNTS)[0].item() > 0.1


def test_an_etf_has_no_seli_error_when_classes_are_balanced():
    etf = simplex_etf(6, 8, dtype=torch.float64)
    assert seli_errors(etf, torch.full((6,), 7.0))[0].item() == pytest.approx(0, abs=1e-13)
    assert seli_errors(etf, torch.full((6,), 7.0))[1].item() == pytest.approx(0, abs=1e-13)


def test_the_minority_cosine_is_one_after_minority_collapse():
    etf = simplex_etf(6, dtype=torch.float64)
    assert imbalance.minority_cosine(etf, COUNTS).item() == pytest.approx(-1 / 5)
    etf[5] = 4 * etf[4]
    assert imbalance.minority_cosine(etf, COUNTS).item() == pytest.approx(1)
    assert imbalance.minority_cosine(etf, COUNTS.flip(0)).item() == pytest.approx(-1 / 5)


@pytest.mark.parametrize("num_classes, minority", [(2, 2), (4, 2), (8, 3), (10, 3), (100, 33)])
def test_the_minority_is_a_third_of_the_classes_but_at_least_two(num_classes, minority):
    """The rarest rows coincide and the next one is orthogonal: one more or one less class would show."""
    rows = torch.eye(num_classes, dtype=torch.float64)
    rows[-minority:] = rows[-1]
    counts = torch.arange(num_classes, 0, -1)
    assert imbalance.minority_cosine(rows, counts).item() == pytest.approx(1)
    rows[-minority] = rows[0] if minority < num_classes else -rows[-1]
    assert imbalance.minority_cosine(rows, counts).item() < 1


def test_the_rarest_among_equals_are_the_later_ones():
    assert imbalance.rarest(torch.tensor([5, 3, 9, 3, 3]), 2).tolist() == [3, 4]
    assert sorted(imbalance.rarest(torch.tensor([1, 3, 9, 3, 3]), 2).tolist()) == [0, 4]


@pytest.mark.parametrize("power", [-0.25, 0.0, 0.5])
def test_norms_that_are_a_power_of_class_size_have_that_slope(power):
    rows = 3 * simplex_etf(6, dtype=torch.float64) * (COUNTS**power).unsqueeze(1)
    assert imbalance.norm_slope(rows, COUNTS).item() == pytest.approx(power, abs=1e-14)


def test_a_row_that_is_rounding_has_no_norm_to_follow():
    rows = simplex_etf(6, dtype=torch.float64)
    rows[3] *= 1e-17
    assert not imbalance.norm_slope(rows, COUNTS, blur=1e-12).isfinite()
    assert imbalance.norm_slope(rows, COUNTS).isfinite()


def test_majority_minority_cosine_is_minus_one_for_opposite_rows():
    assert imbalance.majority_minority_cosine(simplex_etf(6, dtype=torch.float64), COUNTS).item() == pytest.approx(-0.2)
    rows = torch.ones(6, 3, dtype=torch.float64)
    rows[4:] *= -2
    assert imbalance.majority_minority_cosine(rows, COUNTS).item() == pytest.approx(-1)
    assert imbalance.majority_minority_cosine(rows, COUNTS.flip(0)).item() == pytest.approx(0)
