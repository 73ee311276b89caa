"""`--grid KEY=VALUES` is split at the commas between values only, and each value arrives as YAML reads it."""

from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ncflow.experiments.axes import MOST_VALUES, make_axis, parse_axes, setting
from ncflow.yaml_files import parse_yaml


def values(text: str) -> tuple:
    (axis,) = parse_axes([f"train.lr={text}"])
    return axis.values


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0.3,0.1, 1e-3", (0.3, 0.1, 0.001)),
        ("0..3", (0, 1, 2, 3)),
        ("-2..0,7", (-2, -1, 0, 7)),
        ("[flip],[flip,crop]", (["flip"], ["flip", "crop"])),
        ("{a: 1, b: [2, 3]},{a: 2}", ({"a": 1, "b": [2, 3]}, {"a": 2})),
        ("'a,b',\"c,d\"", ("a,b", "c,d")),
        ("'it''s, so','b'", ("it's, so", "b")),
        (r'"a\",b",c', ('a",b', "c")),
        ("it's,that's", ("it's", "that's")),
        ("['a]', b],[\"[\", c]", (["a]", "b"], ["[", "c"])),
        ("true,null,~x", (True, None, "~x")),
        ("../a,./b..c", ("../a", "./b..c")),
        ("linear,{name: linear, normalize: true}", ("linear", {"name": "linear", "normalize": True})),
    ],
)
def test_values_arrive_whole(text, expected):
    assert values(text) == expected


PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**6), 10**6)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=50, deadline=None)
@example([None, "\x85"])
@given(st.lists(PLAIN, min_size=2, max_size=4, unique_by=lambda value: setting("k", value)))
def test_any_plain_values_return_from_their_text(wanted):
    wanted = [value for value in wanted if not (isinstance(value, str) and ".." in value)]
    texts = [setting("k", value).partition("=")[2] for value in wanted]
    if len(texts) < 2:
        return
    readable = []
    for text, value in zip(texts, wanted, strict=True):
        try:
            assert parse_yaml(text) == value
        except ValueError:  # YAML has no such letters
            continue
        readable.append((text, value))
    if len(readable) > 1:
        assert values(",".join(text for text, _ in readable)) == tuple(value for _, value in readable)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("train.lr", "expects key=values such as train.lr=0.3,0.1 or seed=0..4, got 'train.lr'"),
        ("=1,2", "expects key=values"),
        ("train..lr=1,2", "expects key=values"),
        ("train.lr= ", "expects key=values"),
        ("train.lr=0.1", "has one value, so it does not move; use --set train.lr=0.1"),
        ("train.lr=[0.3, 0.1]", "For several values write train.lr=0.3,0.1"),
        ("train.lr=0.1,0.10", "train.lr: 0.1 is given twice"),
        ("train.lr=0.1,,0.2", "a value is missing"),
        ("train.lr=0.1,", "a value is missing"),
        ("train.lr=[1,2", "is not a YAML value"),
        ("train.lr=yes,no", "write true or false"),
        ("a=&x [1],*x", "is not a YAML value"),
        ("seed=4..0", "a range counts up in whole numbers, such as 0..4, got 4..0"),
        ("seed=3..3", "a range counts up"),
        ("train.lr=0.1..0.5", "a range counts up in whole numbers"),
        (f"seed=0..{MOST_VALUES}", f"expected at most {MOST_VALUES} values, got {MOST_VALUES + 1}"),
        (f"seed=0..{'9' * 5000}", "a range counts up"),
        ("exp_name=a,b", "cannot vary exp_name: the names of runs follow from what varies"),
        ("grid.seed=[0],[1]", "vary head.name, train.loss or seed themselves"),
    ],
)
def test_a_text_that_is_no_axis_is_refused(text, words):
    with pytest.raises(ValueError) as error:
        parse_axes([text])
    assert words in str(error.value)


@settings(max_examples=300, deadline=None)
@given(st.text(alphabet="ab01.,=[]{}'\"\\\\ :&*#!-\n~é") | st.text())
def test_any_text_is_an_axis_or_refused_in_words(text):
    for given_text in (text, f"seed={text}", f"seed=1,{text}"):
        try:
            (axis,) = parse_axes([given_text])
        except ValueError as error:
            assert str(error)
        else:
            assert len(axis.values) > 1


def test_a_key_that_is_given_twice_is_refused():
    with pytest.raises(ValueError, match="--grid seed is given twice; give all its values at once"):
        parse_axes(["seed=0,1", "train.lr=1,2", "seed=2,3"])
    with pytest.raises(ValueError, match=r"head.name is given twice"):
        parse_axes(["head=linear,fixed_etf", "head.name=linear,nearest_etf"])


def test_a_value_that_is_no_plain_data_is_refused():
    with pytest.raises(ValueError, match="train.lr expects a number, text, true, false, null"):
        make_axis("train.lr", [b"1", b"2"])
