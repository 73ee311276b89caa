"""A space takes what the parameters take, and refuses everything else before a trial trains."""

from __future__ import annotations

import pytest

from ncflow.params import make_params
from ncflow.tuning import base_run, fit_space, parse_space
from ncflow.tuning.space import configure


def fitted(*texts):
    return fit_space(parse_space(texts), make_params({}))[0]


def test_ranges_and_choices_are_read():
    lr, decay, epochs, head = parse_space(
        ["train.lr=log(1e-3,1)", "train.weight_decay=uniform( 0 , .5 )", "train.epochs=5..20", "head=linear,fixed_etf"]
    )
    assert (lr.low, lr.high, lr.log, lr.whole) == (1e-3, 1, True, False)
    assert (decay.low, decay.high, decay.log) == (0, 0.5, False)
    assert (epochs.low, epochs.high, epochs.whole) == (5, 20, True)
    assert (head.key, head.choices) == ("head.name", ("linear", "fixed_etf"))


def test_the_text_of_a_space_makes_the_same_space():
    space = fitted(
        "train.lr=log(1e-3,1)", "train.epochs=5..20", "train.batch_size=log(16,256)", "train.augment=[flip],none"
    )
    assert fitted(*map(str, space)) == space


def test_a_range_is_whole_where_the_key_takes_whole_numbers_only():
    lr, size = fitted("train.lr=log(1,8)", "train.batch_size=log(16,256)")
    assert not lr.whole
    assert size.whole


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ([], "at least one --space"),
        (["train.lr"], "--space expects key=values"),
        (["train.lr=0.1"], "use --set train.lr=0.1"),
        (["train.lr=log(0,1)"], "starts above 0"),
        (["train.lr=uniform(1,1)"], "must be less"),
        (["train.lr=log(1e-3)"], "expects two numbers"),
        (["train.lr=log(1e-3,1)", "train.lr=0.1,0.2"], "given twice"),
        (["head.name=linear,fixed_etf", "head=linear,nearest_etf"], "given twice"),
        (["seed=0..4"], "the best seed is chance"),
        (["dataset.imb_factor=log(0.01,1)"], "different data do not compare"),
        (["exp_name=a,b"], "cannot vary exp_name"),
        (["train.lrr=log(1e-3,1)"], "Did you mean 'train.lr'"),
        (["train.lr=uniform(-1,1)"], "greater than 0"),
        (["train.momentum=uniform(0,1)"], "less than 1"),
        (["train.epochs=uniform(1.5,3)"], "valid integer"),
        (["head.name=linear,lineal"], "unknown head"),
    ],
)
def test_what_no_run_can_have_is_refused(texts, message):
    with pytest.raises(ValueError, match=message):
        fitted(*texts)


def test_a_large_space_is_checked_one_value_at_a_time():
    heads = "head.name=linear,fixed_etf,nearest_etf"
    texts = [heads, *(f"train.{key}=uniform(0,0.5)" for key in ("momentum", "ema", "sam", "warmup", "drift_penalty"))]
    texts += ["train.feature_decay=uniform(0,1)", "train.weight_decay=uniform(0,1)", "train.lr=log(1e-3,1)"]
    _, corners = fit_space(parse_space(texts), make_params({}))
    assert len(corners) == 3 + 8 * 2
    assert {run.head.name for run in corners} == {"linear", "fixed_etf", "nearest_etf"}


def test_another_head_leaves_the_options_of_the_first():
    base = make_params({"head": {"name": "nearest_etf", "temperature": 7.0}})
    assert configure(base, {"head.name": "nearest_etf"}, "a").head.option("temperature") == 7.0
    assert configure(base, {"head.name": "linear"}, "a").head.name == "linear"


def test_a_search_varies_one_run_of_a_group():
    base = make_params({"grid": {"seed": [0, 1]}, "train": {"epochs": 3}})
    lr, head = parse_space(["train.lr=log(1e-3,1)"]), parse_space(["head.name=linear,fixed_etf"])
    assert base_run("main", base, lr, overrides=["train.batch_size=32"]).train.batch_size == 32
    with pytest.raises(ValueError, match="differ in .*head.name"):
        base_run("quickstart", base, lr, overrides=["seed=0"])
    with pytest.raises(ValueError, match="differ in seed"):
        base_run("quickstart", base, head, overrides=["head.name=linear"][:0])
    assert base_run("quickstart", base, head, overrides=["seed=0"]).train.epochs == 3
    with pytest.raises(ValueError, match="set the same key"):
        base_run("main", base, lr, overrides=["train.lr=0.1"])
