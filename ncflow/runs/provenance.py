"""The provenance of a run: versions, commit, data and hardware, as `provenance.json` in its folder."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

from ncflow.runs.damage import check_mapping, damaged
from ncflow.runs.layout import CONFIG, PROVENANCE

FIRST_RESIZING = "float32"  # of the versions that had no other
Section = TypeVar("Section", "Hardware", "Preprocessing")


@dataclass(frozen=True)
class Hardware:
    """The hardware of a run. `threads` counts those of a CPU process, None on a GPU. str() gives readable text."""

    processes: int
    device: str
    threads: int | None
    precision: str

    @classmethod
    def of(cls, accelerator: Any, precision: str) -> Hardware:
        """The hardware of an Accelerator."""
        import torch

        count, device = int(accelerator.num_processes), accelerator.device
        if device.type == "cuda":
            return cls(count, torch.cuda.get_device_name(device), None, precision)
        return cls(count, "cpu", torch.get_num_threads(), precision)

    def __str__(self) -> str:
        processes = f"{self.processes} process{'es' if self.processes > 1 else ''}"
        threads = "" if self.threads is None else f" ({self.threads} threads)"
        return f"{processes} on {self.device}{threads}, {self.precision}"


@dataclass(frozen=True)
class DataVersion:
    """The snapshot that a run was trained on: usual folder name, digest, names of the classes."""

    name: str
    digest: str
    class_names: list[str] | None = None


@dataclass(frozen=True)
class Preprocessing:
    """How test pictures become the classifier's input: the options of `ncflow.nn.pictures.PictureClassifier`.

    resizing: the earlier rule in files of earlier versions, which do not name it.
    """

    image_mode: str
    image_size: int
    resize: int
    pixel_mean: list[float]
    pixel_std: list[float]
    resizing: str = FIRST_RESIZING


@dataclass(frozen=True)
class Provenance:
    """The provenance of a run.

    imports: file -> digest of the user's own modules. hardware: None in files of earlier versions, which hold text.
    final_model_sha256: None until the run is finished. extended_from: epochs of the finished run that it extends.
    checkpoint_sha256: of the file of weights that it started from. preprocessing: None in files of earlier versions.
    stopped: why early stopping ended the run, the fields of `ncflow.training.Stopped`; None if it did not.
    storage: split -> where its pixels were, which changes no result.
    """

    ncflow: str
    torch: str
    git_commit: str | None
    snapshot: DataVersion
    hardware: Hardware | None
    imports: dict[str, str] = field(default_factory=dict)
    extended_from: int | None = None
    final_model_sha256: str | None = None
    checkpoint_sha256: str | None = None
    preprocessing: Preprocessing | None = None
    stopped: dict[str, Any] | None = None
    storage: dict[str, str] = field(default_factory=dict)

    def as_json(self) -> str:
        return json.dumps(asdict(self), indent=1)


def read_provenance(folder: Path) -> Provenance:
    """The provenance of the run in a folder. Raises ValueError that names a missing file, or a damaged file and key."""
    file = folder / PROVENANCE
    if not (folder / CONFIG).is_file() and not os.path.lexists(file):
        raise ValueError(f"no run folder at '{folder}'; expected one that `ncflow train` wrote, models/<exp_name>")
    if not file.is_file():
        raise ValueError(f"{file} is missing; train the run again, or fetch it with `dvc pull`")
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise damaged(file, "JSON", type(error).__name__) from None
    check_mapping(file, values, "the provenance")
    return _from_json(file, values)


def _from_json(file: Path, values: Mapping[str, Any]) -> Provenance:
    for section in ("snapshot", *(name for name in MAPPINGS if values.get(name) is not None)):
        check_mapping(file, values.get(section), section)
    for key, (expected, fits) in ENTRIES.items():
        section, _, name = key.rpartition(".")
        holder = values.get(section) if section else values
        if isinstance(holder, Mapping) and not fits(holder.get(name), holder):
            raise damaged(file, f"{expected} as {key}", holder.get(name))
    snapshot, hardware, how = values["snapshot"], values.get("hardware"), values.get("preprocessing")
    return Provenance(
        ncflow=str(values.get("ncflow")),
        torch=str(values.get("torch")),
        git_commit=values.get("git_commit"),
        snapshot=DataVersion(str(snapshot.get("name")), snapshot["digest"], snapshot.get("class_names")),
        hardware=_made(Hardware, file, hardware) if isinstance(hardware, dict) else None,
        imports=values.get("imports") or {},
        extended_from=values.get("extended_from"),
        final_model_sha256=values.get("final_model_sha256"),
        checkpoint_sha256=values.get("checkpoint_sha256"),
        preprocessing=None if how is None else _made(Preprocessing, file, how),
        stopped=values.get("stopped"),
        storage=values.get("storage") or {},
    )


def _made(kind: type[Section], file: Path, values: Mapping[str, Any]) -> Section:
    """A section with exactly the fields of `kind`, without those that have a default."""
    known = {each.name: each.default is MISSING for each in fields(kind)}
    lacking = [name for name, needed in known.items() if needed and name not in values]
    if lacking or not values.keys() <= known.keys():
        raise damaged(file, f"{', '.join(known)} in the section {kind.__name__.lower()}", ", ".join(values))
    return kind(**values)


def _is_text(value: Any, holder: Mapping[str, Any]) -> bool:
    return isinstance(value, str)


def _is_digest(value: Any, holder: Mapping[str, Any]) -> bool:
    return isinstance(value, str) and re.fullmatch(r"[\w.-]{1,200}", value) is not None


def _is_optional_text(value: Any, holder: Mapping[str, Any]) -> bool:
    return value is None or isinstance(value, str)


def _is_names(value: Any, holder: Mapping[str, Any]) -> bool:
    texts = isinstance(value, list) and value and all(isinstance(name, str) for name in value)
    return value is None or bool(texts and len(set(value)) == len(value))


def _is_texts(value: Any, holder: Mapping[str, Any]) -> bool:
    return value is None or all(isinstance(text, str) for text in value.values())


def _is_size(value: Any, holder: Mapping[str, Any]) -> bool:
    return type(value) is int and 1 <= value <= 2**31


def _is_optional_size(value: Any, holder: Mapping[str, Any]) -> bool:
    return value is None or _is_size(value, holder)


def _is_side(value: Any, holder: Mapping[str, Any]) -> bool:
    return _is_size(value, holder) and value <= LARGEST


def _is_resize(value: Any, holder: Mapping[str, Any]) -> bool:
    return _is_side(value, holder) and value >= holder["image_size"]


def _is_channels(value: Any, holder: Mapping[str, Any]) -> bool:
    shares = isinstance(value, list) and all(type(x) in (int, float) and 0 <= x <= 1 for x in value)  # rejects NaN
    return shares and len(value) == len(holder["image_mode"])


LARGEST = 2**14  # side of a picture in pixels
MAPPINGS = ("imports", "storage", "preprocessing", "stopped")
# Key -> the expected content and its check, given the section. A check may rely on the keys before it.
ENTRIES: dict[str, tuple[str, Callable[[Any, Mapping[str, Any]], bool]]] = {
    "git_commit": ("text or null", _is_optional_text),
    "snapshot.digest": ("letters and digits", _is_digest),
    "snapshot.class_names": ("a list of different names or null", _is_names),
    "hardware.processes": ("a whole number", _is_size),  # text instead of the section in earlier versions
    "hardware.device": ("text", _is_text),
    "hardware.threads": ("a whole number or null", _is_optional_size),
    "hardware.precision": ("text", _is_text),
    "imports": ("text by name", _is_texts),
    "storage": ("text by name", _is_texts),
    "extended_from": ("a whole number or null", _is_optional_size),
    "final_model_sha256": ("text or null", _is_optional_text),
    "checkpoint_sha256": ("text or null", _is_optional_text),
    "preprocessing.image_mode": ("L or RGB", lambda value, holder: value in ("L", "RGB")),
    "preprocessing.image_size": (f"a whole number from 1 to {LARGEST}", _is_side),
    "preprocessing.resize": (f"a whole number from image_size to {LARGEST}", _is_resize),
    "preprocessing.pixel_mean": ("numbers in 0..1, one for each channel,", _is_channels),
    "preprocessing.pixel_std": ("numbers in 0..1, one for each channel,", _is_channels),
    "preprocessing.resizing": ("text", lambda value, holder: "resizing" not in holder or isinstance(value, str)),
}
