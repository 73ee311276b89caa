"""The table of post-hoc classifiers."""

from __future__ import annotations

from collections.abc import Callable

from ncflow.posthoc.closed_form import logit_adjustment, multiplicative, ncm, nearest_etf, tau_norm
from ncflow.posthoc.frozen import LinearMap
from ncflow.posthoc.trained import crt, lws, max_norm

# A row: (Frozen, options by keyword) -> LinearMap. Its facts, both optional:
# candidates  option -> the values that are tried on validation data; the signature's default applies without such data
# needs       keys of `selection.NEEDS`, which a run may lack
POSTHOC: dict[str, Callable[..., LinearMap]] = {
    "logit_adjustment": logit_adjustment,
    "multiplicative": multiplicative,
    "tau_norm": tau_norm,
    "ncm": ncm,
    "nearest_etf": nearest_etf,
    "crt": crt,
    "lws": lws,
    "max_norm": max_norm,
}
