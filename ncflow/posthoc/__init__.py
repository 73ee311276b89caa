"""Classifiers on frozen features: linear maps made after training, from the features of the training split."""

from ncflow.posthoc.frozen import Frozen, Lacking, LinearMap, freeze_features
from ncflow.posthoc.selection import Choice, Unseen, choose, measure_posthoc
from ncflow.posthoc.table import POSTHOC

__all__ = [
    "POSTHOC",
    "Choice",
    "Frozen",
    "Lacking",
    "LinearMap",
    "Unseen",
    "choose",
    "freeze_features",
    "measure_posthoc",
]
