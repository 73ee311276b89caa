"""Steps in parts: the step of the large batch, for every head, loss, penalty and mix; batch norms see the parts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from itertools import islice

import pytest
import references
import torch
from torch import nn
from torch.nn import functional as F

from ncflow.data import MIXES, create_mix, load_batches
from ncflow.nn import HEADS, LOSSES, PENALTIES, Classifier, create_head, create_loss, create_penalty
from ncflow.training import (
    Analysis,
    EpochRecord,
    Objective,
    Plan,
    Splits,
    StateFolder,
    create_accelerator,
    create_optimizer,
    fit,
)
from ncflow.training.accumulation import CachedForward, first_row, interleaved
from ncflow.training.state import get_randomness

CLOSE = {"rtol": 1e-9, "atol": 1e-11}


class Double(nn.Flatten):
    """Pictures as vectors in float64, so that only mathematics can differ."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return super().forward(images).double()


def flat() -> nn.Module:
    """A backbone without batch statistics."""
    return nn.Sequential(Double(), nn.Linear(3 * 8 * 8, 16), nn.ReLU())


class Noisy(nn.Sequential):
    """A backbone with dropout, running statistics, and a buffer that every forward changes and uses."""

    def __init__(self) -> None:
        spectral = nn.utils.parametrizations.spectral_norm(nn.Linear(3 * 8 * 8, 16))
        super().__init__(Double(), spectral, nn.BatchNorm1d(16), nn.Dropout(0.3))


class Watched(nn.Module):
    """A backbone that notes how many pictures each forward has."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.sizes = flat(), []

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.sizes.append(len(images))
        return self.body(images)


@pytest.fixture(scope="module")
def odd(digits) -> Splits:
    """Batches of 45 samples, which four parts cannot share evenly."""
    train, test = (load_batches(digits, split, image_size=8, batch_size=45) for split in ("train", "test"))
    return Splits(train, test, digits.class_counts)


@pytest.fixture
def train(odd, digits) -> Callable:
    def train(accumulate: int, *, head="linear", backbone=flat, loss="ce", mix="none", **options) -> Iterator:
        torch.manual_seed(0)
        classifier = Classifier(backbone(), create_head(head, 16, 10)).double()
        counts = digits.class_counts
        splits = replace(odd, train=replace(odd.train, mix=create_mix(mix, counts)))
        penalties = [(0.1, create_penalty(name, counts)) for name in options.pop("penalties", [])]
        criterion = create_loss(loss, counts, reweight=options.pop("reweight", None))
        plan = Plan(accumulate=accumulate, max_steps=options.pop("max_steps", None))
        objective = Objective(criterion, penalties=penalties, sam_radius=options.pop("sam_radius", 0.0))
        optimizer = create_optimizer("sgd", classifier.parameters(), lr=0.05)
        return classifier, fit(
            classifier, splits, objective, optimizer, epochs=3, plan=plan, analysis=Analysis(every=9), **options
        )

    return train


CASES = {
    **{f"head {head}": {"head": head} for head in HEADS},
    **{f"loss {loss}": {"loss": loss} for loss in LOSSES},
    **{f"mix {mix}": {"head": "nearest_etf", "mix": mix} for mix in MIXES},
    **{f"penalty {name}": {"penalties": [name]} for name in PENALTIES},
    "re-weighted": {"loss": "ce", "reweight": 0.99},
    "sharpness": {"head": "nearest_etf", "sam_radius": 0.05},
}


def after(epochs: int, trained: tuple[Classifier, Iterator[EpochRecord]]) -> tuple[dict, EpochRecord]:
    """State and record after some epochs, before the first analysis."""
    classifier, records = trained
    *_, last = islice(records, epochs)
    return classifier.state_dict(), last


@pytest.mark.parametrize("case", CASES)
def test_steps_in_parts_are_those_of_the_large_batch(case, train):
    (ours, our_last), (theirs, their_last) = (after(1, train(number, **CASES[case])) for number in (4, 1))
    assert our_last.loss == pytest.approx(their_last.loss, rel=1e-9) and our_last.accuracy == their_last.accuracy
    torch.testing.assert_close(ours, theirs, **CLOSE)


def test_no_forward_of_the_backbone_has_more_than_a_part(train):
    classifier, records = train(4, backbone=Watched)
    next(records)
    assert classifier.backbone.sizes[:16] == [12, 11, 11, 11] * 4  # twice a step
    assert max(classifier.backbone.sizes) == 12


def test_the_gradient_of_a_noisy_net_is_that_of_one_graph_over_all_parts():
    """Dropout, batch norms and buffers that move: the second pass repeats the first, and leaves what it left."""
    torch.manual_seed(0)
    images, targets = torch.randn(23, 3, 8, 8, dtype=torch.float64), torch.arange(23) % 3
    ours, theirs = Noisy().double(), Noisy().double()
    theirs.load_state_dict(ours.state_dict())
    rows = interleaved(4, first=3)

    def loss(features: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(features - features.mean(0), targets)  # no sum over samples

    torch.manual_seed(1)
    expected = references.gradients_of_parts(theirs, images, rows, loss)
    after = get_randomness()["torch"]
    torch.manual_seed(1)
    cached = CachedForward(ours, images, rows, nullcontext)
    loss(cached.features).backward()
    cached.backward()
    assert torch.equal(get_randomness()["torch"], after)
    for (name, parameter), gradient in zip(ours.named_parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, msg=name, **CLOSE)
    for name, tensor in theirs.state_dict().items():
        assert torch.equal(ours.state_dict()[name], tensor), name


def test_batch_norms_see_parts_and_move_once_for_each(train):
    classifier, records = train(3, backbone=lambda: nn.Sequential(flat(), nn.BatchNorm1d(16)), max_steps=2)
    next(records)
    assert classifier.backbone[1].num_batches_tracked == 3 * 2


def test_a_backbone_that_does_not_learn_runs_once(train, splits):
    classifier, records = train(4, backbone=Watched)
    classifier.backbone.requires_grad_(False)
    before = classifier.head.weight.detach().clone()
    next(records)
    assert sum(classifier.backbone.sizes) == splits["train"].num_samples
    assert not torch.equal(classifier.head.weight, before)


@pytest.mark.parametrize("head", HEADS)
def test_a_stopped_training_in_parts_resumes_with_the_same_bits(head, train, tmp_path):
    options = {"head": head, "backbone": Noisy}
    whole, last = after(2, train(3, **options))
    states = StateFolder(tmp_path)
    states.write(next(train(3, **options)[1]).state())
    torch.manual_seed(9)
    again, resumed = after(1, train(3, **options, resume=states.newest(create_accelerator("cpu"))))
    assert resumed.loss == last.loss and resumed.epoch == last.epoch == 2
    for name, tensor in whole.items():
        assert torch.equal(again[name], tensor), name


@pytest.mark.parametrize(("size", "processes", "number"), [(45, 1, 4), (7, 1, 3), (3, 1, 1), (1, 1, 1), (45, 8, 2)])
def test_every_part_has_two_samples_of_each_process(size, processes, number):
    assert Plan(accumulate=4).num_parts(size, processes) == number


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_a_part_has_the_same_samples_for_any_number_of_processes(processes):
    whole = torch.arange(23)
    shares = whole.tensor_split(processes)
    for part in range(4):
        rows = [share[interleaved(4, first_row(23, rank, processes))[part]] for rank, share in enumerate(shares)]
        assert torch.equal(torch.cat(rows), whole[part::4])


def test_parts_train_in_bfloat16_near_the_large_batch(few, whole):
    losses = {}
    for number in (1, 3):
        classifier = few()
        objective, optimizer = Objective(create_loss("ce")), create_optimizer("sgd", classifier.parameters(), lr=0.05)
        options = {"plan": Plan(accumulate=number), "analysis": Analysis(every=9), "precision": "bf16"}
        losses[number] = next(fit(classifier, whole, objective, optimizer, epochs=2, **options)).loss
        assert all(parameter.dtype == torch.float32 for parameter in classifier.parameters())
    assert losses[3] == pytest.approx(losses[1], rel=1e-2)
