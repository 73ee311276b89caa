"""Where images and labels come from: one name per source, the same shape for all of them."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ncflow.data.images import DatasetMissing, ImageSource
from ncflow.data.listed import load_imagenet_lt, load_tiny_imagenet
from ncflow.data.longtail import sample_indices
from ncflow.data.numbered import numbered_source
from ncflow.data.published import PUBLISHED, default_root, load_published
from ncflow.data.shards import find_shards, load_shards
from ncflow.lookup import check_options, lookup, unknown

SPLITS = ("train", "test")
# (root, split, its options by keyword) -> its images; described by its docstring. None stands for an option not given.
Source = Callable[..., ImageSource]


def load_source(
    name: str, root: str | os.PathLike[str] | None = None, split: str = "train", **options: Any
) -> ImageSource:
    """The `train` or `test` split of a source; `root` is the folder it lives in (default: `default_root()`).

    `options` are keyword-only parameters of the source, such as `label_column`. None is an option that is not given.
    """
    given = given_options(name, options)
    if split not in SPLITS:
        raise unknown("split", split, SPLITS)
    return SOURCES[name](None if root is None else Path(root).expanduser(), split, **given)


def given_options(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """The options that are not None, or a ValueError that names one that the source does not take."""
    source = lookup(SOURCES, name, "dataset")
    given = {option: value for option, value in options.items() if value is not None}
    check_options(source, given, f"dataset '{name}'")
    return given


def _digits(root: Path | None, split: str) -> ImageSource:
    """scikit-learn's 1,797 digits, 8×8; the same 36 of each class are the test split, whatever the seed of a run."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    in_test = np.zeros(len(bunch.target), dtype=bool)
    in_test[sample_indices(bunch.target, [36] * 10, seed=1797)] = True
    chosen = in_test if split == "test" else ~in_test
    images = np.rint(bunch.images[chosen] * (255 / 16)).astype(np.uint8)  # values 0..16 become 0..255
    class_names = [str(digit) for digit in bunch.target_names]
    return ImageSource("digits", images, bunch.target[chosen].astype(np.int64), class_names)


def _published(name: str) -> Source:
    def load(root: Path | None, split: str) -> ImageSource:
        return load_published(name, root, split)

    load.__doc__ = PUBLISHED[name].summary
    return load


def _imagefolder(root: Path | None, split: str) -> ImageSource:
    """A user's pictures in root/train/<class>/ and root/test/<class>/ (or val/); train's folders are the classes."""
    root = _given("imagefolder", root, "a folder with train/<class>/ and test/<class>/")
    class_names = [folder.name for folder in _folders(_split_folder(root, "train"))]
    folder = _split_folder(root, split)
    strange = [found.name for found in _folders(folder) if found.name not in class_names]
    if strange:
        raise ValueError(f"{folder} has classes that {root / 'train'} does not have: {', '.join(strange)}")
    pictures = [_pictures(folder / name) for name in class_names]
    empty = [name for name, of_class in zip(class_names, pictures, strict=True) if not of_class]
    if empty and (split == "train" or len(empty) == len(class_names)):
        raise ValueError(
            f"{folder} has no picture of class {', '.join(empty)}; looked for {' '.join(_PICTURE_SUFFIXES)}"
        )
    targets = np.repeat(np.arange(len(pictures)), [len(of_class) for of_class in pictures])
    return ImageSource("imagefolder", [file for of_class in pictures for file in of_class], targets, class_names)


def _tiny_imagenet(root: Path | None, split: str) -> ImageSource:
    """Tiny-ImageNet, 64×64 in 200 classes, unpacked to root (or tiny-imagenet-200 below the default root)."""
    return load_tiny_imagenet(root or default_root() / "tiny-imagenet-200", split)


def _imagenet(root: Path | None, split: str) -> ImageSource:
    """ImageNet in its folders root/train/<class>/ and root/val/<class>/."""
    root = _given("imagenet", root, "the folder with ImageNet's train/<class>/ and val/<class>/")
    return replace(_imagefolder(root, split), name="imagenet")


def _imagenet_lt(root: Path | None, split: str) -> ImageSource:
    """ImageNet-LT in root: its published lists beside ImageNet's folders or Parquet files; or its own images."""
    root = _given("imagenet_lt", root, "a folder with ImageNet_LT_train.txt, train-*.parquet or train/<class>/")
    if (root / "ImageNet_LT_train.txt").is_file():
        return load_imagenet_lt(root, split)
    if find_shards(root, "train"):
        return load_shards("imagenet_lt", root, split)
    return replace(_imagefolder(root, split), name="imagenet_lt")


def _parquet(
    root: Path | None, split: str, *, label_column: str | None = None, image_column: str | None = None
) -> ImageSource:
    """A user's Parquet files root/train*.parquet and root/test*.parquet, or validation*, as `datasets` writes them."""
    root = _given("parquet", root, "a folder with train*.parquet and test*.parquet")
    return load_shards("parquet", root, split, label_column=label_column, image_column=image_column)


def _given(name: str, root: Path | None, expected: str) -> Path:
    if root is None:
        raise DatasetMissing(f"dataset '{name}' needs dataset.root, {expected}")
    return root


def _split_folder(root: Path, split: str) -> Path:
    candidates = [root / folder for folder in _SPLIT_FOLDERS[split]]
    for candidate in candidates:
        if candidate.is_dir():
            return candidate
    expected = " or ".join(f"{candidate}/<class>/<picture>" for candidate in candidates)
    raise DatasetMissing(f"dataset 'imagefolder' has no {split} split: expected {expected}")


def _folders(folder: Path) -> list[Path]:
    return sorted(entry for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def _pictures(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in _PICTURE_SUFFIXES)


_SPLIT_FOLDERS = {"train": ("train",), "test": ("test", "val")}
_PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
_UFM_CLASSES = (10, 100, 200, 1000)

SOURCES: dict[str, Source] = {
    "digits": _digits,
    **{name: _published(name) for name in PUBLISHED},
    "tiny_imagenet": _tiny_imagenet,
    "imagenet": _imagenet,
    "imagenet_lt": _imagenet_lt,
    "imagefolder": _imagefolder,
    "parquet": _parquet,
    **{f"ufm{num_classes}": numbered_source(num_classes) for num_classes in _UFM_CLASSES},
}
# How many classes a source has, where that is known before it is read; a folder of ImageNet's may hold some of them.
NUM_CLASSES: dict[str, int] = {
    **{name: 10 for name in ("digits", "mnist", "fmnist", "cifar10", "svhn", "stl10")},
    "emnist": 47,
    "cifar100": 100,
    "tiny_imagenet": 200,
    **{f"ufm{num_classes}": num_classes for num_classes in _UFM_CLASSES},
}
