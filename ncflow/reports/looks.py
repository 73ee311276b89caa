"""How an arm looks: the same color and marker in every figure, and a dash or a hatch that gray print keeps apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import Any

import matplotlib
import numpy as np
from matplotlib.colors import to_hex

from ncflow.lookup import fact
from ncflow.nn.heads import HEADS
from ncflow.reports.arms import Arm, names, varying

Looks = dict[str, dict[str, Any]]  # name of an arm -> color, marker and linestyle


def looks(arms: Sequence[Arm]) -> Looks:
    """The name of each arm among these -> its style; two arms never share a name. Many arms have no markers."""
    found = dict(zip(names(arms), arm_styles(arms), strict=True))
    return found if len(arms) <= CROWD else {name: {**style, "marker": ""} for name, style in found.items()}


def condensed(looks: Mapping[str, Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """The legend of many arms: one entry per color, named by what its arms have in common; none without such words."""
    if len(looks) <= CROWD:
        return dict(looks)
    of_colors: dict[Any, list[str]] = {}
    for name, style in looks.items():
        of_colors.setdefault(style.get("color", style.get("facecolor")), []).append(name)
    shared = {
        color: [w for w in words[0].split(", ") if all(w in n.split(", ") for n in words)]
        for color, words in of_colors.items()
    }
    if not all(shared.values()):
        return {}
    return {", ".join(shared[color]): {"linestyle": "-"} | dict(looks[words[0]]) for color, words in of_colors.items()}


def arm_styles(arms: Sequence[Arm]) -> list[dict[str, Any]]:
    """The style of each arm. With several heads, color and marker show the head, and the dash the arm.

    With one head, each arm has its own style: shades from dark to light if the choice is a number, else colors.
    """
    heads = list(dict.fromkeys(arm.head for arm in arms))
    if len(heads) == 1 < len(arms):
        return [{**look, "linestyle": dash} for look, dash in zip(_own_looks(arms), cycle(DASHES))]
    taken = {look["color"] for name in HEADS if (look := look_of(name))}
    spare = cycle([look for look in LOOKS if look["color"] not in taken] or LOOKS)
    of_heads = {head: look_of(head) or next(spare) for head in heads}
    dashes = {head: cycle(DASHES) for head in heads}
    return [{**of_heads[arm.head], "linestyle": next(dashes[arm.head])} for arm in arms]


def look_of(head: str) -> dict[str, str] | None:
    """The color and the marker in a head's row; None for a head without a color."""
    row = HEADS.get(head)
    color, marker = fact(row, "color"), fact(row, "marker")
    return {"color": color, "marker": marker or "o"} if color else None


def as_points(styles: Looks) -> Looks:
    """The styles as those of points without a line."""
    return {name: {**style, "linestyle": "", "marker": style["marker"] or "o"} for name, style in styles.items()}


def as_bars(styles: Looks) -> Looks:
    """The styles as those of bars: the same colors, with a hatch for each."""
    hatches = cycle(HATCHES)
    return {
        name: {"facecolor": style["color"], "edgecolor": "white", "hatch": hatch, "linewidth": 0}
        for (name, style), hatch in zip(styles.items(), hatches, strict=False)
    }


def _own_looks(arms: Sequence[Arm]) -> list[dict[str, Any]]:
    """A color and a marker for each arm of one head."""
    markers = cycle(look["marker"] for look in LOOKS)
    keys = varying(arms)
    values = [arm.choices[key] for arm in arms for key in keys]
    if len(keys) != 1 or not all(isinstance(value, (int, float)) for value in values):
        return [{**look, "marker": marker} for look, marker, _ in zip(cycle(LOOKS), markers, arms)]
    ranks = np.argsort(np.argsort(values)) / (len(values) - 1)
    shades = matplotlib.colormaps["viridis"](0.9 * ranks)  # the yellow end is too light on white
    return [{"color": to_hex(shade), "marker": marker} for shade, marker in zip(shades, markers, strict=False)]


# Okabe and Ito's palette, which color-blind readers can distinguish; markers work without color.
LOOKS = (
    {"color": "#0072B2", "marker": "o"},
    {"color": "#D55E00", "marker": "s"},
    {"color": "#009E73", "marker": "^"},
    {"color": "#CC79A7", "marker": "D"},
    {"color": "#E69F00", "marker": "v"},
    {"color": "#56B4E9", "marker": "P"},
    {"color": "#000000", "marker": "X"},
)
DASHES = ("-", "--", ":", "-.")
CROWD = 12  # more arms than this share one figure as thin lines
HATCHES = ("", "///", "\\\\\\", "---", "xx", "|||")
