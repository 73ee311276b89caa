"""The pages in docs/: their examples run and print what they say, their links lead somewhere."""

from __future__ import annotations

import doctest
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import ncflow
from ncflow import cli

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGE = (DOCS / "custom-experiments.md").read_text()
TABLES = ("BACKBONES", "EXPERIMENTS", "FRAMES", "HEADS", "LOSSES", "POSTHOC")


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with what the page speaks of, pictures and mine.py; afterwards the tables are as they were."""
    for split, count in (("train", 4), ("test", 1)):
        for shade, name in enumerate(("cat", "dog", "owl")):
            folder = tmp_path / "pictures" / split / name
            folder.mkdir(parents=True)
            for k in range(count):
                Image.fromarray(np.full((8, 8, 3), 80 * shade + 40 * (split == "test") + k, np.uint8)).save(
                    folder / f"{k}.png"
                )
    (tmp_path / "mine.py").write_text(block("python", starting="# mine.py"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    before = {name: dict(getattr(ncflow, name)) for name in TABLES}
    yield tmp_path
    sys.modules.pop("mine", None)
    for name, rows in before.items():
        getattr(ncflow, name).clear()
        getattr(ncflow, name).update(rows)


def block(language: str, *, starting: str = "") -> str:
    """The first fenced block of the page in a language, beginning with some text."""
    found = re.search(rf"^```{language}\n({starting}.*?)^```", PAGE, flags=re.MULTILINE | re.DOTALL)
    assert found, f"no block of {language} that starts with {starting!r}"
    return found[1]


@pytest.mark.parametrize("page, fewest", [("custom-experiments.md", 30), ("metrics.md", 20), ("posthoc.md", 10)])
def test_the_python_examples_print_what_they_say(desk, page, fewest):
    failed, attempted = doctest.testfile(str(DOCS / page), module_relative=False, optionflags=doctest.ELLIPSIS)
    assert attempted > fewest
    assert failed == 0


@pytest.mark.parametrize(("code", "queued_again"), [(0, False), (1, False), (65, False), (75, True), (143, True)])
def test_the_slurm_script_ends_as_its_suite_and_requeues_it(tmp_path, code, queued_again):
    script, *_ = re.findall(r"^```bash\n(#!.*?)^```", (DOCS / "clusters.md").read_text(), re.MULTILINE | re.DOTALL)
    for name, line in (("srun", f"exit {code}"), ("scontrol", 'echo "$@" > asked')):
        (tmp_path / name).write_text(f"#!/bin/sh\n{line}\n")
        (tmp_path / name).chmod(0o755)
    (tmp_path / "params.yaml").touch()
    environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_SUBMIT_DIR": str(tmp_path)}
    environment |= {"SLURM_JOB_ID": "42", "SLURM_ARRAY_JOB_ID": "42", "SLURM_ARRAY_TASK_ID": "7"}
    done = subprocess.run(["bash", "-c", script], cwd=tmp_path, env=environment, check=False)
    assert done.returncode == code, done.stderr
    assert (tmp_path / "asked").exists() == queued_again
    assert not queued_again or (tmp_path / "asked").read_text() == "requeue 42_7\n"


@pytest.mark.slow
def test_commands_find_the_rows_of_the_imported_file_only(desk):
    train, experiments = block("bash").splitlines()
    assert "name: two_convolutions" in run(train)
    unnamed = experiments.replace("--import mine.py ", "")
    assert "margins_2.0" in run(unnamed, NCFLOW_IMPORT="mine.py")  # as `dvc repro` and `mlflow run` hand it on
    assert "unknown experiment group 'margins'" in run(unnamed, code=65)


def test_the_sweeps_of_the_page_have_the_runs_that_it_states(desk, capsys):
    (desk / "params.yaml").write_text("exp_name: main\n")
    (desk / "groups").mkdir()
    (desk / "groups" / "rates.yaml").write_text(block("yaml", starting="hypothesis"))
    section = re.search(r"^## Sweeps.*?^## ", PAGE, flags=re.MULTILINE | re.DOTALL)[0]
    commands = re.findall(r"^(?:ncflow|mlflow) .*", section, flags=re.MULTILINE)
    counts = [len(runs_of(command, capsys)) for command in commands]
    assert counts == [3 * 2 * 5, 3 * 3 * 3, 3 * 3 * 3, 3 * 3 * 2, 3 * 3 * 3 * 2 * 2]
    assert "main_lr0.3_nearest_etf_seed2" in runs_of(commands[0], capsys)


def runs_of(command: str, capsys: pytest.CaptureFixture[str]) -> list[str]:
    """The names of the runs of a command that starts a suite."""
    _, _, *words = shlex.split(command)
    if command.startswith("mlflow"):
        values = dict(word.split("=", 1) for word in words if "=" in word)
        words = [values.pop("exp"), *(word for name, value in values.items() for word in (f"--{name}", value))]
    with pytest.raises(SystemExit) as end:
        cli.app(["experiments", *words])
    assert end.value.code == 0
    return [line.split()[0] for line in capsys.readouterr().out.splitlines() if "(config" in line]


def run(command: str, *, code: int = 0, **environment: str) -> str:
    """What `ncflow …` prints; its exit code must be `code`."""
    words = [sys.executable, "-m", *command.split()]
    done = subprocess.run(words, env=os.environ | environment, capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stderr
    return done.stdout + done.stderr


def test_the_trial_of_servers_runs_the_commands_of_its_page():
    page, trials = (DOCS / "servers.md").read_text(), ROOT / "tests" / "trials"
    script = (trials / "server_faults.py").read_text()
    titles = re.findall(r'commands\("(.*?)"', script + (trials / "site_of_servers.py").read_text())
    assert {*titles} == {*re.findall(r"^## (.*)", page, flags=re.MULTILINE)} - {"Packages", "Faults and how they end"}
    rows = re.findall(r"^\| (`.*?`) \|", page, flags=re.MULTILINE)
    named = {name for row in rows for name in re.findall(r"`(\w+)`", row)}
    undescribed = {"one_run", "dvc_s3", "dvc_ssh"}  # they are the page's own commands
    assert named | undescribed == {*re.findall(r'^    "(\w+)": \1,$', script, flags=re.MULTILINE)}


@pytest.mark.parametrize("page", [*DOCS.glob("*.md"), *ROOT.glob("*.md")], ids=lambda page: page.name)
def test_a_link_to_a_file_leads_to_it(page):
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text()):
        assert "://" in target or (page.parent / target).exists(), target


def test_every_fault_that_can_be_provoked_has_a_row():
    script = (ROOT / "tests" / "trials" / "faults.py").read_text()
    provoked = re.findall(r'^    "(\w+)": \w+\.\w+,$', script, flags=re.MULTILINE)
    rows = re.findall(r"^\| `(\w+)` \|", (DOCS / "faults.md").read_text(), flags=re.MULTILINE)
    assert provoked == rows != []


def test_the_tables_of_the_page_are_public():
    rows = re.findall(r"^\| `([A-Z]+)` \|", PAGE, flags=re.MULTILINE)
    assert {*TABLES} < {*rows} <= {*ncflow.HOMES}
