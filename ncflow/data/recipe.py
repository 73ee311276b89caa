"""The data recipe: hold out a validation part, then add label noise, then make classes rare."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from ncflow.data.identity import Listing
from ncflow.data.images import ImageSource
from ncflow.data.labels import shown
from ncflow.data.longtail import Indices, hold_out, sample_indices, tail_counts
from ncflow.data.manifest import SOURCE_NAME
from ncflow.data.noise import noisy_targets
from ncflow.data.published import PUBLISHED, default_root, published_files
from ncflow.data.splits import load_splits
from ncflow.lookup import unknown

PathLike = str | os.PathLike[str]


@dataclass(frozen=True)
class Recipe:
    """The choices that make a snapshot. `seed` decides every random choice.

    `val_fraction` of each class is held out first. Its labels stay correct, and its classes are as balanced as the
    source. `label_noise` is the share of the other labels that are replaced by another class. The tail is cut from
    these noisy labels, so they follow the profile exactly. If the source is balanced, every class has the same share
    of wrong labels. Noise on a finished tail would fill the rare classes with samples of the frequent ones.
    `samples_per_class` is the size of the most frequent class (None: N // K). `min_samples` is the least size of the
    rarest class. `class_order` selects the classes that become rare. It is "name" (the last in the source's
    numbering) or "frequency" (the smallest). It can also be a list of all names, most frequent first. If the source
    has one split only, `test_fraction` of each class becomes the test split. `on_damaged` is "refuse" or "skip", for
    pictures that cannot be decoded. The fields in SOURCE_OPTIONS and in `options` are options of the source. The source
    rejects options that it does not take.
    Raises ValueError for an invalid `name`, `class_order` or `on_damaged`.

    Examples:
        >>> Recipe("digits", imb_factor=0.02, seed=1).val_fraction
        0.0
    """

    name: str
    root: PathLike | None = None
    imb_type: str = "exp"
    imb_factor: float = 0.01
    seed: int = 0
    val_fraction: float = 0.0
    label_noise: float = 0.0
    samples_per_class: int | None = None
    min_samples: int = 0
    class_order: str | Sequence[str] = "name"
    test_fraction: float = 0.0
    on_damaged: str = "refuse"
    label_column: str | None = None
    image_column: str | None = None
    lists: Mapping[str, str] | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if isinstance(self.class_order, str) and self.class_order not in ORDERS:
            raise unknown("class_order", self.class_order, [*ORDERS, "a list of all class names"])
        if self.on_damaged not in ("refuse", "skip"):
            raise unknown("on_damaged", self.on_damaged, ("refuse", "skip"))
        if not re.fullmatch(SOURCE_NAME, self.name):
            raise ValueError(f"expected a dataset name of letters, digits and _ . = + - only, got {self.name!r}")

    @property
    def folder_name(self) -> str:
        """The folder name, such as `digits-exp-0.02-seed0`, or `digits-exp-0.02-val0.1-noise0.2-max50-min1-seed0`.

        A user's own data is named after its folder and its files: `imagefolder-pics-1f0c9a2b-exp-0.01-seed0`.
        """
        options: dict[str, Any] = {"test": self.test_fraction, "val": self.val_fraction, "noise": self.label_noise}
        options |= {"max": self.samples_per_class, "min": self.min_samples}
        chosen = [f"{option}{value}" for option, value in options.items() if value]
        chosen += [f"order={_plain(self.class_order)}"] if self.class_order != "name" else []
        chosen += ["skip"] if self.on_damaged == "skip" else []
        chosen += [f"{option}={_plain(value)}" for option, value in self.source_options.items()]
        return "-".join([*self._origin, self.imb_type, f"{self.imb_factor:g}", *chosen, f"seed{self.seed}"])

    @property
    def _origin(self) -> list[str]:
        """The source name and, for a user's own data, its folder and 8 hex digits of its listing."""
        if self.own_root is None:
            return [self.name]
        try:
            listing = Listing.of(self.own_root, self.load())
        except (OSError, ValueError):  # errors in the data are raised when it is read
            return [self.name, _plain(_folder(self.own_root))]
        own = [_plain(_folder(self.own_root)), listing.content[:8]]
        return [self.name, *own] if listing.files else [self.name]

    @property
    def own_root(self) -> Path | None:
        """The folder of a user's own data, or None for data that is the same everywhere."""
        return None if self.root is None or self.name in PUBLISHED else Path(self.root).expanduser()

    @property
    def place(self) -> Path | None:
        """The folder that the data is read from; None for built-in data, or if the folder is missing or empty.

        A snapshot fetched with DVC is used without its source. A missing mount leaves an empty folder.
        """
        place = Path(self.root).expanduser() if self.root is not None else DEFAULT_PLACES.get(self.name, lambda: None)()
        return place if place is not None and place.is_dir() and any(place.iterdir()) else None

    def listing(self, splits: Mapping[str, ImageSource] | None = None) -> Listing:
        """List the files below `place`; empty if there are none. A published data set is listed without reading it."""
        place = self.place
        if place is None:
            return Listing("", {})
        if self.name in PUBLISHED:
            return Listing.of_files(place, published_files(self.name, place))
        return Listing.of(place, self.load() if splits is None else splits)

    def load(self) -> dict[str, ImageSource]:
        """Load the splits of the source: train and test, and val if the source has one.

        Raises ValueError if the source has a val split and `val_fraction` is not 0.
        """
        splits = load_splits(
            self.name, self.root, test_fraction=self.test_fraction, seed=self.seed, **self.source_options
        )
        if "val" in splits and self.val_fraction:
            raise ValueError(
                f"dataset '{self.name}' has a validation split of {len(splits['val'])} pictures: expected "
                f"dataset.val_fraction=0, got {self.val_fraction:g}"
            )
        return splits

    @property
    def source_options(self) -> dict[str, Any]:
        """The given options of the source."""
        named = {option: value for option in SOURCE_OPTIONS if (value := getattr(self, option)) is not None}
        return named | dict(self.options)

    def description(self) -> dict[str, Any]:
        """The choices without machine paths. Options of the source that are not given are left out.

        Of the root, it keeps only the folder name, and only if another root holds other data.
        """
        choices = {key: value for key, value in asdict(self).items() if key not in (*SOURCE_OPTIONS, "options")}
        choices |= self.source_options
        root = choices.pop("root")
        folder = _folder(Path(root)) if root is not None and self.name not in PUBLISHED else None
        shares = {key: float(choices[key]) for key in ("imb_factor", "val_fraction", "label_noise", "test_fraction")}
        order = self.class_order if isinstance(self.class_order, str) else list(self.class_order)
        return {"name": self.name, "folder": folder} | choices | shares | {"class_order": order}

    def apply(self, source: ImageSource) -> Parts:
        """Choose the samples of a source's training split to train on and to hold out."""
        targets, num_classes = source.targets, len(source.class_names)
        rest, held_out = np.arange(len(targets), dtype=np.int64), np.array([], dtype=np.int64)
        if self.val_fraction:
            rest, held_out = hold_out(targets, num_classes, fraction=self.val_fraction, seed=self.seed)
        labels = targets.copy()
        if self.label_noise:
            labels[rest] = noisy_targets(targets[rest], num_classes, fraction=self.label_noise, seed=self.seed)
        asked = tail_counts(
            labels[rest],
            num_classes,
            imb_type=self.imb_type,
            imb_factor=self.imb_factor,
            n_max=self.samples_per_class,
            n_min=self.min_samples,
            order=class_order(self.class_order, source.class_names, labels[rest]),
            names=source.class_names,
        )
        tail = np.arange(len(rest)) if asked is None else sample_indices(labels[rest], asked, seed=self.seed)
        return Parts(replace(source, targets=labels), rest[tail], held_out, asked)


@dataclass(frozen=True, eq=False)
class Parts:
    """The training split with the labels that training sees; indices to train on and to hold out for validation.

    asked (K,): the number of samples of each class that the profile requests; None if all samples are kept.
    """

    source: ImageSource
    train: Indices
    held_out: Indices
    asked: list[int] | None = None


def class_order(order: str | Sequence[str], names: Sequence[str], targets: Indices) -> list[int] | None:
    """The classes from the most frequent to the rarest; None for the order of their numbers.

    A list must name every class once. Raises ValueError that names missing, unknown and repeated classes.
    """
    if isinstance(order, str):
        sizes = np.bincount(targets, minlength=len(names))
        return np.argsort(-sizes, kind="stable").tolist() if order == "frequency" else None
    given = [str(name) for name in order]
    wrong = {
        "missing": [name for name in names if name not in given],
        "unknown": [name for name in given if name not in names],
        "given twice": sorted({name for name in given if given.count(name) > 1}),
    }
    if found := [f"{kind}: {shown(those)}" for kind, those in wrong.items() if those]:
        raise ValueError(f"dataset.class_order must list each of the {len(names)} classes once; {'; '.join(found)}")
    return [list(names).index(name) for name in given]


def _folder(root: Path) -> str:
    """The last name of a path, without following links. It does not depend on the target of a link."""
    return Path(os.path.normpath(root.expanduser().absolute())).name


def _plain(value: Any) -> str:
    """A value as a part of a folder name. If the text must be changed for this, a part of its hash is added."""
    text = str(value)
    plain = re.sub(r"[^A-Za-z0-9_.=+]+", "_", text)[:40]
    return (
        plain
        if plain == text
        else f"{plain[:31]}.{hashlib.sha256(text.encode(errors='surrogateescape')).hexdigest()[:8]}"
    )


ORDERS = ("name", "frequency")
# Default folders of sources, used if no root is given.
DEFAULT_PLACES: dict[str, Callable[[], Path | None]] = {
    **dict.fromkeys(PUBLISHED, default_root),
    "tiny_imagenet": lambda: default_root() / "tiny-imagenet-200",
}
SOURCE_OPTIONS = ("label_column", "image_column", "lists")
