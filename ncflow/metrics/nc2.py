"""NC2, convergence to a simplex ETF: rows of equal norm and equal, maximal angles.

Each function takes centered class means or classifier rows (K, d), or their Gram matrix (K, K), in float64.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ncflow.metrics.pairs import pairs, pairwise_cosines, squared_distances, unit_rows


def equinorm(rows: Tensor) -> Tensor:
    """Standard deviation over mean of the row norms. >= 0, 0 at collapse. Papyan et al. 2020."""
    norms = torch.linalg.vector_norm(rows, dim=1)
    return norms.std() / norms.mean()


def equiangularity(rows: Tensor, blur: Tensor | float = 0.0) -> Tensor:
    """Standard deviation of the pairwise cosines of the rows. In [0, 2/sqrt(3)], 0 at collapse. Papyan et al. 2020.

    Not defined where a row is no longer than `blur`, which is rounding.
    """
    return pairwise_cosines(rows, blur).std()


def maximal_angle(rows: Tensor, blur: Tensor | float = 0.0) -> Tensor:
    """Mean distance |cos + 1/(K-1)| of the pairwise cosines to those of a simplex ETF. In [0, K/(K-1)], 0 at collapse.

    Not defined where a row is no longer than `blur`, which is rounding. Papyan et al. 2020.
    """
    return (pairwise_cosines(rows, blur) + 1 / (len(rows) - 1)).abs().mean()


def etf_error(gram: Tensor) -> Tensor:
    """‖G/‖G‖_F - M/sqrt(K-1)‖_F with M = I - 11ᵀ/K, for a matrix (K, K). In [0, 2], 0 at collapse. Zhu et al. 2021."""
    num_classes = len(gram)
    ideal = torch.eye(num_classes, dtype=gram.dtype, device=gram.device) - 1 / num_classes
    return torch.linalg.matrix_norm(gram / torch.linalg.matrix_norm(gram) - ideal / math.sqrt(num_classes - 1))


def orthogonal_error(gram: Tensor) -> Tensor:
    """‖G/‖G‖_F - I/sqrt(K)‖_F for the Gram matrix (K, K) of rows, not centered. In [0, sqrt(2)].

    0 for orthogonal rows of equal norm, the optimum behind a ReLU on balanced classes. Dang et al. 2023.
    """
    ideal = torch.eye(len(gram), dtype=gram.dtype, device=gram.device) / math.sqrt(len(gram))
    return torch.linalg.matrix_norm(gram / torch.linalg.matrix_norm(gram) - ideal)


def gnc2_log(rows: Tensor, blur: Tensor | float = 0.0) -> Tensor:
    """Mean over i≠j of -log‖ŵ_i - ŵ_j‖ for the unit rows ŵ: the hyperspherical energy that generalizes NC2 to K > d+1.

    -log sqrt(2K/(K-1)) for a simplex ETF, its minimum. Not defined where two directions are the same, up to rounding of
    the rows by `blur`. Liu et al. 2023.
    """
    return -_log_squares(rows, blur).mean() / 2


def gnc2_spread(rows: Tensor, blur: Tensor | float = 0.0) -> Tensor:
    """Standard deviation over pairs of the energy -log‖ŵ_i - ŵ_j‖. >= 0, 0 for a simplex ETF. Defined as `gnc2_log`."""
    return _log_squares(rows, blur).std() / 2


def _log_squares(rows: Tensor, blur: Tensor | float) -> Tensor:
    """log‖ŵ_i - ŵ_j‖² of the pairs i < j (K(K-1)/2,); infinite where rounding may be all that sets them apart."""
    i, j = pairs(len(rows), rows.device)
    turn = blur / torch.linalg.vector_norm(rows, dim=1)  # by so much rounding may turn a unit row
    squares = squared_distances(unit_rows(rows, blur))
    return torch.log(torch.where(squares > (turn[i] + turn[j]).square(), squares, 0))
