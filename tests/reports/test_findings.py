"""Findings: effects of choices are differences of means, shown next to the spread over seeds."""

from __future__ import annotations

import pytest

from ncflow.reports.arms import arms
from ncflow.reports.findings import findings, verdict
from ncflow.runs.reader import Run, load_runs


def runs_of(make_run, accuracy: dict[tuple[str, str], tuple[float, ...]], nc1: dict[str, float]) -> list[Run]:
    """Runs of heads and losses with the given accuracies over seeds, and an nc1 for each head."""
    runs = []
    for (head, loss), values in accuracy.items():
        for seed, value in enumerate(values):
            (run,) = load_runs(
                [make_run(f"{head}-{loss}-{seed}", head=head, seed=seed, overrides={"train": {"loss": loss}})]
            )
            run.analyses[-1]["test"]["acc/balanced"] = value
            run.analyses[-1]["train"]["nc1/pinv"] = nc1[head]
            runs.append(run)
    return runs


ACCURACY = {
    ("linear", "ce"): (0.70, 0.72),
    ("linear", "balanced_softmax"): (0.88, 0.90),
    ("nearest_etf", "ce"): (0.71, 0.73),
    ("nearest_etf", "balanced_softmax"): (0.88, 0.90),
}
NC1 = {"linear": 0.5, "nearest_etf": 0.05}


def test_the_largest_effect_on_accuracy_comes_first_with_its_direction(make_run):
    loss, head, *_ = findings(arms(runs_of(make_run, ACCURACY, NC1)))
    assert loss.startswith("Balanced accuracy on the test split: loss moves it by 17.5 points, from ce to")
    assert "does not separate" not in loss and "(std) is 1.4 points." in loss
    assert "head moves it by 0.5 points, from linear to nearest_etf; this does not separate from the spread" in head


def test_collapse_is_compared_by_factors(make_run):
    *_, head, loss = findings(arms(runs_of(make_run, ACCURACY, NC1)))
    assert "nc1 on the training split: head moves it by a factor of 10, from nearest_etf to linear" in head
    assert loss == "nc1 on the training split: loss does not move it."


def test_one_seed_has_no_spread_and_no_verdict(make_run):
    sentences = findings(arms(runs_of(make_run, {key: values[:1] for key, values in ACCURACY.items()}, NC1)))
    assert len(sentences) == 4
    moved = [sentence for sentence in sentences if "does not move it" not in sentence]
    assert len(moved) == 3 and all(sentence.endswith("One seed: no spread is known.") for sentence in moved)


def test_an_incomplete_grid_has_no_findings(make_run):
    three = {key: values for key, values in ACCURACY.items() if key != ("linear", "ce")}
    assert findings(arms(runs_of(make_run, three, NC1))) == []


def test_a_choice_without_effect_is_named(make_run):
    same = {key: (0.7, 0.8) for key in ACCURACY}
    assert findings(arms(runs_of(make_run, same, NC1)))[:2] == [
        "Balanced accuracy on the test split: head does not move it.",
        "Balanced accuracy on the test split: loss does not move it.",
    ]


@pytest.mark.parametrize("count", [1, 2])
def test_a_single_arm_has_no_findings(make_run, count):
    chosen = {("linear", "ce"): ACCURACY["linear", "ce"][:count]}
    assert findings(arms(runs_of(make_run, chosen, NC1))) == []


def test_an_effect_too_small_to_print_is_not_a_factor_of_one(make_run):
    close = findings(arms(runs_of(make_run, ACCURACY, {"linear": 0.5, "nearest_etf": 0.501})))
    assert "nc1 on the training split: head moves it by less than a factor of 1.02." in close
    assert not any("a factor of 1," in sentence or "a factor of 1.00" in sentence for sentence in close)


def test_the_verdict_names_the_best_arm_its_lead_and_what_it_does_not_separate_from(make_run):
    said = verdict(arms(runs_of(make_run, ACCURACY, NC1)))
    assert said.startswith(
        "Of 4 arms, linear, loss=balanced_softmax has the highest balanced test accuracy: 89.0 % (mean"
    )
    assert "0.0 points above the next, nearest_etf, loss=balanced_softmax" in said
    assert said.endswith(
        "is 1.4 points: linear, loss=balanced_softmax does not separate from nearest_etf, loss=balanced_softmax."
    )


def test_a_lead_of_more_than_twice_the_spread_is_called_one(make_run):
    far = {("linear", "ce"): (0.50, 0.51), ("nearest_etf", "ce"): (0.90, 0.91)}
    assert verdict(arms(runs_of(make_run, far, NC1))).endswith("the lead is more than 2 times as large.")


def test_the_verdict_on_one_arm_or_one_seed_claims_no_spread(make_run):
    (one,) = load_runs([make_run("one")])
    assert verdict(arms([one])).endswith("balanced test accuracy (one seed). One seed: no spread is known.")
    one.analyses[-1]["test"].clear()
    assert verdict(arms([one])) == ""


def test_the_report_and_the_page_state_the_findings(make_run, tmp_path, monkeypatch):
    from ncflow import stages

    monkeypatch.setattr("ncflow.reports.page.FIGURES", {})
    folders = [make_run("a", head="linear"), make_run("b", head="nearest_etf")]
    page, table = stages.report(folders, tmp_path / "page", title="heads")
    assert table.notes and all(sentence in page.read_text() for sentence in table.notes)
