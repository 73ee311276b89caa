"""A snapshot is what was asked for, reads back as it was, and is never half-written, damaged or another one's."""

from __future__ import annotations

import ast
import errno
import io
import json
import math
import multiprocessing
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image
from pyarrow import parquet

from ncflow.data import manifest as manifest_module
from ncflow.data import snapshot as snapshot_module
from ncflow.data.images import decode_image
from ncflow.data.loaders import load_batches
from ncflow.data.longtail import longtail_counts, longtail_indices
from ncflow.data.manifest import SnapshotDamaged, read_manifest, write_manifest
from ncflow.data.snapshot import Snapshot
from ncflow.data.sources import SPLITS, load_source

ROOT = Path(__file__).parents[2]
FILES = ("train.parquet", "test.parquet", "manifest.json")


def pixels(snapshot: Snapshot, split: str) -> np.ndarray:
    return np.stack([np.array(decode_image(content)) for content in snapshot.encoded_images(split)])


@pytest.fixture
def copy(digits, tmp_path) -> Path:
    return Path(shutil.copytree(digits.path, tmp_path / "copy"))


def test_the_train_split_is_long_tailed_and_the_test_split_unchanged(digits):
    train, test = (load_source("digits", split=split) for split in SPLITS)
    indices = longtail_indices(train.targets, 10, imb_type="exp", imb_factor=0.02, seed=0)
    assert np.array_equal(pixels(digits, "train"), train.images[indices])
    assert digits.targets("train").tolist() == train.targets[indices].tolist()
    assert np.array_equal(pixels(digits, "test"), test.images)
    assert digits.targets("test").tolist() == test.targets.tolist()


def test_a_full_disk_is_named_and_leaves_nothing_of_the_snapshot(tmp_path, monkeypatch):
    def full(path: Path, *content: object) -> None:
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "Error writing bytes to file. Detail: ...")

    monkeypatch.setattr(snapshot_module, "write_split", full)
    path = tmp_path / "digits"
    words = re.escape(
        f"cannot write {path}: No space left on device; make room or allow it, and rerun the same command"
    )
    with pytest.raises(OSError, match=words):
        Snapshot.create(path, name="digits")
    assert list(tmp_path.iterdir()) == []


def test_the_manifest_tells_what_it_holds(digits):
    manifest = digits.manifest
    assert digits.class_counts == torch.bincount(digits.targets("train")).tolist()
    assert digits.class_counts[1:] == longtail_counts(143, 10, imb_factor=0.02)[1:]  # class 0 has 142 samples in all
    assert manifest["test_class_counts"] == [36] * 10
    assert digits.num_classes == 10 and digits.class_names == [str(k) for k in range(10)]
    assert (manifest["image_mode"], manifest["image_size"]) == ("L", [8, 8])
    assert manifest["pixel_mean"] == [pytest.approx(pixels(digits, "train").mean() / 255, abs=1e-6)]
    assert manifest["pixel_std"] == [pytest.approx(pixels(digits, "train").std() / 255, abs=1e-6)]
    assert manifest["source_sha256"]["test"] == load_source("digits", split="test").checksum


def test_loading_gives_back_what_was_created(digits):
    assert Snapshot.load(digits.path) == digits


@pytest.mark.parametrize("split", SPLITS)
def test_anyone_can_open_the_files(digits, split, tmp_path):
    import datasets
    import pandas

    files = {split: str(digits.file(split))}
    anyones = datasets.load_dataset("parquet", data_files=files, cache_dir=str(tmp_path))[split]
    assert anyones.features["label"].names == digits.class_names
    for rows in (anyones, digits.dataset(split)):
        assert rows["label"] == digits.targets(split).tolist()
        assert np.array_equal(np.stack([np.array(image) for image in rows["image"]]), pixels(digits, split))
    frame = pandas.read_parquet(digits.file(split))
    assert [row["bytes"] for row in frame["image"]] == list(digits.encoded_images(split))


def test_same_inputs_give_the_same_bytes(digits, tmp_path):
    again = Snapshot.create(tmp_path / "again", name="digits", imb_factor=0.02, seed=0)
    assert again.digest == digits.digest
    for file in FILES:
        assert (again.path / file).read_bytes() == (digits.path / file).read_bytes()


def test_another_seed_is_another_snapshot(digits, tmp_path):
    other = Snapshot.create(tmp_path / "other", name="digits", imb_factor=0.02, seed=1)
    assert other.class_counts == digits.class_counts
    assert other.digest != digits.digest
    assert other.manifest["indices_sha256"] != digits.manifest["indices_sha256"]
    assert other.manifest["files"]["test.parquet"] == digits.manifest["files"]["test.parquet"]


@pytest.mark.parametrize("file", FILES[:2])
@pytest.mark.parametrize("place", [0.0, 0.3, 0.7, 1.0])
@pytest.mark.parametrize("bit", [0, 7])
def test_a_flipped_bit_is_refused_by_name(copy, file, place, bit):
    content = bytearray((copy / file).read_bytes())
    content[round(place * (len(content) - 1))] ^= 1 << bit
    (copy / file).write_bytes(content)
    with pytest.raises(SnapshotDamaged, match=f"{file} is damaged.*ncflow snapshot"):
        Snapshot.load(copy)


def test_no_flipped_bit_of_the_manifest_goes_unnoticed(copy):
    intact = (copy / "manifest.json").read_bytes()
    for place in range(len(intact)):
        damaged = bytearray(intact)
        damaged[place] ^= 1 << place % 8
        (copy / "manifest.json").write_bytes(damaged)
        with pytest.raises(SnapshotDamaged, match="manifest.json is damaged"):
            Snapshot.load(copy)


@pytest.mark.parametrize("content", [b"", b"[]", b"null", b'{"protocol": 1}', b"\xff"])
def test_a_manifest_that_is_none_is_refused(copy, content):
    (copy / "manifest.json").write_bytes(content)
    with pytest.raises(SnapshotDamaged, match="manifest.json is damaged"):
        Snapshot.load(copy)


@pytest.mark.parametrize("file", FILES)
def test_a_missing_file_is_named(copy, file):
    (copy / file).unlink()
    with pytest.raises(SnapshotDamaged, match=f"{file} is damaged: the file is missing"):
        Snapshot.load(copy)


def test_another_protocol_is_not_taken_for_damage(copy, digits):
    (copy / "manifest.json").unlink()
    description = {key: value for key, value in digits.manifest.items() if key not in ("protocol", "files", "digest")}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ncflow.data.manifest.PROTOCOL", 99)
        write_manifest(copy, description)
    with pytest.raises(ValueError, match="protocol 99, expected 1") as error:
        Snapshot.load(copy)
    assert error.type is ValueError


def test_an_interrupted_creation_leaves_nothing(tmp_path, monkeypatch):
    def interrupted(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(snapshot_module, "write_manifest", interrupted)
    with pytest.raises(KeyboardInterrupt):
        Snapshot.create(tmp_path / "digits", name="digits", imb_factor=0.02)
    assert os.listdir(tmp_path) == []


def test_a_snapshot_is_never_overwritten(copy):
    before = (copy / "manifest.json").read_bytes()
    with pytest.raises(ValueError, match="not empty"):
        Snapshot.create(copy, name="digits", imb_factor=0.5)
    assert (copy / "manifest.json").read_bytes() == before


def test_an_empty_folder_is_filled(tmp_path):
    assert Snapshot.create(tmp_path, name="digits").num_classes == 10


def test_an_empty_class_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(ValueError, match="leaves class 7, 8, 9 without a sample"):
        Snapshot.create(tmp_path / "digits", name="digits", imb_factor=0.001)
    assert os.listdir(tmp_path) == []


def test_native_imbalance_keeps_everything(tmp_path):
    native = Snapshot.create(tmp_path / "native", name="digits", imb_factor=-1)
    assert native.class_counts == np.bincount(load_source("digits").targets).tolist()


def test_obtaining_loads_what_is_there_and_creates_what_is_not(tmp_path):
    config = {"name": "digits", "imb_type": "step", "imb_factor": 0.1, "seed": 2}
    path = tmp_path / "data" / Snapshot.default_name(**config)
    assert path.name == "digits-step-0.1-seed2"
    created = Snapshot.obtain(path, **config)
    written = (path / "train.parquet").stat().st_mtime_ns
    assert Snapshot.obtain(path, **config) == created
    assert (path / "train.parquet").stat().st_mtime_ns == written


@pytest.mark.parametrize("other", [{"seed": 1}, {"imb_factor": 0.1}, {"imb_type": "step"}, {"name": "mnist"}])
def test_the_snapshot_of_another_configuration_is_refused(digits, other):
    config = {"name": "digits", "imb_factor": 0.02} | other
    (key,) = other
    with pytest.raises(ValueError, match=f"holds another snapshot: {key} is .*, asked for "):
        Snapshot.obtain(digits.path, **config)


def test_another_folder_of_pictures_is_refused(flowers, flower_snapshot, tmp_path):
    config = {"name": "imagefolder", "imb_factor": -1}
    assert Snapshot.obtain(flower_snapshot.path, root=flowers, **config) == flower_snapshot
    with pytest.raises(ValueError, match="folder is 'flowers', asked for 'birds'"):
        Snapshot.obtain(flower_snapshot.path, root=tmp_path / "birds", **config)


def obtain(path: Path, log: Path, barrier) -> None:
    create = Snapshot.create

    def logged(*args, **config):
        with log.open("a") as file:
            file.write("created\n")
        return create(*args, **config)

    Snapshot.create = logged
    barrier.wait()
    assert Snapshot.obtain(path, name="digits", imb_factor=0.02).num_classes == 10


def test_processes_that_start_together_make_a_snapshot_once(digits, tmp_path):
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(8)
    arguments = (tmp_path / "digits", tmp_path / "log", barrier)
    processes = [context.Process(target=obtain, args=arguments) for _ in range(8)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0] * 8
    assert (tmp_path / "log").read_text() == "created\n"
    assert Snapshot.load(tmp_path / "digits").digest == digits.digest


def test_pictures_keep_their_original_bytes_and_their_place_in_order(flowers, flower_snapshot):
    files = sorted((flowers / "train").glob("*/*"))
    assert list(flower_snapshot.encoded_images("train")) == [file.read_bytes() for file in files]
    assert flower_snapshot.class_names == ["rose", "tulip"] and flower_snapshot.class_counts == [5, 3]
    assert (flower_snapshot.manifest["image_mode"], flower_snapshot.manifest["image_size"]) == ("RGB", None)


def test_pixel_moments_of_pictures_are_over_all_their_pixels(flower_snapshot):
    images = [decode_image(content).convert("RGB") for content in flower_snapshot.encoded_images("train")]
    values = np.concatenate([np.array(image).reshape(-1, 3) for image in images]) / 255
    assert flower_snapshot.manifest["pixel_mean"] == pytest.approx(values.mean(0), abs=1e-6)
    assert flower_snapshot.manifest["pixel_std"] == pytest.approx(values.std(0), abs=1e-6)


def test_a_picture_that_cannot_be_read_is_named(flowers, tmp_path):
    root = Path(shutil.copytree(flowers, tmp_path / "flowers"))
    (root / "test" / "tulip" / "1.png").write_bytes(b"not a picture")
    with pytest.raises(ValueError, match=r"(?s)cannot read 1 pictures; .*test/tulip/1.png"):
        Snapshot.create(tmp_path / "snapshot", name="imagefolder", root=root, imb_factor=-1)
    assert not (tmp_path / "snapshot").exists()


def test_an_unknown_split_is_refused(digits):
    for split in ("valid", "val"):  # the second exists in other snapshots
        with pytest.raises(ValueError, match=f"unknown split '{split}'"):
            digits.counts_of(split)
    with pytest.raises(ValueError, match="unknown split 'valid'"):
        digits.targets("valid")


def forged(copy: Path, **changes: object) -> None:
    """Seal a manifest with other entries, as anybody can."""
    description = {
        key: value for key, value in read_manifest(copy).items() if key not in ("protocol", "files", "digest")
    }
    (copy / "manifest.json").unlink()
    write_manifest(copy, {key: value for key, value in (description | changes).items() if value is not ...})


FORGED = {
    "class_names": [..., 3, [], ["a"] * 10, list(range(10))],
    "class_counts": [..., [1], "many", [-1] * 10, [1.5] * 10, [True] * 10],
    "test_class_counts": [..., None],
    "image_mode": [..., "CMYK", 3],
    "image_size": ["large", [0, 8], [8], {}, [2**40, 8]],
    "pixel_mean": [..., [], ["0.5"], [math.nan], [2.0], [0.5, 0.5]],
    "pixel_std": [..., None],
    "source_sha256": [..., [], {"exam": ""}, {"train": ["root:x"], "test": 3}],
    "name": [..., 5, "../../etc", "root:x:0", "a" * 1000],
}


@pytest.mark.parametrize("key", FORGED)
def test_a_forged_manifest_is_one_message_that_names_the_key(copy, key):
    intact = (copy / "manifest.json").read_bytes()
    for value in FORGED[key]:
        (copy / "manifest.json").write_bytes(intact)
        forged(copy, **{key: value})
        with pytest.raises(SnapshotDamaged, match=rf"manifest.json is damaged: {key} is missing, or not"):
            Snapshot.load(copy)


@pytest.mark.parametrize("hashes", [{"train.parquet": "root:x"}, {"train.parquet": ["root:x"] * 1000}, {"../x": ""}])
@pytest.mark.parametrize("protocol", [1, 10**4000], ids=["known", "endless"])
def test_forged_hashes_and_protocols_are_not_shown(copy, hashes, protocol):
    manifest = read_manifest(copy)
    manifest |= {"files": manifest["files"] | hashes, "protocol": protocol}
    (copy / "manifest.json").write_text(manifest_module._render(manifest_module._sealed(manifest)))
    with pytest.raises(
        SnapshotDamaged, match=r"manifest.json is damaged: (files|protocol) is missing, or not"
    ) as error:
        Snapshot.load(copy)
    assert "root:x" not in str(error.value) and len(str(error.value)) < 1000


@pytest.mark.parametrize("key", ["imb_type", "seed", "folder", "class_order"])
@pytest.mark.parametrize("value", ["root:x:0:0", ["root:x"] * 100_000, {"root:x": 1}])
def test_a_forged_choice_is_not_shown(copy, key, value):
    forged(copy, **{key: value})
    with pytest.raises(ValueError, match=f"holds another snapshot: {key} is another one, asked for") as error:
        Snapshot.obtain(copy, name="digits", imb_factor=0.02)
    assert "root:x" not in str(error.value) and len(str(error.value)) < 1000


ROWS = {
    "text for labels": (lambda t: t.set_column(1, "label", pa.array(["root:x"] * len(t))), "no whole numbers"),
    "fractions": (lambda t: t.set_column(1, "label", pa.array([0.5] * len(t))), "no whole numbers"),
    "not a number": (lambda t: t.set_column(1, "label", pa.array([math.nan] * len(t))), "no whole numbers"),
    "a row without label": (
        lambda t: t.set_column(1, "label", pa.array([None, *t["label"].to_pylist()[1:]])),
        "no label",
    ),
    "no labels": (lambda t: t.drop(["label"]), "not one column label"),
    "no pictures": (lambda t: t.drop(["image"]), "not one column image"),
    "text for pictures": (lambda t: t.set_column(0, "image", pa.array(["root:x"] * len(t))), "no content of pictures"),
    "no rows": (lambda t: t.slice(0, 0), "its labels are not those"),
    "a row without picture": (lambda t: _pictures(t, None), "row 1 has no picture"),
    "a row that is no picture": (lambda t: _pictures(t, b"root:x"), "row 1: cannot identify"),
    "a larger picture": (lambda t: _pictures(t, _png(9)), "row 1 is of"),
}


def _png(size: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("L", (size, size)).save(buffer, "PNG")
    return buffer.getvalue()


def _pictures(table: pa.Table, second: bytes | None) -> pa.Table:
    rows = table["image"].to_pylist()
    rows[1] = {"bytes": second, "path": None}
    return table.set_column(0, "image", pa.array(rows, table.schema.field("image").type))


@pytest.mark.parametrize("kind", ROWS)
def test_a_forged_file_of_a_split_is_one_message_that_names_it(copy, kind):
    forge, message = ROWS[kind]
    parquet.write_table(forge(parquet.read_table(copy / "train.parquet")), copy / "train.parquet")
    forged_files(copy)
    with pytest.raises(SnapshotDamaged, match=rf"train.parquet is damaged: .*{message}") as error:
        load_batches(Snapshot.load(copy), "train", image_size=8)
    assert "root:x" not in str(error.value) and "pull" in str(error.value)


def test_a_file_that_is_no_parquet_is_named(copy):
    (copy / "train.parquet").write_text("root:x:0:0")
    forged_files(copy)
    with pytest.raises(SnapshotDamaged, match="train.parquet is damaged: it is no Parquet file") as error:
        Snapshot.load(copy).targets("train")
    assert "root:x" not in str(error.value)


def forged_files(copy: Path) -> None:
    """Seal the files as they are now."""
    manifest = read_sealed(copy)
    (copy / "manifest.json").unlink()
    write_manifest(copy, {key: value for key, value in manifest.items() if key not in ("protocol", "files", "digest")})


def read_sealed(copy: Path) -> dict:
    return json.loads((copy / "manifest.json").read_text())


def test_a_missing_folder_and_a_file_in_its_place_are_reported(tmp_path):
    with pytest.raises(ValueError, match=r"there is no snapshot .*gone; fetch it with `dvc pull`"):
        Snapshot.load(tmp_path / "gone")
    (tmp_path / "file").write_text("root:x")
    with pytest.raises(ValueError, match="file is a file; expected a new folder"):
        Snapshot.obtain(tmp_path / "file", name="digits")


def test_labels_that_the_manifest_does_not_count_are_refused(copy):
    counts = read_manifest(copy)["class_counts"]
    forged(copy, class_counts=counts[::-1])
    with pytest.raises(SnapshotDamaged, match="train.parquet is damaged: its labels are not those that manifest.json"):
        Snapshot.load(copy).targets("train")
    forged(copy, class_names=["one", "two"], class_counts=[1, 1], test_class_counts=[1, 1])
    with pytest.raises(SnapshotDamaged, match=r"train.parquet is damaged: labels must lie in 0..1"):
        Snapshot.load(copy).targets("train")


@pytest.mark.parametrize("content", ["[" * 100_000, '{"a": ' * 100_000, '{"protocol": 1, "protocol": 2}', "root:x:0:0"])
def test_a_manifest_without_end_or_of_another_kind_shows_nothing_of_it(copy, content):
    (copy / "manifest.json").write_text(content)
    with pytest.raises(SnapshotDamaged, match="manifest.json is damaged") as error:
        Snapshot.load(copy)
    assert "root:x" not in str(error.value) and len(str(error.value)) < 1000


# Who may be asked to delete something, and what: a file, or a run folder of the project that training wrote.
ALLOWED = {
    ("nn/stock.py", "Delete it, and it is downloaded again"),  # a file of weights
    ("cli.py", "delete what you do not need"),  # run folders of the project, by their config.yaml
}


def test_no_message_advises_to_delete_but_a_file_or_a_run():
    advice = set()
    for file in (ROOT / "ncflow").rglob("*.py"):
        tree = ast.parse(file.read_text())
        said = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}  # docstrings advise nobody
        for node in ast.walk(tree):
            text = node.value if isinstance(node, ast.Constant) and id(node) not in said else ""
            if isinstance(text, str) and re.search(
                r"\b(delete|remove|rm -r|empty) (the|it|this|what|that)\b", text, re.I
            ):
                advice.add((file.relative_to(ROOT / "ncflow").as_posix(), text))
    left = {(file, text) for file, text in advice if not any(file == a and b in text for a, b in ALLOWED)}
    assert not left and len(advice) == len(ALLOWED)
