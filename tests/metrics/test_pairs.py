"""Pairs of classes: distances that do not cancel, from a matrix product that would."""

from __future__ import annotations

import numpy as np
import pytest
import references
import torch

from ncflow.metrics.pairs import nearest_distances, squared_distances


@pytest.mark.parametrize("gap", [0.0, 1e-9, 1e-4, 1e-1])
@pytest.mark.parametrize("seed", range(3))
def test_distances_are_those_of_a_loop_over_pairs_however_close(seed, gap):
    rows = references.draw_problem(seed).centered_means
    rows[3] = rows[1] + gap * rows[0]
    found = squared_distances(torch.from_numpy(rows)).numpy()
    np.testing.assert_allclose(found, references.squared_distances(rows), rtol=1e-11)


@pytest.mark.parametrize("gap", [0.0, 1e-9, 1e-1])
@pytest.mark.parametrize("seed", range(3))
def test_the_nearest_row_is_that_of_a_loop_over_rows(seed, gap):
    rows = references.draw_problem(seed).centered_means
    rows[3] = rows[1] + gap * rows[0]
    found = nearest_distances(torch.from_numpy(rows)).numpy()
    np.testing.assert_allclose(found, references.nearest_distances(rows), rtol=1e-9)


def test_a_row_alone_has_no_neighbor():
    assert nearest_distances(torch.ones(1, 3, dtype=torch.float64)).tolist() == [np.inf]
