"""The figure of test priors: the accuracy of each arm, from a test split of mostly rare classes to mostly frequent."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from ncflow.metrics.priors import RATIOS
from ncflow.reports.arms import Arm, labels
from ncflow.reports.curves import arm_styles, legend_below
from ncflow.reports.figures import literal

# Label of a place on the axis -> metric, from the most backward to the most forward prior.
PLACES: dict[str, str] = {
    **{f"1:{ratio}": f"test/prior/backward_{ratio}" for ratio in RATIOS},
    "uniform": "test/acc/balanced",
    **{f"{ratio}:1": f"test/prior/forward_{ratio}" for ratio in reversed(RATIOS)},
}


def priors_figure(arms: Sequence[Arm], title: str = "") -> Figure | None:
    """Draw accuracy against the test prior: each arm's median over its seeds, in a band from minimum to maximum.

    Values are those of the last analysis. A prior stands at its ratio of the most frequent to the rarest training
    class, at equal distances. Runs of earlier versions lack these metrics; None if no arm has them.
    """
    measured = [_values(arm) for arm in arms]
    if not any(measured):
        return None
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    at = range(len(PLACES))
    for values, label, style in zip(measured, labels(arms), arm_styles(arms), strict=True):
        if values:
            axes.plot(at, [median(seeds) for seeds in values], label=literal(label), markersize=4, **style)
            low, high = [min(seeds) for seeds in values], [max(seeds) for seeds in values]
            axes.fill_between(at, low, high, color=style["color"], alpha=0.15, lw=0)
    axes.set_xticks(at, list(PLACES))
    axes.set(xlabel="test prior, most frequent : rarest training class", ylabel="test accuracy")
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    axes.grid(alpha=0.25)
    legend_below(figure, axes)
    figure.suptitle(literal(title), fontsize=12)
    return figure


def _values(arm: Arm) -> list[list[float]]:
    """The values of each place, one per run that measured all of them; empty if no run did."""
    runs = [[run.final(key) for key in PLACES.values()] for run in arm.runs]
    complete = [[value for value in values if value is not None] for values in runs if None not in values]
    return [list(seeds) for seeds in zip(*complete, strict=True)]
