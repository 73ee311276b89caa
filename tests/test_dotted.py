"""Dotted keys and nested mappings say the same."""

import doctest

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ncflow import dotted
from ncflow.dotted import assign, flatten, nest

KEYS = st.text("abc_1", min_size=1, max_size=3)
LEAVES = st.one_of(st.integers(), st.none(), st.lists(st.integers(), max_size=2))
NESTED = st.recursive(LEAVES, lambda inner: st.dictionaries(KEYS, inner, min_size=1, max_size=3), max_leaves=12)


def test_flatten_joins_keys_with_dots():
    assert flatten({"a": {"b": {"c": 1}, "d": [2]}, "e": None}) == {"a.b.c": 1, "a.d": [2], "e": None}
    assert flatten({"a": 1}, "cfg.") == {"cfg.a": 1}


@given(st.dictionaries(KEYS, NESTED, max_size=4))
def test_nest_undoes_flatten(values):
    assert nest(flatten(values)) == values


@pytest.mark.parametrize(
    ("values", "key", "words"),
    [({"a": 1}, "a.b", "'a' is not a section"), ({"a": {"b": 1}}, "a.b.c", "'a.b' is not"), (3, "a", "not a mapping")],
)
def test_a_value_has_no_keys(values, key, words):
    with pytest.raises(ValueError, match=words):
        assign(values, key, 0)


def test_the_example_holds():
    assert doctest.testmod(dotted).failed == 0
