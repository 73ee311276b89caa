"""One error message for an unknown name: what came, the nearest spelling, and every choice."""

from __future__ import annotations

import pytest

from ncflow.lookup import check_options, lookup, unknown

TABLE = {"resnet18": 1, "resnet50": 2, "vit_tiny": 3}


def test_a_known_name_gives_its_entry():
    assert {name: lookup(TABLE, name, "backbone") for name in TABLE} == TABLE


def test_an_unknown_name_is_answered_with_the_nearest_spelling_and_every_choice():
    with pytest.raises(ValueError) as caught:
        lookup(TABLE, "resnet81", "backbone")
    expected = "unknown backbone 'resnet81'. Did you mean 'resnet18'? Choices: resnet18, resnet50, vit_tiny"
    assert str(caught.value) == expected


def test_a_name_like_no_other_gets_no_guess():
    assert str(unknown("loss", "xyz", ["ce", "focal"])) == "unknown loss 'xyz'. Choices: ce, focal"


def test_an_empty_table_says_none():
    assert str(unknown("option", "x", iter(()))) == "unknown option 'x'. Choices: none"


@pytest.mark.parametrize("name", [None, 3, 1.5])
def test_what_is_not_a_string_is_unknown_too(name):
    with pytest.raises(ValueError, match=f"unknown backbone '{name}'"):
        lookup(TABLE, name, "backbone")


def test_options_are_the_parameters_that_are_given_by_keyword_only():
    def build(width, *, depth=1, neck="none"):
        return width, depth, neck

    class Block:
        def __init__(self, width, *, depth=1, neck="none"):
            pass

    for function in (build, Block):
        check_options(function, {"depth": 1, "neck": None}, "backbone 'mine'")
        check_options(function, {}, "backbone 'mine'")
        for option in ("width", "dept", "self"):
            with pytest.raises(ValueError, match=f"unknown option of backbone 'mine' '{option}'.*Choices: depth, neck"):
                check_options(function, {"depth": 1, option: 1}, "backbone 'mine'")


def test_an_option_that_is_a_number_takes_no_text():
    def row(*, rate: float = 0.1, count: int = 2, momentum: float | str = 0.9, names: tuple[str, ...] = ()): ...

    check_options(row, {"rate": 1, "count": 3, "momentum": "ema", "names": ("a",)}, "loss 'mine'")
    for option, value in (("rate", "fast"), ("count", [1]), ("rate", True)):
        with pytest.raises(ValueError, match=f"option {option} of loss 'mine' must be a number, got "):
            check_options(row, {option: value}, "loss 'mine'")
