"""Necks: the widths and the norms that pooled features pass through."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from ncflow.nn.cifar_resnets import BasicBlock
from ncflow.nn.convnets import STEMS
from ncflow.nn.necks import NECKS, Backbone


def vectors(batch: int = 8, size: int = 6) -> Tensor:
    return 3 + torch.randn(batch, size, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("neck, axis", {"none": None, "layer_norm": 1, "batch_norm": 0}.items())
def test_a_neck_normalizes_the_features_it_is_named_after(neck, axis):
    features = Backbone(nn.Identity(), 6, neck=neck).train()(vectors())
    assert set(NECKS) == {"none", "layer_norm", "batch_norm"}
    if axis is None:
        assert torch.equal(features, vectors())
    else:
        torch.testing.assert_close(features.mean(axis), torch.zeros(features.shape[1 - axis]), atol=1e-5, rtol=0)
        deviation = features.std(axis, correction=0)
        torch.testing.assert_close(deviation, torch.ones_like(deviation), atol=1e-3, rtol=0)


@pytest.mark.parametrize("neck", NECKS)
@pytest.mark.parametrize("width", [2, 11])
def test_a_given_width_is_a_bias_free_linear_map_before_the_neck(neck, width):
    backbone = Backbone(nn.Identity(), 6, neck=neck, project_to=width).eval()
    expected = backbone.neck(vectors() @ backbone.projection.weight.T)
    torch.testing.assert_close(backbone(vectors()), expected)
    assert backbone.num_features == width and expected.shape == (8, width)
    assert torch.equal(backbone.projection(torch.zeros(1, 6)), torch.zeros(1, width))


def test_without_a_width_the_projection_has_nothing_to_learn_or_save():
    assert not Backbone(nn.Identity(), 6).state_dict()
    with pytest.raises(ValueError, match="num_features must be >= 1, or None for the body's 6, got -1"):
        Backbone(nn.Identity(), 6, project_to=-1)


def test_an_unknown_neck_is_refused_with_the_nearest_spelling():
    with pytest.raises(ValueError, match="Did you mean 'layer_norm'"):
        Backbone(nn.Identity(), 6, neck="layernorm")


def test_a_single_pixel_uses_the_running_statistics_of_every_norm():
    body = nn.Sequential(nn.Conv2d(3, 6, 4), nn.BatchNorm2d(6), nn.Flatten())
    backbone = Backbone(body, 6, neck="batch_norm").train()
    image = torch.ones(1, 3, 4, 4)
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        body(image)
    features = backbone(image)
    assert torch.equal(features, backbone.eval()(image))


@torch.no_grad()
def test_option_a_shortcut_subsamples_and_pads_with_zero_channels():
    block = BasicBlock(4, 8, stride=2)
    block.bn2.weight.zero_()  # no residual: what remains is the shortcut
    x = torch.rand(2, 4, 6, 6)
    out = block(x)
    for row in range(3):
        for column in range(3):
            assert torch.equal(out[:, :4, row, column], x[:, :, 2 * row, 2 * column])
    assert torch.equal(out[:, 4:], torch.zeros(2, 4, 3, 3))


def test_every_stem_takes_images_to_64_maps():
    for stem in STEMS.values():
        convolution, pooling = stem()
        assert pooling(convolution(torch.zeros(1, 3, 16, 16))).shape[1] == 64
