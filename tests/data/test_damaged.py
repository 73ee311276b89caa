"""Damaged pictures: all named in one run, or left out before the tail is cut, counted and listed."""

from __future__ import annotations

import zlib
from pathlib import Path

import pytest
from PIL import Image
from users import png, write_folders, write_plain

from ncflow.data.snapshot import Snapshot

pytestmark = pytest.mark.usefixtures("datasets_cache")
CHOICES = {"name": "imagefolder", "imb_factor": -1}


def chunk(content: bytes) -> bytes:
    """A PNG whose header promises what is not there."""
    return content[:33] + b"\0\0\0\4IDAT" + b"abcd" + zlib.crc32(b"IDATabcd").to_bytes(4, "big")


DAMAGE = {
    "empty": lambda content: b"",
    "text": lambda content: b"not a picture",
    "truncated": lambda content: content[: len(content) // 2],
    "a damaged chunk": chunk,
}


@pytest.fixture
def root(tmp_path) -> Path:
    root = write_folders(tmp_path / "pics", {"a": 6, "b": 6})
    places = [("train", "a", 1), ("train", "b", 2), ("test", "a", 0), ("train", "a", 4)]
    for (split, name, i), damage in zip(places, DAMAGE.values(), strict=True):
        file = root / split / name / f"{i}.png"
        file.write_bytes(damage(file.read_bytes()))
    return root


def test_all_damaged_pictures_are_named_in_one_run(root, tmp_path):
    with pytest.raises(ValueError, match="cannot read 4 pictures; .*dataset.on_damaged=skip") as error:
        Snapshot.create(tmp_path / "snapshot", root=root, **CHOICES)
    for place in ("train/a/1.png", "train/b/2.png", "test/a/0.png", "train/a/4.png"):
        assert str(root / place) in str(error.value)
    assert not (tmp_path / "snapshot").exists()


def test_damaged_pictures_can_be_left_out_and_are_listed(root, tmp_path, caplog):
    snapshot = Snapshot.create(tmp_path / "snapshot", root=root, on_damaged="skip", **CHOICES)
    assert snapshot.class_counts == [4, 5] and snapshot.manifest["test_class_counts"] == [2, 3]
    assert snapshot.manifest["damaged"] == {
        "train": {"count": 3, "first": ["train/a/1.png", "train/a/4.png", "train/b/2.png"]},
        "test": {"count": 1, "first": ["test/a/0.png"]},
    }
    assert "3 damaged pictures of the train split are left out" in caplog.text
    assert len(list(snapshot.encoded_images("train"))) == 9


def test_the_tail_is_cut_from_what_is_left(root, tmp_path):
    choices = CHOICES | {"imb_factor": 0.5, "samples_per_class": 4}
    snapshot = Snapshot.create(tmp_path / "snapshot", root=root, on_damaged="skip", **choices)
    assert snapshot.class_counts == [4, 2]


def test_nothing_is_listed_where_nothing_is_damaged(tmp_path):
    root = write_folders(tmp_path / "pics", {"a": 6, "b": 6})
    snapshot = Snapshot.create(tmp_path / "snapshot", root=root, on_damaged="skip", **CHOICES)
    assert snapshot.class_counts == [6, 6] and "damaged" not in snapshot.manifest


def test_a_class_that_is_lost_is_named(root, tmp_path):
    for file in (root / "train" / "b").iterdir():
        file.write_bytes(b"")
    with pytest.raises(ValueError, match="all training pictures of class b are damaged"):
        Snapshot.create(tmp_path / "snapshot", root=root, on_damaged="skip", **CHOICES)


def test_damaged_rows_are_named_by_file_and_row(tmp_path):
    import pyarrow as pa

    for split in ("train", "test"):
        write_plain(tmp_path / "rows" / f"{split}.parquet", ["cat", "dog", "owl"], ["cat", "dog", "owl"])
    file = tmp_path / "rows" / "train.parquet"
    rows = [{"bytes": content, "path": None} for content in (png("cat"), b"no picture", png("owl"))]
    pa.parquet.write_table(pa.table({"image": [*rows, None], "label": ["cat", "dog", "owl", "owl"]}), file)
    choices = CHOICES | {"name": "parquet", "root": tmp_path / "rows"}
    with pytest.raises(ValueError, match=r"(?s)cannot read 2 pictures.*train.parquet, row 1.*row 3 has no picture"):
        Snapshot.create(tmp_path / "snapshot", **choices)


def test_a_bomb_is_refused_with_its_size(tmp_path):
    root = write_folders(tmp_path / "pics", {"a": 6, "b": 6})
    Image.new("1", (10_000, 9_000)).save(root / "train" / "a" / "huge.png")
    with pytest.raises(ValueError, match=r"huge.png: 10000x9000 pixels are more than"):
        Snapshot.create(tmp_path / "snapshot", root=root, **CHOICES)
