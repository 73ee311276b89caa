"""Random changes of training images: pure functions of a batch and of one row of random numbers per image.

The caller passes the random numbers, one row per sample and epoch. So the change of an image does not depend on the
batch size, the number of processes or the device.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import pad

RANDOM_NUMBERS = 3  # per image, uniform in [0, 1): flip, vertical shift, horizontal shift
CROP_PADDING = 4


def unchanged(images: Tensor, uniform: Tensor) -> Tensor:
    """Images (b,C,S,S) as they are."""
    return images


def flip(images: Tensor, uniform: Tensor) -> Tensor:
    """Each image (b,C,S,S) mirrored left to right with probability 1/2; uniform (b,3)."""
    return torch.where(uniform[:, 0, None, None, None] < 0.5, images.flip(-1), images)


def crop(images: Tensor, uniform: Tensor) -> Tensor:
    """A random S×S window of each image (b,C,S,S) padded with 4 black pixels on every side; uniform (b,3)."""
    size, b = images.shape[-1], len(images)
    top, left = (uniform[:, 1:] * (2 * CROP_PADDING + 1)).long().unbind(1)
    window = torch.arange(size, device=images.device)
    rows = (top[:, None] + window).view(b, 1, size, 1)
    columns = (left[:, None] + window).view(b, 1, 1, size)
    sample = torch.arange(b, device=images.device).view(b, 1, 1, 1)
    channel = torch.arange(images.shape[1], device=images.device).view(1, -1, 1, 1)
    return pad(images, [CROP_PADDING] * 4)[sample, channel, rows, columns]


def crop_flip(images: Tensor, uniform: Tensor) -> Tensor:
    """The standard CIFAR augmentation: crop, then flip."""
    return flip(crop(images, uniform), uniform)


AUGMENTATIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "none": unchanged,
    "flip": flip,
    "crop": crop,
    "crop_flip": crop_flip,
}
