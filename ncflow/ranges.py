"""Ranges of numbers for signatures. Configurations check exactly these ranges."""

from __future__ import annotations

from typing import Annotated

from annotated_types import Ge, Gt, Le, Lt

LARGEST = 1e30  # of any number: float32 ends at 3e38, and optimizers multiply
MOST = 2**31 - 1  # of any count: what torch, NumPy and MLflow take on every platform

Positive = Annotated[float, Gt(0), Le(LARGEST)]
NotNegative = Annotated[float, Ge(0), Le(LARGEST)]
Share = Annotated[float, Ge(0), Lt(1)]
Count = Annotated[int, Ge(1), Le(MOST)]
Seed = Annotated[int, Ge(0), Lt(2**32)]  # what NumPy's generators take
