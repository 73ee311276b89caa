"""The parts of a run that several processes share, and those that each has for itself."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from ncflow import assembly, stages
from ncflow.params import make_params


@pytest.fixture
def begin(tmp_path):
    """The weights that a process begins with and the first number that its layers draw."""
    params = make_params({"dataset": {"name": "digits", "imb_factor": 0.02}, "model": {"image_size": 8}, "seed": 3})
    images = stages.snapshot(params, tmp_path / "digits")

    def begin(rank: int, count: int) -> tuple[torch.Tensor, float]:
        accelerator = SimpleNamespace(device=torch.device("cpu"), process_index=rank, num_processes=count)
        classifier, _, _ = assembly.start(params, images, accelerator, "fp32", None)
        return torch.nn.utils.parameters_to_vector(classifier.parameters()), torch.rand(()).item()

    return begin


def test_all_processes_begin_with_the_same_weights_and_draw_their_own_dropout(begin):
    (alone, drawn), *several = begin(0, 1), begin(0, 3), begin(1, 3), begin(2, 3)
    assert all(torch.equal(weights, alone) for weights, _ in several)
    assert several[0][1] == drawn
    assert len({number for _, number in several}) == 3
