"""Run folders of others: a message names the file and the key that it lacks, and no value breaks a picture."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pytest
import torch
import yaml

from ncflow.reports.canvas import literal
from ncflow.reports.figures import cosine_figure, to_png
from ncflow.reports.page import write_report
from ncflow.tensors import read_tensors, write_tensors

MakeRun = Callable[..., Path]


def change(file: Path, change: Callable[[Any], Any]) -> None:
    file.write_text(json.dumps(change(json.loads(file.read_text()))))


def last(folder: Path, pattern: str) -> Path:
    return max(folder.glob(pattern), key=lambda file: int(file.stem.rpartition("_")[2]))


def set_history(value: Any) -> Callable[[Path], None]:
    return lambda folder: (folder / "history.json").write_text(json.dumps(value)) and None


def set_record(**values: Any) -> Callable[[Path], None]:
    def changed(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [{k: v for k, v in (record | values).items() if v != "absent"} for record in records]

    return lambda folder: change(folder / "history.json", changed)


def set_analysis(**values: Any) -> Callable[[Path], None]:
    return lambda folder: change(last(folder, "metrics_epoch_*.json"), lambda found: found | values)


def set_metrics(value: Any) -> Callable[[Path], None]:
    def changed(found: dict[str, Any]) -> dict[str, Any]:
        return {k: dict.fromkeys(v, value) if isinstance(v, dict) else v for k, v in found.items()}

    return lambda folder: change(last(folder, "metrics_epoch_*.json"), changed)


def set_config(**values: Any) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        config = yaml.safe_load((folder / "config.yaml").read_text())
        (folder / "config.yaml").write_text(yaml.safe_dump(config | values))

    return write


def set_dump(**values: Any) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        file = last(folder, "raw_geo_epoch_*.pt")
        write_tensors(file, {k: v for k, v in (read_tensors(file) | values).items() if v is not None})

    return write


def set_provenance(value: Any) -> Callable[[Path], None]:
    return lambda folder: (folder / "provenance.json").write_text(json.dumps(value)) and None


def set_names(*names: Any) -> Callable[[Path], None]:
    return set_provenance({"snapshot": {"digest": "d", "class_names": list(names)}})


DAMAGES = {
    "empty history": (set_history([]), "history.json.*a list of records"),
    "history of another kind": (set_history({}), "history.json.*a list of records"),
    "history of nulls": (set_history([None]), "history.json.*a mapping as record 1"),
    "no seconds": (set_record(seconds="absent"), "history.json.*a number as seconds of record 1"),
    "text as loss": (set_record(loss="low"), "history.json.*a number as loss of record 1, got low"),
    "seconds below zero": (set_record(seconds=-5.0), "history.json.*at least 0 as seconds of record 1, got -5"),
    "a list as rate": (set_record(lr=[1]), "history.json.*a number as lr of record 1, got list"),
    "one epoch twice": (set_record(epoch=1), "history.json.*an epoch after 1 in record 2, got 1"),
    "text as drift": (set_analysis(drift_norm="x"), r"metrics_epoch_\d+.json.*a number as drift_norm, got x"),
    "metrics null": (set_analysis(test=None), r"metrics_epoch_\d+.json.*a mapping as test"),
    "metrics text": (set_analysis(train="good"), r"metrics_epoch_\d+.json.*a mapping as train"),
    "a metric null": (set_metrics(None), r"metrics_epoch_\d+.json.*a number as train/"),
    "all metrics NaN": (set_metrics(float("nan")), r"metrics_epoch_\d+.json.*a metric that is finite"),
    "an epoch of 400 digits": (set_analysis(epoch=10**400), r"metrics_epoch_\d+.json.*as epoch"),
    "another epoch": (set_analysis(epoch=77), r"metrics_epoch_\d+.json.*as its name says"),
    "dataset null": (set_config(dataset=None), "config.yaml.*a mapping as dataset"),
    "a head of numbers": (set_config(head={"name": 3}), "config.yaml.*a name as head.name"),
    "a seed of text": (set_config(seed="one"), "config.yaml.*a whole number as seed"),
    "a dump without means": (set_dump(class_means=None), r"raw_geo_epoch_\d+.pt.*a tensor as class_means"),
    "a dump of other shapes": (set_dump(weight=torch.zeros(2, 3)), r"raw_geo_epoch_\d+.pt.*\(K, d\)"),
    "labels in between": (set_dump(predictions=torch.zeros(360)), "whole numbers as predictions, got torch.float32"),
    "sizes below zero": (set_dump(class_counts=torch.arange(-142, -132)), "at least 0 as class_counts, got -142"),
    "names of other classes": (set_names("a"), "provenance.json.*10 names as snapshot.class_names, got 1"),
    "names that are numbers": (set_names(1, 2, 3), "provenance.json.*as snapshot.class_names"),
    "provenance null": (set_provenance(None), "provenance.json.*a mapping as the provenance"),
    "rows of no width": (set_dump(class_means=torch.zeros(10, 0), weight=torch.zeros(10, 0)), r"\(K, d\), d >= 1"),
    "a sparse tensor": (set_dump(class_means=torch.eye(10).to_sparse()), "a dense tensor .* as class_means"),
    "complex means": (set_dump(class_means=torch.zeros(10, 26).cfloat()), "of real numbers .* as class_means"),
    "text as logits": (set_dump(logits="none"), "a tensor as logits, got none"),
    "labels out of range": (set_dump(targets=torch.full((3,), 99), predictions=torch.zeros(3).long()), "targets in 0"),
}


@pytest.mark.parametrize("case", DAMAGES)
def test_a_damaged_file_is_one_message_that_names_it_and_the_key(make_run: MakeRun, tmp_path: Path, case: str) -> None:
    damage, words = DAMAGES[case]
    folder = make_run("digits")
    damage(folder)
    with pytest.raises(ValueError, match=words) as failure:
        write_report([folder], tmp_path / "page")
    assert len(str(failure.value)) < 600
    assert not (tmp_path / "page").exists()


def test_a_file_whose_number_is_none_is_nobodys_epoch(make_run: MakeRun, tmp_path: Path) -> None:
    folder = make_run("digits")
    for name in ("metrics_epoch_x.json", f"metrics_epoch_{'9' * 200}.json", "metrics_epoch_²."):
        (folder / name).write_text("{}")
    assert write_report([folder], tmp_path / "page").exists()


@pytest.mark.parametrize("name", ["$x_{$", "a$b", "$\\frac$", "under_score^", "x\ny", "一" * 40])
def test_class_names_are_shown_letter_by_letter(name: str) -> None:
    rows = torch.eye(3, 4)
    figure = cosine_figure(rows, rows, class_names=[name, "b", "c"], title=name)
    assert to_png(figure).startswith(b"\x89PNG")
    shown = {text.get_text() for axes in figure.axes for text in axes.texts}
    assert "b" in shown and all(len(text) <= 10 and "\n" not in text for text in shown)


def test_dollars_in_a_run_or_an_option_do_not_break_the_report(make_run: MakeRun, tmp_path: Path) -> None:
    folders = [make_run("a$_{$"), make_run("b$^")]
    for folder, value in zip(folders, ("$\\alpha", "x^{$"), strict=True):
        set_config(note=value)(folder)
    assert write_report(folders, tmp_path / "page", title="$\\x").exists()


def test_a_report_keeps_no_figures_of_runs_that_are_not_in_it(make_run: MakeRun, tmp_path: Path) -> None:
    first, second = make_run("first"), make_run("second", overrides={"train": {"lr": 0.5}})
    for folders, stem in (([first, second], "knob_train.batch_size"), ([second], "angles")):
        write_report(folders, tmp_path / "page", figures=["knob", "angles"] if first in folders else ["angles"])
        assert stem in {file.stem for file in (tmp_path / "page" / "figures").iterdir()}
    assert {file.stem for file in (tmp_path / "page" / "figures").iterdir()} == {"angles"}


def test_text_with_dollars_is_drawn_as_it_is() -> None:
    figure = plt.figure()
    figure.suptitle(literal("$5 and $6"))
    figure.canvas.draw()
    plt.close(figure)


def test_the_report_names_the_classes_of_the_run(make_run: MakeRun, tmp_path: Path) -> None:
    folder = make_run("digits")
    count = len(read_tensors(last(folder, "raw_geo_epoch_*.pt"))["class_counts"])
    names = [f"class {k}" for k in range(count)]
    (folder / "provenance.json").write_text(json.dumps({"snapshot": {"digest": "x", "class_names": names}}))
    from ncflow.runs.reader import load_run

    assert load_run(folder).class_names == names
    (folder / "provenance.json").write_text(json.dumps({"snapshot": {"digest": "x"}}))
    assert load_run(folder).class_names is None
