"""Batch norms over all processes: with one they are torch's own, and GPUs' quick ones compute what was there before."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from two_processes import on_two

from ncflow.nn import create_backbone, processes
from ncflow.nn.processes import (
    common_batch_norm,
    common_batch_norms,
    rows_of_processes,
    sum_over_processes,
    synchronize_batch_norms,
)

SHAPES = {"vectors": (7, 4), "maps": (5, 4, 3, 2), "one pixel": (2, 4, 1, 1)}


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("seed", range(3))
def test_in_one_process_it_equals_torchs_batch_norm(shape, affine, seed):
    generator = torch.Generator().manual_seed(seed)
    random = [torch.randn(size, generator=generator, dtype=torch.float64) for size in (shape, shape, (4,), (4,))]
    outcomes = []
    for norm in (common_batch_norm, lambda *inputs, **options: F.batch_norm(*inputs, training=True, **options)):
        images, upstream, weight, bias = (tensor.clone().requires_grad_() for tensor in random)
        statistics = torch.zeros(4).double(), torch.ones(4).double()
        learned = (weight, bias) if affine else (None, None)
        output = norm(images, *statistics, *learned, momentum=0.3, eps=1e-3)
        output.backward(upstream.detach())
        outcomes.append([output, images.grad, *statistics, *([weight.grad, bias.grad] if affine else [])])
    torch.testing.assert_close(*outcomes, rtol=1e-10, atol=1e-12)


def test_training_batch_norms_and_no_other_layer_go_over_all_processes(monkeypatch):
    seen = []
    monkeypatch.setattr(processes, "count_processes", lambda: 2)
    monkeypatch.setattr(processes, "sum_over_processes", lambda tensor: seen.append(len(tensor)) or 2 * tensor)
    evaluated = nn.BatchNorm1d(5).eval()
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.LayerNorm(4), nn.Linear(4, 5), evaluated)
    x = torch.randn(1, 3)  # one sample here and one there
    with common_batch_norms():
        model(x)
    assert seen == [4 + 1, 4]  # sums and count, then squares
    assert evaluated.num_batches_tracked == 0


def add_and_collect(rank: int) -> None:
    """Sums and rows of both processes, their gradients to second order, and no warning on the way."""
    generator = torch.Generator().manual_seed(0)
    parts = [torch.randn(size, 3, generator=generator, dtype=torch.float64) for size in (2, 4)]
    mine = parts[rank].clone().requires_grad_()
    whole = torch.cat(parts).requires_grad_()
    first = (0, len(parts[0]))[rank]
    with warnings.catch_warnings(action="error"):
        rows, start = rows_of_processes(mine)
        total = sum_over_processes(mine.sum(0))
        assert type(total) is torch.Tensor and start == first
        torch.testing.assert_close(rows, whole)
        torch.testing.assert_close(total, whole.sum(0))
        assert torch.equal(sum_over_processes(torch.tensor([rank + 1, 5])), torch.tensor([3, 10]))
        # Each process has half of the value, as each has a part of the loss.
        (found,) = torch.autograd.grad(((total**3).sum() + (rows**3).sum()) / 2, mine, create_graph=True)
        (found_again,) = torch.autograd.grad((found**2).sum(), mine)
    (expected,) = torch.autograd.grad((whole.sum(0) ** 3).sum() + (whole**3).sum(), whole, create_graph=True)
    (expected_again,) = torch.autograd.grad((expected**2).sum(), whole)
    torch.testing.assert_close(found, expected[first : first + len(mine)])
    torch.testing.assert_close(found_again, expected_again[first : first + len(mine)])


def test_sums_over_processes_have_gradients_and_give_no_warning():
    on_two(add_and_collect)


def test_half_precision_is_normalized_in_float32_and_returned_as_half():
    images = torch.randn(64, 4, generator=torch.Generator().manual_seed(0))
    output = common_batch_norm(images.bfloat16(), None, None)
    assert output.dtype == torch.bfloat16
    expected = F.batch_norm(images.bfloat16().float(), None, None, training=True)
    torch.testing.assert_close(output.float(), expected, rtol=1e-2, atol=1e-2)


@pytest.mark.slow
def test_synchronized_batch_norms_keep_parameters_and_activations(monkeypatch):
    """timm's batch norms hold an activation, which torch's own conversion drops."""
    monkeypatch.setattr(processes, "count_processes", lambda: 2)
    torch.manual_seed(0)
    backbone = create_backbone("mobilenetv4_small", image_size=32).eval()
    images, parameters = torch.randn(2, 3, 32, 32), set(backbone.parameters())
    before = backbone(images)
    assert synchronize_batch_norms(backbone, torch.device("cpu")) is backbone
    converted = synchronize_batch_norms(backbone, torch.device("cuda"))
    assert torch.equal(converted(images), before)
    assert set(converted.parameters()) == parameters
    norms = [m for m in converted.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    assert norms and all(isinstance(norm, nn.SyncBatchNorm) for norm in norms)
