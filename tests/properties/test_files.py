"""Files: a snapshot or checkpoint that was cut, changed or replaced is refused by its name, and never runs anything."""

from __future__ import annotations

import io
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from thrown import refusal, throw

from ncflow.data import Snapshot
from ncflow.runs.writer import load_model
from ncflow.tensors import read_tensors, write_tensors
from ncflow.training.state import StateFolder

Damage = Callable[[bytes], bytes]


@st.composite
def damages(draw: st.DrawFn) -> Damage:
    """A few flipped bits, an end cut off, or a part overwritten: at places that any length of file has."""
    place, part = draw(st.floats(0, 1, exclude_max=True)), draw(st.binary(min_size=1, max_size=20))
    bit = draw(st.integers(0, 7))

    def flip(content: bytes) -> bytes:
        at = int(place * len(content))
        return content[:at] + bytes([content[at] ^ 1 << bit]) + content[at + 1 :]

    def cut(content: bytes) -> bytes:
        return content[: int(place * len(content))]

    def overwrite(content: bytes) -> bytes:
        at = int(place * len(content))
        return content[:at] + part + content[at + len(part) :]

    return draw(st.sampled_from([flip, flip, cut, overwrite]))


@pytest.fixture(scope="module")
def snapshot(tmp_path_factory) -> Path:
    return Snapshot.create(tmp_path_factory.mktemp("thrown") / "digits", name="digits", imb_factor=0.02, seed=0).path


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> tuple[Path, bytes, dict[str, torch.Tensor]]:
    state = {"weight": torch.randn(3, 4), "bias": torch.randn(3)}
    path = write_tensors(tmp_path_factory.mktemp("thrown") / "final_model.pth", state)
    return path, path.read_bytes(), state


@throw(200)
@given(file=st.sampled_from(["manifest.json", "train.parquet", "test.parquet"]), damage=damages())
def test_a_damaged_snapshot_is_refused_by_name(snapshot, file, damage):
    content = (snapshot / file).read_bytes()
    damaged = damage(content)
    try:
        (snapshot / file).write_bytes(damaged)
        message = refusal(lambda: Snapshot.load(snapshot))
    finally:
        (snapshot / file).write_bytes(content)
    assert (message is None) == (damaged == content)
    assert message is None or f"{file} is damaged" in message


@throw(300)
@given(damage=damages())
def test_a_damaged_checkpoint_is_refused_by_name_or_holds_the_very_tensors(checkpoint, damage):
    path, content, state = checkpoint
    path.write_bytes(damage(content))
    found: list[dict[str, torch.Tensor]] = []
    message = refusal(lambda: found.append(read_tensors(path)))
    if message is None:  # damage in what no reader looks at, such as a time
        assert found[0].keys() == state.keys() and all(torch.equal(found[0][name], state[name]) for name in state)
    else:
        assert "final_model.pth is damaged or not a checkpoint" in message


FOREIGN = {
    "another model": {"weight": torch.zeros(2, 2), "bias": torch.zeros(2)},
    "another name": {"other": torch.zeros(3, 4), "bias": torch.zeros(3)},
    "no tensors": {"weight": 1, "bias": 2},
    "nothing": {},
}


@pytest.mark.parametrize("content", FOREIGN)
def test_a_checkpoint_of_another_model_is_refused_by_name(tmp_path, content):
    file = write_tensors(tmp_path / "final_model.pth", FOREIGN[content])
    message = refusal(lambda: load_model(file, torch.nn.Linear(4, 3)))
    assert message is not None and "final_model.pth is not a checkpoint of this configuration" in message


class Malicious:
    """Pickled, it writes a file when it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.file,)


def test_no_checkpoint_or_state_runs_code(tmp_path):
    mark = tmp_path / "run"
    buffer = io.BytesIO()
    torch.save({"weight": Malicious(mark)}, buffer)
    folder = tmp_path / "state"
    folder.mkdir()
    for content in (buffer.getvalue(), pickle.dumps(Malicious(mark))):
        for file, read in (
            (tmp_path / "final_model.pth", lambda: load_model(tmp_path / "final_model.pth", torch.nn.Linear(4, 3))),
            (folder / "epoch_1.pt", lambda: StateFolder(folder).read(1)),
        ):
            file.write_bytes(content)
            message = refusal(read)
            assert message is not None and file.name in message
    assert not mark.exists()


def test_a_snapshot_whose_manifest_lists_files_elsewhere_is_refused(snapshot, tmp_path):
    """A manifest can seal itself, so its names must not matter: only the files of the splits are ever read."""
    from ncflow.data.manifest import read_manifest, write_manifest

    copy = Path(shutil.copytree(snapshot, tmp_path / "copy"))
    description = read_manifest(copy)
    (copy / "manifest.json").unlink()
    (copy / "train.parquet").rename(copy / "extra.parquet")
    write_manifest(copy, description)
    message = refusal(lambda: Snapshot.load(copy).targets("train"))
    assert message is not None and "manifest.json is damaged: files is missing, or not what a snapshot has" in message
