"""Processes that train together start, find each other and end together; scripts stand for the training."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest

from ncflow import cli
from ncflow.interruption import Interrupted, interruptible
from ncflow.suite import claimed, launcher, process

FIRST = "import os, sys, time, signal\nfirst = os.environ['RANK'] == '0'\n"


@pytest.fixture
def script(tmp_path, monkeypatch):
    """Run a script in two processes, and give the exit code."""
    monkeypatch.setattr(launcher, "PATIENCE", 0.5)

    def run(text: str) -> int:
        file = tmp_path / "script.py"
        file.write_text(FIRST + text)
        return launcher.launch([str(file), str(tmp_path)], 2)

    return run


def test_each_process_knows_its_rank_size_and_meeting_point(script, tmp_path, monkeypatch):
    monkeypatch.setattr(launcher, "cpus", lambda: 6)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    names = "RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "OMP_NUM_THREADS", "MASTER_ADDR", "MASTER_PORT"
    text = f"told = ' '.join(os.environ[name] for name in {names})\n"
    assert script(text + "open(sys.argv[1] + '/' + os.environ['RANK'], 'w').write(told)") == 0
    first, second = ((tmp_path / rank).read_text().split() for rank in "01")
    assert first[:5] == ["0", "0", "2", "2", "3"] and second[:5] == ["1", "1", "2", "2", "3"]
    assert first[5:] == second[5:] and first[5] == "127.0.0.1" and int(first[6]) > 0


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("sys.exit(3) if first else time.sleep(60)", 3),
        ("time.sleep(60) if first else sys.exit(4)", 4),
        ("os.kill(os.getpid(), signal.SIGKILL) if first else sys.exit(1)", 137),
        ("sys.exit(75) if first else time.sleep(60)", 75),
        ("sys.exit(76) if first else time.sleep(60)", 76),
        ("sys.exit(65) if first else sys.exit(1)", 65),
    ],
)
def test_one_failing_process_ends_the_other_and_sets_the_code(script, text, code):
    began = time.monotonic()
    assert script(text) == code
    assert time.monotonic() - began < 30


def test_the_others_have_time_to_say_what_ended_the_first(script, tmp_path):
    assert script("sys.exit(1) if first else time.sleep(0.3)\nopen(sys.argv[1] + '/said', 'w')") == 1
    assert (tmp_path / "said").exists()


def test_sigterm_reaches_all_of_them(script, tmp_path):
    text = (
        "def end(*_):\n    open(sys.argv[1] + '/ended' + os.environ['RANK'], 'w')\n    sys.exit(75)\n"
        "signal.signal(signal.SIGTERM, end)\nopen(sys.argv[1] + '/ready' + os.environ['RANK'], 'w')\ntime.sleep(60)"
    )

    def ask() -> None:
        while len(list(tmp_path.glob("ready*"))) < 2:
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=ask).start()
    with pytest.raises(Interrupted), interruptible():
        script(text)
    assert len(list(tmp_path.glob("ended*"))) == 2


def test_a_suite_is_told_of_the_signal_that_killed_one_of_several(tmp_path):
    (tmp_path / "log").write_text("RuntimeError: connection closed by peer\n")
    assert process.explain(137, tmp_path / "log").startswith("killed by SIGKILL")


# --- from the command line ---


@pytest.fixture
def started(tmp_path, monkeypatch):
    """What `ncflow train words` starts: arguments and number of processes, or None where it trains itself."""
    (tmp_path / "params.yaml").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("ncflow.suite.launch", lambda arguments, processes: calls.append((arguments, processes)) or 5)
    monkeypatch.setattr("ncflow.stages.train", lambda *_, processes, **__: calls.append(processes))
    monkeypatch.setattr("ncflow.stages.result", lambda folder: "")
    calls: list[object] = []

    def run(*words: str, code: int | None = None) -> list[object]:
        monkeypatch.setattr(sys, "argv", ["ncflow", "train", *words])
        with pytest.raises(SystemExit) as exit_:
            cli.main()
        assert exit_.value.code == (code or (5 if calls and isinstance(calls[0], tuple) else 0))
        return calls

    return run


def test_train_starts_itself_in_as_many_processes_as_asked_for(started):
    words = ["--processes", "2", "--set", "train.lr=0.5"]
    assert started(*words) == [(["-m", "ncflow", "train", *words], 2)]


def test_a_suite_says_how_many_by_the_environment(started, monkeypatch):
    assert cli.PROCESSES == process.PROCESSES
    monkeypatch.setenv(cli.PROCESSES, "3")
    assert started() == [(["-m", "ncflow", "train"], 3)]


def test_one_process_is_this_one(started):
    assert started("--processes", "1") == [1]


def test_a_launched_process_starts_no_others_and_checks_their_number(started, monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("RANK", "1")
    assert started("--processes", "2") == [2]


def test_a_check_needs_one_process(started, capsys):
    assert started("--check", "--processes", "2") == []
    assert "exp_name" in capsys.readouterr().out


def test_a_run_that_is_trained_already_is_said_so_once(started, tmp_path, monkeypatch, capsys):
    with claimed(tmp_path, "held"):
        assert started("--processes", "2", "--set", "exp_name=held", code=76) == []
    assert capsys.readouterr().err == "ncflow: another process trains models/held; wait until it ends, or end it\n"


def test_putting_off_prints_nothing_where_the_processes_have_said_why(started, monkeypatch, capsys):
    monkeypatch.setattr("ncflow.suite.launch", lambda *_: 75)
    assert started("--processes", "2", code=75) == []
    assert capsys.readouterr().err == ""


def test_less_than_one_process_is_refused(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(Path(tmp_path))
    monkeypatch.setattr(sys, "argv", ["ncflow", "train", "--processes", "0"])
    with pytest.raises(SystemExit) as exit_:
        cli.main()
    assert exit_.value.code == 2 and "--processes" in capsys.readouterr().err
