"""NC4, decisions: the classifier decides like the nearest class mean, without bias and with equal margins."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ncflow.metrics.moments import CHUNK, float64_chunks
from ncflow.metrics.pairs import nearest_distances, pairs, squared_distances
from ncflow.metrics.rounding import Rounding
from ncflow.metrics.rows import PAPYAN, Metric, View

if TYPE_CHECKING:
    from ncflow.metrics.analysis import Analysis

FEW = 64  # so few class means are multiplied with along with the classifier, at nearly no cost
CERTAIN = 1 - 1e-6  # of half the distance of two means: what the rounding of distances cannot bridge


@dataclass(frozen=True)
class Decisions:
    """What a classifier decides about N samples; the fields stay small whatever d and K are.

    predictions (N,), ranks (N,): how many classes score higher than the target, confidences (N,): largest softmax
    probability, losses (N,): cross-entropy, nearest_means (N,): class of the nearest mean, margins (N,): cosine to the
    target's row minus the largest other cosine.
    """

    predictions: Tensor
    ranks: Tensor
    confidences: Tensor
    losses: Tensor
    nearest_means: Tensor
    margins: Tensor


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
) -> Decisions:
    """Decisions on features (N, d) by weight (K, d), bias (K,) and class means (K, d), NaN for a class without one.

    Margins are measured after centering: features by μ_N (d,), classifier rows by their mean row. Both are subtracted
    from the products of the logits. A centered row or feature no longer than its `blur` is rounding: its cosines are 0.
    """
    nearest_means = _NearestMeans.among(class_means, sample_mean)
    few = len(weight) <= FEW
    rows = torch.cat([weight, nearest_means.rows]) if few else weight
    along_center = weight @ sample_mean
    scale = _inverse(torch.linalg.vector_norm(weight - weight.mean(0), dim=1), row_blur)
    # Results go where they stay: small tensors kept from every chunk would pin the large ones freed around them.
    made = Decisions(*(torch.empty_like(targets, dtype=dtype) for dtype in FIELDS))
    for h, y, *results in float64_chunks(features, targets, *vars(made).values()):
        if few:  # this way round the product is twice as fast
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
        aligned = products.sub_(along_center)
        cosines = aligned.sub_(aligned.mean(1, keepdim=True)).mul_(scale)
        sizes = torch.linalg.vector_norm(h.sub_(sample_mean), dim=1)
        margins = (_margins(cosines, y) * _inverse(sizes, feature_blur)).clamp(-2, 2)
        found = (predictions, ranks, confidences, losses, nearest, margins)
        for result, values in zip(results, found, strict=True):
            result.copy_(values)
    return made


def nearest_classes(features: Tensor, targets: Tensor, class_means: Tensor, sample_mean: Tensor) -> Tensor:
    """The class (N,) of the mean that is nearest to each of the features (N, d), as `decide` finds it."""
    means = _NearestMeans.among(class_means, sample_mean)
    few = len(class_means) <= FEW
    chunks = float64_chunks(features, targets)
    return torch.cat([means.by_products(h @ means.rows.mT) if few else means.of(h, y) for h, y in chunks])


def ncc_accuracy(nearest: Tensor, targets: Tensor, class_means: Tensor, rounding: Rounding) -> Tensor:
    """Share of samples whose nearest class mean (N,) is that of their own class. In [0, 1], 1 at collapse.

    Means (K, d) that are one and the same up to rounding cannot be told apart: the first of these classes gets all.
    """
    return (_first_of_equals(class_means, rounding)[nearest] == targets).double().mean()


def _first_of_equals(class_means: Tensor, rounding: Rounding) -> Tensor:
    """For each class (K,) the first one whose mean is the same up to rounding: most often itself."""
    (known,) = torch.where(class_means.isfinite().all(1))
    means = class_means[known]
    i, j = pairs(len(known), known.device)
    same = squared_distances(means - means.mean(0)) <= rounding.level().square()
    first = torch.arange(len(class_means), device=known.device)
    return first.scatter_reduce(0, known[j[same]], known[i[same]], "amin")


def ncc_mismatch(decisions: Decisions, class_means: Tensor, rounding: Rounding) -> Tensor:
    """Share of samples that classifier and nearest class mean assign differently. In [0, 1], 0 at collapse.

    Of class means (K, d) that are one and the same up to rounding, each is as near as the others.
    """
    assignments = torch.stack([decisions.predictions, decisions.nearest_means], dim=1)
    differing = assignments[assignments[:, 0] != assignments[:, 1]]
    number = torch.zeros((), dtype=torch.float64, device=class_means.device)
    for decided, nearest in (part.unbind(1) for part in torch.split(differing, CHUNK)):
        gaps = torch.linalg.vector_norm(class_means[decided] - class_means[nearest], dim=1)
        number += (~(gaps <= rounding.level())).sum()  # a class without a mean has no gap, and is not the nearest
    return number / len(assignments)


def bias_collapse(weight: Tensor, bias: Tensor, sample_mean: Tensor) -> Tensor:
    """‖b + Wμ_N‖. >= 0, 0 at collapse: the bias only undoes the mean of the features."""
    return torch.linalg.vector_norm(bias + weight @ sample_mean)


@dataclass(frozen=True)
class _NearestMeans:
    """rows (K, d): class means less μ_N, 0 for a class without one; half_squares (K,), infinite then; reach (K,).

    By the triangle inequality μ_k is the nearest mean of every h within its reach, half of its distance to the next
    mean. Distances to a mean have a relative error below d·eps, those between means below 2·10⁴·d·eps, for they are
    never taken from norms more than 10⁴ times their squares; CERTAIN is beyond both for d up to 200,000. Only samples
    outside of it are multiplied with all means.
    """

    means: Tensor
    rows: Tensor
    half_squares: Tensor
    reach: Tensor

    @classmethod
    def among(cls, means: Tensor, sample_mean: Tensor) -> _NearestMeans:
        rows = means - sample_mean  # the common shift keeps the distances, and more of their digits
        half_squares = (rows.square().sum(1) / 2 + rows @ sample_mean).nan_to_num(nan=torch.inf)
        known, reach = half_squares.isfinite(), torch.zeros_like(half_squares)
        if len(means) > FEW:
            reach[known] = nearest_distances(rows[known]) * (CERTAIN / 2)
        return cls(means, rows.nan_to_num(), half_squares, reach)

    def of(self, features: Tensor, targets: Tensor) -> Tensor:
        """The class (n,) of the mean that is nearest to each of the features (n, d)."""
        nearest = targets.clone()
        distances = torch.linalg.vector_norm(features - self.means.index_select(0, targets), dim=1)
        (unsettled,) = torch.where(~(distances < self.reach[targets]))
        nearest[unsettled] = self.by_products(features[unsettled] @ self.rows.mT)
        return nearest

    def by_products(self, products: Tensor) -> Tensor:
        """The same from the products (n, K) of features and rows: (‖h - μ‖² - ‖h‖²)/2 up to a constant is smallest."""
        return (self.half_squares - products).min(1).indices


def _inverse(norms: Tensor, blur: Tensor | float = 0.0) -> Tensor:
    """1/norms; 0 for a norm up to `blur`, that of a row that points nowhere."""
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
    return ncc_accuracy(a.nearest_classes, a.samples[1], a.nearest, a.nearest_rounding)


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
    ),
    "margin/min": Metric(
        lambda a: None if (margins := _all_margins(a)) is None else margins.min(),
        "the smallest of them",
        "[−2, 2]",
        "K/(K−1)",
    ),
}
