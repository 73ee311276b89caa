"""Class moments: what a loop over samples finds, however the samples are cut into parts."""

from __future__ import annotations

import dataclasses
import math
from itertools import permutations

import numpy as np
import pytest
import references
import torch

from ncflow.metrics import ClassMoments, moments

SEEDS = range(3)


def of(problem: references.Problem) -> ClassMoments:
    features, targets, *_ = problem.tensors
    return ClassMoments.from_features(features, targets, len(problem.weight))


def parts(problem: references.Problem, *lengths: int) -> list[ClassMoments]:
    """The moments of consecutive pieces of the samples."""
    features, targets, *_ = problem.tensors
    pieces = zip(features.split(lengths), targets.split(lengths), strict=True)
    return [ClassMoments.from_features(h, y, len(problem.weight)) for h, y in pieces]


def assert_same(left: ClassMoments, right: ClassMoments, rtol: float = 1e-12) -> None:
    for field in dataclasses.fields(ClassMoments):
        ours, theirs = getattr(left, field.name), getattr(right, field.name)
        assert ours.dtype is torch.float64
        torch.testing.assert_close(ours, theirs, rtol=rtol, atol=1e-12 * float(theirs.abs().max()))


@pytest.mark.parametrize("seed", SEEDS)
def test_moments_are_what_a_loop_over_samples_finds(seed):
    problem = references.draw_problem(seed, offset=3)
    found, (within, _) = of(problem), references.scatters(problem)
    groups = [problem.features[problem.targets == k] for k in problem.labels]
    np.testing.assert_array_equal(found.counts, [len(rows) for rows in groups])
    np.testing.assert_allclose(found.means, problem.means, rtol=1e-13)
    np.testing.assert_allclose(found.within_traces, [np.sum((rows - rows.mean(0)) ** 2) for rows in groups])
    np.testing.assert_allclose(found.within_cov, within, atol=1e-14)
    np.testing.assert_allclose(found.sample_mean, problem.features.mean(0))
    np.testing.assert_allclose(found.class_mean, problem.means.mean(0))
    np.testing.assert_allclose(found.centered_means, problem.centered_means, atol=1e-14)
    assert found.num_samples == len(problem.features)
    assert found.within_traces.sum().item() == pytest.approx(found.within_scatter.trace().item())


@pytest.mark.parametrize("chunk", [1, 7, 73, 1000])
def test_the_length_of_a_chunk_does_not_matter(monkeypatch, chunk):
    problem = references.draw_problem(0)
    whole = of(problem)
    monkeypatch.setattr(moments, "CHUNK", chunk)
    assert_same(of(problem), whole)


@pytest.mark.parametrize("lengths", [(72, 1), (1, 72), (30, 0, 43), (20, 20, 20, 13), (1,) * 73])
def test_merged_parts_are_the_whole(lengths):
    problem = references.draw_problem(1, offset=100)
    first, *others = parts(problem, *lengths)
    for other in others:
        first = first.merge(other)
    assert_same(first, of(problem))


def test_the_order_of_merging_does_not_matter():
    a, b, c = parts(references.draw_problem(2), 30, 3, 40)
    for x, y, z in permutations((a, b, c)):
        assert_same(x.merge(y), y.merge(x))
        assert_same(x.merge(y).merge(z), a.merge(b.merge(c)))


@pytest.mark.parametrize("width", [1, 3, 8])
def test_the_blocks_of_a_gram_matrix_are_put_together_right(monkeypatch, width):
    whole = of(references.draw_problem(0))
    monkeypatch.setattr(moments, "NARROWEST", width)
    assert_same(of(references.draw_problem(0)), whole)
    assert torch.equal(whole.within_scatter, whole.within_scatter.mT)


@pytest.mark.parametrize("seed", SEEDS)
def test_variances_along_axes_are_those_of_the_scatter(seed):
    problem = references.draw_problem(seed, offset=3)
    features, targets, *_ = problem.tensors
    axes = torch.randn(3, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    found = moments.variances_along(features, targets, of(problem), axes)
    np.testing.assert_allclose(found, [u @ references.scatters(problem)[0] @ u for u in axes.numpy()], rtol=1e-11)


def test_no_samples_are_the_neutral_element():
    whole = of(references.draw_problem(0, sizes=(9, 0, 5, 1), class_counts=(9, 1, 5, 1)))
    nothing = ClassMoments.empty(4, 8)
    for merged in (nothing.merge(whole), whole.merge(nothing)):
        assert_same(merged, whole, rtol=0)
    no_samples = ClassMoments.from_features(torch.empty(0, 8), torch.empty(0, dtype=torch.long), 4)
    assert_same(no_samples, nothing)
    assert_same(nothing.merge(nothing), nothing)


def test_an_absent_class_has_mean_zero_and_is_left_out():
    problem = references.draw_problem(0, sizes=(9, 0, 5, 1), offset=7, class_counts=(9, 1, 5, 1))
    found = of(problem)
    assert found.counts.tolist() == [9, 0, 5, 1]
    assert not found.means[1].any() and found.within_traces[1] == found.within_traces[3] == 0
    present = found.present()
    assert present.counts.tolist() == [9, 5, 1]
    np.testing.assert_allclose(present.means, problem.means, rtol=1e-13)
    torch.testing.assert_close(present.within_scatter, found.within_scatter)


def test_a_common_offset_costs_no_digits():
    """Features on a grid that the offset leaves exact: the scatter must not change by more than rounding."""
    features, targets, *_ = references.draw_problem(0).tensors
    grid = (features * 1024).round() / 1024
    centered = ClassMoments.from_features(grid, targets, 6)
    moved = ClassMoments.from_features((grid + 2.0**20), targets, 6)
    torch.testing.assert_close(moved.within_scatter, centered.within_scatter, rtol=1e-12, atol=1e-9)
    torch.testing.assert_close(moved.means - 2.0**20, centered.means, rtol=0, atol=2.0**-32)


@pytest.mark.parametrize("number", [30, 3000, 50_000])
def test_equal_features_have_equal_means_and_no_scatter_at_all(number):
    """A network that died: not even rounding may make it look as if its classes differed."""
    feature = torch.tensor([0.1, 0.37, -1 / 3], dtype=torch.float64)
    found = ClassMoments.from_features(feature.repeat(number, 1), torch.arange(number) ** 2 % 7, 7).present()
    assert (found.means == feature).all()
    assert not found.within_traces.any() and not found.within_scatter.any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_low_precision_features_are_taken_at_their_word(dtype):
    features, targets, *_ = references.draw_problem(0, offset=5).tensors
    low = features.to(dtype)
    found = ClassMoments.from_features(low, targets, 6)
    assert found.eps == torch.finfo(dtype).eps
    exact = ClassMoments.from_features(low.double(), targets, 6)
    assert_same(dataclasses.replace(found, eps=exact.eps), exact)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32])
def test_targets_may_be_integers_of_any_width(dtype):
    features, targets, *_ = references.draw_problem(0).tensors
    assert_same(
        ClassMoments.from_features(features, targets.to(dtype), 6), ClassMoments.from_features(features, targets, 6)
    )


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e200])
@pytest.mark.parametrize("row", [0, 5])
def test_features_that_are_not_finite_are_refused(value, row):
    features, targets, *_ = references.draw_problem(0).tensors
    features[row, 3] = value
    with pytest.raises(ValueError, match="features hold NaN, infinities or numbers too large to square"):
        ClassMoments.from_features(features, targets, 6)
