"""A snapshot is what it says: other data, more data and changed data are told from the data it was made of."""

from __future__ import annotations

import os
import shutil
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
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


def bitmaps(root: Path, first: int) -> Path:
    """Pictures of one size and one time, as archives leave them: only their content can tell two folders apart."""
    for place in ("train/cat", "train/dog", "test/cat", "test/dog"):
        (root / place).mkdir(parents=True)
        for i in range(3):
            first += 1
            Image.new("L", (8, 8), first).save(root / place / f"{i}.bmp")
            os.utime(root / place / f"{i}.bmp", ns=(1, 1))
    return root


def test_another_folder_of_equal_sizes_and_times_is_other_data(tmp_path):
    roots = [bitmaps(tmp_path / name / "pics", first) for name, first in (("one", 0), ("two", 100))]
    snapshot = Snapshot.obtain(tmp_path / "snapshot", root=roots[0], **CHOICES)
    with pytest.raises(ValueError, match=r"the pictures or classes of train and test are others; .* another folder"):
        Snapshot.obtain(snapshot.path, root=roots[1], **CHOICES)


def test_a_name_that_two_folders_share_is_not_advised(tmp_path):
    roots = [bitmaps(tmp_path / name / "pics", first) for name, first in (("one", 0), ("two", 100))]
    paths = {tmp_path / name_of(root) for root in roots}
    assert len(paths) == 1
    Snapshot.obtain(*paths, root=roots[0], **CHOICES)
    with pytest.raises(ValueError, match=r"with --out or --snapshot$"):
        Snapshot.obtain(*paths, root=roots[1], **CHOICES)


def test_a_picture_that_is_replaced_with_its_old_time_is_noticed(tmp_path):
    root = bitmaps(tmp_path / "pics", 0)
    snapshot = Snapshot.obtain(tmp_path / "snapshot", root=root, **CHOICES)
    Image.new("L", (8, 8), 200).save(root / "train/cat/0.bmp")
    os.utime(root / "train/cat/0.bmp", ns=(1, 1))
    with pytest.raises(ValueError, match=r"1 files changed \(train/cat/0.bmp\)"):
        Snapshot.obtain(snapshot.path, root=root, **CHOICES)


def test_the_name_of_the_folder_is_no_content(root, tmp_path):
    snapshot = Snapshot.obtain(tmp_path / "snapshot", root=root, **CHOICES)
    renamed = Path(shutil.copytree(root, tmp_path / "photos"))
    assert Snapshot.obtain(snapshot.path, root=renamed, **CHOICES) == snapshot
    with pytest.raises(ValueError, match="folder is 'pics', asked for 'birds'"):
        Snapshot.obtain(snapshot.path, root=tmp_path / "birds", **CHOICES)  # not here: nothing else can tell


def test_a_link_is_called_by_its_own_name(root, tmp_path):
    link = tmp_path / "link"
    link.symlink_to(root)
    snapshot = Snapshot.obtain(tmp_path / "snapshot", root=link, **CHOICES)
    link.unlink()
    assert Snapshot.obtain(snapshot.path, root=link, **CHOICES) == snapshot
    link.mkdir()  # as a mount that is not there leaves it
    assert Snapshot.obtain(snapshot.path, root=link, **CHOICES) == snapshot


def published(root: Path, seed: int) -> Path:
    """Files in MNIST's layout, which torchvision reads without a look at their content."""
    random, raw = np.random.RandomState(seed), root / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for split, count in (("train", 60), ("t10k", 20)):
        pixels = random.randint(0, 256, count * 28 * 28).astype(np.uint8)
        (raw / f"{split}-images-idx3-ubyte").write_bytes(struct.pack(">4I", 2051, count, 28, 28) + pixels.tobytes())
        labels = bytes(i % 10 for i in range(count))
        (raw / f"{split}-labels-idx1-ubyte").write_bytes(struct.pack(">2I", 2049, count) + labels)
    return root


@pytest.mark.parametrize("by_default", [False, True])
def test_published_data_is_told_by_its_content_too(tmp_path, monkeypatch, by_default):
    def obtain(root: Path) -> Snapshot:
        monkeypatch.setenv("NCFLOW_DATA_ROOT", str(root))
        return Snapshot.obtain(tmp_path / "snapshot", name="mnist", imb_factor=0.5, root=None if by_default else root)

    one, other = published(tmp_path / "one", 1), published(tmp_path / "other", 2)
    snapshot = obtain(one)
    assert snapshot.manifest["folder"] is None and "source_listing" not in snapshot.manifest
    assert obtain(Path(shutil.copytree(one, tmp_path / "copy"))) == snapshot
    with pytest.raises(ValueError, match="was made of other data"):
        obtain(other)
    assert obtain(tmp_path / "nothing") == snapshot  # and nothing is downloaded
    assert not (tmp_path / "nothing").exists()


def test_lists_belong_to_the_files(tmp_path):
    root = tmp_path / "tiny"
    for name in ("a", "b"):
        (root / "train" / name / "images").mkdir(parents=True)
        for i in range(3):
            picture("cat").save(root / "train" / name / "images" / f"{i}.JPEG")
    (root / "val" / "images").mkdir(parents=True)
    for i in range(4):
        picture("dog").save(root / "val" / "images" / f"{i}.JPEG")
    lines = [f"{i}.JPEG\t{'ab'[i % 2]}" for i in range(4)]
    (root / "val" / "val_annotations.txt").write_text("\n".join(lines))
    choices = {"name": "tiny_imagenet", "root": root, "imb_factor": -1}
    snapshot = Snapshot.obtain(tmp_path / "snapshot", **choices)
    (root / "val" / "val_annotations.txt").write_text("\n".join(["0.JPEG\tb", *lines[1:]]))
    with pytest.raises(ValueError, match=r"1 files changed \(val/val_annotations.txt\)"):
        Snapshot.obtain(snapshot.path, **choices)


def test_files_that_are_touched_are_read_once_again(root, tmp_path, monkeypatch):
    snapshot = Snapshot.obtain(tmp_path / "snapshot", root=root, **CHOICES)
    touch(root / "train/cat/0.png")
    assert Snapshot.obtain(snapshot.path, root=root, **CHOICES) == snapshot
    monkeypatch.setattr(images.ImageSource, "hashes", property(lambda self: pytest.fail("read again")))
    assert Snapshot.obtain(snapshot.path, root=root, **CHOICES) == snapshot


def test_without_a_listing_of_this_machine_the_content_decides(root, tmp_path):
    snapshot = Snapshot.obtain(tmp_path / "snapshot", root=root, **CHOICES)
    record = tmp_path / ".snapshot.source.json"
    for content in ("", "[]", '{"a": 1}', "[" * 100_000, '{"root": "", "files": {"a": [1, 2]}}', '{"files": {}}'):
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
