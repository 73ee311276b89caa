"""DVC gets the numbers that the runs measured, all of them."""

from __future__ import annotations

import csv
import json
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ncflow.reports.exports import IDENTITY, write_curves, write_statistics, write_summary
from ncflow.reports.highlights import ADJUSTED, OPTIONAL, highlights
from ncflow.runs.reader import Run, load_runs

MakeRun = Callable[..., Path]


def summary_of(runs: list[Run], folder: Path) -> dict[str, Any]:
    write_summary(runs, folder / "summary.json")
    summary: dict[str, Any] = json.loads((folder / "summary.json").read_text())
    return summary


def curves_of(runs: list[Run], folder: Path) -> list[dict[str, str]]:
    write_curves(runs, folder / "curves.csv")
    with (folder / "curves.csv").open(newline="") as handle:
        return list(csv.DictReader(handle))


def test_the_summary_holds_every_highlight_by_head_and_seed(three_heads_two_seeds: list[Path], tmp_path: Path) -> None:
    runs = load_runs(three_heads_two_seeds)
    summary = summary_of(runs, tmp_path)
    for run in runs:
        expected = {key: run.final(key) for key in highlights() if key not in OPTIONAL}
        assert summary[run.head][str(run.seed)] == {"epoch": 12, **expected}


def test_with_validation_the_summary_holds_the_best_epoch_beside_the_last(make_run: MakeRun, tmp_path: Path) -> None:
    (run,) = load_runs([make_run("digits", validation=(0.1, 0.8, 0.3, 0.2))])
    summary = summary_of([run], tmp_path)["linear"]["0"]
    expected = {key: run.best(key) for key in highlights() if key != ADJUSTED}
    assert summary["epoch"] == 12
    assert summary["best_on_val"] == {"epoch": 6, **expected}


def test_a_metric_that_was_not_measured_is_not_in_the_summary(make_run: MakeRun, tmp_path: Path) -> None:
    summary = summary_of(load_runs([make_run("digits", without=("acc/few",))]), tmp_path)
    assert summary["linear"]["0"].keys() == {"epoch", *highlights()} - {"test/acc/few", *OPTIONAL}


def test_repetitions_of_one_seed_are_all_in_the_summary(make_run: MakeRun, tmp_path: Path) -> None:
    runs = load_runs([make_run("first"), make_run("again"), make_run("other", seed=1)])
    assert summary_of(runs, tmp_path)["linear"].keys() == {"first", "again", "1"}


def test_curves_hold_every_metric_of_every_analysis(three_heads_two_seeds: list[Path], tmp_path: Path) -> None:
    runs = load_runs(three_heads_two_seeds)
    rows = {tuple(row[key] for key in IDENTITY): row for row in curves_of(runs, tmp_path)}
    assert len(rows) == sum(2 * len(run.analyses) for run in runs)
    for run in runs:
        for analysis in run.analyses:
            row = rows[run.name, run.head, str(run.seed), str(analysis["epoch"]), "test"]
            assert {key: float(row[key]) for key in analysis["test"]} == analysis["test"]


def test_a_metric_that_one_run_lacks_is_an_empty_cell(make_run: MakeRun, tmp_path: Path) -> None:
    runs = load_runs([make_run("all"), make_run("less", without=("acc/few",))])
    cells = {(row["run"], row["acc/few"] == "") for row in curves_of(runs, tmp_path)}
    assert cells == {("all", False), ("less", True)}


def test_the_validation_part_has_rows_of_its_own_in_the_curves(make_run: MakeRun, tmp_path: Path) -> None:
    rows = curves_of(load_runs([make_run("with", validation=(0.1, 0.8, 0.3, 0.2)), make_run("without")]), tmp_path)
    validated = [(row["run"], float(row["acc/balanced"])) for row in rows if row["split"] == "val"]
    assert validated == [("with", 0.1), ("with", 0.8), ("with", 0.3), ("with", 0.2)]


@pytest.mark.parametrize("seeds", [1, 2, 5])
def test_statistics_of_any_number_of_seeds_are_those_of_the_standard_library(
    make_run: MakeRun, tmp_path: Path, seeds: int
) -> None:
    runs = load_runs([make_run(f"run{seed}", seed=seed) for seed in range(seeds)])
    write_statistics(runs, tmp_path / "statistics.csv")
    with (tmp_path / "statistics.csv").open(newline="") as handle:
        rows = {row["metric"]: row for row in csv.DictReader(handle)}
    assert rows.keys() == {f"{split}/{name}" for split in ("train", "test") for name in runs[0].analyses[-1][split]}
    values = [run.final("test/acc/balanced") for run in runs]
    row = rows["test/acc/balanced"]
    assert (row["head.name"], row["runs"]) == ("linear", str(seeds))
    for name in ("median", "mean", "min", "max"):
        expected = {"median": statistics.median, "mean": statistics.mean, "min": min, "max": max}[name](values)
        assert float(row[name]) == pytest.approx(expected)
    assert row["std"] == "" if seeds == 1 else float(row["std"]) == pytest.approx(statistics.stdev(values))
