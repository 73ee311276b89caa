"""Pictures below a folder, with lists: which file belongs to which class is written in text files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ncflow.data.images import DatasetMissing, ImageSource, SplitMissing, printable
from ncflow.data.labels import as_labels, class_names, join, numbering_note, shown
from ncflow.data.shards import find_shards, load_listed_shards

LISTS = {"train": "train.txt", "val": "val.txt", "test": "test.txt"}  # of the source `listed`, below its root


class Entry(NamedTuple):
    """A line of a list: a path below the root and a class, as they are written."""

    path: str
    label: str
    line: int

    @property
    def folder(self) -> str:
        return Path(self.path).parent.name


@dataclass(frozen=True)
class PictureList:
    """A list of pictures, and the file that it was read from."""

    file: Path
    entries: list[Entry]

    def where(self, entry: Entry) -> str:
        return f"{printable(str(self.file))}, line {entry.line}"


def load_listed(name: str, root: Path, split: str, *, lists: Mapping[str, str] | None = None) -> ImageSource:
    """A split of pictures from its list, whose lines are a path below `root` and a class: a number, or text.

    `lists` names the file of each split, relative to `root`; default: LISTS. The classes are those of the training
    list. They are called like their folders where each has one of its own; numbers and folders must agree in all lists.
    """
    files = LISTS | dict(lists or {})
    if unknown := sorted(set(files) - set(LISTS)):
        raise ValueError(f"dataset.lists: expected the splits {', '.join(LISTS)}, got {', '.join(unknown)}")
    if split == "val" and not (root / files["test"]).is_file():
        raise SplitMissing(f"dataset '{name}' has no test list {root / files['test']}, so val is not another split")
    if split == "test" and not (root / files["test"]).is_file() and (root / files["val"]).is_file():
        files["test"] = files["val"]
    training = read_list(root / files["train"])
    labels = class_names([as_labels(training.file, [entry.label for entry in training.entries])])
    folders = _folders_of(training)
    listed = training if split == "train" else read_list(root / files[split], split=split)
    _refuse_contradictions(listed, folders)
    targets = join(as_labels(listed.file, [entry.label for entry in listed.entries]), labels)
    pictures = _existing([root / entry.path for entry in listed.entries])
    notes = [note for note in (numbering_note(labels), _repeated(listed)) if note]
    names = [printable(folders.get(label, label)) for label in labels]
    return ImageSource(name, pictures, targets, names, notes=tuple(notes), lists=(training.file, listed.file))


def load_imagenet_lt(root: Path, split: str) -> ImageSource:
    """ImageNet-LT's published lists, ImageNet_LT_<split>.txt, beside ImageNet's train/ and val/ or its Parquet files.

    A line is a path below `root` and a class number. Liu, Miao, Zhan, Wang, Gong and Yu 2019.
    """
    lists = {each: f"ImageNet_LT_{each}.txt" for each in LISTS}
    listed = read_list(root / lists[split], split=split)
    numbers = [_whole(listed, entry) for entry in listed.entries]
    missing = sorted(set(range(max(numbers) + 1)) - set(numbers)) if split == "train" else []
    if missing:
        raise ValueError(f"{listed.file} has no picture of class {shown(map(str, missing))}")
    if find_shards(root, "train"):
        rows = {Path(entry.path).stem: k for entry, k in zip(listed.entries, numbers, strict=True)}
        return replace(load_listed_shards("imagenet_lt", root, split, rows), lists=(listed.file,))
    return load_listed("imagenet_lt", root, split, lists=lists)


def load_tiny_imagenet(root: Path, split: str) -> ImageSource:
    """Tiny-ImageNet as it is unpacked: train/<class>/images/*, and val/images/* with val/val_annotations.txt."""
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


def read_list(file: Path, *, split: str = "train") -> PictureList:
    """One entry for each line that is neither blank nor a comment: all but the last field is the path."""
    entries = []
    for number, line in enumerate(_lines(file, split), start=1):
        path, _, label = line.replace("\t", " ").strip().rpartition(" ")
        if not label or line.lstrip().startswith("# "):
            continue
        if not path.strip():
            raise ValueError(
                f"{file}, line {number}: expected a picture and its class, got '{printable(line.strip())}'"
            )
        entries.append(Entry(path.strip(), label, number))
    if not entries:
        raise ValueError(f"{file} lists no picture: expected lines of a path and a class")
    return PictureList(file, entries)


def _annotations(folder: Path) -> list[tuple[str, str]]:
    """Picture and class of each line of Tiny-ImageNet's val_annotations.txt."""
    file = folder / "val_annotations.txt"
    fields = [(number, line.split()) for number, line in enumerate(_lines(file, "test"), start=1) if line.strip()]
    if short := [number for number, found in fields if len(found) < 2]:
        raise ValueError(f"{file}, line {short[0]}: expected a picture and its class")
    return [(found[0], found[1]) for _, found in fields]


def _lines(file: Path, split: str) -> list[str]:
    if not file.is_file():
        kind = SplitMissing if split != "train" else DatasetMissing
        raise kind(f"no list {file} of pictures and classes; download it, and keep it there")
    return file.read_bytes().decode("utf-8-sig", "surrogateescape").splitlines()


def _whole(listed: PictureList, entry: Entry) -> int:
    if not (entry.label.isascii() and entry.label.isdigit()):
        line = printable(f"{entry.path} {entry.label}")
        raise ValueError(f"{listed.where(entry)}: expected a picture and its class, got '{line}'")
    return int(entry.label)


def _folders_of(training: PictureList) -> dict[str, str]:
    """Class -> its folder, where every class has one folder and no two share one; else nothing."""
    pairs = {(entry.label, entry.folder) for entry in training.entries}
    labels, folders = (set(part) for part in zip(*pairs, strict=True))
    return dict(pairs) if len(pairs) == len(labels) == len(folders) else {}


def _refuse_contradictions(listed: PictureList, folders: Mapping[str, str]) -> None:
    """Raise where a line gives a picture in one class's folder to another class, or one picture to two classes."""
    owner = {folder: label for label, folder in folders.items()}
    first: dict[str, Entry] = {}
    for entry in listed.entries:
        if (usual := owner.get(entry.folder, entry.label)) != entry.label:
            raise ValueError(
                f"{listed.where(entry)}: folder {printable(entry.folder)} is of class {usual} in the training list, "
                f"and of class {entry.label} here; the lists number classes differently"
            )
        if (other := first.setdefault(entry.path, entry)).label != entry.label:
            raise ValueError(
                f"{listed.where(entry)}: class {entry.label}, and class {other.label} in line {other.line}"
            )


def _repeated(listed: PictureList) -> str | None:
    twice = sum(count - 1 for count in Counter(entry.path for entry in listed.entries).values())
    return f"{printable(str(listed.file))} lists {twice} pictures again" if twice else None


def _existing(files: list[Path]) -> list[Path]:
    missing = [file for file in files if not file.is_file()]
    if missing:
        found = f"{len(missing)} of {len(files)} listed pictures are missing, the first is {printable(str(missing[0]))}"
        raise DatasetMissing(found)
    return files
