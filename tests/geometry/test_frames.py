"""Frames: simplex ETFs exist from d = K-1 on, contrasts are an isometry, and SELI is what its closed forms say."""

from __future__ import annotations

import math

import numpy as np
import pytest
import references
import torch

from ncflow.geometry import contrasts, from_contrasts, random_orthonormal, seli_frame, simplex_etf

SEEDS = range(3)
SHAPES = [(2, 1), (2, 2), (2, 5), (3, 2), (5, 4), (5, 5), (5, 9), (40, 39), (40, 64)]  # (K, d): d = K-1, K and above


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def gaussian(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


@pytest.mark.parametrize("seed", [None, *SEEDS])
@pytest.mark.parametrize("num_classes, num_features", SHAPES)
def test_the_gram_matrix_of_a_simplex_etf_is_the_centering_matrix(num_classes, num_features, seed):
    rotation = None if seed is None else generator(seed)
    etf = simplex_etf(num_classes, num_features, generator=rotation, dtype=torch.float64)
    ideal = num_classes / (num_classes - 1) * (np.eye(num_classes) - 1 / num_classes)
    np.testing.assert_allclose(etf @ etf.mT, ideal, atol=1e-13)
    assert etf.shape == (num_classes, num_features)


def test_the_canonical_etf_is_the_scaled_centering_matrix_padded_with_zeros():
    etf = simplex_etf(4, 6, dtype=torch.float64)
    expected = math.sqrt(4 / 3) * (np.eye(4) - 1 / 4)
    np.testing.assert_allclose(etf[:, :4], expected, atol=1e-15)
    assert not etf[:, 4:].any()
    torch.testing.assert_close(simplex_etf(4), etf[:, :4].float())


def test_without_a_spare_dimension_the_canonical_etf_is_the_contrast_basis():
    np.testing.assert_allclose(
        simplex_etf(6, 5, dtype=torch.float64), math.sqrt(6 / 5) * references.contrast_basis(6), atol=1e-15
    )


def test_one_seed_gives_one_etf_in_every_dtype():
    exact = simplex_etf(7, 20, generator=generator(3), dtype=torch.float64)
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        etf = simplex_etf(7, 20, generator=generator(3), dtype=dtype)
        assert etf.dtype is dtype
        torch.testing.assert_close(etf, exact.to(dtype), rtol=0, atol=0)
    assert simplex_etf(7, 20).dtype is torch.get_default_dtype()
    assert not torch.equal(exact, simplex_etf(7, 20, generator=generator(4), dtype=torch.float64))


@pytest.mark.parametrize("num_classes, num_features", [(5, 3), (100, 64)])
def test_too_few_dimensions_are_refused_with_the_way_out(num_classes, num_features):
    expected = f"num_features >= num_classes - 1, got {num_features} and {num_classes}; use a wider neck, the linear"
    with pytest.raises(ValueError, match=expected):
        simplex_etf(num_classes, num_features)


@pytest.mark.parametrize("num_classes", [1, 0, -1])
def test_fewer_than_two_classes_are_refused(num_classes):
    with pytest.raises(ValueError, match=f"at least 2 classes, got {num_classes}"):
        simplex_etf(num_classes, 5)


@pytest.mark.parametrize("shape", [(5, 5), (9, 4), (3, 1)])
def test_random_frames_are_orthonormal(shape):
    for seed in SEEDS:
        q = random_orthonormal(*shape, generator=generator(seed), dtype=torch.float64)
        np.testing.assert_allclose(q.mT @ q, np.eye(shape[1]), atol=1e-14)


def test_random_frames_are_haar_distributed():
    """Moments of the Haar measure on O(3): E q_ij = 0, E q_ij² = 1/3, E trace² = 1, and both signs of the determinant.

    QR alone, without positive signs of R, fails the trace: its first reflection never has q_11 > 0.
    """
    source = generator(0)
    frames = torch.stack([random_orthonormal(3, 3, generator=source, dtype=torch.float64) for _ in range(4000)])
    np.testing.assert_allclose(frames.mean(0), np.zeros((3, 3)), atol=0.04)
    np.testing.assert_allclose(frames.square().mean(0), np.full((3, 3), 1 / 3), atol=0.03)
    traces = frames.diagonal(dim1=1, dim2=2).sum(1)
    assert traces.mean().item() == pytest.approx(0, abs=0.07)
    assert traces.square().mean().item() == pytest.approx(1, abs=0.1)
    assert (torch.linalg.det(frames) > 0).double().mean().item() == pytest.approx(0.5, abs=0.04)


def test_more_vectors_than_dimensions_are_refused():
    with pytest.raises(ValueError, match="4 orthonormal vectors need as many dimensions, got num_features=3"):
        random_orthonormal(3, 4)


@pytest.mark.parametrize("num_classes", [2, 3, 4, 10, 33])
def test_contrasts_are_coordinates_in_the_explicit_basis(num_classes):
    basis = references.contrast_basis(num_classes)
    np.testing.assert_allclose(basis.T @ basis, np.eye(num_classes - 1), atol=1e-14)
    rows, coordinates = gaussian(num_classes, 7), gaussian(num_classes - 1, 7, seed=1)
    np.testing.assert_allclose(contrasts(rows), basis.T @ rows.numpy(), atol=1e-13)
    np.testing.assert_allclose(from_contrasts(coordinates), basis @ coordinates.numpy(), atol=1e-13)


@pytest.mark.parametrize("num_classes", [2, 5, 33])
def test_contrasts_are_an_isometry_of_the_centered_rows_and_invertible(num_classes):
    rows = gaussian(4, num_classes, 7) + 100
    centered = rows - rows.mean(-2, keepdim=True)
    coordinates = contrasts(rows)
    torch.testing.assert_close(coordinates.mT @ coordinates, centered.mT @ centered)
    torch.testing.assert_close(from_contrasts(coordinates), centered)
    torch.testing.assert_close(contrasts(from_contrasts(coordinates)), coordinates)
    torch.testing.assert_close(coordinates, torch.stack([contrasts(r) for r in rows]))


@pytest.mark.parametrize("shape", [(4,), (1, 4), (3, 1, 4)])
def test_contrasts_of_less_than_two_rows_are_refused(shape):
    with pytest.raises(ValueError, match="at least 2 class rows"):
        contrasts(torch.ones(shape))


@pytest.mark.parametrize("counts", [(5000, 700, 60, 3, 1), (1, 2), (3, 3, 9, 9, 27), (1e-3, 1.0, 1e3)])
def test_seli_factors_the_centered_class_sizes(counts):
    weight, means = seli_frame(counts)
    weight_gram, means_gram = references.seli_grams(counts)
    np.testing.assert_allclose(weight @ weight.mT, weight_gram, atol=1e-11 * np.linalg.norm(weight_gram))
    np.testing.assert_allclose(means @ means.mT, means_gram, atol=1e-11 * np.linalg.norm(means_gram))
    np.testing.assert_allclose(weight @ means.mT, np.eye(len(counts)) - 1 / len(counts), atol=1e-12)


def test_seli_does_not_depend_on_the_order_of_the_classes():
    counts, order = torch.tensor([50.0, 7.0, 300.0, 1.0]), torch.tensor([2, 0, 3, 1])
    for frame, permuted in zip(seli_frame(counts), seli_frame(counts[order]), strict=True):
        torch.testing.assert_close((frame @ frame.mT)[order][:, order], permuted @ permuted.mT)


@pytest.mark.parametrize("num_classes, count", [(2, 1), (10, 1), (10, 500)])
def test_seli_of_balanced_classes_is_a_simplex_etf(num_classes, count):
    etf = math.sqrt((num_classes - 1) / num_classes) * simplex_etf(num_classes, dtype=torch.float64)  # I - J/K
    weight, means = seli_frame([count] * num_classes)
    torch.testing.assert_close(weight @ weight.mT, count**0.5 * etf @ etf.mT)
    torch.testing.assert_close(means @ means.mT, count**-0.5 * etf @ etf.mT)


@pytest.mark.parametrize("ratio, published", [(1, -0.111), (10, 0.033), (100, 0.338), (1000, 0.671)])
def test_seli_of_the_step_profile_has_its_closed_form(ratio, published):
    num_classes, s = 10, math.sqrt((ratio + 1) / 2)
    weight, _ = seli_frame([ratio] * 5 + [1] * 5)
    gram = weight @ weight.mT
    cosines = gram / gram.diagonal().sqrt().outer(gram.diagonal().sqrt())
    assert gram[0, 0].item() == pytest.approx(math.sqrt(ratio) * (1 - 2 / num_classes) + s / num_classes)
    assert gram[9, 9].item() == pytest.approx((1 - 2 / num_classes) + s / num_classes)
    assert cosines[8, 9].item() == pytest.approx((s - 2) / (num_classes - 2 + s))
    assert cosines[8, 9].item() == pytest.approx(published, abs=5e-4)
    root = math.sqrt(ratio)
    assert cosines[0, 1].item() == pytest.approx((s - 2 * root) / (root * (num_classes - 2) + s))


@pytest.mark.parametrize("ratio, saturating", [(10, 0.288), (100, 0.366), (1000, 0.382)])
def test_the_means_of_the_step_profile_drift_towards_the_large_classes(ratio, saturating):
    counts = torch.tensor([ratio] * 5 + [1] * 5, dtype=torch.float64)
    _, means = seli_frame(counts)
    drift = (counts @ means / counts.sum()).square().sum()
    predicted = (ratio - 1) ** 2 / (10 * (ratio + 1) ** 2) * math.sqrt(2 / (ratio + 1))
    assert drift.item() == pytest.approx(predicted)
    mean_square = counts @ means.square().sum(1) / counts.sum()
    assert (drift / mean_square).sqrt().item() == pytest.approx(saturating, abs=1e-3)
    torch.testing.assert_close(means.mean(0), torch.zeros(10, dtype=torch.float64), rtol=0, atol=1e-12)


@pytest.mark.parametrize("counts", [[5, 0, 3], [5, -1], [5], [], [[1, 2], [3, 4]], [1.0, math.nan]])
def test_seli_refuses_classes_without_samples(counts):
    with pytest.raises(ValueError, match="at least two classes, each with samples, got class_counts="):
        seli_frame(counts)


def test_seli_comes_in_the_asked_dtype():
    for frame, exact in zip(seli_frame([9, 4, 1], dtype=torch.float32), seli_frame([9, 4, 1]), strict=True):
        assert frame.dtype is torch.float32
        torch.testing.assert_close(frame.double(), exact, rtol=1e-6, atol=1e-6)
