"""Look up rows of tables: names, options, facts, and one error message for an unknown name."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from reprlib import repr as shortened
from typing import Any, TypeVar

T = TypeVar("T")
FACTS = "__ncflow_facts__"
GIVEN = ("class_counts", "size")  # parameters of rows that follow from data and model, so they are no options


def unknown(kind: str, name: object, choices: Iterable[str]) -> ValueError:
    """The error to raise when `name` is not one of `choices`; `kind` is the noun, as in "backbone"."""
    choices = list(choices)
    nearest = difflib.get_close_matches(str(name), choices, n=1)
    hint = f" Did you mean '{nearest[0]}'?" if nearest else ""
    return ValueError(f"unknown {kind} '{name}'.{hint} Choices: {', '.join(choices) or 'none'}")


def lookup(table: Mapping[str, T], name: str, kind: str) -> T:
    """The entry of a table. Raises ValueError that lists the choices if the name is unknown."""
    if name not in table:
        raise unknown(kind, name, table)
    return table[name]


def check_options(function: Callable[..., Any], options: Mapping[str, Any], owner: str) -> None:
    """Check that `function` takes all options by keyword, and numbers where its annotation is one.

    Raises ValueError; `owner` is like "loss 'focal'".
    """
    accepted = options_of(function)
    for option, value in options.items():
        if option not in accepted:
            raise unknown(f"option of {owner}", option, accepted)
        number = accepted[option].annotation in (int, float, "int", "float")
        if number and isinstance(value, str | list | tuple | dict | bool):
            raise ValueError(f"option {option} of {owner} must be a number, got {value!r}")


def options_of(row: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """The options of a row: its keyword-only parameters, by name, except those that ncflow passes itself (GIVEN)."""
    parameters = inspect.signature(row).parameters.items()
    keywords = {name: parameter for name, parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY}
    return {name: parameter for name, parameter in keywords.items() if name not in GIVEN}


def takes(row: Callable[..., Any], name: str) -> bool:
    """Whether a row has a parameter of this name, such as one of GIVEN."""
    return name in inspect.signature(row).parameters


def facts(**values: Any) -> Callable[[T], T]:
    """A decorator that attaches facts to a row of a table, such as the color of a head.

    Facts belong to this row only. A subclass does not inherit them.
    """

    def attach(row: T) -> T:
        setattr(row, FACTS, values)
        return row

    return attach


def fact(row: object, name: str, default: Any = None) -> Any:
    """A fact of a row, or the default."""
    return getattr(row, "__dict__", {}).get(FACTS, {}).get(name, default)


@contextmanager
def explained_options(owner: str, options: Mapping[str, Any]) -> Iterator[None]:
    """Inside, turn an error from a value of a wrong type into a ValueError that shows the options.

    `owner` is a name like "loss 'focal'".
    """
    try:
        yield
    except (TypeError, AttributeError, RuntimeError, OverflowError) as error:
        raise ValueError(f"{owner} cannot work with options {shortened(dict(options))}: {error}") from error
