"""Frames, heads, losses and optima: an argument that does not fit is refused before a library sees it."""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Callable
from typing import Any

import torch
from hypothesis import given
from hypothesis import strategies as st
from test_features import MISSHAPEN, NARROW, NOT_FINITE, spoiled
from thrown import refusal, throw

from ncflow.geometry import etf_distance, nearest_etf, polar_factor, random_orthonormal, seli_frame, simplex_etf
from ncflow.nn import HEADS, LOSSES, create_head, create_loss, drift_penalty, feature_penalty, posthoc_adjustment
from ncflow.theory import OPTIMA, predicted_optimum, seli_optimum
from ncflow.training import OPTIMIZERS, SCHEDULES, create_optimizer, create_schedule

K, D, B = 4, 6, 5
no_size = st.sampled_from([0, -1, 1.5, "3", None, math.nan, 2**62, True, [4]])
no_sizes = st.sampled_from(
    [[[5, 3]], 7, "counts", *([5, wrong, 3, 1] for wrong in (0, -1, math.nan, math.inf, "x", None, 10**400, [1], 1j))]
)
numbers = st.none() | st.booleans() | st.integers() | st.floats()
anything = numbers | st.text(max_size=4) | st.lists(numbers, max_size=K)
seeds = st.integers(0, 2**32)
wrong = st.sampled_from([*MISSHAPEN])


def randn(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


MEANS: dict[str, Callable[[Any], Any]] = {
    **{how: MISSHAPEN[how] for how in ("a scalar", "text", "a list", "an array of text", "complex")},
    **NOT_FINITE,
    "too large": lambda m: m.double() * 1e200,
    "one class": lambda m: m[:1],
    "too narrow": lambda m: m[:, : K - 2],
    "integers": lambda m: m.long(),
}


@throw(150)
@given(seeds, st.sampled_from([*MEANS]))
def test_class_means_without_a_nearest_etf_are_refused(seed, how):
    means = MEANS[how](randn(seed, K, D))
    for solve in (nearest_etf, etf_distance):
        message = refusal(lambda solve=solve: solve(means))
        assert message is not None and re.search("class.(means|rows)|nearest ETF", message)
    if how not in ("one class", "too narrow", "too large"):
        assert refusal(lambda: polar_factor(means.mT if getattr(means, "ndim", 0) > 1 else means)) is not None


WRONG_OPTIONS = [("anchor", randn(0, K, D + 1)), ("anchor", [1]), ("anchor", torch.ones(K, D).long())]
WRONG_OPTIONS += [("proximal", value) for value in (-1, math.nan, math.inf, "1", None, [4])]
WRONG_OPTIONS += [("solver", value) for value in ("magic", None, 3)] + [("tolerance", 1), ("max_iterations", 0)]


@throw(60)
@given(seeds, st.sampled_from(WRONG_OPTIONS))
def test_options_of_the_nearest_etf_that_make_no_sense_are_refused(seed, wrong_option):
    option, value = wrong_option
    message = refusal(lambda: nearest_etf(randn(seed, K, D), **{option: value}))
    assert message is not None and option in message


@throw(80)
@given(no_size, no_size)
def test_sizes_that_no_frame_has_are_refused(num_classes, num_features):
    assert refusal(lambda: simplex_etf(num_classes, num_features)) is not None
    assert refusal(lambda: simplex_etf(num_classes)) is not None
    if num_features not in (0, None):
        assert refusal(lambda: random_orthonormal(num_features, K)) is not None
    for head in HEADS:
        message = refusal(lambda head=head: create_head(head, num_features, num_classes))
        assert message is not None and "num_" in message


@throw(80)
@given(no_sizes)
def test_class_sizes_that_are_none_are_refused_by_their_name(counts):
    calls: list[Callable[[], Any]] = [lambda: seli_frame(counts), lambda: seli_optimum(counts)]
    calls += [lambda loss=loss: predicted_optimum(loss, counts, lambda_w=1e-3, lambda_h=1e-3) for loss in OPTIMA]
    calls += [lambda loss=loss: create_loss(loss, counts) for loss in ("ldam", "class_balanced", "logit_adjustment")]
    calls += [lambda: create_loss("ce", counts, reweight=0.9), lambda: posthoc_adjustment(randn(0, B, K), counts)]
    for call in calls:
        message = refusal(call)
        assert message is not None and "class_counts" in message


@throw(100)
@given(
    seeds,
    st.sampled_from([*HEADS]),
    st.sampled_from(["a scalar", "text", "a list", "an array of text", "complex", *NARROW]),
)
def test_features_that_do_not_fit_a_head_are_refused(seed, name, how):
    features = (MISSHAPEN | NARROW)[how](randn(seed, B, D))
    message = refusal(lambda: create_head(name, D, K).eval()(features))
    assert message is not None and "features" in message


TARGETS = MISSHAPEN | {str(value): spoiled(value) for value in (-1, -100, K, 2**40)} | {"floats": lambda t: t.double()}


@throw(250)
@given(seeds, st.sampled_from([*LOSSES, "nearest_etf"]), st.sampled_from([*TARGETS]))
def test_targets_that_do_not_fit_are_refused(seed, name, how):
    targets = TARGETS[how](torch.arange(B) % K)
    head = create_head("nearest_etf", D, K)
    before = {key: value.clone() for key, value in head.state_dict().items()}
    criterion = create_loss(name, [5, 4, 3, 2]) if name in LOSSES else None
    message = refusal(lambda: criterion(randn(seed, B, K), targets) if criterion else head(randn(seed, B, D), targets))
    assert message is not None and "targets" in message
    assert all(torch.equal(before[key], value) for key, value in head.state_dict().items())


@throw(100)
@given(seeds, st.sampled_from([*LOSSES]), wrong)
def test_logits_that_do_not_fit_are_refused(seed, name, how):
    logits = MISSHAPEN[how](randn(seed, B, K))
    message = refusal(lambda: create_loss(name, [5, 4, 3, 2])(logits, torch.arange(B) % K))
    assert message is not None and ("logits" in message or "targets" in message)
    for penalty in (drift_penalty, feature_penalty):
        assert how == "longer" or refusal(lambda penalty=penalty: penalty(logits)) is not None


ROWS: dict[str, tuple[Any, Callable[..., Any]]] = {
    "loss": (LOSSES, lambda name, **o: create_loss(name, [5, 4, 3, 2], **o)(randn(0, B, K), torch.arange(B) % K)),
    "schedule": (SCHEDULES, lambda name, **o: create_schedule(name, **o)(0.5)),
    "optimizer": (OPTIMIZERS, lambda name, **o: create_optimizer(name, [torch.nn.Parameter(torch.zeros(2, 2))], **o)),
    "head": (HEADS, lambda name, **o: create_head(name, D, K, **o)),
}


def options_of(row: Callable[..., Any]) -> set[str]:
    return {p.name for p in inspect.signature(row).parameters.values() if p.kind is p.KEYWORD_ONLY} - {"class_counts"}


@throw(250)
@given(st.data())
def test_any_option_value_of_a_row_is_taken_or_refused_early(data):
    kind = data.draw(st.sampled_from([*ROWS]))
    table, create = ROWS[kind]
    name = data.draw(st.sampled_from([*table]))
    known = options_of(table[name]) | {"warmup" if kind == "schedule" else "unknown"}
    options = data.draw(st.dictionaries(st.sampled_from(sorted(known)), anything, min_size=1, max_size=2))
    message = refusal(lambda: create(name, **options))
    assert message is None or name in message or any(option in message for option in options)
