"""Nonnegative features: orthogonal class means at any imbalance, each of its own length."""

from __future__ import annotations

import math

import minimization
import pytest
import torch

from ncflow.theory import relative_drift, relu_ce_optimum, relu_limit

PROBLEMS = [
    ([90, 10], 1e-2, 1e-2),
    ([200, 50, 12], 1e-2, 4e-3),
    ([40, 40, 40, 2], 1e-2, 4e-3),
    ([400, 20, 2], 1e-2, 4e-3),  # the last class dies
    ([100, 80, 30, 20, 10], 1e-4, 1e-3),
]


@pytest.mark.parametrize("counts, lambda_w, lambda_h", PROBLEMS)
@pytest.mark.parametrize("seed", range(2))
def test_minimizing_over_nonnegative_features_finds_it(counts, lambda_w, lambda_h, seed):
    """With room for 4K axes; with fewer a start can miss a class for good, at a higher loss."""
    optimum = relu_ce_optimum(counts, lambda_w=lambda_w, lambda_h=lambda_h)
    found = minimization.minimum(
        minimization.cross_entropy,
        counts,
        lambda_w=lambda_w,
        lambda_h=lambda_h,
        num_features=4 * len(counts),
        nonnegative=True,
        seed=seed,
    )
    torch.testing.assert_close(found.logits, optimum.logits, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.weight @ found.weight.mT, optimum.weight @ optimum.weight.mT, rtol=1e-4, atol=1e-5)
    gram = found.class_means @ found.class_means.mT
    torch.testing.assert_close(gram, optimum.mean_norms.square().diag(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("counts, lambda_w, lambda_h", PROBLEMS)
def test_lengths_and_logits_have_their_closed_form(counts, lambda_w, lambda_h):
    optimum, k = relu_ce_optimum(counts, lambda_w=lambda_w, lambda_h=lambda_h), len(counts)
    for y, n in enumerate(counts):
        m = sum(counts) * math.sqrt(lambda_w * lambda_h * (k - 1) / (k * n))
        alpha = math.log((k - 1) * (1 - m) / m) if m < (k - 1) / k else 0
        assert optimum.mean_norms[y].item() ** 2 == pytest.approx(
            math.sqrt(lambda_w * (k - 1) / (lambda_h * n * k)) * alpha
        )
        expected = alpha * (torch.eye(k, dtype=torch.float64)[y] - 1 / k)
        torch.testing.assert_close(optimum.logits[y], expected)


def test_the_example_of_the_docstring():
    optimum = relu_ce_optimum([90, 10], lambda_w=0.01, lambda_h=0.01)
    assert (optimum.logits.diagonal() * 2).tolist() == pytest.approx([2.52, 1.24], abs=5e-3)
    assert optimum.mean_norms.square().tolist() == pytest.approx([0.188, 0.278], abs=5e-4)


@pytest.mark.parametrize("rare", [11.9, 12.1])
def test_a_class_dies_up_to_its_threshold_of_samples(rare):
    counts = torch.tensor([100.0, 100.0, 100.0, 100.0, 100.0, rare])
    decay = math.sqrt(10) / counts.sum().item()  # N² λ_W λ_H K/(K-1) = 12
    optimum = relu_ce_optimum(counts, lambda_w=decay, lambda_h=decay)
    assert bool(optimum.class_means[-1].any()) is (rare > 12)
    assert bool(optimum.class_means[0].any())


@pytest.mark.parametrize("counts", [[5, 1], [50, 10, 3], [20, 20, 2, 2]])
def test_the_limit_is_the_support_vector_machine_of_nonnegative_features(counts):
    found = minimization.support_vectors(counts, nonnegative=True)
    expected = relu_limit(counts)
    assert _price(expected) == pytest.approx(_price(found), rel=1e-6)
    gram = found.class_means @ found.class_means.mT
    torch.testing.assert_close(gram, expected.mean_norms.square().diag(), rtol=1e-3, atol=1e-4)


def _price(optimum):
    """‖W‖² + Σ n_k‖h_k‖²."""
    price = optimum.weight.square().sum() + optimum.class_counts @ optimum.class_means.square().sum(1)
    return price.item()


def test_as_weight_decay_vanishes_directions_and_ratios_of_lengths_become_the_limits():
    counts, errors = [100] * 5 + [1] * 5, []
    limit = relative_drift(relu_limit(counts))
    for decay in (1e-6, 1e-20, 1e-100, 1e-300):
        errors.append(abs(relative_drift(relu_ce_optimum(counts, lambda_w=decay, lambda_h=decay)) - limit))
    assert errors == sorted(errors, reverse=True) and errors[-1] < 2e-3 * limit


def test_the_limit_drifts_as_far_as_its_closed_form():
    n = torch.tensor([500.0, 50.0, 5.0], dtype=torch.float64)
    expected = n.pow(1.5).sum().sqrt() / (n.sum() * n.sqrt().sum()).sqrt()
    assert relative_drift(relu_limit(n)) == pytest.approx(expected.item(), rel=1e-12)
