"""NC5: the mean of features of no known class is orthogonal to every class mean."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from ncflow.metrics.pairs import unit_rows
from ncflow.metrics.rows import Metric

if TYPE_CHECKING:
    from ncflow.metrics.analysis import Analysis


def ood_cosine(
    class_means: Tensor, ood_mean: Tensor, blur: Tensor | float = 0.0, ood_blur: Tensor | float = 0.0
) -> Tensor:
    """Mean over classes of |cos(μ_k, μ_ood)| for means (K, d) and (d,), not centered. In [0, 1], 0 at collapse.

    Not defined where a mean is not longer than its `blur`, its rounding. Ben Ammar et al. 2024, https://arxiv.org/abs/2310.06823.
    """
    return (unit_rows(class_means, blur) @ unit_rows(ood_mean.unsqueeze(0), ood_blur)[0]).abs().mean()


def _ood_cosine(a: Analysis) -> Tensor | None:
    if a.ood is None:
        return None
    return ood_cosine(a.present.means, a.ood.means[0], a.present.rounding.level(), a.ood.rounding.level())


METRICS: dict[str, Metric] = {
    "nc5/ood_cosine": Metric(
        _ood_cosine,
        "mean over classes of abs(cos(μ_k, μ_ood)), not centered; with `ood_features` only",
        "[0, 1]",
        "0",
        "test",
        "Ben Ammar et al. 2024",
    ),
}
