"""NC3, self-duality: classifier rows align with the centered class means.

Each function takes the classifier rows (K, d) and the centered class means (K, d) of the same classes, in float64.
etf_gap takes them as frames, to reuse the decompositions of other metrics.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ncflow.metrics import crowded, nc2
from ncflow.metrics.blocks import by_block
from ncflow.metrics.frame import Frame
from ncflow.metrics.rows import MARKOU, PAPYAN, ZHU, Formula, Metric, View, of_both
from ncflow.metrics.shots import SHOTS

if TYPE_CHECKING:
    from ncflow.metrics.analysis import Analysis


def self_duality(weight: Tensor, centered_means: Tensor) -> Tensor:
    """‖W/‖W‖_F - μ̃/‖μ̃‖_F‖²_F. In [0, 4], 0 at collapse. Papyan et al. 2020."""
    norms = torch.linalg.matrix_norm(weight), torch.linalg.matrix_norm(centered_means)
    return by_block(lambda w, mean: (w / norms[0] - mean / norms[1]).square().sum(1), weight, centered_means).sum()


def etf_error(weight: Tensor, centered_means: Tensor) -> Tensor:
    """NC2's ETF error of W μ̃ᵀ. In [0, 2], 0 at collapse. Zhu et al. 2021."""
    unit = weight / torch.linalg.matrix_norm(weight)  # keeps fourth powers, squares of the product, in range
    return nc2.etf_error(unit @ (centered_means / torch.linalg.matrix_norm(centered_means)).mT)


def alignment(weight: Tensor, centered_means: Tensor, blur: Tensor | float = 0.0) -> Tensor:
    """Mean cosine of w_k and μ̃_k. In [-1, 1], 1 at collapse. Not defined where a μ̃_k is not longer than `blur`."""
    return alignments(weight, centered_means, blur).mean()


def alignments(weight: Tensor, centered_means: Tensor, blur: Tensor | float = 0.0) -> Tensor:
    """Cosine (K,) of w_k and μ̃_k, NaN where a μ̃_k is not longer than `blur`. In [-1, 1], 1 at collapse."""
    short = torch.linalg.vector_norm(centered_means, dim=1) <= blur
    cosines = by_block(partial(torch.nn.functional.cosine_similarity, dim=1, eps=0.0), weight, centered_means)
    return cosines.masked_fill(short, torch.nan)


def uniformity(weight: Tensor, centered_means: Tensor) -> Tensor:
    """Variance over classes of w_k·μ̃_k. >= 0, 0 at collapse."""
    return (weight * centered_means).sum(1).var()


def etf_gap(weight: Frame, centered_means: Frame) -> Tensor:
    """Squared distance between the ETFs nearest to W and to μ̃, both of unit Frobenius norm. In [0, 4], 0 at collapse.

    Not defined where W or μ̃ has rank below K-1 after centering, because its nearest ETF is not unique. [Markou et al.
    2024](https://arxiv.org/abs/2411.01248).
    """
    gap = weight.nearest_etf_contrasts - centered_means.nearest_etf_contrasts
    return gap.square().sum() / len(gap)  # K-1 orthonormal rows have squared norm K-1


def _alignment_of(group: str) -> Formula:
    def of_group(a: Analysis) -> Tensor | None:
        if not (a.dual_rows and a.means and group in a.shot_groups):
            return None
        return alignments(a.dual_rows.rows, a.means.rows, a.means.blur)[a.shot_groups[group]].mean()

    return of_group


def _etf_error(rows: Frame, means: Frame) -> Tensor:
    return crowded.etf_error(rows, means) if rows.crowded else etf_error(rows.rows, means.rows)


def _etf_gap(rows: Frame, means: Frame) -> Tensor | None:
    return etf_gap(rows, means) if rows.has_one_nearest_etf and means.has_one_nearest_etf else None


METRICS: dict[str, Metric] = {
    "nc3/self_duality": Metric(
        of_both(lambda rows, means: self_duality(rows.rows, means.rows)),
        "‖W/‖W‖_F − μ̃/‖μ̃‖_F‖²_F",
        "[0, 4]",
        "0",
        "train",
        PAPYAN,
        view=View(
            "NC3: classifier aligns with class means",
            "squared distance of the classifier from the centered class means, both of unit norm",
            "train",
            ("table", "curves"),
            at_collapse=0,
        ),
    ),
    "nc3/etf_error": Metric(
        of_both(_etf_error),
        "‖G/‖G‖_F − M/√(K−1)‖_F, G = Wμ̃ᵀ",
        "[0, 2]",
        "0",
        "train",
        ZHU,
    ),
    "nc3/alignment": Metric(
        of_both(lambda rows, means: alignment(rows.rows, means.rows, means.blur)),
        "mean over classes of cos(w_k, μ̃_k)",
        "[−1, 1]",
        "1",
        "train",
    ),
    **{
        f"nc3/alignment_{group}": Metric(
            _alignment_of(group), f"mean over {group}-shot classes of cos(w_k, μ̃_k)", "[−1, 1]", "1", "train"
        )
        for group in SHOTS
    },
    "nc3/uniformity": Metric(
        of_both(lambda rows, means: uniformity(rows.rows, means.rows)),
        "variance over classes of w_k·μ̃_k; also 0 for W = 0",
        "[0, ∞)",
        "0",
        "train",
    ),
    "nc3/etf_gap": Metric(
        of_both(_etf_gap),
        "squared distance of the ETFs nearest to W and to μ̃, both of unit Frobenius norm",
        "[0, 4]",
        "0",
        "train",
        MARKOU,
    ),
}
