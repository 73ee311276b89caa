"""Two ways to the same result, timed alternately: what the machine does to one pair it does to both halves of it."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from benchmarks.frame.memory import peak_memory
from benchmarks.frame.sides import Side, Way, apart, here

SHORTEST = 0.3  # seconds: faster calls are repeated until they fill this


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


def compare(case: Case, pairs: int) -> dict[str, Any]:
    """Check that the results agree, then time `pairs` pairs; times in seconds, memory in MB above the inputs."""
    ways = {"ours": case.ours} | ({"baseline": case.baseline} if case.baseline else {})
    sides = {name: (apart if case.apart else here)(way) for name, way in ways.items()}
    row: dict[str, Any] = {"case": case.name, "goals": goals(case)} | _differences(case, sides)
    repeats = {name: max(1, math.ceil(SHORTEST / side.seconds())) for name, side in sides.items()}  # after a warm-up
    times: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(pairs):
        for name, side in sides.items():
            times[name].append(side.seconds(repeats[name]))
    row["seconds"] = times
    if case.baseline:
        row["ratio"] = [slow / quick for quick, slow in zip(times["ours"], times["baseline"], strict=True)]
    if case.memory:
        row["megabytes"] = {name: peak_memory(way) for name, way in ways.items()}
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


def _differences(case: Case, sides: Mapping[str, Side]) -> dict[str, float]:
    """Our result against the baseline's and the exact one; RuntimeError where they are not the same thing."""
    found: dict[str, float] = {}
    ours = sides["ours"].result()
    others = {"baseline": (sides["baseline"].result if case.baseline else None, case.tolerance)}
    others["exact"] = (case.exact and case.exact(), case.exact_tolerance)
    for name, (call, tolerance) in others.items():
        if call and tolerance is not None:
            found[f"difference_{name}"] = difference = largest_difference(ours, call())
            if not difference <= tolerance:
                raise RuntimeError(f"{case.name}: differs from '{name}' by {difference:.1e}, allowed {tolerance:.1e}")
    return found


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
