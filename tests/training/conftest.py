"""A snapshot, batches and classifiers that are small enough to train in a test."""

from small_training import digits, few, make_classifier, splits, whole

__all__ = ["digits", "few", "make_classifier", "splits", "whole"]
