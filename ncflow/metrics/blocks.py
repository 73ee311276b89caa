"""Values of rows, block by block: temporary copies do not grow with the number of classes."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

BLOCK = 4096  # rows


def by_block(function: Callable[..., Tensor], *rows: Tensor) -> Tensor:
    """The values (K,) or (K, ...) that a function gives for tensors of K rows, from one block of rows at a time."""
    parts = zip(*(torch.split(each, BLOCK) for each in rows), strict=True)
    return torch.cat([function(*part) for part in parts])


def triangle(function: Callable[..., Tensor], *rows: Tensor) -> Tensor:
    """The triangle R (r, r), r <= K, of f(rows) = QR for a function that gives (n, r), from one block at a time."""
    found: Tensor | None = None
    for part in zip(*(torch.split(each, BLOCK) for each in rows), strict=True):
        values = function(*part)
        found = torch.linalg.qr(values if found is None else torch.cat([found, values]), mode="r").R
    assert found is not None
    return found
