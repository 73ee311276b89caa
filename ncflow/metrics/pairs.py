"""Pairs of rows: their cosines and distances, tile by tile, without a K x K matrix.

A tile holds the pairs of a block of rows with another block. So time grows with K², and memory does not.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

CLOSE = 1e-4  # squared distances below this share of the squared norms are computed from the differences
TILE = 1024  # rows in a block: the numbers of a tile fit into a processor's cache
BATCH = 2**20  # numbers in a batch of differences


@dataclass(frozen=True)
class Rows:
    """Rows (K, d) with their norms (K,) and directions (K, d), which are 0 for a row of zeros."""

    rows: Tensor

    @cached_property
    def norms(self) -> Tensor:
        return torch.linalg.vector_norm(self.rows, dim=1)

    @cached_property
    def units(self) -> Tensor:
        return self.rows / torch.where(self.norms > 0, self.norms, 1).unsqueeze(1)

    def tiles(self) -> Iterator[Tile]:
        """Yield tiles that hold each pair of rows once."""
        starts = range(0, len(self.rows), TILE)
        for top in starts:
            for left in starts[top // TILE :]:
                i, j = slice(top, top + TILE), slice(left, left + TILE)
                yield Tile(self, i, j, self.units[i] @ self.units[j].mT)


@dataclass(frozen=True)
class Tile:
    """cosines (n, m) of the rows in slice i with those in slice j: right of the diagonal, or on it for i = j."""

    all: Rows
    i: slice
    j: slice
    cosines: Tensor

    @property
    def on_diagonal(self) -> bool:
        return self.i == self.j

    def once(self, values: Tensor) -> Tensor:
        """The entries (P,) of a matrix (n, m) that belong to pairs, each pair once."""
        if not self.on_diagonal:
            return values.flatten()
        return values[torch.ones_like(values, dtype=torch.bool).triu(1)]

    def both(self, per_row: Tensor) -> Tensor:
        """The sums (n, m) of the values (K,) of two rows."""
        return per_row[self.i].unsqueeze(1) + per_row[self.j]

    def squared_angles(self, *, skip: Tensor | None = None) -> Tensor:
        """‖a - b‖² (n, m) of unit rows, to 12 digits."""
        return self._repaired(2 - 2 * self.cosines, torch.full_like(self.cosines, 2), self.all.units, skip)

    def squared_distances(self, *, skip: Tensor | None = None) -> Tensor:
        """‖a - b‖² (n, m) of rows, to 12 digits; 0 for pairs in the mask `skip` (n, m) that are close."""
        norms = self.all.norms
        total = self.both(norms.square())
        products = norms[self.i].unsqueeze(1) * norms[self.j]
        return self._repaired(total - 2 * products.mul_(self.cosines), total, self.all.rows, skip)

    def _repaired(self, squares: Tensor, total: Tensor, rows: Tensor, skip: Tensor | None) -> Tensor:
        """The squares, computed again from differences where ‖a‖² + ‖b‖² - 2ab cancels."""
        close = squares <= CLOSE * total
        if skip is not None:
            squares[close & skip] = 0
            close &= ~skip
        first, second = rows[self.i], rows[self.j]
        for part in torch.split(close.nonzero(), max(1, BATCH // rows.shape[1])):
            a, b = part.unbind(1)
            squares[a, b] = (first[a] - second[b]).square().sum(1)
        return squares


@dataclass(frozen=True)
class Spread:
    """The mean and the squared deviations of `number` values, which merge without cancellation. Chan et al. 1979."""

    number: int
    mean: Tensor
    squares: Tensor

    @classmethod
    def of(cls, values: Tensor) -> Spread:
        """The spread of values (P,), P >= 1."""
        mean = values.mean()
        return cls(len(values), mean, (values - mean).square().sum())

    def merge(self, other: Spread) -> Spread:
        """The spread of both sets of values."""
        number, gap = self.number + other.number, other.mean - self.mean
        squares = self.squares + other.squares + gap.square() * (self.number * other.number / number)
        return Spread(number, self.mean + gap * (other.number / number), squares)

    @property
    def std(self) -> Tensor:
        """The standard deviation with the divisor number - 1, NaN for one value."""
        return (self.squares / (self.number - 1)).sqrt() if self.number > 1 else torch.full_like(self.mean, torch.nan)


class Angles:
    """Statistics of the cosines of pairs: their spread, mean distance from -1/(K-1), and largest one.

    NaN where a row is not longer than `blur`, the length up to which it is rounding.
    """

    def __init__(self, rows: Rows, blur: Tensor | float = 0.0) -> None:
        self._ideal = -1 / max(len(rows.rows) - 1, 1)
        self._nothing = torch.where((rows.norms <= blur).any(), torch.nan, 0.0).to(rows.norms)
        self._spread: Spread | None = None
        self._off = self._nothing.clone()
        self._largest = self._nothing - math.inf

    def add(self, tile: Tile) -> None:
        cosines = tile.once(tile.cosines)
        if not len(cosines):
            return
        spread = Spread.of(cosines)
        self._spread = self._spread.merge(spread) if self._spread else spread
        self._off += (cosines - self._ideal).abs().sum()
        self._largest = torch.maximum(self._largest, cosines.max())

    @property
    def number(self) -> int:
        return self._spread.number if self._spread else 0

    @property
    def mean(self) -> Tensor:
        """Mean cosine, in [-1/(K-1), 1]; NaN without a pair."""
        return self._nothing + (self._spread.mean if self._spread else torch.nan)

    @property
    def std(self) -> Tensor:
        """Standard deviation of the cosines, in [0, 2/sqrt(3)]."""
        return self._nothing + (self._spread.std if self._spread else torch.nan)

    @property
    def off(self) -> Tensor:
        """Mean |cos + 1/(K-1)|, in [0, K/(K-1)]."""
        return self._off / self.number if self.number else self._nothing + torch.nan

    @property
    def largest(self) -> Tensor:
        """Largest cosine, in [-1/(K-1), 1]."""
        return self._largest.clamp(min=self._ideal)


class Energy:
    """The spread of log‖a - b‖² over pairs of unit rows. Its mean is -inf where two directions are equal up to `blur`.

    NaN where a row is not longer than `blur`.
    """

    def __init__(self, rows: Rows, blur: Tensor | float = 0.0) -> None:
        self._turns = torch.where(rows.norms > blur, blur / rows.norms, torch.nan)  # how far rounding may turn a row
        self._spread: Spread | None = None

    def add(self, tile: Tile) -> None:
        known = self._spread is not None and not bool(self._spread.mean.isfinite())
        if known:  # no other pair changes it
            return
        squares = tile.squared_angles()
        turns = tile.both(self._turns).square()
        values = tile.once(torch.where(squares > turns, squares, turns * 0).log())
        if len(values):
            spread = Spread.of(values)
            self._spread = self._spread.merge(spread) if self._spread else spread

    @property
    def spread(self) -> Spread:
        """Mean and standard deviation of log‖a - b‖²; NaN without a pair."""
        return self._spread or Spread(0, self._turns.sum() * torch.nan, self._turns.sum() * torch.nan)


class Separation:
    """(v_i + v_j)/(2‖a_i - a_j‖²) of each row, averaged over the others: `by_class` (K,), for variances v (K,).

    Infinite where the distance to another row is not longer than `level`, the rounding of the rows.
    """

    def __init__(self, rows: Rows, variances: Tensor, level: Tensor) -> None:
        self._variances, self._level = variances, level
        self._sums = torch.zeros_like(variances)
        self._nearest = torch.full_like(variances, torch.inf)

    def add(self, tile: Tile) -> None:
        known = self._sums.isinf()
        skip = known[tile.i].unsqueeze(1) & known[tile.j]
        squares = tile.squared_distances(skip=skip)
        _keep_nearest(self._nearest, tile, squares)
        squares = torch.where(squares > self._level.square(), squares, 0)
        terms = tile.both(self._variances) / (2 * squares)
        terms = terms.masked_fill(terms.isnan(), torch.inf)  # equal means without variance have no ratio either
        if not tile.on_diagonal:
            self._sums[tile.j] += terms.sum(0)
        self._sums[tile.i] += terms.sum(1)

    @property
    def by_class(self) -> Tensor:
        return self._sums / (len(self._sums) - 1)

    @property
    def nearest(self) -> Tensor:
        """The distance (K,) of each row to the nearest other one. A distance up to `level` may be given as 0."""
        return self._nearest.clamp(min=0).sqrt()


def visit(rows: Rows, *visitors: Angles | Energy | Separation) -> None:
    """Show every tile of the rows to each visitor, with one product for all of them."""
    for tile in rows.tiles():
        for visitor in visitors:
            visitor.add(tile)


def nearest_distances(rows: Tensor) -> Tensor:
    """Distance of each row to the nearest other one: (K, d) -> (K,); infinite for a single row."""
    nearest = torch.full_like(rows[:, 0], torch.inf)
    for tile in Rows(rows).tiles():
        _keep_nearest(nearest, tile, tile.squared_distances())
    return nearest.clamp(min=0).sqrt()


def _keep_nearest(nearest: Tensor, tile: Tile, squares: Tensor) -> None:
    """Lower the squared distances `nearest` (K,) to those of a tile (n, m). A row is infinitely far from itself."""
    if tile.on_diagonal:
        squares.fill_diagonal_(torch.inf)
    else:
        nearest[tile.j] = torch.minimum(nearest[tile.j], squares.amin(0))
    nearest[tile.i] = torch.minimum(nearest[tile.i], squares.amin(1))


def first_of_equals(rows: Tensor, level: Tensor) -> Tensor:
    """For each row (K, d) the index (K,) of the first row whose distance is at most `level`, usually of itself."""
    first = torch.arange(len(rows), device=rows.device)
    for tile in Rows(rows).tiles():
        same = tile.squared_distances() <= level.square()
        a, b = (same.triu(1) if tile.on_diagonal else same).nonzero().unbind(1)
        first.scatter_reduce_(0, b + tile.j.start, a + tile.i.start, "amin")
    return first


def unit_rows(rows: Tensor, blur: Tensor | float = 0.0) -> Tensor:
    """Rows of unit norm (K, d). NaN where a row is not longer than `blur`, the length up to which it is rounding."""
    short = torch.linalg.vector_norm(rows, dim=1, keepdim=True) <= blur
    return torch.nn.functional.normalize(rows, dim=1, eps=0.0).masked_fill(short, torch.nan)
