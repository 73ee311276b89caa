"""All metrics by name. Each row is defined in the module of its function: nc1 to nc5, drift, imbalance and others."""

from __future__ import annotations

from collections.abc import Mapping

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

# The metrics of each layer's pooled features: layers/<layer>/<key> is the metric of that name.
LAYER_METRICS = {
    "drift": "drift/norm",
    "nc1": "nc1/pinv",
    "equiangularity": "nc2/equiangularity_means",
    "ncc_accuracy": "nc4/ncc_accuracy",
    "numerical_rank": "nc1/numerical_rank",
}


def layer_rows() -> dict[str, Metric]:
    """The rows of the metrics of a layer, by their names in a run."""
    return {f"layers/<layer>/{short}": METRICS[name] for short, name in LAYER_METRICS.items()}


def as_markdown(rows: Mapping[str, Metric] = METRICS) -> str:
    """The table of docs/metrics.md as Markdown text, or that of other rows."""
    lines = ["| metric | formula | range | collapse | most telling on | reference |", "|---|---|---|---|---|---|"]
    for name, row in rows.items():
        cells = (f"`{name}`", row.meaning, row.range, row.collapse, row.split, row.reference)
        lines.append("| " + " | ".join(cells).rstrip() + " |")
    return "\n".join(lines)
