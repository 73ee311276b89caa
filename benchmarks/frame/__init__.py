"""The frame of every benchmark: two ways to one result, timed alternately, checked, and written down with the machine.

A script is a docstring, which becomes the head of its page, and a function `cases(quick)`; its last line is
`run(cases)`. See `nearest_etf.py` for a comparison and `models.py` for a plain table.
"""

from benchmarks.frame.budget import Budget
from benchmarks.frame.command import publish, run
from benchmarks.frame.machine import DEVICE
from benchmarks.frame.pairs import Case, largest_difference
from benchmarks.frame.sides import timed

__all__ = ["DEVICE", "Budget", "Case", "largest_difference", "publish", "run", "timed"]
