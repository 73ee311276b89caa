"""Labels are joined by name: whatever order, subset or kind of label a file has, a picture keeps its class."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import users
from users import NAMES, write_labelled, write_plain

from ncflow.data.images import DatasetMissing
from ncflow.data.labels import as_labels, class_names, join
from ncflow.data.snapshot import Snapshot
from ncflow.data.sources import load_source

pytestmark = pytest.mark.usefixtures("datasets_cache")


def shown(root: Path, split: str, **options: str) -> list[tuple[str, str]]:
    """Of each picture the class that it shows, and the one that it has."""
    source = load_source("parquet", root, split, **options)
    pairs = zip(range(len(source)), source.targets, strict=True)
    return [(users.color(source.encoded(i)), source.class_names[k]) for i, k in pairs]


def assert_right(root: Path, **options: str) -> None:
    for split in ("train", "test"):
        assert all(color == name for color, name in shown(root, split, **options)), split


@pytest.mark.parametrize(
    ("rows", "names"), [(NAMES * 2, ["dog", "owl", "cat"]), (["dog", "owl"], ["dog", "owl"]), (["owl"], ["owl", "elk"])]
)
def test_test_files_may_order_or_lack_class_names(tmp_path, rows, names):
    write_labelled(tmp_path / "train.parquet", NAMES * 3, NAMES)
    write_labelled(tmp_path / "test.parquet", rows, names)
    assert_right(tmp_path)
    assert load_source("parquet", tmp_path, "test").class_names == NAMES


def test_shards_of_one_split_may_order_class_names(tmp_path):
    write_labelled(tmp_path / "train-00000-of-00002.parquet", NAMES * 2, NAMES)
    write_labelled(tmp_path / "train-00001-of-00002.parquet", ["owl", "cat"], ["owl", "cat"])
    write_labelled(tmp_path / "test.parquet", NAMES, NAMES[::-1])
    assert_right(tmp_path)


def test_a_class_that_training_lacks_is_refused_with_both_lists(tmp_path):
    write_labelled(tmp_path / "train.parquet", NAMES, NAMES)
    write_labelled(tmp_path / "test.parquet", ["elk"], ["elk"])
    with pytest.raises(ValueError, match="test.parquet: labels elk are none of the training classes, cat, dog, owl"):
        load_source("parquet", tmp_path, "test")


def test_numbers_beside_names_are_refused(tmp_path):
    write_labelled(tmp_path / "train.parquet", NAMES, NAMES)
    write_plain(tmp_path / "test.parquet", NAMES, [0, 1, 2])
    with pytest.raises(ValueError, match=r"labels 0, 1, 2 are none of .* cat, dog, owl; store names"):
        load_source("parquet", tmp_path, "test")


TEXT = {
    "text": pa.array,
    "large text": lambda rows: pa.array(rows, pa.large_string()),
    "dictionary": lambda rows: pa.array(rows).dictionary_encode(),
}


@pytest.mark.parametrize("kind", TEXT)
def test_text_labels_are_sorted_training_names(tmp_path, kind):
    write_plain(tmp_path / "train.parquet", ["owl", "cat", "dog"], TEXT[kind](["owl", "cat", "dog"]))
    write_plain(tmp_path / "test.parquet", ["dog"], TEXT[kind](["dog"]))
    assert_right(tmp_path)
    assert load_source("parquet", tmp_path).class_names == NAMES


NUMBERS = {
    "from one": ([1, 2, 3, 3], ["1", "2", "3"]),
    "gaps": ([0, 5, 70, 5], ["0", "5", "70"]),
    "negative": ([-2, 0, 4, 4], ["-2", "0", "4"]),
    "text": (["1", "10", "2", "2"], ["1", "2", "10"]),
    "dictionary": (pa.array([7, 9, 8, 8]).dictionary_encode(), ["7", "8", "9"]),
    "unsigned": (pa.array([3, 1, 2, 2], pa.uint8()), ["1", "2", "3"]),
}


@pytest.mark.parametrize("case", NUMBERS)
def test_numbers_with_gaps_invent_no_class(tmp_path, case):
    labels, names = NUMBERS[case]
    write_plain(tmp_path / "train.parquet", ["cat"] * 4, labels)
    write_plain(tmp_path / "test.parquet", ["dog"], labels[1:2])
    train, test = (load_source("parquet", tmp_path, split) for split in ("train", "test"))
    assert train.class_names == test.class_names == names
    assert sorted(set(train.targets.tolist())) == [0, 1, 2]
    assert test.targets.tolist() == [names.index(str(labels[1]))]
    assert "are numbered 0 to 2" in train.notes[0]


def test_complete_numbers_stay_as_they_are(tmp_path):
    write_plain(tmp_path / "train.parquet", ["cat"] * 4, [2, 0, 1, 1])
    source = load_source("parquet", tmp_path)
    assert (source.class_names, source.targets.tolist(), source.notes) == (["0", "1", "2"], [2, 0, 1, 1], ())


REFUSED = {
    "fractions": ([0.0, 1.5, 2.0], "got double"),
    "whole floats": ([0.0, 1.0, 2.0], "got double"),
    "lists": ([[0], [1], [2]], "got list"),
    "truths": ([True, False, True], "got bool"),
    "bytes": ([b"a", b"b", b"c"], "got binary"),
    "times": (pa.array([1, 2, 3], pa.timestamp("s")), "got timestamp"),
    "nothing": (pa.nulls(3), "got null"),
    "no number": ([0, None, 2], r"row 1 has no label \(1 rows"),
    "no name": (["cat", "dog", None], r"row 2 has no label"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_labels_that_are_none_name_file_and_column(tmp_path, case):
    labels, message = REFUSED[case]
    write_plain(tmp_path / "train.parquet", NAMES, labels)
    with pytest.raises(ValueError, match=rf"train.parquet, column 'label'.*{message}"):
        load_source("parquet", tmp_path)


def test_columns_can_be_chosen(tmp_path):
    for split in ("train", "test"):
        file = tmp_path / f"{split}.parquet"
        write_plain(file, NAMES, NAMES)
        table = pa.parquet.read_table(file)
        file.unlink()
        thumbnails = pa.array([{"bytes": users.png("cat"), "path": None}] * 3)
        table = table.append_column("coarse", [["pet", "pet", "bird"]]).append_column("thumbnail", thumbnails)
        pa.parquet.write_table(table.rename_columns(["image", "fine", "coarse", "thumbnail"]), file)
    with pytest.raises(ValueError, match="choose one with dataset.image_column|choose one with dataset.label_column"):
        load_source("parquet", tmp_path)
    assert_right(tmp_path, label_column="fine", image_column="image")
    coarse = load_source("parquet", tmp_path, label_column="coarse", image_column="thumbnail")
    assert coarse.class_names == ["bird", "pet"]
    with pytest.raises(ValueError, match=r"unknown column of .*train.parquet 'fin'. Did you mean 'fine'\?"):
        load_source("parquet", tmp_path, label_column="fin", image_column="image")
    with pytest.raises(ValueError, match="column 'fine' must hold pictures or their bytes, got string"):
        load_source("parquet", tmp_path, label_column="fine", image_column="fine")


def test_a_column_of_bytes_is_pictures(tmp_path):
    for split in ("train", "test"):
        table = pa.table({"picture": [users.png(name) for name in NAMES], "label": NAMES})
        pa.parquet.write_table(table, tmp_path / f"{split}.parquet")
    assert_right(tmp_path)


@pytest.mark.parametrize("row", [None, {"bytes": None, "path": None}, {"bytes": b"", "path": None}])
def test_a_row_without_a_picture_is_named(tmp_path, row):
    rows = [{"bytes": users.png("cat"), "path": None}, row]
    pa.parquet.write_table(pa.table({"image": rows, "label": [0, 1]}), tmp_path / "train.parquet")
    with pytest.raises(ValueError, match="train.parquet, row 1 has no picture"):
        load_source("parquet", tmp_path).encoded(1)


LAYOUTS = ["{}/0000.parquet", "data/{}-00000-of-00001.parquet", "default/{}/0000.parquet", "{}.parquet"]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_of_the_hub_are_found(tmp_path, layout):
    for split in ("train", "test"):
        write_labelled(tmp_path / layout.format(split), NAMES, NAMES if split == "train" else NAMES[::-1])
    assert_right(tmp_path)


def test_a_folder_that_datasets_saved_is_read(tmp_path):
    from datasets import Dataset, DatasetDict

    for split in ("train", "test"):
        write_labelled(tmp_path / "parquet" / f"{split}.parquet", NAMES * 2, NAMES)
    files = {split: str(tmp_path / "parquet" / f"{split}.parquet") for split in ("train", "test")}
    saved = DatasetDict({split: Dataset.from_parquet(file) for split, file in files.items()})
    saved.save_to_disk(tmp_path / "saved", num_shards={"train": 2, "test": 1})
    assert_right(tmp_path / "saved")
    snapshot = Snapshot.create(tmp_path / "snapshot", name="parquet", root=tmp_path / "saved", imb_factor=-1)
    assert snapshot.class_counts == [2, 2, 2]


def test_a_missing_shard_is_named(tmp_path):
    write_labelled(tmp_path / "train-00000-of-00002.parquet", NAMES, NAMES)
    with pytest.raises(DatasetMissing, match=r"train-00001-of-00002.parquet is missing, one of the 2 files"):
        load_source("parquet", tmp_path)


def test_shards_of_two_exports_are_refused(tmp_path):
    for name in ("train-00000-of-00001", "train-00000-of-00002", "train-00001-of-00002"):
        write_labelled(tmp_path / f"{name}.parquet", NAMES, NAMES)
    with pytest.raises(ValueError, match="files of different splits of one name"):
        load_source("parquet", tmp_path)


def test_a_file_that_is_no_parquet_is_named(tmp_path):
    write_labelled(tmp_path / "train.parquet", NAMES, NAMES)
    whole = (tmp_path / "train.parquet").read_bytes()
    for content in (b"", b"PAR1", whole[: len(whole) // 2]):
        (tmp_path / "train.parquet").write_bytes(content)
        with pytest.raises(ValueError, match="train.parquet is no Parquet file, or only a part of one"):
            load_source("parquet", tmp_path)


def test_a_split_without_rows_is_refused(tmp_path):
    write_plain(tmp_path / "train.parquet", NAMES, NAMES)
    empty = pa.parquet.read_table(tmp_path / "train.parquet").slice(0, 0)
    pa.parquet.write_table(empty, tmp_path / "test.parquet")
    with pytest.raises(ValueError, match="test.parquet holds no rows"):
        load_source("parquet", tmp_path, "test")


@pytest.mark.parametrize("seed", range(3))
def test_a_join_is_a_loop_over_samples(seed):
    random = np.random.RandomState(seed)
    training = as_labels("train", random.randint(0, 40, 300).astype(str))
    names = class_names([training])
    values = random.choice(names, 50)
    assert [names[k] for k in join(as_labels("test", values), names)] == values.tolist()
