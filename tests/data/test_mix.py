"""Mixing: images and shares by their definitions, the same for any number of processes, nothing at share 1."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from ncflow.data import MIXES, Share, create_mix, load_batches
from ncflow.data.mix import soft_targets
from ncflow.nn import LOSSES, create_loss

COUNTS = [100, 10, 30]
B, S = 6, 8


def batch(seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(B, 3, S, S, generator=generator, dtype=torch.float64)
    partner = torch.randperm(B, generator=generator)
    return images, torch.arange(B) % 3, partner, torch.rand(3, generator=generator)


def quantile_of_beta_1(uniform: Tensor) -> float:
    """Beta(1, 1) is the uniform distribution."""
    return uniform[0].item()


def plain_mixup(images, targets, partner, uniform):
    weight = quantile_of_beta_1(uniform)
    return torch.stack([weight * images[i] + (1 - weight) * images[j] for i, j in enumerate(partner)]), [weight] * B


def plain_cutmix(images, targets, partner, uniform):
    side, (row, column) = S * math.sqrt(1 - quantile_of_beta_1(uniform)), (int(u * S) for u in uniform[1:].tolist())
    half, mixed, taken = round(side / 2), images.clone(), 0
    for y in range(S):
        for x in range(S):
            if row - half <= y < row + half and column - half <= x < column + half:
                taken += 1
                for i, j in enumerate(partner):
                    mixed[i, :, y, x] = images[j, :, y, x]
    return mixed, [1 - taken / S**2] * B


def plain_remix(images, targets, partner, uniform):
    mixed, (weight, *_) = plain_mixup(images, targets, partner, uniform)
    shares = []
    for i, j in enumerate(partner):
        ratio = COUNTS[targets[i]] / COUNTS[targets[j]]
        shares.append(0 if ratio >= 3 and weight < 0.5 else 1 if ratio <= 1 / 3 and 1 - weight < 0.5 else weight)
    return mixed, shares


PLAIN = {"mixup": plain_mixup, "cutmix": plain_cutmix, "remix": plain_remix}


@pytest.mark.parametrize("name", MIXES)
@pytest.mark.parametrize("seed", range(5))
def test_a_mix_is_its_definition(name, seed):
    images, share = create_mix(name, COUNTS)(*batch(seed))
    expected, shares = PLAIN[name](*batch(seed))
    torch.testing.assert_close(images, expected)
    assert share.expand(B).tolist() == pytest.approx(shares, abs=1e-6)


@pytest.mark.parametrize("name", MIXES)
def test_an_image_mixed_with_itself_stays_the_same(name):
    images, targets, _, uniform = batch()
    mixed, share = create_mix(name, COUNTS)(images, targets, torch.arange(B), uniform)
    torch.testing.assert_close(mixed, images)
    soft = soft_targets(targets, targets, share, 3)
    torch.testing.assert_close(soft, torch.nn.functional.one_hot(targets, 3).to(soft.dtype))


@pytest.mark.parametrize("name", LOSSES)
def test_the_loss_of_mixed_targets_is_the_mixed_loss(name):
    logits = torch.randn(B, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    one, other = torch.arange(B) % 3, (torch.arange(B) + 1) % 3
    loss, share = create_loss(name, COUNTS), torch.tensor(0.3, dtype=torch.float64)
    expected = share * loss(logits, one) + (1 - share) * loss(logits, other)
    torch.testing.assert_close(loss(logits, soft_targets(one, other, share, 3)), expected)


@pytest.mark.parametrize("name", MIXES)
@pytest.mark.parametrize("num_processes", [2, 3])
def test_any_number_of_processes_mixes_the_same_pictures(digits, name, num_processes):
    options = {"image_size": 8, "batch_size": 50, "augment": ["crop", "erasing"]}
    options["mix"] = create_mix(name, digits.class_counts)
    alone = load_batches(digits, "train", **options).shuffled(1)
    parts = [load_batches(digits, "train", share=Share(i, num_processes), **options) for i in range(num_processes)]
    for whole, *shares in zip(alone, *(part.shuffled(1) for part in parts), strict=True):
        torch.testing.assert_close(torch.cat([images for images, _ in shares]), whole[0])
        torch.testing.assert_close(torch.cat([targets for _, targets in shares]), whole[1])


def test_epochs_mix_differently_and_seeds_repeat_them(digits):
    def first(epoch: int, seed: int = 0) -> Tensor:
        mix = create_mix("mixup", digits.class_counts)
        return next(load_batches(digits, "train", image_size=8, seed=seed, mix=mix).shuffled(epoch))[1]

    assert torch.equal(first(1), first(1))
    assert not torch.equal(first(1), first(2)) and not torch.equal(first(1), first(1, seed=1))


def keep_own(images, targets, partner, uniform):
    """A user's mix that leaves every sample its own."""
    return images[: len(partner)], torch.ones(())


def test_a_share_of_one_gives_the_batches_without_mixing(digits):
    options = {"image_size": 8, "augment": "crop_flip"}
    plain = load_batches(digits, "train", **options).shuffled(1)
    for mixed, expected in zip(load_batches(digits, "train", mix=keep_own, **options).shuffled(1), plain, strict=True):
        assert torch.equal(mixed[0], expected[0])
        assert torch.equal(mixed[1], expected[1]) and mixed[1].dtype == torch.long


@pytest.mark.parametrize(
    ("name", "options", "reason"),
    [
        ("mixpu", {}, "Did you mean 'mixup'"),
        ("mixup", {"alpha": 0.0}, "alpha > 0"),
        ("cutmix", {"alpha": -1.0}, "alpha > 0"),
        ("mixup", {"alpha": float("inf")}, r"λ ~ Beta\(alpha, alpha\) lies in \(0, 1\), got inf"),
        ("mixup", {"alpha": "much"}, "option alpha of mix 'mixup' must be a number, got 'much'"),
        ("mixup", {"alpha": [1.0]}, "option alpha of mix 'mixup' must be a number, got \\[1.0\\]"),
        ("mixup", {"alpha": True}, "must be a number, got True"),
        ("remix", {"kappa": 0.5}, "kappa >= 1"),
        ("remix", {"tau": 1.5}, "tau in"),
        ("none", {"alpha": 1.0}, "mix 'none' takes no options"),
    ],
)
def test_a_wrong_mix_or_option_is_refused(name, options, reason):
    with pytest.raises(ValueError, match=reason):
        create_mix(name, COUNTS, **options)


@pytest.mark.parametrize("share", [1.5, -0.1, float("nan"), [0.5] * 3])
def test_a_mix_of_ones_own_with_a_wrong_share_is_refused(share, monkeypatch):
    def mine(images, targets, partner, uniform):
        return images[: len(partner)], torch.tensor(share)

    monkeypatch.setitem(MIXES, "mine", mine)
    with pytest.raises(ValueError, match=r"mix 'mine' must return images .* and shares in \[0, 1\]"):
        create_mix("mine", COUNTS)
