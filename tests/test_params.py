"""Parameters: the first seed's keys as they stand, and everything that is wrong refused by its full path."""

from __future__ import annotations

import math
import pickle
import re
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import yaml

from ncflow.nn.heads import HEAD_ALIASES, HEADS, LinearHead
from ncflow.params import Params, head_section, load_params, make_params, read_config, split_overrides

SEED_YAML = """
exp_name: "exp1_univ_cifar10_resnet18"
dataset:
  name: "cifar10"              # mnist, fmnist, cifar10, cifar100, imagenet_lt
  imb_factor: 0.01             # 1.0=balanced, 0.01=extreme, -1=native
model:
  name: "resnet18"             # See architectures.py for full list
train:
  lr: 0.1
  optimizer: "sgd"             # sgd, adam, rmsprop
  weight_decay: 1e-3
  loss: "ce"                   # ce, focal, logit_adjustment, balanced_softmax
  drift_penalty: 0.0           # Optional drift regularization
  epochs: 200
  batch_size: 256
  analyze_freq: 2              # Compute metrics every N epochs
  analyze_layers: false        # Enable layer-wise drift tracking
  save_logits: false           # Save raw logits for analysis
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "params.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def leaves(values: dict[str, Any], *above: str) -> list[tuple[str, Any]]:
    """(path, value) of every leaf of nested sections."""
    found = []
    for key, value in values.items():
        nested = isinstance(value, dict) and value
        found += leaves(value, *above, key) if nested else [(".".join([*above, key]), value)]
    return found


def refused(*overrides: str, values: dict | None = None) -> str:
    with pytest.raises(ValueError) as caught:
        make_params(values or {}, overrides)
    return str(caught.value)


# --- files ---


def test_the_first_seeds_configuration_loads_as_it_stands(tmp_path):
    params = load_params(write(tmp_path, SEED_YAML))
    resolved = dict(leaves(params.resolved()))
    for path, value in leaves(yaml.safe_load(SEED_YAML) | {}):
        assert resolved[path] == (1e-3 if value == "1e-3" else value), path


def test_an_empty_file_is_all_defaults(tmp_path):
    assert load_params(write(tmp_path, "# nothing\n")) == Params() == load_params()


def test_the_repositorys_own_parameters_load_and_their_keys_are_all_known():
    path = Path(__file__).parents[1] / "params.yaml"
    params = load_params(path)
    dumped = params.model_dump()
    for key, value in leaves(read_config(path)):
        assert dict(leaves(dumped))[key] == value, key


def test_what_is_resolved_gives_the_same_parameters_again(tmp_path):
    params = make_params({"head": "implicit", "train": {"lr": 1e-3, "loss": "focal", "loss_options": {"gamma": 0.5}}})
    path = write(tmp_path, yaml.safe_dump(params.resolved()))
    assert load_params(path) == params
    assert load_params(path).digest() == params.digest()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train: [1, 2", "is not YAML"),
        ("a: b: c", "is not YAML"),
        ("train:\n  lr: 0.1\n  lr: 0.2\n", "is not YAML: lr given twice.* line 2"),
        ("!!python/object/apply:os.system ['touch pwned']", "is not YAML: could not determine a constructor"),
        ("exp_name: !!python/name:os.system", "is not YAML: could not determine a constructor"),
        ("- 1\n- 2\n", "a configuration is a mapping of keys to values, got list"),
        ("[]", "a configuration is a mapping of keys to values, got list"),
        ("just text", "a configuration is a mapping of keys to values, got str"),
    ],
)
def test_a_file_that_is_not_a_configuration_is_refused_and_constructs_nothing(tmp_path, monkeypatch, text, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=message):
        load_params(write(tmp_path, text))
    assert [file.name for file in tmp_path.iterdir()] == ["params.yaml"]


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"no configuration file .*nowhere.yaml; give one with --config"):
        load_params(tmp_path / "nowhere.yaml")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 1e-3),
        ("1E-3", 1e-3),
        ("5.0e-4", 5e-4),
        (".5e-3", 5e-4),
        ("1.e-3", 1e-3),
        ("+1e-3", 1e-3),
        ("2e+0", 2.0),
        ("0.05", 0.05),
        ("1", 1.0),
    ],
)
def test_every_way_to_write_a_number_is_one(tmp_path, text, value):
    assert load_params(write(tmp_path, f"train: {{lr: {text}}}")).train.lr == value
    assert make_params({}, [f"train.lr={text}"]).train.lr == value


def test_the_number_format_is_ours_alone():
    """Other readers of YAML in the process keep their own."""
    assert yaml.safe_load("1e-3") == "1e-3"


@pytest.mark.parametrize("name", ["e3", "1e3x", "v1e-3", "1e-3e"])
def test_names_that_look_a_little_like_numbers_stay_names(name):
    assert make_params({}, [f"dataset.name={name}"]).dataset.name == name


# --- overrides ---


def test_overrides_apply_in_order_and_reach_every_depth():
    params = make_params({}, ["train.lr=0.5", "seed=3", "train.lr=0.25", "train.loss_options.gamma=1.5"])
    assert (params.train.lr, params.seed, params.train.loss_options) == (0.25, 3, {"gamma": 1.5})


def test_overrides_leave_the_given_values_alone():
    values = {"train": {"lr": 0.1}}
    make_params(values, ["train.lr=0.5", "dataset.name=mnist"])
    assert values == {"train": {"lr": 0.1}}


@pytest.mark.parametrize(("name", "size"), [("imagenet_lt", 224), ("imagenet", 224), ("digits", 32), ("cifar10", 32)])
def test_large_pictures_have_their_usual_size_by_default(name, size):
    assert make_params({"dataset": {"name": name}}).model.image_size == size
    assert make_params({"dataset": {"name": name}, "model": {"image_size": 64}}).model.image_size == 64


def test_an_override_is_yaml():
    params = make_params(
        {}, ["grid.head=[linear, fixed_etf]", "model.neck=null", "train.save_logits=true", "head=fixed"]
    )
    assert params.grid.head == ["linear", "fixed_etf"]
    assert (params.model.neck, params.train.save_logits, params.head.name) == (None, True, "fixed_etf")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.lr", "--set expects key=value such as train.lr=0.05, got 'train.lr'"),
        ("=3", "--set expects key=value"),
        ("train..lr=3", "--set expects key=value"),
        ("train.lr=[1", "--set train.lr: '[1' is not a YAML value"),
        ("train.lr=!!python/name:os.system", "--set train.lr: '!!python/name:os.system' is not a YAML value"),
        ("seed.deep=3", "--set seed.deep=3: 'seed' is not a section with own keys"),
    ],
)
def test_an_override_that_cannot_be_applied_says_why(override, message):
    assert message in refused(override, values={"seed": 1})


# --- unknown keys and wrong values ---


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("trian.lr=1", "unknown key 'trian'. Did you mean 'train'?"),
        ("train.epcohs=1", "unknown key 'train.epcohs'. Did you mean 'train.epochs'?"),
        ("train.stop.patiance=1", "unknown key 'train.stop.patiance'. Did you mean 'train.stop.patience'?"),
        ("dataset.imbfactor=1", "unknown key 'dataset.imbfactor'. Did you mean 'dataset.imb_factor'?"),
        ("model.nek=none", "unknown key 'model.nek'. Did you mean 'model.neck'?"),
        ("head.biass=true", "unknown key 'head.biass'. Did you mean 'head.bias'?"),
        ("grid.heads=[linear]", "unknown key 'grid.heads'. Did you mean 'grid.head'?"),
        ("head=nearest_eft", "unknown head 'nearest_eft'. Did you mean 'nearest_etf'?"),
        ("head.name=[linear]", "unknown head '['linear']'."),
    ],
)
def test_an_unknown_key_is_refused_with_path_and_nearest_spelling(override, message):
    assert message in refused(override)


@pytest.mark.parametrize("name", HEADS)
def test_an_option_of_another_head_is_refused_with_the_choices(name):
    everybodys = {option for head in HEADS for option in head_section(head).model_fields}
    foreign = min(everybodys - head_section(name).model_fields.keys())
    message = refused(f"head.{foreign}=1", values={"head": {"name": name}})
    assert message.startswith(f"unknown key 'head.{foreign}'.")
    assert all(f"head.{option}" in message for option in head_section(name).model_fields)


def test_every_mistake_is_reported_at_once():
    message = refused("train.lr=0", "train.epcohs=3", "seed=-1")
    assert len(message.splitlines()) == 3
    assert all(path in message for path in ("train.lr", "train.epcohs", "seed"))


OUT_OF_RANGE = {
    "data.workers": ["0", "-1", "1.5", "true", "all", "2000"],
    "data.resident_bytes": ["-1", "1.5", "true", "2GB"],
    "seed": ["-1", "1.5", "4294967296", "true", "'1'", "null"],
    "exp_name": ["3"],
    "dataset.imb_factor": ["0", "-0.5", "1.01", ".nan", ".inf", "-2"],
    "dataset.imb_type": ["exponential"],
    "model.image_size": ["0", "7", "2000", "32.5"],
    "model.num_features": ["0", "11.5", "K+2", "true", "k+1"],
    "train.lr": ["0", "-0.1", ".nan", ".inf", "true", "fast"],
    "train.weight_decay": ["-1e-4", ".nan", ".inf"],
    "train.momentum": ["-0.1", "1", ".nan"],
    "train.epochs": ["0", "2.5", "true", "'5'"],
    "train.batch_size": ["1", "0", "full-batch", "2.5", "true", "null"],
    "dataset.val_fraction": ["1", "-0.1", ".nan", "true"],
    "dataset.label_noise": ["1", "-0.1", ".nan"],
    "dataset.samples_per_class": ["0", "1.5", "all"],
    "dataset.min_samples": ["-1", "0.5", "null"],
    "train.drift_penalty": ["-1", ".nan"],
    "train.max_steps": ["0", "1.5", "true"],
    "train.accumulate": ["0", "1.5", "true", "null"],
    "train.max_grad_norm": ["0", "-1", ".nan", ".inf"],
    "train.schedule_per": ["batch", "null"],
    "train.label_smoothing": ["1", "-0.1", ".nan"],
    "train.layer_decay": ["0", "1.1", "-0.5", ".nan"],
    "model.drop_path": ["1", "-0.1", ".nan"],
    "train.stop": ["5", "true", "val/acc/balanced"],
    "train.stop.patience": ["0", "1.5", "null"],
    "train.precision": ["fp8"],
    "train.device": ["tpu"],
    "train.analyze_freq": ["0"],
    "train.analyze": ["never", "null"],
    "train.loss_options": ["3", "null"],
    "train.save_logits": ["maybe", "1"],
    "train.save_features": ["maybe", "1"],
    "head.temperature": ["0", "-5", ".nan"],
    "head.momentum": ["0", "1.5", "cumulativ", ".nan", "[1]", "true"],
    "head.proximal": ["-1", ".nan"],
    "head.solver": ["magic"],
    "head.max_iterations": ["0", "1.5", "true"],
    "head.tolerance": ["0", "-1e-6", ".nan"],
}


@pytest.mark.parametrize(("key", "text"), [(key, text) for key, texts in OUT_OF_RANGE.items() for text in texts])
def test_a_value_of_wrong_range_or_type_is_refused_by_path(key, text):
    message = refused(f"{key}={text}", values={"head": {"name": "nearest_etf"}})
    assert [line.partition(":")[0] for line in message.splitlines()] == [key]
    assert "got" in message


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("dataset.imb_factor=-1", -1),
        ("dataset.imb_factor=1", 1),
        ("train.momentum=0", 0),
        ("train.batch_size=2", 2),
        ("train.batch_size=full", "full"),
        ("dataset.val_fraction=0.99", 0.99),
        ("dataset.samples_per_class=null", None),
        ("train.weight_decay=0", 0),
        ("head.momentum=1", 1),
        ("head.momentum=ema", "ema"),
        ("head.temperature=null", None),
        ("seed=4294967295", 2**32 - 1),
    ],
)
def test_the_ends_of_a_range_are_in_it(override, value):
    params = make_params({"head": {"name": "nearest_etf"}}, [override])
    assert dict(leaves(params.model_dump()))[override.partition("=")[0]] == value


def test_numpy_takes_every_seed_that_is_allowed():
    import numpy as np

    np.random.RandomState(make_params({}, ["seed=4294967295"]).seed)


@pytest.mark.parametrize(
    "name", ["../up", "a/b", "..", ".", ".hidden", "", "-x", "a b", "~", "a\\b", "c:", "x\n", "/abs", "a\0b"]
)
def test_a_run_name_cannot_climb_out_of_its_folder(name):
    assert "plain folder name" in refused(values={"exp_name": name})


@pytest.mark.parametrize("name", ["run", "exp1_univ_cifar10_resnet18", "a.b", "lr=0.1+seed=2", "0", "a..b"])
def test_a_plain_run_name_is_fine(name):
    assert make_params({"exp_name": name}).exp_name == name


# --- heads ---


@pytest.mark.parametrize("alias", HEAD_ALIASES)
def test_an_alias_of_a_head_is_resolved(alias):
    for head in (alias, {"name": alias}):
        assert make_params({"head": head}).head == head_section(HEAD_ALIASES[alias])(name=HEAD_ALIASES[alias])


def test_a_head_without_a_name_is_the_linear_one():
    head = make_params({"head": {"bias": True}}).head
    assert (head.name, head.bias) == ("linear", True)


# --- identity ---


def test_parameters_do_not_change():
    params = Params()
    for section, field in ((params, "seed"), (params.train, "lr"), (params.head, "bias"), (params.dataset, "name")):
        with pytest.raises(ValueError, match="frozen"):
            setattr(section, field, 1)


def test_defaults_are_not_shared():
    Params().train.loss_options["gamma"] = 1.0
    Params().grid.head.clear()
    assert Params().train.loss_options == {}
    assert Params().grid.head


def test_the_digest_ignores_name_data_grid_and_tracking_and_nothing_else():
    plain = Params().digest()
    assert make_params({}, ["exp_name=other"]).digest() == plain
    assert make_params({}, ["grid.seed=[1, 2]"]).digest() == plain
    assert make_params({}, ["tracking.register=mine"]).digest() == plain
    assert make_params({}, ["data.workers=3", "data.resident_bytes=0"]).digest() == plain
    digests = {make_params({}, [override]).digest() for override in OTHER_VALUES}
    assert len(digests | {plain}) == len(OTHER_VALUES) + 1
    changed = {override.partition("=")[0] for override in OTHER_VALUES}
    every = {path for path, _ in leaves(Params().experiment())} - {"exp_name", "head.name"}
    assert every <= changed | {f"train.{row}_options" for row in ("loss", "optimizer", "schedule", "mix")}


OTHER_VALUES = [
    "seed=1",
    "dataset.name=mnist", "dataset.root=pictures", "dataset.imb_type=step", "dataset.imb_factor=0.5",
    "dataset.seed=1", "dataset.val_fraction=0.1", "dataset.label_noise=0.1", "dataset.samples_per_class=10",
    "dataset.min_samples=1", "dataset.class_order=frequency", "dataset.test_fraction=0.2",
    "dataset.on_damaged=skip",
    "dataset.lists={test: other.txt}", "dataset.label_column=fine", "dataset.image_column=picture",
    "train.sampling=stratified",
    "model.name=resnet32", "model.image_size=16", "model.stem=cifar", "model.neck=none", "model.final_norm=true",
    "model.patch_size=2",
    "head=fixed_etf", "head.bias=true", "head.normalize=true", "head.temperature=5",
    "train.epochs=1", "train.batch_size=2", "train.lr=0.2", "train.optimizer=adam", "train.momentum=0.5",
    "train.weight_decay=0", "train.schedule=none", "train.loss=focal", "train.loss_options.gamma=1",
    "train.drift_penalty=0.1", "train.augment=crop", "train.precision=fp32", "train.device=cpu",
    "train.analyze_freq=1", "train.save_logits=true", "train.save_features=true",
    "model.num_features=11", "model.num_features=K+1", "model.pretrained=true", "model.affine=false",
    "train.optimizer_options.gain=5", "train.decay=head", "train.schedule_options.gamma=0.5", "train.warmup=0.1",
    "train.reweight=0.9", "train.reweight_after=0.5", "train.posthoc_tau=1", "train.feature_decay=0.1",
    "train.analyze_layers=true", "train.analyze_solver=true",
    "model.checkpoint=weights.pth", "model.trainable=head",
    "train.penalties={center: 0.1}", "train.penalty_options={supcon: {temperature: 0.2}}",
    "train.augment_options={erasing: {probability: 0.5}}", "train.mix=mixup", "train.mix_options.alpha=0.2",
    "train.sam=0.05", "train.ema=0.9",
    "train.max_steps=100", "train.stop={patience: 3}", "train.accumulate=2", "train.max_grad_norm=1",
    "train.schedule_per=step", "train.label_smoothing=0.1", "train.layer_decay=0.75", "model.drop_path=0.1",
    "train.analyze=streaming", "train.compile=true",
]  # fmt: skip


def test_a_digest_is_twelve_hex_digits_of_the_content():
    digest = Params().digest()
    assert len(digest) == 12 and int(digest, 16) >= 0
    assert digest == make_params(Params().resolved()).digest()


@pytest.mark.parametrize("name", ["", "  ", "a/b", "a:b", "it's", "x" * 201, 3])
def test_a_name_that_a_registry_of_models_refuses_is_rejected(name):
    with pytest.raises(ValueError, match=r"tracking\.register"):
        make_params({"tracking": {"register": name}})


def test_what_data_and_tracking_do_is_resolved_but_is_no_part_of_the_experiment():
    params = make_params({}, ["tracking.register=mine", "data.workers=3"])
    others = {"tracking": {"register": "mine", "also": []}, "data": {"workers": 3, "resident_bytes": None}}
    assert params.resolved() == params.experiment() | others
    assert make_params(params.resolved()) == params


def test_what_is_resolved_is_plain_data_without_the_grid():
    resolved = Params().resolved()
    assert "grid" not in resolved
    for _, value in leaves(resolved):
        assert value is None or isinstance(value, str | int | float | bool | dict | list)
        assert not (isinstance(value, float) and math.isnan(value))


def test_what_is_resolved_is_written_without_aliases_which_reports_refuse():
    shared = [1, 2]
    options = {"optimizer_options": {"betas": [0.9, 0.99]}, "loss_options": {"gamma": shared}}
    train = {"loss": "focal", "optimizer": "adam", "schedule": "multistep", "schedule_options": {"milestones": shared}}
    assert "*" in yaml.safe_dump({"train": train | options})
    assert "*" not in yaml.safe_dump(make_params({"train": train | options}).resolved())


def test_a_head_set_by_name_keeps_the_options_set_for_it():
    for overrides in (["head=fixed_etf", "head.temperature=3"], ["head.temperature=3", "head=fixed_etf"]):
        assert make_params({}, overrides).head.model_dump() == {
            "name": "fixed_etf",
            "temperature": 3.0,
            "rotation_seed": None,
        }


@pytest.mark.parametrize(
    ("text", "overrides"),
    [
        ("a=1 b.c=2", ["a=1", "b.c=2"]),
        ("grid.seed=[0, 1]  seed=2", ["grid.seed=[0, 1]", "seed=2"]),
        ('dataset.root="/my data x=1" seed=2', ['dataset.root="/my data x=1"', "seed=2"]),
        ("dataset.root=/my data", ["dataset.root=/my data"]),
        ("head={name: linear, bias: true} seed=2", ["head={name: linear, bias: true}", "seed=2"]),
        ("train.loss_options={a: [1, 2], b: 'x=1 y=2'}", ["train.loss_options={a: [1, 2], b: 'x=1 y=2'}"]),
        ("dataset.root=/it's mine seed=2", ["dataset.root=/it's mine", "seed=2"]),
        ("dataset.root='it''s a=1' seed=2", ["dataset.root='it''s a=1'", "seed=2"]),
        (r'dataset.root="a \" b=1" seed=2', [r'dataset.root="a \" b=1"', "seed=2"]),
        ("exp_name='' seed=2", ["exp_name=''", "seed=2"]),
        ("\tseed=2\n train.lr=1 ", ["seed=2", "train.lr=1"]),
        ("", []),
        ("seed", ["seed"]),
    ],
)
def test_several_overrides_in_one_text_arrive_whole(text, overrides):
    assert split_overrides([text]) == overrides
    assert split_overrides(overrides) == overrides


SCALARS = {
    "true": True, "false": False, "True": True, "null": None, "~": None, "": None, "0": 0, "-0": 0, "+1": 1, "12": 12,
    "0o17": 15, "0x1F": 31, "1.": 1.0, ".5": 0.5, "1e3": 1000.0, "1e-3": 0.001, "-1.5E+2": -150.0,
    "2020-01-01": "2020-01-01", "y": "y", "n": "n", "1e": "1e", "a:b": "a:b", "1.2.3": "1.2.3", "0x": "0x",
    "'017'": "017", '"1:30"': "1:30", "'yes'": "yes", "_1": "_1",
}  # fmt: skip


@pytest.mark.parametrize("text", SCALARS)
def test_scalars_are_those_of_yaml_1_2_as_dvc_reads_them(text, tmp_path):
    from ruamel.yaml import YAML

    values = read_config(write(tmp_path, f"a: {text}\nb: [{text or '~'}]\n"))
    theirs = YAML(typ="safe").load(f"a: {text}\n")
    assert values == {"a": SCALARS[text], "b": [SCALARS[text]]}
    assert type(values["a"]) is type(SCALARS[text])
    theirs = theirs["a"].isoformat() if hasattr(theirs["a"], "isoformat") else theirs["a"]
    assert theirs == SCALARS[text]


AMBIGUOUS = ["017", "-017", "00", "1:30", "190:20:30", "1_000", "1_0.5", "0b11", "yes", "No", "ON", "off"]


@pytest.mark.parametrize("text", AMBIGUOUS)
def test_ambiguous_yaml_is_refused_with_how_to_write_it(text, tmp_path):
    for content in (f"seed: {text}", f"dataset: {{seed: {text}}}", f"grid:\n  seed: [0, {text}]"):
        with pytest.raises(ValueError, match=rf"params.yaml is not YAML: '{re.escape(text)}': .* line \d") as error:
            read_config(write(tmp_path, content))
        assert "to some readers: " in str(error.value)
    with pytest.raises(ValueError, match=rf"--set seed: .*{re.escape(text)}.*to some readers"):
        make_params({}, [f"seed={text}"])
    assert read_config(write(tmp_path, f"seed: '{text}'")) == {"seed": text}


@pytest.mark.parametrize(
    ("order", "taken"), [("frequency", "frequency"), ("[b, a]", ["b", "a"]), ("[9, 8]", ["9", "8"])]
)
def test_an_order_of_classes_is_a_rule_or_names(order, taken):
    assert make_params({}, [f"dataset.class_order={order}"]).dataset.class_order == taken


@pytest.mark.parametrize("order", ["size", "[0.5]", "[true]", "[[a]]", "3", "null"])
def test_another_order_of_classes_is_one_message(order):
    with pytest.raises(ValueError, match="dataset.class_order: must be name or frequency, or a list of all") as error:
        make_params({}, [f"dataset.class_order={order}"])
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize("head", HEADS)
def test_parameters_can_be_pickled_and_copied(head):
    params = make_params({"head": head})
    assert pickle.loads(pickle.dumps(params)) == deepcopy(params) == params


def test_parameters_of_a_head_that_another_process_lacks_keep_their_digest(monkeypatch):
    class Mine(LinearHead):
        pass

    monkeypatch.setitem(HEADS, "mine", Mine)
    params = make_params({"head": {"name": "mine", "bias": True}})
    content, digest = pickle.dumps(params), params.digest()
    monkeypatch.delitem(HEADS, "mine")
    assert pickle.loads(content).digest() == digest


@pytest.mark.parametrize("override", ["model.options.neck=none", "dataset.options.root=pics"])
def test_an_option_is_set_in_its_key_or_in_options_but_not_in_both(override):
    assert "move it out of options" in refused(override)


def test_a_head_with_an_option_that_a_section_cannot_hold_is_refused(monkeypatch):
    class Mine(LinearHead):
        def __init__(self, num_features: int, num_classes: int, *, option: int = 1) -> None:
            super().__init__(num_features, num_classes)

    monkeypatch.setitem(HEADS, "mine", Mine)
    with pytest.raises(ValueError, match="head 'mine' has an option 'option'"):
        make_params({"head": "mine"})
