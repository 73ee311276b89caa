"""NC1: exact at any depth of collapse, and what the population says on Gaussian clusters around an ETF."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import references
import torch

from ncflow.geometry import simplex_etf
from ncflow.metrics import ClassMoments, collapse_metrics, nc1
from ncflow.metrics.moments import variances_of
from ncflow.metrics.spectra import spectral_ratios

SEEDS = range(3)
FUNCTIONS = {
    "nc1/pinv": lambda m: nc1.pinv(m, variances_of(m.within_cov, m.between_axes[1])),
    "nc1/quotient": nc1.quotient,
    "nc1/cdnv": nc1.cdnv,
    "nc1/vci": lambda m: nc1.vci(m, nc1.whiten(m, m.within_cov)),
}


def evaluate(features: torch.Tensor, targets: torch.Tensor) -> dict[str, float]:
    """Every NC1 metric that needs moments only, by name."""
    moments = ClassMoments.from_features(features, targets, int(targets.max()) + 1).present()
    return {name: function(moments).item() for name, function in FUNCTIONS.items()}


def numerical_rank(features: torch.Tensor, targets: torch.Tensor, num_classes: int) -> float:
    moments = ClassMoments.from_features(features, targets, num_classes, scatter=False)
    return nc1.numerical_rank(spectral_ratios(features, targets, moments)).item()


def clusters(num_classes: int, num_features: int, per_class: int, radius: float, sigma: float):
    """Isotropic Gaussians of deviation σ in R^d around an ETF of the given radius."""
    generator = torch.Generator().manual_seed(0)
    means = radius * simplex_etf(num_classes, num_features, generator=generator, dtype=torch.float64)
    targets = torch.arange(num_classes).repeat_interleave(per_class)
    noise = torch.randn(len(targets), num_features, generator=generator, dtype=torch.float64)
    return means[targets] + sigma * noise, targets


def decaying(problem: references.Problem, decades: float) -> references.Problem:
    """The same problem with a spectrum that falls over so many decades, along axes that are not the coordinates'."""
    d = problem.features.shape[1]
    turn, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(d, d)))
    return dataclasses.replace(problem, features=problem.features * np.logspace(0, -decades / 2, d) @ turn)


DEEP = {
    "nc1 of 1e-10": references.draw_problem(0, spread=1e-5),
    "nc1 of 1e-20": references.draw_problem(0, spread=1e-10),
    "imbalance of 100": references.draw_problem(1, sizes=(200, 20, 2), class_counts=(200, 20, 2), spread=1e-5),
    "a class of one sample": references.draw_problem(1, sizes=(20, 9, 1), class_counts=(20, 9, 1), spread=1e-5),
    "offset of 1,000 spreads": references.draw_problem(2, offset=1000, spread=1e-3),
    "offset and deep collapse": references.draw_problem(2, offset=1000, spread=1e-5),
    "absent classes": references.draw_problem(3, sizes=(9, 0, 7, 0, 5, 4), spread=1e-5),
    "fewer features than classes": references.draw_problem(4, num_features=3, spread=1e-5),
    "fewer samples than features": references.draw_problem(5, sizes=(3, 2, 2), class_counts=(3, 2, 2), num_features=12),
    "spectrum over 6 decades": decaying(references.draw_problem(6), 6),
    "deep, with a decaying spectrum": decaying(references.draw_problem(6, spread=1e-5), 6),
}


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_it_is_what_its_definition_says(name, seed):
    problem = references.draw_problem(seed)
    features, targets, *_ = problem.tensors
    assert evaluate(features, targets)[name] == pytest.approx(references.METRICS[name](problem), rel=1e-10)


@pytest.mark.parametrize("case", DEEP)
def test_it_keeps_its_digits_where_float64_definitions_lose_them(case):
    features, targets, *_ = DEEP[case].tensors
    found = evaluate(features, targets)
    for name, exact in references.exact_nc1(DEEP[case]).items():
        assert found[name] == pytest.approx(exact, rel=1e-6, abs=1e-11 if case.startswith("fewer samples") else 0), name
    assert found["nc1/cdnv"] == pytest.approx(references.cdnv(DEEP[case]), rel=1e-6)


@pytest.mark.parametrize("case", ["imbalance of 100", "offset of 1,000 spreads", "spectrum over 6 decades"])
def test_float32_features_are_measured_as_exactly(case):
    problem = dataclasses.replace(DEEP[case], features=DEEP[case].features.astype(np.float32))
    features, targets = torch.from_numpy(problem.features), torch.from_numpy(problem.targets)
    assert features.dtype is torch.float32
    exact = references.exact_nc1(dataclasses.replace(problem, features=problem.features.astype(np.float64)))
    found = evaluate(features, targets)
    assert {name: found[name] for name in exact} == pytest.approx(exact, rel=1e-6, abs=0)


@pytest.mark.parametrize(
    "num_classes, num_features, radius, sigma", [(4, 10, 2.0, 0.3), (10, 9, 1.0, 0.5), (2, 5, 1, 1)]
)
def test_gaussians_around_an_etf_have_their_population_values(num_classes, num_features, radius, sigma):
    k, d, r2, s2 = num_classes, num_features, radius**2, sigma**2
    found = evaluate(*clusters(k, d, 20_000 // k, radius, sigma))
    population = {
        "nc1/pinv": s2 * (k - 1) ** 2 / (k * r2),
        "nc1/quotient": d * s2 / r2,
        "nc1/cdnv": d * s2 * (k - 1) / (2 * k * r2),
        "nc1/vci": s2 * (k - 1) / (r2 + s2 * (k - 1)),
    }
    assert found == pytest.approx(population, rel=0.04)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_it_does_not_change_when_features_are_rotated_scaled_or_moved(name):
    features, targets, *_ = references.draw_problem(0).tensors
    turn = torch.linalg.qr(torch.randn(8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))).Q
    value = evaluate(features, targets)[name]
    for changed in (features @ turn, 1e-4 * features, 1e4 * features, features + 50):
        assert evaluate(changed, targets)[name] == pytest.approx(value, rel=1e-9)


def test_exact_collapse_is_zero():
    features, targets = clusters(5, 7, 4, radius=1.0, sigma=0.0)
    assert evaluate(features, targets) == pytest.approx(dict.fromkeys(FUNCTIONS, 0), abs=1e-15)


@pytest.mark.parametrize("depth", [0.0, 1e-6])
def test_means_on_a_line_miss_the_directions_that_a_full_collapse_has(depth):
    """VCI counts K-1 directions: three collapsed classes on a line have one, so half of the index is left."""
    line = torch.tensor([0.1, 0.2, 0.7], dtype=torch.float64).outer(torch.tensor([1.0, 3.0, -0.3]).double())
    targets = torch.arange(3).repeat(20)
    noise = torch.randn(60, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    noise -= torch.stack([noise[targets == k].mean(0) for k in range(3)])[targets]
    found = evaluate(line[targets] + depth * noise, targets)
    assert found["nc1/vci"] == pytest.approx(0.5, abs=1e-9)
    assert 0 <= found["nc1/pinv"] < 1e-9


@pytest.mark.parametrize("ulps", [0, 1, 3])
def test_two_classes_with_one_mean_have_no_cdnv(ulps):
    """Whether the means coincide to the last bit or up to rounding. With a third at distance g, Σ_B is g·sqrt(2)/3."""
    rows = torch.randn(10, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 1e4
    features, targets = torch.cat([rows, rows, rows + 1]), torch.arange(3).repeat_interleave(10)
    moments = ClassMoments.from_features(features, targets, 3)
    moments.means[1] *= 1 + ulps * torch.finfo(torch.float64).eps
    assert nc1.cdnv(moments) == np.inf
    along = ((rows - rows.mean(0)).sum(1) / 8**0.5).square().mean().item()
    assert FUNCTIONS["nc1/pinv"](moments).item() == pytest.approx(along / (8 * 2 / 9) / 3, rel=1e-6)


@pytest.mark.parametrize("seed", SEEDS)
def test_the_numerical_rank_is_that_of_its_definition(seed):
    for num_features in (2, 8, 40):  # classes longer and shorter than wide
        problem = references.draw_problem(seed, num_features=num_features, sizes=(25, 18, 0, 3, 1, 1))
        features, targets, *_ = problem.tensors
        found = numerical_rank(features, targets, 6)
        assert found == pytest.approx(references.numerical_rank(problem), rel=1e-10)


def test_the_numerical_rank_counts_equal_directions_and_is_one_at_collapse():
    for rank in (1, 3, 6):
        rows = torch.eye(6, 9, dtype=torch.float64)[:rank].repeat(5, 1)
        assert numerical_rank(rows, torch.zeros(5 * rank, dtype=torch.long), 1) == pytest.approx(rank)
    features, targets = clusters(5, 7, 4, radius=1.0, sigma=1e-8)
    excess = numerical_rank(features, targets, 5) - 1
    assert 0 < excess < 1e-6


@pytest.mark.parametrize("per_class", [3, 20])  # fewer samples than features, and more
@pytest.mark.parametrize("seed", range(3))
def test_a_class_of_zero_features_is_left_out_of_the_numerical_rank(seed, per_class):
    problem = references.draw_problem(seed, sizes=(per_class,) * 6)
    features, targets, *_ = problem.tensors
    features[targets == 2] = 0
    seen = targets != 2
    assert numerical_rank(features, targets, 6) == pytest.approx(numerical_rank(features[seen], targets[seen], 6))
    assert "nc1/numerical_rank" not in collapse_metrics(features * 0, targets)


@pytest.mark.parametrize("seed", SEEDS)
def test_groups_that_cover_all_classes_average_to_the_whole(seed):
    features, targets, *_ = references.draw_problem(seed).tensors
    moments = ClassMoments.from_features(features, targets, 6)
    groups = [torch.tensor(mask) > 0 for mask in ([1, 0, 0, 0, 0, 0], [0, 1, 1, 0, 0, 1], [0, 0, 0, 1, 1, 0])]
    shares = [moments.counts[group].sum() / moments.counts.sum() for group in groups]
    quotients = sum(share * nc1.quotient_of(moments, group) for share, group in zip(shares, groups, strict=True))
    assert quotients.item() == pytest.approx(nc1.quotient(moments).item(), rel=1e-12)
    cdnvs = sum(group.double().mean() * nc1.cdnv_of(moments, group) for group in groups)
    assert cdnvs.item() == pytest.approx(nc1.cdnv(moments).item(), rel=1e-12)


def test_merged_means_leave_the_groups_that_they_are_not_in():
    rows = torch.eye(4, 6, dtype=torch.float64)
    rows[3] = rows[2]
    noise = torch.randn(40, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    targets = torch.arange(4).repeat_interleave(10)
    noise[20:30] = noise[30:]
    found = collapse_metrics(rows[targets] + 0.1 * noise, targets, class_counts=[500, 400, 5, 5])
    assert "nc1/cdnv" not in found and "nc1/cdnv_few" not in found
    assert found["nc1/cdnv_many"] > 0 and found["nc1/quotient_few"] > 0
