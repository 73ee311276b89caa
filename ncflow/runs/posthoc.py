"""The results of post-hoc classifiers of a run, in a file next to its folder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ncflow.files import checksum, write_text
from ncflow.runs.damage import is_number
from ncflow.runs.layout import FINAL_MODEL, posthoc_file
from ncflow.runs.provenance import read_provenance

PREFIX = "posthoc/"


@dataclass(frozen=True)
class PostHoc:
    """Accuracies of post-hoc classifiers on the features of one checkpoint, and how their options were chosen.

    splits: split -> name -> value, acc/<name> of the run itself and posthoc/<method>/acc/<name>. options:
    posthoc/<method>/<option> -> value. chosen_by: method -> "val", "default" or "".
    """

    ncflow: str
    final_model_sha256: str
    splits: dict[str, dict[str, float]]
    options: dict[str, Any]
    chosen_by: dict[str, str]

    @property
    def methods(self) -> list[str]:
        """The names of the methods, in the order of the file."""
        return list(self.chosen_by)

    def value(self, method: str, key: str) -> float | None:
        """The value of a method for a metric of runs, such as "test/acc/few"; None if it was not measured."""
        split, _, metric = key.partition("/")
        return self.splits.get(split, {}).get(f"{PREFIX}{method}/{metric}")

    def options_of(self, method: str) -> dict[str, Any]:
        """The chosen options of a method by name."""
        start = f"{PREFIX}{method}/"
        return {name.removeprefix(start): value for name, value in self.options.items() if name.startswith(start)}

    def as_metrics(self) -> dict[str, float]:
        """The numbers of the methods by their names in MLflow: <split>/posthoc/… and posthoc/<method>/<option>."""
        accuracies = {
            f"{split}/{name}": value for split, values in self.splits.items() for name, value in values.items()
        }
        return {name: value for name, value in (accuracies | self.options).items() if PREFIX in name}

    def updated(self, new: PostHoc) -> PostHoc:
        """The results of both. Where both have a method, the new ones count."""
        kept = {name for name in self.chosen_by if name not in new.chosen_by}
        splits = {split: _of(self.splits.get(split, {}), kept) | values for split, values in new.splits.items()}
        options = _of(self.options, kept) | new.options
        return replace(new, splits=splits, options=options, chosen_by=self.chosen_by | new.chosen_by)


def write_posthoc(folder: Path, new: PostHoc) -> PostHoc:
    """Write the results next to a run's folder, and return them with those of earlier calls on the same checkpoint.

    A damaged file is replaced. Of several processes that write at the same time, each adds to the others' results.
    """
    from filelock import FileLock

    file = posthoc_file(folder)
    with FileLock(file.with_name(f".{file.name}.lock")):
        there = None
        with suppress(ValueError):
            there = read_posthoc(folder)
        if there is not None and there.final_model_sha256 == new.final_model_sha256:
            new = there.updated(new)
        values = asdict(new)
        write_text(file, json.dumps(values | values.pop("splits"), indent=1) + "\n")
    return new


def read_posthoc(folder: Path) -> PostHoc | None:
    """The results next to a run's folder, None if there are none. Raises ValueError that names file and damaged key."""
    file = posthoc_file(folder)
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (ValueError, RecursionError) as error:
        raise _damaged(file, f"JSON ({error})") from None
    return _from_json(file, values)


def belongs_to(posthoc: PostHoc, folder: Path) -> bool:
    """Whether the results are those of the checkpoint in the run's folder."""
    try:
        expected = read_provenance(folder).final_model_sha256
    except ValueError:
        expected = None
    if expected is None and (folder / FINAL_MODEL).is_file():  # of an earlier version
        expected = checksum(folder / FINAL_MODEL)
    return posthoc.final_model_sha256 == expected


def _of(values: Mapping[str, Any], methods: set[str]) -> dict[str, Any]:
    """The entries posthoc/<method>/… of these methods."""
    starts = tuple(f"{PREFIX}{method}/" for method in methods)
    return {name: value for name, value in values.items() if name.startswith(starts)}


def _from_json(file: Path, values: object) -> PostHoc:
    if not isinstance(values, dict):
        raise _damaged(file, "a mapping")
    for key in ("ncflow", "final_model_sha256"):
        if not isinstance(values.get(key), str):
            raise _damaged(file, f"text as {key}")
    splits = {split: values[split] for split in ("test", "val") if split in values}
    for key, numbers in {"test": values.get("test"), "options": values.get("options"), **splits}.items():
        if not isinstance(numbers, dict) or not all(map(is_number, numbers.values())):
            raise _damaged(file, f"numbers by name as {key}")
    chosen_by = values.get("chosen_by")
    if not isinstance(chosen_by, dict) or not all(isinstance(word, str) for word in chosen_by.values()):
        raise _damaged(file, "words by name as chosen_by")
    return PostHoc(values["ncflow"], values["final_model_sha256"], splits, values["options"], chosen_by)


def _damaged(file: Path, expected: str) -> ValueError:
    return ValueError(f"'{file}' is damaged: expected {expected}; rerun `ncflow posthoc`")
