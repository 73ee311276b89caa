"""The few numbers that tell whether a run collapsed: the split each is read on, its meaning, its value at collapse."""

from __future__ import annotations

from typing import NamedTuple

from ncflow.runs.reader import SELECTION


class Highlight(NamedTuple):
    """How to read one metric and how to show it; `at_collapse` is None where collapse does not fix it."""

    title: str
    meaning: str
    at_collapse: float | None = None
    percent: bool = False
    log: bool = False


# Collapse is a statement about training features; what it is worth shows on the test split.
HIGHLIGHTS = {
    "test/acc/balanced": Highlight(
        title="Balanced accuracy",
        meaning="mean over classes of the accuracy within each class",
        percent=True,
    ),
    SELECTION: Highlight(
        title="Balanced accuracy on validation",
        meaning="the same on the validation part, which chooses the best epoch",
        percent=True,
    ),
    "test/acc/few": Highlight(
        title="Few-shot accuracy",
        meaning="accuracy on classes with fewer than 20 training samples",
        percent=True,
    ),
    "test/acc/tail20": Highlight(
        title="Tail accuracy",
        meaning="accuracy on the rarest 20 % of the classes",
        percent=True,
    ),
    "train/nc1/pinv": Highlight(
        title="NC1: features gather at their class mean",
        meaning="within-class scatter relative to between-class scatter, tr(Σ_W Σ_B⁺)/K",
        at_collapse=0,
        log=True,
    ),
    "train/nc2/etf_error_means": Highlight(
        title="NC2: class means form a simplex ETF",
        meaning="distance of the centered class means' Gram matrix from a simplex ETF's, both of unit norm",
        at_collapse=0,
    ),
    "train/nc3/self_duality": Highlight(
        title="NC3: classifier aligns with class means",
        meaning="squared distance of the classifier from the centered class means, both of unit norm",
        at_collapse=0,
    ),
    "test/nc4/ncc_mismatch": Highlight(
        title="NC4: classifier is nearest class mean",
        meaning="share of samples on which the classifier and the nearest training class mean disagree",
        at_collapse=0,
        percent=True,
    ),
    "train/drift/relative": Highlight(
        title="Drift of the global mean",
        meaning="norm of the mean feature over the root mean square feature norm; imbalance alone keeps it above 0",
        at_collapse=0,
    ),
}
