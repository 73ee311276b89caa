"""The metrics that reports and the MLflow UI show: those whose row has a view, on the split of that view."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from ncflow.metrics import METRICS
from ncflow.metrics.rows import Place, View
from ncflow.runs.reader import SELECTION, Run

ADJUSTED = "test/posthoc/logit_adjustment/acc/balanced"  # of runs whose training does not correct for class sizes
OPTIONAL = (SELECTION, ADJUSTED)  # keys that only some runs have


def highlights() -> dict[str, View]:
    """Key such as "train/nc1/pinv" -> its view, in the order of METRICS; validation comes before test."""
    found: dict[str, View] = {}
    for name, row in METRICS.items():
        if row.view is not None:
            if f"val/{name}" == SELECTION:
                found[SELECTION] = _on_validation(row.view)
            found[f"{row.view.split}/{name}"] = row.view
            if ADJUSTED.endswith(f"/{name}"):
                found[ADJUSTED] = _adjusted(row.view)
    return found


def present(keys: Iterable[str], runs: Sequence[Run]) -> list[str]:
    """The keys without those that only some runs have, where none of these runs has them."""
    return [key for key in keys if key not in OPTIONAL or any(run.final(key) is not None for run in runs)]


def shown_in(place: Place) -> list[str]:
    """The keys that a place, such as "table" or "curves", shows."""
    return [key for key, view in highlights().items() if place in view.places]


def _adjusted(view: View) -> View:
    meaning = "the same for logits adjusted post hoc by the training class sizes"
    return replace(view, title=f"{view.title}, logits adjusted", meaning=meaning, places=("table",))


def _on_validation(view: View) -> View:
    meaning = "the same on the validation part, which selects the best epoch"
    return replace(view, title=f"{view.title} on validation", meaning=meaning, places=("table",))
