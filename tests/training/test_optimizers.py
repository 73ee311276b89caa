"""Optimizers, what they decay, and schedules: each is itself, takes its own options and no others."""

from __future__ import annotations

import inspect
import math

import pytest
import torch

from ncflow.training.agd import AGD, layer_scale
from ncflow.training.optimizers import (
    ADAPTIVE,
    DECAYS,
    INITIALIZATIONS,
    L2_DECAY,
    OPTIMIZERS,
    REFUSALS,
    SCHEDULES,
    create_optimizer,
    create_schedule,
    initialize,
    parameter_groups,
)

CLASSES = {
    "sgd": torch.optim.SGD,
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "rmsprop": torch.optim.RMSprop,
    "agd": AGD,
}
GRADIENT_METHODS = [name for name in CLASSES if name != "agd"]  # those with a learning rate and weight decay


def parameters() -> list[torch.nn.Parameter]:
    return [torch.nn.Parameter(torch.tensor([[1.0, -2.0]], dtype=torch.float64))]


def normed_model() -> torch.nn.Module:
    """A body with a norm, and a head with a bias."""
    model = torch.nn.Sequential()
    model.add_module("body", torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4)))
    model.add_module("head", torch.nn.Linear(4, 2))
    return model


def test_every_optimizer_has_its_class_here():
    assert CLASSES.keys() == OPTIMIZERS.keys(), "add a line to CLASSES"


@pytest.mark.parametrize("name", CLASSES)
def test_a_name_is_its_own_class_with_optional_options(name):
    assert type(create_optimizer(name, parameters())) is CLASSES[name]
    assert type(create_optimizer(name, parameters(), lr=None, weight_decay=None, momentum=None)) is CLASSES[name]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_options_arrive(name):
    """AGD keeps its gain where schedules look for the learning rate."""
    options = [p.name for p in inspect.signature(OPTIMIZERS[name]).parameters.values() if p.kind is p.KEYWORD_ONLY]
    values = {option: 0.01 * number for number, option in enumerate(options, start=1)}
    group = create_optimizer(name, parameters(), **values).param_groups[0]
    assert {option: group["lr" if option == "gain" else option] for option in options} == values


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_factor_on_the_rate_scales_the_first_step(name):
    steps = []
    for factor in (1.0, 0.5):
        (parameter,) = weights = parameters()
        optimizer = create_optimizer(name, weights)
        optimizer.param_groups[0]["lr"] *= factor
        before = parameter.detach().clone()
        parameter.grad = torch.tensor([[3.0, 0.25]], dtype=torch.float64)
        optimizer.step()
        steps.append(parameter.detach() - before)
    torch.testing.assert_close(steps[1], steps[0] / 2)


@pytest.mark.parametrize("name", GRADIENT_METHODS)
def test_default_rates_are_those_of_the_experiments_and_weight_decay_is_off(name):
    group = create_optimizer(name, parameters()).param_groups[0]
    assert group["lr"] == (0.1 if name == "sgd" else 1e-3)
    assert group["weight_decay"] == 0
    assert group.get("momentum", 0) == (0.9 if name == "sgd" else 0)


@pytest.mark.parametrize("name", ["adam", "adamw"])
def test_an_option_that_an_optimizer_lacks_is_refused_and_not_ignored(name):
    with pytest.raises(ValueError, match=f"unknown option of optimizer '{name}' 'momentum'.*lr, weight_decay"):
        create_optimizer(name, parameters(), lr=0.1, momentum=0.9)


@pytest.mark.parametrize(("name", "option"), [(name, option) for name in REFUSALS for option in REFUSALS[name]])
def test_an_option_that_makes_no_sense_is_refused_with_the_reason(name, option):
    with pytest.raises(ValueError, match=f"optimizer '{name}' takes no {option}, got 0.1: .*; leave {option} null"):
        create_optimizer(name, parameters(), **{option: 0.1})
    assert create_optimizer(name, parameters(), **{option: 0.0})


def test_an_unknown_optimizer_is_answered_with_the_nearest():
    with pytest.raises(ValueError, match="unknown optimizer 'amadw'. Did you mean 'adamw'"):
        create_optimizer("amadw", parameters(), lr=0.1)
    with pytest.raises(ValueError, match="unknown optimizer 'agdd'. Did you mean 'agd'"):
        initialize("agdd", torch.nn.Linear(2, 2))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_generator_of_parameters_is_fine_and_every_parameter_moves(name):
    model = torch.nn.Linear(3, 2, bias=name != "agd")
    before = [p.detach().clone() for p in model.parameters()]
    optimizer = create_optimizer(name, (p for p in model.parameters()))
    model(torch.ones(4, 3)).square().sum().backward()
    optimizer.step()
    assert all(not torch.equal(p, old) for p, old in zip(model.parameters(), before, strict=True))


@pytest.mark.parametrize("name", GRADIENT_METHODS)
def test_without_a_gradient_only_decoupled_weight_decay_shrinks_at_its_own_rate(name):
    """An L2 term is a gradient, which the adaptive methods scale to the learning rate whatever its size."""
    (parameter,) = weights = parameters()
    optimizer = create_optimizer(name, weights, lr=0.1, weight_decay=0.01)
    parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    shrunk = {"sgd": 1 - 0.1 * 0.01, "adamw": 1 - 0.1 * 0.01}
    if name in shrunk:
        assert parameter[0].tolist() == pytest.approx([shrunk[name], -2 * shrunk[name]])
    else:
        step = {"adam": 0.1, "rmsprop": 0.1 / math.sqrt(1 - 0.99)}[name]
        assert parameter[0].tolist() == pytest.approx([1 - step, -2 + step], abs=2e-5)


# --- what decays ---


@pytest.mark.parametrize("decay", DECAYS)
def test_groups_hold_every_trainable_parameter_once_and_no_group_is_empty(decay):
    model = normed_model()
    model.body[0].weight.requires_grad_(False)
    groups = parameter_groups(model, decay=decay)
    grouped = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(grouped) == sorted(id(parameter) for parameter in model.parameters() if parameter.requires_grad)
    assert all(group["params"] for group in groups)


@pytest.mark.parametrize(
    ("decay", "decayed"),
    [
        ("all", ["body.0.weight", "body.0.bias", "body.1.weight", "body.1.bias", "head.weight", "head.bias"]),
        ("matrices", ["body.0.weight", "head.weight"]),
        ("head", ["head.weight", "head.bias"]),
    ],
)
def test_weight_decay_shrinks_exactly_what_it_is_said_to_shrink(decay, decayed):
    model = normed_model()
    for parameter in model.parameters():
        torch.nn.init.ones_(parameter).grad = torch.zeros_like(parameter)
    create_optimizer("sgd", parameter_groups(model, decay=decay), lr=0.1, weight_decay=0.5).step()
    shrunk = {name for name, parameter in model.named_parameters() if not bool((parameter == 1).any())}
    assert shrunk == set(decayed)
    assert all(bool((dict(model.named_parameters())[name] == 0.95).all()) for name in decayed)


def test_an_unknown_choice_of_decayed_parameters_is_refused():
    with pytest.raises(ValueError, match="unknown choice of decayed parameters 'matrix'.*all, matrices, head"):
        parameter_groups(normed_model(), decay="matrix")


# --- where weights start ---


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_only_agd_starts_elsewhere_than_the_model_was_built(name):
    model = torch.nn.Linear(6, 4, bias=False)
    before = model.weight.detach().clone()
    initialize(name, model)
    assert torch.equal(model.weight, before) == (name not in INITIALIZATIONS)
    if name == "agd":
        torch.testing.assert_close(model.weight @ model.weight.mT, layer_scale(model.weight) ** 2 * torch.eye(4))


# --- schedules ---


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_schedule_stays_above_zero_and_no_higher_than_the_given_rate(name):
    factors = [SCHEDULES[name](epoch / 200) for epoch in range(200)]
    assert max(factors) == pytest.approx(1)
    assert all(0 < factor <= 1 for factor in factors)


@pytest.mark.parametrize("name", [name for name in SCHEDULES if name != "one_cycle"])
def test_a_schedule_starts_at_one_and_never_rises(name):
    factors = [SCHEDULES[name](epoch / 200) for epoch in range(200)]
    assert factors[0] == 1
    assert factors == sorted(factors, reverse=True)


@pytest.mark.parametrize("name", SCHEDULES)
def test_every_option_of_a_schedule_changes_it(name):
    changed = {"milestones": [0.1, 0.3], "gamma": 0.5, "final": 0.3, "peak": 0.2, "div_factor": 5.0}
    changed["final_div_factor"] = 2.0
    for option, p in inspect.signature(SCHEDULES[name]).parameters.items():
        if p.kind is p.KEYWORD_ONLY:
            schedule, plain = create_schedule(name, **{option: changed[option]}), create_schedule(name)
            assert max(abs(schedule(epoch / 10) - plain(epoch / 10)) for epoch in range(10)) > 1e-3, option


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("warmup", [0.05, 0.5])
def test_warmup_raises_the_rate_from_a_tenth_to_the_schedule(name, warmup):
    plain, schedule = create_schedule(name), create_schedule(name, warmup=warmup)
    assert schedule(0.0) == pytest.approx(0.1 * plain(0.0))
    assert schedule(warmup / 2) == pytest.approx(0.55 * plain(warmup / 2))
    for progress in (warmup, (1 + warmup) / 2, 0.999):
        assert schedule(progress) == pytest.approx(plain(progress))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("cosin", {}, "unknown schedule 'cosin'. Did you mean 'cosine'"),
        ("cosine", {"gamma": 0.1}, "unknown option of schedule 'cosine' 'gamma'. Choices: none"),
        ("cosine", {"warmup": 1.0}, r"warmup is a share of the training in \[0, 1\), got 1"),
        ("step", {"milestones": [60, 80]}, r"milestones are shares of the training in \(0, 1\), got \[60, 80\]"),
        ("step", {"gamma": 0.0}, r"gamma in \(0, 1\], got 0"),
        ("exponential", {"final": 0.0}, r"final in \(0, 1\], got 0"),
        ("one_cycle", {"peak": 0.5}, r"peak in \(0, 0.5\).* got 0.5, 25.0 and 10000.0"),
        ("one_cycle", {"div_factor": 0.5}, "div_factor >= 1"),
        ("one_cycle", {"final_div_factor": 0.5}, "final_div_factor >= 1"),
    ],
)
def test_unknown_schedules_options_and_values_are_refused_at_once(name, options, message):
    with pytest.raises(ValueError, match=message):
        create_schedule(name, **options)


def test_cosine_is_half_way_in_the_middle_and_ends_at_zero():
    cosine = SCHEDULES["cosine"]
    assert cosine(0.5) == pytest.approx(0.5)
    assert cosine(1.0) == pytest.approx(0)
    assert cosine(0.25) + cosine(0.75) == pytest.approx(1)


@pytest.mark.parametrize("epochs", [4, 40, 200])
def test_step_falls_to_a_tenth_and_a_hundredth_at_its_milestones(epochs):
    factors = [SCHEDULES["step"](epoch / epochs) for epoch in range(epochs)]
    half, quarter = epochs // 2, epochs // 4
    assert factors == pytest.approx([1] * half + [0.1] * quarter + [0.01] * quarter)


def torch_factors(scheduler, *, steps: int) -> list[float]:
    """The factors that one of torch's schedulers gives on the way."""
    (group,) = scheduler.optimizer.param_groups
    factors = []
    for _ in range(steps):
        factors.append(group["lr"])
        scheduler.optimizer.step()
        scheduler.step()
    return factors


def test_step_with_even_milestones_is_torchs_step_schedule():
    schedule = create_schedule("step", milestones=[0.2, 0.4, 0.6, 0.8], gamma=0.5)
    scheduler = torch.optim.lr_scheduler.StepLR(torch.optim.SGD(parameters(), lr=1.0), step_size=40, gamma=0.5)
    assert [schedule(epoch / 200) for epoch in range(200)] == pytest.approx(torch_factors(scheduler, steps=200))


def test_exponential_is_torchs_with_the_same_end():
    schedule = create_schedule("exponential", final=0.05)
    optimizer = torch.optim.SGD(parameters(), lr=1.0)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, gamma=0.05 ** (1 / 50))
    assert [schedule(epoch / 50) for epoch in range(51)] == pytest.approx(torch_factors(scheduler, steps=51))


def test_one_cycle_is_torchs_in_three_phases():
    """torch counts steps from 0 and the last one in: of its 1001 the turns are at pct_start·1001 - 1 and twice that."""
    schedule = create_schedule("one_cycle", peak=0.3)
    options = {"max_lr": 1.0, "total_steps": 1001, "pct_start": 301 / 1001, "three_phase": True}
    scheduler = torch.optim.lr_scheduler.OneCycleLR(torch.optim.SGD(parameters(), lr=1.0, momentum=0.9), **options)
    expected = torch_factors(scheduler, steps=1000)
    assert [schedule(step / 1000) for step in range(1000)] == pytest.approx(expected)


def test_no_schedule_keeps_the_rate():
    assert {SCHEDULES["none"](epoch / 10) for epoch in range(10)} == {1.0}


def resting_place(
    name: str, *, every: int, lr: float = 4e-3, weight_decay: float = 0.3, steps: int = 5_000, start: float = 0.2
) -> float:
    """Where θ rests under every/2 (θ - 1)² in one of `every` steps, as free features in mini-batches, and weight decay.

    The mean over steps is ½(θ - 1)² + (λ/2) θ², least at 1/(1 + λ).
    """
    theta = torch.nn.Parameter(torch.tensor([start], dtype=torch.float64))
    momentum = {"momentum": 0.0} if name == "sgd" else {}
    optimizer = create_optimizer(name, [theta], lr=lr, weight_decay=weight_decay, **momentum)
    last = []
    for step in range(steps):
        theta.grad = every * (theta.detach() - 1) if step % every == 0 else torch.zeros_like(theta)
        optimizer.step()
        last.append(theta.item())
    return sum(last[-10 * every :]) / (10 * every)


@pytest.mark.parametrize("name", GRADIENT_METHODS)
def test_weight_decay_is_an_objective_term_exactly_where_stated(name):
    least = 1 / (1 + 0.3)
    assert (abs(resting_place(name, every=1) - least) < 1e-2) is (name in L2_DECAY)


@pytest.mark.slow
@pytest.mark.parametrize("name", GRADIENT_METHODS)
def test_mini_batches_have_the_objective_of_all_samples_but_under_adaptive_steps(name):
    least = 1 / (1 + 0.3)
    found = resting_place(name, every=300, lr=4.5e-4, steps=10_000, start=0.7)
    assert (abs(found - least) < 2e-2) is (name not in ADAPTIVE)


def test_what_is_said_of_optimizers_is_said_of_those_there_are():
    assert (L2_DECAY | ADAPTIVE).issubset(OPTIMIZERS)
