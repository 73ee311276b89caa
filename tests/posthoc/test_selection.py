"""Options are chosen on validation data alone, and a method that the run does not allow is skipped or refused."""

from __future__ import annotations

import math

import pytest
import references
import torch

from ncflow.lookup import fact, facts
from ncflow.posthoc import POSTHOC, Frozen, Lacking, LinearMap, Unseen, choose, freeze_features, measure_posthoc
from ncflow.posthoc.selection import NEEDS
from ncflow.training.evaluation import logit_metrics

CHOOSING = [name for name in POSTHOC if fact(POSTHOC[name], "candidates")]


def draw(seed: int = 0) -> tuple[Frozen, Unseen, Unseen]:
    """Frozen features, and two other splits of the same clusters."""
    problem = references.draw_problem(seed, spread=1.5)
    frozen = freeze_features(*problem.tensors)
    generator = torch.Generator().manual_seed(seed)
    splits = []
    for _ in range(2):
        targets = torch.arange(6).repeat_interleave(20)
        noise = torch.randn(120, 8, generator=generator, dtype=torch.float64)
        features = frozen.class_means[targets] + 1.5 * noise
        splits.append(Unseen(features, frozen.classifier(features), targets))
    return frozen, *splits


def balanced(classifier: LinearMap, data: Unseen) -> float:
    hits = classifier(data.features).argmax(1) == data.targets
    return torch.stack([hits[data.targets == k].double().mean() for k in range(6)]).mean().item()


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", CHOOSING)
def test_no_candidate_is_better_on_validation_data(name, seed):
    frozen, validation, _ = draw(seed)
    choice = choose(POSTHOC[name], frozen, validation)
    assert choice.chosen_by == "val"
    for option, candidates in fact(POSTHOC[name], "candidates").items():
        for value in candidates:
            other = POSTHOC[name](frozen, **choice.options | {option: value})
            assert balanced(choice.classifier, validation) >= balanced(other, validation)


@pytest.mark.parametrize("name", CHOOSING)
def test_without_validation_data_the_defaults_are_used_and_named(name):
    frozen, *_ = draw()
    choice = choose(POSTHOC[name], frozen)
    assert choice.chosen_by == "default"
    torch.testing.assert_close(choice.classifier, POSTHOC[name](frozen))


def test_the_default_wins_a_tie():
    @facts(candidates={"tau": (0.0, 1.0, 2.0)})
    def same(frozen: Frozen, *, tau: float = 1.0) -> LinearMap:
        return frozen.classifier

    frozen, validation, _ = draw()
    assert choose(same, frozen, validation).options == {"tau": 1.0}


def test_a_change_of_the_test_split_changes_no_choice():
    frozen, validation, test = draw()
    shuffled = test._replace(targets=test.targets.flip(0))
    found = [measure_posthoc(frozen, {"test": split, "val": validation}) for split in (test, shuffled)]
    assert found[0]["options"] == found[1]["options"] and found[0]["test"] != found[1]["test"]


@pytest.mark.parametrize("name", POSTHOC)
def test_the_accuracies_are_those_of_the_new_logits(name):
    frozen, _, test = draw()
    results = measure_posthoc(frozen, {"test": test}, methods=[name])
    expected = logit_metrics(
        f"posthoc/{name}/acc", POSTHOC[name](frozen)(test.features), test.targets, [25, 18, 12, 9, 6, 3]
    )
    assert expected.items() <= results["test"].items()
    own = balanced(frozen.classifier, test)
    assert results["test"]["acc/balanced"] == pytest.approx(own)
    assert {name.split("/")[1] for name in results["test"] if name.startswith("posthoc/")} == {name}
    assert all(math.isfinite(value) for value in results["test"].values())


@pytest.mark.parametrize("need", NEEDS)
def test_a_run_that_lacks_something_has_the_methods_that_work_without_it(need):
    frozen, _, test = draw()
    results = measure_posthoc(frozen, {"test": test}, lacks={need: "it has another one"})
    skipped = [name for name in POSTHOC if need in fact(POSTHOC[name], "needs", ())]
    assert [*results["skipped"]] == skipped != []
    assert {*results["chosen_by"]} == {*POSTHOC} - {*skipped}
    assert results["skipped"][skipped[0]] == f"{skipped[0]} needs {NEEDS[need]}, but it has another one"
    with pytest.raises(Lacking, match=f"{skipped[0]} needs .*, but it has another one"):
        measure_posthoc(frozen, {"test": test}, methods=[skipped[0]], lacks={need: "it has another one"})


def test_an_unknown_method_is_refused_with_the_nearest_name():
    frozen, _, test = draw()
    with pytest.raises(ValueError, match="unknown post-hoc method 'tau_nrom'. Did you mean 'tau_norm'"):
        measure_posthoc(frozen, {"test": test}, methods=["tau_nrom"])
