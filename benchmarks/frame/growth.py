"""How a cost grows with a size: the power of a power law, fitted to measured times, and how well it fits."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.frame.budget import Budget
from benchmarks.frame.pairs import SHORTEST
from benchmarks.frame.sides import timed

FEWEST = 4  # sizes


@dataclass(frozen=True)
class PowerLaw:
    """cost = factor * size^exponent; `least` and `most` are the extreme ratios of measured to fitted costs.

    `last` is the exponent between the two largest sizes alone, nearer to that of large sizes.
    """

    factor: float
    exponent: float
    least: float
    most: float
    last: float


def fit(costs: Mapping[int, float]) -> PowerLaw:
    """The least-squares line of log(cost) over log(size), size -> cost > 0, at least four sizes in rising order.

    The slope is Σ(x - x̄)(y - ȳ) / Σ(x - x̄)². Raises ValueError for fewer sizes.
    """
    if len(costs) < FEWEST:
        raise ValueError(f"a power law needs at least {FEWEST} sizes, got {len(costs)}")
    x, y = [math.log(size) for size in costs], [math.log(cost) for cost in costs.values()]
    center, middle = statistics.fmean(x), statistics.fmean(y)
    exponent = math.fsum((a - center) * (b - middle) for a, b in zip(x, y, strict=True))
    exponent /= math.fsum((a - center) ** 2 for a in x)
    ratios = [math.exp(b - middle - exponent * (a - center)) for a, b in zip(x, y, strict=True)]
    last = (y[-1] - y[-2]) / (x[-1] - x[-2])
    return PowerLaw(math.exp(middle - exponent * center), exponent, min(ratios), max(ratios), last)


def grow(
    make: Callable[[int], Callable[[], Any]], sizes: Sequence[int], rounds: int, budget: Budget
) -> dict[int, list[float]]:
    """Size -> seconds of the call that `make(size)` prepares, size after size in every round.

    What slows the machine down for a while slows all sizes down alike. The rounds are `rounds`, or those that the
    case's share of the budget allows.
    """
    end = budget.start_case()
    calls = {size: make(size) for size in sizes}
    for call in calls.values():
        call()  # a warm-up
    repeats = {size: max(1, math.ceil(SHORTEST / len(sizes) / timed(call))) for size, call in calls.items()}
    seconds: dict[int, list[float]] = {size: [] for size in sizes}
    for _ in budget.rounds(rounds, end):
        for size, call in calls.items():
            seconds[size].append(timed(call, repeats[size]))
    return seconds
