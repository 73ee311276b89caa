"""Label smoothing of other losses: their value on smoothed targets, also mixed and weighed; refused without meaning."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from ncflow.lookup import fact
from ncflow.nn import LOSSES, create_loss

COUNTS = [40, 10, 3, 1]
SMOOTHED = [name for name, row in LOSSES.items() if not fact(row, "unsmoothed")]
OTHERS = [name for name, row in LOSSES.items() if fact(row, "unsmoothed")]


@pytest.fixture
def batch() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Logits, classes, and shares of classes as mixing makes them; in float64."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(12, 4, dtype=torch.float64, generator=generator)
    shares = torch.rand(12, 4, dtype=torch.float64, generator=generator)
    return logits, torch.arange(12) % 4, shares / shares.sum(1, keepdim=True)


@pytest.mark.parametrize("name", SMOOTHED)
def test_a_smoothed_loss_is_its_mean_over_classes_by_their_shares(name, batch):
    logits, targets, _ = batch
    plain, smoothed = create_loss(name, COUNTS), create_loss(name, COUNTS, label_smoothing=0.2)
    every = sum(plain(logits, torch.full_like(targets, k)) for k in range(4)) / 4
    torch.testing.assert_close(smoothed(logits, targets), 0.8 * plain(logits, targets) + 0.2 * every)


@pytest.mark.parametrize("name", SMOOTHED)
def test_classes_and_their_shares_give_the_same(name, batch):
    logits, targets, _ = batch
    smoothed = create_loss(name, COUNTS, label_smoothing=0.2)
    torch.testing.assert_close(smoothed(logits, F.one_hot(targets, 4).double()), smoothed(logits, targets))


def test_smoothed_cross_entropy_is_the_loss_of_that_name(batch):
    logits, targets, mixed = batch
    ours, theirs = create_loss("ce", label_smoothing=0.3), create_loss("label_smoothing", smoothing=0.3)
    for each in (targets, mixed):
        torch.testing.assert_close(ours(logits, each), theirs(logits, each))


@pytest.mark.parametrize("name", ["ce", "focal"])
def test_a_class_weight_multiplies_the_smoothed_loss_of_its_samples(name, batch):
    logits, targets, mixed = batch
    weighed = create_loss(name, COUNTS, reweight=0.9, label_smoothing=0.2)
    smoothed = create_loss(name, COUNTS, label_smoothing=0.2)
    weights = [float(create_loss("ce", COUNTS, reweight=0.9)(torch.zeros(1, 4), torch.tensor([k]))) for k in range(4)]
    weights = torch.tensor(weights, dtype=torch.float64) / torch.tensor(4.0).log()
    each = torch.stack([smoothed(z[None], y[None]) for z, y in zip(logits, targets, strict=True)])
    torch.testing.assert_close(weighed(logits, targets), (weights[targets] * each).mean(), rtol=1e-6, atol=0)
    torch.testing.assert_close(weighed(logits, F.one_hot(targets, 4).double()), weighed(logits, targets))
    assert weighed(logits, mixed).isfinite()


@pytest.mark.parametrize("name", SMOOTHED)
def test_no_smoothing_changes_no_bit(name, batch):
    logits, targets, mixed = batch
    for each in (targets, mixed):
        assert torch.equal(
            create_loss(name, COUNTS, label_smoothing=0.0)(logits, each), create_loss(name, COUNTS)(logits, each)
        )


@pytest.mark.parametrize("name", OTHERS)
def test_a_loss_that_has_no_labels_to_smooth_says_why(name):
    with pytest.raises(ValueError, match=rf"loss '{name}' takes no label smoothing, got 0.1: .*(try|set) train.loss"):
        create_loss(name, COUNTS, label_smoothing=0.1)
    create_loss(name, COUNTS, label_smoothing=0.0)


@pytest.mark.parametrize("wrong", [-0.1, 1.0, float("nan")])
def test_a_smoothing_out_of_range_is_refused(wrong):
    with pytest.raises(ValueError, match=r"label smoothing lies in \[0, 1\)"):
        create_loss("ce", label_smoothing=wrong)
