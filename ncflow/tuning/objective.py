"""The objective of a search: a metric of the training or validation split, its direction, and its value in a run."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ncflow.lookup import unknown
from ncflow.metrics import METRICS
from ncflow.metrics.direction import SOMETIMES, natural_direction
from ncflow.runs.layout import METRICS as EPOCH
from ncflow.runs.layout import SPLITS, epoch_of, files_of_epochs
from ncflow.runs.reader import SELECTION

DIRECTIONS = ("maximize", "minimize")


@dataclass(frozen=True)
class Objective:
    """A metric such as "val/acc/balanced", and whether a larger value is better."""

    key: str
    maximize: bool

    @property
    def direction(self) -> Literal["maximize", "minimize"]:
        return "maximize" if self.maximize else "minimize"

    @property
    def split(self) -> str:
        return self.key.partition("/")[0]

    def curve(self, folder: Path, *, known: Collection[int] = ()) -> dict[int, float]:
        """Epoch -> value, for the epochs of a run folder that measured it; also of a run that still trains.

        Epochs in `known` are left out, and their files are not read.
        """
        found = {}
        for number, file in ((epoch_of(each), each) for each in files_of_epochs(folder, EPOCH)):
            if number is not None and number not in known and (value := self._value(_read(file))) is not None:
                found[number] = value
        return found

    def _value(self, metrics: Mapping[str, Any]) -> float | None:
        value = metrics.get(self.split, {}).get(self.key.partition("/")[2])
        return float(value) if value is not None and math.isfinite(value) else None


def parse_objective(key: str, direction: str = "") -> Objective:
    """The objective of a key and a direction; the default direction is that of the metric.

    Raises ValueError for a metric of the test split, an unknown metric, and a metric without a direction.
    """
    split, _, metric = key.partition("/")
    if split == "test":
        raise ValueError(
            f"the objective {key} would choose on the test split: its best value is then too good for unseen data. "
            f"Choose on validation: --objective val/{metric} --set dataset.val_fraction=0.1"
        )
    if split not in SPLITS or not metric:
        raise ValueError(f"expected an objective of val or train, such as {SELECTION}, got '{key}'")
    if metric not in METRICS and not metric.startswith(SOMETIMES):
        raise unknown("metric", metric, METRICS)
    if direction and direction not in DIRECTIONS:
        raise ValueError(f"expected --direction {' or '.join(DIRECTIONS)}, got '{direction}'")
    found = direction or natural_direction(metric)
    if not found:
        raise ValueError(f"{metric} has no better end by itself; add --direction {' or '.join(DIRECTIONS)}")
    return Objective(key, found == "maximize")


def refuse_without_validation(splits: Sequence[str], objective: Objective) -> None:
    """Raise ValueError if a snapshot has no split for the objective."""
    if objective.split not in splits:
        raise ValueError(
            f"the objective {objective.key} needs a validation part, and these data have none; hold one out with "
            f"--set dataset.val_fraction=0.1"
        )


def _read(file: Path) -> dict[str, Any]:
    """The content of a file of metrics; empty if it vanished or is damaged, since the report names such files."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
