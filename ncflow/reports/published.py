"""Published numbers: the rows of experiments/published.csv, typed and validated.

A number belongs to a method on a data set with an imbalance factor and a backbone, in one source. Sources differ in
their splits and their recipes, so numbers of two sources are never compared in one column.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from ncflow.data import SOURCES

FILE = Path(__file__).parents[1] / "experiments" / "published.csv"


class Published(NamedTuple):
    """One published number: top-1 accuracy in percent on the balanced test split, and where it stands.

    imb_factor is the smallest class over the largest, -1 for a source that is long-tailed by nature. epochs is None
    where the source does not say. link is empty where no public page is known. split is how the source drew its split.
    """

    method: str
    dataset: str
    imb_factor: float
    backbone: str
    epochs: int | None
    value: float
    source: str
    link: str
    split: str
    notes: str

    @property
    def setting(self) -> tuple[str, float, str]:
        """What two numbers must share to be comparable at all: data set, imbalance factor, backbone."""
        return self.dataset, self.imb_factor, self.backbone


@cache
def published_numbers() -> tuple[Published, ...]:
    """The published numbers that come with ncflow."""
    return read_published(FILE)


def read_published(file: Path) -> tuple[Published, ...]:
    """Read published numbers from a CSV file. Raises ValueError that names file, line, column and value."""
    numbers: dict[tuple[Any, ...], Published] = {}
    for line, row in _rows(file):
        number = Published(*(_parse(text, column, f"{file}, line {line}") for column, text in row.items()))
        key = (number.method, *number.setting, number.source, number.split)
        if key in numbers:
            raise ValueError(f"{file}, line {line}: {number.method} of {number.source} is listed twice; delete one row")
        numbers[key] = number
    return tuple(numbers.values())


def _rows(file: Path) -> Iterator[tuple[int, dict[str, str]]]:
    with file.open(encoding="utf-8", newline="") as lines:
        reader = csv.DictReader(lines, strict=True)
        if tuple(reader.fieldnames or ()) != Published._fields:
            raise ValueError(f"{file}: expected the columns {','.join(Published._fields)}, got {reader.fieldnames}")
        for row in reader:
            if None in row or None in row.values():
                raise ValueError(f"{file}, line {reader.line_num}: expected {len(Published._fields)} cells")
            yield reader.line_num, row


def _parse(text: str, column: str, place: str) -> Any:
    parse, expected = COLUMNS[column]
    try:
        return parse(text)
    except ValueError:
        raise ValueError(f"{place}: {column} must be {expected}, got '{text}'") from None


def _word(text: str) -> str:
    if not text or text != text.strip():
        raise ValueError
    return text


def _link(text: str) -> str:
    if text and not text.startswith("https://"):
        raise ValueError
    return text


def _dataset(text: str) -> str:
    if text not in SOURCES:
        raise ValueError
    return text


def _factor(text: str) -> float:
    factor = float(text)
    if factor != -1 and not 0 < factor <= 1:
        raise ValueError
    return factor


def _percent(text: str) -> float:
    value = float(text)
    if not 0 < value <= 100:
        raise ValueError
    return value


def _epochs(text: str) -> int | None:
    if text and not (text.isascii() and text.isdigit() and int(text) > 0):
        raise ValueError
    return int(text) if text else None


# column -> how to read it, and what is expected there
COLUMNS: dict[str, tuple[Callable[[str], Any], str]] = {
    "method": (_word, "a name without blanks around it"),
    "dataset": (_dataset, "a data set of `ncflow datasets`"),
    "imb_factor": (_factor, "in (0, 1], or -1 for the native imbalance"),
    "backbone": (_word, "a name without blanks around it"),
    "epochs": (_epochs, "a positive whole number, or empty"),
    "value": (_percent, "a percentage in (0, 100]"),
    "source": (_word, "a name without blanks around it"),
    "link": (_link, "an https:// address, or empty"),
    "split": (_word, "a description without blanks around it"),
    "notes": (str, "text"),
}
