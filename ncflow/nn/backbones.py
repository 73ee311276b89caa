"""Backbones: images (B, 3, S, S) -> features (B, d), exactly the vectors that the classifier head's linear map sees."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, cast

import torch
from torch import nn

from ncflow.lookup import check_options, unknown
from ncflow.nn.cifar_resnets import resnet20, resnet32
from ncflow.nn.convnets import (
    convnext_tiny,
    densenet121,
    efficientnet_b0,
    googlenet,
    mobilenet_v2,
    mobilenetv4_small,
    regnet_y_400mf,
    repvit_m1,
    resnet18,
    resnet50,
    shufflenet_v2,
    vgg11,
    vgg16,
)
from ncflow.nn.endings import ENDINGS, body_ending
from ncflow.nn.free_features import free_features
from ncflow.nn.stock import refuse_weightless, timm_backbone
from ncflow.nn.transformers import dinov2_small, dinov3_small, eva02_tiny, vit_tiny


def create_backbone(name: str, *, image_size: int | None = None, **options: Any) -> nn.Module:
    """A randomly initialized module with `.num_features` = d that maps images (B, 3, S, S) to features (B, d).

    Features come after pooling, final norm, projection and neck. `name` is a row of BACKBONES, an alias, or
    "timm/<name>" for any timm model. An option given as None keeps the builder's default. Rows of ours have `neck` and
    `num_features` (project to this d), most have `pretrained` (published weights, downloaded on first use).
    `image_size` is S: a fact about the data rather than a choice, so it is always welcome and goes to the builders that
    depend on it; the others take images of any size.
    """
    row, chosen = resolve_alias(name, options)
    builder = _builder(row)
    check_options(builder, chosen, f"backbone '{name}'")
    if image_size is not None and "image_size" in inspect.signature(builder).parameters:
        chosen["image_size"] = image_size
    return builder(**chosen)


def refuse_missing_weights(name: str, **options: Any) -> None:
    """Raise where nobody has published weights for `create_backbone(name, pretrained=True, **options)`.

    Asks no network: whether published weights can be downloaded shows when they are.
    """
    row, _ = resolve_alias(name, options)
    builder = _builder(row)
    if "pretrained" not in inspect.signature(builder).parameters:
        having = [each for each, other in BACKBONES.items() if "pretrained" in inspect.signature(other).parameters]
        raise ValueError(
            f"backbone '{name}' has no published weights: expected pretrained false, got true; those of "
            f"{', '.join(sorted(having))} and of most timm models are published"
        )
    if row.startswith("timm/"):
        refuse_weightless(row.removeprefix("timm/"))


def list_backbones() -> list[str]:
    """The names in BACKBONES; each builder's docstring describes it in its first line. timm's models come on top."""
    return sorted(BACKBONES)


def resolve_alias(name: str, options: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """The row that `name` stands for, and the options chosen (those not None) with the ones that the alias implies.

    An option that contradicts the alias is a ValueError: a name says what its runs are.
    """
    chosen = {option: value for option, value in options.items() if value is not None}
    if name in BACKBONES or name not in MODEL_ALIASES:
        return name, chosen
    row, implied = MODEL_ALIASES[name]
    for option, value in implied.items():
        if chosen.get(option, value) != value:
            raise ValueError(f"backbone '{name}' has {option}={value!r}, got {chosen[option]!r}; use '{row}' instead")
    return row, chosen | implied


def feature_ending(name: str, **options: Any) -> str | None:
    """The layer that features of `create_backbone(name, **options)` leave last, a row of ENDINGS; builds nothing.

    A neck or a projection has the last word, then the body as its builder is marked with `ends_in`. None where nothing
    says so, as of timm's models without either.
    """
    row, chosen = resolve_alias(name, options)
    builder: Callable[..., nn.Module] | None = timm_backbone if row.startswith("timm/") else BACKBONES.get(row)
    if builder is None or not (builder is timm_backbone or hasattr(builder, "ending")):
        return None  # options of a builder of the user's may mean anything
    parameters = inspect.signature(builder).parameters.values()
    defaults = {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}
    neck = chosen.get("neck", defaults.get("neck", "none"))
    if neck != "none":
        return neck if neck in ENDINGS else None
    projected = "num_features" in chosen and defaults.get("num_features", chosen) is None  # else it is the body's width
    return "linear" if projected else body_ending(builder, defaults | chosen)


def backbone_size(name: str, **options: Any) -> tuple[int, int]:
    """(number of parameters, feature width d) of `create_backbone(name, **options)`; draws no random numbers."""
    with torch.random.fork_rng(devices=[]):
        backbone = create_backbone(name, **options)
    return sum(parameter.numel() for parameter in backbone.parameters()), cast(int, backbone.num_features)


def _builder(name: str) -> Callable[..., nn.Module]:
    if name.startswith("timm/") and name not in BACKBONES:
        return partial(timm_backbone, name.removeprefix("timm/"))
    if name not in BACKBONES:
        raise unknown("backbone", name, [*list_backbones(), *MODEL_ALIASES, "timm/<name>"])
    return BACKBONES[name]


# name -> (row, options): the first seed's suffixes and control variants
MODEL_ALIASES: dict[str, tuple[str, dict[str, Any]]] = {
    "resnet18_ln": ("resnet18", {"neck": "layer_norm"}),
    "resnet18_bn": ("resnet18", {"neck": "batch_norm"}),
    "resnet50_ln": ("resnet50", {"neck": "layer_norm"}),
    "resnet50_bn": ("resnet50", {"neck": "batch_norm"}),
    "vit_tiny_orig": ("vit_tiny", {"final_norm": True, "neck": "none"}),
    "EVA-02_orig": ("EVA-02", {"final_norm": True, "neck": "none"}),
}

# name -> builder; its keyword-only parameters are the backbone's options
BACKBONES: dict[str, Callable[..., nn.Module]] = {
    "resnet18": resnet18,
    "resnet20": resnet20,
    "resnet32": resnet32,
    "resnet50": resnet50,
    "vgg11": vgg11,
    "vgg16": vgg16,
    "mobilenet_v2": mobilenet_v2,
    "shufflenet_v2": shufflenet_v2,
    "regnet_y_400mf": regnet_y_400mf,
    "densenet121": densenet121,
    "efficientnet_b0": efficientnet_b0,
    "googlenet": googlenet,
    "convnext_tiny": convnext_tiny,
    "mobilenetv4_small": mobilenetv4_small,
    "repvit_m1": repvit_m1,
    "vit_tiny": vit_tiny,
    "dinov2_small": dinov2_small,
    "dinov3_small": dinov3_small,
    "EVA-02": eva02_tiny,
    "free_features": free_features,
}
