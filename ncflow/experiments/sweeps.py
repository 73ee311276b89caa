"""Sweeps: a group repeated for every combination of the values of its axes; each axis changes the runs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import product
from math import prod
from typing import Any

from ncflow.dotted import flatten
from ncflow.experiments.axes import Axis, setting
from ncflow.experiments.names import named
from ncflow.nn.heads import HEAD_ALIASES
from ncflow.params import Params, make_params
from ncflow.yaml_files import parse_yaml

MOST_RUNS = 1000  # without --max-runs


def sweep(axes: Sequence[Axis], expand: Callable[[dict[str, Any]], list[Params]], *, most: int) -> list[Params]:
    """The runs that `expand` gives for each combination of values, a mapping key -> value, under unique names.

    Raises ValueError for more than `most` runs, and for two combinations that make the same run: then a key does not
    move, though a run would be named after it.
    """
    _refuse_many(prod(len(axis.values) for axis in axes), most)
    keys, runs, choices = [axis.key for axis in axes], [], []
    for values in product(*(axis.values for axis in axes)):
        choice = dict(zip(keys, values, strict=True))
        found = expand(choice)
        _refuse_many(len(found) * prod(len(axis.values) for axis in axes), most)
        runs += found
        choices += [choice] * len(found)
    _refuse_unmoved(axes, runs, choices)
    named_already = [axis.key for axis in axes if _names_tell(axis.key, runs, choices)]
    return named(runs, [{key: choice[key] for key in keys if key not in named_already} for choice in choices])


def choose(base: Params, settings: Iterable[str]) -> Params:
    """The parameters with settings such as "head.name=nearest_etf"; options of what they replace are left out."""
    settings = sorted(settings, key=_names_first)
    values = base.model_dump(mode="json", exclude_unset=True)
    present = flatten(base.resolved())
    for text in settings:
        key, _, value = text.partition("=")
        key = "head.name" if key == "head" else key
        if key in OPTIONS and _alias(parse_yaml(value)) != present[key]:
            section, _, options = OPTIONS[key].rpartition(".")
            (values.get(section, {}) if section else values).pop(options, None)
    return make_params(values, settings)


def representatives(runs: Sequence[Params]) -> list[Params]:
    """The first run with each value of each key that varies, seeds and names aside."""
    first: dict[tuple[str, str], Params] = {}
    for run in runs:
        for key, value in flatten(run.experiment()).items():
            if key != "exp_name" and not key.endswith("seed"):
                first.setdefault((key, repr(value)), run)
    return list({run.exp_name: run for run in first.values()}.values())


def _names_first(text: str) -> tuple[int, bool]:
    """Sections before their keys, and names before their options."""
    key = text.partition("=")[0]
    return key.count("."), key not in OPTIONS


def _alias(name: Any) -> Any:
    return HEAD_ALIASES.get(name, name) if isinstance(name, str) else name


def _refuse_many(count: int, most: int) -> None:
    if count > most:
        raise ValueError(f"{count} runs are more than {most}; take fewer values, or allow them with --max-runs {count}")


def _refuse_unmoved(axes: Sequence[Axis], runs: Sequence[Params], choices: Sequence[dict[str, Any]]) -> None:
    first: dict[str, dict[str, Any]] = {}
    for run, choice in zip(runs, choices, strict=True):
        other = first.setdefault(run.digest(), choice)
        for axis in axes:
            one, two = (setting(axis.key, each[axis.key]).partition("=")[2] for each in (other, choice))
            if one != two:
                raise ValueError(
                    f"{axis.where} {axis.key} does not move: {one} and {two} make the same run. Leave one of them out, "
                    f"or the setting that replaces {axis.key}"
                )


def _names_tell(key: str, runs: Sequence[Params], choices: Sequence[dict[str, Any]]) -> bool:
    """Whether the names that the group itself gives differ wherever the key does."""
    found: dict[str, str] = {}
    return all(
        found.setdefault(run.exp_name, repr(choice[key])) == repr(choice[key])
        for run, choice in zip(runs, choices, strict=True)
    )


# key -> the options that belong to its value, and not to another one
OPTIONS = {
    "head.name": "head",
    "train.loss": "train.loss_options",
    "train.optimizer": "train.optimizer_options",
    "train.schedule": "train.schedule_options",
    "train.mix": "train.mix_options",
    "dataset.name": "dataset.options",
    "model.name": "model.options",
}
