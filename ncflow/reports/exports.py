"""The numbers of the page as files: `summary.json` for `dvc metrics`, two files for `dvc plots`, curves, statistics."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from ncflow.reports.arms import arms, labels
from ncflow.reports.highlights import highlights
from ncflow.runs.frame import as_frame
from ncflow.runs.layout import SPLITS
from ncflow.runs.reader import Run


def write_summary(runs: Sequence[Run], file: Path) -> None:
    """Write arm -> seed -> highlights at the last analysis; repetitions with the same seed use the run's name.

    With a validation part it also holds "best_on_val", the highlights at the epoch that the validation part selects.
    With post-hoc classifiers it also holds "posthoc": method -> the highlights that it has.
    """
    summary: dict[str, dict[str, dict[str, Any]]] = {}
    compared = arms(runs)
    for label, arm in zip(labels(compared), compared, strict=True):
        seeds = [run.seed for run in arm.runs]
        keys = [str(run.seed) if seeds.count(run.seed) == 1 else run.name for run in arm.runs]
        summary[label] = {key: _highlights(run) for key, run in zip(keys, arm.runs, strict=True)}
    file.write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")


def write_curves(runs: Sequence[Run], file: Path) -> None:
    """Write one row per run, analysis and split, and one column per metric; empty if it was not measured."""
    frame = as_frame(runs).reset_index()
    metrics = [name for name in frame.columns if "/" in name]
    frame.rename(columns={"head.name": "head"})[[*IDENTITY, *metrics]].to_csv(file, index=False)


def write_plots(runs: Sequence[Run], folder: Path) -> None:
    """Write the files for `dvc plots`: one for each of PLOTS, with one row per run and analysis of a split."""
    for name, key in PLOTS.items():
        rows = [(run.name, epoch, value) for run in runs for epoch, value in run.curve(key).items()]
        pd.DataFrame(rows, columns=["run", "epoch", key]).to_csv(folder / name, index=False)


def write_statistics(runs: Sequence[Run], file: Path) -> None:
    """Write a row per arm and metric: statistics over seeds at the last analysis. One run has no std (ddof = 1)."""
    compared = arms(runs)
    rows = [
        {**arm.choices, "metric": metric, "runs": len(values)} | {name: of(values) for name, of in STATISTICS.items()}
        for arm in compared
        for metric, values in sorted(_values_by_metric(arm.runs).items())
    ]
    pd.DataFrame(rows)[[*compared[0].choices, "metric", "runs", *STATISTICS]].to_csv(file, index=False)


def _values_by_metric(runs: Sequence[Run]) -> dict[str, list[float]]:
    """Metric -> its values at the last analysis, of the runs where it is a number."""
    found: dict[str, list[float]] = {}
    for run in runs:
        for metric, value in _final_metrics(run).items():
            found.setdefault(metric, [])
            if not math.isnan(value):
                found[metric].append(value)
    return found


def _std(values: Sequence[float]) -> float:
    """The sample standard deviation, several times as fast as that of the standard library."""
    mean = statistics.fmean(values)
    return math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1))


def _highlights(run: Run) -> dict[str, Any]:
    shown: dict[str, Any] = {"epoch": run.epoch} | _present({key: run.final(key) for key in highlights()})
    if run.best_epoch is not None:
        shown["best_on_val"] = {"epoch": run.best_epoch} | _present({key: run.best(key) for key in highlights()})
    if (posthoc := run.posthoc) is not None:
        values = {name: {key: posthoc.value(name, key) for key in highlights()} for name in posthoc.methods}
        shown["posthoc"] = {name: _present(row) for name, row in values.items()}
    return shown


def _present(values: dict[str, float | None]) -> dict[str, float]:
    return {key: value for key, value in values.items() if value is not None}


def _final_metrics(run: Run) -> dict[str, float]:
    """All metrics of the last analysis, named split/metric, and those of the run's post-hoc classifiers."""
    last = run.analyses[-1]
    measured = {f"{split}/{name}": value for split in SPLITS for name, value in last.get(split, {}).items()}
    return measured | (run.posthoc.as_metrics() if run.posthoc else {})


STATISTICS: dict[str, Callable[[list[float]], float]] = {
    "median": lambda values: statistics.median(values) if values else math.nan,
    "mean": lambda values: statistics.fmean(values) if values else math.nan,
    "min": lambda values: min(values, default=math.nan),
    "max": lambda values: max(values, default=math.nan),
    "std": lambda values: _std(values) if len(values) > 1 else math.nan,
}
PLOTS = {"accuracy.csv": "test/acc/balanced", "nc1.csv": "train/nc1/pinv"}
IDENTITY = ("run", "head", "seed", "epoch", "split")
