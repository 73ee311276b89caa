"""Pictures that are byte for byte in the training split and in a split that is to measure it."""

from __future__ import annotations

from collections.abc import Mapping

from ncflow.data.images import ImageSource
from ncflow.data.longtail import Indices

MOST = 0.5  # of a split; more is no split at all


def shared_with_training(chosen: Mapping[str, tuple[ImageSource, Indices]]) -> dict[str, int]:
    """Split -> how many of its pictures are in the training split too; a ValueError where that is most of them.

    chosen: split -> its source and the numbers of the pictures that are taken. A split that shares none is left out.
    """
    source, indices = chosen["train"]
    trained = {source.hashes[i] for i in indices}
    shared = {}
    for split, (others, rows) in chosen.items():
        count = sum(others.hashes[i] in trained for i in rows) if split != "train" else 0
        if count > MOST * len(rows):
            raise ValueError(
                f"{count} of the {len(rows)} pictures of the {split} split are in the training split, byte for byte: "
                "it would measure memory; expected pictures of its own"
            )
        if count:
            shared[split] = count
    return shared
