"""Safe by default: reading a file runs no code, no other machine is answered, nobody is told, and names stay home."""

from __future__ import annotations

import ast
import inspect
import os
import subprocess
import sys
from configparser import ConfigParser
from pathlib import Path
from unittest.mock import MagicMock

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from thrown import PACKAGE, refusal, throw

from ncflow import tracking
from ncflow.experiments import EXPERIMENTS, expand
from ncflow.params import Params, load_params, make_params
from ncflow.suite import cluster
from ncflow.suite.track import track
from ncflow.tracking import stores
from ncflow.yaml_files import _Loader

REPOSITORY = Path(__file__).parents[2]
SOURCES = sorted([*PACKAGE.rglob("*.py"), *(REPOSITORY / "benchmarks").glob("*.py")])
# What would run code that a file or a string brings along.
MODULES = {"pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
CALLS = {
    "eval",
    "exec",
    "compile",
    "__import__",
    "os.system",
    "os.popen",
    "yaml.unsafe_load",
    "yaml.full_load",
}
LOADERS = {"_Loader if aliases else _PlainLoader"}  # both are yaml.SafeLoader


def complaints(tree: ast.AST) -> list[str]:
    """Every import and call in a module that could run what it reads."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
            found += [f"imports {name}" for name in names if name.partition(".")[0] in MODULES]
        if isinstance(node, ast.Call):
            name, options = ast.unparse(node.func), {o.arg: ast.unparse(o.value) for o in node.keywords}
            unsafe = name in CALLS
            unsafe |= name == "torch.load" and options.get("weights_only") != "True"
            unsafe |= name == "np.load" and options.get("allow_pickle") != "False"
            unsafe |= name in ("yaml.load", "yaml.load_all") and options.get("Loader") not in LOADERS
            unsafe |= options.get("shell") == "True" or options.get("allow_pickle") == "True"
            unsafe |= options.get("trust_remote_code") == "True"
            found += [f"line {node.lineno}: {ast.unparse(node)}"] * unsafe
    return found


@pytest.mark.parametrize("file", SOURCES, ids=lambda file: str(file.relative_to(REPOSITORY)))
def test_no_module_can_run_what_it_reads(file):
    assert complaints(ast.parse(file.read_text(encoding="utf-8"))) == []


@pytest.mark.parametrize(
    "code",
    [
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "yaml.load(text, Loader=yaml.Loader)",
        "yaml.load(text)",
        "import pickle",
        "from joblib import load",
        "eval(text)",
        "subprocess.run(text, shell=True)",
        "np.load(file)",
        "np.load(file, allow_pickle=True)",
    ],
)
def test_the_search_for_unsafe_code_finds_it(code):
    assert complaints(ast.parse(code))


def test_the_loader_of_yaml_files_is_a_safe_one():
    assert issubclass(_Loader, yaml.SafeLoader)


MARK = "ncflow_was_here"
TAGS = st.sampled_from(
    [
        f"!!python/object/apply:os.system ['touch {MARK}']",
        f"!!python/object/apply:subprocess.check_output [['touch', '{MARK}']]",
        f"!!python/object/new:pathlib.PosixPath ['{MARK}']",
        "!!python/name:os.system",
        "!!python/module:os",
        f"!!python/object/apply:builtins.open ['{MARK}', 'w']",
    ]
)


@throw(40)
@given(tag=TAGS, key=st.sampled_from(["exp_name", "train.lr", "head", "train.loss_options.alpha", "grid.seed"]))
def test_neither_a_file_nor_an_override_constructs_anything(tag, key, tmp_path_factory):
    folder = tmp_path_factory.getbasetemp()
    before = Path.cwd()
    os.chdir(folder)
    try:
        (folder / "tagged.yaml").write_text(f"{key.split('.')[-1]}: {tag}")
        assert "is not YAML" in str(refusal(lambda: load_params(folder / "tagged.yaml")))
        assert "is not a YAML value" in str(refusal(lambda: make_params({}, [f"{key}={tag}"])))
    finally:
        os.chdir(before)
    assert not (folder / MARK).exists()


@pytest.mark.parametrize("function", [tracking.ui, tracking.ui_address])
def test_the_ui_answers_to_this_machine_alone(function):
    assert inspect.signature(function).parameters["host"].default == "127.0.0.1"


class Started(Exception):
    """Raised in place of starting a process, with the environment that it would have had."""


@pytest.fixture
def unset(monkeypatch) -> None:
    """A user who has said nothing about telemetry; and no process is started."""
    for name in (*stores._QUIET, "DVC_NO_ANALYTICS", "RAY_USAGE_STATS_ENABLED"):
        monkeypatch.setenv(name, "")  # so that it is put back
        monkeypatch.delenv(name)

    def start(*command: object, env: dict[str, str], **options: object) -> None:
        raise Started(env)

    for method in ("Popen", "run"):
        monkeypatch.setattr(subprocess, method, start)


@pytest.mark.parametrize("chosen", [None, "false"])
def test_mlflow_and_its_server_tell_nobody_unless_the_user_wants_it(unset, monkeypatch, tmp_path, chosen):
    if chosen:
        monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", chosen)
    library = MagicMock()  # not MLflow itself, which takes seconds
    library.exceptions.MlflowException = LookupError
    monkeypatch.setitem(sys.modules, "mlflow", library)
    monkeypatch.setattr(stores, "_open_database", lambda uri, root: None)
    with pytest.raises(Started) as server, tracking.ui(tmp_path, port=1):
        pass
    for environment in (server.value.args[0], os.environ):
        assert environment["MLFLOW_DISABLE_TELEMETRY"] == (chosen or "true")


@pytest.mark.parametrize("chosen", [None, "false"])
def test_dvc_tells_nobody_of_a_tracked_group_unless_the_user_wants_it(unset, monkeypatch, tmp_path, chosen):
    if chosen:
        monkeypatch.setenv("DVC_NO_ANALYTICS", chosen)
    with pytest.raises(Started) as command:
        track("group", root=tmp_path, runs=[], snapshots=[])
    assert command.value.args[0]["DVC_NO_ANALYTICS"] == (chosen or "true")


@pytest.mark.parametrize("chosen", [None, "1"])
def test_ray_tells_nobody_unless_the_user_wants_it(unset, monkeypatch, chosen):
    monkeypatch.setitem(sys.modules, "ray", MagicMock())
    if chosen:
        monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", chosen)
    cluster._import_ray()
    assert os.environ["RAY_USAGE_STATS_ENABLED"] == (chosen or "0")


def test_dvc_tells_nobody_and_looks_for_no_update():
    config = ConfigParser()
    config.read_string("\n".join(line.strip() for line in (REPOSITORY / ".dvc" / "config").read_text().splitlines()))
    assert config["core"]["analytics"] == config["core"]["check_update"] == "false"


@pytest.mark.parametrize("group", ["../up", "/abs", "a/b", "..", "", "\0"])
def test_an_unknown_group_is_refused_before_any_folder_is_made(group):
    assert "unknown experiment group" in str(refusal(lambda: expand(group, Params())))


@pytest.mark.parametrize("group", ["../up", "a/b", ".hidden"])
def test_a_users_own_group_cannot_climb_out_either(monkeypatch, group):
    monkeypatch.setitem(EXPERIMENTS, group, lambda base: [base])
    assert "plain folder name" in str(refusal(lambda: expand(group, Params())))


@pytest.mark.parametrize("group", EXPERIMENTS)
def test_every_run_of_every_group_has_a_plain_name(group):
    for run in expand(group, Params()):
        assert (Path("/models") / run.exp_name).resolve().parent == Path("/models")
