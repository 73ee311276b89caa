"""The command as a whole program: what each imports, and how it ends."""

from __future__ import annotations

import json
import pstats
import subprocess
import sys
from pathlib import Path

import pytest
from run_folders import write_run

# What takes a tenth of a second or more to import. Each command imports only what it uses.
HEAVY = {
    "datasets",
    "dvc",
    "jax",
    "matplotlib",
    "mlflow",
    "mlflow.pytorch",
    "optuna",
    "pandas",
    "ray",
    "scipy",
    "sklearn",
    "timm",
    "torch",
    "torch._dynamo",
    "torchvision",
    "lightning",
    "transformers",
}
CLIENT = {"torch", "mlflow", "mlflow.pytorch"}
TINY = ["--set", "dataset.imb_type=none", "--set", "dataset.samples_per_class=4", "--set", "train.epochs=1"]
TABLE = {  # the command -> what it may import of HEAVY
    "--help": set(),
    "train --help": set(),
    "experiments exp8": {"torch"},
    "train --check": {"torch"},
    "report models/old": {"torch", "matplotlib", "pandas"},
    "train": {*CLIENT, "torch._dynamo", "matplotlib", "pandas", "scipy"},  # MLflow imports pandas and scipy
}
LOOK = """
import atexit, json, sys
from pathlib import Path
atexit.register(lambda: Path("modules.json").write_text(json.dumps([*sys.modules])))
from ncflow.__main__ import program
program()
"""


@pytest.mark.slow
@pytest.mark.parametrize("command", TABLE)
def test_a_command_imports_only_what_it_uses(command, tmp_path):
    write_run(tmp_path / "models" / "old")
    if command == "train":
        python_m("ncflow", "snapshot", *TINY, cwd=tmp_path, check=True)  # which imports scikit-learn for its digits
    words = command.split() + (TINY if command == "train" else [])
    done = subprocess.run([sys.executable, "-c", LOOK, *words], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    imported = HEAVY.intersection(json.loads((tmp_path / "modules.json").read_text()))
    assert imported <= TABLE[command]
    assert command != "train" or imported >= CLIENT  # the test sees modules


def python_m(*words: str, cwd: Path, **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", *words], cwd=cwd, stderr=subprocess.PIPE, text=True, **options)


@pytest.mark.parametrize(
    ("words", "code"), [(["--version"], 0), (["train", "--nonsense"], 2), (["report", "missing"], 65)]
)
def test_a_program_ends_with_its_code_and_all_its_text(words, code, tmp_path):
    done = python_m("ncflow", *words, cwd=tmp_path, stdout=subprocess.PIPE)
    assert done.returncode == code
    assert (done.stdout if code == 0 else done.stderr).strip()


def test_a_profiler_still_writes_its_profile(tmp_path):
    done = python_m("cProfile", "-o", "out.prof", "-m", "ncflow", "--version", cwd=tmp_path, stdout=subprocess.PIPE)
    assert done.returncode == 0
    assert pstats.Stats(str(tmp_path / "out.prof")).total_calls > 0


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_text_that_cannot_be_written_is_no_success(tmp_path):
    with open("/dev/full", "w") as full:
        done = python_m("ncflow", "--version", cwd=tmp_path, stdout=full)
    assert done.returncode != 0 and "No space left" in done.stderr
