"""Sources of images and labels: one name per source, and one interface for all."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ncflow.data.folders import load_folders
from ncflow.data.images import DatasetMissing, ImageSource, SplitMissing
from ncflow.data.listed import load_imagenet_lt, load_listed, load_tiny_imagenet
from ncflow.data.longtail import sample_indices
from ncflow.data.numbered import numbered_source
from ncflow.data.published import PUBLISHED, default_root, load_published
from ncflow.data.shards import find_shards, load_shards
from ncflow.extras import require
from ncflow.lookup import check_options, fact, facts, lookup, unknown

SPLITS = ("train", "test")
# (root, split, options by keyword) -> images. The docstring describes the source. None is an option not given.
Source = Callable[..., ImageSource]


def load_source(
    name: str, root: str | os.PathLike[str] | None = None, split: str = "train", **options: Any
) -> ImageSource:
    """Load the `train`, `val` or `test` split of a source from the folder `root` (default: `default_root()`).

    `options` are keyword-only parameters of the source, such as `label_column`. None is an option that is not given.
    Raises ValueError for an unknown name, split or option, and SplitMissing if the source has no such split.

    Examples:
        >>> source = load_source("digits", split="test")
        >>> len(source.targets)
        360
    """
    given = given_options(name, options)
    if split not in (*SPLITS, "val"):
        raise unknown("split", split, (*SPLITS, "val"))
    if split == "val" and not fact(SOURCES[name], "own_files"):
        raise SplitMissing(f"dataset '{name}' has no validation split; hold one out with dataset.val_fraction")
    return SOURCES[name](None if root is None else Path(root).expanduser(), split, **given)


def given_options(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """The options that are not None. Raises ValueError that names an option that the source does not take."""
    source = lookup(SOURCES, name, "dataset")
    given = {option: value for option, value in options.items() if value is not None}
    check_options(source, given, f"dataset '{name}'")
    return given


def count_classes(name: str, root: str | os.PathLike[str] | None = None, **options: Any) -> int | None:
    """The number of classes of a source: read from a user's own data, else known by its name, else None.

    Errors in the data are not raised here. They are raised when the data is loaded for use.
    """
    source = lookup(SOURCES, name, "dataset")
    if fact(source, "own_files") and root is not None:
        with suppress(OSError, ValueError):
            return len(load_source(name, root, "train", **options).class_names)
    known: int | None = fact(source, "num_classes")
    return known


@facts(num_classes=10, built_in=True)
def _digits(root: Path | None, split: str) -> ImageSource:
    """scikit-learn's 1,797 digits, 8×8; the same 36 of each class are the test split for every seed."""
    pixels, targets = _read_digits()
    in_test = np.zeros(len(targets), dtype=bool)
    in_test[sample_indices(targets, [36] * 10, seed=1797)] = True
    chosen = in_test if split == "test" else ~in_test
    images = np.rint(pixels[chosen].reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)  # values 0..16 become 0..255
    return ImageSource("digits", images, targets[chosen], [str(digit) for digit in range(10)])


def _read_digits() -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    """Pixels (N,64) in 0..16 and targets (N,) of scikit-learn's file. Importing the package would take a second."""
    require("sklearn")
    package = find_spec("sklearn")
    file = Path(package.origin if package and package.origin else "").parent / "datasets" / "data" / "digits.csv.gz"
    if file.is_file():
        rows = np.loadtxt(file, delimiter=",")
        return rows[:, :-1], rows[:, -1].astype(np.int64)
    from sklearn.datasets import load_digits  # a version that keeps its data elsewhere

    pixels, targets = load_digits(return_X_y=True)
    return pixels, targets.astype(np.int64)


def _published(name: str) -> Source:
    def load(root: Path | None, split: str) -> ImageSource:
        return load_published(name, root, split)

    load.__doc__ = PUBLISHED[name].summary
    return facts(num_classes=PUBLISHED[name].num_classes)(load)


@facts(own_files=True)
def _imagefolder(root: Path | None, split: str) -> ImageSource:
    """A user's pictures in root/train/<class>/ and root/test/<class>/ (or val/); train's folders are the classes."""
    return load_folders(
        "imagefolder", _given("imagefolder", root, "a folder with train/<class>/ and test/<class>/"), split
    )


@facts(num_classes=200)
def _tiny_imagenet(root: Path | None, split: str) -> ImageSource:
    """Tiny-ImageNet, 64×64 in 200 classes, unpacked to root (or tiny-imagenet-200 below the default root)."""
    return load_tiny_imagenet(root or default_root() / "tiny-imagenet-200", split)


# An ImageNet folder may hold only some of the classes. Then the folder defines the classes.
@facts(own_files=True, num_classes=1000, image_size=224)
def _imagenet(root: Path | None, split: str) -> ImageSource:
    """ImageNet in its folders root/train/<class>/ and root/val/<class>/."""
    return load_folders(
        "imagenet", _given("imagenet", root, "the folder with ImageNet's train/<class>/ and val/<class>/"), split
    )


@facts(own_files=True, num_classes=1000, image_size=224)
def _imagenet_lt(root: Path | None, split: str) -> ImageSource:
    """ImageNet-LT in root: its published lists next to ImageNet's folders or Parquet files, or its own images."""
    root = _given("imagenet_lt", root, "a folder with ImageNet_LT_train.txt, train-*.parquet or train/<class>/")
    if (root / "ImageNet_LT_train.txt").is_file():
        return load_imagenet_lt(root, split)
    if find_shards(root, "train"):
        return load_shards("imagenet_lt", root, split)
    return load_folders("imagenet_lt", root, split)


@facts(own_files=True)
def _listed(root: Path | None, split: str, *, lists: Mapping[str, str] | None = None) -> ImageSource:
    """Pictures below root, listed in text files with one path and class a line; such as Places-LT, iNaturalist."""
    return load_listed(
        "listed", _given("listed", root, "the folder that the paths in the lists start from"), split, lists=lists
    )


@facts(own_files=True)
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


_UFM_CLASSES = (10, 100, 200, 1000)

# A row: (root, split, options by keyword) -> images; its docstring is its summary. Its facts, all optional:
# num_classes    the number of classes, if it is known before the data is read
# own_files      whether it reads the user's own files, which may have a validation split
# image_size     the usual image size in pixels, default 32
# built_in       whether it needs no folder
# numbered       whether its images only number the samples of unconstrained features
SOURCES: dict[str, Source] = {
    "digits": _digits,
    **{name: _published(name) for name in PUBLISHED},
    "tiny_imagenet": _tiny_imagenet,
    "imagenet": _imagenet,
    "imagenet_lt": _imagenet_lt,
    "imagefolder": _imagefolder,
    "listed": _listed,
    "parquet": _parquet,
    **{f"ufm{num_classes}": numbered_source(num_classes) for num_classes in _UFM_CLASSES},
}
