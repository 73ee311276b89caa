"""Theory is held against exactly the runs that it speaks of."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch

from ncflow.geometry import FRAMES
from ncflow.params import TrainParams, head_section
from ncflow.reports.against_theory import predictions, theory_table
from ncflow.reports.arms import arms, labels
from ncflow.reports.canvas import WIDE
from ncflow.reports.figures import to_image
from ncflow.reports.paper import draw
from ncflow.reports.predictions import (
    ASSUMPTIONS,
    PLAIN,
    PLAIN_LINEAR,
    decays,
    drift_limit,
    measure,
    predict,
    quantities,
    why_not,
)
from ncflow.runs.reader import Run, load_run
from ncflow.theory import fixed_etf_feature_norm, predicted_optimum, seli_optimum, seli_step_relative_drift

MakeRun = Callable[..., Path]

FREE = {"name": "free_features", "image_size": 8}
TRAIN = {"loss": "ce", "optimizer": "sgd", "weight_decay": 5e-3}
LINEAR = {"name": "linear", "bias": False, "normalize": False, "temperature": None}


@pytest.fixture
def configured(make_run: MakeRun) -> Callable[..., Run]:
    """A run of free features, changed section by section."""

    number = count()

    def configure(counts: tuple[int, ...] = (10, 10, 10, 10), **sections: Any) -> Run:
        configuration = {"model": FREE, "head": LINEAR, "train": TRAIN}
        overrides = configuration | {name: configuration.get(name, {}) | s for name, s in sections.items()}
        shape = {"num_classes": len(counts), "class_counts": counts, "epochs": (3,)}
        return load_run(make_run(f"run{next(number)}", **shape, overrides=overrides))

    return configure


@pytest.mark.parametrize(
    "loss, counts", [("ce", (10, 10, 10, 10)), ("ce", (40, 4, 40, 4)), ("mse", (40, 20, 8, 3)), ("mse", (9, 9))]
)
def test_free_features_are_held_against_their_exact_optimum(configured, loss: str, counts: tuple[int, ...]) -> None:
    prediction = predict(configured(counts, train={"loss": loss}))
    expected = predicted_optimum(loss, counts, lambda_w=5e-3, lambda_h=5e-3)
    assert (prediction.theory, prediction.scale) == ("optimum", True)
    torch.testing.assert_close(prediction.optimum.logits, expected.logits)


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"counts": (40, 20, 8, 3)}, id="cross-entropy on classes of many sizes"),
        pytest.param({"train": {"weight_decay": 0.0}}, id="no weight decay"),
        pytest.param({"train": {"optimizer": "adam", "batch_size": 32}}, id="Adam in mini-batches"),
        pytest.param({"model": {"name": "resnet20", "neck": "batch_norm"}}, id="a network with a batch norm last"),
        pytest.param({"model": {"name": "resnet20", "num_features": 7}}, id="a network with a projection last"),
        pytest.param({"model": {"name": "vit_tiny", "neck": "none"}}, id="a network with a residual sum last"),
        pytest.param({"model": {"name": "timm/resnet18", "neck": "batch_norm"}}, id="timm's with a neck of ours"),
        pytest.param(
            {"model": {"name": "vit_tiny"}, "train": {"decay": "head", "feature_decay": 0.1}},
            id="a penalty on features",
        ),
        pytest.param({"train": {"sampling": "stratified"}, "counts": (9, 8, 7)}, id="every sample once, in order"),
    ],
)
def test_where_cross_entropy_has_no_exact_optimum_its_limit_is_the_reference(configured, changes: Any) -> None:
    run = configured(**changes)
    prediction = predict(run)
    assert (prediction.theory, prediction.scale) == ("SELI", False)
    expected = seli_optimum(run.dump["class_counts"])
    torch.testing.assert_close(prediction.optimum.weight, expected.weight)


@pytest.mark.parametrize("size, theory", [("full", "optimum"), (40, "optimum"), (1000, "optimum"), (39, "SELI")])
def test_adam_follows_the_objective_exactly_in_batches_of_all_samples(configured, size: Any, theory: str) -> None:
    assert predict(configured(train={"optimizer": "adam", "batch_size": size})).theory == theory


NONNEGATIVE = ["resnet18", "resnet20", "resnet32", "resnet50", "vgg11", "vgg16", "densenet121", "googlenet"]


@pytest.mark.parametrize("name", NONNEGATIVE)
def test_behind_a_relu_the_limit_is_that_of_nonnegative_features(configured, name: str) -> None:
    run = configured((40, 20, 8, 3), model={"name": name})
    prediction = predict(run)
    assert (prediction.theory, prediction.scale) == ("ReLU", False)
    means = prediction.optimum.mean_cosines
    torch.testing.assert_close(means, torch.eye(4, dtype=torch.float64))


NO_THEORY = {
    "focal": ({"train": {"loss": "focal"}}, "train.loss=focal"),
    "balanced softmax": ({"train": {"loss": "balanced_softmax"}}, "train.loss=balanced_softmax"),
    "label smoothing": ({"train": {"loss": "label_smoothing"}, "counts": (9, 5, 3)}, "train.loss=label_smoothing"),
    "emphasis": ({"train": {"loss": "mse", "loss_options": {"emphasis": 5.0}}}, "train.loss_options.emphasis=5.0"),
    "network, mse": ({"train": {"loss": "mse"}, "model": {"name": "resnet20"}}, "train.loss=mse"),
    "drift penalty": ({"train": {"drift_penalty": 0.1}}, "train.drift_penalty=0.1"),
    "reweight": ({"train": {"reweight": 0.9}}, "train.reweight=0.9"),
    "class balanced": ({"train": {"sampling": "class_balanced"}}, "train.sampling=class_balanced"),
    "noise": ({"dataset": {"label_noise": 0.1}}, "dataset.label_noise=0.1"),
    "bias": ({"head": {"bias": True}}, "head.bias=True"),
    "normalize": ({"head": {"normalize": True}}, "head.normalize=True"),
    "temperature": ({"head": {"temperature": 5.0}}, "head.temperature=5.0"),
    "missing": ({"counts": (10, 10, 10, 0)}, "1 of 4 classes have no training sample"),
    "adamw": ({"train": {"optimizer": "adamw"}}, "weight decay of optimizer adamw is no term"),
    "adamw, network": ({"train": {"optimizer": "adamw"}, "model": {"name": "resnet20"}}, "optimizer adamw"),
    "agd": ({"train": {"optimizer": "agd", "weight_decay": None}}, "optimizer agd"),
    "an optimizer of the user's": ({"train": {"optimizer": "mine"}}, "optimizer mine"),
    "adam, no decay": ({"train": {"optimizer": "adam", "weight_decay": 0.0}}, "without weight decay adam goes"),
    "mse, Adam in mini-batches": ({"train": {"loss": "mse", "optimizer": "adam"}}, "train.batch_size=full"),
    "mse, no decay": ({"train": {"loss": "mse", "weight_decay": 0.0}}, "lengths grow without end"),
    "one decays": ({"train": {"decay": "head"}}, "only one decays|lengths grow without end"),
    "one decays, network": ({"train": {"decay": "head"}, "model": {"name": "resnet20"}}, "only one decays"),
    "layer norm": ({"model": {"name": "resnet20", "neck": "layer_norm"}}, "of one length are not free: layer_norm"),
    "silu": ({"model": {"name": "efficientnet_b0"}}, "above -0.279 are not free: silu"),
    "norm without scale": (
        {"model": {"name": "vit_tiny", "affine": False}},
        "of variance one are not free: batch_norm",
    ),
    "unknown model": ({"model": {"name": "timm/resnet18"}}, "nothing says which values .* timm/resnet18"),
    "a number that is none": ({"train": {"weight_decay": "much"}}, "expected numbers as train.weight_decay"),
}


@pytest.mark.parametrize("case", NO_THEORY)
def test_a_run_without_theory_has_a_reason_of_one_line(configured, case: str) -> None:
    changes, reason = NO_THEORY[case]
    assert predict(configured()) is not None and why_not(configured()) is None
    run = configured(**changes)
    assert predict(run) is None and drift_limit(run) is None
    assert re.search(reason, why_not(run)) and "\n" not in why_not(run)


# options of training that no closed form asks for: how long, how fast, how exactly, and what is written down
HARMLESS = {"epochs", "lr", "momentum", "optimizer_options", "schedule", "schedule_options", "warmup", "reweight_after"}
HARMLESS |= {"posthoc_tau", "augment", "augment_options", "mix_options", "precision", "device"}
HARMLESS |= {"save_logits", "save_features"}
HARMLESS |= {"penalty_options"}
HARMLESS |= {"compile", "layer_decay", "max_steps", "stop", "accumulate", "max_grad_norm", "schedule_per"}
HARMLESS |= {"analyze", "analyze_freq", "analyze_layers", "analyze_solver"}
JUDGED = {"loss", "loss_options", "penalties", "optimizer", "weight_decay", "decay", "feature_decay", "batch_size"}


def test_every_training_and_linear_head_option_is_judged_by_theory() -> None:
    """A new one that changes the objective needs a row in PLAIN, or theory would be drawn where it cannot hold."""
    known = {key.removeprefix("train.") for key in PLAIN if key.startswith("train.")} | JUDGED | HARMLESS
    assert set(TrainParams.model_fields) == known
    assert {f"head.{name}" for name in head_section("linear").model_fields} == {*PLAIN_LINEAR, "head.name"}


# theory, loss, class sizes, model, the least d that has room for the optimum
RANKS = [
    ("balanced", "ce", (10,) * 6, FREE, 5),
    ("two sizes", "ce", (40, 4, 40, 4), FREE, 3),
    ("minority collapse", "ce", (400, 400, 400, 1, 1, 1), FREE, 3),
    ("squared error", "mse", (40, 20, 8, 3), FREE, 4),
    ("squared error, dead classes", "mse", (4000, 4000, 1, 1), FREE, 2),
    ("limit", "ce", (40, 20, 8, 3), FREE, 3),
    ("network", "ce", (40, 20, 8, 3), {"name": "vit_tiny"}, 3),
    ("behind a ReLU", "ce", (40, 20, 8, 3), {"name": "resnet20"}, 4),
]


@pytest.mark.parametrize("loss, counts, model, rank", [case[1:] for case in RANKS], ids=[case[0] for case in RANKS])
def test_too_few_features_for_the_optimum_have_no_prediction(configured, loss, counts, model, rank) -> None:
    run = configured(counts, train={"loss": loss}, model=model)
    for d in (rank, rank - 1):
        run.dump.update(class_means=torch.ones(len(counts), d), weight=torch.ones(len(counts), d))
        assert (predict(run) is not None) is (d >= rank)
    assert f"expected num_features >= {rank}, the rank of the optimum, got {rank - 1}" in why_not(run)


def test_ten_classes_in_four_features_are_not_promised_a_simplex_etf(configured) -> None:
    run = configured((100,) * 10)
    run.dump.update(class_means=torch.randn(10, 4), weight=torch.randn(10, 4))
    assert predict(run) is None and "num_features >= 9" in why_not(run)


def test_before_a_fixed_etf_head_or_decay_set_the_feature_length(make_run: MakeRun) -> None:
    def fixed(name: str, temperature: float | None, model: dict[str, Any], loss: str = "ce") -> Run:
        head = {"name": "fixed_etf", "temperature": temperature}
        overrides = {"head": head, "model": model, "train": TRAIN | {"loss": loss}}
        return load_run(make_run(name, head="fixed_etf", num_classes=3, class_counts=(30, 9, 1), overrides=overrides))

    network = {"name": "resnet20", "neck": "batch_norm"}
    told = predict(fixed("told", 5.0, network))
    left = predict(fixed("left", None, FREE))
    torch.testing.assert_close(told.optimum.mean_norms, torch.full((3,), 5.0, dtype=torch.float64))
    norm = fixed_etf_feature_norm((30, 9, 1), lambda_h=5e-3)
    torch.testing.assert_close(left.optimum.mean_norms, torch.full((3,), norm, dtype=torch.float64))
    assert predict(fixed("network", None, network)) is None
    assert predict(fixed("loss", 5.0, network, loss="mse")) is None
    assert predict(fixed("norm", 5.0, {"name": "resnet20", "neck": "layer_norm"})) is None


def test_nonnegative_features_stay_at_an_angle_to_a_fixed_etf(make_run: MakeRun) -> None:
    def fixed(name: str, **head: Any) -> Run:
        overrides = {"head": {"name": "fixed_etf", "temperature": 5.0} | head, "model": {"name": "resnet20"}}
        overrides["train"] = TRAIN
        return load_run(make_run(name, head="fixed_etf", num_classes=3, class_counts=(30, 9, 1), overrides=overrides))

    prediction = predict(fixed("canonical"))
    assert prediction.theory == "fixed ETF, ReLU"
    torch.testing.assert_close(prediction.optimum.class_means, 5 * torch.eye(3, dtype=torch.float64))
    assert "rotated ETF" in why_not(fixed("rotated", rotation_seed=1))
    narrow = fixed("narrow")
    narrow.dump.update(class_means=torch.ones(3, 2), weight=torch.ones(3, 2))
    assert "rotated ETF" in why_not(narrow)


def test_only_a_fixed_frame_that_is_an_etf_has_a_theory(make_run: MakeRun) -> None:
    def fixed(run: str, head: str = "fixed_frame", **options: Any) -> Run:
        overrides = {"head": {"name": head, "temperature": 5.0} | options, "model": {"name": "resnet20"}}
        shape = {"num_classes": 3, "class_counts": (30, 9, 1)}
        return load_run(make_run(run, head=head, **shape, overrides=overrides | {"train": TRAIN}))

    etf, frame = (predict(fixed(head, head)) for head in ("fixed_etf", "fixed_frame"))
    assert etf.theory == frame.theory == "fixed ETF, ReLU"
    assert torch.equal(etf.optimum.class_means, frame.optimum.class_means)
    assert "rotated ETF" in why_not(fixed("rotated", frame_seed=0))
    for name in FRAMES.keys() - {"simplex_etf"}:
        assert f"head.frame={name}" in why_not(fixed(name, frame=name))


def test_the_nearest_etf_head_has_no_closed_form(make_run: MakeRun) -> None:
    assert predict(load_run(make_run("run", head="nearest_etf"))) is None


@pytest.mark.parametrize(
    "options, expected",
    [
        ({"train.weight_decay": 1e-3}, (1e-3, 1e-3)),
        ({"train.weight_decay": 1e-3, "train.decay": "matrices"}, (1e-3, 1e-3)),
        ({"train.weight_decay": 1e-3, "train.decay": "head", "train.feature_decay": 0.5}, (1e-3, 5e-3)),
        ({"train.weight_decay": 1e-3, "train.decay": "all", "train.feature_decay": 0.5}, (1e-3, 6e-3)),
        ({"train.weight_decay": None}, (0.0, 0.0)),
    ],
)
def test_decays_are_those_of_the_unconstrained_feature_model(options: dict[str, Any], expected: Any) -> None:
    assert decays(options, num_samples=100) == pytest.approx(expected)


def test_numbers_of_an_optimum_ignore_rotation_and_scale() -> None:
    optimum = predicted_optimum("mse", (40, 20, 8, 3), lambda_w=5e-3, lambda_h=5e-3)
    rotation = torch.linalg.qr(torch.randn(4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))[0]
    rotated = type(optimum)(optimum.weight @ rotation, optimum.class_means @ rotation, optimum.class_counts)
    scaled = type(optimum)(3 * optimum.weight, 7 * optimum.class_means, optimum.class_counts)
    assert quantities(rotated) == pytest.approx(quantities(optimum))
    assert quantities(scaled, scale=False) == pytest.approx(quantities(optimum, scale=False))
    assert set(quantities(optimum, scale=False)) < set(quantities(optimum))


def test_minority_collapse_shows_in_the_numbers() -> None:
    decay = math.sqrt(10) / 624
    collapsed = quantities(predicted_optimum("ce", [200] * 3 + [8] * 3, lambda_w=decay, lambda_h=decay))
    assert collapsed["cos(w,w) rarest third"] == pytest.approx(1)
    assert collapsed["smallest margin"] == pytest.approx(0, abs=1e-9)


def test_the_drift_limit_follows_the_sign_of_the_features(configured) -> None:
    balanced, rare = (7,) * 10, (100,) * 5 + (1,) * 5
    network = {"name": "resnet20"}
    assert drift_limit(configured(balanced, model=FREE)) == ("SELI", pytest.approx(0, abs=1e-9))
    assert drift_limit(configured(balanced, model=network)) == ("ReLU", pytest.approx(10**-0.5))
    assert drift_limit(configured(rare, model=FREE))[1] == pytest.approx(seli_step_relative_drift(10, 100))
    n = torch.tensor(rare, dtype=torch.float64)
    limit = n.pow(1.5).sum().sqrt() / (n.sum() * n.sqrt().sum()).sqrt()
    assert drift_limit(configured(rare, model=network))[1] == pytest.approx(limit.item())


def test_a_run_at_its_optimum_reads_as_predicted_in_table_and_figure(configured) -> None:
    run = configured((40, 4, 40, 4))
    optimum = predict(run).optimum
    run.dump.update(weight=optimum.weight, class_means=optimum.class_means)
    compared = arms([run])
    (predicted,) = predictions(compared).values()
    ideal, measured = theory_table(predicted, dict(zip(compared, labels(compared), strict=True))).rows
    assert ideal.cells[:2] == ("linear", "optimum")
    assert measured.cells[:2] == ("linear", "measured")
    assert ideal.cells[2:] == measured.cells[2:]
    figure = draw("theory", compared, WIDE).figure
    to_image(figure)
    for axes in figure.axes:
        dashes, points = (line.get_ydata() for line in axes.lines)
        torch.testing.assert_close(torch.as_tensor(dashes), torch.as_tensor(points))
        assert axes.get_ylim()[1] > max(points)


def test_lengths_without_a_scale_are_relative_and_largest_class_first(configured) -> None:
    run = configured((4, 40, 4, 40), model={"name": "resnet20", "neck": "batch_norm"})
    dashes = torch.as_tensor(draw("theory", arms([run]), WIDE).figure.axes[0].lines[0].get_ydata())
    assert dashes.square().mean().item() == pytest.approx(1)
    assert (dashes.diff() <= 1e-9).all()


def test_every_prediction_says_what_it_assumes(configured) -> None:
    models = (FREE, {"name": "resnet20"}, {"name": "vit_tiny"})
    theories = {predict(configured(model=model)).theory for model in models}
    assert theories | {"fixed ETF", "fixed ETF, ReLU"} == ASSUMPTIONS.keys()


def test_the_measured_geometry_is_that_of_the_dump(configured) -> None:
    run = configured()
    torch.testing.assert_close(measure(run).class_means, run.dump["class_means"].double())
    torch.testing.assert_close(measure(run).weight, run.dump["weight"].double())
