"""Free features: images that number samples, rows that are features, and training that ends where theory says."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from ncflow.data import SOURCES, Snapshot, load_batches
from ncflow.data.decoding import fit_square
from ncflow.data.images import ImageSource
from ncflow.nn import Classifier, create_head, create_loss
from ncflow.nn.free_features import FreeFeatures, free_features, sample_numbers
from ncflow.theory import Optimum, fixed_etf_feature_norm, predicted_optimum
from ncflow.training import SCHEDULES, Analysis, FeatureObjective, Objective, Splits, create_optimizer, fit

SIZES = [8, 16, 32, 48]


def numbered(numbers: Sequence[int]) -> np.ndarray:
    """uint8 (N, 8, 8): the binary digits of each number in black and white, lowest first, then their complements."""
    digits = np.array([[int(digit) for digit in f"{number:032b}"[::-1]] for number in numbers], dtype=np.uint8)
    return 255 * np.concatenate([digits, 1 - digits], axis=1).reshape(-1, 8, 8)


def images(numbers: Sequence[int], size: int = 8) -> Tensor:
    """(B, 3, S, S), enlarged and normalized as a batch of training is."""
    pixels = fit_square(torch.from_numpy(numbered(numbers)).unsqueeze(1), size, "float32").float()
    return ((pixels - pixels.mean()) / pixels.std()).expand(-1, 3, -1, -1).contiguous()


# --- the backbone ---


@pytest.mark.parametrize("size", SIZES)
def test_a_number_survives_enlarging_and_normalizing(size):
    numbers = [0, 1, 2, 255, 256, 65_535, 1_000_000, 2**31 - 1, 2**31, 2**32 - 1, 0x55555555, 0xAAAAAAAA, 0x33CC33CC]
    numbers += np.random.default_rng(0).integers(2**32, size=200).tolist()
    batch = images(numbers, size)
    for form in (batch, 0.01 * batch + 7, batch.to(memory_format=torch.channels_last), batch.double()):
        assert sample_numbers(form).tolist() == numbers


def test_the_features_of_an_image_are_the_row_of_its_number():
    backbone = FreeFeatures(50, 7)
    numbers = [3, 49, 0, 3]
    for training in (True, False):
        assert torch.equal(backbone.train(training)(images(numbers)), backbone.features[numbers])
    assert backbone.num_features == 7


def test_only_rows_of_a_batch_have_a_gradient_and_repeats_add_up():
    backbone = FreeFeatures(10, 4)
    backbone(images([2, 5, 2])).sum().backward()
    assert backbone.features.grad is not None
    assert backbone.features.grad.tolist() == [[{2: 2.0, 5: 1.0}.get(row, 0.0)] * 4 for row in range(10)]


def test_one_seed_gives_one_set_of_features_of_about_unit_length():
    first, same, other = (torch.manual_seed(seed) and free_features() for seed in (0, 0, 1))
    assert torch.equal(first.features, same.features) and not torch.equal(first.features, other.features)
    assert first.features.shape == (1000, 512)
    assert first.features.square().sum(1).mean().item() == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize("numbers", [[5], [0, 1, 2**32 - 1]])
def test_images_that_number_no_sample_are_refused(numbers):
    with pytest.raises(ValueError, match=f"number 5 samples from 0, got number {numbers[-1]}; .* dataset 'ufm'"):
        FreeFeatures(5, 3)(images(numbers))


@pytest.mark.parametrize("shape", [(1, 3, 12, 12), (1, 3, 8, 16), (1, 3, 4, 4)])
def test_images_of_another_form_are_refused(shape):
    with pytest.raises(ValueError, match="square images of a multiple of 8 pixels, got"):
        FreeFeatures(5, 3)(torch.zeros(shape))


@pytest.mark.parametrize("sizes", [(0, 4), (4, 0)])
def test_no_samples_and_no_features_are_refused(sizes):
    with pytest.raises(ValueError, match=f"num_samples and num_features >= 1, got {sizes[0]}, {sizes[1]}"):
        FreeFeatures(*sizes)


# --- training ---


def train(
    loss: str, counts: Sequence[int], decay: float, *, lr: float, head: str = "linear", steps: int = 1000
) -> tuple[Tensor, Tensor, Tensor]:
    """Full-batch training with the same decay on both sides: features (N, d), targets (N,), weight (K, d), float64."""
    torch.manual_seed(0)
    targets = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    classifier = Classifier(
        FreeFeatures(len(targets), 2 * len(counts)), create_head(head, 2 * len(counts), len(counts))
    )
    optimizer = create_optimizer("sgd", classifier.parameters(), lr=lr, weight_decay=decay)
    criterion, batch = create_loss(loss, counts), images(range(len(targets)))
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = lr * SCHEDULES["cosine"](step / steps)
        optimizer.zero_grad()
        criterion(classifier(batch, targets).logits, targets).backward()
        optimizer.step()
    return classifier.backbone.features.detach().double(), targets, classifier.head.weight.detach().double()


def collapsed(features: Tensor, targets: Tensor, weight: Tensor) -> Optimum:
    """Class means and weight, after making sure that every feature has reached the mean of its class."""
    counts = torch.bincount(targets)
    means = torch.stack([features[targets == k].mean(0) for k in range(len(counts))])
    torch.testing.assert_close(features, means[targets], rtol=0, atol=1e-4)
    return Optimum(weight, means, counts.double())


def assert_same_geometry(found: Optimum, expected: Optimum) -> None:
    """Norms to 1e-3 of the largest, cosines of living classes to 1e-3."""
    for norms, cosines in (("weight_norms", "weight_cosines"), ("mean_norms", "mean_cosines")):
        ideal = getattr(expected, norms)
        torch.testing.assert_close(getattr(found, norms), ideal, rtol=1e-3, atol=1e-3 * ideal.max().item() + 1e-5)
        alive = ideal > 0
        pairs = (getattr(each, cosines)[alive][:, alive] for each in (found, expected))
        torch.testing.assert_close(*pairs, rtol=0, atol=1e-3)


@pytest.mark.parametrize(
    "loss, counts, decay, lr",
    [
        pytest.param("ce", [10] * 4, 5e-3, 5, id="balanced cross-entropy"),
        pytest.param("ce", [10] * 4, 0.09, 5, id="balanced cross-entropy beyond c = 1/K"),
        pytest.param("mse", [40, 20, 8, 3], 1e-2, 2, id="imbalanced squared error"),
        pytest.param("mse", [40, 20, 5, 3], 4e-2, 2, id="imbalanced squared error, two classes dead"),
    ],
)
def test_training_ends_at_the_optimum_of_theory(loss, counts, decay, lr):
    expected = predicted_optimum(loss, counts, lambda_w=decay, lambda_h=decay)
    features, targets, weight = train(loss, counts, decay, lr=lr)
    assert_same_geometry(collapsed(features, targets, weight), expected)
    objective = FeatureObjective(create_loss(loss), weight_decay=decay, row_decay=decay, optimum=expected)
    head = create_head("linear", weight.shape[1], len(counts)).double()
    head.weight.data.copy_(weight)
    assert -1e-12 < objective(features, targets, head)["objective/gap"] < 1e-6


@pytest.mark.parametrize("rare, cosine", [(8, 1.0), (24, 0.208)])
def test_rare_classifiers_coincide_below_the_threshold_of_ten_and_not_above(rare, cosine):
    counts = [200] * 3 + [rare] * 3
    decay = math.sqrt(10) / sum(counts)
    found = collapsed(*train("ce", counts, decay, lr=20, steps=800))
    assert_same_geometry(found, predicted_optimum("ce", counts, lambda_w=decay, lambda_h=decay))
    assert found.weight_cosines[-1, -2].item() == pytest.approx(cosine, abs=1e-3)


def test_before_a_fixed_etf_all_features_become_equally_long_whatever_their_class():
    counts, decay = [30, 9, 1], 5e-3
    features, targets, etf = train("ce", counts, decay, lr=5, head="fixed_etf")
    expected = fixed_etf_feature_norm(counts, lambda_h=decay) * etf[targets]
    torch.testing.assert_close(features, expected, rtol=0, atol=1e-3)


@pytest.mark.slow
def test_numbered_images_train_to_the_predicted_metrics(tmp_path, monkeypatch):
    """Source, snapshot, batches, loop and metrics as for any data set; the test split is the whole source."""
    monkeypatch.setitem(SOURCES, "numbered", source_of_numbered_images)
    data = Snapshot.create(tmp_path / "data", name="numbered", imb_type="step", imb_factor=0.1)
    assert data.class_counts == [40, 40, 4, 4]
    options = {"image_size": 8, "batch_size": 1000}
    torch.manual_seed(0)
    classifier = Classifier(free_features(num_samples=160, num_features=9), create_head("linear", 9, 4))
    train, test = (load_batches(data, split, **options) for split in ("train", "test"))
    how = {"epochs": 800, "schedule": SCHEDULES["cosine"], "analysis": Analysis(every=800)}
    optimizer = create_optimizer("sgd", classifier.parameters(), lr=5, weight_decay=3e-3)
    *_, last = fit(classifier, Splits(train, test, data.class_counts), Objective(create_loss("ce")), optimizer, **how)
    means = last.analysis["train"].class_means
    expected = predicted_optimum("ce", data.class_counts, lambda_w=3e-3, lambda_h=3e-3)
    found = Optimum(classifier.head.weight.detach().double(), means.double(), expected.class_counts)
    assert_same_geometry(found, expected)
    assert last.analysis["train"].metrics["nc1/quotient"] < 1e-6


def source_of_numbered_images(root: Path | None, split: str) -> ImageSource:
    """Four classes of 40 samples, one number each; there is no unseen sample, so both splits are the same."""
    targets, names = np.repeat(np.arange(4), 40), ["a", "b", "c", "d"]
    return ImageSource("numbered", numbered(range(160)), targets, names, is_training=split == "test")


def test_free_features_can_be_exported():
    """MLflow keeps models as exported graphs."""
    from ncflow.data.numbered import number_images

    model = FreeFeatures(num_samples=6, num_features=4).eval()
    images = torch.from_numpy(number_images(6)).unsqueeze(1).expand(-1, 3, -1, -1).float()
    exported = torch.export.export(model, (images,)).module()
    torch.testing.assert_close(exported(images), model(images))
