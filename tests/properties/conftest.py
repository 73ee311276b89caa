"""At the end of a session, how many inputs were thrown: those that were refused are the malformed ones."""

from __future__ import annotations

from typing import Any

from thrown import COUNTS


def pytest_terminal_summary(terminalreporter: Any) -> None:
    terminalreporter.write_line(f"thrown inputs: {COUNTS['refused']} refused, {COUNTS['taken']} taken")
