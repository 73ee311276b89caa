"""Search: Optuna chooses configurations, a suite trains them, and the best one is named. Test is never looked at."""

from ncflow.tuning.objective import Objective, parse_objective, refuse_without_validation
from ncflow.tuning.results import as_message, write_results
from ncflow.tuning.search import Search, base_run, open_study
from ncflow.tuning.space import Dimension, fit_space, parse_space

__all__ = ["Dimension", "Objective", "Search", "as_message", "base_run", "fit_space", "open_study", "parse_objective"]
__all__ += ["parse_space", "refuse_without_validation", "write_results"]
