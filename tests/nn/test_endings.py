"""What features can take is what their last layer leaves them: held against random forwards of every backbone."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn

from ncflow.nn import BACKBONES, ENDINGS, MODEL_ALIASES, create_backbone, ends_in, feature_ending
from ncflow.nn.necks import NECKS

DEEP = ("resnet50", "densenet121", "convnext_tiny", "vgg16", "dinov2_small", "dinov3_small", "repvit_m1")
ROWS = [name for name in BACKBONES if name != "free_features" and feature_ending(name)]
CASES = [
    *((name, {"neck": "none"}) for name in ROWS),
    *((name, {"neck": "none", "final_norm": True}) for name in ("vit_tiny", "EVA-02")),
    *(("resnet20", {"neck": neck}) for neck in NECKS),
    *((name, {}) for name in ("vit_tiny", "mobilenetv4_small", "resnet18_ln", "resnet18_bn")),
    ("resnet20", {"num_features": 9}),
    ("efficientnet_b0", {"num_features": 9, "neck": "batch_norm"}),
    ("timm/test_resnet", {"neck": "layer_norm"}),
    ("timm/test_resnet", {"num_features": 9}),
]
MARKED = [
    pytest.param(name, options, id=f"{name}-{options}", marks=[pytest.mark.slow] if name.startswith(DEEP) else [])
    for name, options in CASES
]


def seen(name: str, mode: bool, **options: object) -> Tensor:
    """Features (B, d) of noise, in training or, after batch norms have seen some, in eval mode."""
    torch.manual_seed(0)
    backbone = create_backbone(name, image_size=32, **options)
    for norm in backbone.modules():
        if isinstance(norm, nn.modules.batchnorm._BatchNorm):
            norm.momentum = 1.0
    images = torch.randn(2, 6, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        features = backbone.train()(images[0])
        return features if mode else backbone.eval()(images[1])


def nonnegative(features: Tensor) -> bool:
    return bool((features >= 0).all())


def above(features: Tensor) -> bool:
    return bool((features >= -0.279).all()) and not nonnegative(features)


def of_one_length(features: Tensor) -> bool:
    """As a LayerNorm that was just made leaves them."""
    lengths = features.square().mean(1).sqrt()
    return torch.allclose(lengths, torch.ones_like(lengths), atol=1e-3) and features.mean(1).abs().max().item() < 1e-5


def any_value(features: Tensor) -> bool:
    return not (nonnegative(features) or of_one_length(features))


SHOWS: dict[str, Callable[[Tensor], bool]] = {
    "any": any_value,
    "nonnegative": nonnegative,
    "above -0.279": above,
    "of one length": of_one_length,
}


@pytest.fixture
def registered() -> Iterator[None]:
    before = dict(BACKBONES)
    yield
    BACKBONES.clear()
    BACKBONES.update(before)


def test_every_backbone_says_what_it_ends_in():
    assert {name: feature_ending(name) for name in BACKBONES if feature_ending(name) not in (None, *ENDINGS)} == {}
    assert set(ENDINGS.values()) == set(SHOWS)


@pytest.mark.parametrize("mode", [True, False])
@pytest.mark.parametrize("name, options", MARKED)
def test_features_take_the_values_that_their_ending_leaves_them_and_no_others(name, options, mode):
    features = seen(name, mode, **options)
    values = ENDINGS[feature_ending(name, **options)]
    assert SHOWS[values](features)
    assert nonnegative(features) == (values == "nonnegative")


def test_aliases_end_as_the_neck_and_norm_that_they_name():
    endings = {name: feature_ending(name) for name in MODEL_ALIASES}
    assert endings == {name: "batch_norm" if name.endswith("_bn") else "layer_norm" for name in MODEL_ALIASES}


def test_free_features_are_parameters_of_any_width():
    assert feature_ending("free_features", num_features=4) == "parameters"


@pytest.mark.parametrize("name", ["timm/test_resnet", "nobody's"])
def test_what_nobody_marked_makes_no_promise(name):
    assert feature_ending(name) is None


def test_a_builder_of_the_users_is_taken_at_its_mark_alone(registered):
    def mine(*, num_features: int = 8, neck: str = "none") -> nn.Module:
        return nn.Flatten()

    BACKBONES["mine"] = mine
    assert feature_ending("mine", num_features=4, neck="batch_norm") is None
    BACKBONES["mine"] = ends_in("relu")(mine)
    assert BACKBONES["mine"] is mine and "num_features" in inspect.signature(mine).parameters
    assert feature_ending("mine") == feature_ending("mine", num_features=4) == "relu"
    assert feature_ending("mine", neck="layer_norm") == "layer_norm"


def test_an_unknown_ending_is_refused_with_the_choices():
    with pytest.raises(ValueError, match="unknown ending of a backbone 'tanh'.*relu"):
        ends_in("tanh")


def test_an_alias_that_is_contradicted_has_no_ending():
    with pytest.raises(ValueError, match="neck='layer_norm'"):
        feature_ending("resnet18_ln", neck="none")
