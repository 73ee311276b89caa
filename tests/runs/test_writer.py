"""The run folder: the first seed's layout, never half written, never mistaken for another run's."""

from __future__ import annotations

import errno
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ncflow import stages
from ncflow.files import write_atomically
from ncflow.nn import HEADS
from ncflow.runs.writer import RunFolder, load_model
from ncflow.tensors import write_tensors
from ncflow.training import Analysis, EpochRecord, Splits, evaluate_splits

PLAIN = EpochRecord(epoch=1, lr=0.1, loss=2.0, accuracy=0.5, seconds=1.5, images_per_second=300.0)
TENSORS = {"predictions", "targets", "drift_vector", "class_means", "class_counts", "weight"}


@pytest.fixture
def classifier(make_classifier):
    return make_classifier()


@pytest.fixture
def record(classifier, splits, digits) -> EpochRecord:
    """An analyzed epoch."""
    analysis = evaluate_splits(classifier, Splits(**splits, class_counts=digits.class_counts))
    return replace(PLAIN, epoch=2, analysis=analysis)


def names(folder: Path) -> set[str]:
    return {file.name for file in folder.iterdir()}


# --- layout ---


def test_a_run_leaves_the_first_seeds_files_and_its_history(tmp_path, record, classifier, digits):
    folder = RunFolder(tmp_path / "models" / "run")
    for each in (PLAIN, record):
        folder.write_record(each, classifier.head, digits.class_counts)
    folder.write_model(classifier)
    expected = {"metrics_epoch_2.json", "raw_geo_epoch_2.pt", "final_model.pth", "history.json"}
    assert names(folder.path) == expected


def test_metrics_have_the_seeds_keys_and_everything_measured(tmp_path, record, classifier, digits):
    folder = RunFolder(tmp_path / "run")
    returned = folder.write_record(record, classifier.head, digits.class_counts)
    metrics = json.loads((folder.path / "metrics_epoch_2.json").read_text())
    train, test = record.analysis["train"].metrics, record.analysis["test"].metrics
    assert metrics == returned
    assert metrics["epoch"] == 2
    assert metrics["overall_acc"] == test["acc/overall"]
    assert metrics["tail_acc"] == test["acc/tail20"]
    assert metrics["drift_norm"] == train["drift/norm"]
    assert metrics["layer_wise_drift"] == {}
    assert (metrics["lr"], metrics["loss"]) == (0.1, 2.0)
    assert (metrics["train"], metrics["test"]) == (train, test)


def test_a_validation_part_has_its_metrics_beside_the_others(tmp_path, record, classifier, digits):
    test = record.analysis["test"]
    record = replace(record, analysis=record.analysis | {"val": replace(test, metrics={"acc/overall": 0.5})})
    metrics = RunFolder(tmp_path / "run").write_record(record, classifier.head, digits.class_counts)
    assert metrics["val"] == {"acc/overall": 0.5}
    assert (metrics["test"], metrics["overall_acc"]) == (test.metrics, test.metrics["acc/overall"])


def test_an_accuracy_that_the_test_split_does_not_define_is_null(tmp_path, record, classifier, digits):
    test = record.analysis["test"]
    without = replace(test, metrics={name: v for name, v in test.metrics.items() if name != "acc/tail20"})
    analysis = {"train": record.analysis["train"], "test": without}
    record = replace(record, analysis=analysis)
    metrics = RunFolder(tmp_path / "run").write_record(record, classifier.head, digits.class_counts)
    assert metrics["tail_acc"] is None


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("save_logits", [True, False])
def test_geometry_holds_tensors_only_and_logits_when_asked(
    tmp_path, make_classifier, splits, digits, head, save_logits
):
    classifier = make_classifier(head)
    analysis = evaluate_splits(classifier, Splits(**splits, class_counts=digits.class_counts))
    folder = RunFolder(tmp_path / "run")
    folder.write_record(
        replace(PLAIN, analysis=analysis), classifier.head, digits.class_counts, save_logits=save_logits
    )
    geometry = torch.load(folder.path / "raw_geo_epoch_1.pt", weights_only=True)
    extra = ({"logits"} if save_logits else set()) | ({"bias"} if classifier.head.bias is not None else set())
    assert set(geometry) == TENSORS | extra
    test, train = analysis["test"], analysis["train"]
    assert torch.equal(geometry["predictions"], test.predictions)
    assert torch.equal(geometry["targets"], splits["test"].targets)
    assert torch.equal(geometry["drift_vector"], train.sample_mean)
    assert torch.equal(geometry["class_means"], train.class_means)
    assert geometry["drift_vector"].norm().item() == pytest.approx(train.metrics["drift/norm"])
    assert geometry["class_counts"].tolist() == digits.class_counts
    assert torch.equal(geometry["weight"], classifier.head.weight) and not geometry["weight"].requires_grad
    if save_logits:
        assert torch.equal(geometry["logits"], test.logits)


@pytest.mark.parametrize("head", ["linear", "nearest_etf"])
def test_saved_features_are_measured_to_the_numbers_of_the_run(tmp_path, make_classifier, splits, digits, head):
    classifier = make_classifier(head)
    analysis = evaluate_splits(classifier, Splits(**splits, class_counts=digits.class_counts), Analysis(features=True))
    folder = RunFolder(tmp_path / "run")
    summary = folder.write_record(replace(PLAIN, analysis=analysis), classifier.head, digits.class_counts)
    found = stages.measure([folder.path / "features_epoch_1.pt"], None, tmp_path / "measured")
    for split in ("train", "test"):
        own = {name: value for name, value in summary[split].items() if not name.startswith(("head/", "posthoc/"))}
        assert found[split] == own
    RunFolder(folder.path)  # a run from the start
    assert not (folder.path / "features_epoch_1.pt").exists()


def test_the_history_holds_every_epoch_analyzed_or_not(tmp_path, record, classifier, digits):
    folder = RunFolder(tmp_path / "run")
    for each in (PLAIN, record):
        folder.write_record(each, classifier.head, digits.class_counts)
        history = json.loads((folder.path / "history.json").read_text())
        assert history[-1] == {name: v for name, v in vars(each).items() if name not in ("analysis", "last", "state")}
    assert [epoch["epoch"] for epoch in history] == [1, 2]


def test_an_epoch_without_analysis_adds_to_the_history_only(tmp_path, classifier, digits):
    folder = RunFolder(tmp_path / "run")
    assert folder.write_record(PLAIN, classifier.head, digits.class_counts) == {}
    assert names(folder.path) == {"history.json"}


# --- runs that go on ---


def test_a_resumed_run_finds_its_files_after_the_folder_was_deleted(tmp_path, record, classifier, digits):
    path, kept = tmp_path / "run", tmp_path / "kept"
    before = RunFolder(path, kept=kept)
    before.write_text("config.yaml", "a: 1")
    for epoch in (1, 2, 3):
        before.write_record(replace(record, epoch=epoch), classifier.head, digits.class_counts)
    content = {file.name: file.read_bytes() for file in path.iterdir()}
    shutil.rmtree(path)
    after = RunFolder(path, kept=kept, epoch=2)  # the third was written, but its state was not
    later = {"metrics_epoch_3.json", "raw_geo_epoch_3.pt"}
    assert after.epochs == 2 and names(path) == names(kept) == set(content) - later
    assert all((path / name).read_bytes() == content[name] for name in names(path))
    after.write_record(replace(record, epoch=3), classifier.head, digits.class_counts)
    assert {file.name: file.read_bytes() for file in path.iterdir()} == content


def test_files_are_visible_during_a_run_and_stay_afterwards(tmp_path, record, classifier, digits):
    folder = RunFolder(tmp_path / "run", kept=tmp_path / "kept")
    folder.write_record(record, classifier.head, digits.class_counts)
    assert "metrics_epoch_2.json" in names(tmp_path / "run")
    shutil.rmtree(tmp_path / "kept")
    assert json.loads((tmp_path / "run" / "metrics_epoch_2.json").read_text())["epoch"] == 2


def test_a_run_killed_after_its_final_model_finishes_in_place(tmp_path, record, classifier, digits):
    path, kept = tmp_path / "run", tmp_path / "kept"
    folder = RunFolder(path, kept=kept)
    folder.write_record(replace(record, epoch=1), classifier.head, digits.class_counts)
    folder.write_model(classifier)
    again = RunFolder(path, kept=kept, epoch=1)
    assert not (path / "final_model.pth").exists()  # or it would look finished while it is not
    again.write_model(classifier)
    assert names(tmp_path) == {"run", "kept"}


def test_a_finished_run_of_another_configuration_is_moved_aside(tmp_path, record, classifier, digits):
    path, kept = tmp_path / "run", tmp_path / "kept"
    RunFolder(path, kept=kept).write_record(replace(record, epoch=1), classifier.head, digits.class_counts)
    other = RunFolder(path)
    other.write_text("config.yaml", "the other's")
    other.write_model(classifier)
    RunFolder(path, kept=kept, epoch=1)
    assert names(tmp_path / "run.1") >= {"config.yaml", "final_model.pth"}
    assert names(path) == {"history.json", "metrics_epoch_1.json", "raw_geo_epoch_1.pt"}


def test_on_file_systems_without_hard_links_files_are_copied(tmp_path, monkeypatch):
    def refuse(self, target):
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr(Path, "hardlink_to", refuse)
    file = RunFolder(tmp_path / "run", kept=tmp_path / "kept").write_text("config.yaml", "a: 1")
    assert file == tmp_path / "run" / "config.yaml" and file.read_text() == "a: 1"


# --- runs that were there before ---


def test_a_finished_run_is_moved_aside_and_keeps_its_files(tmp_path, record, classifier, digits):
    path = tmp_path / "run"
    for _ in range(3):
        folder = RunFolder(path)
        assert names(path) == set()
        folder.write_record(record, classifier.head, digits.class_counts)
        folder.write_model(classifier)
    assert names(tmp_path) == {"run", "run.1", "run.2"}
    assert all("final_model.pth" in names(tmp_path / run) for run in names(tmp_path))


def test_the_epochs_of_an_unfinished_run_are_not_taken_for_this_ones(tmp_path, record, classifier, digits):
    path = tmp_path / "run"
    unfinished = RunFolder(path)
    for epoch in (2, 4):
        unfinished.write_record(replace(record, epoch=epoch), classifier.head, digits.class_counts)
    (path / "notes.txt").write_text("the user's")
    folder = RunFolder(path)
    assert not {name for name in names(path) if "epoch" in name}
    assert "notes.txt" in names(path)
    folder.write_record(PLAIN, classifier.head, digits.class_counts)
    assert [epoch["epoch"] for epoch in json.loads((path / "history.json").read_text())] == [1]
    assert names(tmp_path) == {"run"}


# --- writing ---


def test_a_write_that_fails_leaves_what_was_there(tmp_path):
    path = tmp_path / "file"

    def half(file):
        file.write(b"half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, half)
    assert names(tmp_path) == set()
    write_atomically(path, lambda file: file.write(b"whole"))
    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, half)
    assert names(tmp_path) == {"file"}
    assert path.read_bytes() == b"whole"


def test_a_full_disk_is_named_and_leaves_no_half_written_file(tmp_path):
    class Full:
        """A file on a disk with room for a thousand bytes: torch hides the system's error behind one of its own."""

        def __init__(self, file):
            self.file, self.written = file, 0

        def write(self, content):
            self.written += len(content)
            if self.written > 1000:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return self.file.write(content)

        def flush(self):
            self.file.flush()

    path = write_tensors(tmp_path / "model.pth", {"a": torch.zeros(3)})
    before = path.read_bytes()
    with pytest.raises(OSError, match=rf"cannot write {path}: No space left on device; .* the same command"):
        write_atomically(path, lambda file: torch.save({"a": torch.zeros(10_000)}, Full(file)))
    assert names(tmp_path) == {"model.pth"} and path.read_bytes() == before


def test_a_folder_that_may_not_be_written_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"cannot write .*file/config.yaml: Not a directory"):
        write_atomically(tmp_path / "file" / "config.yaml", lambda file: file.write(b"x"))


def test_while_a_file_is_being_written_nothing_has_its_name(tmp_path):
    def look(file):
        assert not (tmp_path / "model.pth").exists()
        file.write(b"x")

    assert write_atomically(tmp_path / "model.pth", look) == tmp_path / "model.pth"
    assert names(tmp_path) == {"model.pth"}


def test_text_is_utf_8(tmp_path):
    path = RunFolder(tmp_path / "run").write_text("config.yaml", "μ: ü\n")
    assert path.read_bytes() == "μ: ü\n".encode()


# --- loading ---


@pytest.mark.parametrize("head", HEADS)
def test_a_loaded_model_is_the_one_that_was_written(tmp_path, head, make_classifier, splits):
    images, targets = next(splits["train"].shuffled(1))
    written, loaded = make_classifier(head), make_classifier(head, seed=1)
    with torch.no_grad():
        written(images, targets)
        path = RunFolder(tmp_path / "run").write_model(written)
        state = torch.load(path, weights_only=True)
        assert {name: tensor.shape for name, tensor in state.items()} == {
            name: tensor.shape for name, tensor in written.state_dict().items()
        }
        load_model(path, loaded)
        assert torch.equal(loaded.eval()(images).logits, written.eval()(images).logits)


def test_a_missing_checkpoint_says_how_to_get_one(tmp_path, classifier):
    with pytest.raises(ValueError, match=r"no checkpoint .*final_model.pth; train first, or fetch it with `dvc pull`"):
        load_model(tmp_path / "final_model.pth", classifier)


@pytest.mark.parametrize("damage", ["truncated", "one bit", "empty", "text", "another head", "not a state_dict"])
def test_a_damaged_or_foreign_checkpoint_is_refused_by_name(tmp_path, damage, make_classifier):
    path = RunFolder(tmp_path / "run").write_model(make_classifier())
    content = path.read_bytes()
    middle = len(content) // 2
    files = {
        "truncated": content[:middle],
        "one bit": content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :],
        "empty": b"",
        "text": b"<html>not found</html>",
    }
    if damage in files:
        path.write_bytes(files[damage])
    elif damage == "another head":
        write_tensors(path, make_classifier("nearest_etf").state_dict())
    else:
        torch.save([1, 2, 3], path)
    with pytest.raises(ValueError, match=f"{path} is (damaged or )?not a checkpoint"):
        load_model(path, make_classifier())


def test_a_checkpoint_cannot_run_code(tmp_path, classifier):
    class Malicious:
        def __reduce__(self):
            return Path.touch, (tmp_path / "pwned",)

    torch.save({"head.weight": Malicious()}, tmp_path / "model.pth")
    with pytest.raises(ValueError, match="is damaged or not a checkpoint"):
        load_model(tmp_path / "model.pth", classifier)
    assert not (tmp_path / "pwned").exists()
