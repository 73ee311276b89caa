"""Frames: decomposed through a Gram matrix where that is exact, and by singular values where it is not."""

from __future__ import annotations

import pytest
import torch

from ncflow.geometry import contrasts, etf_distance, nearest_etf
from ncflow.metrics.frame import Frame


@pytest.mark.parametrize("num_features", [4, 9, 30])  # as K-1 = 9: less, as many and more
@pytest.mark.parametrize("smallest", [1.0, 0.02, 1e-3, 1e-9])
@pytest.mark.parametrize("seed", range(3))
def test_the_decomposition_is_that_of_the_contrasts(seed, smallest, num_features):
    rows = torch.randn(10, num_features, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    rows[1:] -= (1 - smallest) * (rows[1:] - rows[1:2]) * (torch.arange(9) > 7).unsqueeze(1)
    u, s, vh = Frame(rows).svd
    rank = min(9, num_features)
    torch.testing.assert_close(s, torch.linalg.svdvals(contrasts(rows)), rtol=1e-10, atol=1e-13)
    torch.testing.assert_close((u * s) @ vh, contrasts(rows), rtol=0, atol=1e-13)
    torch.testing.assert_close(u.mT @ u, torch.eye(rank).double(), rtol=0, atol=1e-11)
    torch.testing.assert_close(vh @ vh.mT, torch.eye(rank).double(), rtol=0, atol=1e-11)


@pytest.mark.parametrize("seed", range(3))
def test_distance_and_nearest_etf_are_those_of_the_geometry(seed):
    rows = torch.randn(10, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    frame = Frame(rows)
    torch.testing.assert_close(frame.etf_distance, etf_distance(rows), rtol=1e-12, atol=0)
    theirs = contrasts(nearest_etf(rows)) * (9 / 10) ** 0.5
    torch.testing.assert_close(frame.nearest_etf_contrasts, theirs, rtol=0, atol=1e-11)
