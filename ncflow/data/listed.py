"""Pictures below a folder, with text files that list the class of each picture."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from ncflow.data.images import DatasetMissing, ImageSource, SplitMissing, printable
from ncflow.data.labels import as_labels, case_notes, class_names, join, numbering_note, shown
from ncflow.data.lists import (
    Entry,
    PictureList,
    folders_of,
    list_lines,
    moved_note,
    read_list,
    refuse_contradictions,
    refuse_unlisted,
    repeated_note,
)
from ncflow.data.shards import find_shards, load_listed_shards

LISTS = {"train": "train.txt", "val": "val.txt", "test": "test.txt"}  # of the source `listed`, below its root
IMAGENET_LT_LISTS = {split: f"ImageNet_LT_{split}.txt" for split in LISTS}
SHOWN_MISSING = 3  # pictures in a message


def load_listed(name: str, root: Path, split: str, *, lists: Mapping[str, str] | None = None) -> ImageSource:
    """Load a split of pictures from its list. A line has a path below `root` and a class: a number, or text.

    `lists` names the file of each split, relative to `root`; default: LISTS. The training list defines the classes.
    If each class has a separate folder, the folders name the classes. Numbers and folders must agree in all lists.
    Raises ValueError if they do not, and DatasetMissing that names missing pictures or lists.
    """
    return _load(name, root, split, _list_files(root, lists or {}, LISTS))


def load_imagenet_lt(root: Path, split: str) -> ImageSource:
    """Load ImageNet-LT: ImageNet_LT_<split>.txt next to ImageNet's train/ and val/ or its Parquet files.

    The lists are the published ones. A line has a path below `root` and a class number.
    Raises ValueError for a class without pictures. Liu, Miao, Zhan, Wang, Gong and Yu 2019.
    """
    files = _list_files(root, {}, IMAGENET_LT_LISTS)
    listed = _read(files, split)
    numbers = [_whole(listed, entry) for entry in listed.entries]
    missing = sorted(set(range(max(numbers) + 1)) - set(numbers)) if split == "train" else []
    if missing:
        raise ValueError(f"{listed.file} has no picture of class {shown(map(str, missing))}")
    if find_shards(root, "train"):
        return _in_shards(root, split, listed, numbers)
    return _load("imagenet_lt", root, split, files)


def load_tiny_imagenet(root: Path, split: str) -> ImageSource:
    """Load Tiny-ImageNet as unpacked: train/<class>/images/*, and val/images/* with val/val_annotations.txt."""
    train = root / "train"
    if not train.is_dir():
        raise DatasetMissing(f"dataset 'tiny_imagenet' is missing: expected {train}/<class>/images/<picture>")
    class_names = sorted(folder.name for folder in train.iterdir() if folder.is_dir())
    if split == "train":
        entries = [(file, name) for name in class_names for file in sorted((train / name / "images").glob("*.JPEG"))]
    else:
        entries = [(root / "val" / "images" / file, name) for file, name in _annotations(root / "val")]
    numbers = {name: k for k, name in enumerate(class_names)}
    if strange := sorted({name for _, name in entries} - set(numbers)):
        raise ValueError(f"{root / 'val'} has classes that {train} does not have: {', '.join(strange)}")
    targets = np.array([numbers[name] for _, name in entries], dtype=np.int64)
    lists = () if split == "train" else (root / "val" / "val_annotations.txt",)
    return ImageSource("tiny_imagenet", _existing([file for file, _ in entries]), targets, class_names, lists=lists)


def _annotations(folder: Path) -> list[tuple[str, str]]:
    """Picture and class of each line of Tiny-ImageNet's val_annotations.txt."""
    file = folder / "val_annotations.txt"
    fields = [(number, line.split()) for number, line in enumerate(list_lines(file, "test"), start=1) if line.strip()]
    if short := [number for number, found in fields if len(found) < 2]:
        raise ValueError(f"{file}, line {short[0]}: expected a picture and its class")
    return [(found[0], found[1]) for _, found in fields]


def _load(name: str, root: Path, split: str, files: Mapping[str, Path]) -> ImageSource:
    training = _read(files, "train")
    listed = training if split == "train" else _read(files, split)
    labels = class_names([as_labels(training.file, [entry.label for entry in training.entries])])
    folders = folders_of(training)
    refuse_contradictions(listed, training, folders)
    refuse_unlisted(listed, labels)
    targets = join(as_labels(listed.file, [entry.label for entry in listed.entries]), labels)
    pictures = _existing([root / entry.path for entry in listed.entries])
    notes = [numbering_note(labels), repeated_note(listed), moved_note(listed, training, folders)]
    names = [printable(folders.get(label, label)) for label in labels]
    kept = tuple(note for note in notes if note) + case_notes(names)
    return ImageSource(name, pictures, targets, names, notes=kept, lists=(training.file, listed.file))


def _in_shards(root: Path, split: str, listed: PictureList, numbers: list[int]) -> ImageSource:
    """ImageNet-LT's pictures in ImageNet's Parquet files. Its validation list names pictures of ImageNet's train/."""
    rows: dict[str, int] = {}
    for entry, number in zip(listed.entries, numbers, strict=True):
        if rows.setdefault(Path(entry.path).stem, number) != number:
            raise ValueError(f"{listed.where(entry)}: class {number}, but class {rows[Path(entry.path).stem]} above")
    origin = "test" if split == "test" else "train"
    source = load_listed_shards("imagenet_lt", root, origin, rows)
    note = repeated_note(listed)
    return replace(source, lists=(listed.file,), notes=(*source.notes, note) if note else source.notes)


def _list_files(root: Path, given: Mapping[str, str], usual: Mapping[str, str]) -> dict[str, Path]:
    """The list of each split. Without a test list, the validation list is the test list.

    A list that the user names must exist. A default list may be missing.
    """
    if unknown := sorted(set(given) - set(usual)):
        raise ValueError(f"dataset.lists: expected the splits {', '.join(usual)}, got {', '.join(unknown)}")
    for split, file in given.items():
        if not (root / file).is_file():
            raise DatasetMissing(f"dataset.lists names {root / file} for the {split} split, and there is no such file")
    files = {split: root / file for split, file in {**usual, **given}.items()}
    if not files["test"].is_file() and files["val"].is_file():
        files["test"] = files.pop("val")
    return files


def _read(files: Mapping[str, Path], split: str) -> PictureList:
    if split not in files:
        raise SplitMissing(f"{files['test']} is the only list for test, so val is not another split; add a test list")
    return read_list(files[split], split=split)


def _whole(listed: PictureList, entry: Entry) -> int:
    if not (entry.label.isascii() and entry.label.isdigit()):
        line = printable(f"{entry.path} {entry.label}")
        raise ValueError(f"{listed.where(entry)}: expected a picture and its class, got '{line}'")
    return int(entry.label)


def _existing(files: list[Path]) -> list[Path]:
    missing = [file for file in files if not file.is_file()]
    if missing:
        first = ", ".join(printable(str(file)) for file in missing[:SHOWN_MISSING])
        advice = "; write paths with / instead of \\" if any("\\" in str(file) for file in missing) else ""
        raise DatasetMissing(f"{len(missing)} of {len(files)} listed pictures are missing, such as {first}{advice}")
    return files
