"""Layers: what a capture holds, for backbones of ours, of timm's and of a user's."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from torch import Tensor, nn

from ncflow.nn.backbones import create_backbone
from ncflow.nn.classifier import Classifier
from ncflow.nn.heads import LinearHead
from ncflow.nn.layers import capture, pool, stages
from ncflow.nn.necks import Backbone

S = 16


@pytest.fixture(scope="module")
def backbone() -> nn.Module:
    torch.manual_seed(0)
    return create_backbone("resnet20").eval()


def images(batch: int = 3) -> Tensor:
    return torch.randn(batch, 3, S, S, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def test_each_layer_is_the_spatial_mean_of_its_stage(backbone):
    with capture(backbone) as layers:
        features = backbone(images())
    x = images()
    for name, expected_width in {"stem": 16, "layer1": 16, "layer2": 32, "layer3": 64}.items():
        x = getattr(backbone.body, name)(x)
        torch.testing.assert_close(layers[name], x.flatten(2).mean(2))
        assert layers[name].shape == (3, expected_width)
    assert list(layers) == ["stem", "layer1", "layer2", "layer3"]
    torch.testing.assert_close(layers["layer3"], features)


@torch.no_grad()
def test_one_forward_runs_the_backbone_once_and_refills_the_dict(backbone):
    runs: list[int] = []
    handle = backbone.body.stem.register_forward_hook(lambda module, inputs, output: runs.append(len(output)))
    classifier = Classifier(backbone, LinearHead(64, 4)).eval()
    with capture(backbone) as layers:
        for batch in (3, 2):
            classifier(images(batch))
            assert all(len(layer) == batch for layer in layers.values())
    handle.remove()
    assert runs == [3, 2]


def test_outside_the_context_nothing_is_captured_whether_it_ended_well_or_not(backbone):
    with pytest.raises(ZeroDivisionError), capture(backbone) as layers:
        raise ZeroDivisionError
    backbone(images())
    assert not layers
    assert not any(module._forward_hooks for module in backbone.modules())


def test_layers_are_chosen_by_stage_or_path_and_captures_nest(backbone):
    with capture(backbone, ["layer3", "layer1.0.conv1"]) as chosen, capture(backbone) as every:
        backbone(images())
    assert set(chosen) == {"layer3", "layer1.0.conv1"}
    assert torch.equal(chosen["layer3"], every["layer3"])
    with pytest.raises(ValueError, match=r"unknown layer 'layer9'. Did you mean 'layer3'\? Choices: stem, layer1"):
        capture(backbone, ["layer9"]).__enter__()


def test_a_layer_carries_its_gradient_and_half_precision_is_pooled_in_float32(backbone):
    with torch.autocast("cpu", dtype=torch.bfloat16), capture(backbone) as layers:
        backbone(images())
    assert all(layer.dtype == torch.float32 for layer in layers.values())
    backbone.zero_grad()
    layers["layer1"].sum().backward()
    assert backbone.body.stem[0].weight.grad.abs().sum() > 0
    assert backbone.body.layer2[0].conv1.weight.grad is None
    backbone.zero_grad()


@torch.no_grad()
def test_stages_of_a_transformer_are_its_embedded_patches_and_its_blocks():
    body = create_backbone("vit_tiny", image_size=S).eval()
    with capture(body) as layers:
        features = body(images())
    assert list(layers) == ["stem", *(f"blocks.{k}" for k in range(6))]
    assert all(layer.shape == (3, 512) for layer in layers.values())
    assert not torch.allclose(layers["blocks.5"], features)  # a mean of all tokens, not the class token


@pytest.mark.parametrize("name", ["timm/test_resnet", "timm/test_vit", "timm/test_mambaout"])
@torch.no_grad()
def test_any_timm_model_has_stages_of_the_widths_timm_states(name):
    backbone = create_backbone(name, image_size=32).eval()
    with capture(backbone) as layers:
        backbone(torch.randn(2, 3, 32, 32))
    stated = {info["module"]: info["num_chs"] for info in backbone.body.feature_info}
    assert {layer: features.shape[1] for layer, features in layers.items()} == stated


def test_a_users_module_has_its_children_or_named_stages():
    children = {"first": nn.Conv2d(3, 5, 3), "act": nn.ReLU(), "second": nn.Conv2d(5, 7, 3), "flat": nn.Flatten()}
    body = nn.Sequential()
    for name, child in children.items():
        body.add_module(name, child)
    assert list(stages(body)) == list(stages(Backbone(body, 7 * 12 * 12))) == ["first", "second"]
    named = Backbone(body, 7 * 12 * 12, layers={"early": "act", "late": "second"})
    with capture(named) as layers, capture(body) as plain:
        named(images())
    assert {name: layer.shape for name, layer in layers.items()} == {"early": (3, 5), "late": (3, 7)}
    assert torch.equal(plain["second"], layers["late"])
    assert layers["early"].min() >= 0


def test_what_cannot_be_pooled_is_refused_with_the_name_of_the_layer():
    for body, batch, got in ((nn.LSTM(4, 4), torch.randn(2, 3, 4), "tuple"), (nn.Linear(4, 4), torch.randn(4), "(4,)")):
        module = nn.Sequential(body)
        with pytest.raises(ValueError) as error, capture(module):
            module(batch)
        assert "layer '0' must return maps" in str(error.value) and f"got {got}; choose" in str(error.value)


@pytest.mark.parametrize("channels, side", [*product((2, 4, 8), (1, 4, 5))])
def test_maps_are_pooled_over_their_two_equal_sides_wherever_the_channels_are(channels, side):
    maps = torch.randn(3, channels, side, side)
    expected = torch.stack([torch.stack([channel.mean() for channel in sample]) for sample in maps])
    torch.testing.assert_close(pool(maps), expected)
    if channels != side:
        torch.testing.assert_close(pool(maps.permute(0, 2, 3, 1)), expected)


def test_tokens_are_averaged_and_vectors_stay():
    tokens = torch.randn(3, 5, 4, dtype=torch.float64)
    torch.testing.assert_close(pool(tokens), (tokens[:, 0] + tokens[:, 1:].sum(1)) / 5)
    assert torch.equal(pool(tokens[:, 0]), tokens[:, 0])
