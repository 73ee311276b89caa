"""Early stopping: training ends when a metric of the validation split has not improved for some analyses."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ncflow.lookup import unknown
from ncflow.metrics import METRICS
from ncflow.metrics.direction import SOMETIMES, natural_direction

if TYPE_CHECKING:
    from ncflow.training.evaluation import Evaluation

SPLIT = "val/"


@dataclass(frozen=True)
class Stopped:
    """Why a training ended early: up to `epoch`, `patience` analyses had no better `metric` than the best one."""

    epoch: int
    metric: str
    patience: int
    best: float
    best_epoch: int

    def __str__(self) -> str:
        return (
            f"stopped after epoch {self.epoch}: {self.metric} did not improve on {self.best:.4g}, of epoch "
            f"{self.best_epoch}, in {self.patience} analyses"
        )


class EarlyStopping:
    """Follows a metric of the validation split, and ends training after `patience` analyses without a better value.

    The better direction is the metric's own. Training keeps its last weights, not those of the best epoch. Prechelt
    1998. Raises ValueError for a metric of another split: nothing is chosen on test data, and training data cannot show
    overfitting.
    """

    def __init__(self, metric: str = "val/acc/balanced", patience: int = 5) -> None:
        name = metric.removeprefix(SPLIT)
        if not metric.startswith(SPLIT):
            better = f"val/{metric.partition('/')[2] or metric}"
            raise ValueError(
                f"early stopping looks at the validation split alone: expected a metric such as val/acc/balanced, got "
                f"'{metric}'; try train.stop.metric={better}"
            )
        if name not in METRICS and not name.startswith(SOMETIMES):
            raise unknown("metric", name, METRICS)
        if not natural_direction(name):
            raise ValueError(f"{name} has no better end; choose another train.stop.metric, such as val/acc/balanced")
        if patience < 1:
            raise ValueError(f"patience is a number of analyses, at least 1, got {patience}")
        self.metric, self.patience = metric, patience
        self._sign = 1 if natural_direction(name) == "maximize" else -1
        self.best, self.best_epoch, self.epoch, self.waited = math.nan, 0, 0, 0

    def update(self, epoch: int, analysis: Mapping[str, Evaluation]) -> None:
        """Take the analysis after an epoch into account.

        Raises ValueError if the first analysis does not have the metric. Later, a missing value is no better one.
        """
        found = analysis["val"].metrics if "val" in analysis else {}
        value = found.get(self.metric.removeprefix(SPLIT))
        if value is None and not self.best_epoch:
            raise ValueError(
                f"early stopping needs {self.metric}, which the analysis after epoch {epoch} does not have; choose one "
                f"of {', '.join(sorted(found)) or 'a validation split (dataset.val_fraction > 0)'}"
            )
        self.epoch = epoch
        if value is not None and not self._sign * value <= self._sign * self.best:  # also the first, against NaN
            self.best, self.best_epoch, self.waited = value, epoch, 0
        else:
            self.waited += 1

    @property
    def stopped(self) -> Stopped | None:
        """Why training ends now; None if it does not."""
        if self.waited < self.patience:
            return None
        return Stopped(self.epoch, self.metric, self.patience, self.best, self.best_epoch)

    def state_dict(self) -> dict[str, Any]:
        """The memory of the analyses so far, as plain data."""
        return {name: getattr(self, name) for name in MEMORY}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the memory from `state_dict`."""
        for name in MEMORY:
            setattr(self, name, state[name])


MEMORY = ("best", "best_epoch", "epoch", "waited")
