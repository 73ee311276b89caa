"""A figure shows exactly its tensors, and nothing on it hides anything else."""

from __future__ import annotations

from io import BytesIO
from itertools import combinations

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from matplotlib.image import imread
from matplotlib.text import Text

from ncflow.reports.arms import arms
from ncflow.reports.canvas import WIDE
from ncflow.reports.figures import confusion_figure, cosine_figure, to_image, to_png
from ncflow.reports.paper import FIGURES, draw
from ncflow.runs.reader import Run
from ncflow.theory import seli_optimum

pytestmark = pytest.mark.filterwarnings("error")  # missing glyphs and layouts that do not fit are warnings


@pytest.fixture(scope="module", params=["image:cosines", "image:predicted", "image:confusion", *FIGURES])
def figure(request: pytest.FixtureRequest, complete_runs: list[Run]) -> Figure:
    """Every kind of figure that a report or the MLflow UI shows, drawn once."""
    dump = complete_runs[0].dump
    shown = {"class_counts": dump["class_counts"], "title": "digits-linear-0, epoch 12"}
    optimum = seli_optimum(dump["class_counts"])
    predicted = {"predicted": ("SELI", optimum.class_means, optimum.weight)}
    draw_one = {
        "image:cosines": lambda: cosine_figure(dump["class_means"], dump["weight"], **shown),
        "image:predicted": lambda: cosine_figure(dump["class_means"], dump["weight"], **shown, **predicted),
        "image:confusion": lambda: confusion_figure(dump["predictions"], dump["targets"], 10, **shown),
    }
    figure = draw_one[request.param]() if request.param in draw_one else None
    figure = figure or draw(request.param, arms(complete_runs), WIDE).figure
    to_image(figure)
    return figure


def drawn_texts(figure: Figure) -> list[Text]:
    """An axis keeps tick labels beyond its limits; those are not drawn."""
    beyond = {
        label
        for axes in figure.axes
        for axis in (axes.xaxis, axes.yaxis)
        for tick in (*axis.get_major_ticks(), *axis.get_minor_ticks())
        if not min(axis.get_view_interval()) <= tick.get_loc() <= max(axis.get_view_interval())
        for label in (tick.label1, tick.label2)
    }
    return [t for t in figure.findobj(Text) if t.get_text() and t.get_visible() and t not in beyond]


def test_no_text_is_cut_off(figure: Figure) -> None:
    for text in drawn_texts(figure):
        box = text.get_window_extent()
        assert figure.bbox.contains(*box.min) and figure.bbox.contains(*box.max), text.get_text()


def test_no_text_lies_over_another(figure: Figure) -> None:
    boxes = [(text.get_text(), text.get_window_extent().padded(-1)) for text in drawn_texts(figure)]
    assert [(a, b) for (a, box), (b, other) in combinations(boxes, 2) if box.overlaps(other)] == []


def test_an_image_is_rgb_bytes_of_the_figure_in_pixels(figure: Figure) -> None:
    image = to_image(figure)
    width, height = (figure.get_size_inches() * figure.dpi + 1e-6).astype(int)
    assert image.dtype == np.uint8
    assert image.shape == (height, width, 3)
    assert image.min() < 100 < image.max()


def test_a_png_of_the_same_resolution_holds_the_same_pixels(figure: Figure) -> None:
    pixels = imread(BytesIO(to_png(figure, dpi=int(figure.dpi))))
    np.testing.assert_array_equal((pixels[..., :3] * 255).round(), to_image(figure))


@pytest.mark.parametrize("num_classes", [2, 10, 100])
def test_an_etf_looks_like_the_etf_beside_it(num_classes: int) -> None:
    etf = torch.eye(num_classes) - 1 / num_classes
    panels = cosine_figure(3 * etf + 5, etf).axes[:3]
    means, weight, ideal = (axes.images[0].get_array() for axes in panels)
    np.testing.assert_allclose(means, ideal, atol=1e-4)
    np.testing.assert_allclose(weight, ideal, atol=1e-6)


def test_all_cosine_matrices_share_one_scale() -> None:
    figure = cosine_figure(torch.randn(4, 8), torch.randn(4, 8))
    assert {axes.images[0].get_clim() for axes in figure.axes[:3]} == {(-1.0, 1.0)}


def test_cosines_equal_those_of_torch_in_order_of_class_size() -> None:
    means, weight, counts = torch.randn(5, 8), torch.randn(5, 8), torch.tensor([3, 50, 7, 50, 1])
    order = [1, 3, 2, 0, 4]
    figure = cosine_figure(means, weight, class_counts=counts)
    for axes, rows in zip(figure.axes[:2], (means - means.mean(0), weight), strict=True):
        expected = torch.cosine_similarity(rows[order, None], rows[None, order], dim=-1)
        np.testing.assert_allclose(axes.images[0].get_array(), expected, atol=1e-5)
    below = sorted((text.get_position()[0], text.get_text()) for text in figure.axes[1].texts)
    assert below == list(enumerate(map(str, order)))


def test_a_classifier_that_starts_at_zero_has_no_direction_and_no_nan() -> None:
    shown = cosine_figure(torch.randn(3, 4), torch.zeros(3, 4)).axes[1].images[0].get_array()
    np.testing.assert_array_equal(shown, np.zeros((3, 3)))


def test_tensors_of_any_precision_that_carry_gradients_are_drawn() -> None:
    weight = torch.randn(3, 4, dtype=torch.bfloat16, requires_grad=True)
    shown = cosine_figure(torch.randn(3, 4), weight).axes[1].images[0].get_array()
    np.testing.assert_allclose(np.diag(shown), 1)


def test_confusion_equals_counting_pair_by_pair() -> None:
    targets, predictions = torch.randint(0, 4, (200,)), torch.randint(0, 4, (200,))
    counts = torch.zeros(5, 5)
    for target, prediction in zip(targets.tolist(), predictions.tolist(), strict=True):
        counts[target, prediction] += 1
    shown = confusion_figure(predictions, targets, 5).axes[0].images[0].get_array()
    np.testing.assert_allclose(shown[:4], counts[:4] / counts[:4].sum(1, keepdim=True))
    np.testing.assert_array_equal(shown[4], 0)  # a class without test samples


def test_what_theory_predicts_stands_beside_what_was_measured() -> None:
    counts = torch.tensor([3, 50, 7, 50, 1])
    ideal = seli_optimum(counts)
    predicted = ("SELI", ideal.class_means, ideal.weight)
    measured = (2 * ideal.class_means + 1, 3 * ideal.weight)
    panels = cosine_figure(*measured, class_counts=counts, predicted=predicted).axes[:5]
    means, weight, _, ideal_means, ideal_weight = (axes.images[0].get_array() for axes in panels)
    np.testing.assert_allclose(ideal_means, means, atol=1e-9)
    np.testing.assert_allclose(ideal_weight, weight, atol=1e-9)
