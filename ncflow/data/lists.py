"""Lists of pictures: text files with the class of each picture. The lists of a source must agree."""

from __future__ import annotations

import codecs
import os
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from ncflow.data.images import DatasetMissing, SplitMissing, printable
from ncflow.data.labels import shown


class Entry(NamedTuple):
    """A line of a list: a path below the root and a class, as written."""

    path: str
    label: str
    line: int

    @property
    def folder(self) -> str:
        return Path(self.path).parent.name


@dataclass(frozen=True)
class PictureList:
    """A list of pictures and its file."""

    file: Path
    entries: list[Entry]

    def where(self, entry: Entry) -> str:
        return f"{printable(str(self.file))}, line {entry.line}"


def read_list(file: Path, *, split: str = "train") -> PictureList:
    """Read one entry from each line that is neither blank nor a comment: all but the last field is the path.

    The last field starts at the last tab of a line, so class names may have blanks. Without a tab, it starts at the
    last blank. Raises ValueError for a line without two fields, or an empty list.
    """
    entries = []
    for number, line in enumerate(list_lines(file, split), start=1):
        text = line.strip()
        if not text or text == "#" or text.startswith("# "):
            continue
        path, _, label = text.rpartition("\t" if "\t" in text else " ")
        if not path.strip():
            raise ValueError(f"{file}, line {number}: expected a picture and its class, got '{printable(text)}'")
        entries.append(Entry(path.strip(), label.strip(), number))
    if not entries:
        raise ValueError(f"{file} lists no picture: expected lines of a path and a class")
    return PictureList(file, entries)


def folders_of(training: PictureList) -> dict[str, str]:
    """Class -> its folder, if every class has one folder and no two share one; else empty."""
    pairs = {(entry.label, entry.folder) for entry in training.entries}
    labels, folders = (set(part) for part in zip(*pairs, strict=True))
    return dict(pairs) if len(pairs) == len(labels) == len(folders) else {}


def refuse_contradictions(listed: PictureList, training: PictureList, folders: Mapping[str, str]) -> None:
    """Raise if a list gives a folder or a picture another class than before. `folders`: class -> its folder."""
    owner = {entry.folder: entry for entry in training.entries} if folders else {}
    for entry in listed.entries:
        if (usual := owner.get(entry.folder, entry)).label != entry.label:
            raise ValueError(
                f"{listed.where(entry)}: folder {printable(entry.folder)} is of class {usual.label} in the training "
                f"list, and of class {entry.label} here; the lists number classes differently "
                f"({training.where(usual)})"
            )
    _refuse_other_folders(listed, training, folders)
    first: dict[str, Entry] = {}
    for entry in listed.entries:
        if (other := first.setdefault(os.path.normpath(entry.path), entry)).label != entry.label:
            raise ValueError(
                f"{listed.where(entry)}: class {entry.label}, and class {other.label} in line {other.line}"
            )


def refuse_unlisted(listed: PictureList, labels: list[str]) -> None:
    """Raise if a line has a class that is not in the training list."""
    known = set(labels)
    if strange := [entry for entry in listed.entries if entry.label not in known]:
        others = shown(dict.fromkeys(printable(entry.label) for entry in strange))
        raise ValueError(
            f"{listed.where(strange[0])}: labels {others} are none of the training classes, "
            f"{shown(map(printable, labels))}; use the numbers or names of the training list, or leave these lines out"
        )


def moved_note(listed: PictureList, training: PictureList, folders: Mapping[str, str]) -> str | None:
    """A note if a folder has another class than in training, where classes may have many folders."""
    owners: dict[str, set[str]] = {}
    for entry in training.entries:
        owners.setdefault(entry.folder, set()).add(entry.label)
    if folders or any(len(labels) > 1 for labels in owners.values()):
        return None
    moved = [entry for entry in listed.entries if owners.get(entry.folder, {entry.label}) != {entry.label}]
    if not moved:
        return None
    return (
        f"{len(moved)} lines of {printable(listed.file.name)} give a folder another class than the training list does, "
        f"such as line {moved[0].line}; see that both lists number classes alike"
    )


def repeated_note(listed: PictureList) -> str | None:
    twice = sum(count - 1 for count in Counter(os.path.normpath(entry.path) for entry in listed.entries).values())
    return f"{printable(listed.file.name)} lists {twice} pictures again" if twice else None


def list_lines(file: Path, split: str) -> list[str]:
    if not file.is_file():
        kind = SplitMissing if split != "train" else DatasetMissing
        raise kind(f"no list {file} of pictures and classes; download it, and keep it there")
    content = file.read_bytes()
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) or b"\0" in content:
        raise ValueError(f"{file} is no list in UTF-8, it is UTF-16 or no text; save it as UTF-8")
    return re.split("\r\n|\n|\r", content.decode("utf-8-sig", "surrogateescape"))


def _refuse_other_folders(listed: PictureList, training: PictureList, folders: Mapping[str, str]) -> None:
    """Raise if both lists have one folder per class, and some of the folders differ."""
    own = folders_of(listed)
    if not set(own.values()) & set(folders.values()):
        return  # this list has another layout of folders
    first = {entry.label: entry for entry in reversed(training.entries)}
    for entry in listed.entries:
        if (usual := folders.get(entry.label, entry.folder)) != entry.folder:
            raise ValueError(
                f"{listed.where(entry)}: class {entry.label} is in folder {printable(usual)} in the training list, "
                f"and in folder {printable(entry.folder)} here; the lists number classes differently "
                f"({training.where(first[entry.label])})"
            )
