"""The house as a whole: public names, what importing them costs, and twins that must not drift apart."""

from __future__ import annotations

import ast
import inspect
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from forked import run_programs

import ncflow
from ncflow import nn, params
from ncflow.extras import PACKAGES

ROOT = Path(__file__).parents[1]

HEAVY = [
    "torch",
    "numpy",
    "mlflow",
    "dvc",
    "datasets",
    "matplotlib",
    "torchvision",
    "timm",
    "jax",
    "accelerate",
    "typer",
]


def python(code: str) -> str:
    """What a fresh interpreter prints."""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


@pytest.mark.parametrize("name", ncflow.HOMES)
def test_every_public_name_resolves_and_is_listed(name):
    value = getattr(ncflow, name)
    assert getattr(value, "__name__", name) == name
    assert name in dir(ncflow)


def test_checkers_see_the_names_that_are_loaded():
    tree = ast.parse(Path(ncflow.__file__).read_text())
    (block,) = [node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"]
    seen = {alias.name: node.module.removeprefix("ncflow.") for node in block.body for alias in node.names}
    assert seen == ncflow.HOMES
    assert {*ncflow.__all__} == {*ncflow.HOMES, "__version__"}


def test_a_renamed_function_warns_and_works():
    with pytest.warns(DeprecationWarning, match=r"ncflow.class_counts is now ncflow.longtail_counts"):
        assert ncflow.class_counts is ncflow.longtail_counts


USER = """
from pathlib import Path
import torch
from ncflow import EpochRecord, LinearHead, collapse_metrics, create_head, nearest_etf, read_runs, simplex_etf
head = LinearHead(8, 4, bias=True)
etf: torch.Tensor = nearest_etf(torch.randn(4, 8))
metrics: dict[str, float] = collapse_metrics(torch.randn(9, 8), torch.arange(9) % 4)
reveal_type(create_head("linear", 8, 4))
reveal_type(read_runs)
def show(record: EpochRecord) -> float:
    return record.loss
"""
WRONG = """
from ncflow import LinearHaed
import ncflow
ncflow.simplex_etff(4)
ncflow.simplex_etf("four")
ncflow.LinearHead(8, 4, biass=True)
"""


@pytest.mark.slow
def test_a_users_file_is_checked_against_the_public_names(tmp_path):
    (tmp_path / "right.py").write_text(USER)
    (tmp_path / "wrong.py").write_text(WRONG)
    cached = ["--config-file", str(ROOT / "pyproject.toml"), "--cache-dir", str(ROOT / ".mypy_cache")]  # as CI's check
    command = [sys.executable, "-m", "mypy", *cached, "right.py", "wrong.py"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    lines = done.stdout.splitlines()
    assert not [line for line in lines if line.startswith("right.py") and "error" in line], done.stdout
    assert 'right.py:8: note: Revealed type is "ncflow.nn.heads.Head"' in lines
    assert {int(line.split(":")[1]) for line in lines if line.startswith("wrong.py") and "error" in line} == {
        2,
        4,
        5,
        6,
    }


def test_a_name_that_is_not_public_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'ncflow' has no attribute 'nothing'"):
        _ = ncflow.nothing


def test_importing_the_package_loads_nothing_heavy():
    assert python(f"import sys, ncflow; print([name for name in {HEAVY} if name in sys.modules])") == "[]"


def test_parameters_load_nothing_heavy():
    assert python(f"import sys, ncflow.params; print([name for name in {HEAVY} if name in sys.modules])") == "[]"


ABSENT = {  # a room -> what importing it must not import
    "ncflow.geometry": {*HEAVY} - {"torch", "numpy"},
    "ncflow.metrics": {*HEAVY} - {"torch", "numpy"} | {"torchmetrics"},
    "ncflow.nn": {"mlflow", "dvc", "datasets", "matplotlib", "jax", "accelerate", "timm"},
    "ncflow.training": {"mlflow", "dvc", "datasets", "matplotlib", "jax", "timm"},
}
ROOM = "import sys, {room}; print(sorted({absent} & set(sys.modules)))"
LIGHT = ["geometry", "measuring", "metrics", "nn", "theory"]
NAMES = """
import sys, numpy
before = set(sys.modules)
import ncflow
for name in {names}:
    getattr(ncflow, name)
features, targets = numpy.random.randn(30, 4), numpy.arange(30) % 3
if {room!r} == "metrics":
    ncflow.collapse_metrics(features, targets)
if {room!r} == "measuring":
    ncflow.measure(features, targets)
print(sorted((set(sys.modules) - before) & {extras}))
"""


def names_of(room: str) -> list[str]:
    return [name for name, home in ncflow.HOMES.items() if home == room and name != "NeuralCollapse"]


@pytest.fixture(scope="module")
def imported(tmp_path_factory):
    """What is printed of a room of ABSENT, and of the names of a room of LIGHT."""
    extras = packages_of_extras()
    programs = {room: ROOM.format(room=room, absent=absent) for room, absent in ABSENT.items()}
    programs |= {room: NAMES.format(room=room, names=names_of(room), extras=extras) for room in LIGHT}
    done = run_programs([*programs.values()], tmp_path_factory.mktemp("imports"))
    return dict(zip(programs, done, strict=True))


@pytest.mark.parametrize("room", ABSENT)
def test_a_room_imports_only_what_it_stands_on(imported, room):
    assert imported[room] == (0, "[]\n")


@pytest.mark.parametrize("room", LIGHT)
def test_a_name_of_a_light_room_imports_no_package_of_an_extra(imported, room):
    assert names_of(room) and imported[room] == (0, "[]\n")


def packages_of_extras() -> set[str]:
    """The modules of all packages that extras of ncflow install."""
    table = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    packages = {re.match(r"[\w.-]+", line)[0] for name, lines in table.items() if name != "all" for line in lines}
    modules = {package: module for module, package in PACKAGES.items()}
    return {modules.get(package, package.replace("-", "_")) for package in packages}


def test_training_metrics_and_heads_run_with_neither_mlflow_nor_dvc_installed():
    code = """
import sys
from pathlib import Path
sys.modules["mlflow"] = sys.modules["dvc"] = None  # importing them fails
import torch
from ncflow.metrics import collapse_metrics
from ncflow.nn import HEADS, Classifier, create_head, create_loss
from ncflow.training import create_optimizer, fit
for name in HEADS:
    head = create_head(name, 4, 3)
    logits = head(torch.randn(6, 4), torch.arange(6) % 3)
    assert collapse_metrics(torch.randn(6, 4), torch.arange(6) % 3, head.weight, head.bias)
print("done")
"""
    assert python(code) == "done"


# --- twins ---


@pytest.mark.parametrize("name", nn.HEADS)
def test_the_options_of_a_head_are_its_signature(name):
    """But for the temperature: the fixed ETF of the paper's comparison has 5, as the nearest."""
    options = {
        p.name: p.default
        for p in inspect.signature(nn.HEADS[name]).parameters.values()
        if p.kind is p.KEYWORD_ONLY and p.name != "class_counts"  # of the data
    }
    found = {option: field.default for option, field in params.head_section(name).model_fields.items()}
    assert found == {"name": name} | options | ({"temperature": 5.0} if name.startswith("fixed_") else {})


@pytest.mark.parametrize("name", nn.HEADS)
def test_the_head_of_default_parameters_can_be_made(name):
    chosen = params.make_params({"head": name}).head
    assert type(nn.create_head(chosen.name, 16, 10, **chosen.model_dump(exclude={"name"}))) is nn.HEADS[name]


def test_the_solvers_and_averages_that_parameters_allow_are_those_that_exist():
    from ncflow.geometry.nearest import SOLVERS
    from ncflow.nn.heads import AVERAGES

    for field, table in (("solver", SOLVERS), ("momentum", AVERAGES)):
        for name in table:
            chosen = params.make_params({"head": {"name": "nearest_etf", field: name}}).head
            assert getattr(chosen, field) == name
        with pytest.raises(ValueError, match=f"head.{field}"):
            params.make_params({"head": {"name": "nearest_etf", field: "none of them"}})


def test_every_option_of_a_model_is_one_of_some_backbone():
    signatures = [inspect.signature(builder).parameters for builder in nn.BACKBONES.values()]
    for option in params.ModelParams().keywords(num_classes=10):
        assert any(option in signature for signature in signatures), option


def test_every_option_of_a_backbone_can_be_chosen():
    known = set(params.ModelParams.model_fields)
    for name, builder in nn.BACKBONES.items():
        options = {p.name for p in inspect.signature(builder).parameters.values() if p.kind is p.KEYWORD_ONLY}
        if not builder.__module__.startswith("ncflow."):  # of a user's own row they go into model.options
            continue
        assert options - {"num_samples"} <= known, name  # a fact about numbered images, not a choice


def test_the_defaults_of_training_name_what_exists():
    from ncflow.data import AUGMENTATIONS, PROFILES, SOURCES
    from ncflow.training import OPTIMIZERS, SCHEDULES
    from ncflow.training.hardware import DTYPES

    chosen = params.Params()
    assert chosen.train.optimizer in OPTIMIZERS and chosen.train.schedule in SCHEDULES
    assert chosen.train.loss in nn.LOSSES and chosen.train.augment in AUGMENTATIONS
    assert chosen.dataset.name in SOURCES and chosen.model.name in nn.BACKBONES
    for name in PROFILES:
        assert params.make_params({}, [f"dataset.imb_type={name}"])
    for name in [*DTYPES, "auto"]:
        assert params.make_params({}, [f"train.precision={name}"])
