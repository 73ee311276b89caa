"""Training and analysis: the only package that uses Accelerate."""

from accelerate.utils import set_seed

from ncflow.training.agd import AGD, remove_affine
from ncflow.training.agreement import agree, from_first, refuse_unshared
from ncflow.training.average import MovingAverage
from ncflow.training.compiling import refuse_compiling
from ncflow.training.evaluation import Analysis, Evaluation, Splits, evaluate, evaluate_splits
from ncflow.training.faults import Disconnected, OutOfMemory, explained_faults, is_out_of_memory
from ncflow.training.hardware import create_accelerator, keep_freed_memory, resolve_precision
from ncflow.training.loop import Diverged, EpochRecord, fit
from ncflow.training.objective import FeatureObjective, Objective
from ncflow.training.optimizers import (
    ADAPTIVE,
    L2_DECAY,
    OPTIMIZERS,
    SCHEDULES,
    create_optimizer,
    create_schedule,
    initialize,
    parameter_groups,
)
from ncflow.training.plan import Plan
from ncflow.training.state import Parts, StateFolder, differing_tensors, get_randomness, misfit, set_randomness
from ncflow.training.stopping import EarlyStopping, Stopped
from ncflow.training.uncompiled import skip_compiler

__all__ = [
    "ADAPTIVE",
    "AGD",
    "L2_DECAY",
    "OPTIMIZERS",
    "SCHEDULES",
    "Analysis",
    "Disconnected",
    "Diverged",
    "EarlyStopping",
    "EpochRecord",
    "Evaluation",
    "FeatureObjective",
    "MovingAverage",
    "Objective",
    "OutOfMemory",
    "Parts",
    "Plan",
    "Splits",
    "StateFolder",
    "Stopped",
    "agree",
    "create_accelerator",
    "create_optimizer",
    "create_schedule",
    "differing_tensors",
    "evaluate",
    "evaluate_splits",
    "explained_faults",
    "fit",
    "from_first",
    "get_randomness",
    "initialize",
    "is_out_of_memory",
    "keep_freed_memory",
    "misfit",
    "parameter_groups",
    "refuse_compiling",
    "refuse_unshared",
    "remove_affine",
    "resolve_precision",
    "set_randomness",
    "set_seed",
    "skip_compiler",
]
