"""The rows behind figures: one table per figure, with a row for each run and value, as its CSV file holds them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from ncflow.reports.arms import Arm, names
from ncflow.runs.layout import GEOMETRY, epoch_of, files_of_epochs
from ncflow.runs.reader import Run
from ncflow.runs.whole import whole_dump
from ncflow.tensors import read_tensors

Array = npt.NDArray[Any]
WHOSE = ["arm", "run", "seed"]


class Lacking(ValueError):
    """No run holds the data that a figure draws."""


def all_runs(arms: Sequence[Arm]) -> Iterator[tuple[dict[str, Any], Run]]:
    """Each run, with the columns that say whose row it is: arm, run and seed."""
    for arm, name in zip(arms, names(arms), strict=True):
        for run in arm.runs:
            yield {"arm": name, "run": run.name, "seed": run.seed}, run


def representatives(arms: Sequence[Arm]) -> Iterator[tuple[dict[str, Any], Run]]:
    """The same of the run of the lowest seed of each arm."""
    for arm, name in zip(arms, names(arms), strict=True):
        run = arm.representative
        yield {"arm": name, "run": run.name, "seed": run.seed}, run


def table(rows: Iterable[dict[str, Any] | pd.DataFrame], lacking: str) -> pd.DataFrame:
    """The rows as a table. Raises Lacking with this reason if there are none."""
    found = list(rows)
    if not found:
        raise Lacking(lacking)
    parts = [row if isinstance(row, pd.DataFrame) else None for row in found]
    if all(part is not None for part in parts):
        return pd.concat([part for part in parts if part is not None], ignore_index=True)
    return pd.DataFrame(found)


def block(whose: dict[str, Any], **columns: Any) -> pd.DataFrame:
    """Many rows of one run: each column an array, or one value for all rows."""
    return pd.DataFrame({**columns}).assign(**whose)[[*whose, *columns]]


def finals(arms: Sequence[Arm], keys: Iterable[str]) -> list[dict[str, Any]]:
    """A row per run and metric at the last analysis, of the metrics that the run has."""
    wanted = list(keys)
    return [
        whose | {"metric": key, "epoch": run.epoch, "value": value}
        for whose, run in all_runs(arms)
        for key in wanted
        if (value := run.final(key)) is not None
    ]


def lines(data: pd.DataFrame, by: Sequence[str], along: str) -> dict[Any, pd.DataFrame]:
    """Values of `by` -> the median, minimum and maximum over seeds, indexed by its sorted places."""
    ordered = data.sort_values(along, kind="stable")
    middle = ordered.groupby([*by, along], sort=False)["value"].agg(["median", "min", "max"]).reset_index()
    kept = middle.set_index(along)[["median", "min", "max"]]
    places = middle.groupby(list(by), sort=False).indices
    return {key if isinstance(key, tuple) else (key,): kept.iloc[rows] for key, rows in places.items()}


def dumps(run: Run) -> Iterator[tuple[int, dict[str, Any]]]:
    """The epoch and the dump of every analysis of a run that has one."""
    for file in files_of_epochs(run.path, GEOMETRY):
        epoch = epoch_of(file)
        assert epoch is not None
        yield epoch, run.dump if epoch == run.epoch else whole_dump(file, read_tensors(file))


def class_accuracies(dump: dict[str, Any]) -> Array:
    """Test accuracy by class (K,); NaN for a class that the test split lacks."""
    targets = dump["targets"].numpy()
    hits = dump["predictions"].numpy() == targets
    totals = np.bincount(targets, minlength=len(dump["class_counts"]))
    return np.where(totals, np.bincount(targets, hits, minlength=len(totals)) / totals.clip(1), np.nan)


def largest_first(run: Run) -> Array:
    """The order of the classes by their training samples, the largest first."""
    return np.argsort(-run.dump["class_counts"].numpy(), kind="stable")


def class_labels(run: Run) -> Array:
    """The names of the classes (K,), or their numbers."""
    return np.array(run.class_names or [str(k) for k in range(len(run.dump["class_counts"]))], dtype=object)
