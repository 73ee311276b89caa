"""Features collected in a plain loop: the same metrics as from the features themselves."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import ncflow
from ncflow import collect_features, measure
from ncflow.measuring import read_features


class Network(nn.Module):
    """Dropout and batch normalization make the mode visible. Returns (B, 3), or (B, T, 3) of sequences."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(5, 4), nn.Dropout(0.5), nn.ReLU())
        self.norm = nn.BatchNorm1d(5)
        self.fc = nn.Linear(4, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.fc(self.body(inputs if inputs.ndim > 2 else self.norm(inputs)))


def batches(seed: int = 0, count: int = 3) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    return [(torch.randn(8, 5, generator=generator), torch.arange(8) % 3) for _ in range(count)]


def collected(model: nn.Module, given, **options) -> ncflow.integrations.CollectedFeatures:
    with collect_features(model, **options) as found:
        for inputs, targets in given:
            model(inputs)
            found.add(targets)
    return found


@pytest.mark.parametrize("seed", range(3))
def test_collected_features_measure_as_the_features_do(seed):
    torch.manual_seed(seed)
    model, train, test = Network().double(), batches(seed), batches(seed + 10)
    train, test = ([(x.double(), y) for x, y in part] for part in (train, test))
    seen, unseen = collected(model, train), collected(model, test)
    model.eval()
    expected = [model.body(model.norm(torch.cat([x for x, _ in part]))).detach() for part in (train, test)]
    targets = torch.cat([y for _, y in train])
    torch.testing.assert_close(seen.features, expected[0])
    assert torch.equal(seen.targets, targets) and seen.layer == "fc"
    rows = {"weight": model.fc.weight, "bias": model.fc.bias}
    found = unseen.measure(train=seen, class_counts=[9, 9, 6]).metrics
    same = measure(expected[1], targets, train=(expected[0], targets), class_counts=[9, 9, 6], **rows).metrics
    assert found["test"] == pytest.approx(same["test"], rel=1e-6)
    assert found["train"] == pytest.approx(same["train"], rel=1e-6)
    assert seen.measure().metrics["train"] == pytest.approx(same["train"], rel=1e-6)


def test_the_model_is_in_eval_mode_inside_and_unchanged_afterwards():
    model = Network()
    model.fc.eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with collect_features(model):
        assert not any(module.training for module in model.modules()) and not torch.is_grad_enabled()
        model(batches()[0][0])
    assert model.training and model.body.training and not model.fc.training and torch.is_grad_enabled()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_training_step_can_be_watched_as_it_is():
    model = Network()
    with collect_features(model, evaluate=False) as found:
        inputs, targets = batches()[0]
        nn.functional.cross_entropy(model(inputs), targets).backward()
        found.add(targets)
    assert model.fc.weight.grad is not None and model.norm.num_batches_tracked == 1
    assert not found.features.requires_grad


def test_the_classifier_is_that_of_the_end():
    model = Network()
    found = collected(model, batches())
    weight = model.fc.weight.detach().clone()
    with torch.no_grad():
        model.fc.weight.zero_()
    assert torch.equal(found.weight, weight)


def test_sequences_take_a_target_for_each_position_and_ignored_ones_are_left_out():
    inputs, targets = torch.randn(2, 6, 5), torch.arange(12).reshape(2, 6) % 3
    targets[0, :2] = -100
    model = Network()
    by_position, flat = (collected(model, [(inputs, y)]) for y in (targets, targets.flatten()))
    model.eval()
    expected = model.body(inputs).flatten(0, 1)[2:]
    torch.testing.assert_close(by_position.features, expected.detach())
    assert by_position.targets.tolist() == flat.targets.tolist() == targets.flatten()[2:].tolist()


@pytest.mark.parametrize("form", [lambda y: y.unsqueeze(1), lambda y: y.int(), lambda y: np.asarray(y)])
def test_other_forms_of_targets_are_taken(form):
    inputs, targets = batches()[0]
    assert torch.equal(collected(Network(), [(inputs, form(targets))]).targets, targets)


@pytest.mark.parametrize(
    "shape, targets, message",
    [
        (
            (8, 5),
            torch.zeros(7, dtype=torch.long),
            r"each row of features, \(8,\), got features \(8, 4\) and targets \(7,\)",
        ),
        (
            (2, 6, 5),
            torch.zeros(2, dtype=torch.long),
            r"\(2, 6\), got .* layer 'fc' sees a sequence: give each position",
        ),
        ((2, 6, 5), torch.zeros(6, 2, dtype=torch.long), r"and targets \(6, 2\)"),
        ((8, 5), torch.rand(8, 3), "whole numbers, got torch.float32; soft targets have no class"),
        ((8, 5), [0] * 8, "whole numbers, got list"),
    ],
)
def test_targets_that_do_not_fit_are_refused(shape, targets, message):
    with pytest.raises(ValueError, match=message):
        collected(Network(), [(torch.randn(shape), targets)])


def test_each_forward_is_added_once():
    model, (inputs, targets) = Network(), batches()[0]
    with collect_features(model) as found:
        with pytest.raises(ValueError, match="call the model first"):
            found.add(targets)
        model(inputs)
        found.add(targets)
        with pytest.raises(ValueError, match="expected a forward of the model before each add"):
            found.add(targets)
    with pytest.raises(ValueError, match="expected a forward"):  # the hooks are gone
        model(inputs)
        found.add(targets)


def test_without_features_there_is_nothing_to_measure():
    with collect_features(Network()) as found, pytest.raises(ValueError, match="no features are collected; call add"):
        found.measure()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_saved_features_are_read_by_measure(tmp_path, dtype):
    found = collected(Network().to(dtype), [(x.to(dtype), y) for x, y in batches()])
    read = read_features(found.save(tmp_path / "mine.npz"))["train"]
    assert torch.equal(read.features, found.features.float()) and torch.equal(read.targets, found.targets)
    assert torch.equal(read.weight, found.weight.float()) and torch.equal(read.bias, found.bias.float())
    assert found.features.dtype is dtype
