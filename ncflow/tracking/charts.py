"""The page of runs in MLflow's UI as ncflow opens it: columns, charts in the order of the question, folded sections."""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

VIEW = "mlflow.sharedViewState.ncflow"  # the tag in which MLflow stores a shared view
COLLAPSE = "Neural collapse"
FAMILIES = {  # of the metrics that have a chart, in the order of the page
    **dict.fromkeys(("nc1", "nc2", "nc3", "nc4"), COLLAPSE),
    "acc": "Accuracy",
    "drift": "Drift",
}
OTHER = "Imbalance and layers"
PICTURES = "Pictures"
LAST = ("fit", "Model metrics", "System metrics")  # MLflow's names of sections


class Shown(Protocol):
    """How a chart shows a metric: its title, and whether its axis is logarithmic."""

    @property
    def title(self) -> str: ...
    @property
    def log(self) -> bool: ...


@dataclass(frozen=True)
class Page:
    """What the page of runs shows.

    `columns` have the form `metrics.test/acc/few`, `params.cfg.seed`, `tags.head`. `charts` maps a metric such as
    "train/nc1/pinv" to its look; each chart shows both splits. `images` are keys of logged images. `folded` names the
    sections of all other metrics, such as "test/nc2"; they start closed. MLflow adds what is missing.
    """

    columns: Sequence[str] = ("attributes.Dataset",)
    charts: Mapping[str, Shown] = field(default_factory=dict)
    images: Sequence[str] = ()
    folded: Sequence[str] = ()


def shared_view(page: Page, *, step: int = 0) -> str:
    """A shared view as MLflow stores it in a tag of the experiment. It shows the images of one step."""
    parts = (column.partition(".") for column in page.columns)
    state: dict[str, Any] = {"selectedColumns": [f"{kind}.`{name}`" for kind, _, name in parts]}
    if page.charts:
        cards = [_line(metric, look) for metric, look in page.charts.items()]
        cards += [_image(key, step) for key in page.images]
        shown = (*dict.fromkeys(FAMILIES.values()), OTHER, PICTURES)
        opened = [name for name in shown if any(card["metricSectionId"] == _uuid(name) for card in cards)]
        closed = dict.fromkeys((*page.folded, *LAST))
        state |= {
            "compareRunCharts": cards,
            "compareRunSections": [_section(name) for name in opened]
            + [_section(name, display=False) for name in closed],
            "isAccordionReordered": True,  # otherwise MLflow sorts the sections by name
        }
    return json.dumps(state)


def _line(metric: str, look: Shown) -> dict[str, Any]:
    """A line chart of a metric on both splits over the epochs. MLflow finds it by `metricKey`, and draws no second."""
    split, _, name = metric.partition("/")
    others = [f"{other}/{name}" for other in ("train", "test") if other != split and split in ("train", "test")]
    return {
        "type": "LINE",
        "uuid": _uuid(metric),
        "metricSectionId": _uuid(FAMILIES.get(name.partition("/")[0], OTHER)),
        "metricKey": metric,
        "selectedMetricKeys": [metric, *others],
        "displayName": look.title,
        "scaleType": "log" if look.log else "linear",
        "xAxisKey": "step",
        "xAxisScaleType": "linear",
        "yAxisKey": "metric",
        "yAxisExpressions": [],
        "lineSmoothness": 0,
        "range": {},
        "runsCountToCompare": 10,
        "selectedXAxisMetricKey": "",
        "ignoreOutliers": False,
        "useGlobalXaxisKey": False,
        "useGlobalLineSmoothing": False,
        "deleted": False,
        "isGenerated": False,
    }


def _image(key: str, step: int) -> dict[str, Any]:
    """A grid of one image for each run, with a slider over the steps."""
    return {
        "type": "IMAGE",
        "uuid": _uuid(f"image {key}"),
        "metricSectionId": _uuid(PICTURES),
        "imageKeys": [key],
        "displayName": key,
        "step": step,
        "showRunParams": False,
        "runsCountToCompare": 10,
        "deleted": False,
        "isGenerated": False,
    }


def _section(name: str, *, display: bool = True) -> dict[str, Any]:
    return {
        "uuid": _uuid(name),
        "name": name,
        "display": display,
        "isReordered": True,
        "deleted": False,
        "isGenerated": False,
    }


def _uuid(name: str) -> str:
    """The same ID each time, so that an unchanged view is written once."""
    return str(uuid.uuid5(uuid.NAMESPACE_OID, name))
