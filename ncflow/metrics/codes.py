"""How far apart the rows of a code are: their largest cosine, and the margin of each row from the hull of the others.

For K > d+1 no simplex ETF exists. Rows and class means then collapse to a softmax code, which has the largest
one-vs-rest margin (GNC2). Jiang et al. 2023.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ncflow.geometry import contrasts, from_contrasts
from ncflow.metrics.frame import Frame
from ncflow.metrics.pairs import unit_rows
from ncflow.metrics.rows import EITHER, Metric, of_means, of_weight

MOST_CLASSES = 128  # each class may need a quadratic program of K variables
EQUAL = 1e-12  # differences of margins up to this are rounding
WELL_CONDITIONED = 1e-6  # smallest over largest singular value of contrasts, above which heights have 9 digits

Array = npt.NDArray[np.float64]


def max_cosine(frame: Frame) -> Tensor:
    """The largest cosine of two rows (K, d). In [-1/(K-1), 1], -1/(K-1) at collapse.

    Not defined where a row is rounding. [Jiang et al. 2023](https://arxiv.org/abs/2310.05351).
    """
    return frame.pairs[0].largest


def one_vs_rest_margin(rows: Tensor, blur: Tensor | float = 0.0) -> Tensor | None:
    """The least distance of a unit row (K, d) to the convex hull of the others. In [0, K/(K-1)], K/(K-1) at collapse.

    Lower bounds for all rows exclude most of them before a quadratic program finds their distance. None where a row is
    rounding, not longer than `blur`. [Jiang et al. 2023](https://arxiv.org/abs/2310.05351), GNC2.
    """
    unit = unit_rows(rows, blur)
    if bool(unit.isnan().any()):
        return None
    bounds = torch.maximum(_own_bounds(unit), _heights(unit))
    array, least = unit.cpu().numpy(), math.inf
    for bound, k in zip(*(part.tolist() for part in bounds.sort()), strict=True):
        if bound >= least - EQUAL:
            break
        least = min(least, _distance_to_hull(np.delete(array, k, axis=0) - array[k]))
    return torch.as_tensor(least, dtype=rows.dtype, device=rows.device)


def _own_bounds(unit: Tensor) -> Tensor:
    """1 - max_j cos(w_k, w_j) (K,): how far the hull of the other rows stays from w_k in the direction of w_k."""
    return 1 - (unit @ unit.mT).fill_diagonal_(-torch.inf).amax(1)


def _heights(unit: Tensor) -> Tensor:
    """The distance (K,) of each row to the affine hull of the others; 0 where that hull may hold the row.

    With the pseudoinverse P of the centered rows, it is 1/‖column k of P‖. At collapse it is the distance to the hull.
    """
    u, s, _ = torch.linalg.svd(contrasts(unit), full_matrices=False)
    if len(s) < len(unit) - 1 or not bool(s[-1] > WELL_CONDITIONED * s[0]):
        return torch.zeros_like(unit[:, 0])
    return 1 / torch.linalg.vector_norm(from_contrasts(u / s), dim=1)


def _distance_to_hull(points: Array) -> float:
    """The distance of the origin to the convex hull of points (m, d).

    Nonnegative λ that minimize ‖λᵀ points‖² + (Σλ - 1)² are, up to their sum, the weights of the nearest point: for
    fixed weights the best sum leaves a value that rises with the distance.
    """
    weights = _nonnegative_minimum(points @ points.T + 1)
    return float(np.linalg.norm(weights @ points) / weights.sum())


def _nonnegative_minimum(matrix: Array) -> Array:
    """The minimum of ½λᵀAλ - Σλ over λ >= 0 for a matrix A (m, m), by the active sets of Lawson and Hanson 1974."""
    values, free = np.zeros(len(matrix)), np.zeros(len(matrix), dtype=bool)
    for _ in range(10 * len(matrix)):  # each round frees one value; a few are fixed again
        slope = np.where(free, -np.inf, 1 - matrix @ values)
        entering = int(slope.argmax())
        if slope[entering] <= EQUAL:
            break
        free[entering] = True
        values = _fitted(matrix, values, free)
    return values


def _fitted(matrix: Array, values: Array, free: npt.NDArray[np.bool_]) -> Array:
    """The minimum over the free values. Those that would become negative on the way are fixed at 0, in `free`, too."""
    while True:
        best = np.zeros_like(values)
        ridge = EQUAL * np.eye(free.sum())  # solvable for any points; the minimum moves by its square
        best[free] = np.linalg.solve(matrix[np.ix_(free, free)] + ridge, np.ones(free.sum()))
        falling = free & (best <= 0)
        if not falling.any():
            return best
        share = (values[falling] / (values[falling] - best[falling])).min()
        values = np.where(free, values + share * (best - values), 0)
        free &= values > EQUAL * values.max(initial=0)


def _one_vs_rest_margin(frame: Frame) -> Tensor | None:
    return one_vs_rest_margin(frame.rows, frame.blur) if len(frame.rows) <= MOST_CLASSES else None


JIANG = "Jiang et al. 2023"
METRICS: dict[str, Metric] = {
    "nc2/max_cosine_means": Metric(
        of_means(max_cosine), "max over pairs of cos(μ̃_i, μ̃_j)", "[−1, 1]", "−1/(K−1)", "train", JIANG
    ),
    "nc2/max_cosine_weight": Metric(
        of_weight(max_cosine), "the same of w_i, w_j", "[−1, 1]", "−1/(K−1)", EITHER, JIANG
    ),
    "nc2/margin_means": Metric(
        of_means(_one_vs_rest_margin),
        "min over k of the distance of μ̂_k to the convex hull of the others, μ̂_k = μ̃_k/‖μ̃_k‖; for K ≤ 128",
        "[0, 2]",
        "K/(K−1)",
        "train",
        JIANG,
    ),
    "nc2/margin_weight": Metric(
        of_weight(_one_vs_rest_margin), "the same of w_k/‖w_k‖", "[0, 2]", "K/(K−1)", EITHER, JIANG
    ),
}
