"""The benchmarks' frame: what differs is not compared, what is measured is told, and every script runs."""

from __future__ import annotations

import ast
import json
import math
import platform
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import torch

from benchmarks.baselines.svd_node import nearest_etf_svd
from benchmarks.baselines.trust_region_node import frame_of, nearest_etf_node
from benchmarks.frame import Case, largest_difference, timed
from benchmarks.frame.machine import describe_machine
from benchmarks.frame.memory import CLEAR, peak_memory
from benchmarks.frame.page import page, table
from benchmarks.frame.pairs import compare
from benchmarks.frame.sides import apart
from ncflow import cli, nearest_etf, simplex_etf

ROOT = Path(__file__).parents[2]
SCRIPTS = sorted(file.stem for file in (ROOT / "benchmarks").glob("*.py"))


def value(number, repeats=1):
    """A way to a number that takes `repeats` times as long as another one."""
    return lambda: [torch.full((40_000,), number).exp() for _ in range(repeats)][-1]


def megabytes(number):
    return lambda: torch.ones(number * 250_000).sum()


def case(**options):
    return Case("a case", partial(value, 1.0), partial(value, 1.0, 50), memory=False, **options)


def test_a_comparison_gives_one_ratio_per_pair_and_the_times_behind_it():
    row = compare(case(least_ratio=2.0, most_seconds=100.0), pairs=3)
    assert row["difference_baseline"] == 0
    assert len(row["ratio"]) == len(row["seconds"]["ours"]) == len(row["seconds"]["baseline"]) == 3
    for ratio, quick, slow in zip(row["ratio"], row["seconds"]["ours"], row["seconds"]["baseline"], strict=True):
        assert ratio == slow / quick
    assert row["reached"]["most_seconds"]


def test_different_results_are_not_compared():
    other = Case("a case", partial(value, 1.0), partial(value, 1.0001), memory=False)
    with pytest.raises(RuntimeError, match="a case: differs from 'baseline' by 1.0e-04, allowed 1.0e-05"):
        compare(other, pairs=1)
    wrong = Case("a case", partial(value, 1.0), exact=partial(value, math.nan), memory=False)
    with pytest.raises(RuntimeError, match="differs from 'exact' by nan"):
        compare(wrong, pairs=1)


def test_differences_are_relative_to_the_largest_element_of_shared_keys():
    ours = {"a": torch.tensor([10.0, 1.0]), "b": 3.0}
    assert largest_difference(ours, {"a": torch.tensor([10.0, 2.0]), "c": 7.0}) == pytest.approx(0.1)
    assert largest_difference((1.0, [2.0]), (1.0, [4.0])) == 0.5
    with pytest.raises(AssertionError, match="nothing to compare"):
        largest_difference(ours, {"c": 7.0})


def test_a_goal_that_is_missed_is_told_as_such():
    row = {"case": "x", "seconds": {"ours": [2.0], "baseline": [6.0]}, "ratio": [3.0]}
    row |= {
        "goals": {"least_ratio": 30.0, "most_seconds": 2.5},
        "reached": {"least_ratio": False, "most_seconds": True},
    }
    (line,) = table([row]).splitlines()[2:]
    assert "**3×** (3 to 3)" in line
    assert "≥ 30× **missed**, ≤ 2.5 s reached" in line


@pytest.mark.skipif(not CLEAR.exists(), reason="the system does not tell a process's peak memory")
def test_the_peak_memory_of_a_call_is_that_above_its_inputs():
    assert peak_memory(partial(megabytes, 400)) == pytest.approx(400, abs=50)


def test_a_machine_is_described_and_not_named():
    machine = describe_machine()
    assert machine["cores"] >= 1 and machine["threads"] >= 1 and machine["torch"] == torch.__version__
    assert platform.node() not in json.dumps(machine)


def test_sides_apart_are_held_against_each_other_like_others():
    with pytest.raises(RuntimeError, match="a case: differs from 'baseline' by 1.0e-04"):
        compare(Case("a case", partial(value, 1.0), partial(value, 1.0001), apart=True, memory=False), pairs=1)
    assert apart(partial(partial, time.sleep, 0.05)).seconds(2) >= 0.05


@pytest.mark.parametrize("name", SCRIPTS)
def test_the_newest_page_of_a_script_matches_the_script(name):
    newest = max((ROOT / "benchmarks" / "results").glob(f"{name}-*.json"))
    record = json.loads(newest.read_text())
    script = ast.parse((ROOT / "benchmarks" / f"{name}.py").read_text())
    assert record["description"] == ast.get_docstring(script, clean=False)
    assert newest.with_suffix(".md").read_text() == page(record)


def test_time_is_measured_per_call():
    calls = []
    assert timed(lambda: calls.append(0), repeats=7) > 0
    assert len(calls) == 7


@pytest.mark.parametrize("seed", range(3))
def test_the_baselines_of_the_nearest_etf_solve_the_same_problem(seed):
    """Value and gradient, the search carried to its end; δ is small, as the node's P has a direction more to hold."""
    generator = torch.Generator().manual_seed(seed)
    means, upstream = torch.randn(2, 5, 12, generator=generator, dtype=torch.float64)
    anchor = simplex_etf(5, 12, generator=generator, dtype=torch.float64)
    previous = frame_of(anchor, means)
    etfs, gradients = [], []
    for function in (
        partial(nearest_etf, anchor=anchor, proximal=1e-6),
        partial(nearest_etf_svd, anchor=anchor, proximal=1e-6),
        partial(nearest_etf_node, previous=previous, proximal=1e-6, tolerance=1e-10),
    ):
        leaf = means.clone().requires_grad_()
        etfs.append(function(leaf))
        gradients += torch.autograd.grad((etfs[-1] * upstream).sum(), leaf)
    for etf, gradient in zip(etfs[1:], gradients[1:], strict=True):
        torch.testing.assert_close(etf, etfs[0], rtol=0, atol=1e-7)
        torch.testing.assert_close(gradient, gradients[0], rtol=0, atol=1e-4)


def bench(monkeypatch, *words):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", ["ncflow", "bench", *words])
    with pytest.raises(SystemExit) as end:
        cli.main()
    return end.value.code


def test_the_list_has_a_sentence_for_every_script(monkeypatch, capsys):
    assert bench(monkeypatch) == 0
    listed = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert set(listed) == set(SCRIPTS) > {"nearest_etf", "models"}


@pytest.fixture
def measured(monkeypatch, tmp_path):
    """A clone with two scripts, of which one has pages: an old one, one with a duration, and a quick one."""
    machine = {"cpu": "A processor", "cores": 2}
    pages = {"one-2026-01-01": {}, "one-2026-01-02": {"seconds": 252.0}, "one-2026-01-03-quick": {"seconds": 6.0}}
    results = tmp_path / "benchmarks" / "results"
    results.mkdir(parents=True)
    for name in ("one", "two"):
        (results.parent / f"{name}.py").write_text(f'"""What {name} measures."""\n')
    for stem, more in pages.items():
        (results / f"{stem}.json").write_text(json.dumps({"date": stem[4:14], "machine": machine, **more}))
    monkeypatch.setattr(cli, "_root", lambda: tmp_path)


@pytest.mark.usefixtures("measured")
def test_the_list_has_the_minutes_of_the_newest_page_in_full(monkeypatch, capsys):
    assert bench(monkeypatch) == 0
    one, two = (line.split(maxsplit=3) for line in capsys.readouterr().out.splitlines())
    assert one == ["one", "4.2", "min", "What one measures."]
    assert two == ["two", "not", "measured", "What two measures."]


@pytest.mark.usefixtures("measured")
def test_a_benchmark_says_what_it_takes_and_what_it_took(monkeypatch, capsys):
    def run(command, **options):
        assert command[1:4] == ["-m", "benchmarks.one", "--pairs"]
        assert (
            capsys.readouterr().out == "one takes: 4.2 min, on A processor, 2 cores, 2026-01-02\n"
        )  # before it starts
        return subprocess.CompletedProcess(command, 3)

    monkeypatch.setattr(subprocess, "run", run)
    assert bench(monkeypatch, "one") == 3
    assert capsys.readouterr().out == "one took: 0.0 min\n"


def test_an_unknown_benchmark_and_a_folder_without_any_are_errors_that_help(monkeypatch, capsys, tmp_path):
    assert bench(monkeypatch, "nearest-etf") == 65
    assert "unknown benchmark 'nearest-etf'. Did you mean 'nearest_etf'?" in capsys.readouterr().err
    monkeypatch.setattr(cli, "_root", lambda: tmp_path)
    assert bench(monkeypatch) == 65
    assert "benchmarks come with a clone of the repository" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_writes_its_numbers_and_a_page_of_them(name, tmp_path):
    command = [sys.executable, "-m", "ncflow", "bench", name, "--quick", "--pairs", "1", "--out", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (numbers,), (written,) = tmp_path.glob("*.json"), tmp_path.glob("*.md")
    record = json.loads(numbers.read_text())
    assert record["benchmark"] == name and record["date"] in written.name and record["rows"]
    assert record["seconds"] > 0 and "The script took" in written.read_text()
    assert record["machine"]["cpu"] in written.read_text()
    if name == "warm":  # a fork leaves the same files as a process, to the last bit
        assert record["rows"][0]["equal"] == "1 of 1"
    for text in (numbers.read_text(), written.read_text()):
        assert str(ROOT) not in text and str(tmp_path) not in text
