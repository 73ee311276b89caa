"""The objective that is measured is the one that training descends, and its gap closes at theory's optimum."""

from __future__ import annotations

import pytest
import references
import torch
from torch import Tensor

from ncflow import assembly, stages
from ncflow.data import Snapshot
from ncflow.nn import LOSSES, Classifier, LinearHead, create_loss
from ncflow.nn.free_features import sample_numbers
from ncflow.params import Params, make_params
from ncflow.theory import predicted_optimum
from ncflow.training import FeatureObjective, Splits

COUNTS = [12, 12, 3, 3]
SLOW = {"ce": references.cross_entropy, "mse": references.squared_error}
FREE = {
    "dataset": {"name": "ufm10", "imb_type": "step", "imb_factor": 0.1, "samples_per_class": 20},
    "model": {"name": "free_features", "image_size": 8, "num_features": 9},
    "train": {
        "batch_size": "full",
        "weight_decay": 0.02,
        "epochs": 1,
        "schedule": "none",
        "lr": 0.5,
        "precision": "fp32",
    },
}


def configure(*overrides: str) -> Params:
    return make_params(FREE, overrides)


@pytest.fixture(scope="module")
def snapshot(tmp_path_factory: pytest.TempPathFactory) -> Snapshot:
    return stages.snapshot(configure(), tmp_path_factory.mktemp("data") / "ufm10")


def begin(params: Params, images: Snapshot) -> tuple[Classifier, Splits, object]:
    training = assembly.start(params, images, stages.create_accelerator("cpu"), "fp32")
    return training.classifier, training.splits, training.records


def head_of(weight: Tensor) -> LinearHead:
    head = LinearHead(weight.shape[1], weight.shape[0]).double()
    head.weight.data.copy_(weight)
    return head


def targets() -> Tensor:
    return torch.arange(len(COUNTS)).repeat_interleave(torch.tensor(COUNTS))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("loss", SLOW)
def test_the_value_is_its_definition_sample_by_sample(loss, seed):
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(sum(COUNTS), 5, generator=generator, dtype=torch.float64)
    weight = torch.randn(4, 5, generator=generator, dtype=torch.float64)
    terms = {"weight_decay": 0.3, "row_decay": 0.02, "feature_weight": 0.7, "drift_weight": 1.1}
    found = FeatureObjective(create_loss(loss), **terms)(features, targets(), head_of(weight))
    expected = references.objective(features.numpy(), targets().tolist(), weight.numpy(), SLOW[loss], **terms)
    assert found == {"objective/value": pytest.approx(expected, rel=1e-12)}


@pytest.mark.parametrize("loss", SLOW)
@pytest.mark.parametrize("split", [0.0, 0.4, 1.0])
def test_the_gap_is_zero_at_the_optimum_and_positive_anywhere_else(loss, split):
    """`split` shares λ_H between the decay of rows and the penalty on features."""
    lambda_w, lambda_h = 4e-3, 1e-3
    optimum = predicted_optimum(loss, COUNTS, lambda_w=lambda_w, lambda_h=lambda_h)
    terms = {"row_decay": (1 - split) * lambda_h, "feature_weight": split * lambda_h * sum(COUNTS)}
    objective = FeatureObjective(create_loss(loss), weight_decay=lambda_w, **terms, optimum=optimum)
    at = objective(optimum.class_means[targets()], targets(), head_of(optimum.weight))
    assert at["objective/gap"] == pytest.approx(0, abs=1e-13)
    generator = torch.Generator().manual_seed(0)
    for size in (1e-3, 1e-1, 1.0):
        noise = size * torch.randn(2, sum(COUNTS), 4, generator=generator, dtype=torch.float64)
        moved = objective(optimum.class_means[targets()] + noise[0], targets(), head_of(optimum.weight + noise[1, :4]))
        assert moved["objective/gap"] > 1e-9
        assert moved["objective/value"] - moved["objective/gap"] == pytest.approx(objective.least, rel=1e-12)


STEPS = [
    (),
    ("train.decay=head",),
    ("train.decay=head", "train.feature_decay=0.3"),
    ("train.decay=matrices", "head.bias=true"),
    ("train.decay=all", "head.bias=true", "train.feature_decay=0.3"),
    ("train.drift_penalty=0.4",),
    ("head.normalize=true",),
    ("head=fixed_etf", "head.temperature=null", "train.feature_decay=0.1"),
    ("dataset.label_noise=0.2",),
    ("train.weight_decay=0.0",),
    *((f"train.loss={loss}",) for loss in LOSSES if loss not in ("ce", "dot_regression")),
    ("train.loss=mse", "train.loss_options.emphasis=5"),
]


@pytest.mark.parametrize("overrides", STEPS, ids=" ".join)
def test_a_full_batch_step_descends_the_measured_objective(snapshot, tmp_path, overrides):
    params = configure(*overrides)
    images = (
        snapshot if not any("dataset" in each for each in overrides) else stages.snapshot(params, tmp_path / "data")
    )
    classifier, splits, records = begin(params, images)
    objective = assembly.feature_objective(params, classifier, images.class_counts)
    pictures, labels = zip(*splits.train.ordered(), strict=True)
    rows = classifier.backbone(torch.cat(pictures))
    parameters = {name: p for name, p in classifier.named_parameters() if p.requires_grad}
    gradient = torch.autograd.grad(
        objective.value(rows, torch.cat(labels), classifier.head), parameters.values(), allow_unused=True
    )
    before = {name: p.detach().clone() for name, p in parameters.items()}
    next(records)
    used = sample_numbers(torch.cat(pictures))  # the rows of samples that the tail lost only decay
    for (name, now), slope in zip(parameters.items(), gradient, strict=True):
        step = torch.zeros_like(now) if slope is None else -0.5 * slope
        keep = used if name == "backbone.features" else slice(None)
        torch.testing.assert_close((now - before[name])[keep], step[keep], rtol=1e-3, atol=1e-6)


ABSENT = [
    ("train.optimizer=adamw",),
    ("train.optimizer=agd", "train.lr=null", "train.weight_decay=null"),
    ("head=nearest_etf", "head.temperature=null"),
    ("head.temperature=5",),
    ("train.reweight=0.9",),
    ("train.sampling=class_balanced",),
    ("dataset.name=digits", "model.name=resnet20", "model.num_features=null"),
    ("dataset.name=digits", "model.name=resnet20", "train.decay=head", "train.augment=flip_crop"),
]
WITHOUT_GAP = [
    ("train.loss=focal",),
    ("head.bias=true",),
    ("model.num_features=4",),
    ("train.drift_penalty=0.1",),
    ("train.decay=head",),
    ("train.optimizer=adam", "train.batch_size=8"),
    ("head=fixed_etf", "head.temperature=null"),
]
WITH_GAP = [
    (),
    ("train.loss=mse", "model.num_features=10"),
    ("train.decay=head", "train.feature_decay=0.3"),
    ("train.optimizer=adam",),
    ("train.batch_size=8",),
]


def objective(*overrides: str) -> FeatureObjective | None:
    params = configure(*overrides)
    torch.manual_seed(0)
    return assembly.feature_objective(params, assembly.build_classifier(params, 10), [20] * 5 + [2] * 5)


@pytest.mark.parametrize("overrides", ABSENT, ids=" ".join)
def test_where_more_or_other_is_minimized_there_is_no_objective(overrides):
    assert objective(*overrides) is None


@pytest.mark.parametrize("overrides", WITHOUT_GAP, ids=" ".join)
def test_where_no_closed_form_holds_there_is_no_gap(overrides):
    assert objective(*overrides).optimum is None


@pytest.mark.parametrize("overrides", WITH_GAP, ids=" ".join)
def test_where_a_closed_form_holds_there_is_a_gap(overrides):
    assert objective(*overrides).optimum is not None


def test_a_network_with_head_decay_is_compared_with_its_relu_optimum():
    network = ("dataset.name=digits", "model.name=resnet20", "model.num_features=null")
    found = objective(*network, "train.decay=head", "train.feature_decay=0.3").optimum
    expected = predicted_optimum(
        "ce", [20] * 5 + [2] * 5, lambda_w=0.02, lambda_h=0.3 / 110, num_features=64, nonnegative=True
    )
    torch.testing.assert_close(found.logits, expected.logits)


@pytest.mark.slow
def test_evaluation_repeats_the_objective_of_training(snapshot, tmp_path):
    params = configure("train.epochs=2", "exp_name=again")
    folder = stages.train(params, folder=tmp_path / "models" / "again", data=snapshot.path, root=tmp_path)
    measured = stages.evaluate(folder, snapshot.path, tmp_path / "out.json")
    assert measured["train"]["objective/gap"] > 0 and "objective/value" not in measured["test"]
