"""Folders of pictures as users have them. Links are followed, and hidden files are skipped."""

from __future__ import annotations

import mimetypes
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ncflow.data.images import DatasetMissing, ImageSource, SplitMissing, printable
from ncflow.data.labels import case_notes, shown

# File suffixes of formats that Pillow reads on every system.
SUFFIXES = (
    *(".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".bmp", ".webp"),
    *(".gif", ".tif", ".tiff", ".ppm", ".pgm", ".avif"),
)


def load_folders(name: str, root: Path, split: str) -> ImageSource:
    """Load a user's pictures in root/<split>/<class>/. The folders of the training split are the classes.

    Without any folder of a split, root/<class>/ is the training split. Without a test folder, `val` is the test split.
    Raises ValueError for an empty class, or a class that the training split does not have.
    """
    classes = class_folders(split_folder(root, "train"))
    folder = split_folder(root, split)
    names = [path.name for path in classes]
    if strange := [path.name for path in class_folders(folder) if path.name not in names]:
        where, names = printable(str(folder)), [printable(name) for name in strange]
        raise ValueError(f"{where} has classes that the training split does not have: {shown(names)}")
    pictures = [pictures_below(folder / name) if (folder / name).is_dir() else [] for name in names]
    empty = [printable(name) for name, of_class in zip(names, pictures, strict=True) if not of_class]
    if empty and (split == "train" or len(empty) == len(names)):
        where = printable(str(folder))
        raise ValueError(f"{where} has no picture of class {shown(empty)}; expected suffixes {' '.join(SUFFIXES)}")
    targets = np.repeat(np.arange(len(pictures)), [len(of_class) for of_class in pictures])
    files = [file for of_class in pictures for file in of_class]
    notes = _note(folder) + case_notes(names) + (_without_classes(root) if folder != root else ())
    return ImageSource(name, files, targets, [printable(name) for name in names], notes=notes)


def split_folder(root: Path, split: str) -> Path:
    """The folder of a split, which has folders of classes.

    Raises SplitMissing that names the expected folders, and DatasetMissing if the splits are ambiguous.
    """
    _refuse_unclear(root)
    if split == "train" and not any(_has_classes(root / name) for name in SPLIT_NAMES) and _has_classes(root):
        return root
    wanted = SPLIT_FOLDERS[split]
    if split == "val" and not _has_classes(root / "test"):
        wanted = ()  # without another test split, this folder is the test split
    for name in wanted:
        if _has_classes(root / name):
            return root / name
    expected = " or ".join(f"{root / name}/<class>/<picture>" for name in SPLIT_FOLDERS[split])
    raise SplitMissing(f"dataset 'imagefolder' has no {split} split: expected {printable(expected)}")


def class_folders(folder: Path) -> list[Path]:
    """The folders of the classes, including links, sorted by name. Raises ValueError for a broken link."""
    entries = sorted(folder.iterdir())
    if broken := [entry for entry in entries if not is_hidden(entry.name) and is_broken(entry)]:
        raise ValueError(f"{printable(str(broken[0]))} is a link to nothing; restore its target, or take the link out")
    return [entry for entry in entries if entry.is_dir() and not is_hidden(entry.name)]


def pictures_below(folder: Path) -> list[Path]:
    """The pictures of a class, at any depth, sorted by name. Raises ValueError for a broken link."""
    pictures = [path for path in _files_below(folder) if path.suffix.lower() in SUFFIXES]
    if broken := [path for path in pictures if is_broken(path)]:
        raise ValueError(
            f"{printable(str(broken[0]))} is a link to nothing, one of {len(broken)} below {printable(str(folder))}; "
            "restore its target, or take the link out"
        )
    return sorted(pictures)


def passed_over(folder: Path) -> list[Path]:
    """Files with the suffix of a picture format that is not read."""
    files = (path for path in _files_below(folder) if path.suffix.lower() not in SUFFIXES)
    return sorted(path for path in files if (mimetypes.guess_type(path.name)[0] or "").startswith("image/"))


def is_hidden(name: str) -> bool:
    """Whether systems or editors create files of this name, such as .ipynb_checkpoints or ._0.png."""
    return name.startswith(".") or name == "__MACOSX"


def is_broken(path: Path) -> bool:
    """Whether a path is a link without a target."""
    return path.is_symlink() and not path.exists()


def _has_classes(folder: Path) -> bool:
    return folder.is_dir() and bool(class_folders(folder))


def _refuse_unclear(root: Path) -> None:
    """Raise if a split's folder name has capital letters, or if two folders are the validation split."""
    entries = sorted(root.iterdir()) if root.is_dir() else []
    capital = [path for path in entries if path.name not in SPLIT_NAMES and path.name.lower() in SPLIT_NAMES]
    if alike := [path.name for path in capital if _has_classes(path)]:
        where = printable(str(root))
        raise DatasetMissing(f"{where} has split folders with capital letters; rename {shown(alike)} to lower case")
    several = [name for name in SPLIT_FOLDERS["val"] if _has_classes(root / name)]
    if len(several) > 1:
        raise DatasetMissing(
            f"{printable(str(root))} has {' and '.join(several)}, names of the same split; keep one, or name one test"
        )


def _without_classes(root: Path) -> tuple[str, ...]:
    """A note on folders with the name of a split and without folders of classes."""
    entries = sorted(root.iterdir())
    called = [path for path in entries if path.name.lower() in SPLIT_NAMES and path.is_dir()]
    left = [path.name for path in called if not _has_classes(path) and any(path.iterdir())]
    return (f"{shown(left)} has no folders of classes and is left out",) if left else ()


def _note(folder: Path) -> tuple[str, ...]:
    """A note on pictures that are left out."""
    left = passed_over(folder)
    if not left:
        return ()
    endings = shown(sorted({path.suffix.lower() for path in left}))
    first = printable(str(left[0].relative_to(folder)))
    return (
        f"{len(left)} pictures in {folder.name} are left out, of a kind that is not read ({endings}), such as {first}",
    )


def _files_below(folder: Path) -> Iterator[Path]:
    """Yield every file at any depth. Each folder is entered once, so loops of links end."""
    seen = set()
    for where, folders, files in os.walk(folder, followlinks=True):
        place = Path(where).stat()
        if (place.st_dev, place.st_ino) in seen:
            folders.clear()
            continue
        seen.add((place.st_dev, place.st_ino))
        folders[:] = sorted(name for name in folders if not is_hidden(name))
        yield from (Path(where, name) for name in files if not is_hidden(name))


SPLIT_FOLDERS = {
    "train": ("train",),
    "test": ("test", "val", "validation", "valid"),
    "val": ("val", "validation", "valid"),
}
SPLIT_NAMES = sorted({name for names in SPLIT_FOLDERS.values() for name in names})
