"""At the end of a session, how many inputs were thrown at it: those that were refused are the malformed ones."""

from __future__ import annotations

import sys
from collections import Counter
from typing import Any

import pytest

THROWN: Counter[str] = Counter()  # by the tests of all workers


def counted() -> dict[str, int]:
    """Those of this process, where it threw any."""
    return dict(sys.modules["thrown"].COUNTS) if "thrown" in sys.modules else {}


def pytest_sessionfinish(session: pytest.Session) -> None:
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["thrown"] = counted()


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    THROWN.update(getattr(node, "workeroutput", {}).get("thrown", {}))


def pytest_terminal_summary(terminalreporter: Any) -> None:
    thrown = THROWN + Counter(counted())
    terminalreporter.write_line(f"thrown inputs: {thrown['refused']} refused, {thrown['taken']} taken")
