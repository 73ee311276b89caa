"""Numbered images: the data of unconstrained features. An image identifies its sample and has no other content."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from ncflow.data.images import ImageSource
from ncflow.lookup import facts

NUM_SAMPLES = 1000


def numbered_source(num_classes: int) -> Callable[[Path | None, str], ImageSource]:
    """A source of 1,000 numbered 8×8 images in K equal classes. It has no unseen samples, so test is train."""

    def load(root: Path | None, split: str) -> ImageSource:
        targets = np.repeat(np.arange(num_classes), NUM_SAMPLES // num_classes)
        class_names = [f"class {label}" for label in range(num_classes)]
        images = number_images(len(targets))
        return ImageSource(f"ufm{num_classes}", images, targets, class_names, is_training=split == "test")

    load.__doc__ = f"Unconstrained features: 1,000 numbered images in {num_classes} classes, for model 'free_features'."
    return facts(num_classes=num_classes, built_in=True, numbered=True)(load)


def number_images(count: int) -> np.ndarray:
    """Images (N, 8, 8) uint8 of 0..N-1: 32 bits as black or white pixels, the lowest first, then their complements."""
    bits = (np.arange(count)[:, None] >> np.arange(32)) & 1
    return (255 * np.concatenate([bits, 1 - bits], axis=1)).astype(np.uint8).reshape(-1, 8, 8)
