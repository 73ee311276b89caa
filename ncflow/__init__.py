"""ncflow: train image classifiers on long-tailed data, watch neural collapse emerge or break, and compare runs."""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Load a public name from its home on first use, so that `import ncflow` costs nothing."""
    if name not in HOMES:
        raise AttributeError(f"module 'ncflow' has no attribute '{name}'")
    return getattr(importlib.import_module(f"ncflow.{HOMES[name]}"), name)


def __dir__() -> list[str]:
    return [*globals(), *HOMES]


HOMES = {
    "BACKBONES": "nn",
    "Backbone": "nn",
    "ClassMoments": "metrics",
    "Classifier": "nn",
    "EXPERIMENTS": "experiments",
    "FixedETFHead": "nn",
    "HEADS": "nn",
    "Head": "nn",
    "LOSSES": "nn",
    "LinearHead": "nn",
    "METRICS": "metrics",
    "Metric": "metrics",
    "NearestETFHead": "nn",
    "NeuralCollapse": "metrics",
    "OPTIMIZERS": "training",
    "SOURCES": "data",
    "Snapshot": "data",
    "TargetedModel": "nn",
    "capture": "nn",
    "class_counts": "data",
    "collapse_metrics": "metrics",
    "create_accelerator": "training",
    "create_backbone": "nn",
    "create_head": "nn",
    "create_loss": "nn",
    "create_optimizer": "training",
    "drift_penalty": "nn",
    "etf_distance": "geometry",
    "evaluate_splits": "training",
    "fit": "training",
    "list_backbones": "nn",
    "load_batches": "data",
    "load_source": "data",
    "nearest_etf": "geometry",
    "polar_factor": "geometry",
    "posthoc_adjustment": "nn",
    "predicted_optimum": "theory",
    "read_runs": "runs.frame",
    "sample_indices": "data",
    "seli_optimum": "theory",
    "simplex_etf": "geometry",
}
