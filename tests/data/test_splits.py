"""Splits: a validation split of its own is used, a source with one split is divided, and never both by chance."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from users import NAMES, write_folders, write_labelled, write_plain

from ncflow.data.images import DatasetMissing, SplitMissing
from ncflow.data.snapshot import Snapshot
from ncflow.data.splits import load_splits

pytestmark = pytest.mark.usefixtures("datasets_cache")
COUNTS = {"a": 10, "b": 20}


@pytest.mark.parametrize("name", ["val", "validation", "valid"])
def test_a_validation_folder_beside_a_test_folder_is_the_validation_split(tmp_path, name):
    root = write_folders(tmp_path / "pics", COUNTS, ("train", name, "test"))
    snapshot = Snapshot.create(tmp_path / "snapshot", name="imagefolder", root=root, imb_factor=-1)
    assert snapshot.splits == ("train", "val", "test")
    assert snapshot.manifest["val_class_counts"] == [3, 3] == snapshot.manifest["test_class_counts"]
    assert snapshot.manifest["source_sha256"].keys() == {"train", "val", "test"}


@pytest.mark.parametrize("name", ["val", "validation", "valid"])
def test_without_a_test_folder_it_is_the_test_split(tmp_path, name):
    root = write_folders(tmp_path / "pics", COUNTS, ("train", name))
    assert load_splits("imagefolder", root).keys() == {"train", "test"}


def test_validation_files_beside_test_files_are_the_validation_split(tmp_path):
    for split in ("train", "validation", "test"):
        write_labelled(tmp_path / "pics" / f"{split}.parquet", NAMES * 2, NAMES)
    assert load_splits("parquet", tmp_path / "pics").keys() == {"train", "val", "test"}
    (tmp_path / "pics" / "test.parquet").unlink()
    assert load_splits("parquet", tmp_path / "pics").keys() == {"train", "test"}


def test_a_validation_split_and_a_part_held_out_contradict_each_other(tmp_path):
    root = write_folders(tmp_path / "pics", COUNTS, ("train", "val", "test"))
    with pytest.raises(ValueError, match="has a validation split of 6 pictures: expected dataset.val_fraction=0"):
        Snapshot.create(tmp_path / "snapshot", name="imagefolder", root=root, imb_factor=-1, val_fraction=0.1)


@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_a_source_with_one_split_is_divided_class_by_class(tmp_path, seed, flat):
    root = write_folders(tmp_path / "pics", COUNTS, ("train",))
    root = root / "train" if flat else root
    splits = load_splits("imagefolder", root, test_fraction=0.3, seed=seed)
    assert np.bincount(splits["train"].targets).tolist() == [7, 14]
    assert np.bincount(splits["test"].targets).tolist() == [3, 6]
    files = [set(map(str, splits[split].images)) for split in splits]
    assert not files[0] & files[1] and len(files[0] | files[1]) == 30
    again = load_splits("imagefolder", root, test_fraction=0.3, seed=seed)
    assert [str(file) for file in again["test"].images] == [str(file) for file in splits["test"].images]
    other = load_splits("imagefolder", root, test_fraction=0.3, seed=seed + 1)
    assert {str(file) for file in other["test"].images} != files[1]


def test_a_divided_source_is_a_snapshot_that_says_so(tmp_path):
    root = write_folders(tmp_path / "pics", COUNTS, ("train",))
    snapshot = Snapshot.create(tmp_path / "s", name="imagefolder", root=root, imb_factor=-1, test_fraction=0.3)
    assert (snapshot.class_counts, snapshot.manifest["test_fraction"]) == ([7, 14], 0.3)
    assert snapshot.manifest["test_class_counts"] == [3, 6]


def test_a_missing_test_split_names_the_option(tmp_path):
    root = write_folders(tmp_path / "pics", COUNTS, ("train",))
    with pytest.raises(
        SplitMissing, match=r"no test split: .*; a source with one split only is divided by dataset.test_"
    ):
        load_splits("imagefolder", root)


@pytest.mark.parametrize("name", ["digits", "imagefolder"])
def test_a_source_with_a_test_split_is_not_divided(tmp_path, name):
    root: Path | None = write_folders(tmp_path / "pics", COUNTS) if name == "imagefolder" else None
    with pytest.raises(
        ValueError, match=r"has a test split of \d+ pictures, so dataset.test_fraction=0.2 would divide"
    ):
        load_splits(name, root, test_fraction=0.2)


@pytest.mark.parametrize("test_fraction", [0.0, 0.3])
@pytest.mark.parametrize(
    ("splits", "odd"),
    [
        (("train", "test", "Val"), "Val"),
        (("train", "val", "Test"), "Test"),
        (("Train", "TEST"), "TEST, Train"),
        (("Train",), "Train"),
    ],
)
def test_folders_called_almost_like_splits_are_refused(tmp_path, splits, odd, test_fraction):
    root = write_folders(tmp_path / "pics", COUNTS, splits)
    with pytest.raises(DatasetMissing, match=f"rename {odd} to lower case"):
        load_splits("imagefolder", root, test_fraction=test_fraction)


@pytest.mark.parametrize(
    "splits", [("train", "test", "Validation"), ("train", "validation", "Test"), ("Train", "test")]
)
def test_files_called_almost_like_splits_are_refused(tmp_path, splits):
    for split in splits:
        write_labelled(tmp_path / "pics" / f"{split}.parquet", NAMES * 2, NAMES)
    odd = next(split for split in splits if not split.islower())
    with pytest.raises(DatasetMissing, match=f"rename {odd}.parquet to lower case"):
        load_splits("parquet", tmp_path / "pics")


@pytest.mark.parametrize("also", [(), ("test",)])
def test_two_names_of_the_validation_split_are_refused(tmp_path, also):
    root = write_folders(tmp_path / "pics", COUNTS, ("train", "val", "validation", *also))
    for split in ("train", "val", "validation", *also):
        write_labelled(tmp_path / "files" / f"{split}.parquet", NAMES * 2, NAMES)
    with pytest.raises(DatasetMissing, match="has val and validation, names of the same split"):
        load_splits("imagefolder", root)
    with pytest.raises(DatasetMissing, match="has files of validation and val, names of the same split"):
        load_splits("parquet", tmp_path / "files")


@pytest.mark.parametrize("names", [["pets"], ["pets-00000-of-00002", "pets-00001-of-00002"]])
def test_files_without_the_name_of_a_split_are_the_only_split(tmp_path, names):
    for name in names:
        write_labelled(tmp_path / f"{name}.parquet", NAMES * 5, NAMES)
    with pytest.raises(SplitMissing, match="divided by dataset.test_fraction"):
        load_splits("parquet", tmp_path)
    splits = load_splits("parquet", tmp_path, test_fraction=0.2)
    counts = {split: np.bincount(source.targets).tolist() for split, source in splits.items()}
    assert counts == {"train": [4 * len(names)] * 3, "test": [len(names)] * 3}
    write_labelled(tmp_path / "other.parquet", NAMES, NAMES)
    with pytest.raises(SplitMissing, match="expected a train split"):
        load_splits("parquet", tmp_path, test_fraction=0.2)


def test_a_folder_that_datasets_saved_without_splits_is_the_only_split(tmp_path):
    from datasets import Dataset

    write_labelled(tmp_path / "pets.parquet", NAMES * 5, NAMES)
    Dataset.from_parquet(str(tmp_path / "pets.parquet")).save_to_disk(tmp_path / "saved")
    splits = load_splits("parquet", tmp_path / "saved", test_fraction=0.2)
    assert [len(splits[split]) for split in ("train", "test")] == [12, 3]


@pytest.mark.parametrize("name", ["test", "val"])
def test_a_folder_without_classes_is_said(tmp_path, name):
    root = write_folders(tmp_path / "pics", COUNTS, ("train",))
    (root / name).mkdir()
    assert load_splits("imagefolder", root, test_fraction=0.3)["train"].notes == ()
    (root / name / "0.png").write_bytes((root / "train" / "a" / "0.png").read_bytes())
    notes = load_splits("imagefolder", root, test_fraction=0.3)["train"].notes
    assert notes == (f"{name} has no folders of classes and is left out",)


def test_a_class_that_is_called_like_a_split_stays_a_class(tmp_path):
    root = write_folders(tmp_path, {"control": 4, "test": 4}, ("train",)) / "train"
    splits = load_splits("imagefolder", root, test_fraction=0.5)
    assert splits["train"].class_names == ["control", "test"] and splits["train"].notes == ()


def test_a_class_of_one_picture_stays_in_training_and_is_said(tmp_path):
    root = write_folders(tmp_path / "pics", {"a": 4, "b": 1}, ("train",))
    splits = load_splits("imagefolder", root, test_fraction=0.5)
    assert np.bincount(splits["test"].targets, minlength=2).tolist() == [2, 0]
    assert splits["test"].notes == ("the test split has none of class b, of one picture each",)


def test_classes_that_differ_in_case_alone_are_said(tmp_path):
    rows = ["Cat", "cat", "dog"]
    write_plain(tmp_path / "train.parquet", rows, rows)
    note = ("classes that differ in upper and lower case alone are kept apart: Cat and cat",)
    assert load_splits("parquet", tmp_path, test_fraction=0.5)["train"].notes == note
