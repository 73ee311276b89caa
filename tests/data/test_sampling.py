"""The order of an epoch: what each sampling promises of every batch, for many splits, and nothing left to chance."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from references import draw_class_balanced, draw_stratified

from ncflow.data import Share, load_batches
from ncflow.data.loaders import batch_sizes
from ncflow.data.sampling import SAMPLINGS, class_balanced, shuffled, stratified

COUNTS = {
    "tail": [142, 92, 59, 38, 25, 16, 10, 6, 4, 2],
    "balanced": [30] * 6,
    "step": [50] * 3 + [1] * 3,
    "two": [3, 2],
}
ONCE = ["shuffled", "stratified"]


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def labels(counts: list[int], seed: int = 0) -> torch.Tensor:
    """Targets with so many of each class, in random order."""
    targets = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    return targets[torch.randperm(len(targets), generator=generator(seed))]


def batch_counts(targets: torch.Tensor, order: torch.Tensor, sizes: list[int]) -> torch.Tensor:
    """Samples of each class in each batch (M,K)."""
    num_classes = int(targets.max()) + 1
    return torch.stack([targets[batch].bincount(minlength=num_classes) for batch in order.split(sizes)])


@pytest.mark.parametrize("counts", COUNTS.values(), ids=COUNTS)
@pytest.mark.parametrize("name", SAMPLINGS)
def test_an_epoch_has_the_size_of_the_split_in_random_order(name, counts):
    targets = labels(counts)
    sizes = batch_sizes(len(targets), 64, 1)
    first, again, other = (SAMPLINGS[name](targets, sizes, generator(seed)) for seed in (0, 0, 1))
    assert first.shape == targets.shape and first.min() >= 0 and first.max() < len(targets)
    assert torch.equal(first, again)
    assert len(targets) < 6 or not torch.equal(first, other)


@pytest.mark.parametrize("counts", COUNTS.values(), ids=COUNTS)
@pytest.mark.parametrize("name", ONCE)
@pytest.mark.parametrize("seed", range(3))
def test_every_sample_comes_once(name, counts, seed):
    targets = labels(counts)
    order = SAMPLINGS[name](targets, batch_sizes(len(targets), 32, 1), generator(seed))
    assert order.sort().values.tolist() == list(range(len(targets)))


@pytest.mark.parametrize("counts", COUNTS.values(), ids=COUNTS)
@pytest.mark.parametrize("num_batches", [1, 2, 5])
@pytest.mark.parametrize("seed", range(3))
def test_batches_of_one_size_hold_the_share_of_each_class_rounded(counts, num_batches, seed):
    counts = [num_batches * counts[0], *counts[1:]]
    counts[0] -= sum(counts) % num_batches
    targets = labels(counts)
    sizes = [len(targets) // num_batches] * num_batches
    share = torch.tensor(counts) / num_batches
    held = batch_counts(targets, stratified(targets, sizes, generator(seed)), sizes)
    assert ((share.floor() <= held) & (held <= share.ceil())).all()


@pytest.mark.parametrize("counts", COUNTS.values(), ids=COUNTS)
@pytest.mark.parametrize("batch_size", [2, 16, 50, 64, 1000])
@pytest.mark.parametrize("seed", range(3))
def test_a_last_batch_of_another_size_costs_under_two_samples_per_class(counts, batch_size, seed):
    targets = labels(counts)
    sizes = batch_sizes(len(targets), batch_size, 1)
    share = torch.tensor(sizes).unsqueeze(1) * torch.tensor(counts) / len(targets)
    held = batch_counts(targets, stratified(targets, sizes, generator(seed)), sizes)
    assert held.sum(1).tolist() == sizes
    assert (held - share).abs().max() < 2


def test_shuffled_batches_miss_the_share_by_far_more():
    """Else the test above could not fail."""
    targets = labels([500, 500])
    sizes = [100] * 10
    held = batch_counts(targets, shuffled(targets, sizes, generator(0)), sizes)
    assert (held - 50).abs().max() > 4


def test_a_rare_class_may_come_in_any_batch():
    targets = labels([96, 2, 2])
    sizes = [20] * 5
    met = Counter()
    for seed in range(300):
        held = batch_counts(targets, stratified(targets, sizes, generator(seed)), sizes)
        met.update((k, i) for k in (1, 2) for i in range(5) if held[i, k])
    assert all(80 < met[k, i] < 160 for k in (1, 2) for i in range(5))  # 120 expected


@pytest.mark.parametrize("num_processes", [2, 4])
def test_the_part_of_every_process_holds_all_classes(digits, num_processes):
    for rank in range(num_processes):
        share = {"share": Share(rank, num_processes)}
        batches = load_batches(digits, "train", image_size=8, batch_size=128, sampling="stratified", **share)
        parts = [targets for epoch in range(1, 20) for _, targets in batches.shuffled(epoch)]
        assert torch.cat(parts).unique().tolist() == list(range(10))
        assert all(len(targets.unique()) > 4 for targets in parts if len(targets) >= 32)


@pytest.mark.parametrize("seed", range(3))
def test_every_class_is_drawn_equally_often_whatever_its_size(seed):
    targets = labels([9000, 900, 90, 10])
    order = class_balanced(targets, [10000], generator(seed))
    drawn = targets[order].bincount(minlength=4)
    assert (drawn - 2500).abs().max() < 4 * (10000 * 3 / 16) ** 0.5
    held = batch_counts(targets, order, [100] * 100).double()
    assert (held.mean(0) - 25).abs().max() < 2 and (held.std(0) - (100 * 3 / 16) ** 0.5).abs().max() < 1.5


def test_a_sample_comes_again_only_when_all_of_its_class_have_come():
    targets = labels([200, 50, 7])
    order = class_balanced(targets, [257], generator(0))
    times = order.bincount(minlength=257)
    for k in range(3):
        of_class = times[targets == k]
        assert of_class.max() - of_class.min() <= 1
    assert times[targets == 0].max() == 1 and times[targets == 2].min() > 5


def test_a_class_without_a_sample_is_not_drawn():
    targets = torch.tensor([0, 0, 0, 2, 2, 2])
    assert set(targets[class_balanced(targets, [6], generator(1))].tolist()) <= {0, 2}


@pytest.mark.parametrize("name", SAMPLINGS)
def test_one_process_and_many_draw_the_same(digits, name):
    options = {"image_size": 8, "batch_size": 48, "sampling": name, "seed": 4, "augment": "crop_flip"}
    alone = list(load_batches(digits, "train", **options).shuffled(2))
    parts = [load_batches(digits, "train", share=Share(i, 4), **options).shuffled(2) for i in range(4)]
    for (images, targets), *shares in zip(alone, *parts, strict=True):
        assert torch.equal(torch.cat([part for part, _ in shares]), images)
        assert torch.equal(torch.cat([part for _, part in shares]), targets)


def test_a_sample_that_comes_twice_is_augmented_twice(digits):
    batches = load_batches(digits, "train", image_size=8, batch_size=None, sampling="class_balanced", augment="crop")
    ((images, targets),) = batches.shuffled(1)
    rarest = images[targets == 9]
    assert len(rarest) > 20 and len(rarest.unique(dim=0)) > 10  # two samples, 81 shifts


@pytest.mark.parametrize("counts", COUNTS.values(), ids=COUNTS)
@pytest.mark.parametrize("seed", range(3))
def test_the_samplings_equal_an_obvious_loop(counts, seed):
    targets = labels(counts, seed)
    sizes = batch_sizes(len(targets), 32, 1)
    for fast, slow in ((stratified, draw_stratified), (class_balanced, draw_class_balanced)):
        assert fast(targets, sizes, generator(seed)).tolist() == slow(targets.tolist(), sizes, generator(seed))


def test_an_unknown_sampling_is_refused(digits):
    with pytest.raises(ValueError, match="unknown sampling 'stratifed'. Did you mean 'stratified'"):
        load_batches(digits, "train", sampling="stratifed")
