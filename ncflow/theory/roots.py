"""The root of a function that crosses zero once, from below, by bisection to the last bit of a float."""

from __future__ import annotations

from collections.abc import Callable


def rising_root(function: Callable[[float], float], low: float, high: float) -> float:
    """The least float in (low, high] from which `function` is not negative. Never evaluates it at the ends."""
    while low < (middle := (low + high) / 2) < high:
        if function(middle) < 0:
            low = middle
        else:
            high = middle
    return high
