"""Arms: which runs are repetitions, which options differ between arms, and which arms share a figure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from math import ceil
from typing import Any

from ncflow.runs.reader import Run, config_differences

LINES = 6  # the most lines that stay readable in one pair of axes
SUBJECTS = ("dataset.name", "model.name", "head.name")  # every other key is a knob


@dataclass(frozen=True, eq=False)
class Arm:
    """Runs that differ only in seeds, sorted by seed; `choices` are the options that distinguish the arm.

    The head is always one of the choices. A key that the configuration lacks is None.
    """

    choices: dict[str, Any]
    runs: tuple[Run, ...]

    @property
    def head(self) -> str:
        return str(self.choices["head.name"])

    @property
    def representative(self) -> Run:
        """The run of the lowest seed, whose matrices are drawn."""
        return self.runs[0]


def arms(runs: Sequence[Run]) -> list[Arm]:
    """Group runs that differ only in seeds, in the order of their first run."""
    keys = choice_keys(runs)
    grouped: dict[str, list[Run]] = {}
    for run in runs:
        grouped.setdefault(repr([run.options.get(key) for key in keys]), []).append(run)
    return [
        Arm({key: members[0].options.get(key) for key in keys}, tuple(sorted(members, key=lambda run: run.seed)))
        for members in grouped.values()
    ]


def choice_keys(runs: Sequence[Run]) -> list[str]:
    """The fewest keys that distinguish arms: data set, model and head before knobs; the head is always included.

    Names and seeds are not choices. A key that another choice determines is not a choice either. Examples are
    the learning rate of each optimizer and the width for each data set.
    """
    columns = {key: [repr(value) for value in values] for key, values in config_differences(runs).items()}
    varying = [key for key in columns if key != "exp_name" and not key.endswith("seed")]
    knobs = sorted(set(varying).difference(SUBJECTS), key=lambda key: (-len(set(columns[key])), varying.index(key)))
    chosen: list[str] = []
    for key in [*(key for key in SUBJECTS if key in varying), *knobs]:
        if not any(_settles(columns[other], columns[key]) for other in chosen):
            chosen.append(key)
    return chosen if "head.name" in chosen else [*chosen, "head.name"]


def labels(arms: Sequence[Arm]) -> list[str]:
    """One label per arm: its choices that differ between these arms; the head if none differs."""
    keys = varying(arms) or ["head.name"]
    return [
        ", ".join(_say(key, arm.choices[key], keys) for key in keys if arm.choices[key] is not None) for arm in arms
    ]


def names(arms: Sequence[Arm]) -> list[str]:
    """The labels of the arms; equal ones, as of options that round to one number, get a number."""
    found, seen = labels(arms), Counter[str]()
    totals = Counter(found)
    unique = []
    for label in found:
        seen[label] += 1
        unique.append(label if totals[label] == 1 else f"{label} ({seen[label]})")
    return unique


def varying(arms: Sequence[Arm]) -> list[str]:
    """The keys of the choices that differ between these arms."""
    return [key for key in arms[0].choices if len({repr(arm.choices[key]) for arm in arms}) > 1]


def knobs(arms: Sequence[Arm]) -> list[str]:
    """The knobs that vary: all choices except data set, model and head; else the model, or the data set."""
    keys = varying(arms)
    subjects: list[str] = [key for key in ("model.name", "dataset.name") if key in keys]
    return [key for key in keys if key not in SUBJECTS] or subjects[:1]


def facets(arms: Sequence[Arm], along: str | None = None) -> dict[str, list[Arm]]:
    """Title -> the arms of one figure, with at most LINES lines; as few figures per data set as possible.

    A line joins the arms that differ only in the choice `along`; without it each arm is a line.
    """
    groups = [list(arms)]
    for key in SUBJECTS:
        if key != along:
            groups = [part for group in groups for part in _split(group, key, along)]
    chunks = [chunk for group in groups for chunk in _chunks(group, along)]
    shared = [key for key in varying(arms) if all(key not in varying(chunk) for chunk in chunks)]
    titles = [", ".join(_say(key, chunk[0].choices[key], shared) for key in shared) for chunk in chunks]
    return dict(zip(_numbered(titles), chunks, strict=True))


def lines(arms: Sequence[Arm], along: str | None = None) -> list[list[Arm]]:
    """Group the arms into lines; the arms of a line differ only in the choice `along`."""
    grouped: dict[str, list[Arm]] = {}
    for arm in arms:
        grouped.setdefault(repr([value for key, value in arm.choices.items() if key != along]), []).append(arm)
    return list(grouped.values())


def short(key: str, keys: Iterable[str]) -> str:
    """`imb_factor` for `dataset.imb_factor`, if no other key has the same ending; `model` for `model.name`."""
    section, _, last = key.rpartition(".")
    tail = section if last == "name" else last
    return key if any(other != key and other.endswith(f".{last}") for other in keys if last != "name") else tail


def value_text(value: Any) -> str:
    """A value as text in labels: 0.1, not 0.10000000000000001; a dash for None."""
    return "–" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def _say(key: str, value: Any, keys: Iterable[str]) -> str:
    """Only the value for names; `imb_factor=0.1` for other keys."""
    return value_text(value) if key in SUBJECTS else f"{short(key, keys)}={value_text(value)}"


def _settles(one: Sequence[str], other: Sequence[str]) -> bool:
    """Whether equal values of one key always come with equal values of the other."""
    return len(set(zip(one, other, strict=True))) == len(set(one))


def _split(group: list[Arm], key: str, along: str | None) -> list[list[Arm]]:
    """One group per value, always for data sets, else if there are too many lines; not if all would have one line."""
    values = {repr(arm.choices.get(key)): arm.choices.get(key) for arm in group}
    parts = [[arm for arm in group if arm.choices.get(key) == value] for value in values.values()]
    wanted = key == "dataset.name" or len(lines(group, along)) > LINES
    return parts if wanted and any(len(lines(part, along)) > 1 for part in parts) else [group]


def _chunks(group: list[Arm], along: str | None) -> list[list[Arm]]:
    """Chunks of at most LINES lines each, of about equal size."""
    found = lines(group, along)
    size = ceil(len(found) / ceil(len(found) / LINES))
    return [list(chain(*found[start : start + size])) for start in range(0, len(found), size)]


def _numbered(titles: Sequence[str]) -> list[str]:
    """The titles; repeated titles get "1 of 2" appended."""
    totals, seen = Counter(titles), Counter[str]()
    numbered = []
    for title in titles:
        seen[title] += 1
        count = f"{seen[title]} of {totals[title]}"
        numbered.append(title if totals[title] == 1 else f"{title} ({count})" if title else count)
    return numbered
