"""Class labels as users write them, joined by name and never by number.

One file may store names. Another may store numbers for names in another order, and a third only numbers. All are
read as names. The training files define the classes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ncflow.data.images import printable

SHOWN = 8  # names in a message
UNLABELLED = "files without labels cannot be used: move test files away, and those named validation are the test split"


@dataclass(frozen=True, eq=False)
class Labels:
    """The labels of one file: sample i has class names[codes[i]]. `declared`: the file lists its class names."""

    file: Any
    names: Sequence[str]
    codes: npt.NDArray[np.int64]
    declared: bool = False

    @property
    def used(self) -> list[str]:
        """The names that occur in the samples, in the order of `names`."""
        return [self.names[code] for code in np.unique(self.codes)]


def as_labels(file: Any, values: Any) -> Labels:
    """Labels from values (N,), whole numbers or text, which are their own names."""
    names, codes = np.unique(np.asarray(values), return_inverse=True)
    return Labels(file, [str(name) for name in names.tolist()], codes.reshape(-1).astype(np.int64))


def class_names(training: Sequence[Labels]) -> list[str]:
    """The classes of the training files, in order.

    Declared names stay in the order of their declaration. Others are sorted, whole numbers by size.
    Raises ValueError for an undeclared label, or a number that is written in two ways.
    """
    declared = [labels for labels in training if labels.declared]
    if declared:
        names = list(dict.fromkeys(name for labels in declared for name in labels.names))
        for labels in training:
            refuse_unknown(labels, names, f"the class names of {declared[0].file}")
        return names
    names = sorted({name for labels in training for name in labels.used})
    if not all(map(_is_whole, names)):
        return names
    spelled: dict[int, str] = {}
    for name in names:
        if (other := spelled.setdefault(int(name), name)) != name:
            raise ValueError(f"{training[0].file}: labels {other} and {name} are one number; write it in one way")
    return sorted(names, key=int)


def numbering_note(names: Sequence[str]) -> str | None:
    """A note if classes are whole numbers other than 0..K-1, because they get new numbers."""
    if not all(map(_is_whole, names)) or list(names) == [str(k) for k in range(len(names))]:
        return None
    return f"labels {shown(names)} are numbered 0 to {len(names) - 1}, and stay as the names of the classes"


def case_notes(names: Iterable[str]) -> tuple[str, ...]:
    """A note on class names that differ only in upper and lower case. They may be one class, written twice."""
    alike: dict[str, list[str]] = {}
    for name in names:
        alike.setdefault(name.casefold(), []).append(printable(name))
    pairs = [" and ".join(group) for group in alike.values() if len(group) > 1]
    return (f"classes that differ in upper and lower case alone are kept apart: {shown(pairs)}",) if pairs else ()


def join(labels: Labels, names: Sequence[str]) -> npt.NDArray[np.int64]:
    """The number of each sample's class (N,) among the training classes. Raises ValueError that shows both lists."""
    refuse_unknown(labels, names, "the training classes")
    number = {name: k for k, name in enumerate(names)}
    table = np.array([number.get(name, -1) for name in labels.names], dtype=np.int64)
    return table[labels.codes] if len(labels.codes) else labels.codes


def refuse_unknown(labels: Labels, names: Sequence[str], whose: str) -> None:
    """Raise ValueError if samples have a label that is not in `names`."""
    known = set(names)
    if strange := [name for name in labels.used if name not in known]:
        advice = "store names (ClassLabel or text) in every file" if all(map(_is_whole, strange)) else "rename them"
        advice = UNLABELLED if "-1" in strange else f"{advice}, or leave these samples out"
        raise ValueError(f"{labels.file}: labels {shown(strange)} are none of {whose}, {shown(names)}; {advice}")


def shown(names: Iterable[str]) -> str:
    """The first names, for a message."""
    names = list(names)
    return ", ".join(map(str, names[:SHOWN])) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")


def _is_whole(name: str) -> bool:
    return name.isascii() and name.removeprefix("-").isdigit()
