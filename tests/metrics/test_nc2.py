"""NC2: zero on a simplex ETF, and what the definitions say elsewhere."""

from __future__ import annotations

import math

import pytest
import references
import torch

from ncflow.geometry import random_orthonormal, simplex_etf
from ncflow.metrics import collapse_metrics, nc2
from ncflow.metrics.frame import Frame
from ncflow.metrics.pairs import Rows

SEEDS = range(3)


def centered(rows: torch.Tensor) -> Frame:
    return Frame(rows, centered=True)


ROWS = {
    "nc2/equinorm_means": nc2.equinorm,
    "nc2/equiangularity_means": lambda rows: nc2.equiangularity(centered(rows)),
    "nc2/etf_error_means": lambda rows: nc2.etf_error(rows @ rows.mT),
    "nc2/gnc2_log": lambda rows: nc2.gnc2_log(centered(rows)),
    "nc2/gnc2_spread": lambda rows: nc2.gnc2_spread(centered(rows)),
    "nc2/maximal_angle_means": lambda rows: nc2.maximal_angle(centered(rows)),
}


def etf(num_classes: int, num_features: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return simplex_etf(num_classes, num_features, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", ROWS)
def test_it_is_what_its_definition_says(name, seed):
    problem = references.draw_problem(seed)
    found = ROWS[name](torch.from_numpy(problem.centered_means)).item()
    assert found == pytest.approx(references.METRICS[name](problem), rel=1e-12)


@pytest.mark.parametrize("num_classes, num_features", [(3, 2), (5, 5), (10, 30)])
def test_a_simplex_etf_has_equal_norms_equal_angles_and_no_error(num_classes, num_features):
    rows = 3 * etf(num_classes, num_features)
    assert nc2.equinorm(rows).item() == pytest.approx(0, abs=1e-13)
    assert nc2.equiangularity(centered(rows)).item() == pytest.approx(0, abs=1e-13)
    assert nc2.etf_error(rows @ rows.mT).item() == pytest.approx(0, abs=1e-13)
    assert nc2.maximal_angle(centered(rows)).item() == pytest.approx(0, abs=1e-13)
    assert nc2.gnc2_spread(centered(rows)).item() == pytest.approx(0, abs=1e-13)
    (tile,) = Rows(rows).tiles()
    cosines = tile.once(tile.cosines)
    torch.testing.assert_close(cosines, torch.full_like(cosines, -1 / (num_classes - 1)))


def test_a_simplex_etf_minimizes_the_energy():
    for num_classes in (2, 3, 7):
        rows, generator = etf(num_classes, 8), torch.Generator().manual_seed(1)
        least = nc2.gnc2_log(centered(rows)).item()
        assert least == pytest.approx(-math.log(math.sqrt(2 * num_classes / (num_classes - 1))))
        for _ in range(20):
            noise = torch.randn(rows.shape, generator=generator, dtype=torch.float64)
            assert nc2.gnc2_log(centered(rows + 0.1 * noise)).item() > least


def test_orthogonal_rows_are_equiangular_but_not_an_etf():
    rows = torch.eye(5, dtype=torch.float64)
    assert nc2.equiangularity(centered(rows)).item() == nc2.equinorm(rows).item() == 0
    ideal = 1 - (5 - 1) / (math.sqrt(5) * math.sqrt(5 - 1))  # 1 - cosine of I and I - J/K
    assert nc2.etf_error(rows @ rows.mT).item() == pytest.approx(math.sqrt(2 * ideal))


def test_the_etf_error_is_two_for_the_opposite():
    gram = etf(6, 9) @ etf(6, 9).mT
    assert nc2.etf_error(-gram).item() == pytest.approx(2)


@pytest.mark.parametrize("name", ROWS)
def test_it_does_not_change_when_rows_are_rotated_or_scaled(name):
    rows = torch.from_numpy(references.draw_problem(0).centered_means)
    value, turn = ROWS[name](rows).item(), etf(9, 8)[:8]
    turn = torch.linalg.qr(turn).Q
    assert ROWS[name](rows @ turn).item() == pytest.approx(value, rel=1e-11)
    assert ROWS[name](1e-5 * rows).item() == pytest.approx(value, rel=1e-11)
    assert ROWS[name](rows.flip(0)).item() == pytest.approx(value, rel=1e-11)


def test_a_row_without_direction_has_no_angle():
    rows = torch.cat([torch.zeros(1, 4), torch.eye(4)[:3]]).double()
    for value in (nc2.equiangularity, nc2.maximal_angle, nc2.gnc2_log):
        assert value(centered(rows)).isnan() and not value(centered(rows[1:])).isnan()


@pytest.mark.parametrize("num_classes, num_features", [(2, 2), (5, 5), (10, 30)])
def test_orthogonal_rows_of_one_norm_have_no_orthogonal_error_and_no_distance(num_classes, num_features):
    rows = 3 * random_orthonormal(num_features, num_classes, dtype=torch.float64).mT
    assert nc2.orthogonal_error(rows @ rows.mT).item() == pytest.approx(0, abs=1e-13)
    assert Frame(rows).orthogonal_distance.item() == pytest.approx(0, abs=1e-13)
    assert nc2.maximal_angle(centered(rows)).item() == pytest.approx(1 / (num_classes - 1))


@pytest.mark.parametrize("merged", [False, True])
@pytest.mark.parametrize("seed", SEEDS)
def test_the_orthogonal_distance_is_exact_for_rows_of_any_rank(seed, merged):
    rows = torch.from_numpy(references.draw_problem(seed).weight)
    if merged:
        rows[5] = rows[4]
    found = Frame(rows).orthogonal_distance.item()
    assert found == pytest.approx(references.exact_orthogonal_distance(rows.numpy()), rel=1e-12)


def test_the_means_behind_a_relu_are_orthogonal_and_no_etf():
    """The optimum behind a ReLU on balanced classes: orthogonal before centering, a simplex ETF after it."""
    targets = torch.arange(5).repeat(3)
    found = collapse_metrics(torch.eye(5, 8, dtype=torch.float64)[targets], targets)
    assert found["nc2/orthogonal_error_means"] == pytest.approx(0, abs=1e-13)
    assert found["nc2/orthogonal_distance_means"] == pytest.approx(0, abs=1e-13)
    assert found["nc2/etf_error_means"] == pytest.approx(0, abs=1e-13)
    moved = collapse_metrics(etf(5, 8)[targets], targets)
    assert moved["nc2/orthogonal_distance_means"] == pytest.approx(2 - 2 * math.sqrt(4 / 5))
    assert moved["nc2/orthogonal_error_means"] == pytest.approx(math.sqrt(2 - 2 * math.sqrt(4 / 5)))
