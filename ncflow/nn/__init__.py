"""Backbones, heads and losses: the three interfaces that all variants share."""

from ncflow.nn.backbones import (
    BACKBONES,
    MODEL_ALIASES,
    backbone_size,
    create_backbone,
    feature_ending,
    list_backbones,
    refuse_missing_weights,
)
from ncflow.nn.checkpoints import freeze, load_checkpoint
from ncflow.nn.classifier import Classifier, Output, TargetedModel
from ncflow.nn.endings import ENDINGS, ends_in
from ncflow.nn.heads import HEADS, FixedETFHead, FixedFrameHead, Head, LinearHead, NearestETFHead, create_head
from ncflow.nn.layers import capture, stages
from ncflow.nn.losses import LOSSES, create_loss, posthoc_adjustment
from ncflow.nn.necks import Backbone
from ncflow.nn.penalties import PENALTIES, create_penalty, drift_penalty, feature_penalty
from ncflow.nn.pictures import PictureClassifier

__all__ = [
    "BACKBONES",
    "ENDINGS",
    "HEADS",
    "LOSSES",
    "MODEL_ALIASES",
    "PENALTIES",
    "Backbone",
    "Classifier",
    "FixedETFHead",
    "FixedFrameHead",
    "Head",
    "LinearHead",
    "NearestETFHead",
    "Output",
    "PictureClassifier",
    "TargetedModel",
    "backbone_size",
    "capture",
    "create_backbone",
    "create_head",
    "create_loss",
    "create_penalty",
    "drift_penalty",
    "ends_in",
    "feature_ending",
    "feature_penalty",
    "freeze",
    "list_backbones",
    "load_checkpoint",
    "posthoc_adjustment",
    "refuse_missing_weights",
    "stages",
]
