"""Penalties: each against its definition, at collapse, with shares of classes, and over two processes."""

from __future__ import annotations

import math

import pytest
import torch
from references import PENALTIES as OBVIOUS
from torch import Tensor
from torch.nn import functional as F
from two_processes import on_two

from ncflow.geometry import simplex_etf
from ncflow.nn.penalties import PENALTIES, create_penalty, drift_penalty, feature_penalty, needs_hard_targets

K, D, B = 4, 5, 12
COUNTS = [500, 120, 30, 7]
SOFT = [name for name in PENALTIES if not needs_hard_targets(name)]


def batch(seed: int = 0, *, classes: int = K) -> tuple[Tensor, Tensor, Tensor]:
    """Features (B, d), targets (B,) of the first classes in uneven numbers, and weight (K, d); float64."""
    generator = torch.Generator().manual_seed(seed)
    features = 1 + torch.randn(B, D, generator=generator, dtype=torch.float64)
    targets = torch.cat([torch.arange(classes), torch.randint(classes, (B - classes,), generator=generator)])
    return features, targets, torch.randn(K, D, generator=generator, dtype=torch.float64)


def gradient(penalty, features: Tensor, targets: Tensor) -> Tensor:
    features = features.detach().requires_grad_()
    penalty(features, targets).backward()
    return features.grad


@pytest.mark.parametrize("name", PENALTIES)
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("classes", [1, 2, K])
def test_a_penalty_is_its_definition(name, seed, classes):
    features, targets, weight = batch(seed, classes=classes)
    found = create_penalty(name, COUNTS)(features, targets, weight)
    assert found.shape == ()
    assert found.item() == pytest.approx(OBVIOUS[name](features.tolist(), targets.tolist()), rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("name", PENALTIES)
def test_the_gradient_of_a_penalty_is_the_numerical_one(name):
    features, targets, weight = batch()
    penalty = create_penalty(name, COUNTS)
    assert torch.autograd.gradcheck(lambda h: penalty(h, targets, weight), features.requires_grad_())


@pytest.mark.parametrize("name", SOFT)
def test_one_hot_shares_are_classes(name):
    features, targets, weight = batch()
    penalty = create_penalty(name, COUNTS)
    shares = F.one_hot(targets, K).double()
    torch.testing.assert_close(penalty(features, shares, weight), penalty(features, targets, weight))


@pytest.mark.parametrize("name", ["center", "nc1", "nc2"])
def test_a_penalty_on_collapse_is_zero_at_collapse(name):
    etf = simplex_etf(K, D, dtype=torch.float64) + 3.0
    targets = torch.arange(B) % K
    assert create_penalty(name, COUNTS)(etf[targets], targets, etf).item() == pytest.approx(0, abs=1e-20)


def test_supcon_depends_on_directions_alone():
    features, targets, weight = batch()
    penalty = create_penalty("supcon", COUNTS)
    torch.testing.assert_close(penalty(7 * features, targets, weight), penalty(features, targets, weight))


@pytest.mark.parametrize(
    ("name", "options", "reason"),
    [
        ("centre", {}, "Did you mean 'center'"),
        ("supcon", {"temperature": 0.0}, "temperature > 0"),
        ("supcon", {"temprature": 1.0}, "Did you mean 'temperature'"),
    ],
)
def test_a_wrong_penalty_or_option_is_refused(name, options, reason):
    with pytest.raises(ValueError, match=reason):
        create_penalty(name, COUNTS, **options)


def mine(rank: int) -> tuple[slice, ...]:
    return (slice(0, 5), slice(5, B))[rank]


def penalize(rank: int, folder: str) -> None:
    """One of two processes, with uneven parts of one batch."""
    for name in PENALTIES:
        features, targets, weight = batch()
        own = features[mine(rank)].clone().requires_grad_()
        part = len(own) / B
        value = part * create_penalty(name, COUNTS)(own, targets[mine(rank)], weight)
        value.backward()
        torch.save({"value": value.detach(), "gradient": own.grad}, f"{folder}/{name}{rank}.pt")


@pytest.mark.slow
def test_two_processes_have_the_penalty_of_their_common_batch(tmp_path):
    """Each weights its value by its part of the batch, as the loop does; then values and gradients add up."""
    on_two(penalize, str(tmp_path))
    for name in PENALTIES:
        features, targets, weight = batch()
        penalty = create_penalty(name, COUNTS)
        results = [torch.load(tmp_path / f"{name}{rank}.pt", weights_only=True) for rank in range(2)]
        together = torch.cat([result["gradient"] for result in results])
        torch.testing.assert_close(sum(result["value"] for result in results), penalty(features, targets, weight))
        torch.testing.assert_close(together, gradient(lambda h, y, p=penalty, w=weight: p(h, y, w), features, targets))


# --- drift and feature decay, one at a time ---


def test_the_feature_penalty_is_weight_decay_for_features():
    """Half the mean squared norm: its gradient shrinks each of B features by h/B. The others do not matter."""
    features = torch.randn(B, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    norms = [math.hypot(*row) for row in features.tolist()]
    assert feature_penalty(features).item() == pytest.approx(sum(norm**2 for norm in norms) / (2 * B))
    torch.testing.assert_close(gradient(lambda h, _: feature_penalty(h), features, torch.zeros(B)), features / B)
    torch.testing.assert_close(feature_penalty(features.repeat(3, 1)), feature_penalty(features))


def test_the_drift_penalty_is_the_squared_norm_of_the_batch_mean():
    features = torch.randn(B, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    mean = [sum(row[j] for row in features.tolist()) / B for j in range(5)]
    assert drift_penalty(features).item() == pytest.approx(sum(m**2 for m in mean))


def test_the_drift_penalty_is_zero_exactly_for_centered_features():
    features = torch.randn(B, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    centered = features - features.mean(0)
    assert drift_penalty(centered).item() == pytest.approx(0, abs=1e-30)
    assert drift_penalty(centered + 3).item() == pytest.approx(5 * 9)
    grad = gradient(lambda h, _: drift_penalty(h), features, torch.zeros(B))
    torch.testing.assert_close(grad, (2 * features.mean(0) / B).expand(B, 5))
