"""More classes than dimensions: the moments give what the K x K matrices give, and no such matrix is built."""

from __future__ import annotations

import pytest
import torch

from ncflow.geometry import seli_frame
from ncflow.metrics import collapse_metrics, crowded, imbalance, nc2, nc3, pairs, squared_error
from ncflow.metrics.frame import Frame
from ncflow.metrics.moments import ClassMoments

SEEDS = range(3)
SHAPES = [(300, 24), (9, 3), (8, 6), (8, 1)]  # K and d; the third has one direction less than a simplex ETF


def draw(seed: int, num_classes: int, num_features: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """rows and others (K, d), class sizes (K,)."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(num_classes, num_features, generator=generator, dtype=torch.float64)
    others = rows + 0.3 * torch.randn(rows.shape, generator=generator, dtype=torch.float64)
    counts = torch.logspace(3, 0, num_classes, dtype=torch.float64).round()
    return rows, others, counts[torch.randperm(num_classes, generator=generator)]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("num_classes, num_features", SHAPES)
def test_errors_are_those_of_the_whole_gram_matrices(seed, num_classes, num_features):
    rows, others, counts = draw(seed, num_classes, num_features)
    frame, other = Frame(rows), Frame(others - others.mean(0))
    assert frame.crowded
    weight, means = seli_frame(counts)
    both = {
        "etf": (crowded.etf_error(frame), nc2.etf_error(rows @ rows.mT)),
        "orthogonal": (crowded.orthogonal_error(frame), nc2.orthogonal_error(rows @ rows.mT)),
        "dual": (crowded.etf_error(frame, other), nc3.etf_error(rows, other.rows)),
        "seli of weight": (crowded.seli_error(frame, counts, of="weight"), imbalance.seli_error(frame.gram, weight)),
        "seli of means": (crowded.seli_error(other, counts, of="means"), imbalance.seli_error(other.gram, means)),
    }
    for name, (found, whole) in both.items():
        assert found.item() == pytest.approx(whole.item(), rel=1e-9), name


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("share", [1.0, 1e-9])
def test_the_norm_of_a_product_holds_where_its_trace_cancels(seed, share):
    """Rows in one half of the space, others in the other half but for a share: their product is small."""
    rows, others, _ = draw(seed, 12, 8)
    rows[:, 4:], others[:, :4] = 0, others[:, :4] * share
    product = torch.linalg.matrix_norm(rows @ others.mT) / (Frame(rows).norm * Frame(others).norm)
    assert crowded.gram_norm(Frame(rows), Frame(others)).item() == pytest.approx(product.item(), rel=1e-6)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("num_classes, num_features", SHAPES)
def test_axes_are_those_of_the_contrasts(seed, num_classes, num_features):
    frame = Frame(draw(seed, num_classes, num_features)[0])
    s, axes = frame.axes
    torch.testing.assert_close(s, frame.svd[1], rtol=1e-12, atol=0)
    torch.testing.assert_close(axes @ axes.mT, torch.eye(len(axes), dtype=torch.float64))
    torch.testing.assert_close((axes @ frame.svd[2].mT).abs().diagonal(), torch.ones(len(axes), dtype=torch.float64))


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("noise", [0.5, 1e-7])
def test_the_squared_error_is_that_of_the_matrix_of_outputs(seed, noise):
    rows, others, _ = draw(seed, 30, 5)
    generator, targets = torch.Generator().manual_seed(seed), torch.arange(120) % 30
    features = rows[targets] + noise * torch.randn(120, 5, generator=generator, dtype=torch.float64)
    bias = torch.randn(30, generator=generator, dtype=torch.float64)
    moments = ClassMoments.from_features(features, targets, 30)
    outputs = features @ others.mT + bias
    whole = (outputs - torch.eye(30, dtype=torch.float64)[targets]).square().sum(1).mean() / 2
    found = squared_error.loss(moments, moments.within_cov, others, bias)
    assert found.item() == pytest.approx(whole.item(), rel=1e-11)


@pytest.mark.parametrize("noise", [0.5, 1e-9])
def test_metrics_do_not_depend_on_the_size_of_tiles(noise, monkeypatch):
    rows, weight, _ = draw(0, 40, 7)
    generator, targets = torch.Generator().manual_seed(1), torch.arange(400) % 40
    features = rows[targets] + noise * torch.randn(400, 7, generator=generator, dtype=torch.float64)
    whole = collapse_metrics(features, targets, weight)
    monkeypatch.setattr(pairs, "TILE", 9)
    assert collapse_metrics(features, targets, weight) == pytest.approx(whole, rel=1e-11, abs=1e-14)


def test_many_classes_need_no_matrix_of_all_pairs(monkeypatch):
    """With a tile of 16 rows, no tensor of the measurement has K² numbers."""
    rows, weight, _ = draw(0, 200, 5)
    targets = torch.arange(400) % 200
    features = rows[targets] + 0.1 * torch.randn(400, 5, generator=torch.Generator().manual_seed(1)).double()
    monkeypatch.setattr(pairs, "TILE", 16)
    monkeypatch.setattr("ncflow.metrics.nc4.BATCH", 4000)
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, arguments=(), options=None):
            nonlocal largest
            made = function(*arguments, **(options or {}))
            for value in made if isinstance(made, tuple | list) else [made]:
                largest = max(largest, value.numel() if isinstance(value, torch.Tensor) else 0)
            return made

    with Watch():
        collapse_metrics(features, targets, weight)
    assert largest < 200 * 200
