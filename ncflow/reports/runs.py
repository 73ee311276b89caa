"""A run as its folder tells it: configuration, analyses epoch by epoch, and the last dump of predictions and means."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from ncflow.dotted import flatten
from ncflow.reports.highlights import SELECTION, split_and_metric
from ncflow.reports.whole import epoch_of, whole_analysis, whole_config, whole_dump, whole_history
from ncflow.yaml_files import parse_yaml


@dataclass(frozen=True)
class Run:
    """One trained configuration; `analyses` are sorted by epoch, `history` has one record per epoch."""

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
        """The epoch of the last analysis, which every table quotes."""
        return int(self.analyses[-1]["epoch"])

    @property
    def best_epoch(self) -> int | None:
        """The analysis best on SELECTION, the first among equals; None without a validation part. Never test's best."""
        curve = self.curve(*split_and_metric(SELECTION))
        return max(curve, key=lambda epoch: curve[epoch], default=None)

    @cached_property
    def dump(self) -> dict[str, torch.Tensor]:
        """Predictions, targets (n_test,), class_means, weight (K,d), class_counts (K,), … at the last analysis."""
        dumps = _by_epoch(self.path, "raw_geo_epoch_*.pt")
        if not dumps:
            raise ValueError(f"run folder '{self.path}' holds no raw_geo_epoch_N.pt; train it again")
        from ncflow.tensors import read_tensors

        return whole_dump(dumps[-1], read_tensors(dumps[-1]))

    @cached_property
    def class_names(self) -> list[str] | None:
        """The names of the classes (K,), where the run's provenance tells them."""
        file = self.path / "provenance.json"
        provenance = _read_json(file) if file.is_file() else {}
        snapshot = provenance.get("snapshot") if isinstance(provenance, dict) else None
        names = snapshot.get("class_names") if isinstance(snapshot, dict) else None
        fits = isinstance(names, list) and len(names) == len(self.dump["class_counts"])
        return [str(name) for name in names] if isinstance(names, list) and fits else None

    def final(self, split: str, metric: str) -> float | None:
        """The metric's value at the last analysis, None where it was not measured."""
        return self.curve(split, metric).get(self.epoch)

    def best(self, split: str, metric: str) -> float | None:
        """The metric's value at the best epoch on validation, None where there is none."""
        epoch = self.best_epoch
        return None if epoch is None else self.curve(split, metric).get(epoch)

    def curve(self, split: str, metric: str) -> dict[int, float]:
        """Epoch -> value, over the analyses that measured the metric."""
        return {a["epoch"]: a[split][metric] for a in self.analyses if metric in a.get(split, {})}


def read_run(path: str | Path) -> Run:
    """The run in a folder such as `models/<exp_name>`; ValueError where it is missing or unfinished."""
    path = Path(path).resolve()
    if not path.is_dir():
        raise ValueError(f"no run folder at '{path}'; expected the folder that `ncflow train` wrote, models/<exp_name>")
    analyses = tuple(whole_analysis(file, _read_json(file)) for file in _by_epoch(path, "metrics_epoch_*.json"))
    if not analyses:
        raise ValueError(
            f"run folder '{path}' is unfinished: no metrics_epoch_N.json in it; let its training reach an analysis"
        )
    history = path / "history.json"
    return Run(path, _read_config(path), analyses, whole_history(history, _read_json(history)))


def read_runs(paths: Iterable[str | Path]) -> list[Run]:
    """All runs, in the order given; two of the same name could not be told apart and are refused."""
    runs = [read_run(path) for path in paths]
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
    """Dotted key -> its value in each run (None where absent), for the keys on which the runs disagree."""
    configs = [run.options for run in runs]
    table = {key: [config.get(key) for config in configs] for key in dict.fromkeys(k for c in configs for k in c)}
    return {key: values for key, values in table.items() if any(value != values[0] for value in values)}


def _by_epoch(folder: Path, pattern: str) -> list[Path]:
    """Files sorted by the number after the last underscore, epoch 9 before epoch 10; others are nobody's epoch."""
    epochs = {file: epoch_of(file) for file in folder.glob(pattern)}
    return [file for _, file in sorted((epoch, file) for file, epoch in epochs.items() if epoch is not None)]


def _read_json(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(
            f"run folder '{file.parent}' is unfinished: no {file.name} in it; let its training end"
        ) from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"'{file}' is damaged: {error}; train the run again") from None


def _read_config(folder: Path) -> dict[str, Any]:
    """config.yaml, with the two keys that every report asks for."""
    file = folder / "config.yaml"
    if not file.is_file():
        raise ValueError(f"run folder '{folder}' is unfinished: no config.yaml in it; train it again")
    try:
        config = parse_yaml(file.read_text(encoding="utf-8"), aliases=False)
    except ValueError as error:
        raise ValueError(f"'{file}' is damaged: {error}; train the run again") from None
    if not isinstance(config, dict):
        raise ValueError(f"'{file}' is not a resolved configuration but {type(config).__name__}; train the run again")
    return whole_config(file, config)
