"""Optimizers of a command do not import torch's compiler, and torch wraps them again before it compiles."""

from __future__ import annotations

import subprocess
import sys

import torch

from ncflow.training.uncompiled import WRAPPED, allow_compiler

STEPS = """
import sys, torch
from ncflow.training.uncompiled import allow_compiler, skip_compiler
CHOICES = {"LBFGS": {"max_iter": 3}, "SGD": {"lr": 0.1, "momentum": 0.9}, "Adam": {}, "AdamW": {}, "RMSprop": {}}
def train(name):
    torch.manual_seed(0)
    layer = torch.nn.Linear(3, 2)
    optimizer = getattr(torch.optim, name)(layer.parameters(), **CHOICES[name])
    seen = []
    def closure():
        seen.append(torch.is_grad_enabled())
        with torch.enable_grad():
            optimizer.zero_grad()
            loss = layer(torch.ones(4, 3)).square().sum()
            loss.backward()
        return loss
    for _ in range(3):
        optimizer.step(closure)
    optimizer.load_state_dict(optimizer.state_dict())
    return layer.weight.detach().clone(), seen
theirs = {optimizer: optimizer.step for optimizer in torch.optim.Optimizer.__subclasses__()}
skip_compiler()
plain = {name: train(name) for name in CHOICES}
before = "torch._dynamo" in sys.modules
for optimizer, step in theirs.items():
    optimizer.step = step
allow_compiler()
wrapped = {name: train(name) for name in CHOICES}
same = [torch.equal(plain[name][0], wrapped[name][0]) and plain[name][1] == wrapped[name][1] for name in CHOICES]
print(before, "torch._dynamo" in sys.modules, all(same))
"""


def test_no_optimizer_imports_the_compiler_until_it_is_allowed():
    done = subprocess.run([sys.executable, "-c", STEPS], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "True", "True"]


def test_what_torch_has_wrapped_stays_wrapped():
    torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1).zero_grad()
    allow_compiler()
    plain = torch.optim.Optimizer.zero_grad.__wrapped__
    assert getattr(plain, WRAPPED, None) not in (None, plain)
