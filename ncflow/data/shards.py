"""A user's Parquet files, or a folder saved by `datasets`. Pictures are read one row group at a time."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from itertools import accumulate
from pathlib import Path
from typing import Any, cast

import numpy as np

from ncflow.data.images import Chosen, DatasetMissing, ImageSource, SplitMissing
from ncflow.data.labels import UNLABELLED, Labels, as_labels, case_notes, class_names, join, numbering_note, shown
from ncflow.lookup import unknown


def load_shards(
    name: str, root: Path, split: str, *, label_column: str | None = None, image_column: str | None = None
) -> ImageSource:
    """Load a split from Parquet files, or Arrow files of `save_to_disk`, in `root`, `root`/data or `root`/default.

    One column holds pictures: a struct with their bytes, or only the bytes. The column label, or the only one with
    class names, holds classes: text, names of `datasets`, or whole numbers. The training files define the classes.
    Labels are matched by name. Raises SplitMissing if a split has no files.
    """
    _refuse_unclear(root)
    train, files = (find_shards(root, wanted) for wanted in ("train", split))
    if not train:
        train = _unnamed_shards(root)
        files = train if split == "train" else []
    if not files or not train:
        missing = "train" if not train else split
        found = f" from files {' or '.join(_patterns(missing))}, or {missing}/*.parquet"
        raise SplitMissing(f"dataset '{name}' is missing or incomplete in {root}: expected a {missing} split{found}")
    training = _read_labels(train, label_column)
    names = class_names(training)
    labels = training if split == "train" else _read_labels(files, label_column)
    targets = np.concatenate([join(of_file, names) for of_file in labels])
    note = numbering_note(names)
    images = ShardedPictures(files, image_column)
    notes = (*((note,) if note else ()), *case_notes(names))
    return ImageSource(name, images, targets, names, notes=notes)


def load_listed_shards(name: str, root: Path, split: str, entries: Mapping[str, int], **options: Any) -> ImageSource:
    """Load the listed pictures of a split, in the order of the rows.

    `entries`: file name of a picture, without folder and suffix -> its class. Raises DatasetMissing that names a
    missing picture, and ValueError that names a picture with another class than listed.
    """
    source = load_shards(name, root, split, **options)
    pictures = cast(ShardedPictures, source.images)
    numbers = {_bare(picture): row for row, picture in enumerate(pictures.names())}
    if missing := [picture for picture in entries if picture not in numbers]:
        raise DatasetMissing(f"{len(missing)} of {len(entries)} listed pictures are in no file of {root}: {missing[0]}")
    rows = sorted(numbers[picture] for picture in entries)
    if other := [picture for picture, k in entries.items() if source.targets[numbers[picture]] != k]:
        raise ValueError(f"{len(other)} listed pictures are of another class in the files of {root}: {other[0]}")
    return replace(source, images=Chosen(pictures, rows), targets=source.targets[rows])


def find_shards(root: Path, split: str) -> list[Shard]:
    """The files of a split in the order of their names; empty if there are none.

    Raises DatasetMissing that names a missing file of a numbered set.
    """
    names = SPLIT_NAMES[split]
    if split == "val" and not any(find_files(root, (name,)) for name in SPLIT_NAMES["test"][:1]):
        return []  # without another test split, these files are the test split
    return _opened(find_files(root, names))


def find_files(root: Path, names: Sequence[str]) -> list[Path]:
    """The files for the first of a split's `names` that has any, in the first layout that has any."""
    patterns = [pattern for name in names for pattern in _layouts(name)]
    found = (sorted(folder.glob(pattern)) for pattern in patterns for folder in _places(root))
    return next((files for files in found if files), [])


@dataclass(frozen=True)
class StoredPicture:
    """The content of a picture file that is stored in a row."""

    name: str
    content: bytes

    def read_bytes(self) -> bytes:
        return self.content

    def __str__(self) -> str:
        return self.name


class ParquetShard:
    """One Parquet file: its columns, and its rows in groups that are read one at a time."""

    def __init__(self, file: Path) -> None:
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile

        self.file = file
        try:
            self.parquet = ParquetFile(file)
        except (ArrowException, OSError) as error:
            raise ValueError(f"{file} is no Parquet file, or only a part of one: {error}") from error
        metadata = self.parquet.metadata
        self.sizes = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
        self.schema = self.parquet.schema_arrow

    def read(self, column: str) -> Any:
        """One column, or a part of a struct such as image.path, of all rows."""
        return self.parquet.read(columns=[column]).column(0).combine_chunks()

    def read_group(self, group: int, column: str) -> Any:
        """One column of the rows of a group."""
        return self.parquet.read_row_group(group, columns=[column]).column(0).combine_chunks()


class ArrowShard:
    """One memory-mapped Arrow file of `save_to_disk`, with the same interface."""

    def __init__(self, file: Path) -> None:
        import pyarrow

        self.file = file
        try:
            self.table = pyarrow.ipc.open_stream(pyarrow.memory_map(str(file))).read_all()
        except (pyarrow.ArrowException, OSError) as error:
            raise ValueError(f"{file} is no Arrow file, or only a part of one: {error}") from error
        self.schema = self.table.schema
        self.batches = self.table.to_batches(max_chunksize=ARROW_ROWS)
        self.sizes = [batch.num_rows for batch in self.batches]

    def read(self, column: str) -> Any:
        """One column, or a part of a struct such as image.path, of all rows."""
        name, _, part = column.partition(".")
        whole = self.table[name].combine_chunks()
        return whole.field(part) if part else whole

    def read_group(self, group: int, column: str) -> Any:
        """One column of the rows of a group."""
        return self.batches[group][column]


Shard = ParquetShard | ArrowShard


class ShardedPictures(Sequence[StoredPicture]):
    """The pictures of one column over several files. One row group at a time is in memory."""

    def __init__(self, shards: Sequence[Shard], column: str | None = None) -> None:
        self.shards = shards
        self.columns = {shard.file: _image_column(shard, column) for shard in shards}
        self.groups = [(shard, i) for shard in shards for i in range(len(shard.sizes))]
        self.starts: list[int] = [0, *accumulate(shard.sizes[i] for shard, i in self.groups)]  # of groups, then the end
        self._read = lru_cache(maxsize=1)(self._read_group)

    @property
    def files(self) -> list[Path]:
        return [shard.file for shard in self.shards]

    @cached_property
    def first_rows(self) -> dict[Path, int]:
        """The number of the first row of each file."""
        sizes = [sum(shard.sizes) for shard in self.shards]
        return dict(zip((shard.file for shard in self.shards), accumulate([0, *sizes]), strict=False))

    def __len__(self) -> int:
        return self.starts[-1]

    def __getitem__(self, index: Any) -> Any:
        if not 0 <= index < len(self):
            raise IndexError(f"picture {index} of {len(self)}")
        group = bisect_right(self.starts, index) - 1
        row, shard = self._read(group)[index - self.starts[group]].as_py(), self.groups[group][0]
        stored = row if isinstance(row, dict) else {"bytes": row}
        place = f"{shard.file.name}, row {index - self.first_rows[shard.file]}"
        if not stored.get("bytes"):
            found = f"only a path, {stored['path']}" if stored.get("path") else "no picture"
            raise ValueError(f"{shard.file.parent / place} has {found}; write its bytes into the file, or drop the row")
        return StoredPicture(stored.get("path") or place, stored["bytes"])

    def names(self) -> list[str]:
        """The file name of each picture, read without loading the pictures."""
        columns = (shard.read(f"{self.columns[shard.file]}.path") for shard in self.shards)
        return [
            str(name)
            for column in columns
            for name in (column.field("path") if hasattr(column, "field") else column).to_pylist()
        ]

    def _read_group(self, group: int) -> Any:
        shard, i = self.groups[group]
        return shard.read_group(i, self.columns[shard.file])


def _bare(picture: str) -> str:
    """n01440764_18 for n01440764_18.JPEG, and for ImageNet's row name n01440764_18_n01440764.JPEG."""
    return re.sub(r"_n\d{8}$", "", Path(picture).stem)


def _places(root: Path) -> tuple[Path, ...]:
    return root, root / "data", root / "default"


def _opened(files: Sequence[Path]) -> list[Shard]:
    _refuse_incomplete(files)
    return [ArrowShard(file) if file.suffix == ".arrow" else ParquetShard(file) for file in files]


def _unnamed_shards(root: Path) -> list[Shard]:
    """The only split, from files without a split's name: one file, or files numbered i of n; else empty."""
    if any(find_files(root, names) for names in SPLIT_NAMES.values()):
        return []
    found = (sorted(place.glob(pattern)) for pattern in ("*.parquet", "data-*.arrow") for place in _places(root))
    files = next((files for files in found if files), [])
    one = len({re.sub(r"\d+-of-\d+$", "", file.stem) for file in files}) == 1
    return _opened(files) if one else []


def _refuse_unclear(root: Path) -> None:
    """Raise if a split's name has capital letters, or if files use two names of the validation split."""
    entries = sorted(entry for place in _places(root) if place.is_dir() for entry in place.iterdir())
    alike = [entry for entry in entries if (match := SPLIT_FILE.fullmatch(entry.name)) and not match[1].islower()]
    if capital := [entry.name for entry in alike if entry.suffix or any(entry.glob("*.parquet"))]:
        raise DatasetMissing(f"{root} has split names with capital letters; rename {shown(capital)} to lower case")
    several = [name for name in SPLIT_NAMES["val"] if find_files(root, (name,))]
    if len(several) > 1:
        raise DatasetMissing(
            f"{root} has files of {' and '.join(several)}, names of the same split; keep one, or name one test"
        )


def _patterns(split: str) -> list[str]:
    return [f"{name}{rest}.parquet" for name in SPLIT_NAMES[split] for rest in ("", "-*")]


def _layouts(name: str) -> list[str]:
    """Patterns of a split's files: in a shared folder, or in a separate one, as the Hub or `save_to_disk` do."""
    return [f"{name}.parquet", f"{name}-*.parquet", f"{name}/*.parquet", f"{name}/data-*.arrow"]


def _refuse_incomplete(files: Sequence[Path]) -> None:
    """Raise if files are numbered i of n and one is missing."""
    numbered = [(file, match) for file in files if (match := re.fullmatch(r"(.*-)(\d+)-of-(\d+)", file.stem))]
    for file, match in numbered:
        start, _, total = match.groups()
        for i in range(int(total)):
            shard = file.with_name(f"{start}{i:0{len(total)}}-of-{total}{file.suffix}")
            if shard not in files:
                raise DatasetMissing(f"{shard} is missing, one of the {int(total)} files of {file.name}'s split")
    if numbered and (len(numbered) < len(files) or len({match[3] for _, match in numbered}) > 1):
        raise ValueError(
            f"{files[0].parent} holds files of different splits of one name: {shown(f.name for f in files)}"
        )


def _image_column(shard: Shard, given: str | None) -> str:
    from pyarrow import types

    if given is not None:
        entry = shard.schema.field(_given_column(shard, given))
        if not (_has_bytes(entry.type) or types.is_binary(entry.type) or types.is_large_binary(entry.type)):
            raise ValueError(f"{shard.file}: column '{given}' must hold pictures or their bytes, got {entry.type}")
        return given
    structs = [entry.name for entry in shard.schema if _has_bytes(entry.type)]
    names = structs or [e.name for e in shard.schema if types.is_binary(e.type) or types.is_large_binary(e.type)]
    if len(names) != 1:
        found = f"{names or 'none'} of {shard.schema.names}"
        raise ValueError(
            f"{shard.file} needs one column of pictures, a struct with their bytes; found {found}; "
            "choose one with dataset.image_column"
        )
    return str(names[0])


def _has_bytes(kind: Any) -> bool:
    from pyarrow import types

    return bool(types.is_struct(kind) and kind.get_field_index("bytes") >= 0)


def _label_column(shard: Shard, given: str | None) -> str:
    if given is not None:
        return _given_column(shard, given)
    names = shard.schema.names
    named = ["label"] if "label" in names else [name for name in names if _declared_names(shard, name) is not None]
    if len(named) != 1:
        raise ValueError(
            f"{shard.file} needs a column label, or one with class names; found {named or names}; "
            "choose one with dataset.label_column"
        )
    return str(named[0])


def _given_column(shard: Shard, column: str) -> str:
    if column not in shard.schema.names:
        raise unknown(f"column of {shard.file}", column, shard.schema.names)
    return column


def _declared_names(shard: Shard, column: str) -> list[str] | None:
    """The names that `datasets` stored with a column of classes."""
    from datasets import ClassLabel, Features

    feature = Features.from_arrow_schema(shard.schema)[column]
    return list(feature.names) if isinstance(feature, ClassLabel) and feature.names else None


def _read_labels(shards: Sequence[Shard], given: str | None) -> list[Labels]:
    read = [_labels_of(shard, _label_column(shard, given)) for shard in shards]
    if not sum(len(labels.codes) for labels in read):
        raise ValueError(f"{shown(str(shard.file) for shard in shards)} holds no rows")
    return read


def _labels_of(shard: Shard, column: str) -> Labels:
    """The labels of a file. Raises ValueError that names the column if it holds no labels."""
    from pyarrow import types

    values = shard.read(column)
    if types.is_dictionary(values.type):
        values = values.dictionary_decode()
    kind, what = values.type, f"{shard.file}, column '{column}'"
    if not (types.is_integer(kind) or types.is_string(kind) or types.is_large_string(kind)):
        raise ValueError(f"{what} must hold class names or whole numbers, got {kind}; store text or whole numbers")
    if values.null_count:
        row = values.is_null().to_pylist().index(True)
        raise ValueError(f"{what}, row {row} has no label ({values.null_count} rows have none); drop these rows")
    names = _declared_names(shard, column)
    if names is None or not types.is_integer(kind):
        return as_labels(shard.file, values.to_numpy(zero_copy_only=False))
    codes = np.array(values.to_numpy(zero_copy_only=False), dtype=np.int64)
    if len(codes) and not 0 <= codes.min() <= codes.max() < len(names):
        raise ValueError(
            f"{what}: labels must lie in 0..{len(names) - 1}, got {np.unique(codes)[:8].tolist()}; {UNLABELLED}"
        )
    return Labels(shard.file, names, codes, declared=True)


SPLIT_NAMES = {
    "train": ("train",),
    "test": ("test", "validation", "valid", "val"),
    "val": ("validation", "valid", "val"),
}
SPLIT_FILE = re.compile(r"(train|test|validation|valid|val)(-.*)?(\.parquet)?", re.IGNORECASE)
ARROW_ROWS = 1024  # rows per group of an Arrow file
