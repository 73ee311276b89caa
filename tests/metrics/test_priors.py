"""Accuracies under test priors: weighted means of recalls, whose weights run from the frequent to the rare classes."""

from __future__ import annotations

import pytest
import references
import torch

from ncflow.data import longtail_counts
from ncflow.metrics import collapse_metrics
from ncflow.metrics.priors import METRICS, PRIORS, RATIOS, exponential_prior, prior_accuracies

SEEDS = range(3)
SIZES = (1, 2, 3, 10, 100)


def draw_recalls(seed: int, num_classes: int) -> torch.Tensor:
    return torch.rand(num_classes, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def values(recalls: torch.Tensor, class_counts: list[float]) -> dict[str, float]:
    found = prior_accuracies(recalls, torch.tensor(class_counts, dtype=torch.float64))
    return {name: value.item() for name, value in found.items()}


@pytest.mark.parametrize("sizes", [(25, 18, 12, 9, 6, 3), (25, 0, 12, 0, 6, 3), (0, 0, 4, 0, 0, 0)])
@pytest.mark.parametrize("class_counts", [(150, 60, 30, 20, 8, 3), (3, 150, 8, 20, 60, 30), (9, 9, 40, 9, 40, 9)])
@pytest.mark.parametrize("seed", SEEDS)
def test_it_is_what_its_definition_says(seed, class_counts, sizes):
    problem = references.draw_problem(seed, sizes=sizes, spread=2, class_counts=class_counts)
    found = collapse_metrics(*problem.tensors, class_counts=class_counts, only=METRICS)
    assert found == pytest.approx({name: references.METRICS[name](problem) for name in METRICS}, rel=1e-12)


@pytest.mark.parametrize("num_classes", SIZES)
@pytest.mark.parametrize("prior", PRIORS)
def test_a_prior_sums_to_one_and_has_its_ratio(prior, num_classes):
    p = exponential_prior(num_classes, PRIORS[prior])
    assert p.sum().item() == pytest.approx(1, rel=1e-14)
    assert (p[0] / p[-1]).item() == pytest.approx(PRIORS[prior] if num_classes > 1 else 1, rel=1e-12)
    assert torch.allclose(p[1:] / p[:-1], (p[-1:] / p[:1]) ** (1 / max(num_classes - 1, 1)), rtol=1e-12)


@pytest.mark.parametrize("num_classes", SIZES)
@pytest.mark.parametrize("ratio", RATIOS)
def test_the_inverse_ratio_is_the_reverse_order(ratio, num_classes):
    forward, backward = (exponential_prior(num_classes, each) for each in (ratio, 1 / ratio))
    assert torch.allclose(forward.flip(0), backward, rtol=1e-12)


@pytest.mark.parametrize("seed", SEEDS)
def test_backward_is_forward_of_reversed_recalls(seed):
    recalls, counts = draw_recalls(seed, 10), longtail_counts(500, 10, imb_factor=0.01)
    ahead, reversed_ = values(recalls, counts), values(recalls.flip(0), counts)
    for ratio in RATIOS:
        assert ahead[f"backward_{ratio}"] == pytest.approx(reversed_[f"forward_{ratio}"], rel=1e-12)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_ratio_of_one_is_balanced_accuracy(seed):
    problem = references.draw_problem(seed, sizes=(25, 0, 12, 9, 6, 3), spread=2)
    recalls = torch.tensor([references.recall(problem, k) for k in problem.labels], dtype=torch.float64)
    balanced = collapse_metrics(*problem.tensors, class_counts=problem.class_counts, only=["acc/balanced"])
    assert (exponential_prior(len(recalls), 1) @ recalls).item() == pytest.approx(balanced["acc/balanced"], rel=1e-12)


@pytest.mark.parametrize("ratio", RATIOS)
@pytest.mark.parametrize("seed", SEEDS)
def test_the_ratio_of_an_exponential_training_split_gives_its_own_prior(seed, ratio):
    recalls = draw_recalls(seed, 10)
    counts = 700 * ratio ** (-torch.arange(10, dtype=torch.float64) / 9)
    expected = (counts / counts.sum() @ recalls).item()
    assert values(recalls, counts.tolist())[f"forward_{ratio}"] == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("seed", SEEDS)
def test_equal_recalls_have_one_accuracy_under_every_prior(seed):
    (recall,) = draw_recalls(seed, 1).tolist()
    found = values(torch.full((7,), recall, dtype=torch.float64), [90, 50, 50, 20, 9, 5, 1])
    assert found == pytest.approx(dict.fromkeys(PRIORS, recall), rel=1e-12)


def test_the_more_likely_the_recognized_class_the_higher_the_accuracy():
    head_only = values(torch.tensor([1.0, 0, 0], dtype=torch.float64), [100, 10, 1])
    assert sorted(PRIORS, key=head_only.__getitem__, reverse=True) == list(PRIORS)


def test_of_classes_of_one_size_the_later_counts_as_rarer():
    first, last = torch.eye(3, dtype=torch.float64)[[0, 2]]
    assert values(first, [9, 9, 9])["forward_50"] == pytest.approx(50 * values(last, [9, 9, 9])["forward_50"])


def test_a_class_without_samples_leaves_the_ratio_exact():
    counts = [100, 10, 1]
    for missing in range(3):
        recalls = torch.zeros(3, dtype=torch.float64)
        recalls[missing] = torch.nan
        kept = [k for k in range(3) if k != missing]
        recalls[kept[0]] = 1
        assert values(recalls, counts)["forward_50"] == pytest.approx(50 / 51, rel=1e-12)


def test_without_a_classifier_there_are_none():
    problem = references.draw_problem(0)
    features, targets, *_ = problem.tensors
    assert not METRICS.keys() & collapse_metrics(features, targets).keys()


@pytest.mark.parametrize("ratio", [0, -1, float("inf"), float("nan")])
def test_a_ratio_that_is_none_is_refused(ratio):
    with pytest.raises(ValueError, match="a prior needs a finite ratio > 0"):
        exponential_prior(10, ratio)
