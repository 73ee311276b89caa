"""The figures of a paper hold what they say, fit a column, and come out the same each time."""

from __future__ import annotations

import re
from collections.abc import Callable
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.text import Text

from ncflow.geometry import simplex_etf
from ncflow.metrics import class_recalls
from ncflow.metrics.calibration import expected_calibration_error
from ncflow.metrics.table import LAYER_METRICS
from ncflow.reports.across import AGAINST
from ncflow.reports.arms import arms
from ncflow.reports.canvas import COLUMN, WIDE, Plate, Size, panels
from ncflow.reports.figures import to_image
from ncflow.reports.geometry import MEANS, ROWS
from ncflow.reports.looks import CROWD, as_points, condensed, looks
from ncflow.reports.paper import FIGURES, draw, lacking, write_figure
from ncflow.reports.rows import Lacking
from ncflow.reports.saving import to_bytes, to_svg
from ncflow.runs.reader import Run, load_runs

MakeRun = Callable[..., Path]

pytestmark = pytest.mark.filterwarnings("error")  # missing glyphs are warnings


def data_of(name: str, runs: list[Run]) -> pd.DataFrame:
    return FIGURES[name].read(arms(runs))


def recalls_of(run: Run, predictions: torch.Tensor) -> np.ndarray:
    return class_recalls(predictions, run.dump["targets"], len(run.dump["class_counts"])).numpy()


@pytest.mark.parametrize("name", FIGURES)
def test_every_figure_fits_a_column(name: str, complete_runs: list[Run]) -> None:
    figure = draw(name, arms(complete_runs), COLUMN).figure
    assert figure.get_figwidth() == COLUMN.width
    to_image(figure)
    texts = [text for text in figure.findobj(Text) if text.get_text() and text.get_visible() and is_drawn(text, figure)]
    boxes = [(text.get_text(), text.get_window_extent()) for text in texts]
    for text, box in boxes:
        assert figure.bbox.padded(1).contains(*box.min) and figure.bbox.padded(1).contains(*box.max), text
    padded = [(text, box.padded(-1)) for text, box in boxes]
    assert [(a, b) for (a, box), (b, other) in combinations(padded, 2) if box.overlaps(other)] == []


def is_drawn(text: Text, figure: Plate) -> bool:
    """An axis keeps tick labels beyond its limits, which are not drawn."""
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            ticks = (*axis.get_major_ticks(), *axis.get_minor_ticks())
            if any(text in (tick.label1, tick.label2) and not low <= tick.get_loc() <= high for tick in ticks):
                return False
    return True


def test_every_figure_says_what_it_needs_and_what_it_shows() -> None:
    for name, chart in FIGURES.items():
        assert chart.caption.endswith(".") and chart.needs, name


def test_complete_runs_lack_no_figure(complete_runs: list[Run]) -> None:
    assert set(lacking(complete_runs).values()) == {""}


def test_an_absent_figure_has_a_reason(make_run: MakeRun) -> None:
    reasons = lacking(load_runs([make_run("digits")]))
    assert "train.save_logits=true" in reasons["reliability"] and "train.analyze_layers=true" in reasons["layers"]
    assert "differ in no option" in reasons["knob"] and reasons["curves"] == ""


def test_reliability_adds_up_to_the_calibration_error(complete_runs: list[Run]) -> None:
    data = data_of("reliability", complete_runs)
    for run in complete_runs:
        part = data[data["run"] == run.name]
        confidences, decided = run.dump["logits"].double().softmax(1).max(1)
        expected = expected_calibration_error(confidences, decided == run.dump["targets"]).item()
        gaps = (part["accuracy"] - part["confidence"]).abs() * part["samples"]
        assert gaps.sum() / part["samples"].sum() == pytest.approx(expected)
        assert part["samples"].sum() == len(decided)


def test_logit_adjustment_of_zero_is_the_classifier_and_of_one_subtracts_the_log_prior(
    complete_runs: list[Run],
) -> None:
    data = data_of("adjustment", complete_runs).set_index(["run", "tau"])["value"]
    for run in complete_runs:
        for tau in (0.0, 1.0):
            counts = run.dump["class_counts"].double()
            decided = (run.dump["logits"] - tau * (counts / counts.sum()).log()).argmax(1)
            assert data[run.name, tau] == pytest.approx(np.nanmean(recalls_of(run, decided)))


def test_logits_of_another_shape_are_one_message_that_names_the_file(make_run: MakeRun) -> None:
    (run,) = load_runs([make_run("digits")])
    run.dump["logits"] = torch.zeros(3, 2)
    with pytest.raises(ValueError, match=r"raw_geo_epoch_12.pt.*logits \(360, 10\)"):
        data_of("margins", [run])


def test_margins_are_positive_where_most_samples_are_right(complete_runs: list[Run]) -> None:
    data = data_of("margins", complete_runs)
    for run in complete_runs:
        part = data[data["run"] == run.name]
        assert part["samples"].sum() == len(run.dump["targets"])
        for row in part.to_dict("records"):
            assert -1 <= row["low"] <= row["quarter"] <= row["median"] <= row["three_quarters"] <= row["high"] <= 1
        hits = (run.dump["predictions"] == run.dump["targets"]).numpy()
        few = (run.dump["class_counts"] < 20).numpy()[run.dump["targets"]]
        median = part.set_index("group")["median"]["few"]
        assert (median > 0) == (hits[few].mean() > 0.5)


def test_an_etf_has_equal_singular_values_and_one_cosine(make_run: MakeRun) -> None:
    (run,) = load_runs([make_run("etf")])
    run.dump.update(class_means=simplex_etf(10, 26) + 3, weight=simplex_etf(10, 26))
    spectra = data_of("spectra", [run]).pivot(index="index", columns="matrix", values="value")
    np.testing.assert_allclose(spectra.loc[:9], 1, atol=1e-6)
    np.testing.assert_allclose(spectra.loc[10], 0, atol=1e-6)
    angles = data_of("angles", [run])
    for name in (MEANS, ROWS):
        part = angles[(angles["matrix"] == name) & (angles["value"] > 0)]
        assert part["value"].tolist() == [1.0]
        assert abs(part["cosine"].item() + 1 / 9) <= 0.05 + 1e-9
    norms = data_of("norms", [run])
    np.testing.assert_allclose(norms["value"], 1, atol=1e-5)


def test_two_classes_on_a_line_have_a_plane(make_run: MakeRun) -> None:
    (run,) = load_runs([make_run("two", num_classes=2)])
    plane = data_of("plane", [run])
    assert np.isfinite(plane[["x", "y"]]).all(axis=None)
    means = plane[plane["kind"] == "mean"]
    np.testing.assert_allclose(means["x"].abs(), 1)
    np.testing.assert_allclose(means["y"], 0, atol=1e-9)


def test_stored_features_lie_around_their_class_mean_in_the_plane(make_run: MakeRun) -> None:
    folder = make_run("features", epochs=(3,))
    (run,) = load_runs([folder])
    targets = torch.arange(10).repeat_interleave(4)
    kept = {"train/features": run.dump["class_means"][targets], "train/targets": targets}
    torch.save(kept, folder / "features_epoch_3.pt")
    plane = data_of("plane", [run]).set_index(["kind", "class_name"])[["x", "y"]].sort_index()
    for name in run.class_names or map(str, range(10)):
        points = plane.loc[[("feature", name)]].to_numpy()
        np.testing.assert_allclose(points, np.repeat(plane.loc[[("mean", name)]].to_numpy(), 4, axis=0), atol=1e-6)


def test_of_a_thousand_classes_a_matrix_shows_a_hundred_from_the_largest_to_the_rarest(make_run: MakeRun) -> None:
    (run,) = load_runs([make_run("thousand", num_classes=1000, epochs=(3,))])
    data = data_of("confusion", [run])
    assert len(data) == 100**2
    counts = run.dump["class_counts"].numpy()
    sizes = counts[data.drop_duplicates("row")["row_class"].astype(int)]
    assert (sizes[0], sizes[-1]) == (counts.max(), counts.min()) and (np.diff(sizes) <= 0).all()


def test_the_heat_map_ends_with_the_last_accuracies(complete_runs: list[Run]) -> None:
    data = data_of("heatmap", complete_runs)
    run = complete_runs[0]
    part = data[(data["run"] == run.name) & (data["epoch"] == run.epoch)].sort_values("rank")
    order = torch.argsort(run.dump["class_counts"], descending=True, stable=True)
    np.testing.assert_allclose(part["value"], recalls_of(run, run.dump["predictions"])[order])
    assert sorted(set(data["epoch"])) == [analysis["epoch"] for analysis in run.analyses]


def test_groups_are_those_of_the_metrics(complete_runs: list[Run]) -> None:
    data = data_of("groups", complete_runs).set_index(["run", "group"])["value"]
    for run in complete_runs:
        assert data[run.name, "few"] == run.final("test/acc/few")
        assert data[run.name, "all"] == run.final("test/acc/balanced")


def test_r_squared_is_that_of_the_correlation(complete_runs: list[Run]) -> None:
    data = data_of("correlation", complete_runs)
    assert set(data["metric"]) == set(AGAINST)
    for key, part in data.groupby("metric"):
        x = np.log10(part["value"]) if AGAINST[key][1] else part["value"]
        assert part["r2"].iloc[0] == pytest.approx(np.corrcoef(x, part["accuracy"])[0, 1] ** 2)


def test_two_runs_are_too_few_for_a_correlation(complete_runs: list[Run]) -> None:
    with pytest.raises(Lacking, match="fewer than 3 runs"):
        data_of("correlation", complete_runs[:2])


def test_layers_are_in_the_order_of_the_network(complete_runs: list[Run]) -> None:
    data = data_of("layers", complete_runs)
    assert list(dict.fromkeys(data.sort_values("depth")["layer"])) == ["stem", "layer1", "layer2"]
    assert set(data["metric"]) == set(LAYER_METRICS)


def test_norms_are_over_their_root_mean_square_the_largest_class_first(complete_runs: list[Run]) -> None:
    data = data_of("norms", complete_runs)
    for _, part in data.groupby(["run", "kind"]):
        assert (part["value"] ** 2).mean() == pytest.approx(1)
        assert part.sort_values("rank")["train_samples"].is_monotonic_decreasing


@pytest.mark.parametrize("kind", ["pdf", "svg", "png", "csv"])
def test_a_figure_is_the_same_file_each_time(kind: str, complete_runs: list[Run], tmp_path: Path) -> None:
    files = [tmp_path / f"{number}.{kind}" for number in range(2)]
    for file in files:
        write_figure("groups", complete_runs, file)
    first, second = (file.read_bytes() for file in files)
    assert first == second and first


def test_fonts_are_embedded_as_truetype(complete_runs: list[Run]) -> None:
    pdf = to_bytes(draw("groups", arms(complete_runs), COLUMN).figure, "pdf")
    assert b"/FontFile2" in pdf and b"/Type3" not in pdf and b"/CreationDate" not in pdf


def test_the_csv_holds_the_rows_of_the_figure(complete_runs: list[Run], tmp_path: Path) -> None:
    write_figure("groups", complete_runs, tmp_path / "new" / "groups.csv")
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "new" / "groups.csv"), data_of("groups", complete_runs))


def test_unknown_figures_and_formats_are_refused_with_the_choices(complete_runs: list[Run], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Did you mean 'curves'"):
        write_figure("curvs", complete_runs, tmp_path / "x.pdf")
    with pytest.raises(ValueError, match="unknown format 'gif'.*pdf, svg, png, csv"):
        write_figure("curves", complete_runs, tmp_path / "x.gif")


def test_an_svg_has_unique_ids_a_tip_per_point_and_readable_text(complete_runs: list[Run]) -> None:
    plate = draw("groups", arms(complete_runs), WIDE).figure
    svg = to_svg(plate, prefix="7-")
    ids = re.findall(r' id="([^"]*)"', svg)
    assert len(ids) == len(set(ids)) and all(name.startswith("i7-") for name in ids)
    assert set(re.findall(r'href="#([^"]*)"|url\(#([^)]*)\)', svg)) <= {
        (a, b) for n in ids for a, b in ((n, ""), ("", n))
    }
    assert svg.count("<title>") == len(plate.tips) == 4 * 4
    assert ">test accuracy<" in svg and "<metadata" not in svg


def test_tips_lie_on_their_points() -> None:
    plate, (axes,) = panels(Size(2.0, 8.0, 1), [""])
    axes.set(xlim=(0, 1), ylim=(0, 1))
    plate.tip(axes, [0.0, 1.0, float("nan")], [0.0, 1.0, 0.0], ["<low>", "high", "none"])
    found = re.findall(r'<circle cx="([\d.]+)" cy="([\d.]+)" r="3"><title>([^<]*)</title>', to_svg(plate))
    height = plate.get_figheight() * 72
    box = axes.get_position()
    expected = {"&lt;low&gt;": (box.x0, box.y0), "high": (box.x1, box.y1)}
    assert [title for *_, title in found] == list(expected)
    for x, y, title in found:
        at = expected[title]
        assert (float(x), float(y)) == pytest.approx((at[0] * 144, height - at[1] * height), abs=0.1)


def test_many_arms_share_one_figure_of_thin_lines_and_a_short_legend(make_run: MakeRun) -> None:
    rates = [0.5**power for power in range(CROWD // 2 + 1)]
    heads = ("linear", "fixed_etf")
    runs = load_runs(
        make_run(f"{head}{lr}", head=head, epochs=(3,), overrides={"train": {"lr": lr}})
        for head in heads
        for lr in rates
    )
    styles = looks(arms(runs))
    assert len(styles) > CROWD and {style["marker"] for style in styles.values()} == {""}
    assert list(condensed(styles)) == list(heads)
    assert all(style["marker"] for style in as_points(styles).values())
    figure = draw("curves", arms(runs), WIDE).figure
    assert [text.get_text() for text in figure.legends[0].get_texts()] == list(heads)
    assert len(figure.axes[1].lines) == len(styles)
