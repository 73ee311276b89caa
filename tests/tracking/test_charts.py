"""MLflow opens on the question: charts of collapse first, both splits in one, everything else folded."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ncflow import tracking
from ncflow.tracking import Page
from ncflow.tracking.charts import LAST, shared_view
from ncflow.tracking.pages import _newest_step


@dataclass(frozen=True)
class Look:
    title: str
    log: bool = False


PAGE = Page(
    ["tags.head", "metrics.test/acc/few"],
    charts={"train/nc1/pinv": Look("NC1", log=True), "test/acc/balanced": Look("Accuracy")},
    images=["cosines"],
    folded=["test/nc1", "fit"],
)


def view(**options: Any) -> Any:
    return json.loads(shared_view(PAGE, **options))


def test_a_chart_shows_both_splits_on_the_scale_of_its_metric() -> None:
    nc1, accuracy, _ = view()["compareRunCharts"]
    assert nc1["selectedMetricKeys"] == ["train/nc1/pinv", "test/nc1/pinv"] and nc1["scaleType"] == "log"
    assert accuracy["selectedMetricKeys"] == ["test/acc/balanced", "train/acc/balanced"]
    assert accuracy["scaleType"] == "linear"


def test_sections_of_the_question_are_open_and_all_others_closed() -> None:
    sections = {section["name"]: section["display"] for section in view()["compareRunSections"]}
    assert list(sections) == ["Neural collapse", "Accuracy", "Pictures", "test/nc1", *LAST]
    assert [name for name, shown in sections.items() if shown] == ["Neural collapse", "Accuracy", "Pictures"]


def test_every_chart_is_in_a_section_and_no_id_occurs_twice() -> None:
    state = view()
    ids = [section["uuid"] for section in state["compareRunSections"]]
    assert {card["metricSectionId"] for card in state["compareRunCharts"]} <= set(ids)
    every = ids + [card["uuid"] for card in state["compareRunCharts"]]
    assert len(set(every)) == len(every)


def test_images_open_at_the_last_epoch_of_the_newest_run(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").touch()
    with tracking.store(tmp_path) as mlflow:
        assert _newest_step(mlflow, "0") == 0
    for epochs in (3, 5):
        with tracking.start_run(root=tmp_path, name="run", config={}) as run:
            run.metrics({"fit/loss": 1.0}, step=epochs)
    with tracking.store(tmp_path) as mlflow:
        assert _newest_step(mlflow, "0") == 5
    assert view(step=5)["compareRunCharts"][-1]["step"] == 5


def test_a_page_without_charts_leaves_them_to_mlflow() -> None:
    assert json.loads(shared_view(Page(["tags.head"]))) == {"selectedColumns": ["tags.`head`"]}
