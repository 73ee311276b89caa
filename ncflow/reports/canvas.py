"""The canvas of figures: the sizes of a paper, one layout in inches, and lines that read in gray."""

from __future__ import annotations

import math
import re
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, PercentFormatter

from ncflow.reports.looks import condensed

LETTER = 0.6  # width of a letter, in font sizes
MARKERS = 8  # the most on a line


@dataclass(frozen=True)
class Size:
    """The width of a figure in inches, its font size in points, and how many panels fit side by side."""

    width: float
    font: float
    columns: int

    @property
    def em(self) -> float:
        """The font size in inches."""
        return self.font / 72

    def titles(self, titles: Iterable[str]) -> list[str]:
        """Titles of a name and a key in two lines; a column has room for the name only."""
        return [title if self.columns > 2 else title.partition("\n")[0] for title in titles]


COLUMN, WIDE = Size(3.25, 7.0, 2), Size(6.75, 8.0, 3)  # one column of a paper, and its full text width


class Tip(NamedTuple):
    """What a page says where the pointer rests: a point in data coordinates of the axes, and a text."""

    axes: Axes
    x: float
    y: float
    text: str


class Plate(Figure):
    """A figure that holds its `size` and the `tips` for a page."""

    def __init__(self, size: Size, height: float) -> None:
        super().__init__(figsize=(size.width, height))
        self.size = size
        self.tips: list[Tip] = []

    def tip(self, axes: Axes, xs: Iterable[Any], ys: Iterable[Any], texts: Iterable[str]) -> None:
        """Say a text at each point; points that are not finite are left out."""
        points = zip(xs, ys, texts, strict=True)
        self.tips += [
            Tip(axes, float(x), float(y), text) for x, y, text in points if math.isfinite(float(x) + float(y))
        ]

    def colorbar_below(self, image: ScalarMappable, *, ticks: Sequence[float], percent: bool = False) -> None:
        """Add a color bar below all panels; the figure gets higher, and the panels keep their size."""
        em, height = self.size.em, self.get_figheight()
        total = height + 3.0 * em
        for axes in self.axes:
            box = axes.get_position()
            y = (box.y0 * height + 3.0 * em) / total
            axes.set_position((box.x0, y, box.width, box.height * height / total))
        self.set_figheight(total)
        bar = self.add_axes((0.3, 1.8 * em / total, 0.4, 0.7 * em / total))
        form = PercentFormatter(1) if percent else None
        self.colorbar(image, cax=bar, orientation="horizontal", ticks=list(ticks), format=form)
        bar.tick_params(labelsize=self.size.font - 1, length=2, width=0.6, pad=1)


def panels(
    size: Size,
    titles: Sequence[str],
    *,
    legend: Mapping[str, Mapping[str, Any]] | None = None,
    columns: int | None = None,
    ratio: float = 0.75,
    left: float = 5.2,
    bottom: float = 3.2,
    right: float = 0.8,
) -> tuple[Plate, list[Axes]]:
    """A figure with one panel per title, `ratio` as high as wide, and a legend below.

    `left`, `bottom` and `right` are the room of a panel for its labels, in font sizes. `legend` is label -> style: of a
    line, or of a bar where it has a "facecolor".
    """
    columns = min(columns or size.columns, len(titles))
    legend = condensed(legend or {})
    rows = math.ceil(len(titles) / columns)
    cell = size.width / columns
    width = cell - (left + right) * size.em
    wrapped = [wrap(title, (width / size.em + 2 * min(left, right)) / LETTER) for title in titles]
    top = (0.6 + 1.25 * max(title.count("\n") + (title != "") for title in wrapped)) * size.em
    room = legend_room(size, legend)
    each = top + ratio * width + bottom * size.em
    plate = Plate(size, rows * each + room)
    axes = []
    for place, title in enumerate(wrapped):
        row, column = divmod(place, columns)
        x, y = column * cell + left * size.em, room + (rows - 1 - row) * each + bottom * size.em
        axes.append(_panel(plate, (x, y, width, ratio * width), title))
    if legend:
        _draw_legend(plate, legend)
    return plate, axes


def draw_line(
    plate: Plate,
    axes: Axes,
    line: pd.DataFrame,
    style: Mapping[str, Any],
    *,
    said: str,
    place: str,
    names: Sequence[str] = (),
) -> None:
    """Draw the median in a band from minimum to maximum, with a tip at each point.

    A tip says the line, then the place: its name and its index, or the name of the index in `names`.
    """
    every = max(1, math.ceil(len(line) / MARKERS))
    width = 1.2 if style.get("marker") else 0.7  # many arms have neither markers nor bands
    axes.plot(line.index, line["median"], label=literal(said), linewidth=width, markersize=3, markevery=every, **style)
    if style.get("marker"):
        axes.fill_between(line.index, line["min"], line["max"], color=style["color"], alpha=0.15, lw=0)
    texts = (f"{said}\n{place} {names[int(at)] if names else at}: {value:.4g}" for at, value in line["median"].items())
    plate.tip(axes, line.index, line["median"], texts)


def log_scale(axes: Axes, name: str) -> None:
    """Make the axis "x" or "y" logarithmic, with few ticks in plain numbers. Values below 0 are left out."""
    (axes.set_yscale if name == "y" else axes.set_xscale)("log", nonpositive="mask")
    axis = axes.yaxis if name == "y" else axes.xaxis
    low, high = axis.get_data_interval()
    decades = math.log10(high / low) if high > low > 0 else 1.0
    steps = (1, 2, 3, 4, 5, 6, 8) if decades < 0.5 else (1, 2, 5) if decades < 1.6 else (1,)
    axis.set_major_locator(LogLocator(subs=steps, numticks=6))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def draw_thin(axes: Axes, line: pd.DataFrame, style: Mapping[str, Any]) -> None:
    """Draw only the median, as a thin line without markers."""
    axes.plot(line.index, line["median"], linewidth=0.6, **{**style, "marker": ""})


def legend_room(size: Size, legend: Mapping[str, object]) -> float:
    """The height of a legend in inches."""
    if not legend:
        return 0.0
    return (0.8 + 1.45 * math.ceil(len(legend) / _legend_columns(size, legend))) * size.em


def wrap(text: str, letters: float) -> str:
    """A text in lines of at most so many letters, ready for matplotlib; a long word breaks after =, _ or /."""
    most = max(int(letters), 8)
    whole = [part for line in text.split("\n") for part in textwrap.wrap(line, most, break_long_words=False)]
    return literal("\n".join(part for line in whole for part in _broken(line, most)))


def shorten(name: str, most: int = 9) -> str:
    """At most so many letters of a name, without line breaks."""
    name = " ".join(str(name).split())
    return name if len(name) <= most else f"{name[: most - 1]}…"


def literal(text: str) -> str:
    """A text escaped for matplotlib, which would read text between dollars as a formula."""
    return text.replace("$", r"\$")


def _broken(line: str, most: int) -> Iterator[str]:
    """A line in parts of at most `most` letters."""
    part = ""
    for piece in re.findall(r"[^=_/]*[=_/]?", line) if len(line) > most else [line]:
        for start in range(0, len(piece), most):
            step = piece[start : start + most]
            if len(part) + len(step) > most:
                yield part
                part = ""
            part += step
    yield part


def _panel(plate: Plate, inches: tuple[float, float, float, float], title: str) -> Axes:
    width, height = plate.get_size_inches()
    x, y, w, h = inches
    axes = plate.add_axes((x / width, y / height, w / width, h / height))
    font = plate.size.font
    axes.title.set_text(title)
    for text in (axes.title, axes.xaxis.label, axes.yaxis.label):
        text.set_fontsize(font)
    axes.tick_params(which="both", labelsize=font - 1, length=2.5, width=0.6, pad=2)
    axes.xaxis.labelpad = axes.yaxis.labelpad = 2
    for offset in (axes.xaxis.offsetText, axes.yaxis.offsetText):
        offset.set_fontsize(font - 1)
    for spine in axes.spines.values():
        spine.set_linewidth(0.6)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))  # fewer ticks: each is five artists
    axes.grid(alpha=0.25, linewidth=0.5)
    axes.set_axisbelow(True)
    return axes


def _legend_columns(size: Size, legend: Mapping[str, object]) -> int:
    longest = max(map(len, legend)) + 6
    return max(1, min(len(legend), int(size.width / size.em / LETTER / longest)))


def _draw_legend(plate: Plate, legend: Mapping[str, Mapping[str, Any]]) -> None:
    size = plate.size
    letters = int(size.width / size.em / LETTER) - 6
    handles: list[Artist] = [
        Patch(**look) if "facecolor" in look else Line2D([], [], linewidth=1.2, markersize=3.5, **look)
        for look in legend.values()
    ]
    labels = [literal(label if len(label) <= letters else f"{label[: letters - 1]}…") for label in legend]
    plate.legend(
        handles,
        labels,
        loc="lower center",
        ncols=_legend_columns(size, legend),
        fontsize=size.font,
        frameon=False,
        borderaxespad=0.2,
        columnspacing=1.2,
        handlelength=2.4,
        labelspacing=0.35,
    )
