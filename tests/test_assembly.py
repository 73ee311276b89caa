"""The parts of a run that several processes share, and those that each has for itself."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from ncflow import assembly, stages
from ncflow.geometry import FRAMES
from ncflow.nn import LOSSES
from ncflow.params import make_params
from ncflow.training import OutOfMemory, explained_faults


@pytest.fixture
def begin(tmp_path):
    """The weights that a process begins with and the first number that its layers draw."""
    params = make_params({"dataset": {"name": "digits", "imb_factor": 0.02}, "model": {"image_size": 8}})
    images = stages.snapshot(params, tmp_path / "digits")

    def begin(rank: int, count: int, seed: int = 3) -> tuple[torch.Tensor, float]:
        accelerator = SimpleNamespace(device=torch.device("cpu"), process_index=rank, num_processes=count)
        classifier = assembly.start(params.model_copy(update={"seed": seed}), images, accelerator, "fp32").classifier
        return torch.nn.utils.parameters_to_vector(classifier.parameters()), torch.rand(()).item()

    return begin


def test_all_processes_begin_with_the_same_weights_and_draw_their_own_dropout(begin):
    (alone, drawn), *several = begin(0, 1), begin(0, 3), begin(1, 3), begin(2, 3)
    assert all(torch.equal(weights, alone) for weights, _ in several)
    assert several[0][1] == drawn
    assert len({number for _, number in several}) == 3


def test_the_largest_seed_serves_several_processes_too(begin):
    assert begin(1, 2, seed=2**32 - 1)[1] != begin(0, 2, seed=2**32 - 1)[1]


@pytest.mark.parametrize("error", [RuntimeError("DefaultCPUAllocator: can't allocate memory"), MemoryError()])
def test_a_model_too_large_is_reported_with_its_own_options(monkeypatch, error):
    def build(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(assembly, "build_classifier", build)
    words = "out of memory with model.name=resnet20, model.num_features=4096 and model.image_size=32; try a smaller one"
    with pytest.raises(OutOfMemory, match=words), explained_faults(batch_size=64, precision="fp32"):
        assembly.check(make_params({}, ["model.num_features=4096"]))


def test_any_other_error_of_building_a_model_stays_what_it_was(monkeypatch):
    def build(*_: object, **__: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(assembly, "build_classifier", build)
    with pytest.raises(RuntimeError, match="a bug"):
        assembly.check(make_params({}))


def test_a_head_by_class_sizes_has_those_of_the_snapshot(tmp_path):
    """`check` knows no sizes yet and takes equal ones, so training must build the head again."""
    options = {"dataset": {"imb_factor": 0.02}, "model": {"image_size": 8}}
    params = make_params(options | {"head": {"name": "fixed_frame", "frame": "seli"}})
    images = stages.snapshot(params, tmp_path / "digits")
    accelerator = SimpleNamespace(device=torch.device("cpu"), process_index=0, num_processes=1)
    head = assembly.start(params, images, accelerator, "fp32", built=assembly.check(params)).classifier.head
    expected = FRAMES["seli"](10, head.num_features, class_counts=images.class_counts)
    torch.testing.assert_close(head.weight, expected.float())


def test_a_loss_that_cannot_mix_is_refused_before_training(monkeypatch):
    def of_classes(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """A user's loss that needs a class for each sample."""
        return -logits.log_softmax(1).gather(1, targets.unsqueeze(1)).mean()

    monkeypatch.setitem(LOSSES, "of_classes", of_classes)
    train = {"loss": "of_classes"}
    assembly.check(make_params({"train": train, "model": {"image_size": 8}}))
    with pytest.raises(ValueError, match="train.mix=mixup needs a loss that takes shares .* 'of_classes' raises"):
        assembly.check(make_params({"train": train | {"mix": "mixup"}, "model": {"image_size": 8}}))


@pytest.mark.parametrize("trainable", ["head", "norm_bias"])
def test_a_run_starts_from_a_checkpoint_and_trains_a_part(trainable, tmp_path):
    keys = {"dataset": {"name": "digits", "imb_factor": 0.02}, "model": {"image_size": 8}}
    params = make_params(keys)
    images = stages.snapshot(params, tmp_path / "digits")
    accelerator = SimpleNamespace(device=torch.device("cpu"), process_index=0, num_processes=1)
    first = assembly.start(params, images, accelerator, "fp32").classifier
    torch.save(first.state_dict(), tmp_path / "first.pth")
    weights = [f"model.checkpoint={tmp_path / 'first.pth'}", f"model.trainable={trainable}", "seed=7"]
    training = assembly.start(make_params(keys, weights), images, accelerator, "fp32")
    assert training.note == "started from first.pth: backbone and head"
    for tensor, expected in zip(training.classifier.state_dict().values(), first.state_dict().values(), strict=True):
        assert torch.equal(tensor, expected)
    assert not all(parameter.requires_grad for parameter in training.classifier.parameters())
