"""Run folders, made up and trained."""

from run_folders import make_run, three_heads, three_heads_two_seeds
from small_training import digits, few, make_classifier, splits

__all__ = ["digits", "few", "make_classifier", "make_run", "splits", "three_heads", "three_heads_two_seeds"]
