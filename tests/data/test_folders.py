"""Folders as users have them: links are followed and end, hidden files are none, what is left out is said."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from users import picture, write_folders

from ncflow.data.folders import pictures_below
from ncflow.data.images import DatasetMissing
from ncflow.data.snapshot import Snapshot
from ncflow.data.sources import load_source

pytestmark = pytest.mark.usefixtures("datasets_cache")


@pytest.fixture
def root(tmp_path) -> Path:
    return write_folders(tmp_path / "pics", {"a": 4, "b": 3})


def counts(root: Path, split: str = "train") -> list[int]:
    targets = load_source("imagefolder", root, split).targets.tolist()
    return [targets.count(k) for k in range(2)]


def test_linked_folders_and_files_are_followed(root, tmp_path):
    shutil.copytree(root / "train" / "a", tmp_path / "elsewhere")
    (root / "train" / "a" / "more").symlink_to(tmp_path / "elsewhere")
    (root / "train" / "b" / "linked.png").symlink_to(tmp_path / "elsewhere" / "0.png")
    assert counts(root) == [8, 4]
    (root / "train").rename(tmp_path / "moved")
    (root / "train").symlink_to(tmp_path / "moved")
    assert counts(root) == [8, 4]


def test_a_linked_class_is_a_class(root, tmp_path):
    (root / "train" / "a").rename(tmp_path / "a")
    (root / "train" / "a").symlink_to(tmp_path / "a")
    assert counts(root) == [4, 3]


def test_links_in_a_circle_end(root):
    (root / "train" / "a" / "up").symlink_to(root / "train" / "a")
    (root / "train" / "a" / "deep").mkdir()
    (root / "train" / "a" / "deep" / "other").symlink_to(root / "train" / "a" / "deep")
    picture("a").save(root / "train" / "a" / "deep" / "9.png")
    assert counts(root) == [5, 3]


def test_a_folder_that_two_links_lead_to_counts_once(root, tmp_path):
    shutil.copytree(root / "train" / "a", tmp_path / "elsewhere")
    for name in ("one", "two"):
        (root / "train" / "a" / name).symlink_to(tmp_path / "elsewhere")
    assert counts(root) == [8, 3]


@pytest.mark.parametrize("place", ["train/a/broken.png", "train/broken"])
def test_a_link_to_nothing_is_named(root, place):
    (root / place).symlink_to(root / "nothing")
    with pytest.raises(ValueError, match=f"{place} is a link to nothing"):
        load_source("imagefolder", root)


HIDDEN = [
    "train/a/.ipynb_checkpoints/0-checkpoint.png",
    "train/b/._0.png",
    "train/.trash/0.png",
    "train/a/__MACOSX/0.png",
]


@pytest.mark.parametrize("place", HIDDEN)
def test_hidden_files_are_no_data(root, place):
    (root / place).parent.mkdir(exist_ok=True)
    (root / place).write_bytes(b"not a picture")
    assert counts(root) == [4, 3]


def test_pictures_of_a_kind_that_is_not_read_are_said(root):
    (root / "train" / "a" / "photo.heic").write_bytes(b"")
    (root / "train" / "a" / "notes.txt").write_text("no picture")
    (note,) = load_source("imagefolder", root).notes
    assert note.startswith("1 pictures in train are left out") and "a/photo.heic" in note


def test_endings_are_told_in_any_case(root):
    picture("a").save(root / "train" / "a" / "X.JPEG")
    picture("a").save(root / "train" / "a" / "y.jfif", "JPEG")
    assert counts(root) == [6, 3]


def test_a_name_that_is_not_utf8_is_kept_readable(root, tmp_path):
    odd = os.fsdecode(os.fsencode(root / "train" / "a") + b"/caf\xe9.png")
    picture("a").save(tmp_path / "x.png")
    os.rename(tmp_path / "x.png", odd)
    snapshot = Snapshot.create(tmp_path / "snapshot", name="imagefolder", root=root, imb_factor=-1)
    paths = [row["image"]["path"] for row in _undecoded(snapshot)]
    assert snapshot.class_counts == [5, 3] and r"caf\xe9.png" in paths
    Path(odd).write_bytes(b"not a picture")
    with pytest.raises(ValueError, match=r"caf\\xe9.png: cannot identify") as error:
        Snapshot.create(tmp_path / "other", name="imagefolder", root=root, imb_factor=-1)
    str(error.value).encode()


def _undecoded(snapshot: Snapshot):
    from datasets import Image

    return snapshot.dataset("train").cast_column("image", Image(decode=False))


def test_the_order_is_that_of_the_names(root):
    files = load_source("imagefolder", root).images
    assert files == sorted(files) == [*pictures_below(root / "train" / "a"), *pictures_below(root / "train" / "b")]


def test_a_capital_letter_in_a_split_is_pointed_at(root):
    (root / "test").rename(root / "Test")
    with pytest.raises(DatasetMissing, match="rename Test to lower case"):
        load_source("imagefolder", root, "test")
