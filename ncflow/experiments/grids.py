"""A grid: the axes along which runs differ, and the pattern of their names."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any

from ncflow.dotted import nest
from ncflow.nn.heads import HEAD_ALIASES
from ncflow.params import HeadParams, Params, make_params

Settings = dict[str, Any]  # dotted key -> value, as in --set


@dataclass(frozen=True)
class Grid:
    """All combinations of one choice from each axis; a choice sets one key, or several keys together.

    `settings` apply to all runs of the grid, on top of COMMON. `names` is a format string over the parameters of a run.
    The names therefore stay correct under overrides. `{variant}` in it is the head with its options. `posthoc` are the
    rows of POSTHOC that a suite measures on each finished run.
    """

    names: str
    axes: Sequence[Sequence[Settings]]
    settings: Settings = field(default_factory=dict)
    posthoc: Sequence[str] = ()

    @property
    def has_own_heads(self) -> bool:
        """Whether an axis sets the head in some of its choices together with other keys. Then no head replaces it."""
        return any(0 < sum("head.name" in choice for choice in axis) < len(axis) for axis in self.axes)

    def runs(self, *, head: str | None = None, overrides: Iterable[str] = ()) -> list[Params]:
        """The run of each combination, with overrides on top; `head` replaces the heads of the grid."""
        axes = _with_head(self.axes, head) if head else self.axes
        overrides = list(overrides)
        _refuse_ignored(overrides)
        runs = []
        for choices in product(*axes):
            settings = COMMON | self.settings
            for choice in choices:
                settings = settings | choice
            runs.append(_named(make_params(nest(settings), overrides), self.names))
        return runs


def _refuse_ignored(overrides: Iterable[str]) -> None:
    """Raise ValueError for keys that a published grid sets itself."""
    keys = [override.partition("=")[0].strip() for override in overrides]
    if ignored := [key for key in keys if key.partition(".")[0] in ("exp_name", "grid")]:
        raise ValueError(
            f"{', '.join(ignored)} cannot be overridden here: a published group has its own grid and names its runs "
            "after the keys that vary; use the group quickstart, or override the keys that the grid varies"
        )


def each(key: str, *values: Any) -> list[Settings]:
    """An axis along which one key takes each of the values."""
    return [{key: value} for value in values]


def _with_head(axes: Sequence[Sequence[Settings]], head: str) -> list[Sequence[Settings]]:
    """The axes with only this head: with its options from the grid, or its defaults."""
    name = HEAD_ALIASES.get(head, head)
    own = [choice for axis in axes for choice in axis if choice.get("head.name") == name]
    others = [axis for axis in axes if "head.name" not in axis[0]]
    return [*others, own or [{"head.name": name}]]


def _named(run: Params, names: str) -> Params:
    """The run with its name; the head is added if the pattern lacks it and it is not "linear"."""
    if "{head.name}" not in names and "{variant}" not in names and run.head.name != "linear":
        names += "_{head.name}"
    name = names.format(**dict(run), variant=_variant(run.head)).replace("/", "-")  # timm/<model>
    return make_params(run.model_dump(mode="json") | {"exp_name": name})


def _variant(head: HeadParams) -> str:
    """The name of a head and its options that are not the defaults, such as linear_normalize_temperature=5."""
    defaults = {option: field.default for option, field in type(head).model_fields.items()}
    changed = {option: value for option, value in head if option != "name" and value != defaults[option]}
    return "_".join([head.name, *(_option(option, value) for option, value in changed.items())])


def _option(name: str, value: Any) -> str:
    """An option in a name: only its name where it is switched on, only its value where that is text."""
    if isinstance(value, str):
        return value
    return name if value is True else f"{name}={value:g}" if isinstance(value, float) else f"{name}={value}"


# The first seed's settings. The momentum is the default of SGD, 0.9.
COMMON: Settings = {
    "dataset.imb_type": "exp",
    "dataset.imb_factor": 0.01,
    "train.epochs": 200,
    "train.batch_size": 256,
    "train.lr": 0.1,
    "train.optimizer": "sgd",
    "train.weight_decay": 1e-3,
    "train.schedule": "cosine",
    "train.loss": "ce",
    "train.analyze_freq": 2,
}
