"""Axes: the keys that a sweep varies and the values of each, from `--grid KEY=VALUES` or from a group's file."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from ncflow.yaml_files import parse_yaml


class Axis(NamedTuple):
    """A key and the values that it takes, as YAML gives them; `where` is the option or the file that says so."""

    key: str
    values: tuple[Any, ...]
    where: str = "--grid"

    @property
    def slot(self) -> str:
        """What it sets: a head by its name is the whole head."""
        return "head" if self.key == "head.name" else self.key


def parse_axes(texts: Iterable[str]) -> list[Axis]:
    """The axes of texts such as "train.lr=0.3,0.1" and "seed=0..4"; commas in brackets and quotes belong to a value.

    >>> [axis.values for axis in parse_axes(["seed=0..2", "train.augment=[flip],[flip, crop]"])]
    [(0, 1, 2), (['flip'], ['flip', 'crop'])]

    Raises ValueError for a text without key or values, for a key that is given twice, and as `make_axis` does.
    """
    axes = [_parse_axis(text) for text in texts]
    refuse_twice(axes)
    return axes


def make_axis(key: str, values: Sequence[Any], where: str = "--grid") -> Axis:
    """The axis of a key; a text such as "0..4" among its values stands for the whole numbers from 0 to 4.

    Raises ValueError for a key that names runs, for fewer than two values and for a value that is given twice.
    """
    if key.partition(".")[0] in NOT_VARIED:
        raise ValueError(f"{where} cannot vary {key}: {NOT_VARIED[key.partition('.')[0]]}")
    if key == "head" and all(isinstance(value, str) for value in values):
        key = "head.name"
    spread = tuple(number for value in values for number in _spread(value, f"{where} {key}"))
    texts = [setting(key, value).partition("=")[2] for value in spread]
    if twice := [text for text, times in Counter(texts).items() if times > 1]:
        raise ValueError(f"{where} {key}: {twice[0]} is given twice; give each value once")
    if len(spread) < 2:
        raise ValueError(f"{where} {key} has one value, so it does not move; {_advice(key, spread)}")
    return Axis(key, spread, where)


def refuse_twice(axes: Sequence[Axis]) -> None:
    """Raise ValueError where two axes have the same key."""
    slots = [axis.slot for axis in axes]
    for i, axis in enumerate(axes):
        if axis.slot in slots[:i]:
            raise ValueError(f"{axis.where} {axis.key} is given twice; give all its values at once")


def setting(key: str, value: Any) -> str:
    """The override that sets a key to a value. Raises ValueError for a value that is no plain data."""
    try:
        text = json.dumps(value, ensure_ascii=False)  # JSON is YAML, and one line
    except (TypeError, ValueError, RecursionError):
        raise ValueError(f"{key} expects a number, text, true, false, null, a list or a mapping of these") from None
    for ends_a_line in "\x85\u2028\u2029":  # for YAML, which would read it as a blank
        text = text.replace(ends_a_line, f"\\u{ord(ends_a_line):04x}")
    return f"{key}={text}"


def _parse_axis(text: str) -> Axis:
    key, equals, listed = text.partition("=")
    key = key.strip()
    if not equals or not all(key.split(".")) or not listed.strip():
        raise ValueError(f"--grid expects key=values such as train.lr=0.3,0.1 or seed=0..4, got '{text}'")
    return make_axis(key, [_parse_value(key, item) for item in _items(listed)])


def _parse_value(key: str, item: str) -> Any:
    if not item:
        raise ValueError(f"--grid {key}: a value is missing before or after a comma; write null for an empty value")
    try:
        return parse_yaml(item, aliases=False)
    except ValueError as error:
        raise ValueError(f"--grid {key}: '{item}' is not a YAML value: {error}") from None


def _items(text: str) -> list[str]:
    """The parts between commas outside brackets and quotes. A quote inside a word is an apostrophe."""
    starts, depth, quote, i = [0], 0, "", 0
    while i < len(text):
        letter = text[i]
        if quote:
            if text[i : i + 2] == ("''" if quote == "'" else "\\" + text[i + 1 : i + 2]):  # an escaped letter
                i += 1
            elif letter == quote:
                quote = ""
        elif letter in "'\"" and (not text[starts[-1] : i].strip() or text[:i].rstrip().endswith(tuple("[{,:"))):
            quote = letter
        elif letter in "[]{}":
            depth += 1 if letter in "[{" else -1
        elif letter == "," and depth <= 0:
            starts.append(i + 1)
        i += 1
    return [text[start : end - 1].strip() for start, end in zip(starts, [*starts[1:], len(text) + 1], strict=True)]


def _spread(value: Any, where: str) -> Iterator[Any]:
    """The whole numbers of a range "0..4", both ends included; any other value alone."""
    if not isinstance(value, str) or not _LIKE_RANGE.fullmatch(value):
        yield value
        return
    found = _RANGE.fullmatch(value)
    first, last = (int(end) for end in found.groups()) if found else (0, 0)
    if not first < last:
        raise ValueError(f"{where}: a range counts up in whole numbers, such as 0..4, got {value}")
    if last - first >= MOST_VALUES:
        raise ValueError(f"{where}: expected at most {MOST_VALUES} values, got {last - first + 1} in {value}")
    yield from range(first, last + 1)


def _advice(key: str, values: Sequence[Any]) -> str:
    if len(values) == 1 and isinstance(values[0], list) and len(values[0]) > 1:
        inside = setting(key, values[0]).partition("=")[2][1:-1]
        return f"brackets make a list one value. For several values write {key}={inside.replace(', ', ',')}"
    return f"use --set {setting(key, values[0])}" if values else "give at least two"


MOST_VALUES = 100_000  # of one axis
NOT_VARIED = {
    "exp_name": "the names of runs follow from what varies",
    "grid": "vary head.name, train.loss or seed themselves",
}
_RANGE = re.compile(r"([-+]?[0-9]{1,18})\.\.([-+]?[0-9]{1,18})")
_LIKE_RANGE = re.compile(r"[-+]?[0-9][-+0-9.eE]*\.\.[-+]?[.0-9][-+0-9.eE]*")
