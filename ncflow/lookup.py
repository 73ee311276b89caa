"""One error message for an unknown name or option: the nearest spelling first, then every choice."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from reprlib import repr as shortened
from typing import Any, TypeVar

T = TypeVar("T")


def unknown(kind: str, name: object, choices: Iterable[str]) -> ValueError:
    """The error to raise when `name` is not one of `choices`; `kind` is the noun, as in "backbone"."""
    choices = list(choices)
    nearest = difflib.get_close_matches(str(name), choices, n=1)
    hint = f" Did you mean '{nearest[0]}'?" if nearest else ""
    return ValueError(f"unknown {kind} '{name}'.{hint} Choices: {', '.join(choices) or 'none'}")


def lookup(table: Mapping[str, T], name: str, kind: str) -> T:
    """The entry of a registry, or a ValueError that lists the choices."""
    if name not in table:
        raise unknown(kind, name, table)
    return table[name]


def check_options(function: Callable[..., Any], options: Iterable[str], owner: str) -> None:
    """Refuse options that `function` does not take by keyword; `owner` reads like "loss 'focal'"."""
    accepted = [name for name, p in inspect.signature(function).parameters.items() if p.kind is p.KEYWORD_ONLY]
    for option in options:
        if option not in accepted:
            raise unknown(f"option of {owner}", option, accepted)


@contextmanager
def explained_options(owner: str, options: Mapping[str, Any]) -> Iterator[None]:
    """Inside, what a value of a wrong type makes Python or torch say is a ValueError that shows the options.

    `owner` reads like "loss 'focal'".
    """
    try:
        yield
    except (TypeError, AttributeError, RuntimeError, OverflowError) as error:
        raise ValueError(f"{owner} cannot work with options {shortened(dict(options))}: {error}") from error
