"""Many runs as one table: every number of every run folder is in it, in its place."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import ncflow
from ncflow.runs.reader import load_runs

MakeRun = Callable[..., Path]


def test_every_metric_of_every_analysis_is_in_its_row(make_run: MakeRun, tmp_path: Path) -> None:
    folders = [make_run("a", validation=(0.1, 0.8, 0.3, 0.2)), make_run("b", head="nearest_etf", seed=3)]
    frame = ncflow.read_runs(tmp_path / "models" / "*")
    for run in load_runs(folders):
        for analysis in run.analyses:
            for split in {"train", "val", "test"} & analysis.keys():
                row = frame.loc[(run.name, analysis["epoch"], split)]
                assert {name: row[name] for name in analysis[split]} == analysis[split]
                assert row["train.lr"] == run.options["train.lr"] and row["head.name"] == run.head
    assert len(frame) == 4 * 3 + 4 * 2 and frame.index.is_unique


def test_a_list_and_a_pattern_give_the_same_table(make_run: MakeRun, tmp_path: Path) -> None:
    folders = [make_run("a"), make_run("b", seed=1)]
    assert ncflow.read_runs(folders).equals(ncflow.read_runs(str(tmp_path / "models" / "[ab]")))


def test_a_pattern_skips_other_folders_that_a_list_refuses(make_run: MakeRun, tmp_path: Path) -> None:
    folder = make_run("a")
    begun = make_run("b")
    for file in begun.glob("metrics_epoch_*"):
        file.unlink()
    (tmp_path / "models" / "notes").mkdir()
    with pytest.warns(UserWarning, match=r"b is skipped: it has no analysis yet"):
        frame = ncflow.read_runs(folder.parent / "*")
    assert set(frame.index.get_level_values("run")) == {"a"}
    with pytest.raises(ValueError, match="unfinished"):
        ncflow.read_runs([folder, begun])
    with pytest.raises(ValueError, match="no run folder matches"):
        ncflow.read_runs(tmp_path / "nothing" / "*")


def test_a_metric_and_an_option_of_one_run_are_nan_in_others(make_run: MakeRun, tmp_path: Path) -> None:
    make_run("a"), make_run("b", without=("acc/few",), overrides={"model": {"name": "vgg11", "stem": "small"}})
    frame = ncflow.read_runs(tmp_path / "models" / "*")
    assert frame.loc["b", "acc/few"].isna().all() and frame.loc["a", "acc/few"].notna().all()
    assert frame.loc["a", "model.stem"].isna().all()
