"""The frame's budget of time and its fitted powers, without sleeping."""

from __future__ import annotations

import math
import random

import pytest

from benchmarks.frame import growth
from benchmarks.frame.budget import FEWEST, Budget
from benchmarks.frame.growth import fit, grow


class FakeClock:
    """Seconds that pass only when something is said to take them."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now

    def rounds(self, budget: Budget, planned: int, seconds: float, end: float) -> int:
        """How many rounds of so many seconds the budget allows."""
        numbers = []
        for number in budget.rounds(planned, end):
            numbers.append(number)
            self.now += seconds
        assert numbers == list(range(len(numbers)))
        return len(numbers)


@pytest.mark.parametrize(
    ("planned", "seconds", "expected"),
    [(5, 1, 5), (5, 25, 4), (5, 26, FEWEST), (5, 1000, FEWEST), (1, 1000, 1), (200, 1, 100)],
)
def test_a_case_has_its_planned_rounds_or_those_of_its_share(planned, seconds, expected):
    clock = FakeClock()
    budget = Budget(100, clock=clock)
    assert clock.rounds(budget, planned, seconds, budget.start_case()) == expected


def test_preparations_of_a_case_count_as_part_of_its_share():
    clock = FakeClock()
    budget = Budget(100, clock=clock)
    end = budget.start_case()
    clock.now += 60
    assert clock.rounds(budget, 20, 10, end) == 4


def test_what_a_quick_case_leaves_is_shared_by_the_later_ones():
    clock = FakeClock()
    budget = Budget(300, cases=3, clock=clock)
    assert clock.rounds(budget, 5, 2, budget.start_case()) == 5  # 10 of its 100 seconds
    assert clock.rounds(budget, 1000, 1, budget.start_case()) == 145
    assert clock.rounds(budget, 1000, 1, budget.start_case()) == 145
    assert clock.now == 1300
    assert clock.rounds(budget, 5, 1, budget.start_case()) == FEWEST  # one case more than said


def test_a_round_longer_than_those_before_ends_the_case_earlier():
    clock = FakeClock()
    budget = Budget(100, clock=clock)
    done = 0
    for seconds, _ in zip([5, 5, 40, 1, 1], budget.rounds(5, budget.start_case()), strict=False):
        clock.now += seconds
        done += 1
    assert done == 5  # after 51 seconds another one of 40 fits
    budget = Budget(60, clock=clock)
    numbers = budget.rounds(5, budget.start_case())
    for seconds in (5, 5, 40):
        next(numbers)
        clock.now += seconds
    assert next(numbers, None) is None


@pytest.mark.parametrize("exponent", [0.0, 0.5, 1.0, 2.0, 2.75])
@pytest.mark.parametrize("sizes", [(1, 2, 3, 4), (10, 100, 1000, 10_000), (7, 64, 100, 512, 700, 2048)])
def test_the_fit_of_an_exact_power_law_is_that_law(exponent, sizes):
    law = fit({size: 3e-4 * size**exponent for size in sizes})
    assert (law.exponent, law.last) == pytest.approx((exponent, exponent), abs=1e-12)
    assert law.factor == pytest.approx(3e-4, rel=1e-11)
    assert law.least == pytest.approx(1, rel=1e-11) and law.most == pytest.approx(1, rel=1e-11)


@pytest.mark.parametrize("seed", range(3))
def test_no_other_line_is_nearer_to_noisy_costs(seed):
    drawn = random.Random(seed)
    costs = {2**step: 2**step * math.exp(drawn.gauss(0, 0.3)) for step in range(3, 9)}
    law = fit(costs)

    def squares(factor, exponent):
        return sum(math.log(cost / (factor * size**exponent)) ** 2 for size, cost in costs.items())

    least = squares(law.factor, law.exponent)
    steps = [(0.01, 0), (-0.01, 0), (0, 0.01), (0, -0.01), (0.01, -0.005), (-0.01, 0.005)]
    assert all(squares(law.factor * (1 + a), law.exponent + b) > least for a, b in steps)
    ratios = [cost / (law.factor * size**law.exponent) for size, cost in costs.items()]
    assert (law.least, law.most) == pytest.approx((min(ratios), max(ratios)))


def test_a_scale_of_costs_or_sizes_leaves_the_exponent():
    costs = {10: 1.0, 20: 2.5, 40: 4.0, 80: 9.0}
    scaled = fit({3 * size: 7 * cost for size, cost in costs.items()})
    assert scaled.exponent == pytest.approx(fit(costs).exponent)


def test_three_sizes_are_too_few_for_a_power_law():
    with pytest.raises(ValueError, match="a power law needs at least 4 sizes, got 3"):
        fit({1: 1.0, 2: 2.0, 3: 3.0})


def test_every_round_of_a_growth_measures_every_size_in_turn(monkeypatch):
    clock, order = FakeClock(), []

    def timed(call, repeats=1):
        before = clock.now
        for _ in range(repeats):
            call()
        return (clock.now - before) / repeats

    def make(size):
        def call():
            order.append(size)
            clock.now += size**1.5

        return call

    monkeypatch.setattr(growth, "timed", timed)
    seconds = grow(make, (1, 4, 9, 16), 5, Budget(600, clock=clock))
    assert fit({size: each[0] for size, each in seconds.items()}).exponent == pytest.approx(1.5)
    assert {len(each) for each in seconds.values()} == {4}  # 100 seconds a round after 200 of preparation
    assert order[-4:] == [1, 4, 9, 16]
