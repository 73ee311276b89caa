"""Files: what is written is whole or what was there before, and what dead processes left is removed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from ncflow import files

FILL = """
import sys, time
from pathlib import Path
from ncflow.files import folder_next_to
with folder_next_to(Path(sys.argv[1])) as folder:
    (folder / "half").write_text("half")
    print(folder, flush=True)
    time.sleep(60)
"""


def filling(path: Path) -> tuple[subprocess.Popen[str], Path]:
    """A process that fills the temporary folder of a path, and that folder."""
    process = subprocess.Popen([sys.executable, "-c", FILL, str(path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    return process, Path(process.stdout.readline().strip())


def age(folder: Path) -> None:
    os.utime(folder, (time.time() - 3600,) * 2)


def test_a_killed_processs_folder_is_removed_by_the_next_one(tmp_path):
    process, left = filling(tmp_path / "report")
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert (left / "half").exists()
    age(left)
    with files.folder_next_to(tmp_path / "report") as folder:
        assert not left.exists() and folder.exists()
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_a_living_process_fills_is_left_alone(tmp_path):
    process, busy = filling(tmp_path / "report")
    try:
        age(busy)
        with files.folder_next_to(tmp_path / "report"):
            assert (busy / "half").exists()
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("name", [".reports-abcdefgh", ".report-abc", "report-abcdefgh", ".report-ABCDEFGH"])
def test_a_folder_of_another_name_is_left_alone(tmp_path, name):
    (tmp_path / name).mkdir()
    age(tmp_path / name)
    with files.folder_next_to(tmp_path / "report"):
        assert (tmp_path / name).exists()


def test_a_link_of_that_name_is_not_followed(tmp_path):
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "file").touch()
    (tmp_path / ".report-abcdefgh").symlink_to(tmp_path / "precious")
    age(tmp_path / "precious")
    with files.folder_next_to(tmp_path / "report"):
        assert (tmp_path / "precious" / "file").exists()


def test_a_folder_replaces_another_one_completely(tmp_path):
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures" / "old.png").touch()
    with files.folder_next_to(tmp_path / "figures") as folder:
        (folder / "new").mkdir()
        (folder / "new" / "new.png").touch()
        files.replace_folder(folder / "new", tmp_path / "figures")
    assert [file.name for file in (tmp_path / "figures").iterdir()] == ["new.png"]
    assert [file.name for file in tmp_path.iterdir()] == ["figures"]


def test_a_text_that_cannot_be_written_leaves_the_one_before(tmp_path, monkeypatch):
    path = files.write_text(tmp_path / "metrics.json", "before")
    monkeypatch.setattr(os, "fsync", lambda descriptor: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match=f"cannot write {path}: No space left on device"):
        files.write_text(path, "after")
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


WRITE = """
import sys, time
from pathlib import Path
from ncflow.files import write_atomically
def write(file):
    file.write(b"half")
    file.flush()
    print(*(each.name for each in Path(sys.argv[1]).parent.iterdir()), flush=True)
    time.sleep(60)
write_atomically(Path(sys.argv[1]), write)
"""


def test_a_write_removes_the_file_of_a_killed_process_alone(tmp_path):
    path = tmp_path / "table.json"
    writers = [subprocess.Popen([sys.executable, "-c", WRITE, str(path)], stdout=subprocess.PIPE, text=True)]
    (first,) = writers[0].stdout.readline().split()
    writers.append(subprocess.Popen([sys.executable, "-c", WRITE, str(path)], stdout=subprocess.PIPE, text=True))
    (second,) = {*writers[1].stdout.readline().split()} - {first}
    try:
        writers[0].kill()
        writers[0].wait()
        files.write_text(path, "whole")
        assert {file.name for file in tmp_path.iterdir()} == {"table.json", second}
    finally:
        writers[1].kill()
        writers[1].wait()
    files.publish(files.write_text(tmp_path / "source", "new"), path)
    assert path.read_text() == "new" and {file.name for file in tmp_path.iterdir()} == {"table.json", "source"}


def test_writers_of_one_file_leave_a_complete_one(tmp_path):
    path, texts = tmp_path / "table.json", [letter * 200_000 for letter in "abcd"]

    def write(text):
        for _ in range(25):
            files.write_text(path, text)
            files.publish(path, tmp_path / "copy.json")
            assert path.read_text() in texts and (tmp_path / "copy.json").read_text() in texts

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, texts))
    assert {file.name for file in tmp_path.iterdir()} == {"table.json", "copy.json"}


def test_a_file_that_is_swept_before_its_lock_is_created_again(tmp_path, monkeypatch):
    path, lock, swept = tmp_path / "a", files._lock, []

    def sweep_first(file, **options):
        if not swept:
            swept.append(Path(file.name))
            swept[0].unlink()
        return lock(file, **options)

    monkeypatch.setattr(files, "_lock", sweep_first)
    assert files.write_text(path, "whole").read_text() == "whole" and swept


@pytest.mark.parametrize("place", ["inside", "elsewhere"])
def test_a_full_disk_is_an_error_that_names_the_folder_to_be(tmp_path, place):
    with (
        pytest.raises(OSError, match="No space left on device") as failure,
        files.folder_next_to(tmp_path / "report") as folder,
    ):
        raise OSError(28, "No space left on device", str(folder / "x" if place == "inside" else "/elsewhere/x"))
    assert ("cannot write" in str(failure.value)) == (place == "inside")
