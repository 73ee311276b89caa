"""Without the libraries: plain PyTorch works, and an integration names the package that it needs."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow  # each starts a process

HIDE = """
import importlib.machinery, sys
class Without(importlib.machinery.PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        hidden = name.partition(".")[0] in {hidden}
        return None if hidden else super().find_spec(name, path, target)
sys.meta_path = [Without if finder is importlib.machinery.PathFinder else finder for finder in sys.meta_path]
"""


def python(code: str, *hidden: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", HIDE.replace("{hidden}", repr(hidden)) + code]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("name", ["lightning", "transformers"])
def test_a_missing_library_is_one_message_with_the_command(name):
    done = python(f"import ncflow.integrations.{name}", name, "pytorch_lightning")
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert f"needs the package {name}" in last and f"pip install {name}" in last


def test_the_older_package_of_lightning_is_enough():
    done = python("import ncflow.integrations.lightning as found; print(found.Callback.__module__)", "lightning")
    assert done.stdout.startswith("pytorch_lightning"), done.stderr


def test_plain_pytorch_needs_none_of_them():
    libraries = ["lightning", "pytorch_lightning", "transformers", "torchmetrics", "accelerate", "timm", "matplotlib"]
    code = f"""
import torch
from ncflow import collect_features
model = torch.nn.Linear(4, 3)
with collect_features(model) as found:
    model(torch.randn(12, 4))
    found.add(torch.arange(12) % 3)
assert "nc1/pinv" in found.measure().metrics["train"]
print(sorted(set({libraries}) & set(sys.modules)))
"""
    done = python(code, *libraries)
    assert done.stdout.strip() == "[]", done.stderr
