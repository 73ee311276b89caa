"""Names of the runs of a sweep: the name of the group, then what varies, such as main_lr0.3_nearest_etf_seed2."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from ncflow.dotted import flatten
from ncflow.params import Params, make_params

LONGEST, LONGEST_TEXT = 120, 40  # letters of a name, and of one value in it


def named(runs: Sequence[Params], choices: Sequence[Mapping[str, Any]]) -> list[Params]:
    """The runs, each with the values that it has for the keys of its choice in its name.

    A name depends on the run and on which keys vary. So runs keep their names if a value is added, or if the axes come
    in another order. Names that would be equal, also where case does not matter, end in digits of their configuration.
    """
    names = [_name(run, choice) for run, choice in zip(runs, choices, strict=True)]
    times = Counter(name.casefold() for name in names)
    ends = [f"_{run.digest()}" if times[name.casefold()] > 1 else "" for run, name in zip(runs, names, strict=True)]
    return [
        make_params(run.model_dump(mode="json") | {"exp_name": name + end})
        for run, name, end in zip(runs, names, ends, strict=True)
    ]


def joined(parts: Iterable[str]) -> str:
    """A plain name of at most LONGEST letters; a longer one is cut and ends in digits of the whole."""
    return _cut(_plain("_".join(parts)), LONGEST)


def short_keys(keys: Iterable[str]) -> dict[str, str]:
    """What stands for each key in a name: its last part, `head` for `head.name`, all of it where that is not unique."""
    keys = list(dict.fromkeys(keys))
    ends = {key: key.removesuffix(".name").rpartition(".")[2] for key in keys}
    times = Counter(ends.values())
    taken = {name for name in Params.model_fields if name not in keys}  # dataset.seed is not seed
    return {
        key: end if times[end] == 1 and (end not in taken or key.endswith(".name")) else key
        for key, end in ends.items()
    }


def ordered(keys: Iterable[str]) -> list[str]:
    """Keys in the order of names: data set, model, others by name, head and its options, loss, seed."""
    return sorted(
        keys, key=lambda key: (_PLACES.get(key, 3 if key.startswith("head.") else 2), key != "head.name", key)
    )


def _name(run: Params, choice: Mapping[str, Any]) -> str:
    values = {leaf: value for key, chosen in choice.items() for leaf, value in _leaves(key, chosen)}
    resolved, short = flatten(run.resolved()), short_keys(values)
    return joined([run.exp_name, *(_label(short[key], resolved.get(key, values[key])) for key in ordered(values))])


def _leaves(key: str, value: Any) -> Iterator[tuple[str, Any]]:
    """The dotted keys that a choice sets: those of a mapping, else the key alone."""
    if isinstance(value, Mapping) and value:
        for inner, each in value.items():
            yield from _leaves(f"{key}.{inner}", each)
    else:
        yield ("head.name" if key == "head" else key), value


def _label(short: str, value: Any) -> str:
    """A value as a part of a name: only its key where it is true, only the value where that is a telling text."""
    if isinstance(value, bool):
        return _clean(short if value else f"no_{short}")
    if isinstance(value, str) and value not in _VAGUE:
        return _clean(value)
    if isinstance(value, int | float):
        return _clean(f"{short}{'-' if short[-1].isdigit() else ''}{_text(value)}")
    if isinstance(value, list) and value:
        text = "-".join(map(_text, value))
        return _clean(text if all(isinstance(item, str) for item in value) else f"{short}{text}")
    return _clean(f"{short}-{_text(value)}")


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}" if float(f"{value:g}") == value else repr(value)
    return "null" if value is None else str(value) if value or value == 0 else "empty"


def _clean(text: str) -> str:
    """A text in letters, digits and _ . = + - that fits in a name."""
    return _cut(_plain(text).strip("-.") or "other", LONGEST_TEXT)


def _plain(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.=+-]+", "-", text)


def _cut(text: str, longest: int) -> str:
    digits = hashlib.sha256(text.encode()).hexdigest()[:8]
    return text if len(text) <= longest else f"{text[: longest - 9]}-{digits}"


_PLACES = {"dataset.name": 0, "model.name": 1, "head": 3, "head.name": 3, "train.loss": 4, "seed": 5}
_VAGUE = ("", "none", "all", "auto", "full", "name", "true", "false", "null")  # texts that need their key
