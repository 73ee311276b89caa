"""Figures as files: small SVG for pages, PDF with embedded fonts, PNG, and the same bytes each time."""

from __future__ import annotations

import io
import math
import re
from html import escape
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from ncflow.files import write_atomically
from ncflow.lookup import lookup
from ncflow.reports.canvas import Plate
from ncflow.reports.lettering import families

MOST_TIPS = 1200  # of a figure: more would make a page slow


def to_svg(figure: Figure, *, prefix: str = "") -> str:
    """The figure as an SVG element without anything that its picture does not need. `prefix` starts all its ids.

    Text stays text. Tips are invisible circles with a <title>, which browsers show without a script.
    """
    buffer = io.BytesIO()
    with matplotlib.rc_context(STYLE):
        figure.savefig(
            buffer, format="svg", dpi=150, metadata={"Date": None, "Creator": None, "Format": None, "Type": None}
        )
    text = buffer.getvalue().decode()
    tips = _tips(figure) if isinstance(figure, Plate) else ""
    return _slim(text[text.index("<svg") :], prefix).replace("</svg>", f"{tips}</svg>")


def to_bytes(figure: Figure, kind: str) -> bytes:
    """The figure as a file of a kind in FORMATS, with the same bytes each time."""
    return bytes(lookup(FORMATS, kind, "format")(figure))


def save(figure: Figure, file: Path) -> None:
    """Write the figure in the format that the file's name says. Raises ValueError for another ending."""
    content = to_bytes(figure, file.suffix.removeprefix("."))
    write_atomically(file, lambda opened: opened.write(content))


def _tips(plate: Plate) -> str:
    """The tips as circles in points, where SVG has its origin: at the upper left."""
    step = math.ceil(len(plate.tips) / MOST_TIPS) or 1
    height, scale = plate.get_figheight() * 72, 72 / plate.dpi
    circles = []
    for tip in plate.tips[::step]:
        x, y = tip.axes.transData.transform((tip.x, tip.y)) * scale
        if np.isfinite(x + y):
            title = f"<title>{escape(tip.text, quote=False)}</title>"
            circles.append(f'<circle cx="{x:.1f}" cy="{height - y:.1f}" r="3">{title}</circle>')
    return f'<g class="tips" fill="none" pointer-events="all">{"".join(circles)}</g>' if circles else ""


def _slim(svg: str, prefix: str) -> str:
    """Drop comments, metadata and unused ids; shorten numbers and used ids."""
    svg = re.sub(r"<!--.*?-->|<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    used = dict.fromkeys(re.findall(r'(?:href="#|url\(#)([^")]+)', svg))
    short = {name: f"{prefix}{number}" for number, name in enumerate(used)}
    svg = re.sub(r' id="([^"]*)"', lambda found: f' id="i{short[found[1]]}"' if found[1] in short else "", svg)
    svg = re.sub(r'(href="#|url\(#)([^")]+)', lambda found: f"{found[1]}i{short[found[2]]}", svg)
    svg = re.sub(
        r'\b(?:d|x|y|transform|points)="[^"]*"', lambda found: NUMBER.sub(r"\1", " ".join(found[0].split())), svg
    )
    svg = re.sub(r' style="[^"]*"', lambda found: found[0].replace(": ", ":").replace("; ", ";"), svg)
    return re.sub(r"\s+<", "<", re.sub(r">\s+", ">", svg)).replace("<g></g>", "")


def _pdf(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    with matplotlib.rc_context({**STYLE, "font.sans-serif": families()}):
        figure.savefig(
            buffer, format="pdf", dpi=300, metadata={"CreationDate": None, "Creator": None, "Producer": None}
        )
    return buffer.getvalue()


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    with matplotlib.rc_context(STYLE):
        figure.savefig(buffer, format="png", dpi=300, metadata={"Software": None})
    return buffer.getvalue()


NUMBER = re.compile(r"(-?\d+\.\d\d)\d+")
# Type 42 embeds whole TrueType fonts, as publishers ask for. The salt makes ids the same each time.
STYLE: Any = {
    "pdf.fonttype": 42,
    "svg.fonttype": "none",
    "svg.hashsalt": "ncflow",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans", "Verdana", "sans-serif"],
}
FORMATS = {"pdf": _pdf, "svg": lambda figure: to_svg(figure).encode(), "png": _png}
