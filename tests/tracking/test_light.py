"""Writing a model imports only what it needs, and leaves the logging of others alone."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib import import_module

import pytest

from ncflow.tracking.light import INVENTORY, without, without_inventory

IMPORTS = """
import json, logging, sys
from ncflow.tracking.light import import_model_writer
writer = import_model_writer()
heavy = [name for name in ("pytorch_lightning", "transformers", "timm", "torchvision") if name in sys.modules]
print(json.dumps([hasattr(writer, "save_model"), heavy, logging.getLogger().level, logging.getLogger().handlers]))
"""


def test_the_model_writer_imports_no_lightning_and_drops_no_warning():
    done = subprocess.run([sys.executable, "-c", IMPORTS], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == [True, [], 30, []]


def test_a_hidden_module_can_be_imported_afterwards(monkeypatch):
    monkeypatch.delitem(sys.modules, "wave", raising=False)
    with without("wave"), pytest.raises(ImportError):
        import_module("wave")
    assert import_module("wave").__name__ == "wave"


def test_requirements_are_compared_without_listing_all_packages(monkeypatch):
    from mlflow.utils import requirements_utils as theirs

    def refuse():
        raise AssertionError("listed all packages")

    monkeypatch.setattr(theirs, INVENTORY, None)
    monkeypatch.setattr(theirs.importlib_metadata, "packages_distributions", refuse)
    with without_inventory():
        assert theirs._check_requirement_satisfied("torch>=1") is None
        assert theirs._check_requirement_satisfied("torch==0.1").package_name == "torch"
    assert getattr(theirs, INVENTORY) is None


def test_an_inventory_that_is_there_is_kept(monkeypatch):
    from mlflow.utils import requirements_utils as theirs

    there = {"yaml": ["PyYAML"]}
    monkeypatch.setattr(theirs, INVENTORY, there)
    with without_inventory():
        assert getattr(theirs, INVENTORY) is there
    assert getattr(theirs, INVENTORY) is there
