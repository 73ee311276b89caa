"""The figure of test priors shows what was measured, from backward over uniform to forward."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from ncflow.metrics import METRICS, class_recalls
from ncflow.metrics.priors import PRIORS, prior_accuracies
from ncflow.reports.arms import arms
from ncflow.reports.canvas import WIDE
from ncflow.reports.figures import to_image
from ncflow.reports.page import write_report
from ncflow.reports.paper import draw
from ncflow.reports.priors import PLACES
from ncflow.reports.rows import Lacking
from ncflow.runs.reader import Run, load_run, load_runs

MakeRun = Callable[..., Path]

pytestmark = pytest.mark.filterwarnings("error")


@pytest.fixture
def make_measured(make_run: MakeRun) -> MakeRun:
    """A run whose metrics hold the accuracies under the test priors, as its dump of predictions has them."""

    def make(name: str, **options) -> Path:
        folder = make_run(name, **options)
        dump = load_run(folder).dump
        recalls = class_recalls(dump["predictions"], dump["targets"], len(dump["class_counts"]))
        (file,) = folder.glob("metrics_epoch_*.json")
        analysis = json.loads(file.read_text())
        under = {
            f"prior/{name}": value.item() for name, value in prior_accuracies(recalls, dump["class_counts"]).items()
        }
        analysis["test"] |= under | {"acc/balanced": recalls.mean().item()}
        file.write_text(json.dumps(analysis))
        return folder

    return make


@pytest.fixture
def runs(make_measured: MakeRun) -> list[Run]:
    choices = [(head, seed) for head in ("linear", "nearest_etf") for seed in range(3)]
    return load_runs([make_measured(f"{h}-{s}", head=h, seed=s, epochs=(3,)) for h, s in choices])


def test_the_places_are_all_priors_and_balanced_accuracy() -> None:
    keys = [key.removeprefix("test/") for key in PLACES.values()]
    assert sorted(keys) == sorted([*(f"prior/{name}" for name in PRIORS), "acc/balanced"])
    assert {*keys} <= {*METRICS}
    ratios = [PRIORS.get(key.removeprefix("prior/"), 1.0) for key in keys]
    assert ratios == sorted(ratios) and keys[len(keys) // 2] == "acc/balanced"


def test_a_line_per_arm_joins_medians_in_a_band_over_seeds(runs: list[Run]) -> None:
    figure = draw("priors", arms(runs), WIDE).figure
    to_image(figure)
    axes = figure.axes[0]
    assert [text.get_text() for text in axes.get_xticklabels()] == list(PLACES)
    for arm, line, band in zip(arms(runs), axes.lines, axes.collections, strict=True):
        values = np.array([[run.final(key) for key in PLACES.values()] for run in arm.runs])
        np.testing.assert_allclose(line.get_ydata(), np.median(values, axis=0))
        y = band.get_paths()[0].vertices[:, 1]
        assert (y.min(), y.max()) == (values.min(), values.max())


def test_an_arm_that_did_not_measure_priors_is_left_out(runs: list[Run], make_run: MakeRun) -> None:
    old = load_runs([make_run("old", head="fixed_etf", epochs=(3,))])
    with pytest.raises(Lacking, match="no run measured accuracy under test priors"):
        draw("priors", arms(old), WIDE)
    figure = draw("priors", arms([*old, *runs]), WIDE).figure
    assert [line.get_label() for line in figure.axes[0].lines] == ["linear", "nearest_etf"]


def test_the_page_has_the_figure_and_the_statistics_its_numbers(runs: list[Run], tmp_path: Path) -> None:
    page = write_report([run.path for run in runs], tmp_path / "report", figures=["priors"])
    assert "figures/priors.pdf" in page.read_text()
    assert (page.parent / "figures" / "priors.pdf").read_bytes().startswith(b"%PDF")
    table = pd.read_csv(page.parent / "statistics.csv").set_index(["head.name", "metric"])
    for arm in arms(runs):
        for key in PLACES.values():
            ends = torch.tensor([run.final(key) for run in arm.runs], dtype=torch.float64)
            assert table.loc[(arm.head, key), "mean"] == pytest.approx(ends.mean().item())


def test_the_page_of_runs_without_priors_has_no_such_section(make_run: MakeRun, tmp_path: Path) -> None:
    folder = make_run("old", head="nearest_etf", epochs=(3,))
    page = write_report([folder], tmp_path / "report", figures=["priors"])
    assert "figures/priors" not in page.read_text()
