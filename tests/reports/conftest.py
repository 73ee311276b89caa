"""Made-up run folders."""

from run_folders import make_run, three_heads, three_heads_two_seeds

__all__ = ["make_run", "three_heads", "three_heads_two_seeds"]
