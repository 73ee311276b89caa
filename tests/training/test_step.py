"""Steps: sharpness-aware minimization against its definition, and the moving average of a classifier."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from ncflow.data import AUGMENTATIONS, MIXES, Snapshot, create_augmentation, create_mix, load_batches
from ncflow.geometry import etf_distance
from ncflow.nn import HEADS, LOSSES, PENALTIES, Classifier, create_head, create_loss, create_penalty
from ncflow.nn.penalties import needs_hard_targets
from ncflow.training import (
    Analysis,
    EpochRecord,
    MovingAverage,
    Objective,
    Splits,
    StateFolder,
    create_accelerator,
    create_optimizer,
    evaluate_splits,
    fit,
    misfit,
)


class Normed(nn.Module):
    """Pixels through a batch norm, whose statistics move with every forward in training mode."""

    num_features = 16

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(192, 16), nn.BatchNorm1d(16))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.layers(images)


def make(head: str) -> Classifier:
    torch.manual_seed(0)
    return Classifier(Normed(), create_head(head, 16, 10))


@pytest.fixture(scope="module")
def splits(digits) -> Splits:
    train, test = (load_batches(digits, split, image_size=8, batch_size=64) for split in ("train", "test"))
    return Splits(train, test, digits.class_counts)


@pytest.fixture
def start(splits) -> Callable:
    def start(classifier: Classifier, *, sam_radius: float = 0.0, epochs: int = 1, **options) -> Iterator:
        objective = Objective(create_loss("ce"), sam_radius=sam_radius)
        optimizer = create_optimizer("sgd", classifier.parameters(), lr=0.05, momentum=0.9)
        chosen = options.pop("splits", splits)
        return fit(classifier, chosen, objective, optimizer, epochs=epochs, **options)

    return start


def plain_sam(classifier: Classifier, splits: Splits, radius: float) -> None:
    """One epoch of SGD with momentum by the definition, with copies instead of buffers put back."""
    classifier.train()
    velocity = {name: torch.zeros_like(p) for name, p in classifier.named_parameters()}
    for images, targets in splits.train.shuffled(1):
        nearby = deepcopy(classifier)  # it has the buffers of before this batch
        loss = F.cross_entropy(classifier(images, targets).logits, targets)
        gradients = torch.autograd.grad(loss, list(classifier.parameters()))
        norm = sum(g.square().sum() for g in gradients).sqrt()
        with torch.no_grad():
            for p, g in zip(nearby.parameters(), gradients, strict=True):
                p += radius * g / norm
        nearby.train()
        worst = F.cross_entropy(nearby(images, targets).logits, targets)
        gradients = torch.autograd.grad(worst, list(nearby.parameters()))
        with torch.no_grad():
            for (name, p), g in zip(classifier.named_parameters(), gradients, strict=True):
                velocity[name].mul_(0.9).add_(g)
                p -= 0.05 * velocity[name]


@pytest.mark.parametrize("head", HEADS)
def test_sharpness_aware_steps_follow_the_definition(head, start, splits):
    ours, plain = make(head), make(head)
    list(start(ours, sam_radius=0.1))
    plain_sam(plain, splits, 0.1)
    for (name, tensor), expected in zip(ours.state_dict().items(), plain.state_dict().values(), strict=True):
        torch.testing.assert_close(tensor, expected, rtol=1e-3, atol=1e-4, msg=name)


def test_sharpness_moves_batch_statistics_and_class_means_once_a_step(start):
    sharp, plain = make("nearest_etf"), make("nearest_etf")
    list(start(sharp, sam_radius=0.1)), list(start(plain))
    counts = ("head.num_updates", "backbone.layers.2.num_batches_tracked")
    for name in counts:
        assert torch.equal(sharp.state_dict()[name], plain.state_dict()[name])


def test_a_radius_near_zero_is_training_without_sharpness(start):
    sharp, plain = make("linear"), make("linear")
    list(start(sharp, sam_radius=1e-9)), list(start(plain))
    for tensor, expected in zip(sharp.state_dict().values(), plain.state_dict().values(), strict=True):
        torch.testing.assert_close(tensor, expected, rtol=1e-3, atol=1e-5)


def test_the_moving_average_is_its_recurrence():
    classifier, decay = make("linear"), 0.8
    average = MovingAverage(classifier, decay)
    average.update(classifier)
    expected = {name: p.clone() for name, p in classifier.named_parameters()}
    for step in range(3):
        with torch.no_grad():
            for p in classifier.parameters():
                p += step + 1
        average.update(classifier)
        expected = {n: decay * expected[n] + (1 - decay) * p for n, p in classifier.named_parameters()}
    for name, p in average.classifier.named_parameters():
        torch.testing.assert_close(p, expected[name])


def test_the_average_is_measured_and_training_stays_the_same(start, splits):
    alone, averaged = make("linear"), make("linear")
    list(start(alone, epochs=2))
    average = MovingAverage(averaged, 0.9)
    *_, last = start(averaged, epochs=2, analysis=Analysis(average=average))
    for name, tensor in alone.state_dict().items():
        assert torch.equal(tensor, averaged.state_dict()[name]), name
    measured = {split: result.metrics for split, result in evaluate_splits(average.classifier, splits).items()}
    assert {split: result.metrics for split, result in last.analysis.items()} == measured
    assert measured != {split: result.metrics for split, result in evaluate_splits(alone, splits).items()}


def test_the_average_of_a_nearest_etf_head_is_an_etf(start):
    classifier = make("nearest_etf")
    average = MovingAverage(classifier, 0.9)
    list(start(classifier, analysis=Analysis(average=average)))
    head = average.classifier.eval().head
    assert etf_distance(head.weight.double()).item() == pytest.approx(0, abs=1e-9)
    assert torch.equal(head.num_updates, classifier.head.num_updates)


@pytest.mark.parametrize("decay", [0.0, 1.0, -0.5])
def test_a_decay_out_of_range_is_refused(decay):
    with pytest.raises(ValueError, match="decay in"):
        MovingAverage(make("linear"), decay)


METHODS: dict[str, dict[str, Any]] = {
    "sam": {"sam_radius": 0.05},
    "ema": {"average": True},
    **{mix: {"mix": mix} for mix in MIXES},
}
ALL: dict[str, Any] = {"sam_radius": 0.05, "average": True, "mix": "remix", "loss": "vs"}
ALL["augment"] = ["random_resized_crop", "flip", "rand_augment", "erasing"]
ALL["penalties"] = [name for name in PENALTIES if not needs_hard_targets(name)]  # a mix has none
OTHERS: dict[str, dict[str, Any]] = {
    **{f"loss {loss}": {"loss": loss} for loss in LOSSES},
    **{f"penalty {penalty}": {"penalties": [penalty]} for penalty in PENALTIES},
    **{f"augmentation {name}": {"augment": name} for name in AUGMENTATIONS},
    "all together": ALL,
}


def begin(head: str, digits: Snapshot, *, epochs: int, **options: Any) -> tuple[nn.Module, Iterator[EpochRecord]]:
    """A training with some of the methods: the module that it ends with, and its epochs."""
    chosen = {name: options.pop(name, default) for name, default in DEFAULTS.items()}
    classifier, counts = make(head), digits.class_counts
    average = MovingAverage(classifier, 0.9) if chosen["average"] else None
    mix, augment = create_mix(chosen["mix"], counts), create_augmentation(chosen["augment"], image_size=8)
    train = load_batches(digits, "train", image_size=8, batch_size=64, mix=mix, augment=augment)
    test = load_batches(digits, "test", image_size=8, batch_size=64)
    penalties = [(0.1, create_penalty(name, counts)) for name in chosen["penalties"]]
    criterion = create_loss(chosen["loss"], counts)
    objective = Objective(criterion, penalties=penalties, sam_radius=chosen["sam_radius"])
    optimizer = create_optimizer("sgd", classifier.parameters(), lr=0.05, momentum=0.9)
    analysis = Analysis(average=average)
    splits = Splits(train, test, counts)
    return average or classifier, fit(
        classifier, splits, objective, optimizer, epochs=epochs, analysis=analysis, **options
    )


DEFAULTS = {"average": False, "mix": "none", "augment": "none", "penalties": [], "loss": "ce", "sam_radius": 0.0}


@pytest.mark.parametrize(
    ("head", "kind"),
    [(head, kind) for head in HEADS for kind in [*METHODS, "all together"]]
    + [("nearest_etf", kind) for kind in OTHERS if kind != "all together"],
)
def test_a_stopped_training_resumes_with_the_same_bits(kind, head, digits, tmp_path):
    method = (METHODS | OTHERS)[kind]
    whole, records = begin(head, digits, epochs=3, **method)
    losses = [record.loss for record in records]
    states = StateFolder(tmp_path)
    _, records = begin(head, digits, epochs=3, **method)
    states.write(next(records).state())
    records.close()
    again, records = begin(head, digits, epochs=3, resume=states.newest(create_accelerator("cpu")), **method)
    assert [record.loss for record in records] == losses[1:]
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name


@pytest.mark.parametrize("kind", [*METHODS, *OTHERS])
def test_every_method_trains_in_bfloat16(kind, digits):
    module, records = begin("nearest_etf", digits, epochs=1, precision="bf16", **(METHODS | OTHERS)[kind])
    (record,) = records
    assert 0 < record.loss < 30
    assert all(parameter.dtype == torch.float32 for parameter in module.parameters())


def test_a_state_without_the_average_does_not_fit(start):
    classifier = make("linear")
    state = next(start(classifier)).state()
    optimizer = create_optimizer("sgd", classifier.parameters())
    assert misfit(state, classifier, optimizer) is None
    assert misfit(state, classifier, optimizer, averaged=True) == "it lacks average"
