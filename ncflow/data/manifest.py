"""The manifest of a snapshot: one JSON file with a description, the hash of every other file and its own digest."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NotRequired, TypedDict, cast

PROTOCOL = 1  # increase it when the same configuration would choose or store other images
MANIFEST = "manifest.json"
COUNTS = {"train": "class_counts", "val": "val_class_counts", "test": "test_class_counts"}  # keys of a split's sizes
SOURCE_NAME = r"[A-Za-z0-9_][A-Za-z0-9_.=+-]*"  # of a data set; its snapshot's folder name begins with it
Json = dict[str, Any]  # an object of JSON whose keys and values are not verified yet
LONGEST = 255  # characters of a name
LARGEST = 2**26  # bytes of a manifest; 100,000 classes need a tenth of it


class Damage(TypedDict):
    """The pictures of a split that cannot be decoded and are left out: how many, and the names of the first."""

    count: int
    first: list[str]


class Manifest(TypedDict):
    """What every snapshot says of itself, and what some say; also the choices of its recipe, under their own names.

    Counts are the samples of each of the K classes in a split. `image_size` is height and width, or None where they
    vary. `pixel_mean` and `pixel_std` are those of the training split, one for each channel, in [0, 1].
    `source_sha256` is a checksum of each split of the source.
    """

    protocol: int
    name: str
    class_names: list[str]
    class_counts: list[int]
    test_class_counts: list[int]
    val_class_counts: NotRequired[list[int]]
    clean_class_counts: NotRequired[list[int]]  # before label noise
    asked_class_counts: NotRequired[list[int]]  # where the source has fewer
    image_mode: str
    image_size: list[int] | None
    pixel_mean: list[float]
    pixel_std: list[float]
    indices_sha256: str
    source_sha256: dict[str, str]
    source_listing: NotRequired[str]  # of a user's own data
    notes: NotRequired[list[str]]
    shared_with_train: NotRequired[dict[str, int]]
    damaged: NotRequired[dict[str, Damage]]
    files: dict[str, str]  # name -> sha256
    digest: str


class SnapshotDamaged(ValueError):
    """A snapshot whose files do not match its manifest."""


def write_manifest(folder: Path, description: Mapping[str, object]) -> Manifest:
    """Write the manifest of `folder` from a description and the hashes of the files, and return it."""
    files = {file.name: _file_hash(file) for file in sorted(folder.iterdir())}
    manifest = _sealed({"protocol": PROTOCOL, **description, "files": files})
    (folder / MANIFEST).write_text(_render(manifest), encoding="utf-8")
    return cast(Manifest, manifest)


def read_manifest(folder: Path) -> Manifest:
    """The manifest of `folder`, after verifying it and every file that it names.

    Raises SnapshotDamaged that names a damaged file, and ValueError for another protocol.
    """
    manifest = _read_sealed(folder / MANIFEST)
    for name, expected in manifest["files"].items():
        if not (folder / name).is_file():
            raise damaged(folder / name, "the file is missing")
        if (found := _file_hash(folder / name)) != expected:
            raise damaged(folder / name, f"expected sha256 {expected}, got {found}")
    return manifest


def find_manifest(parent: Path, digest: str) -> Path | None:
    """The folder in `parent` whose manifest has this digest, or None. Manifests that cannot be read are skipped."""
    for file in sorted(parent.glob(f"*/{MANIFEST}")):
        with suppress(OSError, ValueError):
            if _read_sealed(file)["digest"] == digest:
                return file.parent
    return None


def _read_sealed(path: Path) -> Manifest:
    if not path.is_file():
        raise damaged(path, "the file is missing")
    if path.stat().st_size > LARGEST:
        raise damaged(path, f"it is larger than {LARGEST} bytes")
    try:
        text = path.read_text(encoding="utf-8")
        manifest = dict(json.loads(text))
        sealed = text == _render(_sealed(manifest))
    except (ValueError, TypeError, RecursionError) as error:  # the content may be untrusted, so it is not shown
        raise damaged(path, f"it is not a manifest ({type(error).__name__})") from error
    if not sealed:
        raise damaged(path, "its content does not match its own digest")
    if _is_protocol(manifest.get("protocol"), manifest) and manifest["protocol"] != PROTOCOL:
        raise ValueError(f"{path} has protocol {manifest['protocol']}, expected {PROTOCOL}; build the snapshot again")
    for key, fits in ENTRIES.items():
        if not fits(manifest.get(key), manifest):
            raise damaged(path, f"{key} is missing, or not what a snapshot has")
    return cast(Manifest, manifest)


def _sealed(manifest: Json) -> Json:
    """The manifest with the digest of all its other entries as the last one."""
    content = {key: value for key, value in manifest.items() if key != "digest"}
    return content | {"digest": hashlib.sha256(_render(content).encode()).hexdigest()}


def _render(manifest: Json) -> str:
    """One entry per line, so a manifest of a thousand classes is readable."""
    lines = (f"  {json.dumps(key)}: {json.dumps(value, ensure_ascii=False)}" for key, value in manifest.items())
    return "{\n" + ",\n".join(lines) + "\n}\n"


def _file_hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def damaged(file: Path, reason: str) -> SnapshotDamaged:
    """The error for a damaged file of a snapshot. It does not advise deletion: the folder may be another user's."""
    return SnapshotDamaged(
        f"snapshot file {file} is damaged: {reason}. Fetch it with `dvc pull`, or rename the folder {file.parent} and "
        "run `ncflow snapshot` again"
    )


def _is_protocol(value: Any, manifest: Json) -> bool:
    return type(value) is int and 0 < value < 1000


def _is_hash(value: Any) -> bool:
    return isinstance(value, str) and re.fullmatch(r"[0-9a-f]{64}", value) is not None


def _is_source(value: Any, manifest: Json) -> bool:
    return isinstance(value, str) and len(value) <= LONGEST and re.fullmatch(SOURCE_NAME, value) is not None


def _is_names(value: Any, manifest: Json) -> bool:
    texts = isinstance(value, list) and all(isinstance(name, str) for name in value)
    return texts and len(value) >= 1 and len(set(value)) == len(value)


def _is_files(value: Any, manifest: Json) -> bool:
    known = {f"{split}.parquet" for split in COUNTS}
    whole = isinstance(value, dict) and {"train.parquet", "test.parquet"} <= value.keys() <= known
    return whole and all(map(_is_hash, value.values()))


def _is_counts(value: Any, manifest: Json) -> bool:
    whole = isinstance(value, list) and all(type(count) is int and count >= 0 for count in value)
    return whole and len(value) == len(manifest["class_names"])


def _is_optional_counts(value: Any, manifest: Json) -> bool:
    return value is None if "val.parquet" not in manifest["files"] else _is_counts(value, manifest)


def _is_channels(value: Any, manifest: Json) -> bool:
    finite = isinstance(value, list) and all(type(x) in (int, float) and 0 <= x <= 1 for x in value)  # also rejects NaN
    return finite and len(value) == len(manifest["image_mode"])


def _is_size(value: Any, manifest: Json) -> bool:
    pair = isinstance(value, list) and len(value) == 2 and all(type(x) is int and 1 <= x <= 2**31 for x in value)
    return value is None or pair


def _is_sums(value: Any, manifest: Json) -> bool:
    splits = isinstance(value, dict) and {"train", "test"} <= value.keys() <= COUNTS.keys()
    return splits and all(map(_is_hash, value.values()))


# Key -> check of its value. Each check may rely on the keys before it.
ENTRIES: dict[str, Callable[[Any, Json], bool]] = {
    "protocol": _is_protocol,
    "name": _is_source,
    "files": _is_files,
    "class_names": _is_names,
    COUNTS["train"]: _is_counts,
    COUNTS["val"]: _is_optional_counts,
    COUNTS["test"]: _is_counts,
    "image_mode": lambda value, manifest: value in ("L", "RGB"),
    "image_size": _is_size,
    "pixel_mean": _is_channels,
    "pixel_std": _is_channels,
    "source_sha256": _is_sums,
}
