"""NC4: decisions are counted as a loop over samples counts them, however the samples are cut."""

from __future__ import annotations

import numpy as np
import pytest
import references
import torch

from ncflow.geometry import simplex_etf
from ncflow.metrics import ClassMoments, moments, nc4
from ncflow.metrics.rounding import Rounding

SEEDS = range(3)


def of_samples(problem: references.Problem) -> ClassMoments:
    features, targets, weight, _ = problem.tensors
    return ClassMoments.from_features(features, targets, len(weight))


def decide(problem: references.Problem) -> nc4.Decisions:
    found = of_samples(problem)
    return nc4.decide(*problem.tensors, found.means_or_nan, found.sample_mean)


def nearest_means(problem: references.Problem) -> tuple[torch.Tensor, Rounding]:
    """The class means, and their rounding."""
    found = of_samples(problem)
    return found.means_or_nan, found.present().rounding


@pytest.fixture(params=[6, 5], ids=["few classes", "many classes"])
def few(request, monkeypatch):
    """The two ways to the nearest means, for as many classes as the problems have."""
    monkeypatch.setattr(nc4, "FEW", request.param)


@pytest.mark.parametrize("spread", [0.5, 1e-3])  # most samples outside of the reach of their mean, and none
@pytest.mark.parametrize("offset", [0, 1000])
@pytest.mark.parametrize("seed", SEEDS)
def test_decisions_are_those_of_a_loop_over_samples(few, seed, offset, spread):
    problem = references.draw_problem(seed, sizes=(25, 0, 12, 9, 6, 3), offset=offset, spread=spread)
    made, logits = decide(problem), problem.logits
    np.testing.assert_array_equal(made.predictions, logits.argmax(1))
    higher = [sum(z > row[y] for z in row) for row, y in zip(logits, problem.targets, strict=True)]
    np.testing.assert_array_equal(made.ranks, higher)
    np.testing.assert_allclose(made.confidences, [1 / np.sum(np.exp(row - row.max())) for row in logits])
    np.testing.assert_allclose(made.margins, references.margins(problem), atol=1e-12)
    mismatch = nc4.ncc_mismatch(made, *nearest_means(problem)).item()
    assert mismatch == pytest.approx(references.ncc_mismatch(problem))
    assert 1 not in made.nearest_means  # a class without a mean is nobody's nearest
    found, means = of_samples(problem), nearest_means(problem)
    features, targets, *_ = problem.tensors
    alone = nc4.nearest_classes(features, targets, means[0], found.sample_mean)
    np.testing.assert_array_equal(alone, made.nearest_means)
    assert nc4.ncc_accuracy(alone, targets, *means).item() == pytest.approx(references.ncc_accuracy(problem))
    losses = [references.cross_entropy(row, y) for row, y in zip(logits, problem.targets, strict=True)]
    np.testing.assert_allclose(made.losses, losses, rtol=1e-9, atol=1e-12)


def test_the_length_of_a_chunk_does_not_matter(monkeypatch):
    problem = references.draw_problem(0)
    whole = decide(problem)
    monkeypatch.setattr(moments, "CHUNK", 10)
    for name, expected in vars(whole).items():
        torch.testing.assert_close(getattr(decide(problem), name), expected)


@pytest.mark.parametrize("seed", SEEDS)
def test_means_of_another_split_are_held_against_every_sample(few, seed):
    """Also of a class that was never seen in training, and where no sample is nearest to the mean of its class."""
    problem = references.draw_problem(seed)
    features, targets, weight, bias = problem.tensors
    means = torch.from_numpy(problem.means).roll(1, 0)
    means[4] = torch.nan
    made = nc4.decide(features, targets, weight, bias, means, features.mean(0))
    expected = [np.nanargmin([np.linalg.norm(h - m) for m in means.numpy()]) for h in problem.features]
    np.testing.assert_array_equal(made.nearest_means, expected)


@pytest.mark.parametrize("beyond", [-1e-9, 0.0, 1e-9])
def test_a_sample_half_way_between_two_means_is_settled_by_products(monkeypatch, beyond):
    monkeypatch.setattr(nc4, "FEW", 1)
    means = torch.tensor([[1.0, 0.0, 0.0], [-1.0, 0.0, 0.0], [0.0, 5.0, 0.0]], dtype=torch.float64)
    features, targets = torch.tensor([[-beyond, 0.0, 0.0], [0.0, 5.0, 1.0]], dtype=torch.float64), torch.tensor([0, 2])
    made = nc4.decide(features, targets, means, means[:, 0], means, torch.zeros(3, dtype=torch.float64))
    assert made.nearest_means.tolist() == [int(beyond > 0), 2]


@pytest.mark.parametrize("seed", SEEDS)
def test_decisions_without_margins_have_the_same_bits(few, seed):
    problem = references.draw_problem(seed, sizes=(25, 0, 12, 9, 6, 3))
    found = of_samples(problem)
    made, whole = (
        nc4.decide(*problem.tensors, found.means_or_nan, found.sample_mean, with_margins=margins)
        for margins in (False, True)
    )
    assert made.margins is None and whole.margins is not None
    assert all(torch.equal(vars(made)[name], vars(whole)[name]) for name in vars(made) if name != "margins")


@pytest.mark.parametrize("num_classes, num_features", [(2, 2), (5, 4), (5, 9)])
def test_at_collapse_margins_are_an_etfs_and_no_decision_differs(num_classes, num_features):
    etf = simplex_etf(num_classes, num_features, dtype=torch.float64)
    targets = torch.arange(num_classes)
    features, weight, bias = 3 * etf + 1, etf + 2, -((etf + 2) @ torch.ones(num_features, dtype=torch.float64))
    problem = references.Problem(*(x.numpy() for x in (features, targets, weight, bias)), [1] * num_classes)
    made = decide(problem)
    torch.testing.assert_close(made.margins, torch.full_like(made.margins, num_classes / (num_classes - 1)))
    assert nc4.ncc_mismatch(made, *nearest_means(problem)) == 0
    assert nc4.bias_collapse(weight, bias, features.mean(0)).item() == pytest.approx(0, abs=1e-13)


def test_a_feature_at_the_center_has_no_margin_and_no_nan():
    problem = references.draw_problem(0)
    features, targets, weight, bias = problem.tensors
    made = nc4.decide(features, targets, weight, bias, weight, features[0])
    assert made.margins[0] == 0
    assert bool(made.margins.isfinite().all())


@pytest.mark.parametrize("seed", SEEDS)
def test_the_bias_is_measured_at_the_mean_of_the_samples(seed):
    problem = references.draw_problem(seed, offset=2)
    features, _, weight, bias = problem.tensors
    found = nc4.bias_collapse(weight, bias, features.mean(0)).item()
    assert found == pytest.approx(references.bias_collapse(problem))


def test_of_classes_with_one_mean_the_first_gets_all_samples():
    means = torch.tensor([[0.0, 1], [2, 2], [torch.nan, 0], [2, 2 + 1e-15], [5, 5]], dtype=torch.float64)
    nearest, targets = torch.tensor([0, 1, 3, 3, 4]), torch.tensor([0, 1, 1, 3, 4])
    rounding = Rounding.of(means[[0, 1, 3, 4]])
    assert nc4.ncc_accuracy(nearest, targets, means, rounding).item() == pytest.approx(0.8)


def test_huge_logits_do_not_overflow_the_confidence():
    problem = references.draw_problem(0)
    features, targets, weight, bias = problem.tensors
    made = nc4.decide(1e4 * features, targets, weight, bias, weight, features[0])
    assert bool(((made.confidences > 0.1) & (made.confidences <= 1)).all())
