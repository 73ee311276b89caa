"""The provenance of a run: versions, commit, data and hardware, as `provenance.json` in its folder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ncflow.runs.layout import PROVENANCE

FIRST_RESIZING = "float32"  # of the versions that had no other


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
    """The provenance of the run in a folder. Raises ValueError that names a missing or damaged file."""
    file = folder / PROVENANCE
    try:
        return _from_json(json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise ValueError(f"{file} is missing or damaged; train the run again, or fetch it with `dvc pull`") from None


def _from_json(values: Mapping[str, Any]) -> Provenance:
    snapshot, hardware = values["snapshot"], values.get("hardware")
    names = snapshot.get("class_names")
    if not isinstance(snapshot["digest"], str) or not (names is None or isinstance(names, list)):
        raise ValueError("snapshot")
    imports = values.get("imports", {})
    storage = values.get("storage", {})
    if not isinstance(imports, dict) or not isinstance(storage, dict):
        raise ValueError("imports or storage")
    return Provenance(
        ncflow=str(values.get("ncflow")),
        torch=str(values.get("torch")),
        git_commit=values.get("git_commit"),
        snapshot=DataVersion(str(snapshot.get("name")), snapshot["digest"], names),
        hardware=Hardware(**hardware) if isinstance(hardware, dict) else None,
        imports=imports,
        extended_from=values.get("extended_from"),
        final_model_sha256=values.get("final_model_sha256"),
        checkpoint_sha256=values.get("checkpoint_sha256"),
        preprocessing=_preprocessing(values.get("preprocessing")),
        stopped=values.get("stopped"),
        storage=storage,
    )


def _preprocessing(values: Any) -> Preprocessing | None:
    if values is None:
        return None
    found = Preprocessing(**values)
    sizes, moments = (found.image_size, found.resize), (*found.pixel_mean, *found.pixel_std)
    if not all(type(size) is int for size in sizes) or not all(type(value) in (int, float) for value in moments):
        raise ValueError("preprocessing")
    if not isinstance(found.resizing, str):
        raise ValueError("resizing")
    return found
