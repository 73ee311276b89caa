"""Accuracies: groups are means over classes, and their borders are those of the long-tail literature."""

from __future__ import annotations

import math

import pytest
import references
import torch
from sklearn.metrics import f1_score

from ncflow.metrics import accuracy, class_recalls, collapse_metrics

SEEDS = range(3)


def accuracies(predictions, targets, class_counts, ranks=None):
    predictions, targets = torch.tensor(predictions), torch.tensor(targets)
    ranks = (predictions != targets).long() if ranks is None else torch.tensor(ranks)
    found = accuracy.accuracies(predictions, ranks, targets, torch.tensor(class_counts))
    return {name: value.item() for name, value in found.items()}


@pytest.mark.parametrize("sizes", [(25, 18, 12, 9, 6, 3), (25, 0, 12, 0, 6, 3)])
@pytest.mark.parametrize("seed", SEEDS)
def test_it_is_what_its_definition_says(seed, sizes):
    problem = references.draw_problem(seed, sizes=sizes, spread=2)
    found = collapse_metrics(*problem.tensors, class_counts=problem.class_counts)
    names = [name for name in references.METRICS if name.startswith("acc/")]
    expected = {name: references.METRICS[name](problem) for name in names}
    assert {name: found[name] for name in names} == pytest.approx(expected)


def test_groups_are_means_of_recalls_not_shares_of_samples():
    found = accuracies([0, 0, 0, 0, 1, 0], [0, 0, 0, 0, 1, 1], [200, 5])
    f1 = pytest.approx((8 / 9 + 2 / 3) / 2)  # 4 hits of 5 decisions and 4 samples; 1 of 1 and 2
    groups = {"overall": 5 / 6, "balanced": 0.75, "many": 1.0, "few": 0.5, "tail20": 0.5, "worst": 0.5}
    assert found == groups | {"macro_f1": f1}


def test_the_borders_of_the_groups_are_101_100_20_and_19():
    found = accuracies([0, 1, 0, 0], [0, 1, 2, 3], [101, 100, 20, 19])
    assert (found["many"], found["medium"], found["few"]) == (1, 0.5, 0)


@pytest.mark.parametrize("counts, absent", [([500, 200], {"medium", "few"}), ([30, 20], {"many", "few"})])
def test_a_group_without_a_class_is_absent(counts, absent):
    assert {"many", "medium", "few"} - set(accuracies([0, 1], [0, 1], counts)) == absent


def test_a_group_whose_classes_have_no_samples_is_absent():
    assert "few" not in accuracies([0, 1], [0, 1], [500, 200, 3])
    assert "tail20" not in accuracies([0, 1], [0, 1], [500, 200, 3])


@pytest.mark.parametrize("num_classes, tail", [(3, 1), (5, 1), (6, 2), (10, 2), (100, 20)])
def test_the_tail_is_the_rarest_fifth_of_the_classes(num_classes, tail):
    targets = list(range(num_classes))
    predictions = [0] * (num_classes - tail) + targets[num_classes - tail :]
    found = accuracies(predictions, targets, list(range(num_classes, 0, -1)))
    assert found["tail20"] == 1
    predictions[num_classes - tail] = 0
    assert accuracies(predictions, targets, list(range(num_classes, 0, -1)))["tail20"] == pytest.approx(1 - 1 / tail)


def test_top5_counts_ranks_below_five_and_is_absent_for_five_classes():
    assert accuracies([0, 0, 0], [0, 1, 2], [9] * 6, ranks=[0, 4, 5])["top5"] == pytest.approx(2 / 3)
    assert "top5" not in accuracies([0, 0], [0, 1], [9] * 5)


def test_recalls_are_per_class_and_nan_for_a_class_without_samples():
    recalls = class_recalls(torch.tensor([0, 1, 1, 3]), torch.tensor([0, 0, 1, 3]), 4).tolist()
    assert recalls[:2] == [0.5, 1] and math.isnan(recalls[2]) and recalls[3] == 1


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("num_classes", [2, 7, 30])  # of 30 classes some have no samples, some no decisions
def test_macro_f1_is_that_of_scikit_learn_over_classes_with_samples(seed, num_classes):
    generator = torch.Generator().manual_seed(seed)
    predictions, targets = torch.randint(num_classes, (2, 40), generator=generator).tolist()
    labels = sorted(set(targets))
    expected = f1_score(targets, predictions, labels=labels, average="macro", zero_division=0)
    assert accuracies(predictions, targets, [9] * num_classes)["macro_f1"] == pytest.approx(expected, rel=1e-12)


def test_the_worst_class_may_be_any_and_one_without_samples_is_none():
    assert accuracies([0, 0, 1, 2], [0, 1, 1, 2], [9] * 4)["worst"] == 0.5
    assert accuracies([0, 0, 0], [0, 1, 2], [9] * 3)["worst"] == 0
