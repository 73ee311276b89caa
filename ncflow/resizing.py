"""Antialiased bilinear resizing of 8-bit pictures in whole numbers: torch's rule, as matrices for any device.

On a CPU, torch resizes uint8 with weights of 16 bits, first along rows, then along columns, and rounds after each. A
product of such weights with pixels is a whole number, which floats hold exactly. So a GPU and a stored graph get the
same bits as a CPU.
"""

from __future__ import annotations

import torch
from torch import Tensor

LARGEST_WEIGHT = 2**15  # weights are below this
MOST_BITS = 22


def weights(places: Tensor, size: Tensor, resized: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Whole weights (..., count, n) of n places for `count` resized pixels, and the number (..., 1, 1) they sum up to.

    places (..., n) are places of pixels along one side of a picture. The side has `size` (...) pixels and gets
    `resized` (...) pixels. A place that is outside has weight 0. All are float64, and so is the result.
    """
    size, resized = size[..., None], resized[..., None]
    scale = size / resized
    stretch = scale.clamp_min(1)
    centers = (torch.arange(count, dtype=torch.float64, device=places.device) + 0.5) * scale
    first = (centers - stretch + 0.5).trunc().clamp_min(0)
    end = torch.minimum((centers + stretch + 0.5).trunc(), size)
    places = places[..., None, :]
    inside = (places >= first[..., None]) & (places < end[..., None])
    distances = (places - centers[..., None] + 0.5) / stretch[..., None]
    shares = torch.where(inside, (1 - distances.abs()).clamp_min(0), 0.0)
    shares = shares / shares.sum(-1, keepdim=True)
    powers = 2.0 ** torch.arange(1, MOST_BITS + 1, dtype=torch.float64, device=places.device)
    largest = shares.amax((-2, -1))[..., None]
    bits = ((0.5 + largest * powers).trunc() < LARGEST_WEIGHT).sum(-1)
    unit = (2.0 ** bits.double())[..., None, None]
    return (shares * unit + 0.5).trunc(), unit


def along_last(pixels: Tensor, weights: Tensor, unit: Tensor) -> Tensor:
    """Pixels (..., n) of whole values resized along the last side with weights (..., m, n): whole values (..., m)."""
    return ((pixels @ weights.mT + unit / 2) / unit).floor().clamp(0, 255)


def resize_exactly(pixels: Tensor, resized: tuple[int, int], window: tuple[Tensor, Tensor]) -> Tensor:
    """Pictures (..., H, W) of whole values 0..255, resized as torch resizes uint8 on a CPU, in float64.

    Only the rows and columns of `window` are computed, by their numbers.
    """
    for length, chosen in zip(reversed(resized), reversed(window), strict=True):
        count = pixels.shape[-1]
        places = torch.arange(count, dtype=torch.float64, device=pixels.device)
        size, after = (torch.scalar_tensor(side, dtype=places.dtype, device=places.device) for side in (count, length))
        whole, unit = weights(places, size, after, length)
        pixels = along_last(pixels.double(), whole.index_select(-2, chosen), unit).mT
    return pixels
