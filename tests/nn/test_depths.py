"""Depths of parameters: timm's own layers, stages of other networks, and the rates that follow from them."""

from __future__ import annotations

import pytest
import timm
import torch
from timm.optim import param_groups_layer_decay
from torch import nn

from ncflow.nn import BACKBONES, Classifier, create_backbone, create_head
from ncflow.nn.depths import parameter_depths
from ncflow.training import create_optimizer, parameter_groups


def rates(classifier: Classifier, layer_decay: float) -> dict[str, float]:
    """The learning rate of every parameter by name."""
    groups = parameter_groups(classifier, layer_decay=layer_decay)
    optimizer = create_optimizer("sgd", groups, lr=1.0)
    names = {id(parameter): name for name, parameter in classifier.named_parameters()}
    return {names[id(p)]: group["lr"] for group in optimizer.param_groups for p in group["params"]}


@pytest.mark.parametrize("model", ["vit_tiny_patch16_224", "resnet10t", "convnext_atto"])
def test_rates_of_timm_models_are_timms(model):
    theirs = timm.create_model(model, num_classes=10)
    names = {id(parameter): name for name, parameter in theirs.named_parameters()}
    expected = {
        names[id(p)]: group["lr_scale"]
        for group in param_groups_layer_decay(theirs, layer_decay=0.7)
        for p in group["params"]
    }
    backbone = create_backbone(f"timm/{model}", image_size=224)
    found = rates(Classifier(backbone, create_head("linear", backbone.num_features, 10)), 0.7)
    assert found.pop("head.weight") == 1.0
    body = {name.removeprefix("backbone.body."): rate for name, rate in found.items()}
    assert body == pytest.approx({name: expected[name] for name in body})
    assert len(set(body.values())) > 3


@pytest.mark.parametrize("name", sorted(BACKBONES.keys() - {"free_features"}))
def test_depths_of_every_backbone_rise_from_stem_to_head(name):
    with torch.device("cpu" if name == "regnet_y_400mf" else "meta"):  # torchvision's regnet reads values
        backbone = create_backbone(name, image_size=32, num_features=16)
    depths, top = parameter_depths(backbone)
    assert depths.keys() == dict(backbone.named_parameters()).keys()
    body = [depth for name, depth in depths.items() if name.startswith("body.")]
    assert min(body) == 0 and set(body) | {top} == set(range(top + 1))
    assert {depth for name, depth in depths.items() if not name.startswith("body.")} == {top}


def test_a_parameter_between_stages_belongs_to_the_one_before():
    depths, top = parameter_depths(create_backbone("densenet121", image_size=32))
    assert top == 5
    assert depths["body.features.conv0.weight"] == 0
    assert (
        depths["body.features.transition1.conv.weight"] == depths["body.features.denseblock1.denselayer1.conv1.weight"]
    )
    assert depths["body.features.norm5.weight"] == 4


def test_rates_fall_by_the_factor_from_layer_to_layer_and_the_head_has_the_full_one():
    backbone = create_backbone("resnet20", neck="batch_norm")
    found = rates(Classifier(backbone, create_head("linear", 64, 10)), 0.5)
    assert found["head.weight"] == found["backbone.neck.weight"] == 1.0
    paths = ["layer3.0.conv1", "layer2.0.conv1", "layer1.0.conv1", "stem.0"]
    assert [found[f"backbone.body.{path}.weight"] for path in paths] == [0.5, 0.25, 0.125, 0.0625]


def test_a_users_network_is_counted_by_its_children():
    backbone = nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    found = rates(Classifier(backbone, create_head("linear", 2, 2)), 0.5)
    assert found == {
        "backbone.1.weight": 0.25,
        "backbone.1.bias": 0.25,
        "backbone.3.weight": 0.5,
        "backbone.3.bias": 0.5,
    } | {"head.weight": 1.0}


def test_a_factor_of_one_makes_the_same_groups_as_none():
    classifier = Classifier(create_backbone("resnet20"), create_head("linear", 64, 10, bias=True))
    plain, same = (parameter_groups(classifier, decay="matrices", **o) for o in ({}, {"layer_decay": 1.0}))
    assert [list(group) for group in plain] == [list(group) for group in same]
    assert [list(map(id, group["params"])) for group in plain] == [list(map(id, group["params"])) for group in same]


def test_layers_and_weight_decay_are_chosen_together():
    classifier = Classifier(create_backbone("resnet20"), create_head("linear", 64, 10))
    groups = parameter_groups(classifier, decay="matrices", layer_decay=0.5)
    assert sum(len(group["params"]) for group in groups) == len(list(classifier.parameters()))
    for group in groups:
        assert all((p.ndim > 1) == ("weight_decay" not in group) for p in group["params"])


@pytest.mark.parametrize("module", [nn.Linear(3, 2), Classifier(nn.Flatten(), create_head("linear", 4, 2))])
def test_a_module_without_layers_is_refused(module):
    with pytest.raises(ValueError, match="layer_decay=0.5 needs a classifier whose backbone has layers"):
        parameter_groups(module, layer_decay=0.5)


def test_a_factor_out_of_range_is_refused():
    with pytest.raises(ValueError, match="layer_decay is a factor"):
        parameter_groups(Classifier(create_backbone("resnet20"), create_head("linear", 64, 10)), layer_decay=1.5)


# --- drop path ---

DROPPING = {
    "timm/vit_tiny_patch16_224": 224,
    "convnext_tiny": 32,
    "efficientnet_b0": 32,
    "dinov2_small": 32,
    "EVA-02": 32,
}


@pytest.mark.parametrize("name", DROPPING)
def test_drop_path_drops_blocks_in_training_alone(name):
    torch.manual_seed(0)
    backbone = create_backbone(name, image_size=DROPPING[name], drop_path=0.9, neck="none")
    rates = [getattr(module, "drop_prob", getattr(module, "p", 0)) for module in backbone.modules()]
    assert 0.7 < max(rate for rate in rates if isinstance(rate, float)) <= 0.9
    images = torch.randn(2, 3, DROPPING[name], DROPPING[name])
    with torch.no_grad():
        backbone.train()
        assert not torch.equal(backbone(images), backbone(images))
        backbone.eval()
        assert torch.equal(backbone(images), backbone(images))


@pytest.mark.parametrize("name", ["resnet20", "vit_tiny", "timm/vgg11", "timm/repvit_m1"])
def test_a_network_without_drop_path_refuses_it(name):
    with pytest.raises(ValueError, match=r"drop.path"):
        create_backbone(name, image_size=32, drop_path=0.1)
