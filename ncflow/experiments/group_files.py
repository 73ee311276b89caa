"""Groups without Python: a file groups/<name>.yaml with a hypothesis, settings and a grid."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ncflow.experiments.axes import Axis, make_axis, refuse_twice, setting
from ncflow.lookup import unknown
from ncflow.params import plain_name
from ncflow.yaml_files import read_yaml


class GroupFile(NamedTuple):
    """A group from a file: what it asks, the settings of all its runs such as "train.epochs=5", and its axes."""

    file: Path
    hypothesis: str
    expected: str
    base: list[str]
    axes: list[Axis]


def find_group_files(folder: Path | None) -> dict[str, Path]:
    """Name -> file of the groups in a folder; empty if there is no such folder."""
    return {file.stem: file for file in sorted(folder.glob("*.yaml"))} if folder else {}


def read_group(file: Path, taken: Collection[str]) -> GroupFile:
    """The group of a file. Raises ValueError with the file and the key of what is wrong.

    `taken` are the names of other groups, which the file cannot have.
    """
    try:
        _check_name(file.stem, taken)
        values = read_yaml(file, aliases=False)
    except ValueError as error:
        raise ValueError(str(error) if str(file) in str(error) else f"{file}: {error}") from None
    try:
        return _group(values, file)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None


def _check_name(name: str, taken: Collection[str]) -> None:
    if name in taken:
        raise ValueError(f"the name {name} belongs to another group; rename the file")
    plain_name(name)


def _group(values: Any, file: Path) -> GroupFile:
    if not isinstance(values, Mapping):
        raise ValueError(f"expected a mapping with {', '.join(KINDS)}, got {type(values).__name__}")
    for key in values:
        if key not in KINDS:
            raise unknown("key", key, KINDS)
    for key, kind in KINDS.items():
        if key not in values and key in NEEDED:
            raise ValueError(f"expected the key {key}, got {', '.join(values) or 'none'}")
        if key in values and not (isinstance(values[key], kind) and values[key]):
            raise ValueError(
                f"{key} must be {'a text' if kind is str else 'a mapping of keys'}, got {values[key]!r:.80}"
            )
    base = dict(_leaves(values.get("base", {}), "base"))
    axes = [make_axis(key, _values(key, value), "grid") for key, value in _leaves(values["grid"], "grid")]
    refuse_twice(axes)
    if ignored := [key for key in base if key.partition(".")[0] in ("exp_name", "grid")]:
        raise ValueError(f"base cannot set {ignored[0]}: the file names its runs and holds their grid")
    if twice := [axis.key for axis in axes if axis.key in base]:
        raise ValueError(f"base sets {twice[0]}, and grid varies it; leave it out of base")
    settings = [setting(key, value) for key, value in base.items()]
    return GroupFile(file, values["hypothesis"].strip(), values.get("expected", "").strip(), settings, axes)


def _leaves(values: Mapping[Any, Any], path: str, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys and values of nested sections; keys may be dotted already."""
    for key, value in values.items():
        if not isinstance(key, str):
            raise ValueError(f"{path} expects keys such as train.lr, got {key!r}")
        name = prefix + key
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, path, f"{name}.")
        else:
            yield ("head.name" if name == "head" and isinstance(value, str) else name), value


def _values(key: str, value: Any) -> list[Any]:
    """The values of an axis, from a list or a range such as 0..4."""
    if isinstance(value, list):
        return value
    if isinstance(value, str) and ".." in value:
        return [value]
    raise ValueError(f"grid {key} expects a list such as [0.3, 0.1], or a range such as 0..4, got {value!r:.80}")


KINDS = {"hypothesis": str, "expected": str, "base": dict, "grid": dict}  # the keys of a file
NEEDED = ("hypothesis", "grid")
