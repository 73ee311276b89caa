"""A group in a file groups/<name>.yaml is a group as any other; what is wrong in it is named with file and key."""

from __future__ import annotations

import pytest

from ncflow.experiments import expand, list_groups
from ncflow.params import make_params

TEXT = """\
hypothesis: >
  A low rate
  collapses later.
expected: nc1 is higher at 0.1.
base:
  dataset.imb_factor: 0.1
  train: {epochs: 3, loss_options: {gamma: 1.0}, loss: focal}
  head: {name: nearest_etf, temperature: 3}
grid:
  train.lr: [0.3, 0.1]
  head: [linear, {name: linear, normalize: true}, nearest_etf]
  seed: 0..1
"""
BASE = make_params({"exp_name": "main", "head": {"name": "linear", "bias": True}, "train": {"epochs": 9, "lr": 0.5}})


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "groups"
    folder.mkdir()
    (folder / "mine.yaml").write_text(TEXT)
    return folder


def runs(folder, **options):
    return expand("mine", options.pop("base", BASE), groups=folder, **options)


def test_a_file_is_its_base_on_the_parameters_times_its_grid(folder):
    found = runs(folder)
    assert [run.exp_name for run in found] == [
        f"mine_lr{lr}_{head}_seed{seed}"
        for lr in (0.3, 0.1)
        for head in ("linear", "linear_normalize", "nearest_etf")
        for seed in (0, 1)
    ]
    assert {(run.train.epochs, run.dataset.imb_factor, run.train.loss) for run in found} == {(3, 0.1, "focal")}
    assert [run.head.option("temperature") for run in found[::2]][:3] == [None, None, 3.0]
    assert [run.head.option("bias") for run in found[::2]][:3] == [False, False, None]


def test_options_of_the_command_come_on_top_of_a_file(folder):
    found = runs(folder, overrides=["train.epochs=1"], grid=["train.lr=1,2", "train.weight_decay=0,1"], head="linear")
    assert {run.train.epochs for run in found} == {1}
    assert [run.exp_name for run in found[:5]] == [
        *("mine_lr1_weight_decay0_seed0", "mine_lr1_weight_decay1_seed0"),
        *("mine_lr1_weight_decay0_seed1", "mine_lr1_weight_decay1_seed1"),
        "mine_lr2_weight_decay0_seed0",
    ]


def test_an_override_narrows_the_grid_of_a_file(folder):
    found = runs(folder, overrides=["train.lr=0.7", "seed=5", "head.name=fixed_etf"])
    assert [(run.exp_name, run.train.lr, run.seed) for run in found] == [("mine", 0.7, 5)]


def test_the_files_are_listed_after_the_groups_of_ncflow(folder):
    assert list(list_groups(folder).items())[-1] == ("mine", "A low rate collapses later.")
    assert "mine" not in list_groups() and "mine" not in list_groups(folder / "nowhere")
    with pytest.raises(ValueError, match="unknown experiment group 'mien'. Did you mean 'mine'"):
        expand("mien", BASE, groups=folder)


def test_nested_and_dotted_keys_are_the_same(folder):
    before = runs(folder)
    (folder / "mine.yaml").write_text(TEXT.replace("  train.lr: [0.3, 0.1]\n", "  train: {lr: [0.3, 0.1]}\n"))
    assert runs(folder) == before


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("hypothesis:", "hypotesis:", "unknown key 'hypotesis'. Did you mean 'hypothesis'?"),
        ("grid:", "gird:", "unknown key 'gird'. Did you mean 'grid'?"),
        ("expected:", "expected: [1]\n#", "expected must be a text, got [1]"),
        ("  train.lr: [0.3, 0.1]", "  train.lrr: [0.3, 0.1]", "unknown key 'train.lrr'. Did you mean 'train.lr'?"),
        ("epochs: 3", "epoch: 3", "unknown key 'train.epoch'. Did you mean 'train.epochs'?"),
        ("epochs: 3", "epochs: many", "train.epochs: Input should be a valid integer, got 'many'"),
        ("[0.3, 0.1]", "0.3,0.1", "grid train.lr expects a list such as [0.3, 0.1], or a range such as 0..4"),
        ("[0.3, 0.1]", "[0.3]", "grid train.lr has one value"),
        ("[0.3, 0.1]", "[0.3, 0.3]", "grid train.lr: 0.3 is given twice"),
        ("0..1", "1..0", "grid seed: a range counts up"),
        ("epochs: 3", "lr: 3", "base sets train.lr, and grid varies it; leave it out of base"),
        ("  dataset.imb_factor: 0.1", "  exp_name: a", "base cannot set exp_name"),
        ("  seed: 0..1", "  exp_name: [a, b]", "grid cannot vary exp_name"),
        ("  seed: 0..1", "  1: [a, b]", "grid expects keys such as train.lr, got 1"),
        ("  seed: 0..1", "  train: {lr: [1, 2]}", "grid train.lr is given twice"),
        ("grid:", "base:", "base given twice"),
        ("expected:", "hypothesis:", "hypothesis given twice"),
        (TEXT, "- a\n", "expected a mapping with hypothesis, expected, base, grid, got list"),
        (TEXT, "", "expected a mapping with hypothesis, expected, base, grid, got NoneType"),
        (TEXT, "grid: {seed: 0..1}\n", "expected the key hypothesis, got grid"),
        (TEXT, "hypothesis: a\n", "expected the key grid, got hypothesis"),
        (TEXT, "hypothesis: a\ngrid: {}\n", "grid must be a mapping of keys"),
        ("[0.3, 0.1]", "[0.3, 0.1", "is not YAML"),
        ("[0.3, 0.1]", "[2020-01-01, !!binary aGk=]", "train.lr expects a number, text"),
    ],
)
def test_what_is_wrong_in_a_file_is_named(folder, old, new, words):
    assert TEXT.count(old)
    (folder / "mine.yaml").write_text(TEXT.replace(old, new))
    with pytest.raises(ValueError) as error:
        runs(folder)
    assert words in str(error.value) and "mine" in str(error.value)


def test_a_file_cannot_expand_without_limit(folder):
    bomb = "a: &a [x, x, x, x, x, x, x, x, x]\n"
    for one, two in zip("abcdefgh", "bcdefghi", strict=True):
        bomb += f"{two}: &{two} [{', '.join([f'*{one}'] * 9)}]\n"
    (folder / "mine.yaml").write_text(bomb)
    with pytest.raises(ValueError, match=r"mine.yaml is not YAML: got an alias"):
        runs(folder)


def test_a_file_with_the_name_of_a_group_is_refused(folder):
    (folder / "exp8.yaml").write_text(TEXT)
    for call in (lambda: expand("exp8", BASE, groups=folder), lambda: list_groups(folder)):
        with pytest.raises(ValueError, match=r"exp8.yaml: the name exp8 belongs to another group; rename the file"):
            call()
    assert runs(folder)


def test_a_file_with_the_other_ending_is_named(folder):
    (folder / "mine.yaml").rename(folder / "mine.yml")
    with pytest.raises(ValueError, match=r"mine.yml: the file of a group ends in .yaml; rename it to mine.yaml"):
        runs(folder)


def test_a_file_whose_name_cannot_name_runs_is_refused(folder):
    (folder / "my group.yaml").write_text(TEXT)
    with pytest.raises(ValueError, match=r"my group.yaml: must be a plain folder name"):
        expand("my group", BASE, groups=folder)
