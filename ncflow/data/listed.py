"""Picture folders with a list: which file belongs to which class is written in a text file beside them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np

from ncflow.data.images import DatasetMissing, ImageSource
from ncflow.data.shards import find_shards, load_listed_shards

T = TypeVar("T")


def load_imagenet_lt(root: Path, split: str) -> ImageSource:
    """ImageNet-LT's published lists, ImageNet_LT_<split>.txt, beside ImageNet's train/ and val/ or its Parquet files.

    A line is a path below `root` and a class number. Liu, Miao, Zhan, Wang, Gong and Yu 2019.
    """
    entries = _read_list(root / f"ImageNet_LT_{split}.txt", lambda fields: (fields[0], int(fields[1])))
    if find_shards(root, "train"):
        return load_listed_shards("imagenet_lt", root, split, {Path(path).stem: k for path, k in entries})
    names = {number: Path(path).parent.name for path, number in entries}
    missing = [str(number) for number in range(max(names) + 1) if number not in names]
    if missing:
        raise ValueError(f"{root / f'ImageNet_LT_{split}.txt'} has no picture of class {', '.join(missing)}")
    files = _existing([root / path for path, _ in entries])
    targets = np.array([number for _, number in entries], dtype=np.int64)
    return ImageSource("imagenet_lt", files, targets, [names[number] for number in range(len(names))])


def load_tiny_imagenet(root: Path, split: str) -> ImageSource:
    """Tiny-ImageNet as it is unpacked: train/<class>/images/*, and val/images/* with val/val_annotations.txt."""
    train = root / "train"
    if not train.is_dir():
        raise DatasetMissing(f"dataset 'tiny_imagenet' is missing: expected {train}/<class>/images/<picture>")
    class_names = sorted(folder.name for folder in train.iterdir() if folder.is_dir())
    if split == "train":
        entries = [(file, name) for name in class_names for file in sorted((train / name / "images").glob("*.JPEG"))]
    else:
        listed = _read_list(root / "val" / "val_annotations.txt", lambda fields: (fields[0], fields[1]))
        entries = [(root / "val" / "images" / file, name) for file, name in listed]
    numbers = {name: k for k, name in enumerate(class_names)}
    if strange := sorted({name for _, name in entries} - set(numbers)):
        raise ValueError(f"{root / 'val'} has classes that {train} does not have: {', '.join(strange)}")
    targets = np.array([numbers[name] for _, name in entries], dtype=np.int64)
    return ImageSource("tiny_imagenet", _existing([file for file, _ in entries]), targets, class_names)


def _read_list(file: Path, entry: Callable[[list[str]], T]) -> list[T]:
    """One entry for each line that is not blank; a line that is none is named."""
    if not file.is_file():
        raise DatasetMissing(f"no list {file} of pictures and classes; download it, and keep it there")
    entries = []
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
        if fields := line.split():
            try:
                entries.append(entry(fields))
            except (IndexError, ValueError) as error:
                raise ValueError(f"{file}, line {number}: expected a picture and its class, got '{line}'") from error
    return entries


def _existing(files: list[Path]) -> list[Path]:
    missing = [file for file in files if not file.is_file()]
    if missing:
        raise DatasetMissing(f"{len(missing)} of {len(files)} listed pictures are missing, the first is {missing[0]}")
    return files
