"""The splits of a source: train and test, and val if it has one. The test split may be cut from the only one."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from ncflow.data.images import ImageSource, SplitMissing
from ncflow.data.labels import shown
from ncflow.data.longtail import hold_out
from ncflow.data.sources import load_source

TEST_STREAM = 2**30  # of random numbers; the tail and the validation part use other streams


def load_splits(
    name: str, root: Any = None, *, test_fraction: float = 0.0, seed: int = 0, **options: Any
) -> dict[str, ImageSource]:
    """Load train and test, and val if the source has both a validation and a test split.

    If the source has one split only, `test_fraction` of each class becomes the test split, chosen by `seed`.
    Raises ValueError if there is no test split and no `test_fraction`, or if there are both.
    """
    splits = {"train": load_source(name, root, "train", **options)}
    for split in ("val", "test"):
        try:
            splits[split] = load_source(name, root, split, **options)
        except SplitMissing as missing:
            if split == "test" and not test_fraction:
                advice = "; a source with one split only is divided by dataset.test_fraction, such as 0.2"
                raise SplitMissing(f"{missing}{advice}") from None
    if "test" not in splits:
        return _divided(splits["train"], test_fraction, seed)
    if test_fraction:
        raise ValueError(
            f"dataset '{name}' has a test split of {len(splits['test'])} pictures, so dataset.test_fraction="
            f"{test_fraction:g} would divide the training split for a second one; expected 0"
        )
    return splits


def _divided(source: ImageSource, fraction: float, seed: int) -> dict[str, ImageSource]:
    """Make a random part of each class the test split. A class of one picture keeps it for training."""
    num_classes = len(source.class_names)
    rest, held_out = hold_out(source.targets, num_classes, fraction=fraction, seed=(seed + TEST_STREAM) % 2**32)
    absent = np.flatnonzero(np.bincount(source.targets[held_out], minlength=num_classes) == 0)
    test = source.take(held_out)
    if len(absent):
        note = f"the test split has none of class {shown(source.class_names[k] for k in absent)}, of one picture each"
        test = replace(test, notes=(*test.notes, note))
    return {"train": source.take(rest), "test": test}
