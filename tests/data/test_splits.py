"""Splits: a validation split of its own is used, a source with one split is divided, and never both by chance."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from users import NAMES, write_folders, write_labelled

from ncflow.data.images import SplitMissing
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
