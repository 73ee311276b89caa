"""Root files and their twins in the package say the same: params.yaml, dvc.yaml, MLproject."""

import inspect
import re
import sys
import tomllib
from dataclasses import fields
from pathlib import Path

import pytest
import yaml

import ncflow
from ncflow import cli, stages
from ncflow.data import Recipe
from ncflow.params import Params, Section, load_params

ROOT = Path(__file__).parents[1]


def test_every_dvc_stage_has_a_function_and_a_command_of_its_name():
    pipeline = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    commands = {command.callback.__name__ for command in cli.app.registered_commands}
    for name, stage in pipeline.items():
        assert inspect.isfunction(getattr(stages, name))
        assert name in commands
        assert stage["cmd"].startswith(f"python -m ncflow {name}")


def test_the_keys_of_params_yaml_are_keys_of_params():
    params = load_params(ROOT / "params.yaml")
    text = yaml.safe_load((ROOT / "params.yaml").read_text())
    assert set(text) == set(Params.model_fields)
    assert params.exp_name == "main"


def test_the_data_options_are_those_of_a_snapshot_with_the_same_defaults():
    params = Params().dataset.model_dump()
    recipe = {field.name: field.default for field in fields(Recipe) if field.name != "options"}  # left out while empty
    assert params == recipe | {"name": "digits"}


def test_the_default_job_is_the_one_that_was_asked_for():
    params = load_params(ROOT / "params.yaml")
    assert (params.dataset.name, params.dataset.imb_type, params.dataset.imb_factor) == ("digits", "exp", 0.02)
    assert (params.model.name, params.model.image_size) == ("resnet20", 32)
    how = params.train
    assert (how.epochs, how.lr, how.weight_decay, how.batch_size, how.analyze_freq) == (30, 0.1, 5e-4, 64, 3)
    assert params.grid.head == ["linear", "fixed_etf", "nearest_etf"]


@pytest.mark.parametrize("command", re.findall(r"`ncflow (.*?)`", (ROOT / "params.yaml").read_text()))
def test_the_commands_in_params_yaml_exist(command, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["ncflow", *command.split()[:1], "--help"])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 0
    table = command.split()[1:]
    assert command.split()[0] != "rows" or table[0] in cli.TABLES


def test_the_citation_names_this_version_its_authors_and_license():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert {"cff-version", "message", "title", "authors", "version", "license"} <= citation.keys()
    assert citation["cff-version"] == "1.2.0" and citation["type"] == "software"
    assert citation["title"] == project["name"] and citation["abstract"] == project["description"]
    assert citation["authors"] == project["authors"] != []
    assert citation["version"] == project["version"] == ncflow.__version__
    assert citation["license"] == project["license"] and citation["keywords"] == project["keywords"]


def test_the_environment_of_mlflow_and_of_a_clone_have_every_extra():
    environment = yaml.safe_load((ROOT / "python_env.yaml").read_text())
    groups = tomllib.loads((ROOT / "pyproject.toml").read_text())["dependency-groups"]
    assert environment["dependencies"] == [".[all]"]
    assert "ncflow[all]" in groups["dev"]  # the group that `uv run` installs


def test_the_packages_that_the_client_fixed_are_in_all_of_them():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = [line for name in ("track", "train", "riemannian") for line in project["optional-dependencies"][name]]
    packages = {re.split("[>=[]", line)[0] for line in [*project["dependencies"], *lines]}
    assert {"mlflow", "dvc", "torch", "torchvision", "timm", "datasets"} <= packages
    assert {"pymanopt", "jax", "pyyaml", "accelerate"} <= packages


def test_the_parameters_of_the_mlflow_entry_point_are_options_of_the_command():
    entry = yaml.safe_load((ROOT / "MLproject").read_text())["entry_points"]["main"]
    options = inspect.signature(cli.suite).parameters
    assert {f"{name}_" if name == "set" else name for name in entry["parameters"]} <= {*options, "exp"}
    assert entry["command"].startswith("python -m ncflow suite {exp}")
    for name in entry["parameters"]:
        assert f"{{{name}}}" in entry["command"]
        assert entry["parameters"][name]["type"] == "string"


def test_every_section_is_frozen_and_refuses_unknown_keys():
    sections = [Params, *Section.__subclasses__()]
    assert all(section.model_config["frozen"] and section.model_config["extra"] == "forbid" for section in sections)


@pytest.mark.parametrize(("file", "lines"), [("README.md", 220), ("CONTRIBUTING.md", 40)])
def test_the_pages_stay_short(file, lines):
    assert len((ROOT / file).read_text().splitlines()) <= lines
