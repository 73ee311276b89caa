"""Pairs of rows: tile by tile they are what a loop over all pairs gives, however close two rows are."""

from __future__ import annotations

import math
from itertools import combinations

import numpy as np
import pytest
import references
import torch

from ncflow.metrics import pairs
from ncflow.metrics.pairs import Angles, Energy, Rows, Separation, first_of_equals, nearest_distances, visit

TILES = [2, 3, 1024]  # the last one holds all rows


@pytest.fixture(params=TILES)
def tile(request, monkeypatch):
    monkeypatch.setattr(pairs, "TILE", request.param)


def close_rows(seed: int, gap: float) -> np.ndarray:
    rows = references.draw_problem(seed).centered_means
    rows[3] = rows[1] + gap * rows[0]
    return rows


@pytest.mark.usefixtures("tile")
@pytest.mark.parametrize("gap", [0.0, 1e-9, 1e-4, 1e-1])
@pytest.mark.parametrize("seed", range(3))
def test_distances_are_those_of_a_loop_over_pairs_however_close(seed, gap):
    rows = close_rows(seed, gap)
    found = {}
    for tile in Rows(torch.from_numpy(rows)).tiles():
        for a, b in np.ndindex(*tile.cosines.shape):
            found[tile.i.start + a, tile.j.start + b] = tile.squared_distances()[a, b].item()
    looped = references.squared_distances(rows)
    np.testing.assert_allclose([found[pair] for pair in combinations(range(len(rows)), 2)], looped, rtol=1e-11)


@pytest.mark.usefixtures("tile")
@pytest.mark.parametrize("gap", [0.0, 1e-9, 1e-1])
@pytest.mark.parametrize("seed", range(3))
def test_the_nearest_row_is_that_of_a_loop_over_rows(seed, gap):
    rows = close_rows(seed, gap)
    looped = references.nearest_distances(rows)
    np.testing.assert_allclose(nearest_distances(torch.from_numpy(rows)).numpy(), looped, rtol=1e-9)
    separation = Separation(Rows(torch.from_numpy(rows)), torch.ones(len(rows)).double(), torch.zeros(()).double())
    visit(Rows(torch.from_numpy(rows)), separation)
    np.testing.assert_allclose(separation.nearest.numpy(), looped, rtol=1e-9)


def test_a_row_alone_has_no_neighbor():
    assert nearest_distances(torch.ones(1, 3, dtype=torch.float64)).tolist() == [np.inf]


@pytest.mark.usefixtures("tile")
@pytest.mark.parametrize("gap", [1e-9, 1e-4, 1e-1])
@pytest.mark.parametrize("seed", range(3))
def test_statistics_are_those_of_the_list_of_all_pairs(seed, gap):
    rows = close_rows(seed, gap)
    variances = np.random.default_rng(seed).uniform(size=len(rows))
    held = Rows(torch.from_numpy(rows))
    angles, energy = Angles(held), Energy(held)
    separation = Separation(held, torch.from_numpy(variances), torch.zeros(()).double())
    visit(held, angles, energy, separation)
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    cosines = np.array([a @ b for a, b in combinations(unit, 2)])
    logs = np.log([np.sum((a - b) ** 2) for a, b in combinations(unit, 2)])
    ideal = -1 / (len(rows) - 1)
    expected = [cosines.mean(), cosines.std(ddof=1), np.abs(cosines - ideal).mean(), cosines.max()]
    found = [angles.mean, angles.std, angles.off, angles.largest]
    np.testing.assert_allclose([value.item() for value in found], expected, rtol=1e-11)
    found = [energy.spread.mean, energy.spread.std]
    np.testing.assert_allclose([value.item() for value in found], [logs.mean(), logs.std(ddof=1)], rtol=1e-8)
    for k, row in enumerate(rows):
        others = [j for j in range(len(rows)) if j != k]
        terms = [(variances[k] + variances[j]) / 2 / np.sum((row - rows[j]) ** 2) for j in others]
        assert separation.by_class[k].item() == pytest.approx(np.mean(terms), rel=1e-9)


@pytest.mark.usefixtures("tile")
def test_equal_rows_have_infinite_energy_and_no_separation_and_one_first():
    rows = torch.from_numpy(references.draw_problem(0).centered_means)
    rows[3], rows[4] = rows[1], rows[1]
    held, level = Rows(rows), torch.tensor(1e-12).double()
    energy, separation = Energy(held, 1e-12), Separation(held, torch.ones(len(rows)).double(), level)
    visit(held, energy, separation)
    assert energy.spread.mean.item() == -math.inf
    assert separation.by_class.isinf().tolist() == [k in (1, 3, 4) for k in range(len(rows))]
    assert separation.nearest[1] <= level
    expected = [1 if k in (3, 4) else k for k in range(len(rows))]
    assert first_of_equals(rows, level).tolist() == expected


def test_memory_does_not_hold_a_matrix_of_all_pairs(monkeypatch):
    """No tile is larger than the block, for any number of rows."""
    monkeypatch.setattr(pairs, "TILE", 8)
    sizes = [tile.cosines.numel() for tile in Rows(torch.randn(50, 4).double()).tiles()]
    assert max(sizes) == 64 and sum(sizes) < 50 * 50
