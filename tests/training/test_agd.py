"""Automatic gradient descent: the published step, the start it is derived for, and what it refuses."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ncflow.nn import HEADS, create_loss
from ncflow.training import Analysis, Objective, create_optimizer, fit
from ncflow.training.agd import AGD, automatic_rate, layer_scale, orthogonal_init, remove_affine
from ncflow.training.optimizers import initialize

SHAPES = {
    "wide": [(3, 5)],
    "tall": [(7, 2)],
    "network": [(8, 3, 3, 3), (6, 8, 1, 1), (4, 6)],
    "depthwise": [(5, 1, 3, 3), (4, 5, 2, 3)],
}


def weights(shapes: list[tuple[int, ...]], *, seed: int = 0) -> list[nn.Parameter]:
    """Gaussian weights with Gaussian gradients, in float64."""
    generator = torch.Generator().manual_seed(seed)
    parameters = [nn.Parameter(torch.randn(shape, generator=generator, dtype=torch.float64)) for shape in shapes]
    for parameter in parameters:
        parameter.grad = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    return parameters


def steps(parameters: list[nn.Parameter], **options: float) -> list[Tensor]:
    """What one step adds to each weight."""
    before = [parameter.detach().clone() for parameter in parameters]
    AGD(parameters, **options).step()
    return [parameter.detach() - old for parameter, old in zip(parameters, before, strict=True)]


def matrices(tensor: Tensor) -> list[np.ndarray]:
    """The matrix itself, or those at each tap of a kernel."""
    array = tensor.detach().numpy()
    return [array[(slice(None), slice(None), *tap)] for tap in np.ndindex(*array.shape[2:])]


def published_steps(gradients: list[Tensor], gain: float) -> list[list[np.ndarray]]:
    """The algorithm of the paper, matrix by matrix."""
    layers = [matrices(gradient) for gradient in gradients]
    summary = 0.0
    for taps in layers:
        for grad in taps:
            summary += math.sqrt(grad.shape[0] / grad.shape[1] / len(taps)) * np.linalg.norm(grad)
    eta = math.log((1 + math.sqrt(1 + 4 * summary / len(layers))) / 2)
    return [
        [
            -gain * eta / len(layers) * math.sqrt(g.shape[0] / g.shape[1] / len(taps)) * g / np.linalg.norm(g)
            for g in taps
        ]
        for taps in layers
    ]


# --- the step ---


@pytest.mark.parametrize("shapes", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("gain", [1.0, 10.0])
@pytest.mark.parametrize("seed", range(3))
def test_a_step_is_that_of_the_paper_matrix_by_matrix(shapes, gain, seed):
    parameters = weights(shapes, seed=seed)
    expected = published_steps([parameter.grad for parameter in parameters], gain)
    for step, taps in zip(steps(parameters, gain=gain), expected, strict=True):
        for matrix, published in zip(matrices(step), taps, strict=True):
            np.testing.assert_allclose(matrix, published, rtol=1e-12)


def test_the_gain_is_ten_unless_said_otherwise():
    for step, expected in zip(steps(weights([(3, 4)])), steps(weights([(3, 4)]), gain=10.0), strict=True):
        assert torch.equal(step, expected)


@pytest.mark.parametrize("summary", [1e-30, 1e-9, 1e-3, 1.0, 50.0, 1e9, 1e30])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_automatic_rate_solves_its_equation_however_small_or_large_the_gradient(summary, dtype):
    """e^η (e^η - 1) = G; the root written with a logarithm of 1 + tiny would be 0 below 1e-7 in float32."""
    eta = automatic_rate(torch.tensor(summary, dtype=dtype)).double().item()
    assert math.exp(eta) * math.expm1(eta) == pytest.approx(summary, rel=1e-4 if dtype == torch.float32 else 1e-12)


@pytest.mark.parametrize("factor", [1e-3, 10.0, 1e6])
def test_a_multiple_of_the_loss_changes_only_the_step_length(factor):
    parameters, scaled = (weights(SHAPES["network"]) for _ in range(2))
    for parameter in scaled:
        parameter.grad *= factor
    ratios = []
    for step, other in zip(steps(parameters), steps(scaled), strict=True):
        ratios.append((other.norm() / step.norm()).item())
        torch.testing.assert_close(other / other.norm(), step / step.norm())
    assert ratios == pytest.approx([ratios[0]] * len(ratios))
    assert min(factor, 1) < ratios[0] < max(factor, 1)
    if factor > 1:
        assert ratios[0] < 1 + math.log(factor)


def test_a_layer_without_gradient_stays_and_changes_nothing_else():
    parameters = weights(SHAPES["network"])
    parameters[0].grad[:, :, 1, 1] = 0
    parameters[1].grad.zero_()
    first, second, third = steps(parameters)
    assert first[:, :, 1, 1].count_nonzero() == 0
    assert second.count_nonzero() == 0
    assert first[:, :, 0, 0].count_nonzero() == first[:, :, 0, 0].numel()
    assert third.isfinite().all() and third.count_nonzero() == third.numel()


def test_a_layer_that_the_loss_does_not_reach_does_not_count():
    reached, with_another = weights([(3, 4)]), weights([(3, 4), (5, 6)])
    reached[0].data, reached[0].grad = with_another[0].data.clone(), with_another[0].grad
    with_another[1].grad = None
    untouched = with_another[1].detach().clone()
    assert torch.equal(steps(with_another)[0], steps(reached)[0])
    assert torch.equal(with_another[1], untouched)


def test_without_any_gradient_nothing_moves():
    weight = nn.Parameter(torch.ones(2, 2))
    AGD([weight]).step()
    assert bool((weight == 1).all())


def test_layers_count_over_all_groups_and_each_group_has_its_gain():
    together, apart = (weights(SHAPES["network"]) for _ in range(2))
    optimizer = AGD([{"params": apart[:1]}, {"params": apart[1:], "lr": 5.0}], gain=10.0)
    before = [parameter.detach().clone() for parameter in apart]
    optimizer.step()
    halves = [1.0, 0.5, 0.5]
    for parameter, old, step, half in zip(apart, before, steps(together), halves, strict=True):
        torch.testing.assert_close(parameter - old, half * step)


def test_a_step_takes_a_closure_and_returns_its_loss():
    weight = nn.Parameter(torch.ones(2, 2))
    optimizer = AGD([weight], gain=1.0)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = weight.square().sum()
        loss.backward()
        return loss

    assert optimizer.step(closure).item() == 4
    assert weight.square().sum() < 4


@pytest.mark.parametrize("depth", [2, 4, 8])
def test_it_trains_networks_of_any_depth_without_being_told_a_learning_rate(depth):
    generator = torch.Generator().manual_seed(0)
    sizes = [5, *[32] * (depth - 1), 3]
    layers = [nn.Linear(before, after, bias=False) for before, after in pairwise(sizes)]
    model = nn.Sequential(*[part for layer in layers for part in (layer, nn.ReLU())][:-1])
    orthogonal_init(model.parameters(), generator=generator)
    x, y = torch.randn(60, 5, generator=generator), torch.arange(60) % 3
    x = F.normalize(x + 2 * torch.eye(3, 5)[y]) * math.sqrt(5)
    optimizer = AGD(model.parameters())
    losses = []
    for _ in range(100):
        optimizer.zero_grad()
        losses.append(F.cross_entropy(model(x), y))
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < 0.5 * losses[0]
    assert (model(x).argmax(1) == y).double().mean() > 0.9


# --- where weights start ---


@pytest.mark.parametrize("shapes", SHAPES.values(), ids=SHAPES)
def test_every_matrix_starts_with_equal_singular_values(shapes):
    parameters = weights(shapes)
    orthogonal_init(parameters)
    for parameter in parameters:
        scale = math.sqrt(parameter.shape[0] / parameter.shape[1] / math.prod(parameter.shape[2:]))
        assert layer_scale(parameter) == pytest.approx(scale)
        for matrix in matrices(parameter):
            assert np.linalg.svd(matrix, compute_uv=False).tolist() == pytest.approx([scale] * min(matrix.shape))


def test_the_start_is_that_of_the_generator_tap_by_tap_another():
    first, again, other = (weights([(4, 3, 2, 2)])[0] for _ in range(3))
    for parameter, seed in ((first, 1), (again, 1), (other, 2)):
        orthogonal_init([parameter], generator=torch.Generator().manual_seed(seed))
    assert torch.equal(first, again) and not torch.allclose(first, other)
    assert not torch.allclose(first[:, :, 0, 0], first[:, :, 0, 1])


def test_frozen_parameters_keep_their_values_whatever_their_shape():
    frozen = nn.Parameter(torch.ones(3), requires_grad=False)
    orthogonal_init([frozen, *weights([(3, 2)])])
    assert frozen.tolist() == [1, 1, 1]


# --- what it refuses, and models without it ---


@pytest.mark.parametrize(
    "module", [nn.Linear(3, 2), nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4)), nn.LayerNorm(5)]
)
def test_biases_and_scales_of_norms_are_refused_before_anything_is_changed(module):
    before = [parameter.detach().clone() for parameter in module.parameters()]
    message = (
        r"AGD is derived for matrices .* without biases and .* shifts, but \d of \d parameters .* of shape \(\d,\)"
    )
    with pytest.raises(ValueError, match=message):
        AGD(module.parameters())
    with pytest.raises(ValueError, match=message):
        orthogonal_init(module.parameters())
    assert all(torch.equal(new, old) for new, old in zip(module.parameters(), before, strict=True))


def test_tokens_and_position_embeddings_are_refused_too():
    with pytest.raises(ValueError, match=r"1 of 2 parameters are neither, the first of shape \(1, 1, 8\)"):
        AGD([nn.Parameter(torch.zeros(4, 3)), nn.Parameter(torch.zeros(1, 1, 8))])


@pytest.mark.parametrize("gain", [0.0, -1.0, math.nan])
def test_a_gain_that_leads_nowhere_is_refused(gain):
    with pytest.raises(ValueError, match="gain > 0"):
        AGD([nn.Parameter(torch.zeros(4, 3))], gain=gain)


PARTS = {
    "linear": lambda: nn.Linear(4, 4),
    "convolution": lambda: nn.Sequential(nn.Unflatten(1, (4, 1, 1)), nn.Conv2d(4, 4, 1), nn.Flatten()),
    "batch_norm": lambda: nn.BatchNorm1d(4),
    "layer_norm": lambda: nn.LayerNorm(4),
    "group_norm": lambda: nn.GroupNorm(2, 4),
    "prelu": lambda: nn.PReLU(4),
}


@pytest.mark.parametrize("part", PARTS.values(), ids=PARTS)
def test_without_biases_a_module_computes_what_it_computed_with_biases_of_zero(part):
    module, x = part(), torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    for name, parameter in module.named_parameters():
        if name.endswith("bias"):
            nn.init.zeros_(parameter)
    expected = module(x)
    assert remove_affine(module) is module
    torch.testing.assert_close(module(x), expected)
    assert not any(name.endswith("bias") for name, _ in module.named_parameters())


@pytest.mark.slow
@pytest.mark.parametrize("head", HEADS)
def test_a_resnet_without_biases_learns_the_digits_with_every_head(head, make_classifier, whole):
    classifier = make_classifier(head, temperature=5.0)
    remove_affine(classifier.backbone)
    initialize("agd", classifier)
    records = list(
        fit(
            classifier,
            whole,
            Objective(create_loss("ce")),
            create_optimizer("agd", classifier.parameters()),
            epochs=6,
            analysis=Analysis(every=9),
        )
    )
    assert records[-1].loss < 0.5 * records[0].loss
    assert records[-1].accuracy > 0.8
    assert records[0].lr == 10  # the gain
