"""Rounding: how far rows may differ only because of the precision of the input.

Float32 features are converted to float64 first, and keep their noise of 1e-7. So the precision of the input decides
whether a difference is real, not the precision of the arithmetic.
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
        """The rounding of rows (K, d) whose input precision is eps."""
        norms = torch.linalg.vector_norm(rows, dim=1)
        return cls(norms.new_tensor(eps) if isinstance(eps, float) else eps, norms.max(), rows.shape[1])

    def level(self, num_rows: int = 2) -> Tensor:
        """The singular value (0-dim) up to which a matrix of num_rows rows is only rounding.

        max(rows, d)·eps·norm, because a number is usually a sum of d products. Half precision accumulates in float32
        and rounds once, so its level is 2·eps·norm. There, d·eps would exceed one.
        """
        factor = torch.where(self.eps > HALF, 2.0, float(max(num_rows, self.num_features)))
        return factor * self.eps * self.norm


def precision(tensor: Tensor) -> float:
    """The relative precision of a tensor, eps of its dtype. For whole numbers or an empty tensor, eps of float64."""
    return torch.finfo(tensor.dtype).eps if len(tensor) and tensor.is_floating_point() else EPS


def differ(rows: Tensor, rounding: Rounding) -> bool:
    """Whether rows (K, d) differ by more than rounding."""
    spread = torch.linalg.vector_norm(rows - rows.mean(0))
    return bool(spread > rounding.level(len(rows)) * len(rows) ** 0.5)  # so one singular value at least exceeds it
