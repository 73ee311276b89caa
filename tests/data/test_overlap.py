"""Pictures that are in the training split and in one that is to measure it: counted, said, refused if they are most."""

from __future__ import annotations

import shutil
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
from users import write_folders

from ncflow.data.images import ImageSource
from ncflow.data.snapshot import Snapshot
from ncflow.data.sources import SOURCES

pytestmark = pytest.mark.usefixtures("datasets_cache")


def create(tmp_path, shared: int, split: str = "test") -> Snapshot:
    """A snapshot of which so many of 6 pictures of a split are training pictures."""
    root = write_folders(tmp_path / "pics", {"a": 6, "b": 6}, ("train", "val", "test"))
    places = [(name, i) for name in ("a", "b") for i in range(3)]
    for name, i in places[:shared]:
        shutil.copy(root / "train" / name / f"{i}.png", root / split / name / f"{i}.png")
    return Snapshot.create(tmp_path / "snapshot", name="imagefolder", root=root, imb_factor=-1)


@pytest.mark.parametrize("split", ["val", "test"])
@pytest.mark.parametrize("shared", [0, 1, 3])
def test_shared_pictures_are_counted_and_said(tmp_path, caplog, split, shared):
    snapshot = create(tmp_path, shared, split)
    assert snapshot.manifest.get("shared_with_train", {}) == ({split: shared} if shared else {})
    assert (f"{shared} pictures of the {split} split are in the training split too" in caplog.text) == bool(shared)


def test_a_split_that_training_has_seen_is_refused(tmp_path):
    with pytest.raises(ValueError, match="4 of the 6 pictures of the test split are in the training split"):
        create(tmp_path, 4)


def test_a_test_split_that_is_a_copy_of_training_is_refused(tmp_path):
    root = write_folders(tmp_path / "pics", {"a": 6, "b": 6}, ("train",))
    shutil.copytree(root / "train", root / "test")
    with pytest.raises(ValueError, match="12 of the 12 pictures of the test split .* got .*test/a/0.png"):
        Snapshot.create(tmp_path / "snapshot", name="imagefolder", root=root, imb_factor=-1)


@pytest.mark.parametrize("on_purpose", [False, True])
def test_a_source_in_code_says_that_test_is_training_on_purpose(tmp_path, monkeypatch, on_purpose):
    def load(root: Path | None, split: str) -> ImageSource:
        pixels = np.arange(10 * 64, dtype=np.int64).reshape(10, 8, 8).astype(np.uint8)
        pixels[:, 0, 0] = np.arange(10)
        return ImageSource("same", pixels, np.arange(10) % 2, ["a", "b"], is_training=on_purpose and split == "test")

    monkeypatch.setitem(SOURCES, "same", load)
    refused = pytest.raises(ValueError, match="set ImageSource.is_training")
    with nullcontext() if on_purpose else refused:
        Snapshot.create(tmp_path / "snapshot", name="same", imb_type="none")


def test_pictures_without_content_are_no_copies_of_each_other(tmp_path):
    root = write_folders(tmp_path / "pics", {"a": 6, "b": 6})
    for file in (root / "train/a/0.png", *(root / "test").rglob("*.png")):
        file.write_bytes(b"")
    with pytest.raises(ValueError, match="cannot read 7 pictures"):
        Snapshot.create(tmp_path / "snapshot", name="imagefolder", root=root, imb_factor=-1)


def test_free_features_are_measured_where_they_are_trained(tmp_path):
    snapshot = Snapshot.create(tmp_path / "snapshot", name="ufm10", imb_factor=1.0)
    assert "shared_with_train" not in snapshot.manifest
