"""Import MLflow's writer of torch models without what it would import only because it is installed."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from types import ModuleType

# A callback that ncflow does not use. It imports Lightning, which takes 1.6 seconds of a run, and it sets the root
# logger to ERROR, which would drop the warnings of every package.
UNUSED = ("mlflow.pytorch._lightning_autolog",)
INVENTORY = "_MODULES_TO_PACKAGES"  # MLflow's variable; None until it has listed all packages


def import_model_writer() -> ModuleType:
    """Return the module `mlflow.pytorch`. It imports no Lightning, and changes no level of logging."""
    with without(*UNUSED):
        return import_module("mlflow.pytorch")


@contextmanager
def without_inventory() -> Iterator[None]:
    """Inside, MLflow compares requirements with what is installed, but lists no file of any package: 0.9 seconds.

    It lists them to look up names of modules, which matter only where the requirements are not given.
    """
    mapping = import_module("mlflow.utils.requirements_utils")
    if getattr(mapping, INVENTORY, {}) is not None:  # listed already, or another version of MLflow
        yield
        return
    setattr(mapping, INVENTORY, {})
    try:
        yield
    finally:
        setattr(mapping, INVENTORY, None)


@contextmanager
def without(*modules: str) -> Iterator[None]:
    """Inside, importing one of these modules raises ImportError, as if it were not installed. Imported ones stay."""
    hidden = [module for module in modules if module not in sys.modules]
    sys.modules.update(dict.fromkeys(hidden))  # type: ignore[arg-type]  # None is Python's mark for a missing module
    try:
        yield
    finally:
        for module in hidden:
            del sys.modules[module]
