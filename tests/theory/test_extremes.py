"""Weight decay and class sizes at the ends of what float64 holds: the right value, by mpmath, or a ValueError."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import mpmath
import pytest
from mpmath import mp

import ncflow.theory as theory
from ncflow.theory import (
    Optimum,
    balanced_ce_optimum,
    drift_norm,
    fixed_etf_feature_norm,
    fixed_etf_optimum,
    mse_optimum,
    pressure,
    relative_drift,
    relu_ce_optimum,
    relu_limit,
    seli_optimum,
    seli_step,
    seli_step_drift,
    seli_step_relative_drift,
    step_ce_optimum,
)

LAMBDAS = (1e-300, 1e-160, 1e-20, 1e-3, 1.0, 1e20, 1e300)
PAIRS = [*zip(LAMBDAS, LAMBDAS, strict=True), (1e-300, 1e300), (1e300, 1e-300), (1e-300, 1.0), (1.0, 1e-300)]
BALANCED = ([1, 1], [10**12] * 3, [7] * 10, [2] * 200)
STEPS = ([10**12, 1], [1, 10**12, 10**12], [10**6] * 5 + [1] * 5, [100] * 40 + [1] * 60)
OTHERS = ([500, 50, 5], [10**12, 10**6, 10**3, 1], [3, 2])


@pytest.fixture(autouse=True)
def many_digits():
    with mpmath.workdps(60):
        yield


def exact_pressure(counts: Sequence[int], lambda_w: float, lambda_h: float) -> list[Any]:
    return [sum(counts) * mp.sqrt(mp.mpf(lambda_w) * mp.mpf(lambda_h) / n) for n in counts]


def close(found: float, expected: Any, rel: float = 1e-11) -> bool:
    return math.isfinite(found) and abs(mp.mpf(found) - expected) <= rel * abs(expected)


@pytest.mark.parametrize("lambda_w, lambda_h", PAIRS)
@pytest.mark.parametrize("counts", [*BALANCED, *STEPS, *OTHERS], ids=str)
def test_pressure_is_right_or_beyond_float64(counts, lambda_w, lambda_h):
    found = pressure(counts, lambda_w=lambda_w, lambda_h=lambda_h).tolist()
    for value, expected in zip(found, exact_pressure(counts, lambda_w, lambda_h), strict=True):
        assert close(value, expected) or (value == math.inf and expected > mp.mpf(2) ** 1023)


def lengths_squared(optimum: Optimum) -> tuple[list[Any], list[Any]]:
    return tuple([mp.mpf(x) ** 2 for x in norms.tolist()] for norms in (optimum.weight_norms, optimum.mean_norms))


def balanced_alpha(m: Any, k: int) -> Any:
    return mp.log(k / m - (k - 1)) if m < 1 else mp.mpf(0)


def relu_alpha(m: Any, k: int) -> Any:
    m = m * mp.sqrt(mp.mpf(k - 1) / k)
    return mp.log((k - 1) * (1 - m) / m) if m < mp.mpf(k - 1) / k else mp.mpf(0)


def mse_level(m: Any, k: int) -> Any:
    return max(mp.mpf(0), 1 - m)


REGIMES: dict[str, tuple[Callable[..., Optimum], Callable[[Any, int], Any], Any]] = {
    # optimum, the logits' scale of a class, and the squared length of a row of the logits of scale one
    "balanced": (balanced_ce_optimum, balanced_alpha, lambda k: mp.mpf(k - 1) / k),
    "relu": (relu_ce_optimum, relu_alpha, lambda k: mp.sqrt(mp.mpf(k - 1) / k)),
    "mse": (mse_optimum, mse_level, lambda k: mp.mpf(1)),
}


@pytest.mark.parametrize("lambda_w, lambda_h", PAIRS)
@pytest.mark.parametrize("regime", REGIMES)
def test_features_are_as_long_as_many_digits_say(regime, lambda_w, lambda_h):
    optimal, scale, share = REGIMES[regime]
    for counts in BALANCED if regime == "balanced" else [*BALANCED[:3], *STEPS[:3], *OTHERS]:
        optimum = optimal(counts, lambda_w=lambda_w, lambda_h=lambda_h)
        _, means = lengths_squared(optimum)
        ms = exact_pressure(counts, lambda_w, lambda_h)
        for n, m, found in zip(counts, ms, means, strict=True):
            expected = mp.sqrt(mp.mpf(lambda_w) / (mp.mpf(lambda_h) * n)) * share(len(counts)) * scale(m, len(counts))
            assert abs(found - expected) <= 1e-9 * expected, (counts, n)
        assert optimum.logits.isfinite().all() and optimum.weight_norms.isfinite().all()


@pytest.mark.parametrize("counts", STEPS, ids=str)
@pytest.mark.parametrize("lambda_w, lambda_h", PAIRS)
def test_two_sizes_meet_their_optimality_conditions(counts, lambda_w, lambda_h):
    """p_own - p_sibling = 1 - m within a group, δ_A : δ_B = q_A : q_B, and q on the ellipse; as probabilities."""
    optimum = step_ce_optimum(counts, lambda_w=lambda_w, lambda_h=lambda_h)
    ms = exact_pressure(counts, lambda_w, lambda_h)
    total, ellipse, ratios = len(counts), mp.mpf(0), []
    for size in sorted(set(counts)):
        members = [k for k, n in enumerate(counts) if n == size]
        others = [k for k, n in enumerate(counts) if n != size]
        own, m = members[0], ms[members[0]]
        logits = [mp.mpf(z) for z in optimum.logits[own].tolist()]
        weights = [mp.exp(z - max(logits)) for z in logits]
        p = [w / mp.fsum(weights) for w in weights]
        if len(members) > 1 and m < 1 - mp.mpf(10) ** -6:
            lost = mp.fsum(p[k] for k in range(total) if k != own) + p[members[1]]
            assert abs(lost - m) <= 1e-4 * m, "1 - p_own + p_sibling"
        gap = mp.fsum(logits[k] for k in members) / len(members) - mp.fsum(logits[k] for k in others) / len(others)
        q = mp.fsum(p[k] for k in others)
        ellipse += len(members) * (q / m) ** 2
        ratios.append((gap, q))
    (gap_a, q_a), (gap_b, q_b) = ratios
    bound = mp.mpf(len([n for n in counts if n == min(counts)]) * len([n for n in counts if n == max(counts)])) / total
    if max(gap_a, gap_b) > 1e-9:
        assert abs(gap_a * q_b - gap_b * q_a) <= 1e-3 * abs(gap_a * q_b)
        assert abs(ellipse - bound) <= 1e-3 * bound
    else:
        assert ellipse <= bound * (1 + mp.mpf(10) ** -9)


@pytest.mark.parametrize("counts", [[10**12, 10**6, 10**3, 1], [10**15, 10**15, 3, 1], [10**7, 1, 1], [500, 50, 5]])
def test_seli_is_what_many_digits_say(counts):
    k = len(counts)
    center = mp.eye(k) - mp.ones(k) / k
    squared, vectors = mp.eigsy(center * mp.diag(counts) * center)
    order = sorted(range(k), key=lambda i: squared[i])[1:]
    for rows, power in ((seli_optimum(counts).weight, 0.5), (seli_optimum(counts).class_means, -0.5)):
        gram = rows @ rows.mT
        for i, j in itertools.product(range(k), repeat=2):
            exact = mp.fsum(vectors[i, e] * vectors[j, e] * squared[e] ** power for e in order)
            scale = mp.sqrt(mp.mpf(gram[i, i].item()) * mp.mpf(gram[j, j].item()))
            assert abs(mp.mpf(gram[i, j].item()) - exact) <= 1e-8 * scale


@pytest.mark.parametrize("ratio", [1e-15, 1e-3, 1e4, 1e12, 1e15])
@pytest.mark.parametrize("num_classes", [4, 10])
def test_seli_of_two_sizes_agrees_with_its_closed_form(num_classes, ratio):
    half = num_classes // 2
    optimum, step = seli_optimum([ratio] * half + [1] * half), seli_step(num_classes, ratio)
    assert optimum.weight_cosines[0, 1].item() == pytest.approx(step.major_cosine, abs=1e-12)
    assert optimum.weight_cosines[-1, -2].item() == pytest.approx(step.minor_cosine, abs=1e-12)
    assert drift_norm(optimum) == pytest.approx(seli_step_drift(num_classes, ratio), rel=1e-9)
    assert relative_drift(optimum) == pytest.approx(seli_step_relative_drift(num_classes, ratio), rel=1e-9)


@pytest.mark.parametrize("weight_norm", [1e-150, 1e-3, 1.0, 1e150])
@pytest.mark.parametrize("lambda_h", LAMBDAS)
@pytest.mark.parametrize("counts", [[1, 1], [10**12] * 3, [2] * 1000], ids=len)
def test_features_before_a_fixed_etf_are_as_long_as_many_digits_say(counts, lambda_h, weight_norm):
    k, found = len(counts), fixed_etf_feature_norm(counts, lambda_h=lambda_h, weight_norm=weight_norm)
    stretch = mp.mpf(weight_norm) * k / (k - 1)

    def excess(norm: Any) -> Any:
        """log of the pull of decay over that of the loss: rises with the length."""
        lost = (k - 1) / (k - 1 + mp.exp(stretch * norm))
        return mp.log(sum(counts) * mp.mpf(lambda_h) * norm / (stretch * lost))

    least = mp.mpf(10) ** -307  # where float64 loses digits
    assert excess(max(found, least) * (1 + mp.mpf(10) ** -10)) > 0
    assert found < least or excess(mp.mpf(found) * (1 - mp.mpf(10) ** -10)) < 0


@pytest.mark.parametrize("counts", [*BALANCED[:3], *STEPS[:3], *OTHERS], ids=str)
@pytest.mark.parametrize("lambda_w, lambda_h", PAIRS)
def test_drift_does_not_depend_on_how_the_decays_share_a_product(counts, lambda_w, lambda_h):
    """relative_drift is free of scale; where features are 1e-150 long, their squares are not even that."""
    for optimal in (seli_optimum, relu_limit):
        optimum = optimal(counts, lambda_w=lambda_w, lambda_h=lambda_h)
        assert relative_drift(optimum) == pytest.approx(relative_drift(optimal(counts)), rel=1e-9, abs=1e-9)
        exchange = mp.root(mp.mpf(lambda_w) / mp.mpf(lambda_h), 4)
        assert close(drift_norm(optimum), exchange * mp.mpf(drift_norm(optimal(counts))), 1e-9) or counts in BALANCED


CALLS: dict[str, Callable[[], Any]] = {
    "lambda_w": lambda: predicted("ce", [5, 5], lambda_w=1e-301, lambda_h=1.0),
    "lambda_h": lambda: predicted("mse", [5, 4], lambda_w=1.0, lambda_h=1e301),
    "class_counts": lambda: predicted("ce", [1e16, 1], lambda_w=1.0, lambda_h=1.0),
    "class_counts, relu": lambda: relu_ce_optimum([1e-16, 1], lambda_w=1.0, lambda_h=1.0),
    "ratio": lambda: seli_step(10, 1e16),
    "ratio, drift": lambda: seli_step_drift(10, math.inf),
    "feature_norm": lambda: fixed_etf_optimum([5, 5], feature_norm=math.inf),
    "weight_norm": lambda: fixed_etf_feature_norm([5, 5], lambda_h=1.0, weight_norm=0.0),
}


def predicted(*problem: Any, **decays: float) -> Optimum:
    return theory.predicted_optimum(*problem, **decays)


@pytest.mark.parametrize("case", CALLS)
def test_what_lies_beyond_is_refused_by_name(case):
    with pytest.raises(ValueError, match=rf"expected .*\b{case.partition(',')[0]}\b"):
        CALLS[case]()


def test_an_error_does_not_list_a_thousand_class_sizes():
    with pytest.raises(ValueError, match="class_counts") as refusal:
        step_ce_optimum([5] * 100_000, lambda_w=1.0, lambda_h=1.0)
    assert len(str(refusal.value)) < 300
