"""Parquet files of other people: whatever `datasets` writes is read, lazily, and what is not pictures is refused."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pyarrow
import pytest
from pyarrow import parquet

from ncflow.data.images import DatasetMissing, decode_image
from ncflow.data.snapshot import Snapshot
from ncflow.data.sources import load_source

NAMES = ["cat", "dog", "cow"]
LABELS = {"train": [0] * 5 + [1] * 3 + [2] * 2, "test": [0, 1, 2]}


def gray(value: int) -> np.ndarray:
    return np.full((8, 8), value, dtype=np.uint8)


def write_shards(folder: Path, *, label: str = "label", shards: int = 1, test_name: str = "test") -> None:
    """Pictures whose gray value is their row, as a user of `datasets` would store them."""
    from datasets import ClassLabel, Dataset, Features, Image
    from PIL import Image as PIL

    folder.mkdir(parents=True, exist_ok=True)
    features = Features({"image": Image(), label: ClassLabel(names=NAMES)})
    for split, labels in LABELS.items():
        first = 100 if split == "test" else 0  # no picture is in both splits
        content = {"image": [PIL.fromarray(gray(first + row)) for row in range(len(labels))], label: labels}
        dataset = Dataset.from_dict(content, features=features)
        name = test_name if split == "test" else split
        for i in range(shards):
            file = f"{name}-{i:05}-of-{shards:05}.parquet" if shards > 1 else f"{name}.parquet"
            dataset.shard(shards, i, contiguous=True).to_parquet(str(folder / file), batch_size=2)


@pytest.mark.parametrize("layout", [{}, {"shards": 3}, {"label": "fine_label"}, {"test_name": "validation"}])
@pytest.mark.parametrize("folder", ["", "data"])
def test_what_datasets_writes_is_read_back_in_order(tmp_path, datasets_cache, folder, layout):
    write_shards(tmp_path / folder, **layout)
    for split, labels in LABELS.items():
        source = load_source("parquet", tmp_path, split)
        assert source.class_names == NAMES
        assert source.targets.tolist() == labels
        pixels = [np.array(decode_image(source.encoded(row))) for row in range(len(source))]
        first = 100 if split == "test" else 0
        assert [int(image[0, 0]) - first for image in pixels] == list(range(len(labels)))


def test_rows_are_read_in_any_order_with_one_group_in_memory(tmp_path, datasets_cache):
    write_shards(tmp_path, shards=2)
    images = load_source("parquet", tmp_path).images
    assert len(images) == 10 and len(images.groups) == 6  # 2 + 2 + 1 rows in each of two files
    forward = [image.read_bytes() for image in images]
    assert [images[row].read_bytes() for row in reversed(range(10))] == forward[::-1]
    assert images._read.cache_info().currsize == 1
    with pytest.raises(IndexError, match="picture 10 of 10"):
        images[10]


def test_imagenet_lt_may_come_as_parquet(tmp_path, datasets_cache):
    write_shards(tmp_path / "data", shards=2)
    source = load_source("imagenet_lt", tmp_path)
    assert (source.name, source.class_names, source.targets.tolist()) == ("imagenet_lt", NAMES, LABELS["train"])


@pytest.fixture
def listed(tmp_path, datasets_cache) -> Path:
    """ImageNet's files as its rows are named, and ImageNet-LT's lists of some of them, in an order of their own."""
    from datasets import ClassLabel, Dataset, Features, Image

    folders = ["n01440764", "n01443537"]
    features = Features({"image": Image(), "label": ClassLabel(names=["tench", "goldfish"])})
    for split, name in (("train", "train"), ("test", "validation")):
        pictures = [
            (k, f"{folders[k]}_{i}" if split == "train" else f"ILSVRC2012_val_{k}{i}")
            for i in (0, 1, 2)
            for k in (0, 1)
        ]
        shade = 0 if split == "train" else 5  # or test would be train
        rows = [
            picture(10 * row + shade) | {"path": f"{stem}_{folders[k]}.JPEG"} for row, (k, stem) in enumerate(pictures)
        ]
        content = {"image": rows, "label": [k for k, _ in pictures]}
        Dataset.from_dict(content, features=features).to_parquet(str(tmp_path / f"{name}-00000-of-00001.parquet"))
        lines = [f"{split}/{folders[k]}/{stem}.JPEG {k}" for k, stem in pictures if (k, stem[-1]) != (1, "1")]
        (tmp_path / f"ImageNet_LT_{split}.txt").write_text("\n".join(reversed(lines)))
    return tmp_path


def test_published_lists_choose_rows_of_parquet_files(listed, tmp_path):
    for split, shade in (("train", 0), ("test", 5)):
        source = load_source("imagenet_lt", listed, split)
        assert source.targets.tolist() == [0, 1, 0, 0, 1] and source.class_names == ["tench", "goldfish"]
        grays = [int(np.array(decode_image(source.encoded(row)))[0, 0]) for row in range(len(source))]
        assert grays == [value + shade for value in (0, 10, 20, 40, 50)]  # all rows but the fourth
    snapshot = Snapshot.create(tmp_path / "snapshot", name="imagenet_lt", root=listed, imb_factor=-1)
    assert snapshot.class_counts == [3, 2] == snapshot.manifest["test_class_counts"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("train/n01440764/n01440764_7.JPEG 0", "1 of 6 listed pictures are in no file of .*: n01440764_7"),
        ("train/n01443537/n01443537_1.JPEG 0", "1 listed pictures are of another class .*: n01443537_1"),
    ],
)
def test_a_list_that_does_not_fit_the_files_is_refused(listed, line, message):
    with (listed / "ImageNet_LT_train.txt").open("a") as file:
        file.write(f"\n{line}\n")
    with pytest.raises(ValueError, match=message):
        load_source("imagenet_lt", listed)


def test_test_files_without_labels_are_refused_with_what_to_do(listed):
    write_table(listed / "test.parquet", image=[picture(0)], label=[-1])
    with pytest.raises(ValueError, match=r"labels -1 are none of .* tench, goldfish; .* those named validation"):
        load_source("imagenet_lt", listed, "test")


def test_a_snapshot_can_be_made_of_it_and_of_another_snapshot(tmp_path, datasets_cache):
    write_shards(tmp_path / "shards")
    first = Snapshot.create(tmp_path / "first", name="parquet", root=tmp_path / "shards", imb_factor=-1)
    assert (first.class_names, first.class_counts) == (NAMES, [5, 3, 2])
    second = Snapshot.create(tmp_path / "second", name="parquet", root=tmp_path / "first", imb_factor=-1)
    assert list(second.encoded_images("train")) == list(first.encoded_images("train"))
    assert second.manifest["source_sha256"] == first.manifest["source_sha256"]


def write_table(path: Path, **columns) -> None:
    parquet.write_table(pyarrow.table(columns), path)


def picture(value: int) -> dict:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(gray(value)).save(buffer, "PNG")
    return {"bytes": buffer.getvalue(), "path": f"{value}.png"}


def test_bare_numbers_are_classes_whose_number_the_training_files_give(tmp_path):
    write_table(tmp_path / "train.parquet", image=[picture(k) for k in range(4)], label=[0, 1, 2, 1])
    write_table(tmp_path / "test.parquet", image=[picture(0)], label=[1])
    test = load_source("parquet", tmp_path, "test")
    assert (test.class_names, test.targets.tolist()) == (["0", "1", "2"], [1])
    assert test.images[0].name == "0.png"
    write_table(tmp_path / "test.parquet", image=[picture(0)], label=[3])
    with pytest.raises(ValueError, match="labels 3 are none of the training classes, 0, 1, 2"):
        load_source("parquet", tmp_path, "test")


def test_a_file_without_pictures_or_classes_says_so(tmp_path):
    write_table(tmp_path / "train.parquet", text=["a"], label=[0])
    with pytest.raises(ValueError, match="one column of pictures, a struct with their bytes; found none"):
        load_source("parquet", tmp_path)
    write_table(tmp_path / "train.parquet", image=[picture(0)], kind=[0])
    with pytest.raises(ValueError, match="needs a column label, or one with class names"):
        load_source("parquet", tmp_path)
    write_table(tmp_path / "train.parquet", image=[{"bytes": None, "path": "0.png"}], label=[0])
    with pytest.raises(ValueError, match="train.parquet, row 0 has only a path, 0.png"):
        load_source("parquet", tmp_path).encoded(0)


def test_a_missing_split_says_which_files_are_expected(tmp_path, datasets_cache):
    with pytest.raises(DatasetMissing, match=r"a train split from files train.parquet or train-\*.parquet"):
        load_source("parquet", tmp_path)
    write_shards(tmp_path)
    (tmp_path / "test.parquet").unlink()
    with pytest.raises(DatasetMissing, match=r"a test split from files test.parquet or .* or val-\*.parquet"):
        load_source("parquet", tmp_path, "test")
