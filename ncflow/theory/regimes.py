"""Which closed form holds for a loss, class sizes, a width and features of any sign or none below zero."""

from __future__ import annotations

from collections.abc import Callable

from ncflow.lookup import lookup
from ncflow.theory.balanced_ce import balanced_ce_optimum
from ncflow.theory.minority_collapse import step_ce_optimum
from ncflow.theory.mse import mse_optimum
from ncflow.theory.optimum import Counts, Optimum, check_problem
from ncflow.theory.relu_ce import relu_ce_optimum


def predicted_optimum(
    loss: str,
    class_counts: Counts,
    *,
    lambda_w: float,
    lambda_h: float,
    num_features: int | None = None,
    nonnegative: bool = False,
) -> Optimum:
    """The optimum of free features under a loss of ncflow, for a linear head without bias or temperature.

    `num_features` is d, None for as many as the optimum needs; `nonnegative` features are those behind a ReLU. Raises
    ValueError for losses without a closed form, for d below the optimum's rank, and for cross-entropy on features of
    any sign in classes of more than two sizes.
    """
    optima = NONNEGATIVE if nonnegative else OPTIMA
    optimum = lookup(optima, loss, "loss with a closed form")(class_counts, lambda_w=lambda_w, lambda_h=lambda_h)
    return with_room(optimum, num_features)


def with_room(optimum: Optimum, num_features: int | None) -> Optimum:
    """The optimum itself; a ValueError where d features cannot hold it, and another, unknown one is the best."""
    if num_features is not None and num_features < optimum.rank:
        raise ValueError(f"expected num_features >= {optimum.rank}, the rank of the optimum, got {num_features}")
    return optimum


def ce_optimum(class_counts: Counts, *, lambda_w: float, lambda_h: float) -> Optimum:
    """Cross-entropy on classes of one size, or of two."""
    counts = check_problem(class_counts, lambda_w, lambda_h)
    balanced = bool((counts == counts[0]).all())
    return (balanced_ce_optimum if balanced else step_ce_optimum)(counts, lambda_w=lambda_w, lambda_h=lambda_h)


OPTIMA: dict[str, Callable[..., Optimum]] = {"ce": ce_optimum, "mse": mse_optimum}
# Under squared error the classes lie on axes anyway.
NONNEGATIVE: dict[str, Callable[..., Optimum]] = {"ce": relu_ce_optimum, "mse": mse_optimum}
