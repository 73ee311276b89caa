"""What is taken from a source: first a validation part, then labels are made wrong, then classes are made rare."""

from __future__ import annotations

import os
import re
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ncflow.data.images import ImageSource
from ncflow.data.longtail import Indices, hold_out, longtail_indices
from ncflow.data.noise import noisy_targets
from ncflow.data.published import PUBLISHED

PathLike = str | os.PathLike[str]


@dataclass(frozen=True)
class Recipe:
    """The choices that make a snapshot; `seed` decides every random one.

    `val_fraction` of each class is held out before anything else: its labels are right and its classes as balanced as
    the source. `label_noise` is the share of the other labels that are replaced by another class. The tail is made of
    these labels, so that they follow the profile exactly and, if the source is balanced, every class has the same share
    of wrong ones: noise on a finished tail would drown the rare classes in samples of the frequent ones.
    `samples_per_class` is the size of the most frequent class (None: N // K), `min_samples` that of the rarest at
    least. The fields of SOURCE_OPTIONS are options of the source, which refuses those that it does not take.
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
    label_column: str | None = None
    image_column: str | None = None

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.=+-]*", self.name):  # its snapshot's folder begins with it
            raise ValueError(f"the name of a dataset must be letters, digits and _ . = + - alone, got {self.name!r}")

    @property
    def folder_name(self) -> str:
        """Such as `digits-exp-0.02-seed0`, or `digits-exp-0.02-val0.1-noise0.2-max50-min1-seed0`."""
        options: dict[str, Any] = {"val": self.val_fraction, "noise": self.label_noise}
        options |= {"max": self.samples_per_class, "min": self.min_samples}
        chosen = [f"{option}{value}" for option, value in options.items() if value]
        chosen += [f"{option}={_plain(value)}" for option, value in self.source_options.items()]
        return "-".join([self.name, self.imb_type, f"{self.imb_factor:g}", *chosen, f"seed{self.seed}"])

    @property
    def source_options(self) -> dict[str, Any]:
        """The options of the source that are given."""
        return {option: value for option in SOURCE_OPTIONS if (value := getattr(self, option)) is not None}

    def description(self) -> dict[str, Any]:
        """The choices, free of machine paths: of the root only its name, where another root holds other data.

        Options of the source that are not given are left out.
        """
        choices = {key: value for key, value in asdict(self).items() if key not in SOURCE_OPTIONS} | self.source_options
        root = choices.pop("root")
        folder = Path(root).resolve().name if root is not None and self.name not in PUBLISHED else None
        shares = {key: float(choices[key]) for key in ("imb_factor", "val_fraction", "label_noise")}
        return {"name": self.name, "folder": folder} | choices | shares

    def apply(self, source: ImageSource) -> Parts:
        """The samples of a source's training split that are trained on, and those that are held out."""
        targets, num_classes = source.targets, len(source.class_names)
        rest, held_out = np.arange(len(targets), dtype=np.int64), np.array([], dtype=np.int64)
        if self.val_fraction:
            rest, held_out = hold_out(targets, num_classes, fraction=self.val_fraction, seed=self.seed)
        labels = targets.copy()
        if self.label_noise:
            labels[rest] = noisy_targets(targets[rest], num_classes, fraction=self.label_noise, seed=self.seed)
        tail = longtail_indices(
            labels[rest],
            num_classes,
            imb_type=self.imb_type,
            imb_factor=self.imb_factor,
            seed=self.seed,
            n_max=self.samples_per_class,
            n_min=self.min_samples,
        )
        return Parts(replace(source, targets=labels), rest[tail], held_out)


@dataclass(frozen=True, eq=False)
class Parts:
    """The training split under the labels that training sees; indices to train on, and to hold out for validation."""

    source: ImageSource
    train: Indices
    held_out: Indices


def _plain(value: Any) -> str:
    """A value as a part of a folder's name."""
    return re.sub(r"[^A-Za-z0-9_.=+]+", "_", str(value))[:40]


SOURCE_OPTIONS = ("label_column", "image_column")
