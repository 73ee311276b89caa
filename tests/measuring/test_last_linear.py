"""The last linear layer: found in any model, or refused with a message that names what there is."""

from __future__ import annotations

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

from ncflow.measuring.layers import captured, evaluating, find_linear
from ncflow.nn import Classifier, create_backbone, create_head

IMAGES = torch.rand(3, 3, 32, 32)


class Small(nn.Module):
    """Features (B, 6), and logits (B, 4) by `end`."""

    def __init__(self, end: nn.Module | None = None) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 6), nn.ReLU())
        self.end = nn.Linear(6, 4) if end is None else end

    def forward(self, images: Tensor) -> Tensor:
        return self.end(self.body(images))


class Cosine(nn.Linear):
    def forward(self, features: Tensor) -> Tensor:
        return F.linear(F.normalize(features), F.normalize(self.weight))


class OwnLinear(nn.Module):
    """Linear, but no nn.Linear: a fixed matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("weight", torch.randn(4, 6))

    def forward(self, features: Tensor) -> Tensor:
        return features @ self.weight.T


class After(Small):
    """Something more happens to the output of the last linear layer."""

    def __init__(self, change) -> None:
        super().__init__()
        self.change = change

    def forward(self, images: Tensor):
        return self.change(super().forward(images))


class Twice(Small):
    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images) + super().forward(images.flip(3))


@pytest.mark.parametrize(
    "name, layer",
    [
        ("resnet18", "fc"),
        ("densenet121", "classifier"),
        ("mobilenet_v3_small", "classifier.3"),
        ("swin_t", "head"),
    ],
)
def test_the_layer_of_torchvisions_models_is_found(name, layer):
    model = getattr(torchvision.models, name)(num_classes=7)
    assert find_linear(model, IMAGES) == (layer, model.get_submodule(layer))


@pytest.mark.parametrize("name, layer", [("test_vit", "head"), ("test_convnext", "head.fc"), ("test_resnet", "fc")])
def test_the_layer_of_timms_models_is_found(name, layer):
    assert find_linear(timm.create_model(name, num_classes=7), torch.rand(2, 3, 160, 160))[0] == layer


@pytest.mark.parametrize("head", ["linear", "nearest_etf", "fixed_etf"])
@pytest.mark.parametrize("own", [True, False])
def test_a_head_of_ncflow_gives_its_embedded_features(head, own):
    made = create_head(head, 64, 5)
    if own:
        model = Classifier(create_backbone("resnet20", image_size=32), made).eval()
    else:
        model = torchvision.models.resnet18()
        model.fc = made = create_head(head, 512, 5)
    with torch.no_grad(), evaluating(model), captured(model) as last:
        output = model(IMAGES)
    logits = output.logits if own else output
    assert (last.name, last.layer) == ("head" if own else "fc", made)
    product = F.linear(last.features, last.weight, last.bias)
    torch.testing.assert_close(product, logits)


@pytest.mark.parametrize("seed", range(3))
def test_the_features_explain_the_logits(seed):
    torch.manual_seed(seed)
    model = Small().double()
    with captured(model) as last:
        for batch in torch.rand(2, 5, 3, 32, 32).double():
            logits = model(batch)
            torch.testing.assert_close(last.features @ last.weight.T + last.bias, logits)
    assert not last.features.requires_grad and not last.weight.requires_grad


@pytest.mark.parametrize(
    "change",
    [
        lambda logits: F.log_softmax(logits, dim=1),
        lambda logits: F.softmax(logits, dim=1),
        lambda logits: logits.half(),
        lambda logits: {"loss": logits.sum(), "logits": logits},
        lambda logits: (logits.sum(), logits),
        lambda logits: logits.unsqueeze(1),
    ],
)
def test_a_form_of_the_logits_is_recognized(change):
    assert find_linear(After(change), IMAGES)[0] == "end"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_low_precision_keeps_its_dtype(dtype):
    model = Small().to(dtype)
    with captured(model) as last:
        model(IMAGES.to(dtype))
    assert last.name == "end" and last.features.dtype is dtype


def test_autocast_is_no_obstacle():
    with torch.autocast("cpu", torch.bfloat16):
        assert find_linear(Small(), IMAGES)[0] == "end"


@pytest.mark.parametrize("in_place", [True, False])
def test_a_compiled_model_is_captured_and_compiled_afterwards(in_place):
    model = Small().eval()
    called = torch.compile(model, backend="eager")
    if in_place:
        model.compile(backend="eager")
        called = model
    called(IMAGES)  # compiled before anyone looks
    with captured(called) as last:
        logits = called(IMAGES)
    assert last.name == "end"
    torch.testing.assert_close(last.features @ last.weight.T + last.bias, logits)
    torch.testing.assert_close(called(IMAGES), logits)


def test_wrappers_are_unwrapped_and_their_names_accepted():
    model = Small()
    for wrapped in (nn.DataParallel(model), torch.compile(nn.DataParallel(model), backend="eager")):
        assert find_linear(wrapped, IMAGES) == ("end", model.end)
        assert find_linear(wrapped, IMAGES, layer="module.end")[0] == "end"
        assert find_linear(wrapped, IMAGES, layer=model.end)[0] == "end"


def test_a_linear_module_of_another_class_is_found():
    model = Small(OwnLinear())
    assert find_linear(model, IMAGES) == ("end", model.end)


def test_a_model_that_is_only_linear_is_its_own_layer():
    model = nn.Linear(5, 3)
    assert find_linear(model, torch.rand(2, 5)) == ("", model)


@pytest.mark.parametrize(
    "model, layer, message",
    [
        (
            Small(nn.BatchNorm1d(6)),
            None,
            "no linear layer of Small returns its logits; the last one is 'body.1'.*'body.1'",
        ),
        (After(lambda logits: 3 * logits), None, "no linear layer of After returns its logits; .* one of 'end'"),
        (After(lambda logits: logits.mul_(3)), None, "'end' .Linear. is not linear: its output is not input"),
        (Small(Cosine(6, 4)), None, "'end' .Cosine. is not linear"),
        (Twice(), "end", "'end' ran 2 times in one forward; expected once"),
        (torchvision.models.squeezenet1_1(), None, "SqueezeNet ran no linear layer.* A 1x1 convolution is none"),
        (torchvision.models.resnet18(), "conv1", "'conv1' is a Conv2d, not a linear layer; name one of 'fc'"),
        (torchvision.models.resnet18(), "fcc", "unknown layer 'fcc'. Did you mean 'fc'"),
        (
            torchvision.models.mobilenet_v3_small(),
            "classifier",
            "is a Sequential, not a linear layer; name one of 'classifier.0', 'classifier.3'",
        ),
        (Small(), nn.Linear(6, 4), r"layer \(Linear\) is no part of the model; name one of 'body.1', 'end'"),
    ],
)
def test_what_has_no_last_linear_layer_is_refused(model, layer, message):
    with pytest.raises(ValueError, match=message):
        find_linear(model, IMAGES, layer=layer)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_a_layer_that_does_not_run_is_refused():
    model = Small()
    model.other = nn.Linear(6, 4)
    with pytest.raises(ValueError, match="'other' did not run in this forward; name one of 'body.1', 'end'"):
        find_linear(model, IMAGES, layer="other")


def test_before_the_first_forward_nothing_is_known():
    with captured(Small()) as last, pytest.raises(ValueError, match="call the model first"):
        _ = last.features


def test_hooks_and_modes_are_as_before_even_after_an_error():
    model = Small()
    model.body.eval()
    modes = [module.training for module in model.modules()]
    with pytest.raises(RuntimeError), evaluating(model), captured(model):
        assert not any(module.training for module in model.modules())
        model(torch.rand(2, 5))
    assert [module.training for module in model.modules()] == modes
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_many_gpus_of_dataparallel_are_refused():
    model = nn.DataParallel(Small())
    model.device_ids = [0, 1]
    with pytest.raises(ValueError, match="pass model.module"), captured(model):
        pass
