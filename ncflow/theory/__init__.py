"""Closed-form optima of unconstrained features, the ground truth that experiments are compared with."""

from ncflow.theory.balanced_ce import balanced_ce_optimum
from ncflow.theory.drift import drift_norm, relative_drift, seli_step_drift, seli_step_relative_drift
from ncflow.theory.fixed_etf import fixed_etf_feature_norm, fixed_etf_optimum, fixed_etf_relu_optimum
from ncflow.theory.minority_collapse import step_ce_optimum
from ncflow.theory.mse import mse_optimum
from ncflow.theory.optimum import Optimum, optimum_of_logits, pressure
from ncflow.theory.regimes import NONNEGATIVE, OPTIMA, predicted_optimum, with_room
from ncflow.theory.relu_ce import relu_ce_optimum, relu_limit
from ncflow.theory.seli import StepGeometry, seli_optimum, seli_step

__all__ = [
    "NONNEGATIVE",
    "OPTIMA",
    "Optimum",
    "StepGeometry",
    "balanced_ce_optimum",
    "drift_norm",
    "fixed_etf_feature_norm",
    "fixed_etf_optimum",
    "fixed_etf_relu_optimum",
    "mse_optimum",
    "optimum_of_logits",
    "predicted_optimum",
    "pressure",
    "relative_drift",
    "relu_ce_optimum",
    "relu_limit",
    "seli_optimum",
    "seli_step",
    "seli_step_drift",
    "seli_step_relative_drift",
    "step_ce_optimum",
    "with_room",
]
