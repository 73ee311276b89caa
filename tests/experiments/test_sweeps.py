"""A sweep repeats a group for all combinations of its axes; its runs differ, and their names say how."""

from __future__ import annotations

import re
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ncflow.experiments import EXPERIMENTS, expand, representatives, suite_name, write_configs
from ncflow.experiments.names import LONGEST
from ncflow.params import Params, load_params, make_params, plain_name

BASE = make_params({"exp_name": "main", "train": {"lr": 0.2}, "grid": {"loss": ["ce", "mse"], "seed": [7]}})


def names(group, *grid, base=BASE, **options):
    return [run.exp_name for run in expand(group, base, grid=grid, **options)]


def test_main_is_the_product_of_the_axes_in_their_order():
    runs = expand("main", BASE, grid=["train.lr=0.3,0.1", "head.name=linear,nearest_etf", "seed=0..1"])
    assert [(run.train.lr, run.head.name, run.seed) for run in runs] == [
        *product((0.3, 0.1), ("linear", "nearest_etf"), (0, 1))
    ]
    assert [run.exp_name for run in runs] == [
        f"main_lr{lr}_{head}_seed{seed}" for lr, head, seed in product((0.3, 0.1), ("linear", "nearest_etf"), (0, 1))
    ]
    assert {run.train.loss for run in runs} == {"ce"}


def test_main_without_axes_is_the_pipeline_of_the_parameters():
    assert names("main")[:3] == ["main_linear_ce_seed7", "main_linear_mse_seed7", "main_fixed_etf_ce_seed7"]
    assert names("main", overrides=["exp_name=pics"])[0] == "pics_linear_ce_seed7"


def test_axes_with_the_pipelines_keys_give_the_pipelines_runs():
    axes = ["head.name=linear,fixed_etf,nearest_etf", "seed=7,8", "train.loss=ce,mse"]
    found = {run.exp_name: run.digest() for run in expand("main", BASE, grid=axes)}
    pipeline = {run.exp_name: run.digest() for run in expand("main", BASE)}
    assert pipeline.items() <= found.items()


def test_replacing_the_grid_of_the_parameters_is_announced_once():
    said = []
    names("main", "seed=0..3", announce=said.append)
    assert said == ["main: --grid replaces the section grid of the parameters"]


def test_names_do_not_depend_on_the_order_of_axes_or_on_other_values():
    few = names("main", "train.lr=0.3,0.1", "seed=0,1")
    assert {*few} == {*names("main", "seed=0,1", "train.lr=0.3,0.1")}
    assert {*few} < {*names("main", "seed=0..3", "train.lr=0.3,0.1,0.01")}


@pytest.mark.parametrize(
    ("axis", "ends"),
    [
        ("train.lr=1e-5,10,0.123456789", ["lr1e-05", "lr10", "lr0.123456789"]),
        ("train.augment=none,[flip],[flip,crop]", ["augment-none", "flip", "flip-crop"]),
        ("train.analyze_layers=true,false", ["analyze_layers", "no_analyze_layers"]),
        ("train.momentum=null,0.5", ["momentum-null", "momentum0.5"]),
        ("dataset.seed=1,2", ["dataset.seed1", "dataset.seed2"]),
        ("dataset.imb_factor=-1,0.5", ["imb_factor-1", "imb_factor0.5"]),
        ("dataset.root=/data/a b,~/ü", ["data-a-b", "other"]),
        ("train.schedule_options.milestones=[0.5],[0.5,0.8]", ["milestones0.5", "milestones0.5-0.8"]),
        (
            "head=linear,{name: linear, normalize: true},implicit",
            ["linear", "linear_normalize", "nearest_etf"],
        ),
        ("train={lr: 1, loss: mse},{lr: 2}", ["lr1_mse", "lr2"]),
        ("model.name=timm/a,timm/b", ["timm-a", "timm-b"]),
    ],
)
def test_a_name_says_what_varies(axis, ends):
    assert names("main", axis) == [f"main_{end}" for end in ends]


def test_names_that_would_be_equal_end_in_digits_of_the_configuration():
    runs = expand("main", BASE, grid=["dataset.root=a/b,a b,A-B,c"])
    assert runs[-1].exp_name == "main_c"
    assert [run.exp_name for run in runs[:-1]] == [
        f"main_{text}_{run.digest()}" for text, run in zip(("a-b", "a-b", "A-B"), runs, strict=False)
    ]


TEXTS = st.lists(
    st.text(st.characters(blacklist_characters="\0", blacklist_categories=["Cs"]), max_size=60),
    min_size=2,
    max_size=4,
    unique=True,
)


@settings(max_examples=60, deadline=None)
@given(TEXTS, TEXTS)
def test_any_texts_make_plain_names_that_differ_without_case(roots, files):
    base = BASE.model_copy(update={"exp_name": "x" * 90})
    axes = [_axis("dataset.root", roots), _axis("model.checkpoint", files)]
    try:
        found = names("main", *axes, base=base)
    except ValueError as error:  # letters that YAML does not take, or a text that reads as a range
        assert re.search("not a YAML value|counts up|must be|at most", str(error))
        return
    assert len({name.casefold() for name in found}) == len(roots) * len(files)
    assert all(plain_name(name) and len(name) <= LONGEST + 13 for name in found)


def _axis(key, texts):
    from ncflow.experiments.axes import setting

    return f"{key}=" + ",".join(setting(key, text).partition("=")[2] for text in texts)


@pytest.mark.parametrize(
    ("axis", "words"),
    [
        ("train.lrr=1,2", r"unknown key 'train.lrr'. Did you mean 'train.lr'\?"),
        ("train.lr=1,fast", r"train.lr: .*got 'fast'"),
        ("head.name=linear,etf", "unknown head 'etf'"),
        ("train.drift_penalty=0,0.0", "train.drift_penalty does not move: 0 and 0.0 make the same run"),
        ("head.name=linear,standard", 'head.name does not move: "linear" and "standard" make the same run'),
        ("tracking.register=a,b", "tracking.register does not move"),
    ],
)
def test_an_axis_that_is_wrong_or_does_not_move_is_refused(axis, words):
    with pytest.raises(ValueError, match=words):
        names("main", axis)


def test_an_axis_that_another_option_overrides_is_refused():
    with pytest.raises(ValueError, match="--grid seed and --set seed set the same key"):
        names("main", "seed=0,1", overrides=["seed=4"])
    with pytest.raises(ValueError, match=r"--grid head.name and --head set the same key"):
        names("main", "head.name=linear,fixed_etf", head="linear")
    with pytest.raises(ValueError, match="train.lr does not move: 1 and 2 make the same run"):
        names("main", "train.lr=1,2", overrides=["train={lr: 3}"])


def test_an_override_of_the_grid_that_axes_replace_is_refused():
    with pytest.raises(ValueError, match=r"--set grid.seed changes nothing here; use --grid, such as --grid seed=0..4"):
        names("main", "train.lr=1,2", overrides=["grid.seed=[1]"])
    assert names("quickstart", "train.lr=1,2", overrides=["grid.seed=[1]", "grid.head=[linear]", "train.loss=ce"]) == [
        "quickstart_linear_ce_seed1_lr1",
        "quickstart_linear_ce_seed1_lr2",
    ]


def test_an_axis_that_a_group_sets_itself_is_refused(monkeypatch):
    def fixed(base):
        values = base.model_dump(mode="json")
        yield make_params(values | {"exp_name": f"{base.exp_name}_a", "train": values["train"] | {"lr": 1.0}})

    monkeypatch.setitem(EXPERIMENTS, "fixed", fixed)
    assert names("fixed", "seed=0,1") == ["fixed_a_seed0", "fixed_a_seed1"]
    with pytest.raises(ValueError, match=r"train.lr does not move: 0.1 and 0.2 make the same run"):
        names("fixed", "train.lr=0.1,0.2")


def test_too_many_runs_are_refused_with_their_count():
    with pytest.raises(ValueError, match="1001 runs are more than 1000; .* --max-runs 1001"):
        names("main", "seed=0..1000")
    with pytest.raises(ValueError, match="112 runs are more than 100"):
        names("exp1", "seed=0,1", most=100)
    with pytest.raises(ValueError, match="10000000000 runs are more than"):
        names("main", "seed=0..99999", "dataset.seed=0..99999")
    assert len(names("main", "seed=0..11", most=12)) == 12


def test_options_of_a_head_or_loss_stay_with_it():
    base = make_params(
        {"head": {"name": "linear", "bias": True}, "train": {"loss": "focal", "loss_options": {"gamma": 3.0}}}
    )
    runs = expand("main", base, grid=["train.loss=ce,focal", "head.name=linear,nearest_etf"])
    assert [(run.train.loss_options, run.head.option("bias")) for run in runs] == [
        *(({}, True), ({}, None)),
        *(({"gamma": 3.0}, True), ({"gamma": 3.0}, None)),
    ]
    etf = names("main", "head.temperature=1,2", "head.name=linear,nearest_etf", base=base)
    assert etf[:2] == ["run_linear_temperature1", "run_nearest_etf_temperature1"]


def test_axes_repeat_a_published_group_and_replace_its_own():
    assert names("exp8", "train.lr=0.1,0.2")[::8] == [f"exp8_ablation_vit_tiny_cifar10_lr{lr}" for lr in (0.1, 0.2)]
    assert names("exp9", "seed=6,7", overrides=["dataset.name=mnist", "model.name=vgg11"]) == [
        "exp9_univ_mnist_vgg11_repeat_6",
        "exp9_univ_mnist_vgg11_repeat_7",
    ]
    heads = names("exp10", "head.name=linear,fixed_etf", "train.lr=1,2")
    assert heads[::2] == [f"exp10_imagenet_lt_vgg11{head}_lr{lr}" for head, lr in product(("", "_fixed_etf"), (1, 2))]
    with pytest.raises(ValueError, match=r"two runs called exp7_bs_vgg11_cifar10_16 differ in train.lr"):
        names("exp7", "train.batch_size=16,32")
    with pytest.raises(ValueError, match="group 'exp15' chooses its heads itself"):
        names("exp15", "head.name=linear,fixed_etf")


def test_axes_of_quickstart_replace_the_grid_of_the_parameters():
    base = make_params({"grid": {"head": ["linear"], "loss": ["ce"], "seed": [0]}})
    assert names("quickstart", "seed=3,4", base=base) == ["quickstart_linear_ce_seed3", "quickstart_linear_ce_seed4"]
    assert names("quickstart", "train.loss=ce,mse", base=base) == [
        "quickstart_linear_ce_seed0",
        "quickstart_linear_mse_seed0",
    ]


def test_a_suite_is_named_after_its_group_and_its_axes():
    assert suite_name("main", BASE) == "main"
    assert suite_name("main", BASE, overrides=["exp_name=pics"], grid=["seed=0,1"]) == "pics_seed"
    assert suite_name("quickstart", BASE, overrides=["exp_name=pics"]) == "pics"
    assert suite_name("quickstart", BASE, overrides=["train.lr=0.1"]) == "quickstart"
    axes = ["seed=0,1", "head.name=linear,fixed_etf", "train.lr=1,2"]
    assert suite_name("exp8", BASE, grid=axes) == "exp8_lr_head_seed"


def test_the_runs_of_a_sweep_can_be_written(tmp_path):
    grid = ["train.lr=0.3,0.1"]
    files = write_configs("main", tmp_path, BASE, grid=grid)
    assert [file.name for file in files] == ["main_lr0.3.yaml", "main_lr0.1.yaml"]
    assert [load_params(file) for file in files] == [
        run.model_copy(update={"grid": Params().grid}) for run in expand("main", BASE, grid=grid)
    ]


def test_representatives_have_each_value_of_each_key_but_seeds():
    runs = expand("main", BASE, grid=["train.lr=1,2,3", "head.name=linear,fixed_etf", "seed=0..9"])
    found = representatives(runs)
    assert {(run.train.lr, run.head.name) for run in found} >= {
        (1, "linear"),
        (2, "linear"),
        (3, "linear"),
        (1, "fixed_etf"),
    }
    assert len(found) == 4 and {run.seed for run in found} == {0}
