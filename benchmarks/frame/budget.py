"""The time of a script, shared among its cases: each repeats until its plan or its share of the time is used up."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

SECONDS = 300.0  # what a script may take on two cores
FEWEST = 3  # rounds of a case, even if they take longer than its share


class Budget:
    """Seconds of a script from now on, and how many of its cases are still to come."""

    def __init__(self, seconds: float = SECONDS, *, cases: int = 1, clock: Callable[[], float] = time.perf_counter):
        self._clock, self._cases = clock, cases
        self._end = clock() + seconds

    def start_case(self) -> float:
        """Begin the next case; returns when its share ends. A quick case leaves its time to those after it."""
        now = self._clock()
        share = (self._end - now) / max(1, self._cases)
        self._cases -= 1
        return now + share

    def rounds(self, planned: int, end: float) -> Iterator[int]:
        """Number the rounds from 0: `planned` of them, or those that end before `end`, but at least three.

        A round is expected to take as long as the longest one before it.
        """
        longest = 0.0
        for number in range(planned):
            start = self._clock()
            if number >= FEWEST and start + longest > end:
                return
            yield number
            longest = max(longest, self._clock() - start)
