"""How far apart rows are: the margin is the distance to a hull, and both metrics know the best codes."""

from __future__ import annotations

import math

import pytest
import references
import torch

from ncflow.geometry import simplex_etf, softmax_code
from ncflow.metrics import codes
from ncflow.metrics.frame import Frame

SEEDS = range(4)
SHAPES = [(2, 3), (3, 2), (6, 8), (7, 2), (12, 4), (30, 5), (20, 19)]


def gaussian(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("shape", SHAPES)
def test_margin_and_cosine_are_what_their_definitions_say(shape, seed):
    rows = gaussian(*shape, seed=seed)
    margin = codes.one_vs_rest_margin(rows).item()
    assert margin == pytest.approx(references.one_vs_rest_margin(rows.numpy()), rel=1e-9, abs=1e-7)
    assert codes.max_cosine(Frame(rows)).item() == pytest.approx(references.max_cosine(rows.numpy()), rel=1e-12)


@pytest.mark.parametrize("shape", SHAPES)
def test_no_row_that_a_bound_excludes_is_nearer(shape):
    rows = torch.nn.functional.normalize(gaussian(*shape, seed=9), dim=1)
    array = rows.numpy()
    exact = [
        codes._distance_to_hull(array[[j for j in range(len(array)) if j != k]] - array[k]) for k in range(len(array))
    ]
    for bounds in (codes._own_bounds(rows), codes._heights(rows)):
        assert all(bound <= distance + 1e-9 for bound, distance in zip(bounds.tolist(), exact, strict=True))
    assert codes.one_vs_rest_margin(rows).item() == pytest.approx(min(exact), rel=1e-9, abs=1e-7)


@pytest.mark.parametrize("num_classes, num_features", [(2, 1), (5, 4), (10, 30)])
def test_a_simplex_etf_has_the_largest_margin_and_no_smaller_cosine(num_classes, num_features):
    rows = 3 * simplex_etf(num_classes, num_features, dtype=torch.float64)
    assert codes.one_vs_rest_margin(rows).item() == pytest.approx(num_classes / (num_classes - 1))
    assert codes.max_cosine(Frame(rows)).item() == pytest.approx(-1 / (num_classes - 1))


@pytest.mark.parametrize("num_classes, num_features", [(6, 4), (8, 4), (100, 64)])
def test_a_code_of_up_to_two_classes_a_feature_has_margin_one(num_classes, num_features):
    rows = softmax_code(num_classes, num_features)
    assert codes.one_vs_rest_margin(rows).item() == pytest.approx(1)
    assert codes.max_cosine(Frame(rows)).item() == pytest.approx(0, abs=1e-14)


def test_a_polygon_keeps_each_corner_from_the_chord_of_its_neighbors():
    for num_classes in (4, 7, 12):
        margin = codes.one_vs_rest_margin(softmax_code(num_classes, 2)).item()
        assert margin == pytest.approx(1 - math.cos(2 * math.pi / num_classes))


def test_rows_that_coincide_have_no_margin():
    rows = gaussian(5, 8, seed=0)
    rows[3] = 2 * rows[1]
    assert codes.one_vs_rest_margin(rows).item() == pytest.approx(0, abs=1e-12)
    assert codes.max_cosine(Frame(rows)).item() == pytest.approx(1)


def test_a_row_without_direction_has_neither():
    rows = torch.cat([torch.zeros(1, 4), torch.eye(4)[:3]]).double()
    assert codes.one_vs_rest_margin(rows) is None
    assert codes.max_cosine(Frame(rows)).isnan()
