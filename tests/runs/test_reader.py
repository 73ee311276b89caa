"""A run folder is read whole, or refused by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from ncflow.runs.reader import config_differences, load_run, load_runs

MakeRun = Callable[..., Path]


def test_a_run_knows_its_name_head_seed_and_last_epoch(make_run: MakeRun) -> None:
    run = load_run(make_run("digits-linear", head="linear", seed=7))
    assert (run.name, run.head, run.seed, run.epoch) == ("digits-linear", "linear", 7, 12)
    assert len(run.history) == 12


def test_analyses_are_in_order_of_epochs_not_of_file_names(make_run: MakeRun) -> None:
    run = load_run(make_run("long", epochs=(2, 9, 10, 100)))
    assert [analysis["epoch"] for analysis in run.analyses] == [2, 9, 10, 100]
    assert list(run.curve("train/nc1/pinv")) == [2, 9, 10, 100]


def test_the_dump_is_that_of_the_last_epoch(make_run: MakeRun) -> None:
    folder = make_run("digits", epochs=(9, 10))
    last = torch.load(folder / "raw_geo_epoch_10.pt", weights_only=True)
    assert torch.equal(load_run(folder).dump["class_means"], last["class_means"])


def test_the_final_value_is_the_end_of_the_curve(make_run: MakeRun) -> None:
    run = load_run(make_run("digits"))
    for metric in ("acc/balanced", "nc1/pinv", "drift/relative"):
        assert run.final(f"test/{metric}") == list(run.curve(f"test/{metric}").values())[-1]


def test_a_metric_that_was_not_measured_is_none(make_run: MakeRun) -> None:
    run = load_run(make_run("digits", without=("acc/few",)))
    assert run.final("test/acc/few") is None
    assert run.final("validation/acc/overall") is None
    assert run.curve("test/acc/few") == {}


def test_the_best_epoch_is_that_of_validation_whatever_the_test_split_says(make_run: MakeRun) -> None:
    run = load_run(make_run("digits", epochs=(2, 4, 6, 8), validation=(0.3, 0.7, 0.7, 0.5)))
    assert run.best_epoch == 4
    assert run.best("test/acc/balanced") == run.curve("test/acc/balanced")[4]
    assert run.best("val/acc/balanced") == 0.7
    for analysis in run.analyses:
        analysis["test"]["acc/balanced"] = analysis["epoch"] / 8
    assert run.best_epoch == 4


def test_without_a_validation_part_no_epoch_is_the_best(make_run: MakeRun) -> None:
    run = load_run(make_run("digits"))
    assert run.best_epoch is None
    assert run.best("test/acc/balanced") is None


def test_a_missing_folder_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no run folder at .*nowhere"):
        load_run(tmp_path / "nowhere")


@pytest.mark.parametrize("pattern", ["config.yaml", "metrics_epoch_*.json", "history.json"])
def test_an_unfinished_folder_is_refused_with_what_it_lacks(make_run: MakeRun, pattern: str) -> None:
    folder = make_run("half-done")
    for file in folder.glob(pattern):
        file.unlink()
    with pytest.raises(ValueError, match=f"half-done' is unfinished: no {pattern.partition('_epoch')[0]}"):
        load_run(folder)


@pytest.mark.parametrize("text", ["", '{"epoch": 6, "tr', "[" * 100_000])
def test_a_damaged_record_is_refused_by_name(make_run: MakeRun, text: str) -> None:
    folder = make_run("digits")
    (folder / "metrics_epoch_6.json").write_text(text)
    with pytest.raises(ValueError, match=r"metrics_epoch_6\.json' is damaged"):
        load_run(folder)


def test_a_missing_dump_is_refused_when_it_is_asked_for(make_run: MakeRun) -> None:
    folder = make_run("digits")
    for file in folder.glob("*.pt"):
        file.unlink()
    run = load_run(folder)
    with pytest.raises(ValueError, match=r"raw_geo_epoch_N\.pt"):
        _ = run.dump


@pytest.mark.parametrize("content", [b"PK", b"", b"a: [1", b"just text", b"\xff\xfe\xfa"])
def test_a_damaged_file_is_refused_by_name(make_run: MakeRun, content: bytes) -> None:
    path = make_run(name="hurt")
    for dump in path.glob("raw_geo_epoch_*.pt"):
        dump.write_bytes(content)
    with pytest.raises(ValueError, match=r"raw_geo_epoch_\d+\.pt is damaged"):
        _ = load_run(path).dump
    (path / "config.yaml").write_bytes(content)
    with pytest.raises(ValueError, match=r"config\.yaml"):
        load_run(path)


GROWS = "a0: &a0 {b: 1, c: 1}\n" + "".join(f"a{i}: &a{i} {{b: *a{i - 1}, c: *a{i - 1}}}\n" for i in range(1, 60))


@pytest.mark.parametrize("text", [GROWS, "a: &a {b: *a}", "a: &a {b: 1}\nc: {<<: *a}", "[" * 10_000, "a: 017"])
def test_a_hostile_config_is_refused_by_name(make_run: MakeRun, text: str) -> None:
    folder = make_run("digits")
    (folder / "config.yaml").write_text(text)
    with pytest.raises(ValueError, match=r"config\.yaml' is damaged"):
        load_run(folder)


def test_a_config_without_head_or_seed_is_refused_with_both_keys(make_run: MakeRun) -> None:
    folder = make_run("digits")
    (folder / "config.yaml").write_text("train: {lr: 0.1}\n")
    with pytest.raises(ValueError, match=r"lacks head\.name, seed"):
        load_run(folder)


def test_two_runs_of_one_name_are_refused(make_run: MakeRun) -> None:
    with pytest.raises(ValueError, match="two runs are named 'same'"):
        load_runs([make_run("a/same"), make_run("b/same")])


def test_no_runs_at_all_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one run folder"):
        load_runs([])


def test_differences_are_the_keys_on_which_runs_disagree(make_run: MakeRun) -> None:
    runs = load_runs([make_run("a", seed=0), make_run("b", seed=1, overrides={"train": {"lr": 0.1}})])
    differences = config_differences(runs)
    assert differences["seed"] == [0, 1]
    assert differences["train.epochs"] == [12, None]
    assert "train.lr" not in differences
    assert config_differences(runs[:1]) == {}


def test_keys_that_change_no_run_are_no_differences(make_run: MakeRun) -> None:
    other = {"data": {"workers": 2}, "tracking": {"register": "mine"}}
    runs = load_runs([make_run("a"), make_run("b", overrides=other)])
    assert not {"data.workers", "tracking.register"} & config_differences(runs).keys()
