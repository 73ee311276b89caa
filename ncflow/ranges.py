"""Ranges of numbers for signatures. Configurations check the same ranges."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Annotated, Any, Literal

LARGEST = 1e30  # limit of any number: float32 ends at 3e38, and optimizers multiply
MOST = 2**31 - 1  # limit of any count, valid for torch, NumPy and MLflow on every platform


@dataclass(frozen=True, kw_only=True)
class Interval:
    """Limits of a number: greater than, at least, less than, at most. pydantic and Hypothesis read them.

    It is `annotated_types.Interval` for signatures that must not need that package. Only a reader imports it.
    """

    gt: float | None = None
    ge: float | None = None
    lt: float | None = None
    le: float | None = None

    @property
    def __is_annotated_types_grouped_metadata__(self) -> Literal[True]:
        return True

    def __iter__(self) -> Iterator[Any]:
        from annotated_types import Interval as Limits

        return iter(Limits(**asdict(self)))


Positive = Annotated[float, Interval(gt=0, le=LARGEST)]
NotNegative = Annotated[float, Interval(ge=0, le=LARGEST)]
Share = Annotated[float, Interval(ge=0, lt=1)]
Count = Annotated[int, Interval(ge=1, le=MOST)]
Seed = Annotated[int, Interval(ge=0, lt=2**32)]  # the range of NumPy's generators
