"""A long-tailed train split and unchanged evaluation splits, frozen on disk. DVC versions this folder."""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ncflow.data.damaged import refuse_damaged, without_damaged
from ncflow.data.identity import is_same, remember, remembered
from ncflow.data.images import ImageSource
from ncflow.data.labels import shown
from ncflow.data.longtail import Indices
from ncflow.data.manifest import COUNTS, MANIFEST, Manifest, damaged, read_manifest, write_manifest
from ncflow.data.overlap import shared_with_training
from ncflow.data.parquet import ContentDamaged, read_images, read_targets, write_split
from ncflow.data.recipe import SOURCE_OPTIONS, Parts, PathLike, Recipe
from ncflow.files import folder_next_to
from ncflow.lookup import unknown

if TYPE_CHECKING:
    from datasets import Dataset


@dataclass(frozen=True)
class Snapshot:
    """A folder of K classes of images: a Parquet file per split, and a manifest that describes and hashes them.

    Examples:
        >>> snapshot = Snapshot.create(folder / "digits", name="digits", imb_factor=0.1, samples_per_class=100)
        >>> snapshot.class_counts
        [100, 77, 59, 46, 35, 27, 21, 16, 12, 10]
        >>> Snapshot.load(folder / "digits").digest == snapshot.digest
        True
    """

    path: Path
    manifest: Manifest = field(repr=False, hash=False)

    @classmethod
    def create(cls, path: PathLike, **choices: Any) -> Snapshot:
        """Write the snapshot of a `Recipe(**choices)`; `name` is required. The same choices give the same bytes.

        The folder appears at `path` only when it is complete. Raises ValueError if `path` is not new or empty.
        """
        path, recipe = Path(path), Recipe(**choices)
        if path.exists() and not path.is_dir():
            raise ValueError(f"{path} is a file; expected a new folder, or one that is empty")
        if path.exists() and any(path.iterdir()):
            raise ValueError(f"{path} is not empty; expected a new folder, or one that is empty")
        splits = recipe.load()
        listing = recipe.listing(splits)
        own = recipe.own_root is not None and listing.files
        description = recipe.description() | ({"source_listing": listing.content} if own else {})
        sums = {"source_sha256": {split: source.checksum for split, source in splits.items()}}
        if recipe.on_damaged == "skip":
            splits, left_out = without_damaged(splits, recipe.own_root)
            description |= {"damaged": left_out} if left_out else {}
        with folder_next_to(path) as temporary:
            folder = temporary / path.name
            folder.mkdir()
            manifest = write_manifest(folder, description | _write_splits(folder, splits, recipe) | sums)
            folder.replace(path)
        remember(_record(path), listing)
        for note in _notes(manifest):
            logging.getLogger("ncflow").warning("%s: %s", path.name, note)
        return cls(path, manifest)

    @classmethod
    def load(cls, path: PathLike) -> Snapshot:
        """Open a snapshot after verifying the hash of every file in it.

        Raises SnapshotDamaged that names a damaged file, and ValueError if the folder is missing.
        """
        if not Path(path).is_dir():
            raise ValueError(
                f"there is no snapshot {path}; fetch it with `dvc pull`, or make it with `ncflow snapshot`"
            )
        return cls(Path(path), read_manifest(Path(path)))

    @classmethod
    def obtain(cls, path: PathLike, **choices: Any) -> Snapshot:
        """Load the snapshot of a `Recipe(**choices)` at `path`, or create it if nothing is there.

        Raises ValueError if `path` holds another snapshot or the source data changed.
        """
        from filelock import FileLock

        path, recipe = Path(path), Recipe(**choices)
        if not (path / MANIFEST).exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(path.parent / f".{path.name}.lock"):  # only one of several processes creates it
                if not (path / MANIFEST).exists():
                    cls.create(path, **choices)
        snapshot = cls.load(path)
        snapshot._refuse_if_other(recipe)
        snapshot._refuse_if_changed(recipe)
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

    def counts_of(self, split: str) -> list[int]:
        """Samples of each of the K classes in a split. Raises ValueError for a split that is not in `splits`."""
        if split not in self.splits:
            raise unknown("split", split, self.splits)
        of = self.manifest
        counts = {
            "train": of["class_counts"],
            "val": of.get("val_class_counts", []),
            "test": of["test_class_counts"],
        }
        return list(counts[split])

    @property
    def splits(self) -> tuple[str, ...]:
        """The names of the splits: train, val if there is one, and test."""
        return tuple(split for split in ("train", "val", "test") if f"{split}.parquet" in self.manifest["files"])

    @property
    def digest(self) -> str:
        """sha256 over the manifest, which contains the hash of every file."""
        return str(self.manifest["digest"])

    def dataset(self, split: str) -> Dataset:
        """Open a split as a memory-mapped Hugging Face data set. Its images decode to PIL."""
        from datasets import Dataset

        return Dataset.from_parquet(str(self.file(split)))

    def targets(self, split: str) -> torch.Tensor:
        """Labels (N,) of a split in stored order.

        Raises SnapshotDamaged if the labels do not match the counts in the manifest.
        """
        try:
            targets = read_targets(self.file(split))
        except ContentDamaged as error:
            raise damaged(self.file(split), str(error)) from error
        if len(targets) and not 0 <= targets.min() <= targets.max() < self.num_classes:
            raise damaged(self.file(split), f"labels must lie in 0..{self.num_classes - 1}")
        if np.bincount(targets, minlength=self.num_classes).tolist() != self.counts_of(split):
            raise damaged(self.file(split), f"its labels are not those that {MANIFEST} counts as {COUNTS[split]}")
        return torch.from_numpy(targets)

    def encoded_images(self, split: str) -> Iterator[bytes]:
        """Yield the content of each picture file in stored order; `decode_image` decodes it."""
        try:
            yield from read_images(self.file(split))
        except ContentDamaged as error:
            raise damaged(self.file(split), str(error)) from error

    def file(self, split: str) -> Path:
        """The Parquet file of a split."""
        if split not in self.splits:
            raise unknown("split", split, self.splits)
        return self.path / f"{split}.parquet"

    def _refuse_if_other(self, recipe: Recipe) -> None:
        asked = recipe.description()
        found = Recipe(self.name).description() | self.manifest  # a key missing in an older manifest has its default
        keys = dict.fromkeys([*asked, *SOURCE_OPTIONS])  # a source option that is not given is in neither
        if recipe.place is not None:  # then the content is compared, and the folder name does not matter
            del keys["folder"]
        if other := [key for key in keys if found.get(key) != asked.get(key)]:
            differences = ", ".join(f"{key} is {_plain(found.get(key))}, asked for {asked.get(key)!r}" for key in other)
            raise ValueError(f"{self.path} holds another snapshot: {differences}; use another folder")

    def _refuse_if_changed(self, recipe: Recipe) -> None:
        """Raise if the source files now hold other pictures. Without source files, skip the check.

        The content is read only if a file's size or time differs, or this machine has no record of it.
        """
        kept, now = remembered(_record(self.path)), recipe.listing()
        if not now.files or is_same(kept, now):
            return
        sums, made = {split: source.checksum for split, source in recipe.load().items()}, self.manifest["source_sha256"]
        if sums != made:
            other = [split for split in dict.fromkeys([*made, *sums]) if made.get(split) != sums.get(split)]
            named = kept.changes(now) if kept is not None and len(kept.files) > 1 else ""
            changes = named or f"the pictures or classes of {' and '.join(other)} are others"
            free = ", or omit it to name the folder after the data" if recipe.folder_name != self.path.name else ""
            raise ValueError(
                f"{self.path} was made of other data than {recipe.place} holds now: {changes}; write a snapshot "
                f"of the new data to another folder with --out or --snapshot{free}"
            )
        remember(_record(self.path), now)


def _plain(choice: Any) -> str:
    """A choice in a manifest, for a message. The file may be untrusted, so only numbers and plain names are shown."""
    name = isinstance(choice, str) and re.fullmatch(r"[\w .=+-]{1,80}", choice)
    return repr(choice) if name or choice is None or isinstance(choice, int | float) else "another one"


def _record(path: Path) -> Path:
    """The file next to a snapshot that lists its source on this machine. File times differ per machine."""
    return path.parent / f".{path.name}.source.json"


def _notes(manifest: Manifest) -> Iterator[str]:
    """Yield the notes on a snapshot for the user, one per line."""
    yield from manifest.get("notes", [])
    if asked := manifest.get("asked_class_counts"):
        pairs = zip(manifest["class_names"], asked, manifest["class_counts"], strict=True)
        short = [f"{name} has {got} of {count}" for name, count, got in pairs if got < count]
        yield f"{len(short)} classes have fewer samples than the profile asks for: {shown(short)}"
    for split, count in manifest.get("shared_with_train", {}).items():
        yield f"{count} pictures of the {split} split are in the training split too, byte for byte"
    for split, found in manifest.get("damaged", {}).items():
        yield f"{found['count']} damaged pictures of the {split} split are left out: {shown(found['first'])}"


def _write_splits(folder: Path, splits: dict[str, ImageSource], recipe: Recipe) -> dict[str, Any]:
    """Write the Parquet files and describe them."""
    train, test, parts = splits["train"], splits["test"], recipe.apply(splits["train"])
    unseen = not test.is_training  # if test is train, no sample is unseen
    if len(parts.held_out) and not unseen:
        raise ValueError(f"'{train.name}' has no unseen samples, so none for validation; set dataset.val_fraction=0")
    chosen = {"train": (parts.source, parts.train), "val": (train, parts.held_out)}
    if "val" in splits:
        chosen["val"] = (splits["val"], np.arange(len(splits["val"])))
    chosen["test"] = (test, np.arange(len(test)) if unseen else parts.train)
    chosen = {split: (source, indices) for split, (source, indices) in chosen.items() if len(indices)}
    shared = shared_with_training(chosen) if unseen else {}
    pixels = {split: write_split(folder / f"{split}.parquet", *content) for split, content in chosen.items()}
    refuse_damaged({name: reason for summary in pixels.values() for name, reason in summary.damaged.items()})
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
        **_remarks(splits, parts, shared),
    }


def _remarks(splits: dict[str, ImageSource], parts: Parts, shared: dict[str, int]) -> dict[str, Any]:
    """Unusual facts about the data, for the manifest; empty if there are none."""
    notes = list(dict.fromkeys(note for source in splits.values() for note in source.notes))
    got = np.bincount(parts.source.targets[parts.train], minlength=len(parts.source.class_names)).tolist()
    lacking = parts.asked is not None and any(have < want for have, want in zip(got, parts.asked, strict=True))
    # With the native imbalance, the requested count is an upper limit.
    found = {"notes": notes, "shared_with_train": shared, "asked_class_counts": lacking and parts.asked}
    return {key: value for key, value in found.items() if value}


def _class_counts(chosen: dict[str, tuple[ImageSource, Indices]], clean: ImageSource) -> dict[str, list[int]]:
    """Samples of each of the K classes in each split; for a noisy training split, also the true counts."""
    targets = {COUNTS[split]: source.targets[indices] for split, (source, indices) in chosen.items()}
    truth = clean.targets[chosen["train"][1]]
    if not np.array_equal(targets["class_counts"], truth):
        targets["clean_class_counts"] = truth
    num_classes = len(clean.class_names)
    return {name: np.bincount(labels, minlength=num_classes).tolist() for name, labels in targets.items()}
