"""The better end of a metric: towards collapse, or towards a better classifier."""

from __future__ import annotations

from ncflow.metrics.table import METRICS

SOMETIMES = ("posthoc/", "layers/", "head/")  # metrics that only some runs have, without a row in METRICS


def natural_direction(metric: str) -> str:
    """Return "maximize" or "minimize"; empty if the table of metrics has no better end for it.

    A metric whose value at collapse is an end of its range improves towards that end.
    """
    if metric.startswith("calibration/"):
        return "minimize"
    if "acc/" in metric and metric not in METRICS:
        return "maximize"
    row = METRICS.get(metric)
    low, _, high = row.range.strip("[]()").partition(", ") if row else ("", "", "")
    return {high: "maximize", low: "minimize"}.get(row.collapse, "") if row else ""
