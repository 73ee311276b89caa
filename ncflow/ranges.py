"""Ranges of numbers for signatures. Configurations check the same ranges."""

from __future__ import annotations

from typing import Annotated

from annotated_types import Ge, Gt, Le, Lt

LARGEST = 1e30  # limit of any number: float32 ends at 3e38, and optimizers multiply
MOST = 2**31 - 1  # limit of any count, valid for torch, NumPy and MLflow on every platform

Positive = Annotated[float, Gt(0), Le(LARGEST)]
NotNegative = Annotated[float, Ge(0), Le(LARGEST)]
Share = Annotated[float, Ge(0), Lt(1)]
Count = Annotated[int, Ge(1), Le(MOST)]
Seed = Annotated[int, Ge(0), Lt(2**32)]  # the range of NumPy's generators
