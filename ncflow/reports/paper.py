"""The figures of the field: one row each, for the page, for the files next to it, and for `ncflow figure`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from ncflow.lookup import lookup
from ncflow.reports.across import draw_correlation, draw_layers, read_correlation, read_layers
from ncflow.reports.against_theory import draw_theory, read_theory
from ncflow.reports.arms import Arm, arms
from ncflow.reports.canvas import COLUMN, Plate, Size
from ncflow.reports.classes import (
    draw_classwise,
    draw_groups,
    draw_heatmap,
    draw_norms,
    read_classwise,
    read_groups,
    read_heatmap,
    read_norms,
)
from ncflow.reports.curves import draw_curves, draw_frames, read_curves, read_frames
from ncflow.reports.decisions import (
    draw_adjustment,
    draw_margins,
    draw_reliability,
    read_adjustment,
    read_margins,
    read_reliability,
)
from ncflow.reports.geometry import draw_angles, draw_plane, draw_spectra, read_angles, read_plane, read_spectra
from ncflow.reports.knobs import draw_knob, first_of_lines, read_knob
from ncflow.reports.looks import Looks, looks
from ncflow.reports.matrices import draw_confusion, draw_cosines, read_confusion, read_cosines
from ncflow.reports.priors import draw_priors, read_priors
from ncflow.reports.rows import Lacking
from ncflow.reports.saving import FORMATS, save
from ncflow.runs.reader import Run


@dataclass(frozen=True)
class Chart:
    """A figure of runs. `read` gives its rows and raises Lacking without data; `draw` draws just these rows.

    caption is a sentence or two for the page and the paper. needs says which data of a run it takes. `spread_out` is
    for figures with a panel per arm, which the page draws for a few arms only; `crowd` for figures that can hold many.
    """

    read: Callable[..., pd.DataFrame]
    draw: Callable[[pd.DataFrame, Looks, Size], Plate]
    section: str
    caption: str
    needs: str
    spread_out: bool = False
    crowd: bool = False
    styled: Callable[..., Sequence[Arm]] = lambda arms, *_: arms  # the arms whose styles the figure has


class Drawn(NamedTuple):
    """A figure and the rows that it shows."""

    figure: Plate
    data: pd.DataFrame


def figure(name: str, runs: Sequence[Run], size: Size = COLUMN, *, along: str = "") -> Drawn:
    """Draw a row of FIGURES for some runs; `along` is the option of the figure "knob".

    Raises ValueError for an unknown name, and Lacking with the reason if no run holds its data.
    """
    return draw(name, arms(runs), size, along=along)


def draw(name: str, compared: Sequence[Arm], size: Size, *, along: str = "") -> Drawn:
    """The same for arms."""
    chart, more = lookup(FIGURES, name, "figure"), (along,) if along else ()
    data = chart.read(compared, *more)
    return Drawn(chart.draw(data, looks(chart.styled(compared, *more)), size), data)


def write_figure(name: str, runs: Sequence[Run], file: Path, size: Size = COLUMN, *, along: str = "") -> None:
    """Write a figure as .pdf, .svg or .png, or its rows as .csv."""
    kind = file.suffix.removeprefix(".")
    lookup({**FORMATS, "csv": None}, kind, "format")
    file.parent.mkdir(parents=True, exist_ok=True)
    if kind == "csv":
        chart = lookup(FIGURES, name, "figure")
        write_rows(chart.read(arms(runs), *((along,) if along else ())), file)
    else:
        save(figure(name, runs, size, along=along).figure, file)


def write_rows(data: pd.DataFrame, file: Path) -> None:
    """Write the rows of a figure as a CSV file."""
    data.to_csv(file, index=False, float_format="%.10g", lineterminator="\n")


def lacking(runs: Sequence[Run]) -> dict[str, str]:
    """Figure -> why these runs lack it; empty text if they have it."""
    compared, found = arms(runs), {}
    for name, chart in FIGURES.items():
        try:
            chart.read(compared)
            found[name] = ""
        except Lacking as reason:
            found[name] = str(reason)
    return found


TRAINING, CLASSES, GEOMETRY = "Over training", "Class by class", "Class geometry"
DECISIONS, CHOICES = "Decisions", "What the choice does"
METRICS, DUMPS, LOGITS = "metrics", "the last dump", "logits: train.save_logits=true"
FIGURES: dict[str, Chart] = {
    "knob": Chart(
        read_knob,
        draw_knob,
        CHOICES,
        "Final accuracy, drift and collapse against one option: median over seeds, with bars from minimum to maximum. "
        "Positive numbers have a logarithmic axis; other values stand at equal distances. Theory, where it is drawn: "
        "the drift of cross-entropy on unconstrained features with these class sizes, as weight decay vanishes.",
        "runs that differ in an option besides the head",
        styled=first_of_lines,
    ),
    "groups": Chart(
        read_groups,
        draw_groups,
        CHOICES,
        "Test accuracy of classes with many (over 100), medium (20 to 100) and few (under 20) training samples, and "
        "balanced accuracy. Bars: mean over seeds; whiskers: standard deviation over seeds.",
        METRICS,
    ),
    "correlation": Chart(
        read_correlation,
        draw_correlation,
        CHOICES,
        "Balanced test accuracy against a metric of collapse at the last analysis, a point per run. R² is that of the "
        "line of least squares over all runs; NC1 enters by its logarithm.",
        "three runs with the same metric",
        crowd=True,
    ),
    "curves": Chart(
        read_curves,
        draw_curves,
        TRAINING,
        "Error, collapse and drift over epochs: median over seeds, in a band from minimum to maximum. The vertical "
        "dotted line is the first analysis at which every seed has zero training error. Thin lines: see the titles; "
        "thin and dotted: on the validation part.",
        METRICS,
        crowd=True,
    ),
    "frames": Chart(
        read_frames,
        draw_frames,
        TRAINING,
        "Distance of class means, and of classifier rows (thin), to a simplex ETF, to SELI and to an orthogonal frame: "
        "the Frobenius norm of the difference of the Gram matrices, each of unit norm.",
        METRICS,
        spread_out=True,
    ),
    "heatmap": Chart(
        read_heatmap,
        draw_heatmap,
        TRAINING,
        "Test accuracy of each class, the largest at the top, over epochs. The lowest seed of each arm.",
        "the dump of each analysis",
        spread_out=True,
    ),
    "classwise": Chart(
        read_classwise,
        draw_classwise,
        CLASSES,
        "Test accuracy of each class against its training samples. A point per class and seed; the line joins their "
        "means over classes of similar size.",
        DUMPS,
    ),
    "norms": Chart(
        read_norms,
        draw_norms,
        CLASSES,
        "Norms of classifier rows and of centered class means over their root mean square, the largest class first: "
        "median over seeds, in a band from minimum to maximum. Thin dashes: theory, where one applies.",
        DUMPS,
    ),
    "margins": Chart(
        read_margins,
        draw_margins,
        CLASSES,
        "Margins of test samples by the training size of their class: probability of the true class less the largest "
        "other one. Mark: median; thick: the middle half; thin: the middle nine tenths.",
        LOGITS,
    ),
    "confusion": Chart(
        read_confusion,
        draw_confusion,
        CLASSES,
        "Share of each true class (down) that got each label (across), test split, the largest class first. Rare "
        "classes taken for large ones fill the lower left. The lowest seed of each arm. Of more than 100 classes, 100 "
        "are shown.",
        DUMPS,
        spread_out=True,
    ),
    "cosines": Chart(
        read_cosines,
        draw_cosines,
        GEOMETRY,
        "Cosines between centered class means, and between classifier rows, the largest class first. At collapse on "
        "balanced classes every pair has −1/(K − 1). Rare classes that share one direction (minority collapse) are red "
        "at the lower right. The lowest seed of each arm. Of more than 100 classes, 100 are shown.",
        DUMPS,
        spread_out=True,
    ),
    "angles": Chart(
        read_angles,
        draw_angles,
        GEOMETRY,
        "Cosines of all pairs of classes, all seeds of an arm together. Gray: −1/(K − 1), where a simplex ETF has all.",
        DUMPS,
    ),
    "spectra": Chart(
        read_spectra,
        draw_spectra,
        GEOMETRY,
        "Singular values of centered class means and of classifier rows, over the largest: median over seeds, in a "
        "band from minimum to maximum. A simplex ETF has K − 1 equal values.",
        DUMPS,
    ),
    "plane": Chart(
        read_plane,
        draw_plane,
        GEOMETRY,
        "Class means (marks), classifier rows (lines from the origin) and, where they are stored, training features "
        "(points) on the first two principal directions of the means, with their share of the means' variance. The "
        "lowest seed of each arm.",
        "the last dump; features: train.save_features=true",
        spread_out=True,
    ),
    "layers": Chart(
        read_layers,
        draw_layers,
        GEOMETRY,
        "Metrics of pooled features of each layer on the training split, at the last analysis: median over seeds, in a "
        "band from minimum to maximum. NCC accuracy: the share of samples whose nearest class mean is their own. "
        "Equiangularity: of the class means. Effective rank: nc1/numerical_rank, the mean over classes, 1 at collapse.",
        "train.analyze_layers=true",
    ),
    "theory": Chart(
        read_theory,
        draw_theory,
        GEOMETRY,
        "Lengths of classifier rows and class means, the largest class first. Points: measured, the lowest seed. "
        "Dashes of the same color: predicted.",
        "runs that a theory covers",
    ),
    "priors": Chart(
        read_priors,
        draw_priors,
        DECISIONS,
        "The accuracy that a test split with another class balance would have. Class sizes follow an exponential "
        "profile in the order of the training sizes. At the right the frequent training classes are frequent in the "
        "test split as well. Median over seeds, in a band from minimum to maximum.",
        METRICS,
        crowd=True,
    ),
    "adjustment": Chart(
        read_adjustment,
        draw_adjustment,
        DECISIONS,
        "Balanced test accuracy of the logits less τ times the log of the training class shares. A short mark at the "
        "bottom: τ as the validation part chose it. Nothing is chosen on the test split.",
        LOGITS,
    ),
    "reliability": Chart(
        read_reliability,
        draw_reliability,
        DECISIONS,
        "Test accuracy against confidence in 15 equal bins, all seeds of an arm together. ECE: mean over seeds of the "
        "expected calibration error. On the gray diagonal, confidence equals accuracy. Bins of fewer than 5 samples "
        "are not drawn.",
        LOGITS,
    ),
}
