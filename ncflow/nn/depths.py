"""The depth of every parameter of a backbone, for learning rates that fall from layer to layer."""

from __future__ import annotations

from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any

from torch import nn

from ncflow.nn.layers import stages
from ncflow.nn.necks import Backbone

Depths = dict[str, int]  # by name of a parameter


def parameter_depths(backbone: nn.Module) -> tuple[Depths, int]:
    """Return the depth of every parameter of a backbone by name, and that of a head on top of it. The stem has 0.

    Models of timm have timm's own layers, usually their blocks. Others have their `stages`: a parameter between two
    stages, or after the last one, belongs to the stage before it. A projection and a neck are new layers on top of the
    body. They have the depth of the head.
    """
    if not isinstance(backbone, Backbone):
        return _by_stages(backbone, stages(backbone))
    body: Any = backbone.body
    found, top = _by_matcher(body) if hasattr(body, "group_matcher") else _by_stages(body, backbone.layers.values())
    names = [name for name, _ in backbone.named_parameters()]
    return {name: found[name.removeprefix("body.")] if name.startswith("body.") else top for name in names}, top


def _by_stages(module: nn.Module, paths: Iterable[str]) -> tuple[Depths, int]:
    """The stage that each parameter lies in, by number, else the one before it; and the number of stages."""
    order = list(paths)
    depths, current = {}, 0
    for name, _ in module.named_parameters():
        inside = [number for number, path in enumerate(order) if name.startswith(f"{path}.")]
        current = max(inside, default=current)
        depths[name] = current
    return depths, len(order)


def _by_matcher(body: Any) -> tuple[Depths, int]:
    """The layer of each parameter as timm counts them, and that of the classifier that timm's model would have."""
    from timm.models import group_parameters

    known = body.pretrained_cfg.get("classifier") or "head"
    classifier = f"{known if isinstance(known, str) else known[0]}.weight"
    names = [(name, None) for name, _ in body.named_parameters()] + [(classifier, None)]
    complete: Any = SimpleNamespace(named_parameters=lambda: iter(names))  # the names that a whole classifier has
    depths: Depths = group_parameters(complete, body.group_matcher(coarse=False), reverse=True)
    return depths, depths[classifier]
