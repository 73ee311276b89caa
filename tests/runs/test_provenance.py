"""What a run was made of: written, read back, and refused by name where it is damaged."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

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


def given(change: Callable[[dict[str, Any]], object]) -> str:
    values = json.loads(replace(MADE, preprocessing=Preprocessing("L", 8, 8, [0.5], [0.2], "uint8")).as_json())
    change(values)
    return json.dumps(values)


DAMAGES = {
    "": "JSON",
    "[" * 9000: "JSON",
    "[]": "a mapping as the provenance",
    "{}": "a mapping as snapshot",
    '{"snapshot": 3}': "a mapping as snapshot",
    '{"snapshot": {"digest": 3}}': "letters and digits as snapshot.digest, got 3",
    given(lambda made: made.update(hardware={"gpu": 1})): "as hardware.processes",
    given(lambda made: made["hardware"].update(gpu=1)): "processes, device, threads, precision in the section hardware",
    given(lambda made: made.update(imports=3)): "a mapping as imports",
    given(lambda made: made.update(storage=3)): "a mapping as storage",
    given(lambda made: made.update(imports=["x"])): "a mapping as imports",
    given(lambda made: made.update(imports={"x": 1})): "text by name as imports",
    given(lambda made: made["snapshot"].update(class_names=[0, 1])): "different names or null as snapshot.class_names",
    given(lambda made: made["snapshot"].update(class_names=["a", "a"])): "as snapshot.class_names",
    given(lambda made: made.update(preprocessing="x")): "a mapping as preprocessing",
    given(lambda made: made["preprocessing"].update(resize=0)): "as preprocessing.resize, got 0",
    given(lambda made: made["preprocessing"].update(image_mode="Q")): "L or RGB as preprocessing.image_mode, got Q",
    given(lambda made: made["preprocessing"].update(pixel_mean=[])): "as preprocessing.pixel_mean",
    given(lambda made: made["preprocessing"].update(pixel_std=[float("nan")])): "as preprocessing.pixel_std",
    given(lambda made: made["preprocessing"].pop("image_size")): "as preprocessing.image_size, got nothing",
    given(lambda made: made["preprocessing"].update(blur=1)): "in the section preprocessing",
    given(lambda made: made["preprocessing"].update(resize=2**31)): "to 16384 as preprocessing.resize",
    given(lambda made: made["snapshot"].update(digest="a' OR 1=1")): "letters and digits as snapshot.digest",
    given(lambda made: made.update(final_model_sha256=7)): "text or null as final_model_sha256",
}


@pytest.mark.parametrize("text", DAMAGES, ids=lambda text: DAMAGES[text])
def test_damaged_provenance_is_refused_by_file_and_key(tmp_path: Path, text: str):
    (tmp_path / "provenance.json").write_text(text)
    with pytest.raises(ValueError, match=re.escape(DAMAGES[text])) as failure:
        read_provenance(tmp_path)
    assert str(tmp_path / "provenance.json") in str(failure.value)


def test_a_folder_that_is_no_run_is_named(tmp_path: Path):
    for folder in (tmp_path, tmp_path / "nope"):
        with pytest.raises(ValueError, match=f"no run folder at '{folder}'; expected one that"):
            read_provenance(folder)


def test_missing_provenance_is_named(tmp_path: Path):
    (tmp_path / "config.yaml").touch()
    with pytest.raises(ValueError, match=r"provenance\.json is missing; train the run again"):
        read_provenance(tmp_path)


def test_no_content_of_a_foreign_file_is_shown(tmp_path: Path):
    secret = tmp_path / "secret"
    secret.write_text("user:x:0:0")
    (tmp_path / "provenance.json").symlink_to(secret)
    with pytest.raises(ValueError, match="JSON") as failure:
        read_provenance(tmp_path)
    assert "user:x" not in str(failure.value)
