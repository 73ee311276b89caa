"""Features, targets and classifiers: what does not fit is refused by its argument, what fits gives finite numbers."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from hypothesis import given
from hypothesis import strategies as st
from thrown import refusal, throw
from torch import Tensor

from ncflow.metrics import ClassMoments, NeuralCollapse, collapse_metrics
from ncflow.metrics.table import METRICS

Inputs = dict[str, Any]
SHARES = ("acc/", "nc4/", "nc5/", "calibration/ece", "nc1/vci", "drift/relative")  # in [0, 1]
SCALED = (
    "bias/",
    "drift/norm",
    "nc3/uniformity",
    "acc/",
    "prior/",
    "calibration/",
    "nc4/",
    "nc1/numerical_rank",
    "squared_error/",
)


@st.composite
def problems(draw: st.DrawFn, *, fewest: int = 1) -> Inputs:
    """Valid arguments of `collapse_metrics`: few samples, some classes absent, everything given that can be."""
    num_samples, num_features, num_classes = (draw(st.integers(low, 9)) for low in (fewest, 1, 2))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    dtype = draw(st.sampled_from([torch.float64, torch.float32, torch.float16, torch.bfloat16]))

    def randn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    return {
        "features": randn(num_samples, num_features),
        "targets": torch.randint(num_classes, (num_samples,), generator=generator),
        "weight": randn(num_classes, num_features),
        "bias": randn(num_classes),
        "class_counts": torch.randint(1, 200, (num_classes,), generator=generator).tolist(),
        "train_means": randn(num_classes, num_features),
        "ood_features": randn(3, num_features),
        "num_classes": num_classes,
    }


def spoiled(value: float) -> Callable[[Tensor], Tensor]:
    """A tensor with this number in one place."""

    def spoil(tensor: Tensor) -> Tensor:
        tensor = tensor.clone()
        tensor.view(-1)[len(tensor) // 2] = value
        return tensor

    return spoil


def last(value: Any) -> Callable[[list[Any]], list[Any]]:
    """A list with this value at its end."""
    return lambda values: [*values[:-1], value]


MISSHAPEN: dict[str, Callable[[Any], Any]] = {
    "of more dimensions": lambda t: t.unsqueeze(0),
    "a scalar": lambda t: t.sum(),
    "longer": lambda t: torch.cat([t, t[:1]]),
    "without rows": lambda t: t[:0],
    "text": lambda t: "tensor",
    "a list": lambda t: t.tolist(),
    "an array of text": lambda t: t.double().numpy().astype(str),
    "complex": lambda t: t.to(torch.complex128),
}
NOT_FINITE = {str(value): spoiled(value) for value in (math.nan, math.inf, -math.inf)}
NO_FLOATS = {"integers": lambda t: t.long(), "truths": lambda t: t > 0, "None": lambda t: None}
NARROW = {"narrower": lambda t: t[:, 1:]}
SPOILS: dict[str, dict[str, Callable[[Any], Any]]] = {
    "features": MISSHAPEN | NOT_FINITE | NO_FLOATS | {"without columns": lambda t: t[:, :0]},
    "targets": MISSHAPEN
    | {str(value): spoiled(value) for value in (-1, 9, 2**31, 2**62, -(2**63))}
    | {"floats": lambda t: t.double(), "truths": lambda t: t > 0, "None": lambda t: None},
    "weight": MISSHAPEN | NOT_FINITE | NARROW,
    "bias": MISSHAPEN | NOT_FINITE | {"a column": lambda t: t.unsqueeze(1)},
    "train_means": MISSHAPEN | NARROW | {"inf": spoiled(math.inf)},
    "ood_features": {how: way for how, way in MISSHAPEN.items() if how != "longer"} | NOT_FINITE | NARROW,
    "class_counts": {str(value): last(value) for value in (-1, math.nan, math.inf, None, "3", [3], 1j)}
    | {"shorter": lambda c: c[1:], "a number": lambda c: 3, "a matrix": lambda c: torch.tensor([c])}
    | {"too long a number": last(10**400)},
    "num_classes": {str(value): lambda k, value=value: value for value in (0, -1, 1.5, "3", math.nan, 2**62, True)}
    | {"one more": lambda k: k + 1, "one less": lambda k: k - 1},
}
ONE_SPOIL = st.sampled_from([(argument, how) for argument, ways in SPOILS.items() for how in ways])


def spoil(problem: Inputs, argument: str, how: str) -> Inputs:
    return problem | {argument: SPOILS[argument][how](problem[argument])}


@throw(400)
@given(problems(), ONE_SPOIL)
def test_one_wrong_argument_is_refused_by_its_name(problem, spoil_):
    argument, how = spoil_
    message = refusal(lambda: collapse_metrics(**spoil(problem, argument, how)))
    size = how in ("longer", "one more", "one less")
    assert message is not None
    assert argument in message or (size and any(name in message for name in problem)), message


@throw(150)
@given(problems(), ONE_SPOIL.filter(lambda spoil: spoil[0] in ("features", "targets")))
def test_a_batch_that_does_not_fit_leaves_the_metric_unchanged(problem, spoil_):
    argument, how = spoil_
    metric = NeuralCollapse(problem["num_classes"], problem["features"].shape[1])
    metric.update(problem["features"], problem["targets"])
    before = metric.moments()
    wrong = spoil(problem, argument, how)
    for message in (
        refusal(lambda: metric.update(wrong["features"], wrong["targets"])),
        refusal(lambda: ClassMoments.from_features(wrong["features"], wrong["targets"], problem["num_classes"])),
    ):
        assert message is not None and ("features" in message or "targets" in message)
    assert all(
        torch.equal(old, new) for old, new in zip(vars(before).values(), vars(metric.moments()).values(), strict=True)
    )


@st.composite
def degenerate(draw: st.DrawFn) -> Inputs:
    """Legal, and at the edge of what metrics are defined for: one class, equal features, zeros, sizes out of reach."""
    problem = draw(problems())
    ways = {
        "features": [
            lambda t: t * 0, lambda t: t[:1].expand_as(t), lambda t: t.double() * 1e300, lambda t: t.double() * 1e-320,
        ],
        "targets": [lambda t: t * 0, lambda t: t.to(torch.int8), lambda t: t.to(torch.uint8)],
        "weight": [
            lambda t: t * 0, lambda t: t[:1].expand_as(t), lambda t: t.double() * 1e150, lambda t: None,
            lambda t: t.long(),
        ],
        "bias": [lambda t: t * 0, lambda t: t.double() * 1e150, lambda t: None],
        "class_counts": [
            lambda c: [0] * len(c), lambda c: [1, *[0] * (len(c) - 1)], lambda c: [10**15] * len(c), lambda c: None,
        ],
        "ood_features": [lambda t: t * 0, lambda t: t.double() * 1e300, lambda t: t.double() * 1e-320, lambda t: None],
        "train_means": [lambda t: t * math.nan, lambda t: t * 0, lambda t: t.double() * 1e150, lambda t: None],
    }  # fmt: skip
    for argument in draw(st.lists(st.sampled_from(sorted(ways)), max_size=4, unique=True)):
        problem[argument] = draw(st.sampled_from(ways[argument]))(problem[argument])
    return problem


@throw(150)
@given(degenerate())
def test_what_is_legal_gives_finite_numbers_in_their_range_or_no_number(problem):
    metrics: dict[str, float] = {}
    message = refusal(lambda: metrics.update(collapse_metrics(**problem)))
    if message is not None:
        assert "too large to square" in message
    assert metrics.keys() <= METRICS.keys()
    assert all(math.isfinite(value) for value in metrics.values())
    assert all(-1e-12 <= value <= 1 + 1e-12 for name, value in metrics.items() if name.startswith(SHARES))
    assert all(value >= -1e-12 for name, value in metrics.items() if name.startswith(("nc1/", "nc2/equi", "drift/")))


@throw(60)
@given(problems(fewest=4), st.integers(-450, 450), st.integers(-450, 450))
def test_features_of_any_scale_have_the_geometry_of_scale_one(problem, of_features, of_weight):
    def measured(h: float, w: float) -> dict[str, float]:
        scaled = {"features": h, "ood_features": h, "train_means": h, "weight": w}
        found = collapse_metrics(**problem | {name: problem[name].double() * 2.0**k for name, k in scaled.items()})
        return {name: value for name, value in found.items() if not name.startswith(SCALED)}

    expected, found = measured(0, 0), measured(of_features, of_weight)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert math.isclose(found[name], value, rel_tol=1e-6, abs_tol=1e-9), name
