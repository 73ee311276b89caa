"""Squared error: orthogonal classes, each with its own size and its own threshold."""

from __future__ import annotations

import math

import pytest
import torch

from ncflow.theory import mse_optimum

COUNTS = [500, 200, 60, 20, 7]


def test_logits_and_norms_have_their_closed_form_and_rows_are_orthogonal():
    lambda_w, lambda_h = 2e-3, 5e-4
    optimum = mse_optimum(COUNTS, lambda_w=lambda_w, lambda_h=lambda_h)
    z = [1 - sum(COUNTS) * math.sqrt(lambda_w * lambda_h / n) for n in COUNTS]
    torch.testing.assert_close(optimum.logits, torch.tensor(z, dtype=torch.float64).diag())
    for n, level, w, h in zip(COUNTS, z, optimum.weight_norms.tolist(), optimum.mean_norms.tolist(), strict=True):
        assert w**2 == pytest.approx(math.sqrt(n * lambda_h / lambda_w) * level)
        assert h**2 == pytest.approx(math.sqrt(lambda_w / (n * lambda_h)) * level)
    for cosines in (optimum.weight_cosines, optimum.mean_cosines):
        torch.testing.assert_close(cosines, torch.eye(5, dtype=torch.float64))


def test_the_example_of_the_docstring():
    optimum = mse_optimum([90, 10], lambda_w=0.01, lambda_h=0.01)
    assert optimum.logits.diagonal().tolist() == pytest.approx([0.895, 0.684], abs=5e-4)
    assert optimum.weight_norms.square().tolist() == pytest.approx([8.49, 2.16], abs=5e-3)


@pytest.mark.parametrize("threshold", [1, 7, 20, 59.999, 60.001, 499, 501])
def test_a_class_dies_exactly_up_to_the_threshold_of_samples(threshold):
    decay = math.sqrt(threshold * (1 + 1e-12)) / sum(COUNTS)
    optimum = mse_optimum(COUNTS, lambda_w=decay, lambda_h=decay)
    assert (optimum.weight_norms > 0).tolist() == [n > threshold for n in COUNTS]
    assert (optimum.mean_norms > 0).tolist() == [n > threshold for n in COUNTS]
