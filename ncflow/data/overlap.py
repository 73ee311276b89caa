"""Pictures that are both in the training split and, byte for byte, in an evaluation split."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Set

import numpy as np

from ncflow.data.images import ImageSource
from ncflow.data.labels import shown
from ncflow.data.longtail import Indices

MOST = 0.5  # share of a split; a larger share is rejected
ON_PURPOSE = "; if a source in code tests on the training split on purpose, set ImageSource.is_training"
UNREAD = hashlib.sha256(b"").digest()  # of damaged pictures without content, which are not copies of each other


def shared_with_training(chosen: Mapping[str, tuple[ImageSource, Indices]]) -> dict[str, int]:
    """Split -> the number of its pictures that are also in the training split. A split that shares none is left out.

    chosen: split -> its source and the numbers of the chosen pictures. Raises ValueError if a split shares most.
    """
    source, indices = chosen["train"]
    trained = {source.hashes[i] for i in indices} - {UNREAD}
    shared = {}
    for split, (others, rows) in chosen.items():
        count = sum(others.hashes[i] in trained for i in rows) if split != "train" else 0
        if count > MOST * len(rows):
            raise ValueError(
                f"{count} of the {len(rows)} pictures of the {split} split are in the training split, byte for byte: "
                f"it would measure memorization; expected other pictures, got {_first(others, rows, trained)}"
                + (ON_PURPOSE if isinstance(others.images, np.ndarray) else "")
            )
        if count:
            shared[split] = count
    return shared


def _first(source: ImageSource, rows: Indices, trained: Set[bytes]) -> str:
    return shown([source.label(i) for i in rows if source.hashes[i] in trained])
