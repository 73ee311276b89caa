"""Pairs of classes: their cosines and distances, without a (K, K, d) tensor."""

from __future__ import annotations

import torch
from torch import Tensor

CLOSE = 1e-4  # squared distances below this share of the squared norms are computed from the differences


def pairwise_cosines(rows: Tensor, blur: Tensor | float = 0.0) -> Tensor:
    """Cosines of all pairs i < j of rows: (K, d) -> (K(K-1)/2,). NaN where a row is not longer than `blur`."""
    unit = unit_rows(rows, blur)
    i, j = pairs(len(rows), rows.device)
    return (unit @ unit.mT)[i, j]


def squared_distances(rows: Tensor) -> Tensor:
    """‖a - b‖² of all pairs of rows: (K, d) -> (K(K-1)/2,), to 12 digits.

    Uses ‖a‖² + ‖b‖² - 2ab, one matrix product, unless a pair is so close that this would cancel.
    """
    i, j = pairs(len(rows), rows.device)
    gram = rows @ rows.mT
    norms = gram.diagonal()[i] + gram.diagonal()[j]
    squares = norms - 2 * gram[i, j]
    return squares if bool((squares > CLOSE * norms).all()) else torch.pdist(rows).square()


def nearest_distances(rows: Tensor) -> Tensor:
    """Distance of each row to the nearest other one: (K, d) -> (K,); infinite for a single row."""
    squares = squared_distances(rows)
    nearest = torch.full_like(rows[:, 0], torch.inf)
    for side in pairs(len(rows), rows.device):
        nearest.scatter_reduce_(0, side, squares, "amin")
    return nearest.clamp(min=0).sqrt()


def unit_rows(rows: Tensor, blur: Tensor | float = 0.0) -> Tensor:
    """Rows of unit norm (K, d). NaN where a row is not longer than `blur`, the length up to which it is rounding."""
    short = torch.linalg.vector_norm(rows, dim=1, keepdim=True) <= blur
    return torch.nn.functional.normalize(rows, dim=1, eps=0.0).masked_fill(short, torch.nan)


def pairs(number: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """The indices i < j of all pairs, in row order of the upper triangle."""
    i, j = torch.triu_indices(number, number, offset=1, device=device)
    return i, j
