"""All metrics by name. Each row is defined in the module of its function: nc1 to nc5, drift, imbalance and others."""

from __future__ import annotations

from ncflow.metrics import (
    accuracy,
    calibration,
    codes,
    drift,
    imbalance,
    nc1,
    nc2,
    nc3,
    nc4,
    nc5,
    priors,
    squared_error,
)
from ncflow.metrics.rows import Metric

MODULES = (accuracy, priors, nc1, nc2, codes, nc3, nc4, nc5, squared_error, drift, imbalance, calibration)
# To add your own metric: METRICS["mine/name"] = Metric(formula, meaning, range)
METRICS: dict[str, Metric] = {name: row for module in MODULES for name, row in module.METRICS.items()}


def as_markdown() -> str:
    """The table of docs/metrics.md as Markdown text."""
    lines = ["| metric | formula | range | collapse | most telling on | reference |", "|---|---|---|---|---|---|"]
    for name, row in METRICS.items():
        cells = (f"`{name}`", row.meaning, row.range, row.collapse, row.split, row.reference)
        lines.append("| " + " | ".join(cells).rstrip() + " |")
    return "\n".join(lines)
