"""NC3: a classifier that is a multiple of the centered means is dual to them; its opposite is as far as can be."""

from __future__ import annotations

import pytest
import references
import torch

from ncflow.geometry import simplex_etf
from ncflow.metrics import nc3
from ncflow.metrics.frame import Frame

SEEDS = range(3)


def etf_gap(weight: torch.Tensor, means: torch.Tensor) -> torch.Tensor:
    return nc3.etf_gap(Frame(weight), Frame(means))


FUNCTIONS = {f"nc3/{f.__name__}": f for f in (nc3.self_duality, nc3.etf_error, nc3.alignment, nc3.uniformity, etf_gap)}


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_it_is_what_its_definition_says(name, seed):
    problem = references.draw_problem(seed)
    found = FUNCTIONS[name](torch.from_numpy(problem.weight), torch.from_numpy(problem.centered_means)).item()
    assert found == pytest.approx(references.METRICS[name](problem), rel=1e-11)


@pytest.mark.parametrize("num_features", [4, 5, 12])
def test_collapse_is_dual_and_its_opposite_is_not(num_features):
    means = simplex_etf(5, num_features, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    values = {name: function(3 * means, means).item() for name, function in FUNCTIONS.items()}
    ideal = dict.fromkeys(FUNCTIONS, 0) | {"nc3/alignment": 1}
    assert values == pytest.approx(ideal, abs=1e-13)
    values = {name: function(-3 * means, means).item() for name, function in FUNCTIONS.items()}
    opposite = {"nc3/self_duality": 4, "nc3/etf_error": 2, "nc3/alignment": -1, "nc3/etf_gap": 4}
    assert values == pytest.approx(ideal | opposite, abs=1e-13)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_it_does_not_change_when_both_are_rotated_or_scaled(name):
    problem = references.draw_problem(0)
    weight, means = torch.from_numpy(problem.weight), torch.from_numpy(problem.centered_means)
    value = FUNCTIONS[name](weight, means).item()
    turn = torch.linalg.qr(torch.randn(8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))).Q
    assert FUNCTIONS[name](weight @ turn, means @ turn).item() == pytest.approx(value, rel=1e-10)
    scaled = FUNCTIONS[name](7 * weight, means / 7).item()
    assert scaled == pytest.approx(value, rel=1e-10)


def test_self_duality_and_the_gap_of_etfs_are_symmetric():
    problem = references.draw_problem(1)
    weight, means = torch.from_numpy(problem.weight), torch.from_numpy(problem.centered_means)
    for function in (nc3.self_duality, etf_gap, nc3.alignment):
        assert function(weight, means).item() == pytest.approx(function(means, weight).item())
