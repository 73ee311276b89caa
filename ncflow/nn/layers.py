"""Layers: the pooled features of every stage of a backbone, from the same forward as its last features."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ncflow.lookup import unknown
from ncflow.nn.necks import Backbone, children_with_parameters


@contextmanager
def capture(backbone: nn.Module, layers: Iterable[str] | None = None) -> Iterator[dict[str, Tensor]]:
    """Yield a dict that every forward inside refills: layer -> features (B, d_l), pooled over space or tokens.

        with capture(backbone) as layers:
            features = backbone(images)
            layers["layer1"]  # (B, 64), of these images

    By default the layers are all `stages`. A layer may also be the path of any module inside the backbone's body, such
    as "layer1.0.conv1". Pooled features are float32 at least. They carry a gradient if the forward does. Raises
    ValueError for an unknown layer.

    Examples:
        >>> import torch
        >>> from ncflow import create_backbone
        >>> with capture(backbone := create_backbone("resnet20")) as layers:
        ...     features = backbone(torch.zeros(2, 3, 8, 8))
        >>> {name: tuple(pooled.shape) for name, pooled in layers.items()}
        {'stem': (2, 16), 'layer1': (2, 16), 'layer2': (2, 32), 'layer3': (2, 64)}
    """
    pooled: dict[str, Tensor] = {}
    chosen = _choose(backbone, layers)
    handles = [module.register_forward_hook(partial(_keep, pooled, name)) for name, module in chosen.items()]
    try:
        yield pooled
    finally:
        for handle in handles:
            handle.remove()


def stages(backbone: nn.Module) -> dict[str, nn.Module]:
    """Return stage -> module, from the images to the features; without named stages, the children with parameters.

    Convolutional networks have "stem", then "layer1", "block1" or the like. Transformers have "stem" (the embedded
    patches), then "blocks.0" and so on. Other timm models have timm's names of their feature stages.
    """
    return backbone.stages() if isinstance(backbone, Backbone) else children_with_parameters(backbone)


def pool(output: Tensor) -> Tensor:
    """Mean over space or tokens: maps (B, C, S, S) or (B, S, S, C), tokens (B, T, C) or vectors (B, C) -> (B, C).

    Maps are square, so the two equal sides are the space. If all three are equal, the channels come first.
    """
    output = output.to(torch.promote_types(output.dtype, torch.float32))
    if output.ndim == 4:
        channels_last = output.shape[1] == output.shape[2] != output.shape[3]
        return output.mean((1, 2) if channels_last else (2, 3))
    return output.mean(1) if output.ndim == 3 else output


def _choose(backbone: nn.Module, layers: Iterable[str] | None) -> dict[str, nn.Module]:
    known = stages(backbone)
    if layers is None:
        return known
    inside = dict((backbone.body if isinstance(backbone, Backbone) else backbone).named_modules()) | known
    for name in (layers := list(layers)):
        if name not in inside:
            raise unknown("layer", name, known)
    return {name: inside[name] for name in layers}


def _keep(pooled: dict[str, Tensor], name: str, module: nn.Module, inputs: Any, output: Any) -> None:
    if not isinstance(output, Tensor) or output.ndim not in (2, 3, 4):
        shape = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise ValueError(
            f"layer '{name}' must return maps (B, C, S, S), tokens (B, T, C) or vectors (B, C), got {shape}; "
            "choose other layers"
        )
    pooled[name] = pool(output)
