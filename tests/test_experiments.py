"""Groups of experiments expand to configurations in which the knob that names them moves."""

from itertools import product
from math import prod

import pytest
import yaml
from typer.testing import CliRunner

from ncflow import cli
from ncflow.data import SOURCES, longtail_counts
from ncflow.experiments import EXPERIMENTS, expand, write_configs
from ncflow.experiments.grids import COMMON, Grid, each
from ncflow.nn.backbones import BACKBONES, MODEL_ALIASES
from ncflow.nn.losses import LOSSES
from ncflow.params import Params, load_params, make_params
from ncflow.training.optimizers import OPTIMIZERS, SCHEDULES

BASE = make_params({"exp_name": "base", "grid": {"head": ["linear", "nearest_etf"], "seed": [0, 3]}})
CIFAR, THREE = {"cifar10", "cifar100"}, {"vgg11", "resnet18", "vit_tiny"}
# What moves in each group, and through which values: the seeds' grids, with the knobs that their names promise.
MOVES = {
    "exp1": {
        "dataset.name": {"mnist", "fmnist", "cifar10", "cifar100"},
        "model.name": {
            *("vgg11", "vgg16", "resnet18", "resnet50", "mobilenet_v2", "shufflenet_v2", "regnet_y_400mf"),
            *("vit_tiny", "densenet121", "efficientnet_b0", "googlenet", "mobilenetv4_small", "repvit_m1"),
            "dinov3_small",
        },
    },
    "exp2": {"dataset.imb_factor": {1.0, 0.5, 0.2, 0.1, 0.05, 0.02, 0.01, 0.005, 0.002, 0.001}},
    "exp3": {
        "train.loss": {"ce", "focal", "logit_adjustment", "balanced_softmax", "mse", "label_smoothing"},
        "train.lr": {0.1, 0.2},
    },
    "exp4": {"train.weight_decay": {0.0, 1e-4, 5e-4, 1e-3, 5e-3}},
    "exp5": {"train.optimizer": {"sgd", "adam", "adamw", "rmsprop"}, "train.lr": {0.1, 0.001}},
    "exp6": {"train.drift_penalty": {0.0, 0.001, 0.01, 0.05, 0.1, 0.5, 1.0}},
    "exp7": {"train.batch_size": {32, 64, 128, 512}, "train.lr": {0.0125, 0.025, 0.05, 0.2}},
    "exp8": {"model.name": {"vit_tiny", "vit_tiny_orig", "EVA-02", "EVA-02_orig"}},
    "exp9": {"seed": {1, 2, 3, 4, 5}},
    "exp10": {"dataset.name": {"imagenet_lt"}, "model.name": {"vgg11", "resnet18"}},
    "exp11": {
        "dataset.name": {"mnist", "fmnist"},
        "model.name": {"resnet18"},
        "seed": {1, 2, 3, 4, 5},
        "head.name": {"linear", "fixed_etf", "nearest_etf"},
    },
    "exp12": {
        "dataset.name": {"ufm10", "ufm100", "ufm200", "ufm1000"},
        "model.name": {"free_features"},
        "model.num_features": {512, 1024},
        "head.name": {"linear", "fixed_etf", "nearest_etf"},
    },
    "exp13": {
        "dataset.name": {"mnist", "fmnist"},
        "model.name": {"resnet18"},
        "seed": {1, 2, 3, 4, 5},
        "head.name": {"linear", "fixed_etf", "nearest_etf"},
        "train.loss": {"ce", "balanced_softmax"},
    },
    "exp14": {
        "dataset.name": {"digits", "fmnist"},
        "model.name": {"resnet20"},
        "model.num_features": {4, 8},
        "head.name": {"linear", "fixed_frame"},
        "head.frame": {None, "softmax_code", "random"},
        "head.normalize": {None, False, True},
        "head.temperature": {None, 5.0},
        "seed": {1, 2, 3},
    },
    "exp15": {
        "model.name": {"resnet34"},
        "head.name": {"linear", "fixed_etf"},
        "train.weight_decay": {0.0, 5e-3},
        "train.feature_decay": {0.0, 0.01},
        "seed": {1, 2, 3},
    },
    "exp16": {"model.name": {"resnet34"}, "train.weight_decay": {0.0, 5e-4, 1e-3, 5e-3, 1e-2}},
}
SIZES = dict(zip(MOVES, [56, 60, 36, 30, 24, 42, 24, 8, 30, 2, 30, 12, 60, 48, 30, 10], strict=True))


# What the first seed's generator writes for a run, all of it, and the page of its README that shows one.
SEED_KEYS = {
    "dataset": ("name", "imb_factor"),
    "model": ("name",),
    "train": (
        *("lr", "optimizer", "weight_decay", "loss", "drift_penalty", "epochs", "batch_size"),
        *("analyze_freq", "analyze_layers", "save_logits"),
    ),
}
SEED_PAGE = """\
exp_name: "exp1_univ_cifar10_resnet18"
dataset:
  name: "cifar10"              # mnist, fmnist, cifar10, cifar100, imagenet_lt
  imb_factor: 0.01             # 1.0=balanced, 0.01=extreme, -1=native
model:
  name: "resnet18"
train:
  lr: 0.1
  optimizer: "sgd"             # sgd, adam, rmsprop
  weight_decay: 1e-3
  loss: "ce"                   # ce, focal, logit_adjustment, balanced_softmax
  drift_penalty: 0.0
  epochs: 200
  batch_size: 256
  analyze_freq: 2
  analyze_layers: false
  save_logits: false
"""
# group -> what its runs here have beyond the first seed's keys, whose defaults the others keep
BEYOND = {"exp2": {"dataset"}, "exp9": {"seed"}}


def value(run: Params, key: str):
    """The parameter at a dotted key."""
    for name in key.split("."):
        run = getattr(run, name, None)
    return run


def published(group, *overrides, **options):
    return expand(group, Params(), overrides=overrides, **options)


@pytest.mark.parametrize("group", EXPERIMENTS)
def test_a_group_is_documented_and_its_runs_have_names_of_their_own(group):
    runs = expand(group, BASE)
    assert all(isinstance(run, Params) for run in runs)
    assert len({run.exp_name for run in runs}) == len({run.digest() for run in runs}) == len(runs) > 0
    name = BASE.exp_name if group == "main" else group  # main has the names of the pipeline
    assert all(run.exp_name.startswith(f"{name}_") for run in runs)
    doc = EXPERIMENTS[group].__doc__
    assert "Hypothesis:" in doc and "Expected:" in doc and len(doc.splitlines()[0]) < 100


def test_quickstart_is_every_head_with_every_seed():
    assert [(run.head.name, run.seed) for run in expand("quickstart", BASE)] == [
        ("linear", 0),
        ("linear", 3),
        ("nearest_etf", 0),
        ("nearest_etf", 3),
    ]


def test_one_head_can_be_asked_for_by_any_of_its_names():
    assert {run.head.name for run in expand("quickstart", BASE, head="fixed_etf")} == {"fixed_etf"}
    assert {run.head.name for run in expand("quickstart", BASE, head="implicit")} == {"nearest_etf"}


def test_options_of_the_base_head_stay_with_that_head():
    base = make_params({"head": {"name": "nearest_etf", "momentum": "ema"}})
    by_head = {run.head.name: run.head for run in expand("quickstart", base)}
    assert by_head["nearest_etf"].momentum == "ema"
    assert by_head["linear"].temperature is None and by_head["fixed_etf"].temperature == 5.0


def test_overrides_change_what_quickstart_is_made_from():
    runs = expand("quickstart", BASE, overrides=["grid.seed=[5]", "train.lr=0.2"])
    assert [(run.exp_name, run.train.lr) for run in runs] == [
        ("quickstart_linear_seed5", 0.2),
        ("quickstart_nearest_etf_seed5", 0.2),
    ]


@pytest.mark.parametrize("override", ["train.loss=focal", "train={loss: focal, epochs: 3}"])
def test_an_override_of_the_loss_narrows_the_grid(override):
    base = make_params({"grid": {"head": ["linear"], "loss": ["ce", "balanced_softmax"]}})
    (run,) = expand("quickstart", base, overrides=[override])
    assert (run.exp_name, run.train.loss) == ("quickstart_linear_focal_seed0", "focal")


def test_options_of_the_base_loss_stay_with_that_loss():
    train = {"loss": "focal", "loss_options": {"gamma": 3.0}}
    base = make_params({"train": train, "grid": {"head": ["linear"], "loss": ["ce", "focal"]}})
    plain, focal = expand("quickstart", base)
    assert (plain.train.loss, plain.train.loss_options) == ("ce", {})
    assert (focal.train.loss, focal.train.loss_options) == ("focal", {"gamma": 3.0})


def test_a_loss_that_the_grid_replaces_is_announced():
    said = []
    base = make_params({"train": {"loss": "focal"}, "grid": {"loss": ["ce"]}})
    assert {run.train.loss for run in expand("quickstart", base, announce=said.append)} == {"ce"}
    assert said == ["quickstart: grid.loss=['ce'] replaces train.loss=focal"]


def test_an_unknown_group_lists_the_choices():
    with pytest.raises(ValueError, match=r"unknown experiment group 'quikstart'. Did you mean 'quickstart'"):
        expand("quikstart", BASE)


@pytest.mark.parametrize("group", EXPERIMENTS)
def test_an_unknown_head_is_refused(group):
    with pytest.raises(ValueError, match="unknown head 'etf'"):
        expand(group, BASE, head="etf")


@pytest.mark.parametrize("group", EXPERIMENTS)
def test_an_unknown_key_is_refused(group):
    with pytest.raises(ValueError, match=r"unknown key 'train.epoch'. Did you mean 'train.epochs'"):
        expand(group, BASE, overrides=["train.epoch=1"])


@pytest.mark.parametrize("group", MOVES)
def test_a_published_group_has_the_whole_of_its_grid(group):
    runs = published(group)
    moves = {"dataset.name": CIFAR, "model.name": THREE} | MOVES[group]
    assert {key: {value(run, key) for run in runs} for key in moves} == moves
    assert len(runs) == SIZES[group]


@pytest.mark.parametrize("group", MOVES)
def test_nothing_moves_in_a_group_but_what_its_grid_says(group):
    keys = {"seed", *(f"{section}.{key}" for section in ("dataset", "model", "train") for key in fields(section))}
    still = keys - {"dataset.name", "model.name", *MOVES[group]}
    runs = published(group)
    assert {key: value(run, key) for run in runs for key in still} == {key: value(runs[0], key) for key in still}


def test_no_factor_of_the_scaling_law_leaves_a_class_empty():
    for run in published("exp2"):
        num_classes = {"cifar10": 10, "cifar100": 100}[run.dataset.name]
        options = {"imb_factor": run.dataset.imb_factor, "n_min": run.dataset.min_samples}
        assert min(longtail_counts(50000 // num_classes, num_classes, **options)) >= 1


@pytest.mark.parametrize("group", MOVES)
def test_every_name_in_a_group_is_a_row_of_its_table(group):
    tables = {
        "dataset.name": set(SOURCES),
        "model.name": {*BACKBONES, *MODEL_ALIASES},
        "train.loss": set(LOSSES),
        "train.optimizer": set(OPTIMIZERS),
        "train.schedule": set(SCHEDULES),
    }
    named = {key: {value(run, key) for run in published(group)} for key in tables}
    assert {key: names - tables[key] for key, names in named.items() if names - tables[key]} == {}


def fields(section: str):
    return type(getattr(Params(), section)).model_fields


@pytest.mark.parametrize("group", [f"exp{number}" for number in range(1, 10)])
def test_the_first_seeds_groups_share_its_settings(group):
    for run, (key, common) in product(published(group), COMMON.items()):
        assert value(run, key) == common or key in MOVES[group]
    assert all(run.train.momentum is None and run.head.name == "linear" for run in published(group))


def test_knobs_that_belong_together_move_together():
    assert all(run.train.lr == 0.1 * run.train.batch_size / 256 for run in published("exp7"))
    assert all((run.train.lr == 0.1) == (run.train.optimizer == "sgd") for run in published("exp5"))
    assert all((run.train.lr == 0.2) == (run.train.loss == "mse") for run in published("exp3"))


def test_every_head_of_exp11_sees_features_of_one_norm():
    runs = published("exp11")
    assert {run.head.temperature for run in runs} == {5.0}
    assert all(run.head.normalize for run in runs if run.head.name == "linear")


def test_names_are_those_of_the_first_seed():
    names = {run.exp_name for group in MOVES for run in published(group)}
    assert {
        "exp1_univ_cifar10_resnet18",
        "exp2_scaling_vgg11_cifar100_f_0.001",
        "exp2_scaling_vgg11_cifar100_f_1.0",
        "exp3_loss_vit_tiny_cifar10_label_smoothing",
        "exp4_wd_resnet18_cifar10_0.0001",
        "exp4_wd_resnet18_cifar10_0",
        "exp5_opt_resnet18_cifar100_rmsprop",
        "exp6_drift_vgg11_cifar10_0.05",
        "exp7_bs_resnet18_cifar10_512",
        "exp8_ablation_EVA-02_orig_cifar10",
        "exp9_univ_cifar10_vgg11_repeat_5",
        "exp10_imagenet_lt_vgg11",
    } <= names


@pytest.mark.parametrize("group", MOVES)
def test_a_published_group_does_not_depend_on_the_users_parameters(group):
    base = make_params({"seed": 9, "dataset": {"name": "svhn"}, "train": {"lr": 3.0}, "head": "fixed_etf"})
    assert expand(group, base) == published(group)


@pytest.mark.parametrize("group", MOVES)
def test_a_published_group_runs_on_another_data_set(group):
    heard = []
    runs = published(group, "dataset.name=digits", "train.epochs=1", announce=heard.append)
    assert {(run.dataset.name, run.train.epochs) for run in runs} == {("digits", 1)}
    others = [key for key in ("model.name", "seed", *MOVES[group]) if key != "dataset.name"]
    assert len(runs) == len({tuple(value(run, key) for key in others) for run in published(group)})
    assert not any(name in run.exp_name for run in runs for name in ("cifar", "mnist", "imagenet", "ufm"))
    said = f"{group}: its {SIZES[group]} runs come down to {len(runs)}; the others would be repeats"
    assert heard == ([] if len(runs) == SIZES[group] else [said])


@pytest.mark.parametrize("head", ["fixed_etf", "implicit"])
@pytest.mark.parametrize("group", MOVES)
def test_a_head_chosen_for_every_run_shows_in_the_name(group, head):
    name = {"implicit": "nearest_etf"}.get(head, head)
    grid = EXPERIMENTS[group]()
    if grid.has_own_heads:
        with pytest.raises(ValueError, match="chooses its heads itself"):
            published(group, head=head)
        return
    runs = published(group, head=head)
    assert {run.head.name for run in runs} == {name}
    assert all(name in run.exp_name for run in runs)
    own = [run for run in published(group) if run.head.name == name]
    replaced = prod(len(axis) for axis in grid.axes if "head.name" in axis[0])
    assert runs == own if own else len(runs) == SIZES[group] // replaced


def test_the_usual_head_leaves_a_group_as_published():
    assert published("exp1", head="standard") == published("exp1")


def test_a_group_whose_only_knob_is_overridden_is_one_run():
    assert len(published("exp9", "seed=7")) == len(CIFAR) * len(THREE)
    with pytest.raises(ValueError, match=r"two runs called exp7_bs_vgg11_cifar10_64 differ in train.lr"):
        published("exp7", "train.batch_size=64")
    assert len(published("exp7", "train.batch_size=64", "train.lr=0.1")) == len(CIFAR) * len(THREE)


def test_a_timm_model_makes_a_plain_folder_name():
    assert published("exp10", "model.name=timm/vit_base")[0].exp_name == ("exp10_imagenet_lt_timm-vit_base")


@pytest.mark.parametrize("group", EXPERIMENTS)
def test_written_configurations_are_the_runs(group, tmp_path):
    base = make_params({"train": {"lr": 1e-5}})
    files = write_configs(group, tmp_path, base)
    assert sorted(files) == sorted((tmp_path / group).iterdir())
    for file, run in zip(files, expand(group, base), strict=True):
        assert file == tmp_path / group / f"{run.exp_name}.yaml"
        assert load_params(file) == run


def test_a_written_configuration_has_the_first_seeds_keys(tmp_path):
    write_configs("exp1", tmp_path, overrides=["train.epochs=1"])
    config = yaml.safe_load((tmp_path / "exp1" / "exp1_univ_cifar10_resnet18.yaml").read_text())
    assert config["exp_name"] == "exp1_univ_cifar10_resnet18"
    assert (config["dataset"]["name"], config["dataset"]["imb_factor"]) == ("cifar10", 0.01)
    assert config["model"]["name"] == "resnet18"
    common = {"lr": 0.1, "optimizer": "sgd", "weight_decay": 0.001, "loss": "ce", "batch_size": 256, "analyze_freq": 2}
    assert config["train"].items() >= (common | {"epochs": 1}).items()


@pytest.mark.parametrize("group", [f"exp{number}" for number in range(1, 11)])
def test_a_configuration_of_the_first_seeds_generator_is_its_run(group, tmp_path):
    for run in published(group):
        config = {name: {key: value(run, f"{name}.{key}") for key in keys} for name, keys in SEED_KEYS.items()}
        file = tmp_path / "config.yaml"
        file.write_text(yaml.dump({"exp_name": run.exp_name, **config}))
        loaded = load_params(file)
        differs = {name for name in Params.model_fields if getattr(loaded, name) != getattr(run, name)}
        assert differs <= BEYOND.get(group, set())
        for name, section in config.items():
            assert {key: value(loaded, f"{name}.{key}") for key in section} == section


@pytest.mark.parametrize(
    "lines",
    [
        {},
        {'"cifar10"': '"imagenet_lt"', "imb_factor: 0.01": "imb_factor: -1", '"resnet18"': '"vgg11"'},
        {"lr: 0.1": "lr: 1", "imb_factor: 0.01": "imb_factor: 1", "drift_penalty: 0.0": "drift_penalty: 1"},
        {'"resnet18"': '"EVA-02_orig"', '"sgd"': '"rmsprop"', "lr: 0.1": "lr: 1e-3", '"ce"': '"balanced_softmax"'},
        {'"resnet18"': '"mobilenetv4_small"', "analyze_layers: false": "analyze_layers: true"},
    ],
)
def test_a_configuration_of_the_first_seed_passes_the_check_as_it_is(lines, tmp_path):
    text = SEED_PAGE
    for old, new in lines.items():
        assert old in text
        text = text.replace(old, new)
    file = tmp_path / "config.yaml"
    file.write_text(text)
    result = CliRunner().invoke(cli.app, ["train", "--config", str(file), "--check"])
    assert result.exit_code == 0, result.output
    resolved = yaml.safe_load(result.output)
    written = yaml.safe_load(text.replace("1e-3", "0.001"))  # which PyYAML takes for text
    assert resolved["exp_name"] == written["exp_name"]
    for section in SEED_KEYS:
        assert resolved[section].items() >= written[section].items()


@pytest.mark.parametrize(
    "name",
    [
        *("resnet18", "resnet18_ln", "resnet18_bn", "resnet50", "resnet50_ln", "resnet50_bn", "vgg11", "vgg16"),
        *("mobilenet_v2", "shufflenet_v2", "regnet_y_400mf", "densenet121", "efficientnet_b0", "googlenet"),
        *("convnext_tiny", "vit_tiny", "vit_tiny_orig", "mobilenetv4_small", "repvit_m1", "dinov3_small"),
        *("EVA-02", "EVA-02_orig"),
    ],
)
def test_the_first_seeds_models_have_their_names_here(name):
    assert name in BACKBONES or name in MODEL_ALIASES


def test_a_group_of_your_own_runs_each_configuration_once(monkeypatch):
    def two_rates(base):
        for lr in (0.1, 0.2, 0.1):
            values = base.model_dump(mode="json")
            yield make_params(values | {"exp_name": f"{base.exp_name}_{lr}", "train": values["train"] | {"lr": lr}})

    monkeypatch.setitem(EXPERIMENTS, "mine", two_rates)
    runs = expand("mine", BASE, overrides=["train.epochs=3"])
    assert [(run.exp_name, run.train.lr, run.train.epochs) for run in runs] == [
        ("mine_0.1", 0.1, 3),
        ("mine_0.2", 0.2, 3),
    ]


def test_a_grid_is_every_combination_in_the_order_of_its_axes():
    grid = Grid("g_{seed}_{train.loss}", [each("seed", 1, 2), each("train.loss", "a", "b")], {"train.lr": 7.0})
    assert [run.exp_name for run in grid.runs()] == ["g_1_a", "g_1_b", "g_2_a", "g_2_b"]
    assert {run.train.lr for run in grid.runs()} == {7.0}
    assert {run.train.lr for run in grid.runs(overrides=iter(["train.lr=8"]))} == {8.0}


def test_a_given_seed_or_head_is_quickstarts_only_one():
    runs = expand("quickstart", BASE, overrides=["seed=1", "train.epochs=5"])
    assert [(run.head.name, run.seed, run.train.epochs) for run in runs] == [("linear", 1, 5), ("nearest_etf", 1, 5)]
    (run,) = expand("quickstart", BASE, overrides=["seed=1", "head.name=fixed_etf", "head.temperature=3"])
    assert (run.head.name, run.head.temperature) == ("fixed_etf", 3.0)


def test_quickstart_takes_the_name_that_is_set():
    runs = expand("quickstart", BASE, overrides=["exp_name=pics"])
    assert [run.exp_name for run in runs][:2] == ["pics_linear_seed0", "pics_linear_seed3"]


@pytest.mark.parametrize("override", ["exp_name=mine", "grid.seed=[0, 1]"])
@pytest.mark.parametrize("group", MOVES)
def test_a_published_group_refuses_keys_that_it_would_ignore(group, override):
    with pytest.raises(ValueError, match=f"{override.partition('=')[0]} cannot be overridden"):
        published(group, override)


def test_a_grid_turns_an_option_of_a_loss():
    focal = {"train.loss": "focal"}
    grid = Grid("gamma_{train.loss_options[gamma]:g}", [each("train.loss_options.gamma", 1.0, 2.0)], focal)
    runs = grid.runs()
    assert [(run.exp_name, run.train.loss_options) for run in runs] == [
        ("gamma_1", {"gamma": 1.0}),
        ("gamma_2", {"gamma": 2.0}),
    ]
