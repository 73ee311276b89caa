"""Several processes, one result: two with half of each batch learn and measure what one does with all of it."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ncflow.data import MIXES, SAMPLINGS, Batches, Share, Snapshot, create_mix, load_batches
from ncflow.nn import HEADS, LOSSES, PENALTIES, Classifier, create_head, create_loss, create_penalty
from ncflow.nn.penalties import needs_hard_targets
from ncflow.training import (
    Analysis,
    Diverged,
    EpochRecord,
    MovingAverage,
    Objective,
    Plan,
    Splits,
    StateFolder,
    create_accelerator,
    create_optimizer,
    fit,
)

pytestmark = pytest.mark.slow
# Relative; absolute for what is 0. Each step enlarges float32's rounding, on some processors beyond 1e-5.
CLOSE = {torch.float32: 1e-4, torch.float64: 1e-8}


class InDtype(nn.Module):
    """Pictures in the dtype of a classifier."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype

    def forward(self, images: Tensor) -> Tensor:
        return images.to(self.dtype)


def flat() -> nn.Module:
    """A backbone without batch statistics."""
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 16), nn.ReLU())


def normed() -> nn.Module:
    """A backbone of batch norms, over maps and over vectors."""
    convolution = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten())
    return nn.Sequential(convolution, nn.Linear(8 * 3 * 3, 16, bias=False), nn.BatchNorm1d(16))


class NotANumber:
    """Cross-entropy that is NaN at a step of the last process."""

    def __init__(self, step: int) -> None:
        self.step, self.calls = step, 0

    def __call__(self, logits: Tensor, targets: Tensor) -> Tensor:
        self.calls += 1
        ill = self.calls == self.step and os.environ.get("RANK", "1") == "1"
        return F.cross_entropy(logits, targets) * (torch.nan if ill else 1.0)


CASES: dict[str, dict[str, Any]] = {
    **{f"{head}, float32": {"head": head, "dtype": torch.float32} for head in HEADS},
    **{head: {"head": head} for head in HEADS},
    **{f"loss {loss}": {"loss": loss} for loss in LOSSES},
    **{f"sampling {sampling}": {"sampling": sampling} for sampling in SAMPLINGS},
    "re-weighted": {"loss": "ce", "reweight": 0.99},
    "penalties": {"head": "nearest_etf", "penalties": {name: 0.1 for name in PENALTIES}},
    "batch norms": {"backbone": normed},
    "sharpness": {"head": "nearest_etf", "backbone": normed, "sam_radius": 0.05},
    "in parts": {"head": "nearest_etf", "penalties": {name: 0.1 for name in PENALTIES}, "plan": Plan(accumulate=3)},
    "batch norms, in parts": {"backbone": normed, "sam_radius": 0.05, "plan": Plan(accumulate=3)},
    "short gradients": {"backbone": normed, "plan": Plan(max_grad_norm=0.5, max_steps=6, schedule_per="step")},
    "streaming": {"backbone": normed, "epochs": 2, "analysis": Analysis(streaming=True)},
    **{f"mix {mix}": {"head": "nearest_etf", "mix": mix} for mix in MIXES},
    "average": {"head": "nearest_etf", "backbone": normed, "average": True},
    "all together": {
        "head": "nearest_etf",
        "backbone": normed,
        "average": True,
        "mix": "remix",
        "loss": "vs",
        "sam_radius": 0.05,
        "penalties": {name: 0.1 for name in PENALTIES if not needs_hard_targets(name)},
    },
}


def train(
    digits: Snapshot,
    *,
    head: str = "linear",
    backbone: Callable[[], nn.Module] = flat,
    loss: str = "ce",
    reweight: float | None = None,
    sampling: str = "shuffled",
    mix: str = "none",
    dtype: torch.dtype = torch.float64,
    epochs: int = 1,
    average: bool = False,
    **options: Any,
) -> Iterator[tuple[Classifier, EpochRecord]]:
    """Train as the process that this is of those that there are, by batches that two cannot halve.

    The validation part has fewer samples than there are processes.
    """
    accelerator = create_accelerator("cpu")
    share = accelerator.process_index, accelerator.num_processes
    test, counts = load(digits, "test", *share), digits.class_counts
    torch.manual_seed(0)
    classifier = Classifier(nn.Sequential(InDtype(dtype), backbone()), create_head(head, 16, 10)).to(dtype)
    train = replace(load(digits, "train", *share), sampling=SAMPLINGS[sampling], mix=create_mix(mix, counts))
    if average:
        options["analysis"] = Analysis(average=MovingAverage(classifier, 0.9))
    factors = options.pop("penalties", {})
    penalties = [(factor, create_penalty(name, counts)) for name, factor in factors.items()]
    criterion = options.pop("criterion", create_loss(loss, counts, reweight=reweight))
    for record in fit(
        classifier,
        Splits(train, test, counts, validation=replace(test, targets=test.targets[:1])),
        Objective(criterion, penalties=penalties, sam_radius=options.pop("sam_radius", 0.0)),
        create_optimizer("sgd", classifier.parameters(), lr=0.05),
        epochs=epochs,
        accelerator=accelerator,
        **options,
    ):
        yield classifier, record


@cache
def load(digits: Snapshot, split: str, rank: int, count: int) -> Batches:
    return load_batches(digits, split, image_size=8, batch_size=45, share=Share(rank, count))


def told(classifier: Classifier, record: EpochRecord) -> dict[str, Any]:
    """What a process has after an epoch: its numbers by name, logits of every split, and state of the model."""
    metrics = {f"{split}/{name}": v for split, result in record.analysis.items() for name, v in result.metrics.items()}
    logits = {split: result.logits for split, result in record.analysis.items() if not result.streamed}
    state = {name: tensor.clone() for name, tensor in classifier.state_dict().items()}
    return {"numbers": {"loss": record.loss, "accuracy": record.accuracy} | metrics, "logits": logits, "state": state}


def diverge(digits: Snapshot) -> str:
    """What a process says when the loss of one of them is not a number."""
    with pytest.raises(Diverged) as error:
        list(train(digits, criterion=NotANumber(step=3)))
    return str(error.value)


def go_on(digits: Snapshot, folder: str) -> dict[str, Any]:
    """The outcome of a training that stops after its first epoch and goes on from the state on the disk."""
    accelerator, states = create_accelerator("cpu"), StateFolder(folder)
    _, record = next(train(digits, head="nearest_etf", epochs=2))
    state = record.state()
    assert len(state["randomness"]) == accelerator.num_processes
    if accelerator.is_main_process:
        states.write(state)
    (last,) = train(digits, head="nearest_etf", epochs=2, resume=states.newest(accelerator))
    return told(*last)


def process(rank: int, port: int, folder: str, digits: Snapshot) -> None:
    """One of two processes, started as launchers do."""
    where = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "MASTER_PORT": port}
    os.environ |= {name: str(value) for name, value in where.items()} | {"MASTER_ADDR": "127.0.0.1"}
    outcomes = {name: told(*next(train(digits, **options))) for name, options in CASES.items()}
    *_, last = train(digits, head="nearest_etf", epochs=2)
    outcomes |= {"two epochs": told(*last), "resumed": go_on(digits, folder)}
    torch.save({"diverged": diverge(digits), **outcomes}, f"{folder}/{rank}.pt")
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory, digits: Snapshot) -> list[dict[str, Any]]:
    """What each of two processes has after every case."""
    folder = tmp_path_factory.mktemp("processes")
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port = server.getsockname()[1]
    torch.multiprocessing.spawn(process, (port, str(folder), digits), nprocs=2)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.mark.parametrize("case", CASES)
def test_two_processes_train_and_measure_as_one_does(case, together, digits):
    alone, shared = told(*next(train(digits, **CASES[case]))), together[0][case]
    close = CLOSE[alone["logits"]["test"].dtype]
    assert shared["numbers"] == pytest.approx(alone["numbers"], rel=close, abs=close)
    torch.testing.assert_close(shared["state"], alone["state"], rtol=close, atol=close)
    torch.testing.assert_close(shared["logits"], alone["logits"], rtol=close, atol=close)


def test_all_processes_measure_and_hold_the_same_bits(together):
    for case in [*CASES, "two epochs"]:
        first, second = (rank[case] for rank in together)
        assert first["numbers"] == second["numbers"]
        for part in ("logits", "state"):
            for name, tensor in first[part].items():
                assert torch.equal(second[part][name], tensor), f"{case}: {name}"


def test_an_infinite_loss_in_one_process_stops_all(together, digits):
    words = {rank["diverged"] for rank in together} | {diverge(digits)}
    assert len(words) == 1 and words.pop().startswith("the loss is nan at epoch 1, step 3, learning rate 0.05;")


def test_two_processes_go_on_as_if_they_had_not_stopped(together):
    for rank in together:
        whole, resumed = rank["two epochs"], rank["resumed"]
        assert resumed["numbers"] == whole["numbers"]
        for name, tensor in whole["state"].items():
            assert torch.equal(resumed["state"][name], tensor), name
