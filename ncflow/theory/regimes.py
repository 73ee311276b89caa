"""Selects the closed form for a loss, class sizes, a width, and features of any sign or nonnegative features."""

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

    `num_features` is d; None means as many as the optimum needs. `nonnegative` is for features after a ReLU. Raises
    ValueError for losses without a closed form and for d below the optimum's rank. Also raises it for cross-entropy on
    features of any sign in classes of more than two sizes.

    Examples:
        >>> import torch
        >>> optimum = predicted_optimum("ce", [10, 10, 10], lambda_w=1e-3, lambda_h=1e-3)
        >>> lengths = optimum.weight.norm(dim=1)
        >>> torch.allclose(lengths, lengths[0].expand(3))
        True
    """
    optima = NONNEGATIVE if nonnegative else OPTIMA
    optimum = lookup(optima, loss, "loss with a closed form")(class_counts, lambda_w=lambda_w, lambda_h=lambda_h)
    return with_room(optimum, num_features)


def with_room(optimum: Optimum, num_features: int | None) -> Optimum:
    """The optimum, unchanged. Raises ValueError for d < its rank, where the true optimum is another, unknown one."""
    if num_features is not None and num_features < optimum.rank:
        raise ValueError(f"expected num_features >= {optimum.rank}, the rank of the optimum, got {num_features}")
    return optimum


def ce_optimum(class_counts: Counts, *, lambda_w: float, lambda_h: float) -> Optimum:
    """The optimum of cross-entropy on classes of one or two sizes."""
    counts = check_problem(class_counts, lambda_w, lambda_h)
    balanced = bool((counts == counts[0]).all())
    return (balanced_ce_optimum if balanced else step_ce_optimum)(counts, lambda_w=lambda_w, lambda_h=lambda_h)


OPTIMA: dict[str, Callable[..., Optimum]] = {"ce": ce_optimum, "mse": mse_optimum}
# Squared error uses the same optimum: its classes lie on axes, which are nonnegative.
NONNEGATIVE: dict[str, Callable[..., Optimum]] = {"ce": relu_ce_optimum, "mse": mse_optimum}
