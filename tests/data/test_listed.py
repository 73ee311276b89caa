"""Pictures that a list assigns to classes: found below the root, or the list's line or the missing file is named."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from ncflow.data.images import DatasetMissing
from ncflow.data.snapshot import Snapshot
from ncflow.data.sources import load_source

CLASSES = ["n01440764", "n01443537", "n01484850"]


def write_picture(path: Path, gray: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), (gray, gray, gray)).save(path)


@pytest.fixture
def imagenet(tmp_path) -> Path:
    """ImageNet's folders with 4 training and 2 test pictures of each class; the lists take 4, 2, 1 of the former."""
    lists: dict[str, list[str]] = {"train": [], "test": []}
    for k, name in enumerate(CLASSES):
        for i in range(4):
            write_picture(tmp_path / "train" / name / f"{name}_{i}.JPEG", 10 * k + i)
        lists["train"] += [f"train/{name}/{name}_{i}.JPEG {k}" for i in range([4, 2, 1][k])]
        for i in (2 * k, 2 * k + 1):
            write_picture(tmp_path / "val" / name / f"ILSVRC2012_val_{i:08}.JPEG", 100 + i)
            lists["test"].append(f"val/{name}/ILSVRC2012_val_{i:08}.JPEG {k}")
    for split, lines in lists.items():
        (tmp_path / f"ImageNet_LT_{split}.txt").write_text("\n".join([*reversed(lines), ""]))
    return tmp_path


def test_imagenet_lt_is_what_its_lists_say_in_their_order(imagenet):
    train, test = (load_source("imagenet_lt", imagenet, split) for split in ("train", "test"))
    assert train.class_names == test.class_names == CLASSES
    assert train.targets.tolist() == [2, 1, 1, 0, 0, 0, 0]
    assert test.targets.tolist() == [2, 2, 1, 1, 0, 0]
    assert [path.parent.name for path in train.images] == [CLASSES[k] for k in train.targets]
    assert train.encoded(0) == (imagenet / "train" / CLASSES[2] / f"{CLASSES[2]}_0.JPEG").read_bytes()


def test_a_snapshot_keeps_the_native_imbalance_of_the_lists(imagenet, tmp_path, datasets_cache):
    snapshot = Snapshot.create(tmp_path / "snapshot", name="imagenet_lt", root=imagenet, imb_factor=-1)
    assert snapshot.class_counts == [4, 2, 1] and snapshot.manifest["test_class_counts"] == [2, 2, 2]
    assert snapshot.class_names == CLASSES


def test_without_the_lists_imagenet_lt_is_its_folders(imagenet):
    (imagenet / "ImageNet_LT_train.txt").unlink()
    assert load_source("imagenet_lt", imagenet).targets.tolist() == [0] * 4 + [1] * 4 + [2] * 4


def test_a_listed_picture_that_is_missing_is_named(imagenet):
    (gone := imagenet / "train" / CLASSES[1] / f"{CLASSES[1]}_1.JPEG").unlink()
    with pytest.raises(DatasetMissing, match="1 of 7 listed pictures are missing, the first is") as error:
        load_source("imagenet_lt", imagenet)
    assert str(gone) in str(error.value)


def test_a_missing_list_is_named(imagenet):
    (imagenet / "ImageNet_LT_test.txt").unlink()
    with pytest.raises(DatasetMissing, match=r"no list .*ImageNet_LT_test.txt"):
        load_source("imagenet_lt", imagenet, "test")


@pytest.mark.parametrize("line", ["train/picture.JPEG", "train/picture.JPEG cat"])
def test_a_line_that_is_no_entry_is_named_with_its_number(imagenet, line):
    with (imagenet / "ImageNet_LT_train.txt").open("a") as file:
        file.write(f"\n{line}\n")
    with pytest.raises(ValueError, match=f"line 9: expected a picture and its class, got '{line}'"):
        load_source("imagenet_lt", imagenet)


def test_a_class_that_the_list_leaves_out_is_named(imagenet):
    lines = (imagenet / "ImageNet_LT_train.txt").read_text().splitlines()
    (imagenet / "ImageNet_LT_train.txt").write_text("\n".join(line for line in lines if not line.endswith(" 1")))
    with pytest.raises(ValueError, match="no picture of class 1"):
        load_source("imagenet_lt", imagenet)


@pytest.fixture
def tiny_imagenet(tmp_path) -> Path:
    root = tmp_path / "tiny-imagenet-200"
    annotations = []
    for k, name in enumerate(CLASSES):
        for i in range(3):
            write_picture(root / "train" / name / "images" / f"{name}_{i}.JPEG", 10 * k + i)
        (root / "train" / name / f"{name}_boxes.txt").write_text("boxes")
        write_picture(root / "val" / "images" / f"val_{k}.JPEG", 100 + k)
        annotations.append(f"val_{k}.JPEG\t{name}\t0\t32\t44\t62\n")
    (root / "val" / "val_annotations.txt").write_text("".join(reversed(annotations)))
    return root


def test_tiny_imagenet_is_read_as_it_is_unpacked(tiny_imagenet, monkeypatch):
    monkeypatch.setenv("NCFLOW_DATA_ROOT", str(tiny_imagenet.parent))
    train, test = (load_source("tiny_imagenet", split=split) for split in ("train", "test"))
    assert train.class_names == test.class_names == CLASSES
    assert train.targets.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert test.targets.tolist() == [2, 1, 0]
    assert [path.name for path in test.images] == ["val_2.JPEG", "val_1.JPEG", "val_0.JPEG"]


def test_tiny_imagenet_says_what_is_wrong_with_it(tiny_imagenet, tmp_path):
    with pytest.raises(DatasetMissing, match="expected .*train/<class>/images/<picture>"):
        load_source("tiny_imagenet", tmp_path / "elsewhere")
    with (tiny_imagenet / "val" / "val_annotations.txt").open("a") as file:
        file.write("val_0.JPEG\tn0\n")
    with pytest.raises(ValueError, match="does not have: n0"):
        load_source("tiny_imagenet", tiny_imagenet, "test")
