"""What a process may use: the least that the system and its container allow, and its share among other processes."""

from __future__ import annotations

from pathlib import Path

import pytest

from ncflow.data.machine import free_memory, num_cpus, processes_here


@pytest.fixture
def memory(tmp_path: Path) -> Path:
    file = tmp_path / "meminfo"
    file.write_text("MemTotal: 9 kB\nMemAvailable:     2000 kB\nSwapFree: 1 kB\n")
    return file


def test_free_memory_is_what_programs_can_still_get(memory, tmp_path):
    assert free_memory(memory, tmp_path) == 2000 * 1024
    assert free_memory(tmp_path / "missing", tmp_path) is None


@pytest.mark.parametrize(
    ("limit", "used", "free"),
    [("5000\n", "2000\n", 3000), ("max\n", "2000\n", 2_048_000), ("1000", "2000", 0), ("9000000", "0", 2_048_000)],
)
def test_a_container_limits_memory(memory, tmp_path, limit, used, free):
    (tmp_path / "memory.max").write_text(limit)
    (tmp_path / "memory.current").write_text(used)
    assert free_memory(memory, tmp_path) == free


def test_a_container_of_the_older_kind_limits_memory(memory, tmp_path):
    (tmp_path / "memory").mkdir()
    (tmp_path / "memory" / "memory.limit_in_bytes").write_text("7000")
    (tmp_path / "memory" / "memory.usage_in_bytes").write_text("1000")
    assert free_memory(memory, tmp_path) == 6000


def test_this_machine_has_cpus():
    assert num_cpus() >= 1


@pytest.mark.parametrize(("reported", "here"), [("2", 2), ("", 4), ("0", 4), ("8", 4), ("two", 4)])
def test_launchers_report_the_processes_of_a_machine(monkeypatch, reported, here):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", reported)
    assert processes_here(4) == here
