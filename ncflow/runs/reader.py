"""A run, read from its folder: configuration, analyses by epoch, and the last dump of predictions and means."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from ncflow.dotted import flatten
from ncflow.runs.damage import damaged
from ncflow.runs.layout import CONFIG, GEOMETRY, HISTORY, METRICS, PROVENANCE, files_of_epochs, posthoc_file
from ncflow.runs.posthoc import PostHoc, belongs_to, read_posthoc
from ncflow.runs.provenance import Provenance, read_provenance
from ncflow.runs.whole import whole_analysis, whole_config, whole_dump, whole_history
from ncflow.tensors import read_tensors
from ncflow.yaml_files import parse_yaml

# The metric that selects the best epoch, if the training data have a validation part. Never a test metric.
SELECTION = "val/acc/balanced"


@dataclass(frozen=True)
class Run:
    """One trained configuration. `analyses` are sorted by epoch; `history` has one record per epoch."""

    path: Path
    config: dict[str, Any]
    analyses: tuple[dict[str, Any], ...]
    history: tuple[dict[str, Any], ...]

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def head(self) -> str:
        return str(self.config["head"]["name"])

    @property
    def seed(self) -> int:
        return int(self.config["seed"])

    @cached_property
    def options(self) -> dict[str, Any]:
        """The configuration by dotted key: {"train.lr": 0.1, …}."""
        return flatten(self.config)

    @property
    def epoch(self) -> int:
        """The epoch of the last analysis; every table shows it."""
        return int(self.analyses[-1]["epoch"])

    @property
    def best_epoch(self) -> int | None:
        """The epoch with the highest SELECTION, the first of equals; None without a validation part."""
        curve = self.curve(SELECTION)
        return max(curve, key=lambda epoch: curve[epoch], default=None)

    @cached_property
    def dump(self) -> dict[str, torch.Tensor]:
        """The last analysis: predictions, targets (n_test,), class_means, weight (K,d), class_counts (K,), …"""
        dumps = files_of_epochs(self.path, GEOMETRY)
        if not dumps:
            raise ValueError(f"run folder '{self.path}' holds no {GEOMETRY.format('N')}; train it again")
        return whole_dump(dumps[-1], read_tensors(dumps[-1]))

    @cached_property
    def provenance(self) -> Provenance | None:
        """The provenance; None for measured features, which have none. Raises ValueError if it is damaged."""
        return read_provenance(self.path) if os.path.lexists(self.path / PROVENANCE) else None

    @cached_property
    def class_names(self) -> list[str] | None:
        """The names of the classes (K,); None if the run's provenance lacks them."""
        names = None if self.provenance is None else self.provenance.snapshot.class_names
        if names and len(names) != (count := len(self.dump["class_counts"])):
            raise damaged(self.path / PROVENANCE, f"{count} names as snapshot.class_names", len(names))
        return names

    @cached_property
    def posthoc(self) -> PostHoc | None:
        """The post-hoc classifiers of the final model; None if there are none, or only those of another model."""
        found = read_posthoc(self.path)
        return found if found is not None and belongs_to(found, self.path) else None

    @property
    def note(self) -> str | None:
        """What a report should say about files that it ignores; None if there are none."""
        file = posthoc_file(self.path)
        if self.posthoc is not None or not file.is_file():
            return None
        return f"{file.name} is ignored: it is of another checkpoint than {self.name}; rerun `ncflow posthoc`"

    def final(self, key: str) -> float | None:
        """The value of a metric such as "test/acc/few" at the last analysis; None if it was not measured."""
        return self.curve(key).get(self.epoch)

    def best(self, key: str) -> float | None:
        """The value of a metric at `best_epoch`; None without a best epoch, or if it was not measured."""
        epoch = self.best_epoch
        return None if epoch is None else self.curve(key).get(epoch)

    def curve(self, key: str) -> dict[int, float]:
        """Epoch -> value, for the analyses that measured the metric."""
        split, _, metric = key.partition("/")
        return {a["epoch"]: a[split][metric] for a in self.analyses if metric in a.get(split, {})}


def load_run(path: str | Path) -> Run:
    """Load the run in a folder such as `models/<exp_name>`. Raises ValueError if it is missing or unfinished."""
    path = Path(path).resolve()
    if not path.is_dir():
        raise ValueError(f"no run folder at '{path}'; expected the folder that `ncflow train` wrote, models/<exp_name>")
    analyses = tuple(whole_analysis(file, _read_json(file)) for file in files_of_epochs(path, METRICS))
    if not analyses:
        raise ValueError(
            f"run folder '{path}' is unfinished: no {METRICS.format('N')} in it; train it until an analysis"
        )
    history = path / HISTORY
    return Run(path, _read_config(path), analyses, whole_history(history, _read_json(history)))


def load_runs(paths: Iterable[str | Path]) -> list[Run]:
    """Load all runs, in the given order. Raises ValueError for no run, and for two runs of the same name."""
    runs = [load_run(path) for path in paths]
    if not runs:
        raise ValueError("expected at least one run folder, got none; train first: `ncflow train`")
    first: dict[str, Run] = {}
    for run in runs:
        if first.setdefault(run.name, run) is not run:
            raise ValueError(
                f"two runs are named '{run.name}': '{first[run.name].path}' and '{run.path}'; pass one of them"
            )
    return runs


def config_differences(runs: Sequence[Run]) -> dict[str, list[Any]]:
    """Dotted key -> its value in each run (None if absent), for the keys that differ between the runs.

    Keys that do not change a run are left out.
    """
    configs = [run.options for run in runs]
    keys = dict.fromkeys(key for config in configs for key in config if not key.startswith(("data.", "tracking.")))
    table = {key: [config.get(key) for config in configs] for key in keys}
    return {key: values for key, values in table.items() if any(value != values[0] for value in values)}


def _read_json(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(
            f"run folder '{file.parent}' is unfinished: no {file.name} in it; rerun its training to the end"
        ) from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"'{file}' is damaged: {error}; train the run again") from None


def _read_config(folder: Path) -> dict[str, Any]:
    """The content of config.yaml, with the two keys that every report needs."""
    file = folder / CONFIG
    if not file.is_file():
        raise ValueError(f"run folder '{folder}' is unfinished: no {CONFIG} in it; train it again")
    try:
        config = parse_yaml(file.read_text(encoding="utf-8"), aliases=False)
    except ValueError as error:
        raise ValueError(f"'{file}' is damaged: {error}; train the run again") from None
    if not isinstance(config, dict):
        raise ValueError(f"'{file}' is not a resolved configuration but {type(config).__name__}; train the run again")
    return whole_config(file, config)
