"""Nuclear norms from Gram matrices: as exact as singular values, wherever Gram matrices alone are not."""

from __future__ import annotations

import numpy as np
import pytest
import references
import torch

from ncflow.metrics import ClassMoments, moments, spectra
from ncflow.metrics.moments import GramSum
from ncflow.metrics.spectra import spectral_ratios

SEEDS = range(3)


def graded(seed: int, number: int, num_features: int, *, decades: float, offset: float) -> references.Array:
    """Rows (n, d) whose deviations have singular values over so many decades, moved by a vector of this length."""
    random = np.random.default_rng(seed)
    rank = min(number, num_features)
    u, _ = np.linalg.qr(random.normal(size=(number, rank)))
    v, _ = np.linalg.qr(random.normal(size=(num_features, rank)))
    direction = random.normal(size=num_features)
    return (u * np.logspace(0, -decades, rank)) @ v.T + offset * direction / np.linalg.norm(direction)


def ratio(rows: references.Array) -> float:
    features, targets = torch.from_numpy(rows), torch.zeros(len(rows), dtype=torch.long)
    return spectral_ratios(features, targets, ClassMoments.from_features(features, targets, 1)).item()


@pytest.mark.parametrize("offset", [0.0, 1.0, 1e7])  # the last: features at 1e-7 from their mean
@pytest.mark.parametrize("decades", [0, 3, 6, 12])
@pytest.mark.parametrize("number, num_features", [(20, 8), (8, 20)])
@pytest.mark.parametrize("seed", SEEDS)
def test_ratios_have_ten_digits_whatever_the_spectrum(seed, number, num_features, decades, offset):
    rows = graded(seed, number, num_features, decades=decades, offset=offset)
    assert ratio(rows) == pytest.approx(references.exact_spectral_ratio(rows), rel=1e-10)


@pytest.mark.parametrize("decades, looks", [(0, 0), (6, 1)])
def test_a_collapsed_class_needs_samples_again_only_for_small_directions(monkeypatch, decades, looks):
    """Deviations at 1e-7 of the mean: all but one direction are small, but the scatter knows them already."""
    rows, restricted = graded(0, 40, 8, decades=decades, offset=1e7 / 8), []

    def watched(gram, part, add=GramSum.add):
        restricted.extend([1] * (part.shape[1] < 8))
        add(gram, part)

    monkeypatch.setattr(GramSum, "add", watched)
    assert ratio(rows) == pytest.approx(references.exact_spectral_ratio(rows), rel=1e-10)
    assert len(restricted) == looks


def test_a_gram_matrix_alone_would_not_do():
    """What the second look at small singular values is for."""
    rows = graded(0, 20, 8, decades=12, offset=0)
    squares = np.linalg.eigvalsh(rows.T @ rows).clip(min=0)
    naive = np.sqrt(squares).sum() ** 2 / squares.sum()
    assert naive != pytest.approx(references.exact_spectral_ratio(rows), rel=1e-9)


@pytest.mark.parametrize("number, num_features", [(40, 12), (12, 40)])
def test_repeated_samples_and_dead_features_add_nothing(number, num_features):
    rows = graded(0, number, num_features, decades=1, offset=1)
    repeated = np.concatenate([rows, rows])
    padded = np.concatenate([rows, np.zeros_like(rows)], axis=1)
    for same in (repeated, padded):
        assert ratio(same) == pytest.approx(ratio(rows), rel=1e-11)


@pytest.mark.parametrize("chunk, batch", [(1, 1), (7, 300), (10_000, 10_000)])
def test_how_classes_are_cut_and_put_together_does_not_matter(monkeypatch, chunk, batch):
    problem = references.draw_problem(0, sizes=(25, 18, 0, 5, 3, 1))
    monkeypatch.setattr(moments, "CHUNK", chunk)
    monkeypatch.setattr(spectra, "BATCH", batch)
    features, targets, *_ = problem.tensors
    whole, scatter = ClassMoments.from_features(features, targets, 6), GramSum(8, features.device)
    found = spectral_ratios(features, targets, whole, scatter)
    torch.testing.assert_close(scatter.total(), whole.within_scatter, rtol=1e-13, atol=1e-13)
    assert len(found) == 5
    assert found.mean().item() == pytest.approx(references.numerical_rank(problem), rel=1e-12)
