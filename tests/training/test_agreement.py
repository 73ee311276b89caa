"""Processes that would not train the same run say what differs, all of them the same, before they train."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from two_processes import on_two

from ncflow.training import agree, agreement, from_first, refuse_unshared
from ncflow.training.agreement import MOST, code_digest, differences


class Alone:
    """An accelerator of one process, which asks nobody."""

    num_processes, process_index, is_main_process = 1, 0, True


@contextmanager
def accelerators(rank: int) -> Iterator[Accelerator]:
    """Inside, Accelerate sees the two processes that torch has joined."""
    launch = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    launch |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}  # which only has to be there
    with pytest.MonkeyPatch.context() as patch:
        for name, value in launch.items():
            patch.setenv(name, value)
        AcceleratorState._reset_state(reset_partial_state=True)
        yield Accelerator(cpu=True)
    AcceleratorState._reset_state(reset_partial_state=True)


def refusal(call: Callable[..., None], accelerator: Accelerator, *values: Any) -> str:
    """What this process says about the value that is its own."""
    try:
        call(accelerator, values[accelerator.process_index])
    except ValueError as error:
        return str(error)
    return ""


def check_agreement(rank: int) -> None:
    same, other = {"seed": 0, "train.lr": 0.1}, {"seed": 0, "train.lr": 0.2, "train.sam": 0.1}
    with accelerators(rank) as accelerator:
        assert refusal(agree, accelerator, same, same) == ""
        said = refusal(agree, accelerator, same, other)
        assert from_first(accelerator, said) == said
        assert from_first(accelerator, rank) == 0
    assert "process 0 on" in said and "process 1 on" in said
    assert "differ in: train.lr (0.1 and 0.2), train.sam (None and 0.1)." in said


def check_folder(rank: int, shared: str, other: str) -> None:
    with accelerators(rank) as accelerator, pytest.MonkeyPatch.context() as patch:
        patch.setattr(agreement, "SHARING", 0.1)
        assert refusal(refuse_unshared, accelerator, Path(shared), Path(shared)) == ""
        said = refusal(refuse_unshared, accelerator, Path(shared), Path(other))
        assert from_first(accelerator, said) == said
        accelerator.wait_for_everyone()
    assert "a project folder that all machines share" in said and f"does not see in {other}" in said
    assert not list(Path(shared, ".ncflow").iterdir())


def test_all_processes_name_the_options_that_differ():
    on_two(check_agreement)


def test_a_folder_that_is_not_shared_is_an_error_in_every_process(tmp_path):
    for name in ("shared", "other"):
        (tmp_path / name).mkdir()
    on_two(check_folder, str(tmp_path / "shared"), str(tmp_path / "other"))


def test_one_process_agrees_with_itself_and_writes_no_file(tmp_path):
    agree(Alone(), {})  # type: ignore[arg-type]
    refuse_unshared(Alone(), tmp_path)  # type: ignore[arg-type]
    assert from_first(Alone(), "mine") == "mine" and not list(tmp_path.iterdir())  # type: ignore[arg-type]


@pytest.mark.parametrize("count", [1, MOST, MOST + 3])
def test_a_message_names_a_few_differences_and_counts_the_others(count):
    ours, theirs = ({str(key): value for key in range(count)} for value in (1, 2))
    said = differences(ours, theirs)
    assert said.count("(1 and 2)") == min(count, MOST)
    assert said.endswith(" and 3 more") == (count > MOST)
    assert differences(ours, ours) == ""


def test_a_changed_or_renamed_file_of_code_has_another_digest(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name / "part").mkdir(parents=True)
        (tmp_path / name / "part" / "file.py").write_text("x = 1\n")
        (tmp_path / name / "part" / "notes.txt").write_text(name)
    one, two = tmp_path / "one", tmp_path / "two"
    assert code_digest(one) == code_digest(two) != code_digest()
    (two / "part" / "file.py").write_text("x = 2\n")
    assert code_digest(one) != code_digest(two)
    shutil.rmtree(two)
    shutil.copytree(one, two)
    (two / "part" / "file.py").rename(two / "part" / "other.py")
    assert code_digest(one) != code_digest(two)
