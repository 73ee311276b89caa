"""Rounding: how far rows may lie apart for no other reason than the precision of the numbers that came.

Float32 features become float64 before anything is computed, and keep their noise of 1e-7. What is a difference is
therefore a question to the precision of the input, not to that of the arithmetic.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ncflow.geometry.frames import HALF

EPS = torch.finfo(torch.float64).eps


@dataclass(frozen=True)
class Rounding:
    """eps (0-dim): relative precision of the numbers; norm (0-dim): largest norm among rows in num_features = d."""

    eps: Tensor
    norm: Tensor
    num_features: int

    @classmethod
    def of(cls, rows: Tensor, eps: Tensor | float = EPS) -> Rounding:
        """That of rows (K, d) whose numbers were given with this precision."""
        norms = torch.linalg.vector_norm(rows, dim=1)
        return cls(norms.new_tensor(eps) if isinstance(eps, float) else eps, norms.max(), rows.shape[1])

    def level(self, num_rows: int = 2) -> Tensor:
        """The singular value (0-dim) up to which a matrix of so many rows is nothing but rounding.

        max(rows, d)·eps·norm: a number in this precision is usually a sum of d products. Half precision adds up in
        float32 and rounds once, so that its level is 2·eps·norm; d·eps would exceed one.
        """
        factor = torch.where(self.eps > HALF, 2.0, float(max(num_rows, self.num_features)))
        return factor * self.eps * self.norm


def precision(tensor: Tensor) -> float:
    """The relative precision of a tensor, eps of its dtype; that of float64 for whole numbers, and for no numbers."""
    return torch.finfo(tensor.dtype).eps if len(tensor) and tensor.is_floating_point() else EPS


def differ(rows: Tensor, rounding: Rounding) -> bool:
    """Whether rows (K, d) differ by more than rounding."""
    spread = torch.linalg.vector_norm(rows - rows.mean(0))
    return bool(spread > rounding.level(len(rows)) * len(rows) ** 0.5)  # then one singular value at least is above it
