"""A long-tailed train split and the untouched ones to measure on, frozen on disk: what DVC versions."""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ncflow.data.images import ImageSource
from ncflow.data.longtail import Indices
from ncflow.data.manifest import MANIFEST, read_manifest, write_manifest
from ncflow.data.parquet import read_images, read_targets, write_split
from ncflow.data.recipe import SOURCE_OPTIONS, Parts, PathLike, Recipe
from ncflow.data.sources import SPLITS, load_source
from ncflow.lookup import unknown

if TYPE_CHECKING:
    from datasets import Dataset


@dataclass(frozen=True)
class Snapshot:
    """A folder of K classes of images: a Parquet file per split, and a manifest that describes and hashes them."""

    path: Path
    manifest: dict[str, Any] = field(repr=False, hash=False)

    @classmethod
    def create(cls, path: PathLike, **choices: Any) -> Snapshot:
        """Write the snapshot of a `Recipe(**choices)`, at least its `name`. Same choices, same bytes.

        It appears at `path` complete or not at all.
        """
        path, recipe = Path(path), Recipe(**choices)
        if path.exists() and any(path.iterdir()):
            raise ValueError(f"{path} is not empty; delete it to build the snapshot again")
        options = recipe.source_options
        train, test = (load_source(recipe.name, recipe.root, split, **options) for split in SPLITS)
        parts = recipe.apply(train)
        with _beside(path) as temporary:
            folder = temporary / path.name
            folder.mkdir()
            manifest = write_manifest(folder, recipe.description() | _write_splits(folder, train, test, parts))
            folder.replace(path)
        return cls(path, manifest)

    @classmethod
    def load(cls, path: PathLike) -> Snapshot:
        """Open a snapshot after verifying the hash of every file in it; a damaged one is refused by name."""
        return cls(Path(path), read_manifest(Path(path)))

    @classmethod
    def obtain(cls, path: PathLike, **choices: Any) -> Snapshot:
        """The snapshot of a `Recipe(**choices)` at `path`: loaded, or created if nothing is there; no other one's."""
        from filelock import FileLock

        path, recipe = Path(path), Recipe(**choices)
        if not (path / MANIFEST).exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(path.parent / f".{path.name}.lock"):  # of processes that start together, one creates it
                if not (path / MANIFEST).exists():
                    cls.create(path, **choices)
        snapshot = cls.load(path)
        snapshot._refuse_if_other(recipe.description())
        return snapshot

    @staticmethod
    def default_name(**choices: Any) -> str:
        """The folder name of a `Recipe(**choices)`, such as `digits-exp-0.02-seed0`."""
        return Recipe(**choices).folder_name

    @property
    def name(self) -> str:
        """The source's name."""
        return str(self.manifest["name"])

    @property
    def class_names(self) -> list[str]:
        return list(self.manifest["class_names"])

    @property
    def num_classes(self) -> int:
        return len(self.manifest["class_names"])

    @property
    def class_counts(self) -> list[int]:
        """Training samples of each of the K classes, by the labels that training sees."""
        return list(self.manifest["class_counts"])

    @property
    def splits(self) -> tuple[str, ...]:
        """train and test, and val between them if a part of the source was held out."""
        return tuple(split for split in ("train", "val", "test") if f"{split}.parquet" in self.manifest["files"])

    @property
    def digest(self) -> str:
        """sha256 over the manifest and, through it, over every file."""
        return str(self.manifest["digest"])

    def dataset(self, split: str) -> Dataset:
        """A split as a Hugging Face data set, memory-mapped; its images decode to PIL."""
        from datasets import Dataset

        return Dataset.from_parquet(str(self.file(split)))

    def targets(self, split: str) -> torch.Tensor:
        """Labels (N,) in stored order."""
        return torch.from_numpy(read_targets(self.file(split)))

    def encoded_images(self, split: str) -> Iterator[bytes]:
        """The content of each picture file in stored order; `decode_image` makes an image of it."""
        return read_images(self.file(split))

    def file(self, split: str) -> Path:
        """The Parquet file of a split."""
        if split not in self.splits:
            raise unknown("split", split, self.splits)
        return self.path / f"{split}.parquet"

    def _refuse_if_other(self, asked: dict[str, Any]) -> None:
        found = Recipe(self.name).description() | self.manifest  # what an older manifest does not say is the default
        keys = dict.fromkeys([*asked, *SOURCE_OPTIONS])  # an option of the source that is not given is in neither
        if other := [key for key in keys if found.get(key) != asked.get(key)]:
            differences = ", ".join(f"{key} is {found.get(key)!r}, asked for {asked.get(key)!r}" for key in other)
            raise ValueError(f"{self.path} holds another snapshot: {differences}; use another folder or delete it")


@contextmanager
def _beside(path: Path) -> Iterator[Path]:
    """A temporary folder beside `path`; a disk that is full or must not be written to is an error that names `path`."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=path.parent, prefix=f".{path.name}-") as temporary:
            yield Path(temporary)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS):
            raise
        reason = os.strerror(error.errno)
        raise OSError(f"cannot write {path}: {reason}; mend this, and the same command makes it") from error


def _write_splits(folder: Path, train: ImageSource, test: ImageSource, parts: Parts) -> dict[str, Any]:
    """Write the Parquet files and describe them."""
    # Where test is train, as for unconstrained features, it has no sample that training left out either.
    unseen = test.checksum != train.checksum
    if len(parts.held_out) and not unseen:
        raise ValueError(f"'{train.name}' has no unseen samples, so there is none to validate on; leave val_fraction 0")
    chosen = {"train": (parts.source, parts.train), "val": (train, parts.held_out)}
    chosen["test"] = (test, np.arange(len(test)) if unseen else parts.train)
    chosen = {split: (source, indices) for split, (source, indices) in chosen.items() if len(indices)}
    pixels = {split: write_split(folder / f"{split}.parquet", *content) for split, content in chosen.items()}
    mode = "L" if set.union(*(summary.modes for summary in pixels.values())) == {"L"} else "RGB"
    sizes = set.union(*(summary.sizes for summary in pixels.values()))
    mean, std = pixels["train"].moments(channels=len(mode))
    return {
        "class_names": train.class_names,
        **_class_counts(chosen, train),
        "image_mode": mode,
        "image_size": [*sizes.pop()] if len(sizes) == 1 else None,  # height and width; None where they vary
        "pixel_mean": mean,
        "pixel_std": std,
        "indices_sha256": hashlib.sha256(parts.train.astype("<i8").tobytes()).hexdigest(),
        "source_sha256": {"train": train.checksum, "test": test.checksum},
    }


def _class_counts(chosen: dict[str, tuple[ImageSource, Indices]], clean: ImageSource) -> dict[str, list[int]]:
    """Samples of each of the K classes in each split; of a noisy training split also those that truly are of it."""
    names = {"train": "class_counts", "val": "val_class_counts", "test": "test_class_counts"}
    targets = {names[split]: source.targets[indices] for split, (source, indices) in chosen.items()}
    truth = clean.targets[chosen["train"][1]]
    if not np.array_equal(targets["class_counts"], truth):
        targets["clean_class_counts"] = truth
    num_classes = len(clean.class_names)
    return {name: np.bincount(labels, minlength=num_classes).tolist() for name, labels in targets.items()}
