"""The table of one run and its post-hoc classifiers, for a terminal."""

from __future__ import annotations

from ncflow.reports.tables import ABSENT, Row, Table
from ncflow.runs.posthoc import PostHoc

SHOWN = ("balanced", "many", "medium", "few")  # accuracies on the test split
CHOSEN_BY = {"val": " (by val)", "default": " (default)"}  # word of the file -> how the table says it


def posthoc_table(posthoc: PostHoc) -> Table:
    """The accuracies of the run itself, then of each method with its options and how they were chosen."""
    headings = (("", "method"), ("", "options"), *(("test acc/", f"{name} %") for name in SHOWN))
    test = posthoc.splits["test"]
    rows = [Row(("the run itself", ABSENT, *(_percent(test.get(f"acc/{name}")) for name in SHOWN)))]
    for method in posthoc.methods:
        values = (_percent(posthoc.value(method, f"test/acc/{name}")) for name in SHOWN)
        rows.append(Row((method, _options(posthoc, method), *values)))
    return Table(headings, tuple(rows), words=2)


def _options(posthoc: PostHoc, method: str) -> str:
    chosen = [f"{name} {value:g}" for name, value in posthoc.options_of(method).items()]
    return ", ".join(chosen) + CHOSEN_BY.get(posthoc.chosen_by[method], "") if chosen else ABSENT


def _percent(value: float | None) -> str:
    return ABSENT if value is None else f"{100 * value:.1f}"
