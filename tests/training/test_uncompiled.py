"""Optimizers of a command do not import torch's compiler, and torch wraps them again before it compiles."""

from __future__ import annotations

import subprocess
import sys

import torch

from ncflow.training.uncompiled import WRAPPED, allow_compiler

STEPS = """
import sys, torch
from ncflow.training.uncompiled import allow_compiler, skip_compiler
def train():
    torch.manual_seed(0)
    layer = torch.nn.Linear(3, 2)
    optimizer = torch.optim.LBFGS(layer.parameters(), max_iter=3)
    def closure():
        optimizer.zero_grad()
        loss = layer(torch.ones(4, 3)).square().sum()
        loss.backward()
        return loss
    optimizer.step(closure)
    optimizer.load_state_dict(optimizer.state_dict())
    return layer.weight.detach().clone()
skip_compiler()
plain = train()
before = "torch._dynamo" in sys.modules
allow_compiler()
wrapped = train()
print(before, "torch._dynamo" in sys.modules, torch.equal(plain, wrapped))
"""


def test_no_optimizer_imports_the_compiler_until_it_is_allowed():
    done = subprocess.run([sys.executable, "-c", STEPS], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "True", "True"]


def test_what_torch_has_wrapped_stays_wrapped():
    torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1).zero_grad()
    allow_compiler()
    plain = torch.optim.Optimizer.zero_grad.__wrapped__
    assert getattr(plain, WRAPPED, None) not in (None, plain)
