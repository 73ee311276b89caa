"""What the nearest-ETF head tells of its problem: its own value, the best there is, and an independent search's."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest
import references
import torch
from torch import Tensor

from ncflow.geometry import etf_distance, nearest_etf, simplex_etf
from ncflow.nn import HEADS, NearestETFHead, create_head
from ncflow.nn.diagnostics import search_diagnostics, solution_diagnostics

DOCUMENT = Path(__file__).parents[2] / "docs" / "metrics.md"
SEEDS = range(3)
K, D = 5, 8


def draw(seed: int, *, num_features: int = D) -> tuple[Tensor, Tensor]:
    """Gaussian class means off the origin, and a random ETF: (K, d) and (K, d), float64."""
    generator = torch.Generator().manual_seed(seed)
    means = 3 + torch.randn(K, num_features, generator=generator, dtype=torch.float64)
    return means, simplex_etf(K, num_features, generator=generator, dtype=torch.float64)


def trained(*, batches: int = 3, **options: object) -> NearestETFHead:
    """A head after a few batches in which the last class is absent."""
    generator = torch.Generator().manual_seed(0)
    head = NearestETFHead(D, K, **options)
    for _ in range(batches):
        head(torch.randn(20, D, generator=generator), torch.arange(20) % (K - 1))
    return head


def obvious(etf: Tensor, means: Tensor, proximal: float, anchor: Tensor) -> float:
    return references.nearest_etf_objective(*(t.numpy() for t in (etf, means)), proximal, anchor.numpy())


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("proximal", [0.0, 1e-3, 0.5])
@pytest.mark.parametrize("num_features", [K - 1, K, D])
def test_objective_and_distance_match_the_problem_at_both_etfs(seed, proximal, num_features):
    means, etf = draw(seed, num_features=num_features)
    told = solution_diagnostics(means, etf, proximal=proximal)
    nearest = nearest_etf(means, proximal=proximal, anchor=etf)
    assert told["objective"] == pytest.approx(obvious(nearest, means, proximal, etf), rel=1e-12)
    assert told["distance"] == pytest.approx(obvious(etf, means, proximal, etf), rel=1e-12)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("proximal", [0.0, 1e-3, 0.5])
def test_no_other_etf_is_better_than_the_objective(seed, proximal):
    means, etf = draw(seed)
    best = solution_diagnostics(means, etf, proximal=proximal)["objective"]
    others = [draw(other)[1] for other in range(100, 120)]
    assert all(obvious(other, means, proximal, etf) >= best for other in [etf, *others])


def test_without_proximal_term_the_objective_is_the_distance_of_the_means():
    head = trained(proximal=0.0)
    told = head.diagnostics()
    assert told["distance"] == pytest.approx(told["objective"], abs=1e-6)
    means = head.class_means.double()
    means[-1] = means[:-1].mean(0)  # the class never seen lies at the center of the others
    assert told["objective"] == pytest.approx(etf_distance(means).item(), rel=1e-6)


def test_a_stronger_proximal_term_keeps_the_etf_nearer_to_its_anchor():
    steps, lags = [], []
    for proximal in (0.0, 0.1, 1.0, 10.0):
        head = trained(batches=1, proximal=proximal)
        steps.append((head.weight - simplex_etf(K, D)).norm().item())
        told = head.diagnostics()
        lags.append(told["distance"] - solution_diagnostics(head.class_means, head.weight, proximal=0.0)["objective"])
    assert steps == sorted(steps, reverse=True) and steps[0] > 2 * steps[-1]
    assert lags == sorted(lags) and lags[-1] > 0.1


def test_at_collapse_both_are_zero():
    _, etf = draw(0)
    told = solution_diagnostics(7 * etf + 3, etf, proximal=1e-3)
    assert max(told.values()) < 1e-20


def worst_means(etf: Tensor) -> dict[str, Tensor]:
    """Class means (K, d) for which an ETF is as bad as can be: opposite to it, of rank one, one class, none at all."""
    line, lone = torch.outer(etf[:, 0], etf[0]), torch.zeros_like(etf)
    lone[0] = 1
    return {"opposite": -etf, "rank one": -line, "one class": lone, "none": 0 * etf}


@pytest.mark.parametrize("proximal", [0.0, 1e-3, 0.5, 10.0, 1e6, 1e30])
@pytest.mark.parametrize("num_classes", [2, 3, 10])
def test_objective_and_distance_lie_between_zero_and_four(num_classes, proximal):
    for seed in SEEDS:
        generator = torch.Generator().manual_seed(seed)
        etf = simplex_etf(num_classes, 12, generator=generator, dtype=torch.float64)
        stored = etf.float()  # as the head has it
        ordinary = {"ordinary": torch.randn(num_classes, 12, generator=generator, dtype=torch.float64)}
        for means in (ordinary | worst_means(etf)).values():
            told = solution_diagnostics(means, stored, proximal=proximal)
            assert 0 <= told["objective"] <= told["distance"] + 1e-6 <= 4 + 2e-6
            if proximal == 0:
                assert told["objective"] < 2


def test_a_strong_proximal_term_takes_the_objective_to_four():
    _, etf = draw(0)
    told = {proximal: solution_diagnostics(-etf, etf, proximal=proximal) for proximal in (0.0, 1e3)}
    assert told[0.0] == pytest.approx({"objective": 0, "distance": 4}, abs=1e-12)
    assert told[1e3] == pytest.approx({"objective": 4, "distance": 4}, abs=1e-12)


@pytest.mark.parametrize("name", ["objective", "distance"])
def test_the_document_states_the_range_of_each_value(name):
    entry = re.search(rf"^- `head/{name}`:(.*?)(?=^- |^$)", DOCUMENT.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    assert entry and "in [0, 4]" in entry[1]


def test_means_that_coincide_have_the_distance_of_nothing_from_an_etf():
    _, etf = draw(0)
    told = solution_diagnostics(torch.ones(K, D), etf, proximal=1e-3)
    assert told["distance"] == pytest.approx(1)
    assert told["objective"] == pytest.approx(1)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("num_features", [K - 1, D])
def test_an_independent_search_finds_the_same_optimum(seed, num_features):
    means, etf = draw(seed, num_features=num_features)
    search = search_diagnostics(means, etf, proximal=1e-3)
    assert abs(search["riemannian_gap"]) < 1e-12
    assert search["riemannian_gradient_norm"] < 1e-10
    assert search["riemannian_converged"] == 1
    assert search["riemannian_iterations"] >= 1 and search["riemannian_seconds"] > 0


@pytest.mark.parametrize("seed", SEEDS)
def test_an_unfinished_search_is_reported_and_above_the_optimum(seed):
    means, etf = draw(seed)
    search = search_diagnostics(means, etf, proximal=1e-3, max_iterations=1)
    assert search["riemannian_converged"] == 0
    assert search["riemannian_iterations"] == 1
    assert search["riemannian_gap"] > 1e-9


def test_the_tolerance_decides_when_a_search_has_converged():
    means, etf = draw(0)
    loose, strict = (search_diagnostics(means, etf, proximal=1e-3, tolerance=t) for t in (1e-2, 1e-10))
    assert loose["riemannian_converged"] == strict["riemannian_converged"] == 1
    assert loose["riemannian_iterations"] < strict["riemannian_iterations"]
    assert 1e-2 > loose["riemannian_gradient_norm"] > 1e-10


# --- the head ---


def test_the_head_passes_its_solvers_settings_on_to_training_and_analysis():
    head = trained(batches=1, solver="riemannian", max_iterations=1)
    told = head.diagnostics(solver=True)
    assert told["riemannian_iterations"] == 1 and told["riemannian_converged"] == 0
    exact = trained(batches=1, solver="riemannian")
    assert not torch.allclose(head.weight, exact.weight, atol=1e-6)
    torch.testing.assert_close(exact.weight, trained(batches=1).weight, atol=1e-5, rtol=0)


def test_what_is_told_depends_on_the_stored_tensors_alone_and_changes_none():
    head = trained()
    state = {name: tensor.clone() for name, tensor in head.state_dict().items()}
    twin = NearestETFHead(D, K)
    twin.load_state_dict(state)
    assert head.train().diagnostics() == head.eval().diagnostics() == twin.diagnostics()
    assert all(torch.equal(tensor, state[name]) for name, tensor in head.state_dict().items())


def test_a_head_that_has_seen_nothing_tells_nothing():
    assert NearestETFHead(D, K).diagnostics(solver=True) == {}


@pytest.mark.parametrize("name", HEADS)
def test_what_any_head_tells_is_finite_and_documented(name):
    head = create_head(name, D, K)
    head(torch.randn(20, D, generator=torch.Generator().manual_seed(0)), torch.arange(20) % K)
    told = head.diagnostics(solver=True)
    assert all(math.isfinite(value) for value in told.values())
    documented = re.findall(r"^- `head/(\w+)`", DOCUMENT.read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert list(told) == (documented if name == "nearest_etf" else [])
