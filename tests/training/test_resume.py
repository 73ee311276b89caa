"""Stopped after any epoch and rebuilt from the disk alone, a run ends with the bits of one that never stopped."""

from __future__ import annotations

import random
import re
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from ncflow.data import load_batches
from ncflow.nn import HEADS, Classifier, create_head, create_loss
from ncflow.training import (
    OPTIMIZERS,
    SCHEDULES,
    Objective,
    Splits,
    StateFolder,
    create_accelerator,
    create_optimizer,
    fit,
)
from ncflow.training.state import get_randomness, misfit, set_randomness

EPOCHS = 4
RATES = {"agd": None, "rmsprop": 1e-3, "adam": 1e-3, "adamw": 1e-3, "sgd": 0.05}


class Dropping(nn.Sequential):
    """A backbone with a norm's running statistics and with dropout, which draws from the global generator."""

    num_features = 16

    def __init__(self) -> None:
        body = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 16, bias=False), nn.ReLU())
        super().__init__(body, nn.BatchNorm1d(16, affine=False), nn.Dropout(0.3))


class Drawing(nn.Module):
    """A loss that draws from the generators of NumPy and Python, as users' own may."""

    def forward(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return nn.functional.cross_entropy(logits, targets) * (0.5 + np.random.rand() + random.random())


@pytest.fixture(scope="module")
def batches(digits):
    options = {"image_size": 8, "batch_size": 64, "augment": "crop_flip"}
    return {split: load_batches(digits, split, **options) for split in ("train", "test")}


@pytest.fixture
def start(batches, digits) -> Callable:
    """Everything that a process builds before it trains: a classifier and its training, from a state if given."""

    def start(head="linear", optimizer="sgd", schedule="cosine", resume=None, criterion=None, deferred=None):
        torch.manual_seed(0)
        classifier = Classifier(Dropping(), create_head(head, Dropping.num_features, 10))
        options = {} if RATES[optimizer] is None else {"lr": RATES[optimizer]}
        records = fit(
            classifier,
            Splits(**batches, class_counts=digits.class_counts),
            Objective(criterion or create_loss("ce"), deferred),
            create_optimizer(optimizer, classifier.parameters(), **options),
            epochs=EPOCHS,
            schedule=SCHEDULES[schedule],
            resume=resume,
        )
        return classifier, records

    return start


def outcome(classifier: Classifier, record) -> dict:
    metrics = {split: result.metrics for split, result in record.analysis.items()}
    weights = {name: tensor.clone() for name, tensor in classifier.state_dict().items()}
    return {"loss": record.loss, "lr": record.lr, "metrics": metrics, "weights": weights}


def assert_equal(ours: dict, theirs: dict) -> None:
    assert {key: ours[key] for key in ("loss", "lr", "metrics")} == {k: theirs[k] for k in ("loss", "lr", "metrics")}
    for name, tensor in theirs["weights"].items():
        assert torch.equal(ours["weights"][name], tensor), name


def run_through(started) -> list[dict]:
    classifier, records = started
    return [outcome(classifier, record) for record in records]


def stop_and_resume(start: Callable, folder: Path, after: int, **options) -> list[dict]:
    """Train until `after`, forget everything but the disk, disturb every generator, and go on."""
    states = StateFolder(folder)
    random.seed(1), np.random.seed(1)
    _, records = start(**options)
    for _ in range(after):
        states.write(next(records).state())
    records.close()
    random.seed(99), np.random.seed(99), torch.manual_seed(99)
    return run_through(start(resume=StateFolder(folder).newest(create_accelerator("cpu")), **options))


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("after", range(1, EPOCHS + 1))
def test_stopped_after_any_epoch_it_ends_as_if_it_had_not(head, after, start, tmp_path):
    whole = run_through(start(head))
    rest = stop_and_resume(start, tmp_path / "run", after, head=head)
    assert len(rest) == EPOCHS - after
    for ours, theirs in zip(rest, whole[after:], strict=True):
        assert_equal(ours, theirs)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_the_memory_of_every_optimizer_is_kept(optimizer, start, tmp_path):
    options = {"optimizer": optimizer, "head": "fixed_etf"}
    assert_equal(stop_and_resume(start, tmp_path / "run", 2, **options)[-1], run_through(start(**options))[-1])


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_every_schedule_goes_on_where_it_was(schedule, start, tmp_path):
    options = {"schedule": schedule, "deferred": (0.75, create_loss("focal"))}
    assert_equal(stop_and_resume(start, tmp_path / "run", 2, **options)[-1], run_through(start(**options))[-1])


def test_the_generators_of_python_and_numpy_go_on_too(start, tmp_path):
    random.seed(1), np.random.seed(1)
    whole = run_through(start(criterion=Drawing()))
    assert_equal(stop_and_resume(start, tmp_path / "run", 2, criterion=Drawing())[-1], whole[-1])


def test_a_state_of_the_last_epoch_gives_the_trained_classifier(start, tmp_path):
    classifier, records = start("nearest_etf")
    *_, last = records
    again, none = start("nearest_etf", resume=last.state())
    assert list(none) == []
    for name, tensor in classifier.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name


def test_randomness_put_back_draws_the_same_again():
    state = get_randomness()

    def draw():
        return random.random(), random.gauss(0, 1), np.random.rand(), np.random.randn(), torch.rand(3).tolist()

    first = draw()
    set_randomness(state)
    assert draw() == first != draw()


def test_another_number_of_processes_keeps_what_it_can(start):
    """A process that the state knows nothing of keeps its own generators, and the model is everybody's."""
    classifier, records = start()
    state = next(records).state()
    assert len(state["randomness"]) == 1
    state["randomness"] = []
    again, rest = start(resume=state)
    assert next(rest).epoch == 2


# --- files ---


@pytest.fixture
def states(start, tmp_path) -> StateFolder:
    """After three epochs."""
    states = StateFolder(tmp_path / "run-0123")
    _, records = start()
    for _ in range(3):
        states.write(next(records).state())
    return states


def newest(states: StateFolder):
    return states.newest(create_accelerator("cpu"))


def test_the_two_newest_states_are_kept(states):
    assert sorted(file.name for file in states.path.iterdir()) == ["epoch_2.pt", "epoch_3.pt"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert newest(states)["epoch"] == 3


@pytest.mark.parametrize("damage", ["truncated", "one bit", "empty", "text", "foreign", "renamed", "list"])
def test_a_damaged_or_foreign_state_is_skipped_by_name(damage, states):
    file = states.path / "epoch_3.pt"
    content = file.read_bytes()
    middle = len(content) // 2
    files = {
        "truncated": content[:middle],
        "one bit": content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :],
        "empty": b"",
        "text": b"<html>not found</html>",
        "renamed": (states.path / "epoch_2.pt").read_bytes(),
    }
    if damage in files:
        file.write_bytes(files[damage])
    else:
        torch.save({**torch.load(file, weights_only=True), "run": "other-4567"} if damage == "foreign" else [1], file)
    with pytest.warns(UserWarning, match=rf"{file} is .*; it is left out"):
        assert newest(states)["epoch"] == 2


def test_without_a_whole_state_there_is_none(states, tmp_path):
    for file in states.path.iterdir():
        file.write_bytes(b"")
    with pytest.warns(UserWarning, match="epoch_3.pt is damaged"), pytest.warns(UserWarning, match="epoch_2.pt is"):
        assert newest(states) is None
    assert newest(StateFolder(tmp_path / "nothing")) is None


def test_states_that_were_left_out_do_not_outlive_those_written_after_them(states, start):
    for file in states.path.iterdir():
        file.write_bytes(b"")
    states.write(next(start()[1]).state())
    assert [file.name for file in states.path.iterdir()] == ["epoch_1.pt"] and newest(states)["epoch"] == 1


def test_a_state_cannot_run_code(states, tmp_path):
    class Malicious:
        def __reduce__(self):
            return Path.touch, (tmp_path / "pwned",)

    torch.save({"run": states.path.name, "epoch": 3, "model": Malicious()}, states.path / "epoch_3.pt")
    with pytest.warns(UserWarning, match="epoch_3.pt is damaged or not a checkpoint"):
        assert newest(states)["epoch"] == 2
    assert not (tmp_path / "pwned").exists()


def test_a_state_that_cannot_be_written_leaves_those_before(states, start):
    def fail(*args):
        raise OSError(28, "No space left on device")

    state = states.read(3) | {"epoch": 4}
    with (
        pytest.MonkeyPatch.context() as patch,
        pytest.raises(OSError, match=r"cannot write .*epoch_4.pt: No space left"),
    ):
        patch.setattr(torch, "save", fail)
        states.write(state)
    assert sorted(file.name for file in states.path.iterdir()) == ["epoch_2.pt", "epoch_3.pt"]


def test_a_state_of_another_model_is_refused(start, states):
    with pytest.raises(
        ValueError, match=r"the state after epoch 3 is of another model or optimizer: (?s:.*)Missing key"
    ):
        next(start("nearest_etf", resume=newest(states))[1])
    with pytest.raises(ValueError, match="the state after epoch 3 is of another model or optimizer"):
        other = newest(states)
        other["optimizer"]["param_groups"] *= 2
        next(start(resume=other)[1])


MISFITS = {
    "another layout": (lambda s: s.pop("optimizer"), "it lacks optimizer"),
    "no scaler": (lambda s: s.pop("scaler"), "it lacks scaler"),
    "no randomness": (lambda s: s.update(randomness=[]), "random numbers"),
    "randomness of another kind": (lambda s: s.update(randomness=[{"torch": 1}]), "random numbers"),
    "other classes": (lambda s: s["model"].update({"head.weight": torch.zeros(7, 3)}), "shapes differ in head.weight"),
    "a tensor less": (lambda s: s["model"].pop("head.weight"), "it lacks head.weight"),
    "a tensor more": (lambda s: s["model"].update(extra=torch.zeros(1)), "it has in addition extra"),
    "no tensors": (lambda s: s.update(model=[1, 2]), "no mapping from names to tensors"),
    "other momentum": (
        lambda s: s["optimizer"]["state"][0].update(momentum_buffer=torch.zeros(2)), "parameters of other shapes"
    ),
    "slots of another optimizer": (
        lambda s: s["optimizer"]["state"].update({0: {"step": 1, "exp_avg": None}}), "optimizer is another one"
    ),
    "no slots": (lambda s: s["optimizer"].update(state={}), "optimizer is another one"),
    "no state of Python's generator": (lambda s: s["randomness"][0].update(python=None), "random numbers"),
    "a short state of torch's generator": (lambda s: s["randomness"][0].update(torch=torch.zeros(8).byte()), "random"),
    "more groups": (lambda s: s["optimizer"].update(param_groups=[]), "parameters of other shapes"),
    "an optimizer of another kind": (lambda s: s.update(optimizer=3), "layout is another one"),
}  # fmt: skip


@pytest.mark.parametrize("case", MISFITS)
def test_a_state_that_does_not_fit_is_reported_and_skipped(start, states, case):
    change, words = MISFITS[case]
    classifier, _ = start()
    optimizer = create_optimizer("sgd", classifier.parameters(), lr=0.1)
    state = newest(states)
    before = torch.get_rng_state()
    assert misfit(state, classifier, optimizer) is None
    change(state)
    reason = misfit(state, classifier, optimizer)
    assert reason is not None and re.search(words, reason), reason
    assert torch.equal(torch.get_rng_state(), before)
    with pytest.warns(UserWarning, match=r"epoch_3.pt does not fit this run: .*; it is left out"):
        states.leave_out(3, reason)


def test_an_attempt_has_one_token_until_it_is_removed(states):
    token = states.token()
    assert re.fullmatch("[0-9a-f]{32}", token) and StateFolder(states.path).token() == token
    states.remove()
    assert list(states.path.parent.iterdir()) == [] and states.token() != token
    shutil.rmtree(states.path)


# --- processes ---


@pytest.mark.slow
def test_killed_at_any_write_a_run_ends_with_the_same_outcome(tmp_path):
    """After so many writes of files and to MLflow; tests/trials/kill.py does so twenty times, at random moments."""
    from trials import kill

    alone, killed = (kill.configure(name, epochs=2) for name in ("alone", "killed"))
    kill.stages.snapshot(alone, tmp_path / "data" / "digits")
    assert not kill.kill_after(None, tmp_path, alone)
    for writes in (20, 50):
        process = kill.start(tmp_path, killed, kill_at=writes)
        process.join()
        assert process.exitcode == -9
    assert not kill.kill_after(None, tmp_path, killed)
    assert kill.differences(kill.outcome(tmp_path, "killed"), kill.outcome(tmp_path, "alone")) == []
