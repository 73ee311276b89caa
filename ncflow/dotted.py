"""Dotted keys: {"train.lr": 0.1} for {"train": {"lr": 0.1}}, as --set, grids, MLflow and tables use them.

OmegaConf would do the same. But it reads "${" in a value, such as a path, as a reference to another key.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"train": {"lr": 0.1}} -> {"train.lr": 0.1}; an empty mapping has no keys."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


def nest(flat: Mapping[str, Any]) -> dict[str, Any]:
    """{"seed": 0, "train.lr": 0.1} -> {"seed": 0, "train": {"lr": 0.1}}; later keys win."""
    values: dict[str, Any] = {}
    for key, value in flat.items():
        assign(values, key, value)
    return values


def assign(values: Any, key: str, value: Any) -> None:
    """Set the value at a dotted key in place; add missing sections. Raises ValueError where a part is no section.

    >>> values = {"seed": 0}
    >>> assign(values, "train.loss_options.gamma", 2)
    >>> values
    {'seed': 0, 'train': {'loss_options': {'gamma': 2}}}
    """
    *sections, last = key.split(".")
    place, path = values, ""
    for section in [*sections, None]:
        if not isinstance(place, dict):
            raise ValueError(f"'{path}' is not a section with own keys" if path else "it is not a mapping")
        if section is not None:
            place, path = place.setdefault(section, {}), f"{path}.{section}".lstrip(".")
    place[last] = value
