"""ncflow: train image classifiers on long-tailed data, watch neural collapse emerge or break, and compare runs."""

from __future__ import annotations

import importlib
import warnings
from typing import TYPE_CHECKING, Any

from ncflow.extras import explain_missing_packages

if TYPE_CHECKING:  # the same names as HOMES, for type checkers
    from ncflow.data import (
        AUGMENTATIONS,
        MIXES,
        SOURCES,
        Batches,
        Recipe,
        Snapshot,
        load_batches,
        load_source,
        longtail_counts,
        sample_indices,
    )
    from ncflow.experiments import EXPERIMENTS
    from ncflow.geometry import (
        FRAMES,
        code_bound,
        etf_distance,
        nearest_etf,
        orthogonal_frame,
        polar_factor,
        simplex_etf,
        softmax_code,
    )
    from ncflow.integrations import collect_features
    from ncflow.measuring import Measurement, measure
    from ncflow.metrics import METRICS, ClassMoments, Metric, NeuralCollapse, collapse_metrics
    from ncflow.nn import (
        BACKBONES,
        HEADS,
        LOSSES,
        PENALTIES,
        Backbone,
        Classifier,
        FixedETFHead,
        FixedFrameHead,
        Head,
        LinearHead,
        NearestETFHead,
        Output,
        PictureClassifier,
        TargetedModel,
        capture,
        create_backbone,
        create_head,
        create_loss,
        create_penalty,
        drift_penalty,
        list_backbones,
        posthoc_adjustment,
    )
    from ncflow.posthoc import POSTHOC
    from ncflow.runs.frame import read_runs
    from ncflow.theory import predicted_optimum, seli_optimum
    from ncflow.training import (
        OPTIMIZERS,
        Analysis,
        EpochRecord,
        Evaluation,
        Objective,
        Splits,
        create_accelerator,
        create_optimizer,
        evaluate_splits,
        fit,
    )

__version__ = "0.2.0"
explain_missing_packages()


if not TYPE_CHECKING:  # type checkers accept any name from a module with __getattr__

    def __getattr__(name: str) -> Any:
        """Load a public name from its module on first use, which keeps `import ncflow` fast."""
        if name in RENAMED:
            warnings.warn(f"ncflow.{name} is now ncflow.{RENAMED[name]}", DeprecationWarning, stacklevel=2)
            name = RENAMED[name]
        if name not in HOMES:
            raise AttributeError(f"module 'ncflow' has no attribute '{name}'")
        return getattr(importlib.import_module(f"ncflow.{HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *HOMES})


HOMES = {
    "AUGMENTATIONS": "data",
    "BACKBONES": "nn",
    "Backbone": "nn",
    "Batches": "data",
    "ClassMoments": "metrics",
    "Classifier": "nn",
    "EXPERIMENTS": "experiments",
    "EpochRecord": "training",
    "Evaluation": "training",
    "FRAMES": "geometry",
    "FixedETFHead": "nn",
    "FixedFrameHead": "nn",
    "HEADS": "nn",
    "Head": "nn",
    "LOSSES": "nn",
    "LinearHead": "nn",
    "METRICS": "metrics",
    "MIXES": "data",
    "Measurement": "measuring",
    "Metric": "metrics",
    "NearestETFHead": "nn",
    "NeuralCollapse": "metrics",
    "OPTIMIZERS": "training",
    "POSTHOC": "posthoc",
    "Splits": "training",
    "Objective": "training",
    "Analysis": "training",
    "Output": "nn",
    "PENALTIES": "nn",
    "PictureClassifier": "nn",
    "Recipe": "data",
    "SOURCES": "data",
    "Snapshot": "data",
    "TargetedModel": "nn",
    "capture": "nn",
    "code_bound": "geometry",
    "collapse_metrics": "metrics",
    "collect_features": "integrations",
    "create_accelerator": "training",
    "create_backbone": "nn",
    "create_head": "nn",
    "create_loss": "nn",
    "create_optimizer": "training",
    "create_penalty": "nn",
    "drift_penalty": "nn",
    "etf_distance": "geometry",
    "evaluate_splits": "training",
    "fit": "training",
    "list_backbones": "nn",
    "load_batches": "data",
    "measure": "measuring",
    "load_source": "data",
    "longtail_counts": "data",
    "nearest_etf": "geometry",
    "orthogonal_frame": "geometry",
    "polar_factor": "geometry",
    "posthoc_adjustment": "nn",
    "predicted_optimum": "theory",
    "read_runs": "runs.frame",
    "sample_indices": "data",
    "seli_optimum": "theory",
    "simplex_etf": "geometry",
    "softmax_code": "geometry",
}
RENAMED = {"class_counts": "longtail_counts"}  # old name -> new name
__all__ = [
    "AUGMENTATIONS",
    "BACKBONES",
    "EXPERIMENTS",
    "FRAMES",
    "HEADS",
    "LOSSES",
    "METRICS",
    "MIXES",
    "OPTIMIZERS",
    "PENALTIES",
    "POSTHOC",
    "SOURCES",
    "Analysis",
    "Backbone",
    "Batches",
    "ClassMoments",
    "Classifier",
    "EpochRecord",
    "Evaluation",
    "FixedETFHead",
    "FixedFrameHead",
    "Head",
    "LinearHead",
    "Measurement",
    "Metric",
    "NearestETFHead",
    "NeuralCollapse",
    "Objective",
    "Output",
    "PictureClassifier",
    "Recipe",
    "Snapshot",
    "Splits",
    "TargetedModel",
    "__version__",
    "capture",
    "code_bound",
    "collapse_metrics",
    "collect_features",
    "create_accelerator",
    "create_backbone",
    "create_head",
    "create_loss",
    "create_optimizer",
    "create_penalty",
    "drift_penalty",
    "etf_distance",
    "evaluate_splits",
    "fit",
    "list_backbones",
    "load_batches",
    "load_source",
    "longtail_counts",
    "measure",
    "nearest_etf",
    "orthogonal_frame",
    "polar_factor",
    "posthoc_adjustment",
    "predicted_optimum",
    "read_runs",
    "sample_indices",
    "seli_optimum",
    "simplex_etf",
    "softmax_code",
]
