"""Compiled training: the same steps up to rounding, analyses of the network as it is, refused where torch cannot."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from functools import partial

import pytest
import torch

from ncflow import assembly
from ncflow.data import load_batches
from ncflow.nn import Classifier, create_loss
from ncflow.params import make_params
from ncflow.training import Analysis, Objective, Plan, Splits, create_optimizer, evaluate_splits, fit
from ncflow.training.compiling import refuse_compiling


@pytest.fixture
def train(whole, few) -> Callable[..., tuple[Classifier, list]]:
    def train(plan: Plan, epochs: int = 2, splits: Splits = whole) -> tuple[Classifier, list]:
        classifier = few("nearest_etf")
        optimizer = create_optimizer("sgd", classifier.parameters(), lr=0.05)
        records = fit(
            classifier,
            splits,
            Objective(create_loss("ce")),
            optimizer,
            epochs=epochs,
            plan=plan,
            analysis=Analysis(every=2),
        )
        return classifier, list(records)

    return train


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """torch.compile without a compiler of C++: it traces and runs the same kernels. Notes what was compiled."""
    compiled: list[object] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Callable:
        compiled.append(graph)
        return graph.forward

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    return compiled


@pytest.mark.parametrize("accumulate", [1, 3])
def test_compiled_steps_are_the_steps_of_training(accumulate, traced, train):
    ours, compiled = train(Plan(compiled=True, accumulate=accumulate))
    assert traced and ours.backbone._compiled_call_impl is None
    theirs, plain = train(Plan(accumulate=accumulate))
    assert [record.loss for record in compiled] == pytest.approx([record.loss for record in plain], rel=1e-6)
    torch.testing.assert_close(ours.state_dict(), theirs.state_dict())


def test_analyses_run_the_network_as_it_is(traced, train, whole):
    """So the checkpoint is measured again with the same bits."""
    classifier, records = train(Plan(compiled=True))
    known = len(traced)
    again = evaluate_splits(classifier, whole)
    assert {split: result.metrics for split, result in again.items()} == {
        split: result.metrics for split, result in records[-1].analysis.items()
    }
    assert len(traced) == known


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux" or not shutil.which("g++"), reason="needs a compiler")
def test_the_compiler_gives_the_same_training_to_rounding(train, digits, whole):
    one_shape = load_batches(digits, "train", image_size=8, batch_size=None)  # each shape takes seconds to compile
    splits = Splits(one_shape, whole.test, whole.class_counts)
    (_, compiled), (_, plain) = train(Plan(compiled=True), 3, splits), train(Plan(), 3, splits)
    assert compiled[-1].loss == pytest.approx(plain[-1].loss, rel=1e-4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda patch: patch.setattr(sys, "platform", "darwin"), "on Linux alone, got darwin"),
        (lambda patch: patch.setattr(shutil, "which", lambda name: None), "needs a compiler of C"),
    ],
)
def test_it_is_refused_where_torch_cannot_compile(change, message, monkeypatch):
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(shutil, "which", lambda name: f"/bin/{name}")
    refuse_compiling()
    change(monkeypatch)
    with pytest.raises(ValueError, match=f"train.compile=true: .*{message}.*try train.compile=false"):
        assembly.check(make_params({}, ["train.compile=true", "model.image_size=8"]))


def test_several_processes_are_refused(monkeypatch):
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(shutil, "which", lambda name: f"/bin/{name}")
    with pytest.raises(ValueError, match="got 2 processes; try train.compile=false"):
        refuse_compiling(num_processes=2)
