"""The plan of a training: its steps, its rates from step to step, and gradients of limited norm."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from ncflow.nn import HEADS, create_loss
from ncflow.training import (
    SCHEDULES,
    Analysis,
    Objective,
    Plan,
    StateFolder,
    create_accelerator,
    create_optimizer,
    fit,
)
from ncflow.training.plan import Course
from ncflow.training.step import Step


@pytest.fixture
def start(whole, few) -> Callable:
    def start(plan: Plan | None = None, *, head="linear", epochs=2, sam_radius=0.0, momentum=0.9, lr=0.05, **options):
        classifier = few(head)
        optimizer = create_optimizer("sgd", classifier.parameters(), lr=lr, momentum=momentum)
        objective = Objective(create_loss("ce"), sam_radius=sam_radius)
        options = {"plan": plan, "analysis": Analysis(every=9)} | options
        return classifier, fit(classifier, whole, objective, optimizer, epochs=epochs, **options)

    return start


def equal(first: torch.nn.Module, second: torch.nn.Module) -> bool:
    pairs = zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    return all(torch.equal(ours, theirs) for ours, theirs in pairs)


# --- the course ---


@pytest.mark.parametrize(
    ("max_steps", "steps"), [(None, [7, 7, 7]), (21, [7, 7, 7]), (16, [7, 7, 2]), (14, [7, 7]), (3, [3])]
)
def test_the_last_epoch_has_the_steps_that_are_left(max_steps, steps):
    course = Plan(max_steps=max_steps).course(3, 7)
    assert [course.steps(epoch) for epoch in range(1, course.epochs + 1)] == steps


@pytest.mark.parametrize("epochs", [1, 3, 7, 200])
def test_the_share_done_is_that_of_whole_epochs_to_the_last_bit(epochs):
    for number in (1, 6, 49):
        course = Plan().course(epochs, number)
        for epoch in range(1, epochs + 1):
            assert {course.progress(epoch, step) for step in range(number)} == {(epoch - 1) / epochs}


def test_per_step_the_share_done_counts_steps():
    course = Course(steps_per_epoch=4, total=10, per_step=True)
    assert [course.progress(epoch, step) for epoch in (1, 2, 3) for step in range(course.steps(epoch))] == [
        step / 10 for step in range(10)
    ]


def test_more_steps_than_the_epochs_have_are_refused(start):
    _, records = start(Plan(max_steps=10**6))
    with pytest.raises(ValueError, match=r"train.max_steps=1000000 is more than the \d+ steps of train.epochs=2"):
        next(records)


@pytest.mark.parametrize(
    "wrong", [{"accumulate": 0}, {"max_grad_norm": 0.0}, {"max_steps": 0}, {"schedule_per": "batch"}]
)
def test_a_plan_out_of_range_is_refused_by_name(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Plan(**wrong)


def test_training_ends_after_so_many_steps_with_an_analysis(start, whole):
    number = len(whole.train)
    course = Plan(max_steps=number + 2).course(5, number)
    classifier, records = start(Plan(max_steps=number + 2), epochs=5)
    first, last = records
    assert [first.last, last.last] == [False, True] and not first.analysis and set(last.analysis) == {"train", "test"}
    assert last.epoch == course.epochs == 2
    sizes = whole.train.sizes
    assert last.images_per_second * last.seconds == pytest.approx(sum(sizes[:2]))


def test_a_short_epoch_has_the_mean_loss_of_its_own_samples(start, whole):
    """At learning rate 0 the loss of two steps is that of their samples."""
    classifier, records = start(Plan(max_steps=2), lr=1e-30)
    (record,) = records
    batches = list(whole.train.shuffled(1))[:2]
    images, targets = (torch.cat(parts) for parts in zip(*batches, strict=True))
    with torch.no_grad():
        logits, _ = classifier.train()(images)
    assert record.loss == pytest.approx(create_loss("ce")(logits, targets).item(), rel=1e-5)
    assert record.accuracy == pytest.approx((logits.argmax(1) == targets).double().mean().item())


def test_the_steps_before_the_end_are_those_of_a_longer_training(start, whole):
    """Without a schedule: a training of one epoch is the start of one of many steps."""
    number = len(whole.train)
    short, records = start(epochs=1)
    list(records)
    cut, records = start(Plan(max_steps=number), epochs=5)
    (record,) = records
    assert record.last and equal(short, cut)


# --- the schedule ---


def test_per_step_every_step_has_the_rate_of_its_share(start, whole, monkeypatch):
    rates, call = [], Step.__call__

    def noted(self, *args, **options):
        rates.append((options["progress"], self.optimizer.param_groups[0]["lr"]))
        return call(self, *args, **options)

    monkeypatch.setattr(Step, "__call__", noted)
    _, records = start(Plan(schedule_per="step"), schedule=SCHEDULES["cosine"])
    records = list(records)
    total = 2 * len(whole.train)
    assert [share for share, _ in rates] == [step / total for step in range(total)]
    assert [rate for _, rate in rates] == [0.05 * SCHEDULES["cosine"](step / total) for step in range(total)]
    assert [record.lr for record in records] == [rates[total // 2 - 1][1], rates[-1][1]]


def test_per_step_a_constant_rate_gives_the_same_bits(start):
    by_epoch, by_step = start(), start(Plan(schedule_per="step"))
    for _, records in (by_epoch, by_step):
        list(records)
    assert equal(by_epoch[0], by_step[0])


# --- the norm of gradients ---


def moved(classifier: torch.nn.Module, before: list[torch.Tensor]) -> torch.Tensor:
    """The norm of the change of all parameters."""
    pairs = zip(classifier.parameters(), before, strict=True)
    return torch.stack([(p.detach() - old).norm() for p, old in pairs]).norm()


@pytest.mark.parametrize("options", [{}, {"sam_radius": 0.05}, {"head": "nearest_etf"}])
def test_a_step_is_as_long_as_the_limit_allows(options, start):
    """Gradient descent without momentum moves by the rate times the gradient."""
    classifier, records = start(Plan(max_grad_norm=1e-3, max_steps=1), momentum=0.0, lr=2.0, **options)
    before = [parameter.detach().clone() for parameter in classifier.parameters()]
    next(records)
    assert moved(classifier, before).item() == pytest.approx(2e-3, rel=1e-3)


@pytest.mark.parametrize("head", HEADS)
def test_a_limit_that_no_gradient_reaches_changes_no_bit(head, start):
    free, limited = start(head=head, epochs=2), start(Plan(max_grad_norm=1e6), head=head, epochs=2)
    for _, records in (free, limited):
        next(records)
    assert equal(free[0], limited[0])


def test_the_limit_is_for_gradients_before_they_are_scaled(few, whole):
    """float16 trains with gradients times a power of two, which changes no bit in float32."""
    accelerator = create_accelerator("cpu")
    images, targets = next(whole.train.shuffled(1))
    found = []
    for enabled in (False, True):
        classifier = few().train()
        optimizer = accelerator.prepare(create_optimizer("sgd", classifier.parameters(), lr=0.05))
        scaler = torch.amp.GradScaler("cpu", enabled=enabled, init_scale=2.0**10)
        plan = Plan(max_grad_norm=1e-2)
        step = Step(classifier, classifier, Objective(create_loss("ce")), optimizer, scaler, accelerator, "fp32", plan)
        step(images, targets, size=len(targets), progress=0.0, check=lambda loss: None)
        found.append(classifier)
    assert equal(*found)


# --- resuming ---


@pytest.mark.parametrize("kind", ["steps", "clipped"])
def test_a_stopped_training_resumes_with_the_same_bits(kind, start, whole, tmp_path):
    number = len(whole.train)
    plan = {
        "steps": Plan(max_steps=2 * number + 3, schedule_per="step"),
        "clipped": Plan(max_grad_norm=0.05),
    }[kind]
    options = {"schedule": SCHEDULES["cosine"], "epochs": 3, "head": "nearest_etf"}
    straight, records = start(plan, **options)
    losses = [record.loss for record in records]
    states = StateFolder(tmp_path)
    for after in (1, 2, 3):
        _, records = start(plan, **options)
        for _ in range(after):
            record = next(records)
        states.write(record.state())
        again, rest = start(plan, resume=states.newest(create_accelerator("cpu")), **options)
        assert [record.loss for record in rest] == losses[after:]
        assert equal(straight, again)
