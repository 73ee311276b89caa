"""Import MLflow's writer of torch models without what it would import only because it is installed."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from types import ModuleType

# mlflow.pytorch imports Lightning to offer its callback, and Lightning imports transformers: 1.6 seconds of a run.
UNUSED = ("pytorch_lightning", "lightning")


def import_model_writer() -> ModuleType:
    """Return the module `mlflow.pytorch`. It imports no Lightning, unless this process already has it."""
    with without(*UNUSED):
        return import_module("mlflow.pytorch")


@contextmanager
def without(*packages: str) -> Iterator[None]:
    """Inside, importing one of these packages raises ImportError, as if it were not installed. Imported ones stay."""
    hidden = [package for package in packages if package not in sys.modules]
    sys.modules.update(dict.fromkeys(hidden))  # type: ignore[arg-type]  # None is Python's mark for a missing module
    try:
        yield
    finally:
        for package in hidden:
            del sys.modules[package]
