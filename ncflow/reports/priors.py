"""The figure of test priors: the accuracy of each arm, from a test split of mostly rare classes to mostly frequent."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
from matplotlib.ticker import PercentFormatter

from ncflow.metrics.priors import RATIOS
from ncflow.reports.arms import Arm
from ncflow.reports.canvas import Plate, Size, draw_line, panels
from ncflow.reports.looks import Looks
from ncflow.reports.rows import all_runs, lines, table

# Label of a place on the axis -> metric, from the most backward to the most forward prior.
PLACES: dict[str, str] = {
    **{f"1:{ratio}": f"test/prior/backward_{ratio}" for ratio in RATIOS},
    "uniform": "test/acc/balanced",
    **{f"{ratio}:1": f"test/prior/forward_{ratio}" for ratio in reversed(RATIOS)},
}


def read_priors(arms: Sequence[Arm]) -> pd.DataFrame:
    """A row per run and test prior at the last analysis, of the runs that measured all of them.

    A prior stands at its ratio of the most frequent to the rarest training class, at equal distances.
    """
    rows = [
        whose | {"place": place, "prior": prior, "value": value}
        for whose, run in all_runs(arms)
        if None not in (values := [run.final(key) for key in PLACES.values()])
        for place, (prior, value) in enumerate(zip(PLACES, values, strict=True))
    ]
    return table(rows, "no run measured accuracy under test priors; earlier versions did not")


def draw_priors(data: pd.DataFrame, looks: Looks, size: Size) -> Plate:
    """Draw accuracy against the test prior: each arm's median over its seeds, in a band from minimum to maximum."""
    narrow = size.columns < 3
    plate, (axes,) = panels(size, [""], legend=looks, ratio=0.5, bottom=6.2 if narrow else 3.2)
    names = list(PLACES)
    for (arm,), line in lines(data, ["arm"], along="place").items():
        draw_line(plate, axes, line, looks[arm], said=arm, place="prior", names=names)
    axes.set_xticks(range(len(names)), names, rotation=90 if narrow else 0)
    axes.set(xlabel="test prior, most frequent : rarest training class", ylabel="test accuracy")
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    return plate
