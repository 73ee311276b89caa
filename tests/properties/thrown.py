"""How bad input is thrown, and what counts as an answer to it: taken as it was said, or refused by ncflow's own words.

Every run throws the same examples. `NCFLOW_EXAMPLES=50 pytest tests/properties` throws fifty times as many, new ones
each time.
"""

from __future__ import annotations

import os
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, settings

import ncflow

TIMES = int(os.environ.get("NCFLOW_EXAMPLES", "1"))
PACKAGE = Path(ncflow.__file__).parent
COUNTS: Counter[str] = Counter()  # of this session's inputs


def throw(number: int) -> settings:
    """Settings for that many examples: without a clock, which a busy machine would fail, and without a memory."""
    return settings(
        max_examples=number * TIMES,
        derandomize=TIMES == 1,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )


def refusal(call: Callable[[], Any]) -> str | None:
    """What the ValueError says with which `call` refuses its input, or None where it is taken.

    Any other exception is a failure, and so is a ValueError that a library raised and ncflow let pass.
    """
    try:
        call()
    except ValueError as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        assert PACKAGE in Path(where.filename).parents, f"{where.filename}:{where.lineno} says {error}"
        COUNTS["refused"] += 1
        return str(error)
    COUNTS["taken"] += 1
    return None
