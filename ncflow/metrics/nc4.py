"""NC4, decisions: the classifier agrees with the nearest class mean, without bias and with equal margins."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ncflow.metrics.moments import CHUNK, float64_chunks
from ncflow.metrics.pairs import first_of_equals, nearest_distances
from ncflow.metrics.rounding import Rounding
from ncflow.metrics.rows import PAPYAN, Metric, View

if TYPE_CHECKING:
    from ncflow.metrics.analysis import Analysis

BATCH = 2**20  # logits in float64 at a time
FEW = 64  # up to so many class means join the classifier's matrix product, at almost no cost
CERTAIN = 1 - 1e-6  # factor on half the distance of two means: a margin above the rounding of distances


@dataclass(frozen=True)
class Decisions:
    """A classifier's decisions on N samples. The size of the fields does not depend on d or K.

    predictions (N,). ranks (N,): number of classes that score higher than the target. confidences (N,): largest softmax
    probability. losses (N,): cross-entropy. nearest_means (N,): class of the nearest mean. margins (N,): cosine to the
    target's row minus the largest other cosine, None if not requested.
    """

    predictions: Tensor
    ranks: Tensor
    confidences: Tensor
    losses: Tensor
    nearest_means: Tensor
    margins: Tensor | None = None


FIELDS = (torch.int64, torch.int64, torch.float64, torch.float64, torch.int64, torch.float64)


def decide(
    features: Tensor,
    targets: Tensor,
    weight: Tensor,
    bias: Tensor,
    class_means: Tensor,
    sample_mean: Tensor,
    row_blur: Tensor | float = 0.0,
    feature_blur: Tensor | float = 0.0,
    gaps: Tensor | None = None,
    *,
    with_margins: bool = True,
) -> Decisions:
    """Decisions on features (N, d) by weight (K, d), bias (K,) and class means (K, d), NaN for a class without one.

    Margins use centered features (minus μ_N (d,)) and centered classifier rows (minus their mean row). Both shifts are
    subtracted from the products of the logits. A centered row or feature not longer than its `blur` is rounding, and
    its cosines are 0. gaps (K,) are the distances of class means to the nearest other one, if already known. The
    other results have the same bits without margins.
    """
    nearest_means = _NearestMeans.among(class_means, sample_mean, gaps)
    few = len(weight) <= FEW
    rows = torch.cat([weight, nearest_means.rows]) if few else weight
    along_center = weight @ sample_mean
    scale = _inverse(torch.linalg.vector_norm(weight - weight.mean(0), dim=1), row_blur)
    # Allocate results once: small tensors kept from each chunk would fragment the memory of the freed large ones.
    made = [torch.empty_like(targets, dtype=dtype) for dtype in (FIELDS if with_margins else FIELDS[:-1])]
    width = CHUNK if few else max(FEW, min(CHUNK, BATCH // len(weight)))  # logits that fit into a processor's cache
    for h, y, *results in float64_chunks(features, targets, *made, size=width):
        if few:  # this order makes the product twice as fast
            products, along_means = (rows @ h.mT).mT.tensor_split(2, dim=1)
            nearest = nearest_means.by_products(along_means)
        else:
            products, nearest = h @ rows.mT, nearest_means.of(h, y)
        logits = products + bias
        best, predictions = logits.max(1)
        own = logits.gather(1, y.unsqueeze(1))
        ranks = (logits > own).sum(1)
        exponentials = logits.sub_(best.unsqueeze(1)).exp_().sum(1)
        confidences, losses = 1 / exponentials, exponentials.log() + (best - own.squeeze(1))
        found = [predictions, ranks, confidences, losses, nearest]
        if with_margins:
            aligned = products.sub_(along_center)
            cosines = aligned.sub_(aligned.mean(1, keepdim=True)).mul_(scale)
            sizes = torch.linalg.vector_norm(h.sub_(sample_mean), dim=1)
            found.append((_margins(cosines, y) * _inverse(sizes, feature_blur)).clamp(-2, 2))
        for result, values in zip(results, found, strict=True):
            result.copy_(values)
    return Decisions(*made)


def nearest_classes(
    features: Tensor, targets: Tensor, class_means: Tensor, sample_mean: Tensor, gaps: Tensor | None = None
) -> Tensor:
    """The class (N,) of the mean nearest to each of the features (N, d), the same as from `decide`."""
    means = _NearestMeans.among(class_means, sample_mean, gaps)
    few = len(class_means) <= FEW
    chunks = float64_chunks(features, targets)
    return torch.cat([means.by_products(h @ means.rows.mT) if few else means.of(h, y) for h, y in chunks])


def ncc_accuracy(
    nearest: Tensor, targets: Tensor, class_means: Tensor, rounding: Rounding, gaps: Tensor | None = None
) -> Tensor:
    """Share of samples whose nearest class mean (N,) is that of their own class. In [0, 1], 1 at collapse.

    Where means (K, d) are equal up to rounding, the first of their classes counts as the nearest.
    """
    if gaps is not None and not bool((gaps <= rounding.level()).any()):
        return (nearest == targets).double().mean()
    return (_first_of_equals(class_means, rounding)[nearest] == targets).double().mean()


def mean_gaps(class_means: Tensor, sample_mean: Tensor) -> Tensor:
    """The distance (K,) of each class mean to the nearest other one, NaN for a class without a mean."""
    gaps, known = torch.full_like(class_means[:, 0], torch.nan), class_means.isfinite().all(1)
    gaps[known] = nearest_distances(class_means[known] - sample_mean)
    return gaps


def _first_of_equals(class_means: Tensor, rounding: Rounding) -> Tensor:
    """For each class (K,), the first class whose mean is equal up to rounding, usually the class itself."""
    (known,) = torch.where(class_means.isfinite().all(1))
    means = class_means[known]
    first = torch.arange(len(class_means), device=known.device)
    first[known] = known[first_of_equals(means - means.mean(0), rounding.level())]
    return first


def ncc_mismatch(decisions: Decisions, class_means: Tensor, rounding: Rounding) -> Tensor:
    """Share of samples that classifier and nearest class mean assign differently. In [0, 1], 0 at collapse.

    Class means (K, d) that are equal up to rounding count as equally near.
    """
    assignments = torch.stack([decisions.predictions, decisions.nearest_means], dim=1)
    differing = assignments[assignments[:, 0] != assignments[:, 1]]
    number = torch.zeros((), dtype=torch.float64, device=class_means.device)
    for decided, nearest in (part.unbind(1) for part in torch.split(differing, CHUNK)):
        gaps = torch.linalg.vector_norm(class_means[decided] - class_means[nearest], dim=1)
        number += (~(gaps <= rounding.level())).sum()  # without a mean, the gap is NaN and counts as different
    return number / len(assignments)


def bias_collapse(weight: Tensor, bias: Tensor, sample_mean: Tensor) -> Tensor:
    """‖b + Wμ_N‖. >= 0, 0 at collapse, where the bias only cancels the mean of the features."""
    return torch.linalg.vector_norm(bias + weight @ sample_mean)


@dataclass(frozen=True)
class _NearestMeans:
    """rows (K, d): class means minus μ_N, 0 for a class without a mean. half_squares (K,): infinite for such a class.

    reach (K,) is half of a mean's distance to the next mean. By the triangle inequality, μ_k is the nearest mean of
    every h within its reach. Distances to a mean have a relative error below d·eps. Distances between means have one
    below 2·10⁴·d·eps, because they are never computed from norms above 10⁴ times their squares. CERTAIN exceeds both
    for d up to 200,000. Only samples outside of the reach are compared with all means.
    """

    means: Tensor
    rows: Tensor
    half_squares: Tensor
    reach: Tensor

    @classmethod
    def among(cls, means: Tensor, sample_mean: Tensor, gaps: Tensor | None = None) -> _NearestMeans:
        rows = means - sample_mean  # a common shift keeps the distances and improves their precision
        half_squares = (rows.square().sum(1) / 2 + rows @ sample_mean).nan_to_num(nan=torch.inf)
        reach = torch.zeros_like(half_squares)
        if len(means) > FEW:
            gaps = mean_gaps(means, sample_mean) if gaps is None else gaps
            reach = (gaps * (CERTAIN / 2)).nan_to_num(0.0, torch.inf)
        return cls(means, rows.nan_to_num(), half_squares, reach)

    def of(self, features: Tensor, targets: Tensor) -> Tensor:
        """The class (n,) of the mean nearest to each of the features (n, d)."""
        nearest = targets.clone()
        distances = torch.linalg.vector_norm(features - self.means.index_select(0, targets), dim=1)
        (unsettled,) = torch.where(~(distances < self.reach[targets]))
        nearest[unsettled] = self.by_products(features[unsettled] @ self.rows.mT)
        return nearest

    def by_products(self, products: Tensor) -> Tensor:
        """As `of`, from the products (n, K) of features and rows: the least (‖h - μ‖² - ‖h‖²)/2 up to a constant."""
        return (self.half_squares - products).min(1).indices


def _inverse(norms: Tensor, blur: Tensor | float = 0.0) -> Tensor:
    """1/norms, or 0 for a norm up to `blur`, where the row has no direction."""
    return torch.where(norms > blur, 1 / norms, 0)


def _margins(cosines: Tensor, targets: Tensor) -> Tensor:
    """Cosine of the target minus the largest other one: (B, K), (B,) -> (B,). Overwrites the cosines."""
    column = targets.unsqueeze(1)
    own = cosines.gather(1, column)
    return (own - cosines.scatter_(1, column, -torch.inf).amax(1, keepdim=True)).squeeze(1)


def _ncc_mismatch(a: Analysis) -> Tensor | None:
    return ncc_mismatch(a.decisions, a.nearest, a.nearest_rounding) if a.decisions and a.nearest_differ else None


def _ncc_accuracy(a: Analysis) -> Tensor | None:
    if a.samples is None or a.nearest_classes is None:
        return None
    return ncc_accuracy(a.nearest_classes, a.samples[1], a.nearest, a.nearest_rounding, a.nearest_gaps)


def _bias_collapse(a: Analysis) -> Tensor | None:
    return bias_collapse(*a.classifier, a.moments.sample_mean) if a.classifier else None


def _all_margins(a: Analysis) -> Tensor | None:
    defined = a.decisions and a.rows and a.rows.differs and a.features_differ
    return a.decisions.margins if a.decisions and defined else None


METRICS: dict[str, Metric] = {
    "nc4/ncc_mismatch": Metric(
        _ncc_mismatch,
        "share of samples whose argmax(Wh + b) is not the nearest class mean of the train split",
        "[0, 1]",
        "0",
        "both",
        PAPYAN,
        view=View(
            "NC4: classifier is nearest class mean",
            "share of samples on which the classifier and the nearest training class mean disagree",
            "test",
            ("curves",),
            at_collapse=0,
            percent=True,
        ),
    ),
    "nc4/ncc_accuracy": Metric(
        _ncc_accuracy,
        "share of samples whose nearest class mean of the train split is that of their class",
        "[0, 1]",
        "1",
        "test",
    ),
    "bias/collapse": Metric(_bias_collapse, "‖b + Wμ_N‖", "[0, ∞)", "0", "train"),
    "margin/mean": Metric(
        lambda a: None if (margins := _all_margins(a)) is None else margins.mean(),
        "mean of cos(h − μ_N, w̃_y) − max over j≠y of cos(h − μ_N, w̃_j), w̃_k = w_k − mean row",
        "[−2, 2]",
        "K/(K−1)",
        needs="margins",
    ),
    "margin/min": Metric(
        lambda a: None if (margins := _all_margins(a)) is None else margins.min(),
        "the smallest of them",
        "[−2, 2]",
        "K/(K−1)",
        needs="margins",
    ),
}
