"""What contradicts itself is refused before anything is made, with what to try; every published run passes."""

from __future__ import annotations

import re
import sys
from itertools import combinations

import pytest
import torch
import torchvision

from ncflow import assembly, cli, stages
from ncflow.consistency import RULES, refuse_contradictions
from ncflow.data.sources import SOURCES, count_classes, load_source
from ncflow.experiments import PUBLISHED, expand
from ncflow.geometry import FRAMES
from ncflow.lookup import fact, options_of
from ncflow.nn import HEADS
from ncflow.params import WIDTHS, Params, make_params

UFM = ["dataset.name=ufm10", "model.name=free_features"]
# rule -> overrides that break it and no other, and what its message says to try
CASES: dict[str, tuple[list[str], list[str]]] = {
    "a regression on rows that do not learn needs features of bounded length": (
        ["train.loss=mse", "head=fixed_etf", "head.temperature=null"],
        ["head.temperature=1"],
    ),
    "dot regression needs rows that stay apart by themselves": (
        ["train.loss=dot_regression", "head.normalize=true"],
        ["head={name: nearest_etf}"],
    ),
    "the target of dot regression must be within reach": (
        ["train.loss=dot_regression", "head=fixed_etf", "head.temperature=2", "train.loss_options.target=3"],
        ["train.loss_options.target=2"],
    ),
    "features of fixed length do not decay": (
        ["train.feature_decay=1e-3", "head=nearest_etf"],
        ["head.temperature=null"],
    ),
    "only a head with a solver has one to analyze": (
        ["train.analyze_solver=true", "head=fixed_etf"],
        ["train.analyze_solver=false"],
    ),
    "the class sizes are taken out once": (
        ["train.loss=logit_adjustment", "train.posthoc_tau=1"],
        ["train.loss=ce"],
    ),
    "post-hoc adjustment needs logits that are log-probabilities": (
        ["train.loss=mse", "train.posthoc_tau=1"],
        ["train.loss=ce"],
    ),
    "re-weighting sets in only where there is one": (["train.reweight_after=0.5"], ["train.reweight=0.9999"]),
    "a native imbalance has no profile": (
        ["dataset.imb_factor=-1", "dataset.imb_type=step"],
        ["dataset.imb_factor=1"],
    ),
    "a native imbalance has no order": (
        ["dataset.imb_factor=-1", "dataset.class_order=frequency"],
        ["dataset.class_order=name"],
    ),
    "free features need numbered images": (["model.name=free_features"], ["dataset.name=ufm10"]),
    "numbered images need free features": (["dataset.name=ufm10"], ["model.name=free_features"]),
    "numbered images are taken as they are": (
        [*UFM, "train.augment=flip", "model.image_size=20"],
        ["train.augment=none", "model.image_size=8"],
    ),
    "a held-out sample has no free feature": ([*UFM, "dataset.val_fraction=0.1"], ["dataset.val_fraction=0"]),
    "free features have no layers": ([*UFM, "train.analyze_layers=true"], ["train.analyze_layers=false"]),
    "published weights stay as they were published": (
        ["model.pretrained=true", "model.affine=false"],
        ["model.pretrained=false"],
    ),
    "training starts from one set of weights": (
        ["model.pretrained=true", "model.checkpoint=weights.pth"],
        ["model.pretrained=false"],
    ),
    "an option is set in one place": (
        ["train.optimizer_options={lr: 0.1, momentum: 0.5}"],
        ["train.optimizer_options={}", "train.lr=0.1", "train.momentum=0.5"],
    ),
    "a choice of what decays needs a decay": (
        ["train.decay=matrices", "train.weight_decay=null"],
        ["train.weight_decay=5e-4"],
    ),
    "a penalty has one factor": (
        ["train.drift_penalty=0.1", "train.penalties={drift: 0.2}"],
        ["train.penalties={}"],
    ),
    "options of a penalty need the penalty": (
        ["train.penalty_options={supcon: {temperature: 0.2}}"],
        ["train.penalties={supcon: 0.1}"],
    ),
    "a mixed sample has no single class": (
        ["train.mix=mixup", "train.penalties={supcon: 0.1}"],
        ["train.mix=none"],
    ),
    "pictures of numbers cannot be mixed": ([*UFM, "train.mix=cutmix"], ["train.mix=none"]),
    "sharpness needs gradients of full range": (
        ["train.sam=0.05", "train.precision=fp16"],
        ["train.precision=bf16"],
    ),
    "a part of a batch has two samples": (["train.accumulate=200"], ["train.accumulate=1"]),
    "a step that follows from the size of gradients needs them whole": (
        ["train.max_grad_norm=1", "train.optimizer=agd", "train.lr=null", "train.weight_decay=null"],
        ["train.max_grad_norm=null"],
    ),
    "rates by layer need a rate, and layers that learn": (
        ["train.layer_decay=0.75", "model.trainable=head"],
        ["train.layer_decay=1"],
    ),
    "penalties of features need features that learn": (
        ["train.penalties.nc1=0.1", "train.drift_penalty=0.1", "model.trainable=head", "head.name=linear"],
        ["model.trainable=all"],
    ),
    "blocks are dropped where blocks learn": (
        ["model.name=convnext_tiny", "model.drop_path=0.1", "model.trainable=head"],
        ["model.drop_path=null"],
    ),
    "labels are smoothed once, for losses of probabilities": (
        ["train.label_smoothing=0.1", "train.loss=ldam"],
        ["train.label_smoothing=0"],
    ),
    "early stopping needs a validation part": (["train.stop={patience: 3}"], ["dataset.val_fraction=0.1"]),
    "a stream shows each training sample once, as the measured model sees it": (
        ["train.analyze=streaming", "train.ema=0.9"],
        ["train.analyze=exact"],
    ),
    "layers and features need a pass over the data": (
        ["train.analyze=streaming", "train.save_features=true"],
        ["train.analyze=exact"],
    ),
    "built-in data has no folder": (["dataset.root=pictures"], ["dataset.root=null"]),
}


def broken(params: Params) -> list[str]:
    return [name for name, (breaks, _) in RULES.items() if breaks(params)]


def refused(*overrides: str) -> str:
    """What `ncflow train --check` says of these overrides of a small default."""
    with pytest.raises(ValueError) as caught:
        assembly.check(make_params({"model": {"image_size": 8}}, overrides))
    return str(caught.value)


# --- contradictions ---


def test_every_rule_has_a_case_here():
    assert list(CASES) == list(RULES)


@pytest.mark.parametrize("name", RULES)
def test_a_broken_rule_names_expected_value_given_value_and_remedy(name):
    overrides, _ = CASES[name]
    assert broken(make_params({}, overrides)) == [name]
    with pytest.raises(ValueError) as caught:
        refuse_contradictions(make_params({}, overrides))
    message = str(caught.value)
    assert "\n" not in message and "{train." not in message
    for word in ("xpected ", "got ", "; try "):
        assert word in message


@pytest.mark.parametrize("name", RULES)
def test_who_does_what_a_message_says_breaks_no_rule(name):
    overrides, mended = CASES[name]
    advice = RULES[name][1].partition("; try ")[2]
    assert any(override.partition("=")[0] in advice for override in mended)
    assert broken(make_params(make_params({}, overrides).model_dump(mode="json"), mended)) == []


@pytest.mark.parametrize("name", RULES)
def test_check_and_training_refuse_a_broken_rule(name, tmp_path):
    params = make_params({}, CASES[name][0])
    with pytest.raises(ValueError, match="xpected .* got .* try "):
        assembly.check(params)
    with pytest.raises(ValueError, match="xpected .* got .* try "):
        stages.train(params, folder=tmp_path / "run", data=tmp_path / "data", root=tmp_path)
    assert not list(tmp_path.iterdir())


def test_every_contradiction_is_told_at_once():
    message = refused("train.reweight_after=0.5", "train.decay=head", "train.weight_decay=null")
    assert len(message.splitlines()) == 2


@pytest.mark.parametrize("name", ["the target of dot regression must be within reach", next(iter(CASES))])
@pytest.mark.parametrize("frame", FRAMES)
def test_rules_about_unit_rows_hold_for_every_frame(name, frame):
    overrides = [key.replace("fixed_etf", f"{{name: fixed_frame, frame: {frame}}}") for key in CASES[name][0]]
    assert broken(make_params({}, overrides)) == [name]


CORRECTIONS = {
    "loss": "train.loss=balanced_softmax",
    "re-weighting": "train.reweight=0.99",
    "batches": "train.sampling=class_balanced",
    "posthoc": "train.posthoc_tau=0.5",
}


@pytest.mark.parametrize(("first", "second"), list(combinations(CORRECTIONS, 2)))
def test_two_corrections_for_class_sizes_are_one_too_many(first, second):
    rule = "the class sizes are taken out once"
    assert broken(make_params({}, [CORRECTIONS[first], CORRECTIONS[second]])) == [rule]
    assert broken(make_params({}, [CORRECTIONS[first]])) == broken(make_params({}, [CORRECTIONS[second]])) == []


@pytest.mark.parametrize(
    "overrides",
    [
        ["train.loss=mse"],  # the first seed's: rows that learn
        ["train.loss=mse", "head=fixed_etf"],
        ["train.loss=mse", "head=fixed_etf", "head.temperature=null", "train.feature_decay=0.01"],
        [*UFM, "train.loss=mse", "head=fixed_etf", "head.temperature=null"],  # free features decay as all parameters do
        ["train.loss=dot_regression", "head=nearest_etf"],  # the second seed's
        ["train.loss=dot_regression", "head=fixed_etf", "train.loss_options.target=5"],
        ["train.loss=dot_regression", "head=fixed_frame", "head.frame=orthogonal", "train.loss_options.target=5"],
        ["train.loss=ldam", "train.reweight=0.9999", "head.normalize=true", "head.temperature=1"],  # Cao et al. 2019
        ["train.posthoc_tau=1"],
        ["train.posthoc_tau=1", "train.loss=focal"],
        ["dataset.imb_factor=-1"],
        ["train.analyze_solver=true", "head=nearest_etf"],
        ["train.optimizer=adam", "train.decay=matrices"],
    ],
)
def test_what_belongs_together_passes(overrides):
    assembly.check(make_params({"model": {"image_size": 8}}, overrides))


@pytest.mark.parametrize("group", ["quickstart", *PUBLISHED])
@pytest.mark.parametrize("head", [None, *(name for name in HEADS if "temperature" in options_of(HEADS[name]))])
def test_published_groups_break_no_rule_with_any_head(group, head):
    if head and group in PUBLISHED and PUBLISHED[group]().has_own_heads:
        with pytest.raises(ValueError, match="chooses its heads itself"):
            expand(group, Params(), head=head)
        return
    for run in expand(group, Params(), head=head):
        assert broken(run) == [], run.exp_name


# --- the rest of the check ---


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["train.optimizer=agd", "train.lr=null", "train.weight_decay=null"],
            "without biases .* set model.affine=false",
        ),
        (
            ["train.optimizer=agd", "train.lr=null", "train.weight_decay=null", "model.affine=false", "head.bias=true"],
            "without biases .* head.bias=false",
        ),
        (["train.optimizer=agd", "train.weight_decay=null"], "takes no lr, got 0.1"),
        (["train.optimizer=adam", "train.momentum=0.9"], "unknown option of optimizer 'adam' 'momentum'"),
        (["train.loss=focal", "train.loss_options.gamma=-1"], "gamma >= 0, got -1"),
        (
            ["train.loss=focal", "train.loss_options.gamma=two"],
            "option gamma of loss 'focal' must be a number, got 'two'",
        ),
        (["train.loss=focal", "train.loss_options.alpha=[0.1, 0.2]"], "one for each of 10 classes"),
        (["train.loss=logit_adjustment", "train.loss_options.tau=-1"], "tau >= 0, got -1"),
        (["train.loss=label_smoothing", "train.loss_options.smoothing=1"], "smoothing in"),
        (["head=nearest_etf", "head.tolerance=1e-6"], "unknown option of solver 'closed_form' 'tolerance'"),
        (["head=nearest_etf", "model.num_features=8"], "num_features >= num_classes - 1, got 8 and 10"),
        (["head=fixed_etf", "dataset.name=cifar100"], "got 64 and 100; use a wider neck, the linear head, or"),
        (["model.stem=cifar", "model.name=vit_tiny"], "unknown option of backbone 'vit_tiny' 'stem'"),
        (["train.schedule=none", "train.schedule_options.gamma=0.5"], "unknown option of schedule 'none' 'gamma'"),
        (["train.sampling=stratifid"], "Did you mean 'stratified'"),
    ],
)
def test_wrong_options_are_refused_with_the_real_number_of_classes(overrides, message):
    assert re.search(message, refused(*overrides))


def test_an_option_per_class_is_accepted_while_classes_are_unknown():
    pictures = ["dataset.name=imagefolder", "dataset.root=pictures", "train.loss=focal"]
    assembly.check(make_params({"model": {"image_size": 8}}, [*pictures, "train.loss_options.alpha=[0.2, 0.3, 0.5]"]))
    assert "alpha >= 0" in refused(*pictures, "train.loss_options.alpha=[0.2, 0.3, -0.5]")


def test_the_command_line_tells_it_in_one_message_and_trains_nothing(tmp_path, monkeypatch, capsys):
    (tmp_path / "params.yaml").write_text("{}")
    monkeypatch.chdir(tmp_path)
    words = ["train", "--check", "--set", "train.loss=balanced_softmax", "--set", "train.posthoc_tau=1"]
    monkeypatch.setattr(sys, "argv", ["ncflow", *words])
    with pytest.raises(SystemExit) as exit_:
        cli.main()
    err = capsys.readouterr().err
    assert exit_.value.code == 65
    assert err.startswith("ncflow: the class sizes would be corrected for more than once") and "Traceback" not in err
    assert [path.name for path in tmp_path.iterdir()] == ["params.yaml"]


@pytest.mark.parametrize("name", [name for name, source in SOURCES.items() if fact(source, "built_in")])
def test_the_numbers_of_classes_are_those_of_the_sources(name):
    assert len(load_source(name).class_names) == count_classes(name)


def test_the_numbers_of_classes_are_torchvisions():
    classes = {"mnist": "MNIST", "fmnist": "FashionMNIST"}
    for name, dataset in classes.items():
        assert len(getattr(torchvision.datasets, dataset).classes) == count_classes(name)


# --- widths relative to the number of classes ---


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("width", WIDTHS)
def test_a_width_said_in_classes_serves_every_head(head, width, num_classes=7):
    params = make_params({"head": head, "model": {"image_size": 8, "num_features": width}})
    classifier = assembly.build_classifier(params, num_classes)
    targets = torch.arange(4) % num_classes
    logits, features = classifier(torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0)), targets)
    assert features.shape == (4, num_classes + WIDTHS[width])
    assert logits.shape == (4, num_classes)


@pytest.mark.parametrize("head", ["linear", "fixed_etf", "nearest_etf"])
def test_the_second_seeds_comparison_runs_at_its_width(head):
    first, *_ = expand("exp11", Params(), head=head, overrides=["model.num_features=K+1", "model.image_size=8"])
    assembly.check(first)
    assert assembly.build_classifier(first, 10).head.weight.shape == (10, 11)


@pytest.mark.parametrize("name", ["digits", "cifar100"])
def test_such_a_width_is_checked_with_the_classes_of_the_data_set(name):
    params = make_params({"dataset": {"name": name}, "head": "fixed_etf"}, ["model.num_features=K-1"])
    assembly.check(params)
    with pytest.raises(ValueError, match=f"got {count_classes(name) - 2} and {count_classes(name)}"):
        assembly.check(make_params(params.model_dump(), [f"model.num_features={count_classes(name) - 2}"]))
