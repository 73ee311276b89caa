"""Balanced cross-entropy: an ETF of the published size, which weight decay shrinks to nothing at c = 1/K."""

from __future__ import annotations

import math

import pytest
import torch

from ncflow.metrics import collapse_metrics
from ncflow.theory import balanced_ce_optimum, step_ce_optimum


@pytest.mark.parametrize(
    "num_classes, n, lambda_w, lambda_h", [(10, 100, 5e-4, 5e-4), (3, 7, 1e-2, 4e-2), (2, 1, 0.1, 1.0)]
)
def test_logits_and_norms_have_their_closed_form(num_classes, n, lambda_w, lambda_h):
    optimum = balanced_ce_optimum([n] * num_classes, lambda_w=lambda_w, lambda_h=lambda_h)
    c = math.sqrt(n * lambda_w * lambda_h)
    alpha = math.log(1 / c - (num_classes - 1))
    etf = torch.eye(num_classes, dtype=torch.float64) - 1 / num_classes
    torch.testing.assert_close(optimum.logits, alpha * etf)
    share = alpha * (num_classes - 1) / num_classes
    assert optimum.weight_norms.square().tolist() == pytest.approx(
        [math.sqrt(n * lambda_h / lambda_w) * share] * num_classes
    )
    assert optimum.mean_norms.square().tolist() == pytest.approx(
        [math.sqrt(lambda_w / (n * lambda_h)) * share] * num_classes
    )


def test_the_example_of_the_docstring():
    optimum = balanced_ce_optimum([100] * 10, lambda_w=5e-4, lambda_h=5e-4)
    assert (optimum.logits[0, 0] - optimum.logits[0, 1]).item() == pytest.approx(5.25, abs=5e-3)
    assert optimum.weight_norms[0].item() ** 2 == pytest.approx(47.3, abs=0.05)
    assert optimum.mean_norms[0].item() ** 2 == pytest.approx(0.473, abs=5e-4)


def test_every_metric_sees_full_collapse():
    optimum = balanced_ce_optimum([20] * 6, lambda_w=1e-3, lambda_h=1e-3)
    metrics = collapse_metrics(optimum.class_means, torch.arange(6), optimum.weight)
    assert metrics["acc/overall"] == 1
    collapsed = [
        name for name in metrics if name.startswith(("nc1", "nc2", "nc3", "nc4", "drift")) and name not in NOT_ZERO
    ]
    assert {name: metrics[name] for name in collapsed} == pytest.approx(dict.fromkeys(collapsed, 0), abs=1e-7)


@pytest.mark.parametrize("num_classes", [2, 5, 20])
def test_from_c_equal_to_one_over_k_on_all_is_zero(num_classes):
    for c, alive in ((0.999, True), (1 + 1e-12, False), (1.001, False), (100, False)):
        decay = c / num_classes / math.sqrt(30)
        optimum = balanced_ce_optimum([30] * num_classes, lambda_w=decay, lambda_h=decay)
        assert bool(optimum.weight.any()) is alive and bool(optimum.class_means.any()) is alive, c


def test_it_is_the_limit_of_two_sizes_that_become_one():
    balanced = balanced_ce_optimum([50] * 6, lambda_w=1e-3, lambda_h=2e-3)
    nearly = step_ce_optimum([50] * 2 + [50 + 1e-7] * 4, lambda_w=1e-3, lambda_h=2e-3)
    torch.testing.assert_close(nearly.logits, balanced.logits, rtol=0, atol=1e-7)
    torch.testing.assert_close(nearly.weight, balanced.weight, rtol=0, atol=1e-7)


def test_unequal_sizes_are_refused():
    with pytest.raises(ValueError, match=r"one size, got class_counts=\[5.0, 4.0\]; see step_ce_optimum"):
        balanced_ce_optimum([5, 4], lambda_w=1e-3, lambda_h=1e-3)


NOT_ZERO = {
    "nc1/numerical_rank": 1,
    "nc2/gnc2_log": "-log of the distance of unit rows",
    "nc2/max_cosine_means": "-1/(K-1)",
    "nc2/max_cosine_weight": "-1/(K-1)",
    "nc2/margin_means": "K/(K-1)",
    "nc2/margin_weight": "K/(K-1)",
    "nc3/alignment": 1,
    "nc3/alignment_few": 1,
    "nc4/ncc_accuracy": 1,
    "nc2/orthogonal_error_means": "an ETF is not orthogonal",
    "nc2/orthogonal_error_weight": "an ETF is not orthogonal",
    "nc2/orthogonal_distance_means": "an ETF is not orthogonal",
    "nc2/orthogonal_distance_weight": "an ETF is not orthogonal",
}
