"""An objective improves in the direction of its metric, and is never one of the test split."""

from __future__ import annotations

import json

import pytest

from ncflow.metrics import METRICS
from ncflow.tuning import parse_objective, refuse_without_validation
from ncflow.tuning.objective import natural_direction


@pytest.mark.parametrize(
    ("key", "maximize"),
    [
        ("val/acc/balanced", True),
        ("val/acc/few", True),
        ("val/posthoc/logit_adjustment/acc/balanced", True),
        ("train/nc3/alignment", True),
        ("train/nc1/pinv", False),
        ("train/nc1/numerical_rank", False),
        ("val/nc4/ncc_mismatch", False),
        ("val/calibration/ece", False),
        ("val/calibration/nll", False),
    ],
)
def test_the_direction_follows_the_metric(key, maximize):
    assert parse_objective(key).maximize == maximize


def test_accuracies_go_up_and_collapse_to_zero_goes_down():
    for name, row in METRICS.items():
        if name.startswith("acc/"):
            assert natural_direction(name) == "maximize"
        if row.collapse == "0":
            assert natural_direction(name) == "minimize"


@pytest.mark.parametrize(
    ("key", "direction", "message"),
    [
        ("test/acc/balanced", "", "choose on the test split.*--objective val/acc/balanced --set dataset.val_fraction"),
        ("acc/balanced", "", "expected an objective of val or train"),
        ("val/", "", "expected an objective"),
        ("val/acc/balance", "", "Did you mean 'acc/balanced'"),
        ("train/drift/norm", "", "add --direction"),
        ("train/drift/norm", "up", "expected --direction"),
    ],
)
def test_other_objectives_are_refused(key, direction, message):
    with pytest.raises(ValueError, match=message):
        parse_objective(key, direction)


def test_a_given_direction_is_taken():
    assert not parse_objective("train/drift/norm", "minimize").maximize


def test_validation_needs_a_validation_part():
    with pytest.raises(ValueError, match="--set dataset.val_fraction=0.1"):
        refuse_without_validation(("train", "test"), parse_objective("val/acc/balanced"))
    refuse_without_validation(("train", "val", "test"), parse_objective("val/acc/balanced"))
    refuse_without_validation(("train", "test"), parse_objective("train/nc1/pinv"))


def test_the_curve_has_the_epochs_that_measured_the_metric(tmp_path):
    for epoch, value in ((2, 0.5), (10, 0.75), (12, None), (14, float("nan"))):
        val = {} if value is None else {"acc/balanced": value}
        (tmp_path / f"metrics_epoch_{epoch}.json").write_text(json.dumps({"epoch": epoch, "val": val}))
    (tmp_path / "metrics_epoch_16.json").write_text("{")
    assert parse_objective("val/acc/balanced").curve(tmp_path) == {2: 0.5, 10: 0.75}
