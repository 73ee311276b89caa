"""The numbers of the page as files: `summary.json` for `dvc metrics`, two files for `dvc plots`, curves, statistics."""

from __future__ import annotations

import json
from collections.abc import Sequence
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
    tables = [
        pd.DataFrame([_final_metrics(run) for run in arm.runs])
        .agg(["count", *STATISTICS])
        .T.rename(columns={"count": "runs"})
        .astype({"runs": int})
        .sort_index()
        .rename_axis("metric")
        .reset_index()
        .assign(**arm.choices)
        for arm in arms(runs)
    ]
    choices = list(arms(runs)[0].choices)
    pd.concat(tables)[[*choices, "metric", "runs", *STATISTICS]].to_csv(file, index=False)


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


STATISTICS = ("median", "mean", "min", "max", "std")
PLOTS = {"accuracy.csv": "test/acc/balanced", "nc1.csv": "train/nc1/pinv"}
IDENTITY = ("run", "head", "seed", "epoch", "split")
