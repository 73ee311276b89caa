"""What values features can take, by the layer that they leave last: a ReLU keeps them nonnegative, a norm of one size.

The optimum of neural collapse depends on it: a simplex ETF, or SELI, needs features of any sign.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from ncflow.lookup import lookup

Builder = TypeVar("Builder", bound=Callable[..., Any])


def ends_in(ending: str, **by_option: str) -> Callable[[Builder], Builder]:
    """Mark a backbone's builder with the layer that its body ends in, a row of ENDINGS.

    `by_option` names the layer of bodies with an option: `ends_in("linear", final_norm="layer_norm")`. What comes after
    the body, a projection to `num_features` and a neck, is not part of it. An unmarked builder makes no promise.
    """
    for layer in (ending, *by_option.values()):
        lookup(ENDINGS, layer, "ending of a backbone")

    def mark(builder: Builder) -> Builder:
        builder.ending, builder.ending_by_option = ending, by_option  # type: ignore[attr-defined]
        return builder

    return mark


def body_ending(builder: Callable[..., Any], options: Mapping[str, Any]) -> str | None:
    """The layer that the body of `builder(**options)` ends in, None where the builder does not say."""
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
