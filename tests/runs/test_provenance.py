"""What a run was made of: written, read back, and refused by name where it is damaged."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from ncflow.runs.provenance import DataVersion, Hardware, Preprocessing, Provenance, read_provenance

CPU = torch.device("cpu")
MADE = Provenance("0.1.0", "2.15", "abc", DataVersion("digits", "0123", ["a", "b"]), Hardware(2, "cpu", 4, "bf16"))


def test_hardware_names_processes_device_threads_and_precision():
    threads = torch.get_num_threads()
    one, two = (SimpleNamespace(num_processes=count, device=CPU) for count in (1, 2))
    assert str(Hardware.of(one, "bf16")) == f"1 process on cpu ({threads} threads), bf16"
    assert str(Hardware.of(two, "fp32")) == f"2 processes on cpu ({threads} threads), fp32"
    assert str(Hardware(1, "A GPU", None, "bf16")) == "1 process on A GPU, bf16"


def test_provenance_is_read_back_as_it_was_written(tmp_path: Path):
    (tmp_path / "provenance.json").write_text(MADE.as_json())
    assert read_provenance(tmp_path) == MADE


def test_storage_and_preprocessing_are_read_back(tmp_path: Path):
    how = Preprocessing("RGB", 32, 36, [0.5] * 3, [0.2] * 3, "uint8")
    made = replace(MADE, preprocessing=how, storage={"train": "decoded for each batch by 2 threads"})
    (tmp_path / "provenance.json").write_text(made.as_json())
    assert read_provenance(tmp_path) == made


def test_files_of_earlier_versions_resized_in_float32(tmp_path: Path):
    values = json.loads(replace(MADE, preprocessing=Preprocessing("RGB", 32, 36, [0.5] * 3, [0.2] * 3)).as_json())
    del values["preprocessing"]["resizing"]
    (tmp_path / "provenance.json").write_text(json.dumps(values))
    found = read_provenance(tmp_path).preprocessing
    assert found is not None and found.resizing == "float32"


def test_files_of_earlier_versions_have_no_typed_hardware(tmp_path: Path):
    values = json.loads(MADE.as_json()) | {"hardware": "1 process on cpu (2 threads), bf16"}
    (tmp_path / "provenance.json").write_text(json.dumps(values))
    assert read_provenance(tmp_path).hardware is None


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"snapshot": 3}', '{"snapshot": {"digest": 3}}', "[" * 9000,
             '{"snapshot": {"digest": "a"}, "hardware": {"gpu": 1}}', '{"snapshot": {"digest": "a"}, "imports": 3}',
             '{"snapshot": {"digest": "a"}, "storage": 3}'],
)  # fmt: skip
def test_damaged_provenance_is_refused_by_name(tmp_path: Path, text: str):
    (tmp_path / "provenance.json").write_text(text)
    with pytest.raises(ValueError, match=r"provenance\.json is missing or damaged"):
        read_provenance(tmp_path)
