"""The numbers behind the page: `summary.json` for `dvc metrics`, two files for `dvc plots`, curves and statistics."""

from __future__ import annotations

import csv
import json
import statistics
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from ncflow.reports.arms import arms, labels
from ncflow.reports.highlights import HIGHLIGHTS, split_and_metric
from ncflow.reports.runs import Run


def write_summary(runs: Sequence[Run], file: Path) -> None:
    """arm -> seed -> highlights at the last analysis; repetitions that share a seed go by their names.

    With a validation part also "best_on_val", the highlights at the epoch that it chooses.
    """
    summary: dict[str, dict[str, dict[str, Any]]] = {}
    compared = arms(runs)
    for label, arm in zip(labels(compared), compared, strict=True):
        seeds = [run.seed for run in arm.runs]
        keys = [str(run.seed) if seeds.count(run.seed) == 1 else run.name for run in arm.runs]
        summary[label] = {key: _highlights(run) for key, run in zip(keys, arm.runs, strict=True)}
    file.write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")


def write_curves(runs: Sequence[Run], file: Path) -> None:
    """One row per run, analysis and split; every metric is a column, empty where it was not measured."""
    rows = [row for run in runs for row in _curve_rows(run)]
    metrics = sorted({key for row in rows for key in row}.difference(IDENTITY))
    with file.open("w", newline="", encoding="utf-8") as handle:
        writer = csv.DictWriter(handle, [*IDENTITY, *metrics])
        writer.writeheader()
        writer.writerows(rows)


def write_plots(runs: Sequence[Run], folder: Path) -> None:
    """What `dvc plots` draws: a file for each of PLOTS, with a row per run and analysis of one split."""
    for name, key in PLOTS.items():
        with (folder / name).open("w", newline="", encoding="utf-8") as handle:
            writer = csv.writer(handle)
            writer.writerow(["run", "epoch", key])
            for run in runs:
                writer.writerows([run.name, epoch, value] for epoch, value in run.curve(*split_and_metric(key)).items())


def write_statistics(runs: Sequence[Run], file: Path) -> None:
    """One row per arm and metric: statistics over seeds at the last analysis; std (ddof = 1) is empty for one run."""
    compared = arms(runs)
    choices = list(compared[0].choices)
    with file.open("w", newline="", encoding="utf-8") as handle:
        writer = csv.writer(handle)
        writer.writerow([*choices, "metric", "runs", *STATISTICS, "std"])
        for arm in compared:
            measured = sorted({key for run in arm.runs for key in _final_metrics(run)})
            for key in measured:
                values = [metrics[key] for run in arm.runs if key in (metrics := _final_metrics(run))]
                spread = statistics.stdev(values) if len(values) > 1 else ""
                writer.writerow(
                    [*arm.choices.values(), key, len(values), *(of(values) for of in STATISTICS.values()), spread]
                )


def _highlights(run: Run) -> dict[str, Any]:
    final = {"epoch": run.epoch} | _present({key: run.final(*split_and_metric(key)) for key in HIGHLIGHTS})
    if run.best_epoch is None:
        return final
    best = {"epoch": run.best_epoch} | _present({key: run.best(*split_and_metric(key)) for key in HIGHLIGHTS})
    return final | {"best_on_val": best}


def _present(values: dict[str, float | None]) -> dict[str, float]:
    return {key: value for key, value in values.items() if value is not None}


def _final_metrics(run: Run) -> dict[str, float]:
    """Every metric of the last analysis, with its split before its name."""
    last = run.analyses[-1]
    return {f"{split}/{name}": value for split in SPLITS for name, value in last.get(split, {}).items()}


def _curve_rows(run: Run) -> Iterator[dict[str, Any]]:
    for analysis in run.analyses:
        for split in (split for split in SPLITS if split in analysis):
            identity = (run.name, run.head, run.seed, analysis["epoch"], split)
            yield dict(zip(IDENTITY, identity, strict=True)) | analysis[split]


SPLITS = ("train", "val", "test")
STATISTICS: dict[str, Callable[[list[float]], float]] = {
    "median": statistics.median,
    "mean": statistics.fmean,
    "min": min,
    "max": max,
}
PLOTS = {"accuracy.csv": "test/acc/balanced", "nc1.csv": "train/nc1/pinv"}
IDENTITY = ("run", "head", "seed", "epoch", "split")
