"""The wheel in an environment of torch and numpy alone: what works there, and how it says what does not."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import venv
from importlib.metadata import distribution, packages_distributions
from pathlib import Path
from zipfile import ZipFile

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import ncflow

ROOT = Path(__file__).parents[1]
UV = os.environ.get("UV") or shutil.which("uv")
LIGHT = ("geometry", "measuring", "metrics", "nn", "theory")  # the rooms that need no extra

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("hatchling") is None, reason="hatchling, which builds it, is missing"),
    pytest.mark.skipif(UV is None, reason="uv, which installs it, is missing"),
]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dist")
    shell(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder), cwd=ROOT)
    (file,) = folder.glob("*.whl")
    return file


@pytest.fixture(scope="module")
def bare(tmp_path_factory, wheel):
    """The programs of an environment with torch, numpy and what these need, as links, and the wheel.

    There is no index: the installation fails if the wheel requires anything else.
    """
    folder = tmp_path_factory.mktemp("bare")
    venv.create(folder, symlinks=True)
    (site,) = folder.glob("[Ll]ib/*/site-packages")
    packages = [distribution(name) for name in closure("torch", "numpy")]
    places = {file.parts[0]: package for package in packages for file in package.files or []}
    for top in {*places} - {"..", "__pycache__"}:
        copy = shutil.copytree if top.endswith(".dist-info") else os.symlink  # uv follows no link to metadata
        copy(places[top].locate_file(top), site / top)
    python = folder / "bin" / "python"
    shell(UV, "pip", "install", "--no-index", "--offline", "--python", str(python), str(wheel), cwd=folder)
    return python.parent


def closure(*names: str) -> set[str]:
    """These packages and all that they require on this machine."""
    found = {(name, "") for name in names}
    while new := {pair for name, extra in found for pair in required(name, extra)} - found:
        found |= new
    return {name for name, _ in found}


def required(name: str, extra: str) -> set[tuple[str, str]]:
    """Pairs of package and extra that a package requires, itself and with an extra."""
    lines = [Requirement(line) for line in distribution(name).requires or []]
    lines = [line for line in lines if line.marker is None or line.marker.evaluate({"extra": extra})]
    return {(canonicalize_name(line.name), wanted) for line in lines for wanted in ("", *line.extras)}


def shell(*command: str, cwd: Path, code: int = 0) -> str:
    """What a command prints, without this repository on the path; its exit code must be `code`."""
    unset = {"PYTHONPATH", "PYTHONDONTWRITEBYTECODE", "VIRTUAL_ENV", "NCFLOW_IMPORT"}
    environment = {key: value for key, value in os.environ.items() if key not in unset}
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


def run(bare: Path, code: str) -> list[str]:
    """The lines that a program prints in the bare environment."""
    return shell(str(bare / "python"), "-c", code, cwd=bare).splitlines()


def test_the_environment_has_torch_and_numpy_and_nothing_else_of_ours(bare):
    allowed = closure("torch", "numpy") | {"ncflow"}
    others = {
        module for module, homes in packages_distributions().items() if not {*map(canonicalize_name, homes)} & allowed
    }
    others = sorted(name for name in others if name.isidentifier() and name not in sys.stdlib_module_names)
    code = f"import importlib.util as u; print([name for name in {others} if u.find_spec(name)])"
    assert {"pandas", "mlflow", "torchvision", "scipy", "torchmetrics", "pydantic", "typer"} <= {*others}
    assert run(bare, code) == ["[]"]


def test_the_examples_of_the_readme_run_there(bare, tmp_path):
    section = (ROOT / "README.md").read_text().split("## In your own code")[1].split("\n## ")[0]
    (page := tmp_path / "page.md").write_text(section)
    code = f"import doctest; print(*doctest.testfile({str(page)!r}, module_relative=False))"
    failed, attempted = map(int, run(bare, code)[-1].split())
    assert failed == 0 and attempted > 10


def test_every_name_of_the_light_rooms_loads_there(bare):
    names = [name for name, home in ncflow.HOMES.items() if home in LIGHT and name != "NeuralCollapse"]
    code = f"import ncflow; print(len([getattr(ncflow, name) for name in {names}]))"
    assert run(bare, code) == [str(len(names))] and len(names) > 30


def test_heads_losses_metrics_and_theory_work_there(bare):
    code = """
import numpy, torch, ncflow
features, targets = torch.randn(60, 8), torch.arange(60) % 5
for name in set(ncflow.HEADS):
    head = ncflow.create_head(name, 8, 5, **({"class_counts": [12] * 5} if name == "fixed_frame" else {}))
    logits = head(features, targets)
    for loss in ("ce", "balanced_softmax", "focal"):
        ncflow.create_loss(loss, [12] * 5)(logits, targets)
metrics = ncflow.collapse_metrics(features, targets, head.weight.detach())
measured = ncflow.measure(features.numpy(), targets.numpy(), weight=head.weight.detach().numpy()).metrics["train"]
assert metrics.keys() <= measured.keys()
moments = ncflow.ClassMoments.from_features(features, targets, 5)
assert len(ncflow.predicted_optimum("ce", [12] * 5, lambda_w=1e-3, lambda_h=1e-3).logits) == 5
print("done")
"""
    assert run(bare, code)[-1] == "done"


def test_a_name_that_needs_an_extra_says_which(bare):
    program = ["import torch, ncflow"]
    for code in NEEDS:
        program += ["try:", f"    {code}", "except ModuleNotFoundError as error:", "    print(error)"]
    lines = run(bare, "\n".join(program))
    for line, (code, (package, extra)) in zip(lines, NEEDS.items(), strict=True):
        wanted = f"the package {package}, which is not installed; install it with `pip install 'ncflow[{extra}]'`"
        assert line.startswith("ncflow.") and line.endswith(f" needs {wanted}"), code


@pytest.mark.parametrize("command", [("ncflow",), ("ncflow", "--help"), ("python", "-m", "ncflow", "train")])
def test_the_command_line_says_how_to_install_it(bare, command, tmp_path):
    said = shell(str(bare / command[0]), *command[1:], cwd=tmp_path, code=65)
    wanted = "ncflow.cli needs the package typer, which is not installed; install it with `pip install 'ncflow[train]'`"
    assert said == f"ncflow: {wanted}\n"


def test_the_wheel_has_the_license_the_types_and_the_data(wheel):
    names = ZipFile(wheel).namelist()
    for end in (".dist-info/licenses/LICENSE", "/py.typed", "/reports/page.html.j2", "/experiments/published.csv"):
        assert [name for name in names if name.endswith(end)], end
    assert {name.partition("/")[0].partition("-")[0] for name in names} == {"ncflow"}


def test_the_metadata_says_who_made_it_and_that_it_is_typed(wheel):
    with ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        lines = archive.read(name).decode().splitlines()
    for line in ("Author: The ncflow developers", "License-Expression: MIT", "Classifier: Typing :: Typed"):
        assert line in lines


NEEDS = {  # code -> the missing package and its extra
    "ncflow.NeuralCollapse": ("torchmetrics", "torchmetrics"),
    "from ncflow.metrics import NeuralCollapse": ("torchmetrics", "torchmetrics"),
    "ncflow.fit": ("accelerate", "train"),
    "ncflow.read_runs": ("pyyaml", "train"),
    "ncflow.create_backbone('timm/resnet18')": ("timm", "train"),
    "ncflow.nearest_etf(torch.randn(3, 4), solver='riemannian')": ("jax", "riemannian"),
    "import ncflow.tracking; ncflow.tracking.store('.').__enter__()": ("mlflow", "track"),
}
