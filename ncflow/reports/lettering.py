"""A small copy of the font of figures: embedding the whole one takes longer than drawing a figure."""

from __future__ import annotations

import atexit
from functools import cache
from pathlib import Path
from shutil import rmtree
from tempfile import mkdtemp

from matplotlib import font_manager

WHOLE = "DejaVu Sans"  # comes with matplotlib, and draws the letters that the copy lacks
NAME = "ncflow Sans"
KEPT = (  # ranges of Unicode: Latin, Greek, punctuation, sub- and superscripts, arrows, operators, shapes
    *((0x20, 0x17F), (0x300, 0x304), (0x370, 0x3FF), (0x2000, 0x209F)),
    *((0x2190, 0x21FF), (0x2200, 0x22FF), (0x25A0, 0x25FF)),
)
DROPPED = ("GSUB", "GPOS", "GDEF", "kern", "FFTM", "meta")  # tables of ligatures and kerning, which matplotlib ignores


@cache
def families() -> list[str]:
    """The names of the copy and of the whole font, in this order; the copy is made once per process."""
    from fontTools import subset

    options = subset.Options(layout_features=[], name_IDs=["*"], glyph_names=True)
    options.drop_tables += list(DROPPED)
    font = subset.load_font(font_manager.findfont(WHOLE), options)
    subsetter = subset.Subsetter(options)
    subsetter.populate(unicodes=[letter for first, last in KEPT for letter in range(first, last + 1)])
    subsetter.subset(font)
    for record in font["name"].names:
        if record.nameID in (1, 4, 6, 16):
            record.string = NAME.replace(" ", "") if record.nameID == 6 else NAME
    folder = Path(mkdtemp(prefix="ncflow-font-"))
    atexit.register(rmtree, folder, ignore_errors=True)
    file = folder / "ncflow.ttf"
    font.save(str(file))
    font.close()
    font_manager.fontManager.addfont(str(file))
    return [NAME, WHOLE]
