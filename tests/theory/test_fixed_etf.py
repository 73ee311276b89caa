"""A fixed ETF: the best features point along their own row and are equally long, however rare their class."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from torch.nn import functional as F

from ncflow.geometry import simplex_etf
from ncflow.theory import drift_norm, fixed_etf_feature_norm, fixed_etf_optimum, fixed_etf_relu_optimum


def best_features(
    num_classes: int, *, weight_norm: float, norm: float | None = None, decay: float = 0.0
) -> torch.Tensor:
    """The features of least cross-entropy plus decay/2 ‖h‖², one class at a time; on a sphere if `norm` is given."""
    etf = weight_norm * simplex_etf(num_classes, num_classes + 2, dtype=torch.float64)

    def feature(x: torch.Tensor) -> torch.Tensor:
        return x if norm is None else norm * F.normalize(x, dim=0)

    def objective(x: np.ndarray, y: int) -> tuple[float, np.ndarray]:
        leaf = torch.from_numpy(x).requires_grad_()
        loss = F.cross_entropy(etf @ feature(leaf), torch.tensor(y)) + decay / 2 * leaf.square().sum()
        loss.backward()
        return loss.item(), leaf.grad.numpy()

    start = np.random.default_rng(0).normal(size=num_classes + 2)
    options = {"ftol": 0, "gtol": 1e-12}
    found = [
        minimize(objective, start, (y,), jac=True, method="L-BFGS-B", options=options).x for y in range(num_classes)
    ]
    return torch.stack([feature(torch.from_numpy(x)) for x in found])


@pytest.mark.parametrize("num_classes, norm, weight_norm", [(2, 1.0, 1.0), (5, 3.0, 1.0), (10, 0.5, 2.0)])
def test_minimizing_on_a_sphere_finds_the_own_row_of_the_etf(num_classes, norm, weight_norm):
    found = best_features(num_classes, weight_norm=weight_norm, norm=norm)
    optimum = fixed_etf_optimum([3] * num_classes, feature_norm=norm, weight_norm=weight_norm)
    torch.testing.assert_close(found[:, :num_classes], optimum.class_means, rtol=1e-5, atol=1e-6)
    assert found[:, num_classes:].abs().max() < 1e-6


@pytest.mark.parametrize("num_classes, lambda_h, weight_norm", [(2, 0.1, 1.0), (5, 1e-3, 1.0), (10, 1e-2, 3.0)])
def test_minimizing_with_weight_decay_finds_features_of_the_stated_length(num_classes, lambda_h, weight_norm):
    counts = [20] * num_classes
    found = best_features(num_classes, weight_norm=weight_norm, decay=sum(counts) * lambda_h)
    norm = fixed_etf_feature_norm(counts, lambda_h=lambda_h, weight_norm=weight_norm)
    optimum = fixed_etf_optimum(counts, feature_norm=norm, weight_norm=weight_norm)
    torch.testing.assert_close(found[:, :num_classes], optimum.class_means, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("num_classes, norm, weight_norm", [(2, 1.0, 1.0), (5, 3.0, 1.0), (10, 0.5, 2.0)])
def test_minimizing_over_nonnegative_features_of_one_length_finds_the_axes(num_classes, norm, weight_norm):
    optimum = fixed_etf_relu_optimum([3] * num_classes, feature_norm=norm, weight_norm=weight_norm)
    etf = torch.cat([optimum.weight, torch.zeros(num_classes, 2, dtype=torch.float64)], dim=1)

    def objective(x: np.ndarray, y: int) -> tuple[float, np.ndarray]:
        leaf = torch.from_numpy(x).requires_grad_()
        loss = F.cross_entropy(etf @ (norm * F.normalize(leaf, dim=0)), torch.tensor(y))
        loss.backward()
        return loss.item(), leaf.grad.numpy()

    start = abs(np.random.default_rng(0).normal(size=num_classes + 2))
    bounds, options = [(0, None)] * len(start), {"ftol": 0, "gtol": 1e-12}
    for y in range(num_classes):
        found = minimize(objective, start, (y,), jac=True, method="L-BFGS-B", bounds=bounds, options=options).x
        feature = norm * F.normalize(torch.from_numpy(found), dim=0)
        torch.testing.assert_close(feature[:num_classes], optimum.class_means[y], rtol=1e-5, atol=1e-5)


def test_a_relu_costs_a_fixed_etf_a_part_of_its_margin():
    free, relu = (optimum([9, 1, 1], feature_norm=5.0) for optimum in (fixed_etf_optimum, fixed_etf_relu_optimum))
    margins = [(z := each.logits[0])[0].item() - z[1].item() for each in (free, relu)]
    assert margins == pytest.approx([7.5, 5 * 1.5**0.5])
    cosine = relu.class_means[0] @ relu.weight[0] / 5
    assert cosine.item() == pytest.approx((2 / 3) ** 0.5)
    example = fixed_etf_relu_optimum([1] * 10, feature_norm=5.0).logits
    assert example[0, :2].tolist() == pytest.approx([4.74, -0.527], abs=5e-3)


def test_only_the_number_of_samples_matters_not_how_they_are_shared():
    lengths = {fixed_etf_feature_norm(counts, lambda_h=1e-3) for counts in ([50, 50, 50], [140, 9, 1], [100, 49, 1])}
    assert len(lengths) == 1
    even, uneven = (fixed_etf_optimum(counts, feature_norm=2.0) for counts in ([50, 50, 50], [140, 9, 1]))
    assert torch.equal(even.logits, uneven.logits)
    assert drift_norm(uneven) > drift_norm(even) + 1


def test_the_examples_of_the_docstrings():
    assert fixed_etf_feature_norm([100] * 10, lambda_h=5e-4) == pytest.approx(1.44, abs=5e-3)
    logits = fixed_etf_optimum([1] * 10, feature_norm=5.0).logits
    assert logits[0, :2].tolist() == pytest.approx([5, -0.556], abs=5e-4)


@pytest.mark.parametrize("energy_w, energy_h", [(1.0, 1.0), (4.0, 9.0)])
def test_dot_regression_is_zero_at_the_optimum(energy_w, energy_h):
    norms = {"feature_norm": math.sqrt(energy_h), "weight_norm": math.sqrt(energy_w)}
    own = fixed_etf_optimum([7, 3, 1], **norms).logits.diagonal()
    target = math.sqrt(energy_w * energy_h)
    assert own.tolist() == pytest.approx([target] * 3)


@pytest.mark.parametrize("norms", [{"feature_norm": -1.0}, {"feature_norm": 1.0, "weight_norm": 0.0}])
def test_impossible_norms_are_refused(norms):
    with pytest.raises(ValueError, match="feature_norm >= 0 and weight_norm > 0, got"):
        fixed_etf_optimum([5, 5], **norms)
