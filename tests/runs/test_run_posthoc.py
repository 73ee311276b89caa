"""The file of post-hoc results: what it says, which run it belongs to, and how a damaged one is reported."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from ncflow.files import checksum
from ncflow.runs.layout import posthoc_file
from ncflow.runs.posthoc import PostHoc, read_posthoc, write_posthoc
from ncflow.runs.reader import load_run

MakeRun = Callable[..., Path]


def results(sha256: str = "a", **methods: float) -> PostHoc:
    """Balanced accuracies on the test split; every method has an option."""
    test = {"acc/balanced": 0.5} | {f"posthoc/{name}/acc/balanced": value for name, value in methods.items()}
    options = {f"posthoc/{name}/tau": 1.0 for name in methods}
    return PostHoc("0.1.0", sha256, {"test": test}, options, dict.fromkeys(methods, "default"))


@pytest.fixture
def finished(make_run: MakeRun) -> Path:
    """A run folder with a final model, of a version without its checksum."""
    folder = make_run("a")
    (folder / "final_model.pth").write_bytes(b"model")
    return folder


def test_what_is_written_is_read(make_run: MakeRun) -> None:
    folder = make_run("a")
    assert read_posthoc(folder) is None
    written = write_posthoc(folder, results(ncm=0.6))
    assert read_posthoc(folder) == written == results(ncm=0.6)
    assert written.value("ncm", "test/acc/balanced") == 0.6 and written.value("ncm", "test/nc1/pinv") is None
    assert written.as_metrics() == {"test/posthoc/ncm/acc/balanced": 0.6, "posthoc/ncm/tau": 1.0}
    assert written.options_of("ncm") == {"tau": 1.0}


def test_later_results_join_and_replace_those_of_the_same_checkpoint(make_run: MakeRun) -> None:
    folder = make_run("a")
    write_posthoc(folder, results(ncm=0.6, crt=0.7))
    assert write_posthoc(folder, results(lws=0.1, crt=0.8)) == results(ncm=0.6, crt=0.8, lws=0.1)
    assert write_posthoc(folder, results("b", lws=0.2)) == results("b", lws=0.2)


def test_results_that_are_written_at_the_same_time_join(make_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each process reads what is there before it writes; another one must not write in between."""
    folder, names = make_run("a"), [f"m{number}" for number in range(8)]

    def slowly(folder: Path) -> PostHoc | None:
        found = read_posthoc(folder)
        time.sleep(0.02)
        return found

    monkeypatch.setattr("ncflow.runs.posthoc.read_posthoc", slowly)
    with ThreadPoolExecutor(len(names)) as pool:
        list(pool.map(lambda name: write_posthoc(folder, results(**{name: 0.5})), names))
    assert sorted(read_posthoc(folder).methods) == names


def test_a_method_whose_name_starts_like_another_keeps_its_own_results(make_run: MakeRun) -> None:
    folder = make_run("a")
    write_posthoc(folder, results(ncm=0.6, ncm_two=0.7))
    assert write_posthoc(folder, results(ncm=0.5)) == results(ncm_two=0.7, ncm=0.5)


def test_a_run_has_the_results_of_its_own_checkpoint_only(finished: Path) -> None:
    write_posthoc(finished, results(checksum(finished / "final_model.pth"), ncm=0.6))
    assert load_run(finished).posthoc is not None and load_run(finished).note is None
    (finished / "final_model.pth").write_bytes(b"trained again")
    run = load_run(finished)
    assert run.posthoc is None and run.note is not None and "another checkpoint" in run.note


def test_an_unfinished_run_has_no_results(make_run: MakeRun) -> None:
    folder = make_run("a")
    write_posthoc(folder, results(ncm=0.6))
    assert load_run(folder).posthoc is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("[", "expected JSON"),
        ("[" * 100_000, "expected JSON"),
        ("[]", "expected a mapping"),
        ({"ncflow": 1}, "expected text as ncflow"),
        ({"final_model_sha256": None}, "expected text as final_model_sha256"),
        ({"test": None}, "expected numbers by name as test"),
        ({"test": {"acc/balanced": "high"}}, "expected numbers by name as test"),
        ({"val": {"acc/balanced": True}}, "expected numbers by name as val"),
        ({"options": [1]}, "expected numbers by name as options"),
        ({"chosen_by": {"ncm": 1}}, "expected words by name as chosen_by"),
    ],
)
def test_a_damaged_file_is_named_with_its_key(make_run: MakeRun, change: str | dict, message: str) -> None:
    folder = make_run("a")
    write_posthoc(folder, results(ncm=0.6))
    file = posthoc_file(folder)
    file.write_text(change if isinstance(change, str) else json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(ValueError, match=rf"a.posthoc.json' is damaged: {message}.*; rerun `ncflow posthoc`"):
        _ = load_run(folder).posthoc


def test_new_results_replace_a_damaged_file(make_run: MakeRun) -> None:
    folder = make_run("a")
    posthoc_file(folder).write_text("{")
    new = PostHoc("0.1.0", "abc", {"test": {"posthoc/ncm/acc/balanced": 0.5}}, {}, {"ncm": ""})
    assert write_posthoc(folder, new) == new == read_posthoc(folder)
