"""A process says how it ended by a code and a file; of several processes the first one counts."""

import errno
import json
import sys

import pytest

from ncflow import cli
from ncflow.exits import RESULT, Exit, explain, leave_result, read_reason
from ncflow.interruption import Interrupted
from ncflow.suite import Claimed


def test_the_first_process_of_a_run_gives_the_reason(tmp_path, monkeypatch):
    file = tmp_path / "run.result.json"
    monkeypatch.setenv(RESULT, str(file))
    leave_result(Exit.CHANGE, "lr is negative")
    leave_result(1, "connection lost")
    assert json.loads(file.read_text()) == {"code": 65, "reason": "lr is negative"}
    assert read_reason(file) == "lr is negative"


def test_without_a_file_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.delenv(RESULT, raising=False)
    monkeypatch.chdir(tmp_path)
    leave_result(Exit.DONE)
    assert list(tmp_path.iterdir()) == [] and read_reason(tmp_path / "none") == ""


@pytest.mark.parametrize(
    ("error", "code", "reason"),
    [
        (ValueError("unknown key"), 65, "unknown key"),
        (OSError("disk full"), 65, "disk full"),
        (MemoryError("out of memory"), 65, "out of memory"),
        (Interrupted("it resumes"), 75, "stopped by SIGTERM; it resumes"),
        (Claimed("run"), 76, "another process trains models/run; wait until it ends, or end it"),
        (RuntimeError("boom"), 1, "RuntimeError: boom"),
    ],
)
def test_the_command_line_leaves_a_code_and_a_reason(tmp_path, monkeypatch, error, code, reason):
    def fail():
        raise error

    file = tmp_path / "result.json"
    monkeypatch.setenv(RESULT, str(file))
    monkeypatch.setattr(cli, "app", fail)
    with pytest.raises((SystemExit, RuntimeError)) as end:
        cli.main()
    assert json.loads(file.read_text()) == {"code": code, "reason": reason}
    assert code == 1 or end.value.code == code


def test_a_usage_error_keeps_its_own_code(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["ncflow", "train", "--nonsense"])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 2


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            PermissionError(errno.EACCES, "x", "a.lock"),
            "a.lock: Permission denied; allow it, or use another folder",
        ),
        (OSError(errno.ENOSPC, "x", b"a"), "a: No space left on device; make room, and rerun the same command"),
        (OSError(errno.EXDEV, "x", "a", None, "b"), "a -> b: Invalid cross-device link; correct that, and"),
        (OSError("a sentence"), "a sentence"),
        (ValueError(7), "7"),
    ],
)
def test_an_error_of_the_system_names_the_file_and_the_remedy(error, message):
    assert explain(error).startswith(message)
