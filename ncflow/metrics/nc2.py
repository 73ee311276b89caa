"""NC2, convergence to a simplex ETF: rows of equal norm and equal, maximal angles.

Each function takes centered class means or classifier rows (K, d), or their Gram matrix (K, K), in float64.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ncflow.metrics import crowded
from ncflow.metrics.frame import Frame
from ncflow.metrics.rows import (
    EITHER,
    MARKOU,
    PAPYAN,
    ZHU,
    Metric,
    View,
    of_means,
    of_uncentered_means,
    of_weight,
)

if TYPE_CHECKING:
    from ncflow.metrics.analysis import Analysis


def equinorm(rows: Tensor) -> Tensor:
    """Standard deviation over mean of the row norms. >= 0, 0 at collapse. Papyan et al. 2020."""
    norms = torch.linalg.vector_norm(rows, dim=1)
    return norms.std() / norms.mean()


def equiangularity(frame: Frame) -> Tensor:
    """Standard deviation of the pairwise cosines of the rows. In [0, 2/sqrt(3)], 0 at collapse. Papyan et al. 2020.

    Not defined where a row is rounding.
    """
    return frame.pairs[0].std


def maximal_angle(frame: Frame) -> Tensor:
    """Mean distance |cos + 1/(K-1)| of the pairwise cosines to those of a simplex ETF. In [0, K/(K-1)], 0 at collapse.

    Not defined where a row is rounding. Papyan et al. 2020.
    """
    return frame.pairs[0].off


def etf_error(gram: Tensor) -> Tensor:
    """‖G/‖G‖_F - M/sqrt(K-1)‖_F with M = I - 11ᵀ/K, for a matrix (K, K). In [0, 2], 0 at collapse. Zhu et al. 2021."""
    num_classes = len(gram)
    ideal = torch.eye(num_classes, dtype=gram.dtype, device=gram.device) - 1 / num_classes
    return torch.linalg.matrix_norm(gram / torch.linalg.matrix_norm(gram) - ideal / math.sqrt(num_classes - 1))


def orthogonal_error(gram: Tensor) -> Tensor:
    """‖G/‖G‖_F - I/sqrt(K)‖_F for the Gram matrix (K, K) of rows, not centered. In [0, sqrt(2)].

    0 for orthogonal rows of equal norm, the optimum after a ReLU on balanced classes. [Dang et al.
    2023](https://arxiv.org/abs/2301.00437).
    """
    ideal = torch.eye(len(gram), dtype=gram.dtype, device=gram.device) / math.sqrt(len(gram))
    return torch.linalg.matrix_norm(gram / torch.linalg.matrix_norm(gram) - ideal)


def gnc2_log(frame: Frame) -> Tensor:
    """Mean over i≠j of -log‖ŵ_i - ŵ_j‖ for unit rows ŵ, the hyperspherical energy that generalizes NC2 to K > d+1.

    Its minimum is -log sqrt(2K/(K-1)), for a simplex ETF. Not defined where two directions are equal up to the rounding
    of the centered rows. Liu et al. 2023.
    """
    return -frame.pairs[1].spread.mean / 2


def gnc2_spread(frame: Frame) -> Tensor:
    """Standard deviation over pairs of the energy -log‖ŵ_i - ŵ_j‖. >= 0, 0 for a simplex ETF.

    Defined where `gnc2_log` is defined.
    """
    return frame.pairs[1].spread.std / 2


def _equinorm(frame: Frame) -> Tensor:
    return equinorm(frame.rows)


def _equinorm_gap(a: Analysis) -> Tensor | None:
    return (equinorm(a.rows.rows) - equinorm(a.means.rows)).abs() if a.rows and a.means else None


def _equiangularity(frame: Frame) -> Tensor | None:
    return equiangularity(frame) if len(frame.rows) > 2 else None


def _etf_error(frame: Frame) -> Tensor:
    return crowded.etf_error(frame) if frame.crowded else etf_error(frame.gram)


def _etf_distance(frame: Frame) -> Tensor | None:
    return frame.etf_distance if frame.has_nearest_etf else None


def _orthogonal_error(frame: Frame) -> Tensor:
    return crowded.orthogonal_error(frame) if frame.crowded else orthogonal_error(frame.gram)


def _orthogonal_distance(frame: Frame) -> Tensor | None:
    return frame.orthogonal_distance if frame.has_room_for_orthogonal_rows else None


def _gnc2_spread(frame: Frame) -> Tensor | None:
    return gnc2_spread(frame) if len(frame.rows) > 2 else None


DANG = "Dang et al. 2024"
METRICS: dict[str, Metric] = {
    "nc2/equinorm_means": Metric(of_means(_equinorm), "std/mean of ‖μ̃_k‖", "[0, √K]", "0", "train", PAPYAN),
    "nc2/equinorm_weight": Metric(of_weight(_equinorm), "std/mean of ‖w_k‖", "[0, √K]", "0", EITHER, PAPYAN),
    "nc2/equinorm_gap": Metric(_equinorm_gap, "difference of the two, without sign", "[0, √K]", "0", "train"),
    "nc2/equiangularity_means": Metric(
        of_means(_equiangularity), "std over pairs of cos(μ̃_i, μ̃_j)", "[0, 2/√3]", "0", "train", PAPYAN
    ),
    "nc2/equiangularity_weight": Metric(
        of_weight(_equiangularity), "std over pairs of cos(w_i, w_j)", "[0, 2/√3]", "0", EITHER, PAPYAN
    ),
    "nc2/maximal_angle_means": Metric(
        of_means(maximal_angle),
        "mean over pairs of abs(cos(μ̃_i, μ̃_j) + 1/(K−1))",
        "[0, K/(K−1)]",
        "0",
        "train",
        PAPYAN,
    ),
    "nc2/maximal_angle_weight": Metric(
        of_weight(maximal_angle), "the same of w_i, w_j", "[0, K/(K−1)]", "0", EITHER, PAPYAN
    ),
    "nc2/etf_error_means": Metric(
        of_means(_etf_error),
        "‖G/‖G‖_F − M/√(K−1)‖_F, G = μ̃μ̃ᵀ",
        "[0, √2]",
        "0",
        "train",
        ZHU,
        view=View(
            "NC2: class means form a simplex ETF",
            "distance of the centered class means' Gram matrix from a simplex ETF's, both of unit norm",
            "train",
            ("table", "curves"),
            at_collapse=0,
        ),
    ),
    "nc2/etf_error_weight": Metric(of_weight(_etf_error), "the same, G = WWᵀ", "[0, √2]", "0", EITHER, ZHU),
    "nc2/etf_distance_means": Metric(
        of_means(_etf_distance),
        "squared distance of μ̃/‖μ̃‖_F to the nearest simplex ETF, 2 − 2‖μ̃‖_*/(√(K−1)‖μ̃‖_F)",
        "[0, 2]",
        "0",
        "train",
        MARKOU,
    ),
    "nc2/etf_distance_weight": Metric(
        of_weight(_etf_distance), "the same of W, centered", "[0, 2]", "0", EITHER, MARKOU
    ),
    "nc2/orthogonal_error_means": Metric(
        of_uncentered_means(_orthogonal_error),
        "‖G/‖G‖_F − I/√K‖_F, G = μμᵀ of the means as they are, not centered",
        "[0, √2]",
        "—",
        "train",
        DANG,
    ),
    "nc2/orthogonal_error_weight": Metric(
        of_weight(_orthogonal_error), "the same, G = WWᵀ", "[0, √2]", "√(2−2√(1−1/K))", EITHER, DANG
    ),
    "nc2/orthogonal_distance_means": Metric(
        of_uncentered_means(_orthogonal_distance),
        "squared distance of μ/‖μ‖_F to the nearest K orthogonal rows of one norm, 2 − 2‖μ‖_*/(√K‖μ‖_F)",
        "[0, 2]",
        "—",
        "train",
    ),
    "nc2/orthogonal_distance_weight": Metric(
        of_weight(_orthogonal_distance), "the same of W", "[0, 2]", "2−2√(1−1/K)", EITHER
    ),
    "nc2/gnc2_log": Metric(
        of_means(gnc2_log),
        "mean over i≠j of −log‖μ̂_i − μ̂_j‖, μ̂_k = μ̃_k/‖μ̃_k‖",
        "[−log 2, ∞)",
        "−½ log(2K/(K−1))",
        "train",
        "Liu et al. 2023",
    ),
    "nc2/gnc2_spread": Metric(
        of_means(_gnc2_spread), "standard deviation over pairs of −log‖μ̂_i − μ̂_j‖", "[0, ∞)", "0", "train"
    ),
}
