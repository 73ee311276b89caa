"""Slow, obvious twins of the fast functions: definitions word by word, one class, one pair or one sample at a time.

numpy in float64; where float64 itself cancels, the functions called exact_* count with 60 digits. A `Problem` is all
that the metrics of one split depend on; METRICS, at the end, has the definition of every name that is logged.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations, permutations
from typing import Any

import mpmath
import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize, nnls

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Problem:
    """features (N, d), targets (N,), a classifier weight (K, d) and bias (K,), class_counts (K,) of the train split.

    ood (M, d): features of no known class.
    """

    features: Array
    targets: NDArray[np.int64]
    weight: Array
    bias: Array
    class_counts: Sequence[int]
    ood: Array | None = None

    @property
    def labels(self) -> list[int]:
        """The classes that have samples."""
        return [k for k in range(len(self.weight)) if (self.targets == k).any()]

    @property
    def means(self) -> Array:
        """Class means, of the classes that have samples."""
        return np.array([self.features[self.targets == k].mean(0) for k in self.labels])

    @property
    def centered_means(self) -> Array:
        return self.means - self.means.mean(0)

    @property
    def rows(self) -> Array:
        """The classifier rows of the classes that have samples."""
        return self.weight[self.labels]

    @property
    def logits(self) -> Array:
        return np.array([[w @ h + b for w, b in zip(self.weight, self.bias, strict=True)] for h in self.features])

    @property
    def tensors(self) -> tuple[torch.Tensor, ...]:
        """features, targets, weight and bias, as `collapse_metrics` takes them."""
        arrays = self.features, self.targets, self.weight, self.bias
        return tuple(torch.from_numpy(np.array(array)) for array in arrays)


def draw_problem(
    seed: int,
    *,
    sizes: Sequence[int] = (25, 18, 12, 9, 6, 3),
    num_features: int = 8,
    spread: float = 0.5,
    offset: float = 0.0,
    class_counts: Sequence[int] = (150, 60, 30, 20, 8, 3),
) -> Problem:
    """Gaussian clusters of the given sizes around Gaussian means (of size 1), all moved by the same offset."""
    random = np.random.default_rng(seed)
    targets = random.permutation(np.repeat(np.arange(len(sizes)), sizes))
    means = random.normal(size=(len(sizes), num_features))
    features = means[targets] + spread * random.normal(size=(len(targets), num_features)) + offset
    weight = means + 0.5 * random.normal(size=means.shape)
    bias = random.normal(size=len(sizes))
    ood = random.normal(size=(11, num_features)) + offset
    return Problem(features, targets, weight, bias, class_counts, ood)


def contrast_basis(num_classes: int) -> Array:
    """Q (K, K-1): the reflection that takes the first axis to 1/sqrt(K), without its first column."""
    axis = np.eye(num_classes)[0] - np.ones(num_classes) / math.sqrt(num_classes)
    return (np.eye(num_classes) - 2 * np.outer(axis, axis) / (axis @ axis))[:, 1:]


def polar_factor(a: Array) -> Array:
    """A (AᵀA)^(-1/2)."""
    values, vectors = np.linalg.eigh(a.T @ a)
    return a @ (vectors / np.sqrt(values)) @ vectors.T


def polar_gradient(a: Array, factor: Array, upstream: Array) -> Array:
    """The gradient of a's polar factor (d, k), by the k² × k² linear system that an implicit layer builds.

    P = A H⁻¹ with H = PᵀA; the part of dP inside of the span of P is PX with X skew, HX + XH = Pᵀ dA - dAᵀ P.
    """
    h, eye = factor.T @ a, np.eye(a.shape[1])
    inside = factor.T @ upstream - upstream.T @ factor
    x = np.linalg.solve(np.kron(h, eye) + np.kron(eye, h), inside.ravel()).reshape(h.shape)
    return factor @ x + (upstream - factor @ (factor.T @ upstream)) @ np.linalg.inv(h)


def nearest_etf(means: Array) -> Array:
    """The problem as published: P (d, K) maximizes tr(PᵀH̄M), W = sqrt(K/(K-1)) M Pᵀ. d >= K, means of rank K-1."""
    num_classes = len(means)
    m = np.eye(num_classes) - 1 / num_classes
    u, _, vh = np.linalg.svd((means - means.mean(0)).T @ m, full_matrices=False)
    return math.sqrt(num_classes / (num_classes - 1)) * m @ (u @ vh).T


def etf_objective(etf: Array, means: Array, proximal: float = 0.0, anchor: Array | float = 0.0) -> float:
    """‖H̄ - P Qᵀ/sqrt(K-1)‖² + (δ/2)‖P - P_prev‖², with the P of an ETF sqrt(K/(K-1)) Q Pᵀ."""
    shrink = math.sqrt((len(means) - 1) / len(means))
    centered = means - means.mean(0)
    size = np.linalg.norm(centered)
    target = centered / size if size > 0 else centered
    pull = proximal / 2 * np.sum((shrink * (etf - anchor)) ** 2)
    return float(np.sum((target - shrink * etf / math.sqrt(len(means) - 1)) ** 2) + pull)


def exact_etf_distance(means: Array) -> float:
    """2 - 2/sqrt(K-1) ‖H̄‖_*, the nuclear norm from the K-1 nonzero eigenvalues of the Gram matrix."""
    with mpmath.workdps(60):
        rows = [[mpmath.mpf(x) for x in row] for row in means.tolist()]
        center = [mpmath.fsum(column) / len(rows) for column in zip(*rows, strict=True)]
        h = mpmath.matrix([[x - c for x, c in zip(row, center, strict=True)] for row in rows])
        gram = h * h.T / mpmath.norm(h) ** 2
        eigenvalues = sorted(mpmath.eigsy(gram, eigvals_only=True))[1:]
        nuclear = mpmath.fsum(mpmath.sqrt(abs(x)) for x in eigenvalues)
        return float(2 - 2 * nuclear / mpmath.sqrt(len(rows) - 1))


def seli_grams(counts: Sequence[int]) -> tuple[Array, Array]:
    """V Λ Vᵀ and V Λ⁺ Vᵀ of (I - J/K) D (I - J/K) = V Λ² Vᵀ."""
    m = np.eye(len(counts)) - 1 / len(counts)
    squares, v = np.linalg.eigh(m @ np.diag(np.array(counts, dtype=float)) @ m)
    root = np.sqrt(squares[1:])  # the smallest eigenvalue is the zero of the all-ones vector
    return (v[:, 1:] * root) @ v[:, 1:].T, (v[:, 1:] / root) @ v[:, 1:].T


def scatters(problem: Problem) -> tuple[Array, Array]:
    """Σ_W, one sample at a time, and Σ_B, one class at a time: (d, d) each."""
    d = problem.features.shape[1]
    within, between = np.zeros((d, d)), np.zeros((d, d))
    means = dict(zip(problem.labels, problem.means, strict=True))
    for h, y in zip(problem.features, problem.targets, strict=True):
        within += np.outer(h - means[y], h - means[y])
    for mean in problem.centered_means:
        between += np.outer(mean, mean)
    return within / len(problem.features), between / len(means)


def exact_nc1(problem: Problem) -> dict[str, float]:
    """nc1/pinv, nc1/quotient and nc1/vci with 60 digits; eigenvalues below 1e-40 of the largest are zeros."""
    with mpmath.workdps(60):
        within, between = _exact_scatters(problem)
        num_classes, rank = len(problem.labels), min(len(problem.labels) - 1, problem.features.shape[1])
        return {
            "nc1/pinv": float(_trace(within * _exact_pinv(between)) / num_classes),
            "nc1/quotient": float(_trace(within) / _trace(between)),
            "nc1/vci": float(1 - _trace(_exact_pinv(within + between) * between) / rank),
        }


def _exact_scatters(problem: Problem) -> tuple[Any, Any]:
    d = problem.features.shape[1]
    within, between, means = mpmath.zeros(d), mpmath.zeros(d), {}
    for k in problem.labels:
        samples = [mpmath.matrix(h) for h in problem.features[problem.targets == k].tolist()]
        means[k] = sum(samples, mpmath.zeros(d, 1)) / len(samples)
        for h in samples:
            within += (h - means[k]) * (h - means[k]).T
    center = sum(means.values(), mpmath.zeros(d, 1)) / len(means)
    for mean in means.values():
        between += (mean - center) * (mean - center).T
    return within / len(problem.features), between / len(means)


def _exact_pinv(a: Any) -> Any:
    values, vectors = mpmath.eigsy(a)
    cut = max(values) * mpmath.mpf(10) ** -40
    return vectors * mpmath.diag([1 / x if x > cut else 0 for x in values]) * vectors.T


def _trace(a: Any) -> Any:
    return mpmath.fsum(a[i, i] for i in range(a.rows))


def pinv(problem: Problem) -> float:
    within, between = scatters(problem)
    return float(np.trace(within @ np.linalg.pinv(between, rcond=1e-10)) / len(problem.labels))


def quotient(problem: Problem) -> float:
    within, between = scatters(problem)
    return float(np.trace(within) / np.trace(between))


def cdnv(problem: Problem) -> float:
    groups = [problem.features[problem.targets == k] for k in problem.labels]
    variances = [np.mean([np.sum((h - rows.mean(0)) ** 2) for h in rows]) for rows in groups]
    gaps = {
        (i, j): np.sum((groups[i].mean(0) - groups[j].mean(0)) ** 2) for i, j in permutations(range(len(groups)), 2)
    }
    return float(np.mean([(variances[i] + variances[j]) / (2 * gap) for (i, j), gap in gaps.items()]))


def vci(problem: Problem) -> float:
    within, between = scatters(problem)
    rank = min(len(problem.labels) - 1, problem.features.shape[1])
    return float(1 - np.trace(np.linalg.pinv(within + between, rcond=1e-12) @ between) / rank)


def numerical_rank(problem: Problem) -> float:
    groups = [rows for k in problem.labels if (rows := problem.features[problem.targets == k]).any()]
    return float(np.mean([(np.linalg.norm(rows, "nuc") / np.linalg.norm(rows, "fro")) ** 2 for rows in groups]))


def equinorm(rows: Array) -> float:
    norms = [np.linalg.norm(row) for row in rows]
    return float(np.std(norms, ddof=1) / np.mean(norms))


def cosine(a: Array, b: Array) -> float:
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def equiangularity(rows: Array) -> float:
    return float(np.std([cosine(a, b) for a, b in combinations(rows, 2)], ddof=1))


def maximal_angle(rows: Array) -> float:
    return float(np.mean([abs(cosine(a, b) + 1 / (len(rows) - 1)) for a, b in combinations(rows, 2)]))


def exact_orthogonal_distance(rows: Array) -> float:
    """2 - 2/sqrt(K) ‖A‖_* of A of unit norm, with 40 digits."""
    with mpmath.workdps(40):
        s = mpmath.svd_r(mpmath.matrix(rows.tolist()), compute_uv=False)
        size = mpmath.sqrt(mpmath.fsum(x * x for x in s))
        return float(2 - 2 * mpmath.fsum(s) / size / mpmath.sqrt(len(rows)))


def etf_error(gram: Array) -> float:
    return unit_distance(gram, np.eye(len(gram)) - 1 / len(gram))


def unit_distance(a: Array, b: Array) -> float:
    """Frobenius distance of two matrices, each scaled to unit norm."""
    return float(np.linalg.norm(a / np.linalg.norm(a) - b / np.linalg.norm(b)))


def gnc2_log(rows: Array) -> float:
    units = [row / np.linalg.norm(row) for row in rows]
    return float(np.mean([-math.log(np.linalg.norm(a - b)) for a, b in permutations(units, 2)]))


def gnc2_spread(rows: Array) -> float:
    units = [row / np.linalg.norm(row) for row in rows]
    return float(np.std([-math.log(np.linalg.norm(a - b)) for a, b in combinations(units, 2)], ddof=1))


def max_cosine(rows: Array) -> float:
    return max(cosine(a, b) for a, b in combinations(rows, 2))


def one_vs_rest_margin(rows: Array) -> float:
    """The least distance of a unit row to the hull of the others, each by a least squares fit with weights >= 0.

    The weights fit the row by the others and 1 by their sum, with the same error weight; see Lawson and Hanson 1974.
    """
    units = np.array([row / np.linalg.norm(row) for row in rows])
    distances = []
    for k, unit in enumerate(units):
        gaps = np.delete(units, k, axis=0) - unit
        weights = nnls(np.vstack([gaps.T, np.ones(len(gaps))]), np.eye(gaps.shape[1] + 1)[-1])[0]
        distances.append(np.linalg.norm(weights / weights.sum() @ gaps))
    return float(min(distances))


def crowding(rows: Array, sharpness: float) -> float:
    """log Σ_{i≠j} exp(β w_i·w_j)/β."""
    return math.log(sum(math.exp(sharpness * float(a @ b)) for a, b in permutations(rows, 2))) / sharpness


def many(count: int) -> bool:
    return count > 100


def medium(count: int) -> bool:
    return 20 <= count <= 100


def few(count: int) -> bool:
    return count < 20


def quotient_of(problem: Problem, in_group: Callable[[int], bool]) -> float:
    """tr Σ_W over the samples of the group, one by one, and tr Σ_B over all classes."""
    means = dict(zip(problem.labels, problem.means, strict=True))
    samples = zip(problem.features, problem.targets, strict=True)
    squares = [np.sum((h - means[y]) ** 2) for h, y in samples if in_group(problem.class_counts[y])]
    return float(np.mean(squares) / np.trace(scatters(problem)[1]))


def cdnv_of(problem: Problem, in_group: Callable[[int], bool]) -> float:
    groups = {k: problem.features[problem.targets == k] for k in problem.labels}
    means = {k: rows.mean(0) for k, rows in groups.items()}
    variances = {k: np.mean([np.sum((h - means[k]) ** 2) for h in rows]) for k, rows in groups.items()}
    terms = [
        (variances[i] + variances[j]) / (2 * np.sum((means[i] - means[j]) ** 2))
        for i, j in permutations(problem.labels, 2)
        if in_group(problem.class_counts[i])
    ]
    return float(np.mean(terms))


def alignment(problem: Problem, in_group: Callable[[int], bool] = lambda count: True) -> float:
    rows = zip(problem.rows, problem.centered_means, problem.labels, strict=True)
    return float(np.mean([cosine(w, m) for w, m, k in rows if in_group(problem.class_counts[k])]))


def uniformity(problem: Problem) -> float:
    return float(np.var([w @ m for w, m in zip(problem.rows, problem.centered_means, strict=True)], ddof=1))


def etf_gap(problem: Problem) -> float:
    return unit_distance(nearest_etf(problem.rows), nearest_etf(problem.centered_means)) ** 2


def ncc_mismatch(problem: Problem) -> float:
    means = problem.means
    nearest = [problem.labels[np.argmin([np.linalg.norm(h - m) for m in means])] for h in problem.features]
    return float(np.mean(problem.logits.argmax(1) != nearest))


def ncc_accuracy(problem: Problem) -> float:
    means = problem.means
    nearest = [problem.labels[np.argmin([np.linalg.norm(h - m) for m in means])] for h in problem.features]
    return float(np.mean(nearest == problem.targets))


def layer_metrics(problem: Problem, train_means: Array) -> dict[str, float]:
    """The metrics of a layer's features; their nearest class center is one of the training split."""
    nearest = [np.argmin([np.linalg.norm(h - center) for center in train_means]) for h in problem.features]
    return {
        "drift": float(np.linalg.norm(problem.features.mean(0))),
        "nc1": pinv(problem),
        "equiangularity": equiangularity(problem.centered_means),
        "ncc_accuracy": float(np.mean(nearest == problem.targets)),
        "numerical_rank": numerical_rank(problem),
    }


def ood_cosine(problem: Problem) -> float:
    assert problem.ood is not None
    return float(np.mean([abs(cosine(mean, problem.ood.mean(0))) for mean in problem.means]))


def squared_error_parts(problem: Problem) -> tuple[float, float, float]:
    """½ mean‖·‖² of outputs less their class's mean output, of that less the one-hot target, and of W's less the best.

    The best outputs are those of the least squares fit with a bias; all over the classes that have samples.
    """
    inputs = np.column_stack([problem.features, np.ones(len(problem.features))])
    wanted = np.array([[float(y == k) for k in problem.labels] for y in problem.targets])
    best = inputs @ np.linalg.lstsq(inputs, wanted, rcond=None)[0]
    means = {k: best[problem.targets == k].mean(0) for k in problem.labels}
    of_class = np.array([means[y] for y in problem.targets])
    given = problem.features @ problem.rows.T + problem.bias[problem.labels]
    within, between, rest = (
        float(np.mean(np.sum(gap**2, axis=1)) / 2) for gap in (best - of_class, of_class - wanted, given - best)
    )
    return within, between, rest


def bias_collapse(problem: Problem) -> float:
    return float(np.linalg.norm(problem.bias + problem.weight @ problem.features.mean(0)))


def margins(problem: Problem) -> list[float]:
    rows, center = problem.weight - problem.weight.mean(0), problem.features.mean(0)
    found = []
    for h, y in zip(problem.features, problem.targets, strict=True):
        cosines = [cosine(h - center, row) for row in rows]
        found.append(cosines[y] - max(c for k, c in enumerate(cosines) if k != y))
    return found


def drift_relative(problem: Problem) -> float:
    size = math.sqrt(np.mean([h @ h for h in problem.features]))
    return float(np.linalg.norm(problem.features.mean(0)) / size)


def minority_cosine(problem: Problem) -> float:
    number = max(2, round(len(problem.weight) / 3))
    rare = sorted(range(len(problem.weight)), key=lambda k: problem.class_counts[k])[:number]
    return float(np.mean([cosine(problem.weight[i], problem.weight[j]) for i, j in combinations(rare, 2)]))


def majority_minority_cosine(problem: Problem) -> float:
    number = max(2, round(len(problem.weight) / 3))
    order = sorted(range(len(problem.weight)), key=lambda k: problem.class_counts[k])
    rare, frequent = order[:number], order[number:]
    return float(np.mean([cosine(problem.weight[i], problem.weight[j]) for i in rare for j in frequent]))


def norm_slope(rows: Array, sizes: Sequence[int]) -> float:
    return float(np.polyfit(np.log(sizes), np.log([np.linalg.norm(row) for row in rows]), 1)[0])


def seli_error_weight(problem: Problem) -> float:
    return unit_distance(problem.weight @ problem.weight.T, seli_grams(problem.class_counts)[0])


def seli_error_means(problem: Problem) -> float:
    ideal = seli_grams([problem.class_counts[k] for k in problem.labels])[1]
    return unit_distance(problem.centered_means @ problem.centered_means.T, ideal)


def recall(problem: Problem, label: int) -> float:
    decisions = problem.logits.argmax(1)[problem.targets == label]
    return float(np.mean(decisions == label))


def group_accuracy(problem: Problem, in_group: Callable[[int], bool]) -> float:
    """Mean recall of the classes whose number of training samples is in the group."""
    return float(np.mean([recall(problem, k) for k in problem.labels if in_group(problem.class_counts[k])]))


def prior_accuracy(problem: Problem, ratio: float, *, backward: bool = False) -> float:
    """Draw the class, then a sample of it: the classes in the order of their training sizes, each less likely."""
    order = sorted(problem.labels, key=lambda k: problem.class_counts[k], reverse=True)
    chances = [ratio ** (-place / max(len(order) - 1, 1)) for place in range(len(order))]
    drawn = reversed(order) if backward else order
    return sum(p / sum(chances) * recall(problem, k) for p, k in zip(chances, drawn, strict=True))


def tail_accuracy(problem: Problem) -> float:
    number = math.ceil(len(problem.weight) / 5)
    return group_accuracy(problem, lambda count: count <= sorted(problem.class_counts)[number - 1])


def top5(problem: Problem) -> float:
    best = [np.argsort(z)[-5:] for z in problem.logits]
    return float(np.mean([y in five for y, five in zip(problem.targets, best, strict=True)]))


def macro_f1(problem: Problem) -> float:
    scores, decided = [], problem.logits.argmax(1)
    for k in problem.labels:
        hits = np.sum((decided == k) & (problem.targets == k))
        precision = hits / np.sum(decided == k) if hits else 0.0
        sensitivity = hits / np.sum(problem.targets == k)
        scores.append(2 * precision * sensitivity / (precision + sensitivity) if hits else 0.0)
    return float(np.mean(scores))


def nll(problem: Problem) -> float:
    return float(np.mean([cross_entropy(z, int(y)) for z, y in zip(problem.logits, problem.targets, strict=True)]))


def ece(problem: Problem) -> float:
    shares = np.array([np.exp(z - z.max()) / np.sum(np.exp(z - z.max())) for z in problem.logits])
    confidences, correct = shares.max(1), shares.argmax(1) == problem.targets
    error = 0.0
    for b in range(15):
        inside = (confidences > b / 15) & (confidences <= (b + 1) / 15)
        if inside.any():
            error += inside.mean() * abs(correct[inside].mean() - confidences[inside].mean())
    return float(error)


def draw_stratified(targets: list[int], sizes: Sequence[int], generator: torch.Generator) -> list[int]:
    """The cards of one class after the other go to the batch that is furthest behind; then each batch is mixed."""
    cards = [card for deck in _decks(targets, generator) for card in deck]
    hands = torch.randperm(len(sizes), generator=generator).tolist()
    batches: dict[int, list[int]] = {hand: [] for hand in hands}
    places = []
    for _ in cards:
        hand = min(hands, key=lambda hand: (len(batches[hand]) + 0.5) / sizes[hand])
        batches[hand].append(len(places))
        places.append(hand)
    mixed = torch.randperm(len(cards), generator=generator).tolist()
    return [cards[i] for hand in sorted(hands) for i in mixed if places[i] == hand]


def draw_class_balanced(targets: list[int], sizes: Sequence[int], generator: torch.Generator) -> list[int]:
    """Any class, and the next of its cards, over and over."""
    decks = _decks(targets, generator)
    drawn = torch.randint(len(decks), (len(targets),), generator=generator).tolist()
    turns = [0] * len(decks)
    order = []
    for k in drawn:
        order.append(decks[k][turns[k] % len(decks[k])])
        turns[k] += 1
    return order


def _decks(targets: list[int], generator: torch.Generator) -> list[list[int]]:
    """The samples of each class that has any, mixed; the classes, too."""
    mixed = torch.randperm(len(targets), generator=generator).tolist()
    rank = torch.randperm(max(targets) + 1, generator=generator).tolist()
    classes = sorted(set(targets), key=lambda k: rank[k])
    return [[i for i in mixed if targets[i] == k] for k in classes]


def nearest_etf_objective(etf: Array, class_means: Array, proximal: float, anchor: Array) -> float:
    """‖H̄ - P M/√(K-1)‖² + (δ/2)‖(P - P_prev)M‖², class by class: row k of W is √(K/(K-1)) times column k of PM."""
    num_classes = len(etf)
    centered = class_means - class_means.mean(0)
    length = math.sqrt(sum(row @ row for row in centered)) or 1.0
    shrink = math.sqrt((num_classes - 1) / num_classes)
    value = 0.0
    for row, w, w_before in zip(centered, etf, anchor, strict=True):
        p, p_before = shrink * w, shrink * w_before
        value += np.sum((row / length - p / math.sqrt(num_classes - 1)) ** 2)
        value += proximal / 2 * np.sum((p - p_before) ** 2)
    return float(value)


def exact_spectral_ratio(rows: Array) -> float:
    """(‖H‖_*/‖H‖_F)² with 40 digits, where no Gram matrix loses a singular value."""
    with mpmath.workdps(40):
        s = mpmath.svd_r(mpmath.matrix(rows.tolist()), compute_uv=False)
        return float(mpmath.fsum(s) ** 2 / mpmath.fsum(x * x for x in s))


def squared_distances(rows: Array) -> Array:
    """Of all pairs, one after the other."""
    return np.array([np.sum((a - b) ** 2) for a, b in combinations(rows, 2)])


def nearest_distances(rows: Array) -> list[float]:
    """Of each row to the others, one after the other."""
    return [min(float(np.linalg.norm(a - b)) for j, b in enumerate(rows) if j != i) for i, a in enumerate(rows)]


def objective(
    features: Array,
    targets: Sequence[int],
    weight: Array,
    losses: Callable[[Array, int], float],
    *,
    weight_decay: float,
    row_decay: float,
    feature_weight: float,
    drift_weight: float,
) -> float:
    """The regularized objective of unconstrained features, sample by sample, from its definition; no bias."""
    total = 0.0
    for feature, target in zip(features, targets, strict=True):
        total += losses(weight @ feature, target) / len(features)
        total += feature_weight / 2 * float(feature @ feature) / len(features) + row_decay / 2 * float(
            feature @ feature
        )
    for row in weight:
        total += weight_decay / 2 * float(row @ row)
    drift = sum(features) / len(features)
    return total + drift_weight * float(drift @ drift)


def cross_entropy(logits: Array, target: int) -> float:
    gaps = [float(logit - logits[target]) for logit in logits]
    return max(gaps) + math.log(sum(math.exp(gap - max(gaps)) for gap in gaps))


def squared_error(logits: Array, target: int) -> float:
    return sum((float(logit) - (k == target)) ** 2 for k, logit in enumerate(logits)) / 2


def class_balanced_loss(problem: Problem, weight: Array, bias: Array) -> float:
    """Draw a class, then a sample of it; expected cross-entropy."""
    of_classes = []
    for k in problem.labels:
        logits = problem.features[problem.targets == k] @ weight.T + bias
        of_classes.append(np.mean([-(z[k] - np.logaddexp.reduce(z)) for z in logits]))
    return float(np.mean(of_classes))


def scaled(problem: Problem, scales: Sequence[float]) -> tuple[Array, Array]:
    return np.array([s * w for s, w in zip(scales, problem.weight, strict=True)]), np.multiply(scales, problem.bias)


def priors(problem: Problem) -> list[float]:
    return [(problem.targets == k).sum() / len(problem.targets) for k in range(len(problem.weight))]


def centered_etf(problem: Problem) -> tuple[Array, Array]:
    etf = nearest_etf(problem.means)
    return etf, np.array([-(row @ problem.means.mean(0)) for row in etf])


def crt(problem: Problem, *, weight_decay: float) -> tuple[Array, Array]:
    """A general minimizer that sees values only, no gradients."""
    num_classes, num_features = problem.weight.shape

    def split(x: Array) -> tuple[Array, Array]:
        return x[:-num_classes].reshape(num_classes, num_features), x[-num_classes:]

    def objective(x: Array) -> float:
        return class_balanced_loss(problem, *split(x)) + weight_decay / 2 * float(x @ x)

    return split(minimize(objective, np.zeros(num_classes * (num_features + 1)), options={"gtol": 1e-7}).x)


def lws(problem: Problem, *, decay: float) -> tuple[Array, Array]:
    def objective(scales: Array) -> float:
        return class_balanced_loss(problem, *scaled(problem, list(scales))) + decay / 2 * float(
            np.sum((scales - 1) ** 2)
        )

    return scaled(problem, list(minimize(objective, np.ones(len(problem.weight)), options={"gtol": 1e-7}).x))


def max_norm(problem: Problem, *, bound: float, weight_decay: float) -> tuple[Array, Array]:
    """Sequential quadratic programming, with one constraint per row."""
    num_classes, num_features = problem.weight.shape
    norms = [float(np.linalg.norm(row)) for row in problem.weight]
    radius = min(norms) + bound * (max(norms) - min(norms))

    def split(x: Array) -> tuple[Array, Array]:
        return x[:-num_classes].reshape(num_classes, num_features), x[-num_classes:]

    def objective(x: Array) -> float:
        return class_balanced_loss(problem, *split(x)) + weight_decay / 2 * float(x @ x)

    rows = [
        {"type": "ineq", "fun": lambda x, k=k: radius**2 - float(np.sum(split(x)[0][k] ** 2))}
        for k in range(num_classes)
    ]
    start = np.full(num_classes * (num_features + 1), 1e-3)
    return split(
        minimize(objective, start, method="SLSQP", constraints=rows, options={"ftol": 1e-12, "maxiter": 500}).x
    )


# name -> (problem, every option that has candidates) -> weight and bias, for every row of ncflow's POSTHOC
POSTHOC: dict[str, Callable[..., tuple[Array, Array]]] = {
    "logit_adjustment": lambda p, tau: (
        p.weight,
        np.array([b - tau * math.log(q) for b, q in zip(p.bias, priors(p), strict=True)]),
    ),
    "multiplicative": lambda p, tau: scaled(p, [q**-tau for q in priors(p)]),
    "tau_norm": lambda p, tau: scaled(p, [float(np.linalg.norm(w)) ** -tau for w in p.weight]),
    "ncm": lambda p: (p.means, np.array([-(mean @ mean) / 2 for mean in p.means])),
    "nearest_etf": centered_etf,
    "crt": crt,
    "lws": lws,
    "max_norm": max_norm,
}
METRICS: dict[str, Callable[[Problem], float]] = {
    "acc/overall": lambda p: float(np.mean(p.logits.argmax(1) == p.targets)),
    "acc/balanced": lambda p: group_accuracy(p, lambda count: True),
    "acc/top5": top5,
    "acc/many": lambda p: group_accuracy(p, many),
    "acc/medium": lambda p: group_accuracy(p, medium),
    "acc/few": lambda p: group_accuracy(p, few),
    "acc/tail20": tail_accuracy,
    "acc/worst": lambda p: min(recall(p, k) for k in p.labels),
    "acc/macro_f1": macro_f1,
    "prior/forward_50": lambda p: prior_accuracy(p, 50),
    "prior/forward_25": lambda p: prior_accuracy(p, 25),
    "prior/forward_10": lambda p: prior_accuracy(p, 10),
    "prior/forward_5": lambda p: prior_accuracy(p, 5),
    "prior/forward_2": lambda p: prior_accuracy(p, 2),
    "prior/backward_2": lambda p: prior_accuracy(p, 2, backward=True),
    "prior/backward_5": lambda p: prior_accuracy(p, 5, backward=True),
    "prior/backward_10": lambda p: prior_accuracy(p, 10, backward=True),
    "prior/backward_25": lambda p: prior_accuracy(p, 25, backward=True),
    "prior/backward_50": lambda p: prior_accuracy(p, 50, backward=True),
    "nc1/pinv": pinv,
    "nc1/quotient": quotient,
    "nc1/cdnv": cdnv,
    "nc1/quotient_many": lambda p: quotient_of(p, many),
    "nc1/quotient_medium": lambda p: quotient_of(p, medium),
    "nc1/quotient_few": lambda p: quotient_of(p, few),
    "nc1/cdnv_many": lambda p: cdnv_of(p, many),
    "nc1/cdnv_medium": lambda p: cdnv_of(p, medium),
    "nc1/cdnv_few": lambda p: cdnv_of(p, few),
    "nc1/vci": vci,
    "nc1/numerical_rank": numerical_rank,
    "nc2/equinorm_means": lambda p: equinorm(p.centered_means),
    "nc2/equinorm_weight": lambda p: equinorm(p.weight),
    "nc2/equinorm_gap": lambda p: abs(equinorm(p.centered_means) - equinorm(p.weight)),
    "nc2/equiangularity_means": lambda p: equiangularity(p.centered_means),
    "nc2/equiangularity_weight": lambda p: equiangularity(p.weight),
    "nc2/maximal_angle_means": lambda p: maximal_angle(p.centered_means),
    "nc2/maximal_angle_weight": lambda p: maximal_angle(p.weight),
    "nc2/etf_error_means": lambda p: etf_error(p.centered_means @ p.centered_means.T),
    "nc2/etf_error_weight": lambda p: etf_error(p.weight @ p.weight.T),
    "nc2/etf_distance_means": lambda p: exact_etf_distance(p.means),
    "nc2/etf_distance_weight": lambda p: exact_etf_distance(p.weight),
    "nc2/orthogonal_error_means": lambda p: unit_distance(p.means @ p.means.T, np.eye(len(p.means))),
    "nc2/orthogonal_error_weight": lambda p: unit_distance(p.weight @ p.weight.T, np.eye(len(p.weight))),
    "nc2/orthogonal_distance_means": lambda p: exact_orthogonal_distance(p.means),
    "nc2/orthogonal_distance_weight": lambda p: exact_orthogonal_distance(p.weight),
    "nc2/gnc2_log": lambda p: gnc2_log(p.centered_means),
    "nc2/gnc2_spread": lambda p: gnc2_spread(p.centered_means),
    "nc2/max_cosine_means": lambda p: max_cosine(p.centered_means),
    "nc2/max_cosine_weight": lambda p: max_cosine(p.weight),
    "nc2/margin_means": lambda p: one_vs_rest_margin(p.centered_means),
    "nc2/margin_weight": lambda p: one_vs_rest_margin(p.weight),
    "nc3/self_duality": lambda p: unit_distance(p.rows, p.centered_means) ** 2,
    "nc3/etf_error": lambda p: etf_error(p.rows @ p.centered_means.T),
    "nc3/alignment": alignment,
    "nc3/alignment_many": lambda p: alignment(p, many),
    "nc3/alignment_medium": lambda p: alignment(p, medium),
    "nc3/alignment_few": lambda p: alignment(p, few),
    "nc3/uniformity": uniformity,
    "nc3/etf_gap": etf_gap,
    "nc4/ncc_mismatch": ncc_mismatch,
    "nc4/ncc_accuracy": ncc_accuracy,
    "nc5/ood_cosine": ood_cosine,
    "squared_error/within": lambda p: squared_error_parts(p)[0],
    "squared_error/means": lambda p: squared_error_parts(p)[1],
    "squared_error/classifier": lambda p: squared_error_parts(p)[2],
    "bias/collapse": bias_collapse,
    "margin/mean": lambda p: float(np.mean(margins(p))),
    "margin/min": lambda p: min(margins(p)),
    "drift/norm": lambda p: float(np.linalg.norm(p.features.mean(0))),
    "drift/norm_balanced": lambda p: float(np.linalg.norm(p.means.mean(0))),
    "drift/relative": drift_relative,
    "imbalance/minority_cosine": minority_cosine,
    "imbalance/majority_minority_cosine": majority_minority_cosine,
    "imbalance/seli_error_weight": seli_error_weight,
    "imbalance/seli_error_means": seli_error_means,
    "imbalance/norm_slope": lambda p: norm_slope(p.weight, p.class_counts),
    "imbalance/norm_slope_means": lambda p: norm_slope(p.centered_means, [p.class_counts[k] for k in p.labels]),
    "calibration/ece": ece,
    "calibration/nll": nll,
}


def _class_means_of(features: list[list[float]], targets: list[int]) -> dict[int, list[float]]:
    """The mean feature of each class that occurs."""
    members = {y: [h for h, label in zip(features, targets, strict=True) if label == y] for y in set(targets)}
    return {y: [sum(values) / len(rows) for values in zip(*rows, strict=True)] for y, rows in members.items()}


def _distance(one: list[float], other: list[float]) -> float:
    return sum((a - b) ** 2 for a, b in zip(one, other, strict=True))


def _centered_means(features: list[list[float]], targets: list[int]) -> list[list[float]]:
    means = list(_class_means_of(features, targets).values())
    center = [sum(values) / len(means) for values in zip(*means, strict=True)]
    return [[a - b for a, b in zip(mean, center, strict=True)] for mean in means]


def _cosine(one: list[float], other: list[float]) -> float:
    return sum(a * b for a, b in zip(one, other, strict=True)) / (math.hypot(*one) * math.hypot(*other))


def penalty_drift(features: list[list[float]], targets: list[int]) -> float:
    return sum((sum(values) / len(features)) ** 2 for values in zip(*features, strict=True))


def penalty_feature_decay(features: list[list[float]], targets: list[int]) -> float:
    return sum(math.hypot(*h) ** 2 for h in features) / (2 * len(features))


def penalty_center(features: list[list[float]], targets: list[int]) -> float:
    means = _class_means_of(features, targets)
    return sum(_distance(h, means[y]) for h, y in zip(features, targets, strict=True)) / (2 * len(features))


def penalty_nc1(features: list[list[float]], targets: list[int]) -> float:
    centered = _centered_means(features, targets)
    if len(centered) < 2:
        return 0.0
    between = sum(math.hypot(*mean) ** 2 for mean in centered) / len(centered)
    return 2 * penalty_center(features, targets) / between


def penalty_nc2(features: list[list[float]], targets: list[int]) -> float:
    means = _centered_means(features, targets)
    pairs = [(one, other) for one in means for other in means if one is not other]
    gaps = [(_cosine(one, other) + 1 / (len(means) - 1)) ** 2 for one, other in pairs]
    return sum(gaps) / len(gaps) if gaps else 0.0


def penalty_supcon(features: list[list[float]], targets: list[int], temperature: float = 0.1) -> float:
    total = 0.0
    for i, (h, y) in enumerate(zip(features, targets, strict=True)):
        others = [j for j in range(len(features)) if j != i]
        scores = {j: math.exp(_cosine(h, features[j]) / temperature) for j in others}
        positives = [j for j in others if targets[j] == y]
        if positives:
            total -= sum(math.log(scores[j] / sum(scores.values())) for j in positives) / len(positives)
    return total / len(features)


PENALTIES = {
    "drift": penalty_drift,
    "feature_decay": penalty_feature_decay,
    "center": penalty_center,
    "nc1": penalty_nc1,
    "nc2": penalty_nc2,
    "supcon": penalty_supcon,
}


def gradients_of_parts(backbone, images, parts, loss):
    """Gradients of a loss of all features, with one graph over the forwards of all parts; parts are slices of rows."""
    order = torch.cat([torch.arange(len(images))[part] for part in parts])
    features = torch.cat([backbone(images[part]) for part in parts])[order.argsort()]
    return torch.autograd.grad(loss(features), list(backbone.parameters()))
