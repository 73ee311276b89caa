"""Evaluation: every sample once, whatever the batches, and a model that is left as it was."""

from __future__ import annotations

from dataclasses import replace

import pytest
import references
import torch
from torch import nn

from ncflow.metrics import ClassMoments, collapse_metrics
from ncflow.metrics.table import LAYER_METRICS
from ncflow.nn import HEADS
from ncflow.training import Analysis, evaluate, evaluate_splits
from ncflow.training.evaluation import extract, layer_metrics


@pytest.fixture
def trained(make_classifier, splits):
    """A classifier whose batch norms and class means have seen two batches; in training mode."""

    def make(head: str = "linear"):
        classifier = make_classifier(head).train()
        with torch.no_grad():
            for _, (images, targets) in zip(range(2), splits["train"].shuffled(1), strict=False):
                classifier(images, targets)
        return classifier

    return make


def modes(classifier: nn.Module) -> dict[str, bool]:
    return {name: module.training for name, module in classifier.named_modules()}


def frozen_norms(classifier: nn.Module) -> None:
    """Train everything but the batch norms, as fine-tuning does."""
    classifier.train()
    for module in classifier.modules():
        module.training = not isinstance(module, nn.BatchNorm2d)


@pytest.mark.parametrize("set_mode", [nn.Module.train, nn.Module.eval, frozen_norms])
def test_evaluation_leaves_modes_weights_and_statistics_as_they_were(set_mode, trained, splits, digits):
    classifier = trained("nearest_etf")
    set_mode(classifier)
    before, state = modes(classifier), {name: t.clone() for name, t in classifier.state_dict().items()}
    evaluate(classifier, splits["test"], class_counts=digits.class_counts)
    assert modes(classifier) == before
    for name, tensor in classifier.state_dict().items():
        assert torch.equal(tensor, state[name]), name


def test_modes_come_back_also_when_the_model_fails(trained, splits, digits):
    classifier = trained()
    classifier.head.classify = lambda embedded, targets: 1 / 0
    with pytest.raises(ZeroDivisionError):
        evaluate(classifier, splits["test"], class_counts=digits.class_counts)
    assert classifier.training and classifier.backbone.training


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("batch_size", [1, 7, 10_000])
def test_the_size_of_batches_does_not_matter(head, batch_size, trained, splits, digits):
    classifier = trained(head)
    some = replace(splits["test"], targets=splits["test"].targets[:100])
    one = evaluate(classifier, some, class_counts=digits.class_counts)
    other = evaluate(classifier, replace(some, batch_size=batch_size), class_counts=digits.class_counts)
    torch.testing.assert_close(other.logits, one.logits, atol=1e-5, rtol=1e-4)
    assert other.metrics == pytest.approx(one.metrics, rel=1e-3, abs=1e-4)


@pytest.mark.parametrize("head", HEADS)
def test_logits_targets_and_means_are_those_of_a_plain_forward(head, trained, splits, digits):
    classifier = trained(head)
    result = evaluate(classifier, splits["test"], class_counts=digits.class_counts)
    images, targets = (torch.cat(parts) for parts in zip(*splits["test"].ordered(), strict=True))
    with torch.no_grad():
        logits, features = classifier.eval()(images)
    assert torch.equal(result.targets, targets)
    torch.testing.assert_close(result.logits, logits, atol=1e-5, rtol=1e-4)
    assert torch.equal(result.predictions, result.logits.argmax(1))
    means = torch.stack([features[targets == k].double().mean(0) for k in range(10)])
    torch.testing.assert_close(result.class_means.double(), means, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(result.sample_mean.double(), features.double().mean(0), atol=1e-5, rtol=1e-4)


def test_the_metrics_are_those_of_collapse_metrics_with_the_training_counts(trained, splits, digits, whole):
    classifier = trained("nearest_etf")
    analysis = evaluate_splits(classifier, whole)
    images, targets = (torch.cat(parts) for parts in zip(*splits["test"].ordered(), strict=True))
    with torch.no_grad():
        _, features = classifier.eval()(images)
    head = classifier.head
    expected = collapse_metrics(
        features,
        targets,
        head.weight,
        head.bias,
        class_counts=digits.class_counts,
        train_means=analysis["train"].class_means,
    )
    assert analysis["test"].metrics == pytest.approx(expected, rel=1e-3, abs=1e-4)
    assert {"acc/few", "acc/many"} <= set(expected)  # the test split is balanced: these come from training


def test_the_nearest_means_of_the_test_split_are_those_of_training(trained, splits, digits, whole):
    classifier = trained()
    counts = digits.class_counts
    analysis = evaluate_splits(classifier, whole)
    means = analysis["train"].class_means
    given, other = (evaluate(classifier, splits["test"], class_counts=counts, train_means=m) for m in (means, -means))
    assert analysis["test"].metrics == given.metrics
    assert analysis["test"].metrics["nc4/ncc_mismatch"] != other.metrics["nc4/ncc_mismatch"]


def test_a_validation_part_is_measured_as_the_test_split_is(trained, splits, digits, whole):
    """Against the means of training, with adjusted logits; and what is measured of the others stays the same."""
    classifier = trained()
    adjusted = Analysis(posthoc_tau=1.0)
    without = evaluate_splits(classifier, whole, adjusted)
    analysis = evaluate_splits(classifier, replace(whole, validation=splits["test"]), adjusted)
    assert list(without) == ["train", "test"] and set(analysis) == {"train", "test", "val"}
    assert analysis["val"].metrics == analysis["test"].metrics == without["test"].metrics
    assert analysis["train"].metrics == without["train"].metrics


def test_a_class_without_samples_has_no_mean(trained, splits, digits):
    kept = splits["test"].targets[:30]
    absent = sorted(set(range(10)) - set(kept[kept != 3].tolist()))
    part = replace(splits["test"], targets=torch.where(kept == 3, 4, kept))
    result = evaluate(trained(), part, class_counts=digits.class_counts)
    assert 3 in absent
    assert result.class_means.isnan().all(1).nonzero().flatten().tolist() == absent
    assert not result.sample_mean.isnan().any()


def test_layers_are_measured_in_the_same_forward(trained, splits, digits):
    classifier = trained()
    calls = []
    classifier.backbone.register_forward_hook(lambda *_: calls.append(1))
    plain = evaluate(classifier, splits["test"], class_counts=digits.class_counts)
    forwards = len(calls)
    layered = evaluate(classifier, splits["test"], class_counts=digits.class_counts, analysis=Analysis(layers=True))
    assert len(calls) == 2 * forwards
    layers = {name for name in layered.metrics if name.startswith("layers/")}
    assert {name.rpartition("/")[2] for name in layers} == LAYER_METRICS.keys()
    assert {"layers/stem/drift", "layers/layer3/nc1"} <= layers
    assert {name: value for name, value in layered.metrics.items() if name not in layers} == plain.metrics


def test_the_last_layer_before_the_features_drifts_as_they_do(trained, splits, digits):
    """ResNet-20 has no neck, so the pooled last stage is the features."""
    metrics = evaluate(
        trained(), splits["train"], class_counts=digits.class_counts, analysis=Analysis(layers=True)
    ).metrics
    assert metrics["layers/layer3/drift"] == pytest.approx(metrics["drift/norm"], rel=1e-5)
    assert metrics["layers/layer3/nc1"] == pytest.approx(metrics["nc1/pinv"], rel=1e-3)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("split", ["train", "test"])
def test_metrics_of_a_layer_equal_their_definitions(seed, split):
    train = references.draw_problem(seed, offset=1.0)
    problem = train if split == "train" else references.draw_problem(seed + 100, spread=1.5)
    features, targets, *_ = problem.tensors
    centers = None if split == "train" else torch.from_numpy(train.means)
    moments = ClassMoments.from_features(features, targets, 6, scatter=False)
    found = layer_metrics("stem", features, targets, moments, train_means=centers)
    expected = references.layer_metrics(problem, train.means)
    assert found == pytest.approx({f"layers/stem/{name}": value for name, value in expected.items()}, rel=1e-9)


def test_unseen_layers_are_compared_with_the_training_centers(trained, whole):
    classifier = trained()
    found = evaluate_splits(classifier, whole, Analysis(layers=True))
    rows = extract(classifier, whole.test, layers=True)[2]
    for layer, centers in found["train"].layer_means.items():
        nearest = torch.cdist(rows[layer].double(), centers).argmin(1)
        expected = (nearest == whole.test.targets).double().mean().item()
        assert found["test"].metrics[f"layers/{layer}/ncc_accuracy"] == pytest.approx(expected)


def test_without_training_centers_unseen_layers_have_no_ncc(trained, whole):
    classifier = trained()
    known = replace(evaluate(classifier, whole.train, class_counts=whole.class_counts), streamed=True)
    found = evaluate_splits(classifier, whole, Analysis(layers=True), on_train=known)["test"].metrics
    layers = {name.rpartition("/")[2] for name in found if name.startswith("layers/")}
    assert layers == LAYER_METRICS.keys() - {"ncc_accuracy"}


def test_a_split_takes_one_forward_per_image_and_one_moment_pass(monkeypatch, trained, splits, digits):
    """Without their scatter, which the metrics that need it make from products that they need, too."""
    classifier, images, scatters = trained(), [], []
    classifier.backbone.register_forward_hook(lambda module, inputs, output: images.append(len(inputs[0])))
    build = ClassMoments.from_features

    def counted(*tensors, scatter=True):
        scatters.append(scatter)
        return build(*tensors, scatter=scatter)

    monkeypatch.setattr(ClassMoments, "from_features", counted)
    found = evaluate(classifier, splits["test"], class_counts=digits.class_counts, analysis=Analysis(layers=True))
    layers = {name.split("/")[1] for name in found.metrics if name.startswith("layers/")}
    assert sum(images) == len(found.targets)
    assert scatters == [False] * (1 + len(layers))


def test_posthoc_adjustment_adds_accuracies_on_the_test_split_and_changes_nothing_else(trained, splits, digits, whole):
    classifier = trained()
    plain = evaluate_splits(classifier, whole)
    adjusted = evaluate_splits(classifier, whole, Analysis(posthoc_tau=1.0))
    assert adjusted["train"].metrics == plain["train"].metrics
    added = adjusted["test"].metrics.keys() - plain["test"].metrics.keys()
    assert {f"posthoc/logit_adjustment/acc/{name}" for name in ("overall", "balanced", "tail20")} <= added
    logits = plain["test"].logits - torch.tensor(digits.class_counts).div(sum(digits.class_counts)).log()
    expected = (logits.argmax(1) == splits["test"].targets).float().mean().item()
    assert adjusted["test"].metrics["posthoc/logit_adjustment/acc/overall"] == pytest.approx(expected)
