"""Post-hoc classifiers: each is its definition, keeps its identities, and rejects what it cannot work with."""

from __future__ import annotations

import pytest
import references
import torch
from torch.nn import functional as F

from ncflow.geometry import simplex_etf
from ncflow.lookup import fact, options_of
from ncflow.nn import posthoc_adjustment
from ncflow.posthoc import POSTHOC, Frozen, Lacking, freeze_features
from ncflow.posthoc.selection import NEEDS
from ncflow.posthoc.trained import class_balanced_loss

SEEDS = range(3)
SMALL = {"sizes": (9, 5, 3), "num_features": 3, "class_counts": (9, 5, 3)}
OPTIONS = {"tau": 0.6, "weight_decay": 0.02, "decay": 0.05, "bound": 0.3}  # away from every default


def freeze(problem: references.Problem) -> Frozen:
    return freeze_features(*problem.tensors)


def options(name: str) -> dict[str, float]:
    return {option: OPTIONS[option] for option in fact(POSTHOC[name], "candidates", {})}


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", POSTHOC)
def test_every_row_is_its_definition(name, seed):
    problem = references.draw_problem(seed, **SMALL)
    weight, bias = references.POSTHOC[name](problem, **options(name))
    found = POSTHOC[name](freeze(problem), **options(name))
    tolerance = 1e-3 if "steps" in options_of(POSTHOC[name]) else 1e-10  # of the minimizers that see values only
    torch.testing.assert_close(found.weight, torch.from_numpy(weight), rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(found.bias, torch.from_numpy(bias), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", POSTHOC)
def test_every_row_gives_a_linear_map_that_is_the_same_each_time(name):
    frozen = freeze(references.draw_problem(0))
    first, second = POSTHOC[name](frozen), POSTHOC[name](frozen)
    assert first.weight.shape == frozen.weight.shape and first.bias.shape == frozen.bias.shape
    assert torch.equal(first.weight, second.weight) and torch.equal(first.bias, second.bias)
    assert torch.isfinite(first.weight).all() and torch.isfinite(first.bias).all()


@pytest.mark.parametrize("name", POSTHOC)
def test_candidates_are_options_with_defaults_and_needs_have_words(name):
    row = POSTHOC[name]
    for option, candidates in fact(row, "candidates", {}).items():
        assert options_of(row)[option].default in candidates
    assert {*fact(row, "needs", ())} <= {*NEEDS}


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("tau", [0.0, 0.5, 1.0])
def test_logit_adjustment_is_the_adjustment_of_the_logits(seed, tau):
    frozen = freeze(references.draw_problem(seed))
    found = POSTHOC["logit_adjustment"](frozen, tau=tau)(frozen.features)
    expected = posthoc_adjustment(frozen.classifier(frozen.features), frozen.class_counts, tau=tau)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("name", [name for name in POSTHOC if "tau" in options_of(POSTHOC[name])])
def test_tau_0_is_the_classifier_itself(name):
    frozen = freeze(references.draw_problem(0))
    weight, bias = POSTHOC[name](frozen, tau=0.0)
    assert torch.equal(weight, frozen.weight) and torch.equal(bias, frozen.bias)


@pytest.mark.parametrize("name", ["logit_adjustment", "multiplicative"])
def test_balanced_classes_have_the_same_decisions(name):
    frozen = freeze(references.draw_problem(0, sizes=(7,) * 6, class_counts=(7,) * 6))
    found = POSTHOC[name](frozen)(frozen.features)
    assert torch.equal(found.argmax(1), frozen.classifier(frozen.features).argmax(1))


def test_tau_norm_1_has_unit_rows():
    weight, _ = POSTHOC["tau_norm"](freeze(references.draw_problem(0)), tau=1.0)
    torch.testing.assert_close(torch.linalg.vector_norm(weight, dim=1), torch.ones(6, dtype=weight.dtype))


@pytest.mark.parametrize("seed", SEEDS)
def test_ncm_decides_for_the_nearest_class_mean(seed):
    problem = references.draw_problem(seed, spread=2.0)
    nearest = [min(range(6), key=lambda k: ((h - problem.means[k]) ** 2).sum()) for h in problem.features]
    frozen = freeze(problem)
    assert POSTHOC["ncm"](frozen)(frozen.features).argmax(1).tolist() == nearest


@pytest.mark.parametrize("seed", SEEDS)
def test_means_that_are_an_etf_give_its_rows_and_the_nearest_mean(seed):
    generator = torch.Generator().manual_seed(seed)
    etf = simplex_etf(5, 8, generator=generator, dtype=torch.float64)
    shift = torch.randn(8, generator=generator, dtype=torch.float64)
    frozen = freeze_features(3 * etf + shift, torch.arange(5), torch.zeros(5, 8))
    weight, bias = POSTHOC["nearest_etf"](frozen)
    torch.testing.assert_close(weight, etf)
    torch.testing.assert_close(bias, -etf @ shift)
    samples = torch.randn(200, 8, generator=generator, dtype=torch.float64) + shift
    assert torch.equal((samples @ weight.T + bias).argmax(1), POSTHOC["ncm"](frozen)(samples).argmax(1))


@pytest.mark.parametrize("seed", SEEDS)
def test_the_weighted_loss_is_that_of_class_balanced_batches(seed):
    problem = references.draw_problem(seed)
    frozen = freeze(problem)
    found = class_balanced_loss(frozen.classifier(frozen.features), frozen).item()
    assert found == pytest.approx(references.class_balanced_loss(problem, problem.weight, problem.bias))


@pytest.mark.parametrize("seed", SEEDS)
def test_crt_ends_where_the_gradient_vanishes(seed):
    frozen = freeze(references.draw_problem(seed))
    weight, bias = (part.requires_grad_() for part in POSTHOC["crt"](frozen, weight_decay=1e-3))
    samples = F.cross_entropy(frozen.features @ weight.T + bias, frozen.targets, reduction="none")
    loss = torch.stack([samples[frozen.targets == k].mean() for k in range(6)]).mean()
    (loss + 5e-4 * (weight.square().sum() + bias.square().sum())).backward()
    assert max(part.grad.abs().max() for part in (weight, bias)) < 1e-6


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("decay", [1e-4, 1e-2, 1.0])
def test_learned_scales_never_raise_the_loss(seed, decay):
    frozen = freeze(references.draw_problem(seed))
    found = POSTHOC["lws"](frozen, decay=decay)(frozen.features)
    before = class_balanced_loss(frozen.classifier(frozen.features), frozen)
    assert class_balanced_loss(found, frozen) <= before


def test_scales_held_at_1_are_the_classifier_itself():
    frozen = freeze(references.draw_problem(0))
    weight, bias = POSTHOC["lws"](frozen, decay=1e9)
    torch.testing.assert_close((weight, bias), (frozen.weight, frozen.bias), rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("bound", [0.0, 0.5, 1.0])
def test_max_norm_keeps_its_bound_and_a_step_leads_back(seed, bound):
    frozen = freeze(references.draw_problem(seed))
    decay, norms = 1e-2, torch.linalg.vector_norm(frozen.weight, dim=1)
    radius = norms.min() + bound * (norms.max() - norms.min())
    weight, bias = (part.requires_grad_() for part in POSTHOC["max_norm"](frozen, bound=bound, weight_decay=decay))
    assert (torch.linalg.vector_norm(weight, dim=1) <= radius * (1 + 1e-12)).all()
    loss = class_balanced_loss(frozen.features @ weight.T + bias, frozen)
    (loss + decay / 2 * (weight.square().sum() + bias.square().sum())).backward()
    moved = weight.detach() - weight.grad
    shortened = moved * (radius / torch.linalg.vector_norm(moved, dim=1, keepdim=True)).clamp(max=1)
    torch.testing.assert_close(shortened, weight.detach(), rtol=1e-6, atol=1e-6)
    assert bias.grad.abs().max() < 1e-6


def test_without_a_binding_bound_max_norm_is_crt():
    frozen = freeze(references.draw_problem(0))
    free = POSTHOC["crt"](frozen, weight_decay=0.5)
    bounded = POSTHOC["max_norm"](frozen, bound=1.0, weight_decay=0.5)
    torch.testing.assert_close(bounded, free, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", ["crt", "lws", "max_norm"])
def test_too_few_steps_are_reported(name):
    with pytest.warns(UserWarning, match=f"{name} stopped after 1 steps"):
        POSTHOC[name](freeze(references.draw_problem(0)), steps=1)


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("logit_adjustment", {"tau": -1.0}),
        ("multiplicative", {"tau": float("inf")}),
        ("tau_norm", {"tau": float("nan")}),
        ("crt", {"weight_decay": 0.0}),
        ("crt", {"steps": 0}),
        ("lws", {"decay": -1.0}),
        ("max_norm", {"bound": 1.5}),
    ],
)
def test_an_option_out_of_range_is_refused(name, given):
    with pytest.raises(ValueError, match="expected a finite|needs bound in"):
        POSTHOC[name](freeze(references.draw_problem(0)), **given)


def test_what_the_classifier_lacks_is_said():
    problem = references.draw_problem(0, num_features=4)
    with pytest.raises(Lacking, match="nearest_etf needs num_features >= num_classes - 1, got 4 and 6; use ncm"):
        POSTHOC["nearest_etf"](freeze(problem))
    problem.weight[2] = 0
    with pytest.raises(Lacking, match="tau_norm needs classifier rows of positive length, got a shortest of 0"):
        POSTHOC["tau_norm"](freeze(problem))


def test_features_that_do_not_fit_are_refused():
    features, targets, weight, bias = references.draw_problem(0).tensors
    with pytest.raises(ValueError, match=r"need samples in every class, got class sizes \[25, 18, 12, 9, 6, 3, 0\]"):
        freeze_features(features, targets, torch.cat([weight, weight[:1]]))
    with pytest.raises(ValueError, match="class_counts must be the numbers of targets"):
        freeze_features(features, targets, weight, bias, [1, 2, 3, 4, 5, 6])
    with pytest.raises(ValueError, match="weight must have shape"):
        freeze_features(features, targets, weight[:, :-1], bias)


def test_a_missing_bias_is_zero_and_float32_becomes_float64():
    features, targets, weight, _ = references.draw_problem(0).tensors
    frozen = freeze_features(features.float(), targets, weight.float())
    assert not frozen.bias.any() and {t.dtype for t in (frozen.features, frozen.weight)} == {torch.float64}
