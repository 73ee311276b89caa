"""Measure what others trained: features from files or arrays give the metrics of a run of ncflow."""

from ncflow.measuring.files import FeatureSplit, read_features, series, stream_features, write_features
from ncflow.measuring.measurement import Measurement, measure

__all__ = ["FeatureSplit", "Measurement", "measure", "read_features", "series", "stream_features", "write_features"]
