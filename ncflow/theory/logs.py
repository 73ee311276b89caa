"""Logarithms of sums and differences of numbers that are out of the range of float64."""

from __future__ import annotations

import math


def log_one_plus(x: float) -> float:
    """log(1 + e^x), for any x."""
    return max(x, 0.0) + math.log1p(math.exp(-abs(x)))


def log_one_minus(x: float) -> float:
    """log(1 - e^x), for x < 0."""
    return math.log(-math.expm1(x))
