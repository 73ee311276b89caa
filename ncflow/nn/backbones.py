"""Backbones: images (B, 3, S, S) -> features (B, d), exactly the input of the classifier head."""

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
    resnet34,
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
    """Return a randomly initialized module with `.num_features` = d that maps images (B, 3, S, S) to features (B, d).

    Features come after pooling, final norm, projection and neck. `name` is a row of BACKBONES, an alias, or
    `timm/<name>` for any timm model. An option given as None keeps the builder's default. ncflow's own rows have `neck`
    and `num_features` (project to this d). Most have `pretrained` (published weights, downloaded on first use).
    `image_size` is S. Every backbone accepts it, because S is a fact about the data rather than a choice. Only builders
    that depend on it receive it; the others take images of any size. Raises ValueError for a name or an option that
    does not exist.

    Examples:
        >>> import torch
        >>> backbone = create_backbone("resnet20")
        >>> backbone.num_features, backbone(torch.zeros(2, 3, 8, 8)).shape
        (64, torch.Size([2, 64]))
    """
    row, chosen = resolve_alias(name, options)
    builder = _builder(row)
    check_options(builder, chosen, f"backbone '{name}'")
    if image_size is not None and "image_size" in inspect.signature(builder).parameters:
        chosen["image_size"] = image_size
    return builder(**chosen)


def refuse_missing_weights(name: str, **options: Any) -> None:
    """Raise ValueError if no weights are published for `create_backbone(name, pretrained=True, **options)`.

    Uses no network: a failed download shows only when it is tried.
    """
    row, _ = resolve_alias(name, options)
    builder = _builder(row)
    if "pretrained" not in inspect.signature(builder).parameters:
        having = [each for each, other in BACKBONES.items() if "pretrained" in inspect.signature(other).parameters]
        raise ValueError(
            f"backbone '{name}' has no published weights: expected pretrained false, got true; choose one of "
            f"{', '.join(sorted(having))}, or most timm models"
        )
    if row.startswith("timm/"):
        refuse_weightless(row.removeprefix("timm/"))


def list_backbones() -> list[str]:
    """The names in BACKBONES; the first line of each builder's docstring describes it. timm's models are not listed.

    Examples:
        >>> "resnet20" in list_backbones()
        True
    """
    return sorted(BACKBONES)


def resolve_alias(name: str, options: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Return the row that `name` stands for, and the chosen options (not None) with those that the alias implies.

    Raises ValueError for an option that contradicts the alias, because a name identifies its runs.
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
    """Return the last layer of `create_backbone(name, **options)`, a row of ENDINGS; builds nothing.

    It is the neck or a projection, else the end of the body, which `ends_in` marks on the builder. None if neither is
    known, as for timm's models without neck and projection.
    """
    row, chosen = resolve_alias(name, options)
    builder: Callable[..., nn.Module] | None = timm_backbone if row.startswith("timm/") else BACKBONES.get(row)
    if builder is None or not (builder is timm_backbone or hasattr(builder, "ending")):
        return None  # a user's builder may use these options in another way
    parameters = inspect.signature(builder).parameters.values()
    defaults = {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}
    neck = chosen.get("neck", defaults.get("neck", "none"))
    if neck != "none":
        return neck if neck in ENDINGS else None
    projected = "num_features" in chosen and defaults.get("num_features", chosen) is None  # else it is the body's width
    return "linear" if projected else body_ending(builder, defaults | chosen)


def backbone_size(name: str, **options: Any) -> tuple[int, int]:
    """Return (number of parameters, feature width d) of `create_backbone(name, **options)`; draws no random numbers."""
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
    "resnet34": resnet34,
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
