"""A snapshot is what it says: other data, more data and changed data are told from the data it was made of."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from users import picture, write_folders

from ncflow.data import images
from ncflow.data.snapshot import Snapshot

pytestmark = pytest.mark.usefixtures("datasets_cache")
CHOICES = {"name": "imagefolder", "imb_factor": -1}


@pytest.fixture
def root(tmp_path) -> Path:
    return write_folders(tmp_path / "first" / "pics", {"cat": 8, "dog": 8})


def name_of(root: Path, **choices: object) -> str:
    return Snapshot.default_name(root=root, **CHOICES | choices)


def touch(file: Path) -> None:
    os.utime(file, ns=(1, 1))


def test_two_roots_of_one_folder_name_have_two_snapshots(root, tmp_path):
    other = write_folders(tmp_path / "second" / "pics", {"oak": 8, "elm": 8, "fir": 8})
    names = [name_of(root), name_of(other)]
    assert names[0] != names[1] and all(name.startswith("imagefolder-pics-") for name in names)
    made = [
        Snapshot.obtain(tmp_path / name, root=each, **CHOICES) for name, each in zip(names, (root, other), strict=True)
    ]
    assert [snapshot.class_names for snapshot in made] == [["cat", "dog"], ["elm", "fir", "oak"]]
    with pytest.raises(ValueError, match=r"was made of other data than .*files added .*; .*files removed"):
        Snapshot.obtain(made[0].path, root=other, **CHOICES)


def test_a_copy_elsewhere_is_the_same_data(root, tmp_path):
    copy = Path(shutil.copytree(root, tmp_path / "third" / "pics"))
    assert name_of(copy) == name_of(root)
    snapshot = Snapshot.obtain(tmp_path / "snapshot", root=root, **CHOICES)
    assert Snapshot.obtain(tmp_path / "snapshot", root=copy, **CHOICES) == snapshot


@pytest.mark.parametrize("place", ["train/cat/new.png", "test/dog/new.png"])
def test_an_added_picture_is_noticed(root, tmp_path, place):
    name = name_of(root)
    snapshot = Snapshot.obtain(tmp_path / "snapshot", root=root, **CHOICES)
    picture("cat").save(root / place)
    assert name_of(root) != name
    with pytest.raises(ValueError, match=rf"1 files added \({place}\); .* another folder"):
        Snapshot.obtain(snapshot.path, root=root, **CHOICES)


def test_a_picture_that_changes_without_its_size_is_noticed(root, tmp_path):
    for file in root.rglob("*.png"):  # of one size, so that only the content can tell
        file.write_bytes(file.read_bytes().ljust(1000, b"\0"))
    snapshot = Snapshot.obtain(tmp_path / "snapshot", root=root, **CHOICES)
    name, one, other = name_of(root), root / "train/cat/0.png", root / "train/dog/0.png"
    other.write_bytes(one.read_bytes())
    assert name_of(root) == name
    with pytest.raises(ValueError, match=r"1 files changed \(train/dog/0.png\)"):
        Snapshot.obtain(snapshot.path, root=root, **CHOICES)


def test_files_that_are_touched_are_read_once_again(root, tmp_path, monkeypatch):
    snapshot = Snapshot.obtain(tmp_path / "snapshot", root=root, **CHOICES)
    touch(root / "train/cat/0.png")
    assert Snapshot.obtain(snapshot.path, root=root, **CHOICES) == snapshot
    monkeypatch.setattr(images.ImageSource, "hashes", property(lambda self: pytest.fail("read again")))
    assert Snapshot.obtain(snapshot.path, root=root, **CHOICES) == snapshot


def test_without_a_listing_of_this_machine_the_content_decides(root, tmp_path):
    snapshot = Snapshot.obtain(tmp_path / "snapshot", root=root, **CHOICES)
    record = tmp_path / ".snapshot.source.json"
    for content in ("", "[]", '{"a": 1}', "[" * 100_000):
        record.write_text(content)
        assert Snapshot.obtain(snapshot.path, root=root, **CHOICES) == snapshot
    record.unlink()
    assert Snapshot.obtain(snapshot.path, root=root, **CHOICES) == snapshot
    assert record.is_file()


def test_a_snapshot_is_used_where_its_source_is_not(root, tmp_path):
    snapshot = Snapshot.obtain(tmp_path / "snapshot", root=root, **CHOICES)
    shutil.rmtree(root)
    assert Snapshot.obtain(snapshot.path, root=root, **CHOICES) == snapshot


def test_a_manifest_holds_no_path_of_the_machine(root, tmp_path):
    snapshot = Snapshot.obtain(tmp_path / "snapshot", root=root, **CHOICES)
    assert str(tmp_path) not in (snapshot.path / "manifest.json").read_text()


def test_built_in_data_needs_no_listing(tmp_path):
    snapshot = Snapshot.obtain(tmp_path / Snapshot.default_name(name="digits"), name="digits")
    assert snapshot.path.name == "digits-exp-0.01-seed0" and "source_listing" not in snapshot.manifest
