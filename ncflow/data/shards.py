"""A user's Parquet files, as Hugging Face `datasets` writes them: pictures are read one row group at a time."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from ncflow.data.images import DatasetMissing, ImageSource
from ncflow.lookup import unknown


def load_shards(
    name: str, root: Path, split: str, *, label_column: str | None = None, image_column: str | None = None
) -> ImageSource:
    """A split from the files <split>.parquet or <split>-*.parquet in `root` or `root`/data.

    One column holds pictures (a struct with their bytes), the column label, or the only one with class names, classes.
    """
    from pyarrow import parquet

    train, files = (find_shards(root, wanted) for wanted in ("train", split))
    if not files or not train:
        expected = " or ".join(_patterns("train" if not train else split))
        raise DatasetMissing(f"dataset '{name}' is missing or incomplete in {root}: expected files {expected}")
    schema = parquet.read_schema(files[0])
    image = _given_column(files[0], schema, image_column) or _image_column(files[0], schema)
    label = _given_column(files[0], schema, label_column) or _label_column(files[0], schema)
    targets = _read_labels(files, label)
    class_names = _class_names(schema, label) or [str(k) for k in range(_read_labels(train, label).max() + 1)]
    if targets.min() < 0 or targets.max() >= len(class_names):
        raise ValueError(
            f"{files[0]}: labels must lie in 0..{len(class_names) - 1}, got {np.unique(targets)}; files without labels "
            "are of no use here: with test files moved away, those named validation are the test split"
        )
    return ImageSource(name, ShardedPictures(files, image), targets, class_names)


def load_listed_shards(name: str, root: Path, split: str, entries: Mapping[str, int]) -> ImageSource:
    """The rows of a split whose pictures, by file name without folder and ending, are listed with their classes.

    The order is that of the rows. Where a picture is missing or of another class than listed, it is named.
    """
    source = load_shards(name, root, split)
    pictures = cast(ShardedPictures, source.images)
    numbers = {_bare(picture): row for row, picture in enumerate(pictures.names())}
    if missing := [picture for picture in entries if picture not in numbers]:
        raise DatasetMissing(f"{len(missing)} of {len(entries)} listed pictures are in no file of {root}: {missing[0]}")
    rows = sorted(numbers[picture] for picture in entries)
    if other := [picture for picture, k in entries.items() if source.targets[numbers[picture]] != k]:
        raise ValueError(f"{len(other)} listed pictures are of another class in the files of {root}: {other[0]}")
    return replace(source, images=SomePictures(pictures, rows), targets=source.targets[rows])


def find_shards(root: Path, split: str) -> list[Path]:
    """The files of a split in `root` or `root`/data in the order of their names; none if there are none."""
    found = (sorted(folder.glob(pattern)) for folder in (root, root / "data") for pattern in _patterns(split))
    return next((files for files in found if files), [])


@dataclass(frozen=True)
class StoredPicture:
    """The content of a picture file that lives in a row."""

    name: str
    content: bytes

    def read_bytes(self) -> bytes:
        return self.content

    def __str__(self) -> str:
        return self.name


class ShardedPictures(Sequence[StoredPicture]):
    """The pictures of one column over several files; one row group at a time is in memory."""

    def __init__(self, files: Sequence[Path], column: str) -> None:
        from pyarrow.parquet import ParquetFile

        self.column = column
        shards = [ParquetFile(file) for file in files]
        self.groups = [(shard, i) for shard in shards for i in range(shard.num_row_groups)]
        sizes = (shard.metadata.row_group(i).num_rows for shard, i in self.groups)
        self.starts: list[int] = [0, *accumulate(sizes)]  # of each row group, and the end
        self._read = lru_cache(maxsize=1)(self._read_group)

    def __len__(self) -> int:
        return self.starts[-1]

    def __getitem__(self, index: Any) -> Any:
        if not 0 <= index < len(self):
            raise IndexError(f"picture {index} of {len(self)}")
        group = bisect_right(self.starts, index) - 1
        row = self._read(group)[index - self.starts[group]].as_py()
        if row["bytes"] is None:
            raise ValueError(f"picture {index} is only a path, {row.get('path')}; write its bytes into the file")
        return StoredPicture(row.get("path") or f"row {index}", row["bytes"])

    def names(self) -> list[str]:
        """The file name of each picture, read without the pictures."""
        shards = dict.fromkeys(shard for shard, _ in self.groups)
        columns = (shard.read(columns=[f"{self.column}.path"]).column(0).combine_chunks() for shard in shards)
        return [str(name) for column in columns for name in column.field("path").to_pylist()]

    def _read_group(self, group: int) -> Any:
        shard, i = self.groups[group]
        return shard.read_row_group(i, columns=[self.column]).column(0).combine_chunks()


@dataclass(frozen=True)
class SomePictures(Sequence[StoredPicture]):
    """The pictures of some rows."""

    pictures: ShardedPictures
    rows: Sequence[int]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Any) -> Any:
        return self.pictures[self.rows[index]]


def _bare(picture: str) -> str:
    """n01440764_18 of n01440764_18.JPEG, and of n01440764_18_n01440764.JPEG, as ImageNet's rows are named."""
    return re.sub(r"_n\d{8}$", "", Path(picture).stem)


def _patterns(split: str) -> list[str]:
    return [f"{name}{rest}.parquet" for name in SPLIT_NAMES[split] for rest in ("", "-*")]


def _given_column(file: Path, schema: Any, column: str | None) -> str | None:
    if column is not None and column not in schema.names:
        raise unknown(f"column of {file}", column, schema.names)
    return column


def _image_column(file: Path, schema: Any) -> str:
    from pyarrow import types

    names = [entry.name for entry in schema if types.is_struct(entry.type) and entry.type.get_field_index("bytes") >= 0]
    if len(names) != 1:
        raise ValueError(f"{file} needs one column of pictures, a struct with their bytes; found {names or 'none'}")
    return str(names[0])


def _label_column(file: Path, schema: Any) -> str:
    names = ["label"] if "label" in schema.names else [name for name in schema.names if _class_names(schema, name)]
    if len(names) != 1:
        raise ValueError(f"{file} needs a column label, or one with class names; found {names or schema.names}")
    return str(names[0])


def _class_names(schema: Any, column: str) -> list[str]:
    """The names that `datasets` stored with a column of classes; none if they are bare numbers."""
    from datasets import ClassLabel, Features

    feature = Features.from_arrow_schema(schema)[column]
    return list(feature.names) if isinstance(feature, ClassLabel) else []


def _read_labels(files: Sequence[Path], column: str) -> npt.NDArray[np.int64]:
    from pyarrow import parquet

    columns = [parquet.read_table(file, columns=[column])[column].to_numpy() for file in files]
    return np.concatenate(columns).astype(np.int64)


SPLIT_NAMES = {"train": ("train",), "test": ("test", "validation", "val")}
