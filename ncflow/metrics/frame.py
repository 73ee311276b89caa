"""A frame with one row per class, centered class means or a classifier, and the values that several metrics share."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ncflow.geometry import contrasts
from ncflow.metrics.blocks import triangle
from ncflow.metrics.pairs import Angles, Energy, Rows, Separation, visit
from ncflow.metrics.rounding import Rounding, differ

WELL_CONDITIONED = 1e-4  # smallest over largest eigenvalue of a Gram matrix, above which its vectors have 12 digits


@dataclass(frozen=True)
class Frame:
    """rows (K, d) in float64, K >= 2. Its metrics are those of NC2 and NC3.

    `rounding` is that of the input, by default of rows in float64. `centered` rows are differences, so a row that is
    not longer than rounding has no direction. `variances` (K,) are those of the samples around class means.
    """

    rows: Tensor
    rounding: Rounding | None = None
    centered: bool = False
    variances: Tensor | None = None

    @property
    def crowded(self) -> bool:
        """Whether there are more contrasts than dimensions, K-1 > d: then no simplex ETF exists."""
        return self.rows.shape[0] - 1 > self.rows.shape[1]

    @cached_property
    def gram(self) -> Tensor:
        """Inner products (K, K) of the rows, scaled to unit Frobenius norm to keep fourth powers in range."""
        rows = self.rows / self.norm
        return rows @ rows.mT

    @cached_property
    def norm(self) -> Tensor:
        """The Frobenius norm of the rows."""
        return torch.linalg.matrix_norm(self.rows)

    @cached_property
    def moment(self) -> Tensor:
        """The sum (d, d) of the outer products of the rows, scaled to unit Frobenius norm."""
        return self.rows.mT @ self.rows / self.norm.square()

    @cached_property
    def svd(self) -> tuple[Tensor, Tensor, Tensor]:
        """u (K-1, r), s (r,), vh (r, d) of the K-1 contrasts of the rows, r = min(K-1, d); largest first.

        The contrasts exclude the null direction that centering leaves in the rows.
        """
        rows = contrasts(self.rows)
        squares, u = torch.linalg.eigh(rows @ rows.mT)
        if not bool(squares[0] > WELL_CONDITIONED * squares[-1]):
            u, s, vh = torch.linalg.svd(rows, full_matrices=False)
            return u, s, vh
        along = u.mT.flip(0) @ rows  # its norms are more accurate than the square roots of the eigenvalues
        s = torch.linalg.vector_norm(along, dim=1)
        return u.flip(1), s, along / s.unsqueeze(1)

    @cached_property
    def axes(self) -> tuple[Tensor, Tensor]:
        """s (r,) and vh (r, d) of `svd`. For K-1 > d from a triangle (d, d), which has the same directions."""
        if not self.crowded:
            return self.svd[1:]
        center = self.rows.mean(0)
        return torch.linalg.svd(triangle(lambda rows: rows - center, self.rows))[1:]

    @cached_property
    def pairs(self) -> tuple[Angles, Energy, Separation | None]:
        """The statistics of all pairs of rows, from a single pass. Energy and separation are those of centered rows."""
        rows = Rows(self.rows)
        angles, energy = Angles(rows, self.blur), Energy(rows, self.blur)
        known = self.variances
        separation = None if known is None else Separation(rows, known, self.known_rounding.level())
        visit(rows, angles, *([energy] if self.centered else []), *([separation] if separation else []))
        return angles, energy, separation

    @cached_property
    def differs(self) -> bool:
        """Whether the rows differ by more than rounding. Otherwise directions and ratios have no meaning."""
        return differ(self.rows, self.known_rounding)

    @property
    def known_rounding(self) -> Rounding:
        """The rounding from the constructor, or that of the rows."""
        return self.rounding or Rounding.of(self.rows)

    @property
    def blur(self) -> Tensor:
        """The length (0-dim) up to which a row has no direction. 0 if the rows are not centered."""
        level = self.known_rounding.level()
        return level if self.centered else torch.zeros_like(level)

    @property
    def has_nearest_etf(self) -> bool:
        """Whether a simplex ETF exists, d >= K-1, and the rows differ."""
        return self.rows.shape[1] >= self.rows.shape[0] - 1 and self.differs

    @property
    def has_one_nearest_etf(self) -> bool:
        """Whether the nearest ETF is unique: the contrasts of the rows are linearly independent."""
        return self.has_nearest_etf and bool(self.svd[1][-1] > self.known_rounding.level(len(self.rows)))

    @property
    def etf_distance(self) -> Tensor:
        """Squared distance of the centered rows to the nearest simplex ETF, both of unit norm: Σ(s - 1/sqrt(K-1))²."""
        _, s, _ = self.svd
        return (s / torch.linalg.vector_norm(s) - 1 / math.sqrt(len(s))).square().sum()

    @property
    def has_room_for_orthogonal_rows(self) -> bool:
        """Whether K orthogonal rows fit into d dimensions, and the rows are not all 0."""
        return self.rows.shape[1] >= self.rows.shape[0] and bool(self.rows.any())

    @property
    def orthogonal_distance(self) -> Tensor:
        """Squared distance of the rows, not centered, to the nearest frame of K orthogonal rows of equal norm.

        Both have unit Frobenius norm: Σ(s - 1/sqrt(K))² over the singular values of the rows, K <= d.
        """
        squares = torch.linalg.eigvalsh(self.gram)
        ideal = 1 / math.sqrt(len(squares))
        if bool(squares[0] > WELL_CONDITIONED * squares[-1]):
            return ((squares - ideal**2) / (squares.sqrt() + ideal)).square().sum()
        unit = self.rows / torch.linalg.matrix_norm(self.rows)
        return (torch.linalg.svdvals(unit) - ideal).square().sum()

    @property
    def nearest_etf_contrasts(self) -> Tensor:
        """The contrasts (K-1, d), orthonormal rows, of the nearest simplex ETF of Frobenius norm sqrt(K-1)."""
        u, _, vh = self.svd
        return u @ vh
