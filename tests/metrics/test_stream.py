"""The moments of a stream: those of all samples at once, for any batches."""

from __future__ import annotations

import pytest
import references
import torch

from ncflow.metrics import ClassMoments, stream
from ncflow.metrics.stream import MomentSum

SEEDS = range(3)
NAMES = ("counts", "means", "within_traces", "within_scatter", "eps")


def summed(features, targets, batch: int, num_classes: int | None = None) -> ClassMoments:
    moments = MomentSum(features.shape[1], num_classes)
    for h, y in zip(features.split(batch), targets.split(batch), strict=True):
        moments.add(h, y)
    return moments.total()


@pytest.mark.parametrize("batch", [1, 7, 1000])
@pytest.mark.parametrize("size", [4, 8192])
@pytest.mark.parametrize("seed", SEEDS)
def test_batches_of_any_size_give_the_moments_of_the_whole(seed, size, batch, monkeypatch):
    monkeypatch.setattr(stream, "SIZE", size)
    features, targets, *_ = references.draw_problem(seed, sizes=(9, 1, 7, 0, 5, 4)).tensors
    whole = ClassMoments.from_features(features, targets, 6)
    found = summed(features, targets, batch, 6)
    for name in NAMES:
        torch.testing.assert_close(getattr(found, name), getattr(whole, name), rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("seed", SEEDS)
def test_classes_are_added_as_they_come(seed):
    features, targets, *_ = references.draw_problem(seed).tensors
    order = targets.argsort()
    whole = ClassMoments.from_features(features, targets, int(targets.max()) + 1)
    found = summed(features[order], targets[order], 2)
    assert len(found.counts) == int(targets.max()) + 1
    torch.testing.assert_close(found.means, whole.means, rtol=1e-12, atol=1e-14)


def test_samples_and_batches_are_left_as_they_were():
    features, targets, *_ = references.draw_problem(0).tensors
    before = features.clone()
    summed(features, targets, 3)
    assert torch.equal(features, before)


def test_a_refused_batch_changes_nothing(monkeypatch):
    monkeypatch.setattr(stream, "SIZE", 4)
    features, targets, *_ = references.draw_problem(0).tensors
    moments = MomentSum(features.shape[1], 6)
    moments.add(features, targets)
    before = {name: value.clone() for name, value in vars(moments.total()).items() if name in NAMES}
    wrong = features.clone()
    wrong[-1, 0] = torch.inf
    with pytest.raises(ValueError, match="NaN, infinities"):
        moments.add(wrong, targets)
    for name, value in before.items():
        assert torch.equal(getattr(moments.total(), name), value)


def test_a_coarse_batch_makes_the_whole_stream_coarse():
    features, targets, *_ = references.draw_problem(0).tensors
    moments = MomentSum(features.shape[1])
    moments.add(features, targets)
    moments.add(features.float(), targets)
    assert moments.total().eps.item() == pytest.approx(torch.finfo(torch.float32).eps)


def test_wrong_batches_are_refused_and_an_empty_one_is_not():
    moments = MomentSum(3, 4)
    moments.add(torch.zeros(0, 3), torch.zeros(0, dtype=torch.long))
    with pytest.raises(ValueError, match="no samples"):
        moments.total()
    with pytest.raises(ValueError, match=r"must have shape \(B, 3\), got \(2, 5\)"):
        moments.add(torch.zeros(2, 5), torch.zeros(2, dtype=torch.long))
    with pytest.raises(ValueError, match=r"targets must lie in 0\.\.3"):
        moments.add(torch.zeros(1, 3), torch.tensor([4]))
    with pytest.raises(ValueError, match="NaN"):
        moments.add(torch.full((1, 3), torch.nan), torch.tensor([0]))
