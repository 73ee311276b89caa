"""Pictures that are byte for byte in the training split and in a split that is to measure it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Set

import numpy as np

from ncflow.data.images import ImageSource
from ncflow.data.labels import shown
from ncflow.data.longtail import Indices

MOST = 0.5  # of a split; more is no split at all
ON_PURPOSE = "; a source in code whose test split is the training split on purpose says so: ImageSource.is_training"
UNREAD = hashlib.sha256(b"").digest()  # of pictures without content, which are damaged and no copies of each other


def shared_with_training(chosen: Mapping[str, tuple[ImageSource, Indices]]) -> dict[str, int]:
    """Split -> how many of its pictures are in the training split too; a ValueError where that is most of them.

    chosen: split -> its source and the numbers of the pictures that are taken. A split that shares none is left out.
    """
    source, indices = chosen["train"]
    trained = {source.hashes[i] for i in indices} - {UNREAD}
    shared = {}
    for split, (others, rows) in chosen.items():
        count = sum(others.hashes[i] in trained for i in rows) if split != "train" else 0
        if count > MOST * len(rows):
            raise ValueError(
                f"{count} of the {len(rows)} pictures of the {split} split are in the training split, byte for byte: "
                f"it would measure memory; expected pictures of its own, got {_first(others, rows, trained)}"
                + (ON_PURPOSE if isinstance(others.images, np.ndarray) else "")
            )
        if count:
            shared[split] = count
    return shared


def _first(source: ImageSource, rows: Indices, trained: Set[bytes]) -> str:
    return shown([source.label(i) for i in rows if source.hashes[i] in trained])
