"""The README's commands as a new user types them in a fresh clone, one by one; only the training is shortened."""

import doctest
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from ncflow.data.published import DEBIAN_FASHION_MNIST

ROOT = Path(__file__).parents[1]
BLOCKS = re.findall(r"^```bash\n(.*?)^```", (ROOT / "README.md").read_text(), flags=re.MULTILINE | re.DOTALL)
COMMANDS = [command for block in BLOCKS for command in block.strip().splitlines()]

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not (ROOT / ".git").exists(), reason="needs a git checkout")]


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    """What git tracks, in a repository of its own, trained on tiny images for two epochs."""
    folder = tmp_path_factory.mktemp("clone") / "ncflow"
    listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True)
    for name in listed.stdout.splitlines():
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    params = yaml.safe_load((folder / "params.yaml").read_text())
    params["model"]["image_size"] = 8
    params["dataset"]["samples_per_class"] = 110
    params["train"] |= {"epochs": 2, "analyze_freq": 1}
    params["grid"] |= {"head": ["linear", "nearest_etf"], "loss": ["ce"]}  # more runs would show nothing new
    (folder / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    draw_pictures(folder / "pictures")
    for command in ("init -q", "add -A", "commit -qm start"):
        subprocess.run(["git", *command.split()], cwd=folder, check=True, env=environment())
    return folder


def draw_pictures(folder: Path) -> None:
    """A reader's own pictures: three classes, of one shade each."""
    for split, count in (("train", 150), ("test", 4)):
        for shade, name in enumerate(("cat", "dog", "owl")):
            (folder / split / name).mkdir(parents=True)
            for k in range(count):
                pixels = np.full((8, 8, 3), 80 * shade + k % 50 + (split == "test") * 10, np.uint8)
                pixels[0, 0] = k, count, shade
                Image.fromarray(pixels).save(folder / split / name / f"{k}.png")


def environment() -> dict[str, str]:
    """This interpreter's programs first, where `uv run` would find the same ones; a git user; quiet threads."""
    unset = {"MLFLOW_TRACKING_URI", "MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_ID", "PYTHONDONTWRITEBYTECODE"}
    git = {f"GIT_{who}_{what}": "reader@example.org" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    return {key: value for key, value in os.environ.items() if key not in unset} | git | {"PATH": path}


def typed(command: str) -> str:
    """The command without what only installs: these tests run inside of what it installs."""
    return command.replace("pip install uv && ", "").replace("uv run ", "")


@pytest.mark.parametrize("command", [command for command in COMMANDS if not re.search("ncflow ui|pytest", command)])
def test_a_command_does_what_the_readme_says(clone, command):
    if "dataset.name=fmnist" in command and not DEBIAN_FASHION_MNIST.exists():
        pytest.skip(f"Fashion-MNIST is not installed at {DEBIAN_FASHION_MNIST}")
    done = subprocess.run(typed(command), shell=True, cwd=clone, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    for text in EXPECTED.get(command, []):
        assert text in done.stdout + done.stderr, f"{text!r} is not in:\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"


def test_another_repro_does_nothing_and_says_so(clone):
    """After the experiment above, the workspace holds its parameters and results."""
    done = subprocess.run(["dvc", "repro"], cwd=clone, env=environment(), capture_output=True, text=True, check=True)
    assert "Running stage" not in done.stdout
    assert "Data and pipelines are up to date." in done.stdout


def test_a_second_clone_pulls_snapshots_and_checkpoints(clone, tmp_path):
    for command in ("add -A", "commit -qm results"):
        subprocess.run(["git", *command.split()], cwd=clone, check=True, env=environment())
    second = clone.parent / "second"
    subprocess.run(["git", "clone", "-q", str(clone), str(second)], check=True, env=environment())
    subprocess.run(["dvc", "pull"], cwd=second, check=True, env=environment(), capture_output=True)
    for head in ("linear", "nearest_etf"):
        name = f"models/main_{head}_ce_seed0/final_model.pth"
        assert (second / name).read_bytes() == (clone / name).read_bytes()
    assert (second / "data/main/manifest.json").is_file()


def test_a_grid_that_shrinks_leaves_every_clone_clean(clone):
    params = yaml.safe_load((clone / "params.yaml").read_text())
    kept = params["grid"]["head"][:1]
    (clone / "params.yaml").write_text(yaml.safe_dump(params | {"grid": params["grid"] | {"head": kept}}))
    third = clone.parent / "third"
    commands = ["dvc repro", "git add -A", "git commit -qm shrunk", "dvc push", f"git clone -q . {third}"]
    for command in commands:
        done = subprocess.run(command.split(), cwd=clone, env=environment(), capture_output=True, text=True)
        assert done.returncode == 0, f"{command}:\n{done.stdout}\n{done.stderr}"
    assert (clone / "models/main_nearest_etf_ce_seed0/final_model.pth").is_file()  # training took time: it stays
    subprocess.run(["dvc", "pull"], cwd=third, check=True, env=environment(), capture_output=True)
    for each in (clone, third):
        status = subprocess.run(["dvc", "status"], cwd=each, env=environment(), capture_output=True, text=True)
        assert "Data and pipelines are up to date." in status.stdout


def test_every_mlflow_run_of_the_readme_is_finished_and_flat(clone):
    from ncflow import tracking

    with pytest.MonkeyPatch.context() as patch, tracking.store(clone) as mlflow:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        runs = mlflow.search_runs(["0"], output_format="list")
    assert {run.info.status for run in runs} == {"FINISHED"}
    assert not any("mlflow.parentRunId" in run.data.tags for run in runs)
    shortened = [run for run in runs if run.data.params.get("exp") == "quickstart"]
    assert len(shortened) == 2  # one for each `mlflow run`: its first configuration


def test_the_ui_prints_the_address_that_opens_on_the_runs(clone):
    server = subprocess.Popen(
        ["ncflow", "ui", "--port", "5873"], cwd=clone, env=environment(), stdout=subprocess.PIPE, text=True
    )
    try:
        line = server.stdout.readline()
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait(timeout=60)
    assert "http://127.0.0.1:5873/#/experiments/0/runs?workflowType=machine_learning" in line


def test_the_python_examples_print_what_they_say():
    failed, attempted = doctest.testfile(str(ROOT / "README.md"), module_relative=False)
    assert attempted > 10
    assert failed == 0


TABLE = ["balanced %", "linear", "nearest_etf", "index.html", "http://127.0.0.1:5000/#/experiments/0/runs"]
EXPECTED = {
    "pip install uv && uv run dvc repro": TABLE,
    "uv run dvc exp run -S dataset.imb_factor=0.01 -S train.epochs=5": ["nearest_etf"],
    "uv run ncflow evaluate models/focal": ["the checkpoint is the model that was trained"],
    "uv run mlflow run . -P exp=quickstart --env-manager local": [*TABLE, "[2/2] quickstart_nearest_etf_ce_seed0"],
    "uv run dvc push": ["pushed"],
}
