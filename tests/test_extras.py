"""A missing package is one message with the extra that installs it. The table of extras is that of pyproject.toml."""

from __future__ import annotations

import ast
import importlib.metadata
import re
import sys
import tomllib
from pathlib import Path

import pytest

import ncflow
from ncflow import extras

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
BROUGHT = {"huggingface_hub": "timm", "sqlalchemy": "mlflow"}  # modules of packages that a declared package needs
LOOPS = ("lightning", "pytorch-lightning", "transformers")  # ncflow.integrations runs inside of them
LINES = [
    "torch>=2.15",
    "PyYAML>=6.0; extra == 'all'",
    "PyYAML>=6.0; extra == 'train'",
    "scikit_learn>=1.5 ; python_version > '3' and extra == \"train\"",
    "ray[default]>=2.50; extra == 'cluster'",
]


def imported(name: str, importer: str, code: str = "import {}") -> object:
    """Run an import as if a module called `importer` had it."""
    scope = {"__name__": importer}
    exec(code.format(name), scope)
    return scope.get("found")


@pytest.mark.parametrize("code", ["import {}", "from {} import thing", "__import__('importlib').import_module('{}')"])
def test_an_import_of_ncflow_that_fails_names_the_importer_and_remedy(code):
    with pytest.raises(extras.MissingPackage, match=r"ncflow\.here needs .* `pip install no_such_package`") as raised:
        imported("no_such_package", "ncflow.here", code)
    assert raised.value.name == "no_such_package"


@pytest.mark.parametrize(
    ("importer", "name"),
    [("another", "no_such_package"), ("ncflowers", "no_such_package"), ("ncflow.here", "json.no_such_module")],
)
def test_other_imports_fail_as_before(importer, name):
    with pytest.raises(ModuleNotFoundError, match="No module named") as raised:
        imported(name, importer)
    assert not isinstance(raised.value, extras.MissingPackage)


def test_asking_whether_a_package_is_there_is_no_import():
    assert imported("no_such_package", "ncflow.here", "import importlib.util as u; found = u.find_spec('{}')") is None


def test_python_has_one_finder_however_often_it_is_asked_for():
    extras.explain_missing_packages()
    assert sum(isinstance(finder, extras.ExtraFinder) for finder in sys.meta_path) == 1


@pytest.mark.parametrize(
    ("module", "wanted"),
    [("yaml", "'ncflow[train]'"), ("sklearn", "'ncflow[train]'"), ("ray", "'ncflow[cluster]'"), ("torch", "torch")],
)
def test_the_extra_is_the_one_in_the_metadata_of_the_package(monkeypatch, module, wanted):
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: LINES)
    assert extras.remedy(module).endswith(f"install it with `pip install {wanted}`")


def test_a_source_tree_without_metadata_names_the_package(monkeypatch):
    def requires(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "requires", requires)
    assert "the package pillow, which is not installed; install it with `pip install pillow`" in extras.remedy("PIL")


def test_a_package_that_is_needed_later_is_missed_before():
    extras.require("torch", "json")
    with pytest.raises(extras.MissingPackage, match="ncflow needs the package no_such_package"):
        extras.require("torch", "no_such_package")


def test_every_package_that_ncflow_imports_is_declared():
    declared = {plain(line) for lines in [PROJECT["dependencies"], *optional().values()] for line in lines}
    used = {name for file in Path(ncflow.__file__).parent.rglob("*.py") for name in third_party(file)}
    packages = {plain(BROUGHT.get(name, extras.PACKAGES.get(name, name))) for name in used}
    assert packages - declared - {*LOOPS} == set()


def test_the_extra_for_all_has_every_other_one():
    (line,) = PROJECT["optional-dependencies"]["all"]
    assert {*re.findall(r"\w+", line)} == {"ncflow", *optional()}


def test_the_page_on_installation_has_a_row_for_each_extra():
    rows = re.findall(r"^\| `(\w+)` \|", (ROOT / "docs" / "install.md").read_text(), flags=re.MULTILINE)
    assert {*rows} == {*PROJECT["optional-dependencies"]}


def test_the_base_is_torch_and_numpy_and_no_package_is_declared_twice():
    assert {plain(line) for line in PROJECT["dependencies"]} == {"numpy", "torch"}
    names = [plain(line) for lines in [PROJECT["dependencies"], *optional().values()] for line in lines]
    assert len(names) == len({*names})


def optional() -> dict[str, list[str]]:
    return {name: lines for name, lines in PROJECT["optional-dependencies"].items() if name != "all"}


def plain(line: str) -> str:
    """The name of a requirement, in lower case and with hyphens."""
    return re.sub(r"[-_.]+", "-", re.match(r"[\w.-]+", line)[0]).lower()


def third_party(file: Path) -> set[str]:
    """The packages that a file imports anywhere, besides the standard library and ncflow."""
    nodes = [*ast.walk(ast.parse(file.read_text()))]
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)}
    return {name.partition(".")[0] for name in names} - {*sys.stdlib_module_names, "ncflow", ""}
