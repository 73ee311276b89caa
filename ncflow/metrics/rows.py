"""A metric's row: its formula, meaning, range, value at collapse, and how reports show it.

Each metrics module ends with the rows of its functions. `table` joins them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from torch import Tensor

if TYPE_CHECKING:
    from ncflow.metrics.analysis import Analysis
    from ncflow.metrics.frame import Frame
    from ncflow.metrics.moments import ClassMoments

Formula = Callable[["Analysis"], "Tensor | None"]
Place = Literal["table", "curves", "knobs"]


@dataclass(frozen=True)
class View:
    """How reports and the MLflow UI show a metric: on which split, in which places, under which title.

    at_collapse is drawn as a line, unless it is None. percent and log set the scale of the axis.
    """

    title: str
    meaning: str
    split: Literal["train", "test"]
    places: tuple[Place, ...] = ()
    at_collapse: float | None = None
    percent: bool = False
    log: bool = False


@dataclass(frozen=True)
class Metric:
    """One metric. Its formula takes an `Analysis` and returns a 0-dim tensor, or None where it is not defined.

    meaning, range, collapse, split (the most informative one) and reference are its cells in docs/metrics.md. needs is
    "scatter" for the whole within-class scatter, "spectra" for the features of each class separately, or "margins".

    Examples:
        >>> from ncflow import METRICS
        >>> METRICS["nc1/pinv"].collapse
        '0'
    """

    formula: Formula
    meaning: str
    range: str
    collapse: str = "—"
    split: str = "both"
    reference: str = ""
    needs: Literal["", "scatter", "spectra", "margins"] = ""
    view: View | None = None

    def __call__(self, analysis: Analysis) -> Tensor | None:
        return self.formula(analysis)


def of_moments(formula: Callable[[ClassMoments], Tensor]) -> Formula:
    """The formula applied to the moments of the classes that have samples."""
    return lambda a: formula(a.present)


def of_differing_means(formula: Callable[[ClassMoments], Tensor]) -> Formula:
    """The formula applied to the moments of the classes that have samples, None unless their means differ."""
    return lambda a: formula(a.present) if a.means else None


def of_means(formula: Callable[[Frame], Tensor | None]) -> Formula:
    """The formula applied to the centered class means."""
    return lambda a: formula(a.means) if a.means else None


def of_uncentered_means(formula: Callable[[Frame], Tensor | None]) -> Formula:
    """The formula applied to the class means, not centered."""
    return lambda a: formula(a.uncentered_means) if a.uncentered_means else None


def of_weight(formula: Callable[[Frame], Tensor | None]) -> Formula:
    """The formula applied to the classifier's rows."""
    return lambda a: formula(a.rows) if a.rows else None


def of_both(formula: Callable[[Frame, Frame], Tensor | None]) -> Formula:
    """The formula applied to classifier rows and centered class means, both of the classes that have samples."""
    return lambda a: formula(a.dual_rows, a.means) if a.dual_rows and a.means else None


def of_group(formula: Callable[[ClassMoments, Tensor], Tensor], group: str) -> Formula:
    """The formula applied to the classes of a group by size, such as "few"."""
    return lambda a: formula(a.present, a.shot_groups[group]) if a.means and group in a.shot_groups else None


PAPYAN = "Papyan, Han and Donoho 2020"
ZHU = "Zhu et al. 2021"
MARKOU = "Markou, Ajanthan and Gould 2024"
EITHER = "either, W only"
