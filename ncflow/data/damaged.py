"""Pictures that cannot be decoded: name them in one run, or leave them out and count them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from ncflow.data.images import ImageSource, decode_image, printable
from ncflow.data.labels import shown
from ncflow.data.manifest import Damage

LISTED = 100  # damaged pictures of a split that a manifest names
SAID = 20  # damaged pictures that a message names


def without_damaged(
    splits: Mapping[str, ImageSource], root: Path | None
) -> tuple[dict[str, ImageSource], dict[str, Damage]]:
    """The splits without the pictures that cannot be decoded, and the pictures left out of each split.

    Every picture is tried. Raises ValueError if all training pictures of a class are damaged.
    """
    sound: dict[str, ImageSource] = {}
    left_out: dict[str, Damage] = {}
    for split, source in splits.items():
        damaged = damage(source)
        kept = np.array([i for i in range(len(source)) if i not in damaged], dtype=np.int64)
        sound[split] = source.take(kept) if damaged else source
        if damaged:
            names = [_below(root, source, i) for i in list(damaged)[:LISTED]]
            left_out[split] = {"count": len(damaged), "first": names}
    _refuse_lost(splits["train"], sound["train"])
    return sound, left_out


def damage(source: ImageSource) -> dict[int, str]:
    """Number -> reason, for each picture that cannot be decoded."""
    reasons = {}
    for index in range(len(source)):
        try:
            decode_image(source.encoded(index))
        except (OSError, ValueError) as error:
            reasons[index] = str(error)
    return reasons


def refuse_damaged(damaged: Mapping[str, str]) -> None:
    """Raise one ValueError for all damaged pictures, with their names and reasons."""
    if not damaged:
        return
    first = "\n".join(f"  {name}: {reason}" for name, reason in list(damaged.items())[:SAID])
    more = f"\n  and {len(damaged) - SAID} more" if len(damaged) > SAID else ""
    advice = "replace them, or leave them out with dataset.on_damaged=skip"
    raise ValueError(f"cannot read {len(damaged)} pictures; {advice}:\n{first}{more}")


def _refuse_lost(before: ImageSource, after: ImageSource) -> None:
    lost = set(before.targets.tolist()) - set(after.targets.tolist())
    if lost:
        names = shown(before.class_names[k] for k in sorted(lost))
        raise ValueError(f"all training pictures of class {names} are damaged; replace them, or leave the class out")


def _below(root: Path | None, source: ImageSource, index: int) -> str:
    image = source.images[index]
    if isinstance(image, Path) and root is not None and image.is_relative_to(root):
        return printable(image.relative_to(root).as_posix())
    return image.name if isinstance(image, Path) else source.label(index)
