"""Pictures that a list assigns to classes: found below the root, or the list's line or the missing file is named."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from PIL import Image

from ncflow.data.images import DatasetMissing
from ncflow.data.snapshot import Snapshot
from ncflow.data.sources import load_source
from ncflow.data.splits import load_splits

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
    with pytest.raises(DatasetMissing, match="1 of 7 listed pictures are missing, such as") as error:
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


@pytest.fixture
def places(tmp_path) -> Path:
    """Lists over folders that classes share, of paths with blanks, as people write them."""
    root = tmp_path / "places"
    for k in range(3):
        for i in range(4):
            write_picture(root / "a b" / f"{k} {i}.png", 10 * k + i)
    lines = [f"a b/{k} {i}.png {k}" for k in range(3) for i in range(3)]
    (root / "train.txt").write_text("# path class\n\n" + "\n".join(lines) + "\n")
    (root / "test.txt").write_bytes(b"a b/1 3.png\t1\r\na b/2 3.png 2\r\n")
    return root


def test_lists_may_share_folders_lack_a_class_and_have_blanks(places):
    train, test = (load_source("listed", places, split) for split in ("train", "test"))
    assert train.class_names == test.class_names == ["0", "1", "2"]
    assert train.targets.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2] and test.targets.tolist() == [1, 2]
    assert str(test.images[0]).endswith("a b/1 3.png")


def test_the_lists_can_be_named(places, tmp_path, datasets_cache):
    (places / "test.txt").rename(places / "held out.txt")
    lists = {"test": "held out.txt"}
    snapshot = Snapshot.create(tmp_path / "s", name="listed", root=places, lists=lists, imb_factor=-1)
    assert snapshot.manifest["lists"] == lists and snapshot.manifest["test_class_counts"] == [0, 1, 1]
    with pytest.raises(ValueError, match="expected the splits train, val, test, got exam"):
        load_source("listed", places, lists={"exam": "x.txt"})


def test_a_validation_list_beside_a_test_list_is_the_validation_split(places):
    (places / "val.txt").write_text("a b/0 3.png 0\n")
    assert load_source("listed", places, "val").targets.tolist() == [0]
    (places / "test.txt").unlink()
    assert load_source("listed", places, "test").targets.tolist() == [0]
    with pytest.raises(DatasetMissing, match="val is not another split"):
        load_source("listed", places, "val")


@pytest.mark.parametrize(("labels", "names"), [(("3", "5", "70"), ["3", "5", "70"]), (("owl", "cat", "dog"), None)])
def test_numbers_with_gaps_and_text_are_classes(places, labels, names):
    for file in (places / "train.txt", places / "test.txt"):
        lines = [
            line.rpartition(" ")
            for line in file.read_text().replace("\t", " ").split("\n")
            if line.endswith(tuple("012"))
        ]
        file.write_text("\n".join(f"{path} {labels[int(k)]}" for path, _, k in lines))
    train = load_source("listed", places)
    assert train.class_names == (names or sorted(labels))
    assert [train.class_names[k] for k in train.targets[::3]] == list(labels)
    assert bool(train.notes) == bool(names)


def test_classes_with_a_folder_each_are_called_like_it(imagenet):
    lists = {"train": "ImageNet_LT_train.txt", "test": "ImageNet_LT_test.txt"}
    assert load_source("listed", imagenet, lists=lists).class_names == CLASSES


@pytest.mark.parametrize("name", ["imagenet_lt", "listed"])
def test_lists_that_number_classes_differently_are_refused(imagenet, name):
    file = imagenet / "ImageNet_LT_test.txt"
    file.write_text(
        file.read_text().replace(
            f"{CLASSES[1]}/ILSVRC2012_val_00000002.JPEG 1", f"{CLASSES[1]}/ILSVRC2012_val_00000002.JPEG 2"
        )
    )
    options = {"lists": {"train": "ImageNet_LT_train.txt", "test": file.name}} if name == "listed" else {}
    with pytest.raises(
        ValueError, match=f"{file.name}, line 4: folder {CLASSES[1]} is of class 1 in the training list, and of class 2"
    ):
        load_source(name, imagenet, "test", **options)


def test_a_picture_in_two_classes_is_refused_and_duplicates_are_reported(places):
    with (places / "train.txt").open("a") as file:
        file.write("a b/0 0.png 0\n")
    assert "lists 1 pictures again" in load_source("listed", places).notes[0]
    with (places / "train.txt").open("a") as file:
        file.write("a b/0 0.png 2\n")
    with pytest.raises(ValueError, match="line 13: class 2, and class 0 in line 3"):
        load_source("listed", places)


@pytest.mark.parametrize("content", ["", "# nothing\n", "cat\n"])
def test_a_list_without_entries_is_named(places, content):
    (places / "train.txt").write_text(content)
    with pytest.raises(
        ValueError, match="train.txt lists no picture|train.txt, line 1: expected a picture and its class"
    ):
        load_source("listed", places)


def test_a_class_that_training_does_not_list_is_refused(places):
    with (places / "test.txt").open("a") as file:
        file.write("a b/0 3.png 9\n")
    with pytest.raises(ValueError, match="test.txt, line 3: labels 9 are none of the training classes, 0, 1, 2"):
        load_source("listed", places, "test")


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_a_list_that_the_user_names_must_exist(places, split):
    (places / "val.txt").write_text("a b/0 3.png 0\n")
    with pytest.raises(DatasetMissing, match=f"names .*/typo.txt for the {split} split, and there is no such file"):
        load_splits("listed", places, lists={split: "typo.txt"})


def test_blanks_in_a_class_work_after_a_tab(places):
    names = {"0": "polar bear", "1": "cat", "2": "red fox"}
    for file in (places / "train.txt", places / "test.txt"):
        rows = [line.replace("\t", " ").rpartition(" ") for line in file.read_text().splitlines() if ".png" in line]
        file.write_text("".join(f"{path}\t{names[label]}\n" for path, _, label in rows))
    splits = load_splits("listed", places)
    assert splits["train"].class_names == ["cat", "polar bear", "red fox"]
    assert splits["train"].targets[::3].tolist() == [1, 0, 2] and splits["test"].targets.tolist() == [0, 2]


def test_a_number_that_is_written_in_two_ways_is_refused(places):
    with (places / "train.txt").open("a") as file:
        file.write("a b/0 3.png 01\n")
    with pytest.raises(ValueError, match="labels 01 and 1 are one number"):
        load_source("listed", places)


def test_a_class_in_another_folder_than_in_training_is_refused(imagenet):
    write_picture(imagenet / "val" / "n99" / "new.JPEG", 200)
    (imagenet / "ImageNet_LT_test.txt").write_text(
        f"val/{CLASSES[0]}/ILSVRC2012_val_00000000.JPEG 0\nval/n99/new.JPEG 1"
    )
    both = f"test.txt, line 2: class 1 is in folder {CLASSES[1]} in the training list, and in folder n99 here"
    with pytest.raises(ValueError, match=f"{both}.*train.txt, line"):
        load_source("imagenet_lt", imagenet, "test")


def test_a_test_list_over_a_single_folder_agrees_with_any_numbers(imagenet):
    for k in range(3):
        write_picture(imagenet / "val_256" / f"{k}.png", 200 + k)
    (imagenet / "ImageNet_LT_test.txt").write_text("".join(f"val_256/{k}.png {k}\n" for k in range(3)))
    assert load_source("imagenet_lt", imagenet, "test").targets.tolist() == [0, 1, 2]


def test_where_a_class_has_several_folders_another_class_in_one_is_said(imagenet):
    write_picture(imagenet / "train" / "more" / "0.png", 200)
    with (imagenet / "ImageNet_LT_train.txt").open("a") as file:
        file.write("train/more/0.png 2\n")
    test = imagenet / "ImageNet_LT_test.txt"
    assert load_source("imagenet_lt", imagenet, "test").notes == ()
    test.write_text(test.read_text().replace("00000002.JPEG 1", "00000002.JPEG 0"))
    assert load_source("imagenet_lt", imagenet, "test").notes[0].startswith("1 lines of ImageNet_LT_test.txt give")


@pytest.mark.parametrize("spelling", ["./a b/0 0.png", "a b/../a b/0 0.png", "a b//0 0.png"])
def test_a_picture_is_known_by_any_spelling_of_its_path(places, spelling):
    with (places / "train.txt").open("a") as file:
        file.write(f"{spelling} 2\n")
    with pytest.raises(ValueError, match="line 12: class 2, and class 0 in line 3"):
        load_source("listed", places)


def test_paths_may_be_absolute_or_lead_out_of_the_root(places, tmp_path):
    write_picture(tmp_path / "elsewhere" / "x.png", 90)
    write_picture(tmp_path / "elsewhere" / "y.png", 91)
    (places / "test.txt").write_text(f"{tmp_path}/elsewhere/x.png 0\n../elsewhere/y.png 1\n")
    source = load_source("listed", places, "test")
    assert [source.encoded(i) for i in (0, 1)] == [(tmp_path / "elsewhere" / f"{n}.png").read_bytes() for n in "xy"]


def test_backslashes_in_paths_are_pointed_at(places):
    (places / "test.txt").write_text("a b\\0 3.png 0\n")
    with pytest.raises(DatasetMissing, match="write paths with / instead of"):
        load_source("listed", places, "test")


def test_several_missing_pictures_are_counted_and_the_first_named(places):
    for i in range(3):
        (places / "a b" / f"1 {i}.png").unlink()
    with pytest.raises(DatasetMissing, match="3 of 9 listed pictures are missing, such as .*1 0.png, .*1 1.png, .*1 2"):
        load_source("listed", places)


@pytest.mark.parametrize("content", ["a b/1 3.png 1\n".encode("utf-16"), b"\0\1\2"])
def test_a_list_in_another_encoding_is_named(places, content):
    (places / "test.txt").write_bytes(content)
    with pytest.raises(ValueError, match="test.txt is no list in UTF-8"):
        load_source("listed", places, "test")


def test_names_that_are_not_utf8_and_odd_line_separators_are_kept(places):
    write_picture(places / "x.png", 77)
    (places / "x.png").rename(places / os.fsdecode(b"caf\xe9\xe2\x80\xa8.png"))
    (places / "test.txt").write_bytes(b"\xef\xbb\xbfcaf\xe9\xe2\x80\xa8.png 1\ra b/2 3.png 2\r\n")
    source = load_source("listed", places, "test")
    assert source.targets.tolist() == [1, 2] and Image.open(source.images[0]).getpixel((0, 0)) == (77, 77, 77)


def test_what_is_said_of_a_list_holds_no_machine_path(places, tmp_path):
    with (places / "train.txt").open("a") as file:
        file.write("a b/0 0.png 0\n")
    assert str(tmp_path) not in " ".join(load_source("listed", places).notes)


@pytest.mark.parametrize("shards", [False, True])
def test_the_validation_list_of_imagenet_lt_is_its_validation_split(imagenet, shards, datasets_cache):
    held = [f"train/{CLASSES[1]}/{CLASSES[1]}_3.JPEG 1", f"train/{CLASSES[2]}/{CLASSES[2]}_3.JPEG 2"]
    (imagenet / "ImageNet_LT_val.txt").write_text("\n".join(held))
    if shards:
        for split, folder in (("train", "train"), ("validation", "val")):
            write_shard(imagenet / f"{split}.parquet", sorted((imagenet / folder).rglob("*.JPEG")))
    splits = load_splits("imagenet_lt", imagenet)
    assert {split: sorted(source.targets.tolist()) for split, source in splits.items()} == {
        "train": [0, 0, 0, 0, 1, 1, 2],
        "val": [1, 2],
        "test": [0, 0, 1, 1, 2, 2],
    }
    stored = {splits["val"].encoded(i) for i in range(2)}
    assert stored == {(imagenet / line.rpartition(" ")[0]).read_bytes() for line in held}
    (imagenet / "ImageNet_LT_test.txt").rename(imagenet / "ImageNet_LT_val.txt")
    assert load_splits("imagenet_lt", imagenet).keys() == {"train", "test"}
    with pytest.raises(ValueError, match="has a test split of 6 pictures, so dataset.test_fraction"):
        load_splits("imagenet_lt", imagenet, test_fraction=0.5)


def write_shard(file: Path, pictures: list[Path]) -> None:
    """ImageNet's pictures as `datasets` stores them, with their names."""
    from datasets import ClassLabel, Dataset, Features
    from datasets import Image as Picture

    columns = {
        "image": [{"bytes": picture.read_bytes(), "path": picture.name} for picture in pictures],
        "label": [CLASSES.index(picture.parent.name) for picture in pictures],
    }
    features = Features(image=Picture(), label=ClassLabel(names=CLASSES))
    Dataset.from_dict(columns, features=features).to_parquet(str(file))
