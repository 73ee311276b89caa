"""What every script does when it is run: options, cases one by one, then JSON and a page of results."""

from __future__ import annotations

import argparse
import datetime
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.frame.budget import SECONDS, Budget
from benchmarks.frame.machine import describe_machine
from benchmarks.frame.page import page, table
from benchmarks.frame.pairs import Case, compare

RESULTS = Path(__file__).parents[1] / "results"
STARTED = time.perf_counter()  # of the script, after the imports before this one

Rows = list[dict[str, Any]]


def run(cases: Callable[[bool], Sequence[Case]], findings: Callable[[Rows], str] | None = None) -> None:
    """Compare case after case; `cases(quick)` makes them, `findings(rows)` says what they show together."""

    def measure(options: argparse.Namespace) -> Rows:
        made = cases(options.quick)
        if options.quick:  # each measurement of memory takes a new process with all imports
            made = [replace(case, memory=False) for case in made]
        budget = Budget(options.budget, cases=len(made))
        return [_told(compare(case, options.pairs, budget)) for case in made]

    publish(measure, findings)


def publish(measure: Callable[[argparse.Namespace], Rows], findings: Callable[[Rows], str] | None = None) -> None:
    """Write the rows that `measure(options)` returns to <out>/<script>-<date>.json and .md, and print the page."""
    script = sys.modules["__main__"]
    options = _options(script.__doc__)
    rows = measure(options)
    record = {
        "benchmark": Path(script.__file__ or "").stem,
        "description": script.__doc__,
        "date": datetime.date.today().isoformat(),
        "machine": describe_machine(),
        "options": {"pairs": options.pairs, "quick": options.quick, "budget": options.budget},
        "rows": rows,
        "findings": findings(rows) if findings else "",
        "seconds": round(time.perf_counter() - STARTED, 1),
    }
    options.out.mkdir(parents=True, exist_ok=True)
    name = f"{record['benchmark']}-{record['date']}{'-quick' if options.quick else ''}"
    (options.out / f"{name}.json").write_text(json.dumps(record, indent=1) + "\n")
    (options.out / f"{name}.md").write_text(page(record))
    print(f"\n{page(record)}")


def _told(row: dict[str, Any]) -> dict[str, Any]:
    print(table([row]), flush=True)
    return row


def _options(description: str | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=5, help="most pairs of measurements per case")
    parser.add_argument("--budget", type=float, default=SECONDS, help="seconds, shared among the cases, 3 pairs each")
    parser.add_argument("--quick", action="store_true", help="small cases only: whether it works, not how fast it is")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the JSON and the page")
    return parser.parse_args()
