"""Two ways to the same result, timed alternately: what the machine does to one pair it does to both halves of it."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.frame.budget import Budget
from benchmarks.frame.memory import peak_memory
from benchmarks.frame.sides import Side, Way, apart, here

SHORTEST = 0.3  # seconds: faster calls are repeated until they fill this
LONG = 3.0  # seconds of a first call: its preparations are a small part of it, so it serves as a warm-up


@dataclass(frozen=True)
class Case:
    """One row of a page: ncflow's way, the baseline's if it has one, how near the results must be, and the goals."""

    name: str
    ours: Way
    baseline: Way | None = None
    tolerance: float | None = 1e-5  # of our result against the baseline's; None where it is another thing, as a whole
    exact: Way | None = None  # a slow reference in float64
    exact_tolerance: float = 1e-5  # of our result against that
    apart: bool = False  # each side in a process of its own, where their threads or allocators would disturb each other
    memory: bool = True
    least_ratio: float | None = None  # goals
    most_seconds: float | None = None
    most_megabytes: float | None = None


def compare(case: Case, pairs: int, budget: Budget | None = None) -> dict[str, Any]:
    """Check that the results agree, then time pairs; times in seconds, memory in MB above the inputs.

    There are `pairs` pairs, or fewer if the case's share of the budget is used before, but at least three.
    """
    budget = budget or Budget()
    end = budget.start_case()
    ways = {"ours": case.ours} | ({"baseline": case.baseline} if case.baseline else {})
    sides = {name: (apart if case.apart else here)(way) for name, way in ways.items()}
    found, first = _differences(case, sides)
    row: dict[str, Any] = {"case": case.name, "goals": goals(case)} | found
    memory = {name: peak_memory(way) for name, way in ways.items()} if case.memory else None
    repeats = {name: 1 if first[name] >= LONG else _repeats(side) for name, side in sides.items()}
    times: dict[str, list[float]] = {name: [] for name in sides}
    for _ in budget.rounds(pairs, end):
        for name, side in sides.items():
            times[name].append(side.seconds(repeats[name]))
    row["seconds"] = times
    if case.baseline:
        row["ratio"] = [slow / quick for quick, slow in zip(times["ours"], times["baseline"], strict=True)]
    if memory:
        row["megabytes"] = memory
    return row | {"reached": reached(row)}


def largest_difference(ours: Any, theirs: Any) -> float:
    """max |a - b| / max |b| over tensors, numbers, and tuples or mappings of them (the keys that both have)."""
    return max(_distance(a, b) for a, b in _leaves(ours, theirs))


def goals(case: Case) -> dict[str, float]:
    """The goals that a case has."""
    names = "least_ratio", "most_seconds", "most_megabytes"
    return {name: value for name in names if (value := getattr(case, name)) is not None}


def reached(row: Mapping[str, Any]) -> dict[str, bool]:
    """Goal -> whether the medians of this row reach it."""
    checks = {
        "least_ratio": lambda goal: statistics.median(row["ratio"]) >= goal,
        "most_seconds": lambda goal: statistics.median(row["seconds"]["ours"]) <= goal,
        "most_megabytes": lambda goal: row["megabytes"]["ours"] <= goal,
    }
    return {name: bool(checks[name](goal)) for name, goal in row["goals"].items()}


def _repeats(side: Side) -> int:
    """How many calls fill SHORTEST."""
    return max(1, math.ceil(SHORTEST / side.seconds()))


def _differences(case: Case, sides: Mapping[str, Side]) -> tuple[dict[str, float], dict[str, float]]:
    """Our result against the baseline's and the exact one, and the seconds of the first call of each side.

    RuntimeError if the results differ.
    """
    results, first = {}, {}
    for name, side in sides.items():
        start = time.perf_counter()
        results[name] = side.result()
        first[name] = time.perf_counter() - start
    found: dict[str, float] = {}
    references: list[tuple[str, Callable[[], Any] | None, float | None]] = [
        ("baseline", partial(results.get, "baseline") if case.baseline else None, case.tolerance),
        ("exact", case.exact and case.exact(), case.exact_tolerance),
    ]
    for name, reference, tolerance in references:
        if reference and tolerance is not None:
            found[f"difference_{name}"] = difference = largest_difference(results["ours"], reference())
            if not difference <= tolerance:
                raise RuntimeError(f"{case.name}: differs from '{name}' by {difference:.1e}, allowed {tolerance:.1e}")
    return found, first


def _leaves(ours: Any, theirs: Any) -> Iterator[tuple[Any, Any]]:
    if isinstance(ours, Mapping):
        shared = [key for key in ours if key in theirs]
        assert shared, "nothing to compare"
        ours, theirs = [ours[key] for key in shared], [theirs[key] for key in shared]
    if isinstance(ours, (tuple, list)):
        for a, b in zip(ours, theirs, strict=True):
            yield from _leaves(a, b)
    else:
        yield ours, theirs


def _distance(a: Tensor | float, b: Tensor | float) -> float:
    a, b = (torch.as_tensor(value, dtype=torch.float64, device="cpu").detach() for value in (a, b))
    largest = float(b.abs().max())
    return float((a - b).abs().max()) / (largest or 1.0)
