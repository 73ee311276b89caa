"""Optimizers, choices of decayed parameters, and learning-rate schedules, by name."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from ncflow.lookup import check_options, explained_options, lookup
from ncflow.nn.depths import parameter_depths
from ncflow.training.agd import AGD, orthogonal_init

Parameters = Iterable[nn.Parameter] | Iterable[dict[str, Any]]
Schedule = Callable[[float], float]


def create_optimizer(name: str, parameters: Parameters, **options: Any) -> torch.optim.Optimizer:
    """Return the optimizer called `name` of parameters, or of `parameter_groups`.

    None leaves the optimizer's own default. Raises ValueError for options that it does not have.

    Examples:
        >>> import torch
        >>> optimizer = create_optimizer("sgd", torch.nn.Linear(4, 2).parameters(), lr=0.1, weight_decay=5e-4)
        >>> optimizer.param_groups[0]["momentum"]
        0.9
    """
    optimizer = lookup(OPTIMIZERS, name, "optimizer")
    chosen = {option: value for option, value in options.items() if value is not None}
    for option, reason in REFUSALS.get(name, {}).items():
        if (value := chosen.pop(option, 0)) != 0:  # zero means the same as no option
            raise ValueError(f"optimizer '{name}' takes no {option}, got {value}: {reason}")
    check_options(optimizer, chosen, f"optimizer '{name}'")
    with explained_options(f"optimizer '{name}'", chosen):
        try:
            made = optimizer(list(parameters), **chosen)
        except ValueError as error:  # torch's error names neither the optimizer nor the other options
            raise TypeError(error) from error
    for group in made.param_groups:
        group["lr"] *= group.get("lr_scale", 1.0)
    return made


def parameter_groups(module: nn.Module, *, decay: str = "all", layer_decay: float = 1.0) -> list[dict[str, Any]]:
    """Return a module's trainable parameters in groups: with the optimizer's weight decay, and without.

    `decay` selects the parameters with weight decay. "all" selects all. "matrices" selects all but biases and norms'
    scales and shifts. "head" selects those of the classifier head alone. That is the weight decay of the
    unconstrained-feature model, whose other half is the penalty on features.

    A `layer_decay` below 1 scales the learning rate of a classifier's layers, by its power of their distance from the
    head. Clark, Luong, Le and Manning 2020. Raises ValueError for a backbone without layers.
    """
    decays = lookup(DECAYS, decay, "choice of decayed parameters")
    trained = [(name, parameter) for name, parameter in module.named_parameters() if parameter.requires_grad]
    if layer_decay == 1:
        return _groups_by_decay(trained, decays)
    depths, top = _depths(module, layer_decay)
    layers = [[each for each in trained if depths.get(each[0], top) == depth] for depth in range(top + 1)]
    return [
        group | {"lr_scale": layer_decay ** (top - depth)}
        for depth, layer in enumerate(layers)
        for group in _groups_by_decay(layer, decays)
    ]


def _groups_by_decay(
    trained: Sequence[tuple[str, nn.Parameter]], decays: Callable[[str, nn.Parameter], bool]
) -> list[dict[str, Any]]:
    decayed = [parameter for name, parameter in trained if decays(name, parameter)]
    others = [parameter for name, parameter in trained if not decays(name, parameter)]
    groups: list[dict[str, Any]] = [{"params": decayed}, {"params": others, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def _depths(module: nn.Module, layer_decay: float) -> tuple[dict[str, int], int]:
    """Depth by name of each parameter of a classifier's backbone, and that of its head."""
    if not 0 < layer_decay <= 1:
        raise ValueError(f"layer_decay is a factor of the learning rate in (0, 1], got {layer_decay}")
    backbone = getattr(module, "backbone", None)
    depths, top = parameter_depths(backbone) if isinstance(backbone, nn.Module) else ({}, 0)
    if len({*depths.values(), top}) < 2:
        raise ValueError(
            f"layer_decay={layer_decay:g} needs a classifier whose backbone has layers, got "
            f"{type(backbone or module).__name__} without any; use layer_decay=1, or another backbone"
        )
    return {f"backbone.{name}": depth for name, depth in depths.items()}, top


def initialize(name: str, module: nn.Module) -> None:
    """Initialize a module's weights, in place, if the optimizer called `name` needs it; most do not."""
    lookup(OPTIMIZERS, name, "optimizer")
    if name in INITIALIZATIONS:
        INITIALIZATIONS[name](module.parameters())


def create_schedule(name: str, *, warmup: float = 0.0, **options: Any) -> Schedule:
    """Return the schedule called `name`: share of the training done, in [0, 1) -> factor of the learning rate.

    Over the first `warmup` share a second factor rises linearly from 0.1 to 1. Goyal et al. 2017. Raises ValueError for
    options that a schedule does not have, and for values out of range.
    """
    schedule = lookup(SCHEDULES, name, "schedule")
    check_options(schedule, options, f"schedule '{name}'")
    chosen = partial(schedule, **options)
    with explained_options(f"schedule '{name}'", options | {"warmup": warmup}):
        if not 0 <= warmup < 1:
            raise ValueError(f"warmup is a share of the training in [0, 1), got {warmup}")
        chosen(0.0)  # reject options out of range before the first epoch
    return partial(_warmed_up, schedule=chosen, warmup=warmup) if warmup else chosen


def sgd(
    parameters: Parameters,
    *,
    lr: float = 0.1,
    weight_decay: float = 0.0,
    momentum: float = 0.9,
    nesterov: bool = False,
) -> torch.optim.SGD:
    """Gradient descent with heavy-ball momentum, or Nesterov's; weight decay is an L2 term of the gradient."""
    return torch.optim.SGD(parameters, lr=lr, weight_decay=weight_decay, momentum=momentum, nesterov=nesterov)


def adam(parameters: Parameters, *, lr: float = 1e-3, weight_decay: float = 0.0) -> torch.optim.Adam:
    """Adam; weight decay is an L2 term of the gradient.

    [Kingma and Ba 2015](https://arxiv.org/abs/1412.6980).
    """
    return torch.optim.Adam(parameters, lr=lr, weight_decay=weight_decay)


def adamw(parameters: Parameters, *, lr: float = 1e-3, weight_decay: float = 0.0) -> torch.optim.AdamW:
    """Adam with decoupled weight decay.

    [Loshchilov and Hutter 2019](https://arxiv.org/abs/1711.05101).
    """
    return torch.optim.AdamW(parameters, lr=lr, weight_decay=weight_decay)


def rmsprop(
    parameters: Parameters, *, lr: float = 1e-3, weight_decay: float = 0.0, momentum: float = 0.0
) -> torch.optim.RMSprop:
    """RMSprop; weight decay is an L2 term of the gradient. Tieleman and Hinton 2012."""
    return torch.optim.RMSprop(parameters, lr=lr, weight_decay=weight_decay, momentum=momentum)


def agd(parameters: Parameters, *, gain: float = 10.0) -> AGD:
    """Automatic gradient descent, without learning rate, biases or norms' scales and shifts.

    [Bernstein et al. 2023](https://arxiv.org/abs/2304.05187).
    """
    return AGD(parameters, gain=gain)


def cosine(progress: float) -> float:
    """Half a cosine from 1 to 0. Loshchilov and Hutter 2017."""
    return (1 + math.cos(math.pi * progress)) / 2


def step(progress: float, *, milestones: Sequence[float] = (0.5, 0.75), gamma: float = 0.1) -> float:
    """Multiply by `gamma` at each milestone, a share of the training; by default 0.1 after 1/2, 0.01 after 3/4.

    He et al. 2016. For a decay every 40 of 200 epochs, milestones 0.2, 0.4, 0.6 and 0.8.
    """
    if not all(0 < milestone < 1 for milestone in milestones):
        raise ValueError(f"milestones are shares of the training in (0, 1), got {list(milestones)}")
    if not 0 < gamma <= 1:
        raise ValueError(f"schedule 'step' needs gamma in (0, 1], got {gamma}")
    return float(gamma ** sum(progress >= milestone for milestone in milestones))


def exponential(progress: float, *, final: float = 0.01) -> float:
    """Geometric decay from 1 to `final` at the end: final^progress."""
    if not 0 < final <= 1:
        raise ValueError(f"schedule 'exponential' needs final in (0, 1], got {final}")
    return float(final**progress)


def one_cycle(progress: float, *, peak: float = 0.3, div_factor: float = 25.0, final_div_factor: float = 1e4) -> float:
    """Half cosines from 1/div_factor up to 1 at the share `peak`, down to the start at 2·peak, then to nearly 0.

    It ends at 1/(div_factor·final_div_factor); momentum does not change. Smith and Topin 2018, in three phases.
    """
    if not 0 < peak < 0.5 or not div_factor >= 1 or not final_div_factor >= 1:
        raise ValueError(
            "schedule 'one_cycle' needs peak in (0, 0.5), div_factor >= 1 and final_div_factor >= 1, "
            f"got {peak}, {div_factor} and {final_div_factor}"
        )
    low = 1 / div_factor
    if progress < 2 * peak:
        return low + (1 - low) * cosine(abs(progress / peak - 1))
    final = low / final_div_factor
    return final + (low - final) * cosine((progress - 2 * peak) / (1 - 2 * peak))


def constant(progress: float) -> float:
    """The same learning rate throughout."""
    return 1.0


def _warmed_up(progress: float, *, schedule: Schedule, warmup: float) -> float:
    return min(0.1 + 0.9 * progress / warmup, 1.0) * schedule(progress)


OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd": sgd,
    "adam": adam,
    "adamw": adamw,
    "rmsprop": rmsprop,
    "agd": agd,
}
# optimizer -> option of other optimizers -> why this one lacks it
REFUSALS: dict[str, dict[str, str]] = {
    "agd": {
        "lr": "its step follows from the gradients; leave lr null, and scale the step by gain",
        "weight_decay": "its derivation has none; leave weight_decay null or 0",
    }
}
# Optimizers whose weight decay λ is the gradient of (λ/2)‖θ‖², a term of the objective. AdamW's is decoupled: its fixed
# points do not minimize such an objective.
L2_DECAY = frozenset({"sgd", "adam", "rmsprop"})
# Optimizers that divide a step by the size of recent ones: mini-batch steps do not average to the full-batch step.
ADAPTIVE = frozenset({"adam", "adamw", "rmsprop"})
# optimizer -> the initialization, in place, that it is derived for
INITIALIZATIONS: dict[str, Callable[[Iterable[nn.Parameter]], None]] = {"agd": orthogonal_init}
# name -> function of a parameter and its name: whether it has weight decay
DECAYS: dict[str, Callable[[str, nn.Parameter], bool]] = {
    "all": lambda name, parameter: True,
    "matrices": lambda name, parameter: parameter.ndim > 1,
    "head": lambda name, parameter: name.startswith("head."),
}
# name -> factor of the learning rate after a share of the training, in [0, 1)
SCHEDULES: dict[str, Callable[..., float]] = {
    "cosine": cosine,
    "step": step,
    "exponential": exponential,
    "one_cycle": one_cycle,
    "none": constant,
}
