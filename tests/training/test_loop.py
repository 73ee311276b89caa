"""The loop: reproducible to the last bit, measured where it says, stopped by what is not finite; real digits."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import fields, replace

import pytest
import torch
from torch import Tensor, nn

from ncflow.data import Batches, load_batches
from ncflow.nn import HEADS, Classifier, create_loss, create_penalty
from ncflow.training import (
    SCHEDULES,
    Analysis,
    Diverged,
    EpochRecord,
    Objective,
    Splits,
    create_optimizer,
    evaluate_splits,
    fit,
)


@pytest.fixture
def start(whole):
    """fit on the digits, with what a test does not care about filled in."""

    def start(classifier: Classifier, *, epochs: int = 3, lr: float = 0.05, **options: object) -> Iterator[EpochRecord]:
        """Options of Splits, Objective, Analysis and fit by their names; `analyze_freq` is Analysis.every."""

        def take(kind: type) -> dict[str, object]:
            return {field.name: options.pop(field.name) for field in fields(kind) if field.name in options}

        measured = Analysis(every=options.pop("analyze_freq", 1))
        factors = options.pop("penalties", {})
        penalties = [(factor, create_penalty(name, whole.class_counts)) for name, factor in factors.items()]
        objective = Objective(**{"criterion": create_loss("ce"), "penalties": penalties} | take(Objective))
        optimizer = create_optimizer("sgd", classifier.parameters(), lr=lr)
        chosen = replace(whole, **take(Splits))
        return fit(classifier, chosen, objective, optimizer, epochs=epochs, analysis=measured, **options)

    return start


def numbers(record: EpochRecord) -> dict:
    """What two equal runs share: everything but the time they took."""
    metrics = {split: result.metrics for split, result in record.analysis.items()}
    return {"epoch": record.epoch, "lr": record.lr, "loss": record.loss, "accuracy": record.accuracy, **metrics}


@pytest.mark.parametrize("head", HEADS)
def test_the_same_seed_gives_the_same_numbers_to_the_last_bit(head, start, make_classifier):
    first, second = (make_classifier(head) for _ in range(2))
    records = list(start(first, epochs=2))
    torch.manual_seed(123)  # once it is built and the order of samples seeded, nothing is random any more
    again = list(start(second, epochs=2))
    assert [numbers(record) for record in records] == [numbers(record) for record in again]
    for name, tensor in first.state_dict().items():
        assert torch.equal(second.state_dict()[name], tensor), name
    assert numbers(next(start(make_classifier(head, seed=1)))) != numbers(records[0])


@pytest.mark.parametrize("head", HEADS)
def test_the_loss_falls(head, start, make_classifier):
    temperature = 5.0 if head != "linear" else None
    records = list(start(make_classifier(head, temperature=temperature), epochs=5, analyze_freq=10))
    assert records[-1].loss < 0.7 * records[0].loss
    assert records[-1].accuracy > records[0].accuracy


@pytest.mark.parametrize(
    ("epochs", "analyze_freq", "expected"), [(5, 2, [2, 4, 5]), (4, 2, [2, 4]), (3, 1, [1, 2, 3]), (2, 50, [2])]
)
def test_analyses_come_every_so_many_epochs_and_at_the_last(start, few, epochs, analyze_freq, expected):
    records = list(start(few(), epochs=epochs, analyze_freq=analyze_freq))
    assert [record.epoch for record in records] == list(range(1, epochs + 1))
    assert [record.epoch for record in records if record.analysis] == expected
    assert all(set(record.analysis) == {"train", "test"} for record in records if record.analysis)


def test_loss_and_accuracy_are_means_over_the_samples_as_training_saw_them(start, few, splits):
    """At learning rate zero nothing moves and no batch norm is there: the loss of the epoch is that of the data."""
    classifier = few()
    record = next(start(classifier, lr=0.0))
    images = torch.cat([images for images, _ in splits["train"].ordered()])
    with torch.no_grad():
        logits, _ = classifier(images)
    targets = splits["train"].targets
    assert record.loss == pytest.approx(nn.functional.cross_entropy(logits, targets).item(), rel=1e-5)
    assert record.accuracy == pytest.approx((logits.argmax(1) == targets).double().mean().item())
    assert record.images_per_second == pytest.approx(len(targets) / record.seconds)


def test_the_rate_follows_the_schedule_from_the_first_epoch_on(start, few):
    for name, schedule in SCHEDULES.items():
        records = start(few(), epochs=4, lr=0.02, schedule=schedule, analyze_freq=9)
        rates = [record.lr for record in records]
        assert rates == pytest.approx([0.02 * schedule(epoch / 4) for epoch in range(4)]), name


def test_a_scheduled_rate_is_the_rate_of_the_steps(start, few):
    """A factor of zero in the second epoch: nothing moves."""
    classifier = few()
    records = start(classifier, epochs=2, schedule=lambda progress: float(progress == 0), analyze_freq=9)
    before = classifier.head.weight.detach().clone()
    next(records)
    moved = classifier.head.weight.detach().clone()
    next(records)
    assert not torch.equal(moved, before)
    assert torch.equal(classifier.head.weight, moved)


def test_the_drift_penalty_lowers_the_drift(start, few):
    drifts = {}
    for weight in (0.0, 1.0):
        *_, last = start(few(), epochs=5, penalties={"drift": weight}, analyze_freq=9)
        drifts[weight] = last.analysis["train"].metrics["drift/norm"]
    assert drifts[1.0] < 0.5 * drifts[0.0]


def test_every_epoch_has_an_order_of_its_own(start, few, monkeypatch):
    epochs, shuffled = [], Batches.shuffled
    monkeypatch.setattr(Batches, "shuffled", lambda self, epoch: epochs.append(epoch) or shuffled(self, epoch))
    list(start(few(), epochs=3))
    assert epochs == [1, 2, 3]


def test_a_classifier_in_eval_mode_trains_as_any_other(start, make_classifier):
    loss = next(start(make_classifier("nearest_etf"))).loss
    assert next(start(make_classifier("nearest_etf").eval())).loss == loss


def test_whoever_consumes_the_records_may_stop(start, few):
    classifier = few()
    records = start(classifier, epochs=100)
    assert next(records).epoch == 1
    weight = classifier.head.weight.detach().clone()
    records.close()
    assert torch.equal(classifier.head.weight, weight)
    assert list(records) == []


def test_nothing_happens_before_the_first_record_is_asked_for(start, few):
    classifier = few()
    weight = classifier.head.weight.detach().clone()
    start(classifier)
    assert torch.equal(classifier.head.weight, weight)


def test_the_test_split_is_only_measured(start, few, splits, digits):
    """Another test split changes the analysis of it and nothing else."""
    other = replace(splits["test"], targets=splits["test"].targets.flip(0))
    ours, theirs = few(), few()
    first, second = (list(start(c, epochs=2, test=t)) for c, t in ((ours, splits["test"]), (theirs, other)))
    for a, b in zip(first, second, strict=True):
        assert a.analysis["train"].metrics == b.analysis["train"].metrics
        assert a.analysis["test"].metrics != b.analysis["test"].metrics
        assert (a.loss, a.accuracy) == (b.loss, b.accuracy)


def test_a_validation_part_is_only_measured(start, few, splits):
    ours, theirs = few(), few()
    with_it, without = (list(start(c, epochs=2, validation=v)) for c, v in ((ours, splits["test"]), (theirs, None)))
    for a, b in zip(with_it, without, strict=True):
        assert a.analysis.keys() - b.analysis.keys() == {"val"}
        assert a.analysis["val"].metrics == b.analysis["test"].metrics
        assert a.loss == b.loss
    assert all(torch.equal(tensor, theirs.state_dict()[name]) for name, tensor in ours.state_dict().items())


def test_measuring_does_not_disturb_training(start, make_classifier):
    """Batch norms keep their statistics and their mode: analyses more or fewer, the same model."""
    often, seldom = make_classifier("nearest_etf"), make_classifier("nearest_etf")
    for classifier, analyze_freq in ((often, 1), (seldom, 9)):
        for _ in start(classifier, epochs=2, analyze_freq=analyze_freq):
            assert classifier.training
    for name, tensor in often.state_dict().items():
        assert torch.equal(seldom.state_dict()[name], tensor), name


def test_bfloat16_trains_and_leaves_weights_and_analysis_in_float32(start, make_classifier, splits, digits):
    classifier, full = make_classifier(), make_classifier()
    records = list(start(classifier, epochs=3, precision="bf16", analyze_freq=9))
    exact = list(start(full, epochs=3, analyze_freq=9))
    assert records[-1].loss < records[0].loss
    assert records[0].loss == pytest.approx(exact[0].loss, rel=0.1)
    assert records[0].loss != exact[0].loss
    assert all(p.dtype == torch.float32 for p in classifier.parameters())
    full_precision = evaluate_splits(classifier, Splits(**splits, class_counts=digits.class_counts))
    assert records[-1].analysis["test"].metrics == full_precision["test"].metrics


@pytest.mark.parametrize("head", HEADS)
def test_a_loss_that_is_not_finite_stops_the_run_and_says_where(head, start, make_classifier):
    """The SVD inside the nearest ETF meets the NaN before the loss does."""
    records = start(make_classifier(head), epochs=5, lr=1e30, analyze_freq=9)
    with pytest.raises(Diverged, match=r"at epoch 1, step [2-9], learning rate 1e\+30; try a smaller train.lr"):
        list(records)


@pytest.mark.parametrize("head", HEADS)
def test_features_that_are_not_finite_stop_the_run_at_their_analysis(head, start, make_classifier, digits):
    """With one step an epoch the loss is that of the weights before it, and would tell an epoch later."""
    whole = load_batches(digits, "train", image_size=8, batch_size=2000)
    records = start(make_classifier(head), epochs=2, lr=1e30, train=whole)
    with pytest.raises(Diverged, match=r"features hold .* at epoch 1, learning rate 1e\+30; try a smaller train.lr"):
        list(records)


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("step", [1, 4])
def test_the_step_named_is_the_first_that_is_not_finite(head, step, start, few):
    class Failing(nn.Module):
        """Features that are not finite in one forward."""

        def __init__(self, body: nn.Module) -> None:
            super().__init__()
            self.body, self.calls = body, 0

        def forward(self, images: Tensor) -> Tensor:
            self.calls += 1
            return self.body(images) * (math.nan if self.calls == step else 1.0)

    classifier = few(head)
    classifier.backbone = Failing(classifier.backbone)
    with pytest.raises(Diverged, match=f"the loss is nan at epoch 1, step {step}, learning rate 0.05;"):
        list(start(classifier, epochs=1))


def test_an_error_in_the_linear_algebra_of_finite_numbers_is_not_hidden(start, few):
    def broken(logits: Tensor, targets: Tensor) -> Tensor:
        raise RuntimeError("something else")

    with pytest.raises(RuntimeError, match="something else"):
        list(start(few(), criterion=broken))


def test_a_deferred_criterion_takes_over_after_its_share_of_the_epochs(start, few):
    used: list[tuple[int, str]] = []
    epoch = 1

    def noting(name: str):
        def criterion(logits: Tensor, targets: Tensor) -> Tensor:
            used.append((epoch, name))
            return nn.functional.cross_entropy(logits, targets)

        return criterion

    for record in start(few(), epochs=4, criterion=noting("first"), deferred=(0.5, noting("late"))):
        epoch = record.epoch + 1
    assert set(used) == {(1, "first"), (2, "first"), (3, "late"), (4, "late")}


def test_decay_of_the_features_makes_them_smaller(start, few):
    def mean_square(factor: float) -> float:
        *_, record = start(few(), epochs=3, penalties={"feature_decay": factor})
        return record.analysis["train"].class_means.square().sum().item()

    assert mean_square(0.5) < 0.7 * mean_square(0.0)
