"""Values that features can take, by the last layer: nonnegative after a ReLU, of one length after a layer norm.

The optimum of neural collapse depends on it: a simplex ETF, or SELI, needs features of any sign.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from ncflow.lookup import lookup

Builder = TypeVar("Builder", bound=Callable[..., Any])


def ends_in(ending: str, **by_option: str) -> Callable[[Builder], Builder]:
    """Mark a backbone's builder with the last layer of its body, a row of ENDINGS.

    `by_option` names the last layer of bodies with an option: `ends_in("linear", final_norm="layer_norm")`. A
    projection to `num_features` and a neck come after the body and are not part of it. An unmarked builder makes no
    promise. Raises ValueError for an unknown layer.
    """
    for layer in (ending, *by_option.values()):
        lookup(ENDINGS, layer, "ending of a backbone")

    def mark(builder: Builder) -> Builder:
        builder.ending, builder.ending_by_option = ending, by_option  # type: ignore[attr-defined]
        return builder

    return mark


def body_ending(builder: Callable[..., Any], options: Mapping[str, Any]) -> str | None:
    """Return the last layer of the body of `builder(**options)`; None for an unmarked builder."""
    by_option: Mapping[str, str] = getattr(builder, "ending_by_option", {})
    chosen = [layer for option, layer in by_option.items() if options.get(option)]
    return chosen[0] if chosen else getattr(builder, "ending", None)


# layer -> values of features (B, d) that leave it
ENDINGS = {
    "linear": "any",
    "parameters": "any",
    "batch_norm": "any",  # with its scale and shift; without, each feature has mean 0 and variance 1 over the batch
    "relu": "nonnegative",
    "silu": "above -0.279",
    "layer_norm": "of one length",  # before its scale and shift
}
