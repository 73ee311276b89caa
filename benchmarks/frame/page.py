"""A result page: what was asked, on which machine and day, and one line per case; written from the JSON beside it."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

GOALS = {"least_ratio": "≥ {:g}×", "most_seconds": "≤ {:g} s", "most_megabytes": "≤ {:g} MB"}


def page(record: Mapping[str, Any]) -> str:
    """Markdown of a record {benchmark, description, date, machine, rows, findings, seconds}."""
    head = f"# {record['benchmark']}, {record['date']}\n\n{record['description'].strip()}"
    took = f"The script took {record['seconds'] / 60:.1f} minutes." if "seconds" in record else ""
    parts = [head, _machine(record["machine"]), table(record["rows"]), record["findings"], took]
    return "\n\n".join(filter(None, parts)) + "\n"


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """A Markdown table: comparisons with medians and spread, other rows as they are."""
    lines = [_comparison(row) if "seconds" in row and "case" in row else row for row in rows]
    columns = list(dict.fromkeys(name for line in lines for name in line))
    cells = [columns, ["---"] * len(columns)] + [[_cell(line.get(name)) for name in columns] for line in lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)


def _comparison(row: Mapping[str, Any]) -> dict[str, str]:
    """One line: ratio median (min to max), times, memory, differences, goals and whether they are reached."""
    line = {"case": row["case"]}
    if "ratio" in row:
        ratio = row["ratio"]
        line["ratio"] = f"**{statistics.median(ratio):.3g}×** ({min(ratio):.3g} to {max(ratio):.3g})"
    line["pairs"] = str(len(row["seconds"]["ours"]))
    for name, seconds in row["seconds"].items():
        line[f"{name}: time"] = f"{_time(statistics.median(seconds))} ({_time(min(seconds))} to {_time(max(seconds))})"
    for name, megabytes in row.get("megabytes", {}).items():
        line[f"{name}: memory"] = "?" if megabytes is None else f"{megabytes:.0f} MB"
    for name in ("baseline", "exact"):
        if f"difference_{name}" in row:
            line[f"difference to {name}"] = f"{row[f'difference_{name}']:.1e}"
    verdicts = [
        f"{GOALS[name].format(goal)} {'reached' if row['reached'][name] else '**missed**'}"
        for name, goal in row["goals"].items()
    ]
    return line | ({"goal": ", ".join(verdicts)} if verdicts else {})


def _machine(machine: Mapping[str, Any]) -> str:
    parts = [
        f"{machine['cpu']}, {machine['cores']} cores ({', '.join(machine['instruction_sets'])}), "
        f"{machine['threads']} threads, {machine['memory_gb']} GB",
        machine["gpu"] or "no GPU",
        f"{machine['system']}, Python {machine['python']}, torch {machine['torch']}",
    ]
    return f"Machine: {'; '.join(parts)}."


def _time(seconds: float) -> str:
    return f"{seconds:.3g} s" if seconds >= 1 else f"{1e3 * seconds:.3g} ms"


def _cell(value: Any) -> str:
    return "" if value is None else f"{value:,}" if isinstance(value, int) else str(value)
