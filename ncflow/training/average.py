"""The exponential moving average of a classifier over the steps of its training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from ncflow.nn import Classifier


class MovingAverage(nn.Module):
    """θ̄ ← decay·θ̄ + (1 - decay)·θ at each step, of weights and buffers; the first step sets θ̄ = θ. decay in (0, 1).

    Counts, such as those of batches, are copied. The average of ETFs is no ETF. The nearest-ETF head makes its rows an
    ETF again when it is evaluated. Polyak and Juditsky 1992. Raises ValueError for a decay out of range.
    """

    def __init__(self, classifier: Classifier, decay: float) -> None:
        super().__init__()
        if not 0 < decay < 1:
            raise ValueError(f"a moving average needs a decay in (0, 1), got {decay}")

        def move(averages: Sequence[Tensor], values: Sequence[Tensor], _: object) -> None:
            if averages[0].is_floating_point():
                torch._foreach_lerp_(list(averages), list(values), 1 - decay)
            else:
                torch._foreach_copy_(list(averages), list(values))

        self.model = AveragedModel(classifier, multi_avg_fn=move, use_buffers=True)

    @property
    def classifier(self) -> Classifier:
        """The averaged classifier."""
        return cast(Classifier, self.model.module)

    def update(self, classifier: Classifier) -> None:
        """Take the classifier after a step into the average."""
        self.model.update_parameters(classifier)
