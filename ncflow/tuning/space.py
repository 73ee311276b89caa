"""The space of a search: the keys that trials vary, the range or the choices of each, from `--space KEY=VALUES`."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from math import prod
from typing import Any

from ncflow.experiments.axes import Axis, parse_axes, setting
from ncflow.experiments.sweeps import choose
from ncflow.params import Params

Number = int | float


@dataclass(frozen=True)
class Dimension:
    """A key with its choices, or with a range from `low` to `high`, both included.

    `log` ranges are searched by their logarithm. `whole` ranges hold whole numbers only.
    """

    key: str
    choices: tuple[Any, ...] = ()
    low: Number = 0
    high: Number = 0
    log: bool = False
    whole: bool = False

    @property
    def ends(self) -> tuple[Any, ...]:
        """All choices, or both ends of the range."""
        return self.choices or (self.low, self.high)

    @property
    def slot(self) -> str:
        """What it sets: a head by its name is the whole head."""
        return Axis(self.key, ()).slot

    def __str__(self) -> str:
        """The text from which `parse_space` makes an equal dimension."""
        if self.choices:
            return f"{self.key}={','.join(setting(self.key, value).partition('=')[2] for value in self.choices)}"
        if self.whole and not self.log:
            return f"{self.key}={self.low}..{self.high}"
        return f"{self.key}={'log' if self.log else 'uniform'}({self.low!r},{self.high!r})"


def parse_space(texts: Iterable[str]) -> list[Dimension]:
    """The dimensions of texts such as "train.lr=log(1e-3,1)", "train.epochs=5..20" and "head.name=linear,nearest_etf".

    >>> [str(dimension) for dimension in parse_space(["train.lr=log(1e-3,1)", "train.mix=none,mixup"])]
    ['train.lr=log(0.001,1)', 'train.mix="none","mixup"']

    Raises ValueError for a text of another form, a key that is given twice, and a key whose best value is chance.
    """
    space = [_parse(text) for text in texts]
    if not space:
        raise ValueError("expected at least one --space KEY=VALUES, such as --space train.lr=log(1e-3,1), got none")
    slots = [dimension.slot for dimension in space]
    if twice := [dimension.key for i, dimension in enumerate(space) if dimension.slot in slots[:i]]:
        raise ValueError(f"--space {twice[0]} is given twice; give its range or its choices once")
    return space


def fit_space(space: Sequence[Dimension], base: Params) -> tuple[list[Dimension], list[Params]]:
    """The space with the type of number that each key takes, and the parameters at its corners.

    The corners are all combinations of choices and ends of ranges, at most MOST_CORNERS. Of a larger space they are
    one run for each value. Raises ValueError for a key or a value that the parameters refuse.
    """
    space = [_typed(dimension, space, base) for dimension in space]
    return space, [_make(base, corner) for corner in _corners(space)]


def configure(base: Params, values: dict[str, Any], name: str) -> Params:
    """The parameters of a trial: `base` with the values of the space, under a name. Raises ValueError if refused."""
    return choose(base, [*(setting(key, value) for key, value in values.items()), setting("exp_name", name)])


def first_values(space: Sequence[Dimension]) -> list[str]:
    """One setting for each key."""
    return [setting(dimension.key, dimension.ends[0]) for dimension in space]


def _parse(text: str) -> Dimension:
    key, _, listed = text.partition("=")
    key = key.strip()
    if key.endswith("seed"):
        raise ValueError(f"--space cannot search {key}: the best seed is chance; repeat the best trial with --grid")
    if key.partition(".")[0] == "dataset":
        raise ValueError(f"--space cannot search {key}: trials on different data do not compare; use --set {key}=…")
    if called := _CALL.fullmatch(listed.strip()):
        return _range(key, text, called["low"], called["high"], log=called["scale"] == "log")
    if spread := _WHOLE.fullmatch(listed.strip()):
        return replace(_range(key, text, *spread.groups(), log=False), whole=True)
    if listed.strip().startswith(("log(", "uniform(")):
        raise ValueError(f"--space expects two numbers, such as {key}=log(1e-3,1), got '{text}'")
    return _choices(text)


def _range(key: str, text: str, low: str, high: str, *, log: bool) -> Dimension:
    first, last = _number(low), _number(high)
    if not all(key.split(".")):
        raise ValueError(f"--space expects a key such as train.lr, got '{text}'")
    if not first < last:
        raise ValueError(f"--space {text}: the first number must be less than the second one")
    if log and first <= 0:
        raise ValueError(f"--space {text}: a logarithmic range starts above 0; use uniform({low},{high})")
    return Dimension(key, low=first, high=last, log=log)


def _choices(text: str) -> Dimension:
    try:
        (axis,) = parse_axes([text])
    except ValueError as error:
        raise ValueError(str(error).replace("--grid", "--space")) from None
    return Dimension(axis.key, choices=axis.values)


def _number(text: str) -> Number:
    return int(text) if re.fullmatch(r"[-+]?\d+", text) else float(text)


def _typed(dimension: Dimension, space: Sequence[Dimension], base: Params) -> Dimension:
    """The dimension with `whole` set for a range of a key that takes whole numbers only."""
    if dimension.choices or dimension.whole:
        return dimension
    others = {each.key: each.ends[0] for each in space}
    if _is_taken(base, others | {dimension.key: float(dimension.low)}):
        return replace(dimension, low=float(dimension.low), high=float(dimension.high))
    _make(base, others | {dimension.key: dimension.low})
    _make(base, others | {dimension.key: dimension.high})
    return replace(dimension, whole=True)


def _corners(space: Sequence[Dimension]) -> Iterator[dict[str, Any]]:
    keys = [dimension.key for dimension in space]
    if prod(len(dimension.ends) for dimension in space) <= MOST_CORNERS:
        yield from (dict(zip(keys, values, strict=True)) for values in product(*(each.ends for each in space)))
        return
    first = {dimension.key: dimension.ends[0] for dimension in space}
    yield from (first | {dimension.key: value} for dimension in space for value in dimension.ends)


def _make(base: Params, values: dict[str, Any]) -> Params:
    try:
        return configure(base, values, base.exp_name)
    except ValueError as error:
        shown = ", ".join(f"{key}={json.dumps(value)}" for key, value in values.items())
        raise ValueError(f"--space has values that a run cannot have, such as {shown}: {error}") from None


def _is_taken(base: Params, values: dict[str, Any], make: Callable[..., Params] = configure) -> bool:
    try:
        make(base, values, base.exp_name)
    except ValueError:
        return False
    return True


MOST_CORNERS = 256
_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
_CALL = re.compile(rf"(?P<scale>log|uniform)\(\s*(?P<low>{_NUMBER})\s*,\s*(?P<high>{_NUMBER})\s*\)")
_WHOLE = re.compile(r"([-+]?\d{1,18})\.\.([-+]?\d{1,18})")
