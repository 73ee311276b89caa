"""Files of features: NumPy, torch, safetensors and Parquet, with one set of keys; nothing in them is executed.

A file holds one split under the keys of `FeatureSplit`. Or it holds several under <split>/features and <split>/targets,
and the classifier and the classes once.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ncflow.files import write_atomically
from ncflow.lookup import unknown

SPLITS = ("train", "val", "test")
SHARED = ("weight", "bias", "class_counts", "class_names")  # one for all splits of a file


@dataclass(frozen=True, eq=False)
class FeatureSplit:
    """Features (N, d) and targets (N,) of one split, and what else its file holds: tensors, or None.

    weight (K, d) and bias (K,) are the classifier, logits (N, K) its output. class_counts (K,) are the sizes of the
    training classes, class_names their K names.
    """

    features: torch.Tensor
    targets: torch.Tensor
    weight: torch.Tensor | None = None
    bias: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    class_counts: list[int] | None = None
    class_names: list[str] | None = None


def read_features(file: str | Path) -> dict[str, FeatureSplit]:
    """The splits of a file of features by name; a file of one split is "train".

    Suffixes are those of READERS. A folder holds features.npy, targets.npy and so on, or shards: files whose samples
    follow each other in the order of their names. Raises ValueError for a file that is missing, damaged or of another
    kind, and for a missing or unknown key. It names the file.
    """
    file = Path(file)
    if file.is_dir():
        return _read_folder(file)
    if not file.is_file():
        raise ValueError(f"no file {file}; expected features in one of {', '.join(READERS)}")
    if file.suffix not in READERS:
        raise ValueError(f"{file} has the ending '{file.suffix}'; expected one of {', '.join(READERS)}")
    try:
        content = READERS[file.suffix](file)
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"{file} is damaged, or holds more than arrays: {reason}") from error
    try:
        return _splits(content)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None


def stream_features(file: str | Path) -> Iterator[dict[str, FeatureSplit]]:
    """Yield the splits of a file of features part by part, so that they need not fit into memory together.

    The parts of a folder of shards are its shards. Arrays in a folder are mapped into memory and read on demand. The
    errors are those of `read_features`.
    """
    file = Path(file)
    shards = _shards(file) if file.is_dir() and not (file / "features.npy").is_file() else [file]
    yield from map(read_features, shards)


def _read_folder(folder: Path) -> dict[str, FeatureSplit]:
    if (folder / "features.npy").is_file():
        try:  # private maps, which torch takes: nothing is written, and only what is read is in memory
            arrays = {file.stem: np.load(file, mmap_mode="c", allow_pickle=False) for file in _arrays(folder)}
            return _splits(arrays)
        except (ValueError, OSError) as error:
            raise ValueError(f"{folder}: {error}") from None
    shards = [read_features(file) for file in _shards(folder)]
    if any(shard.keys() != shards[0].keys() for shard in shards):
        raise ValueError(f"{folder}: expected the same splits in each shard, got {', '.join(shards[0])} and others")
    return {split: _joined([shard[split] for shard in shards], folder) for split in shards[0]}


def _arrays(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.npy"))


def _shards(folder: Path) -> list[Path]:
    """The files of features in a folder, in the order of their names."""
    shards = sorted(file for file in folder.iterdir() if file.suffix in READERS)
    if not shards:
        raise ValueError(f"{folder} holds neither features.npy nor shards in one of {', '.join(READERS)}")
    return shards


def _joined(parts: Sequence[FeatureSplit], folder: Path) -> FeatureSplit:
    """The samples of all parts in order; classifier and classes are those of the first part that has them."""
    widths = {part.features.shape[1:] for part in parts}
    if len(widths) > 1:
        raise ValueError(f"{folder}: expected features of one width in all shards, got {sorted(map(tuple, widths))}")
    rows: dict[str, Any] = {
        key: None if any(getattr(part, key) is None for part in parts) else torch.cat([getattr(p, key) for p in parts])
        for key in ("features", "targets", "logits")
    }
    shared: dict[str, Any] = {
        key: next((v for p in parts if (v := getattr(p, key)) is not None), None) for key in SHARED
    }
    return FeatureSplit(**rows, **shared)


def series(files: Sequence[Path]) -> dict[int, Path]:
    """Epoch -> file: the last number in each name, in order. Epoch 0 is the initialization; a single file is epoch 1.

    Raises ValueError for a name without a number, and for two files of one epoch.
    """
    if len(files) == 1:
        return {1: Path(files[0])}
    epochs: dict[int, Path] = {}
    for file in map(Path, files):
        numbers = re.findall(r"\d+", file.stem)
        if not numbers or int(numbers[-1]) > 10**9:
            raise ValueError(f"{file} has no epoch in its name; expected names such as epoch_10.npz")
        other = epochs.setdefault(int(numbers[-1]), file)
        if other is not file:
            raise ValueError(f"{other} and {file} are both of epoch {numbers[-1]}; leave one out")
    return dict(sorted(epochs.items()))


def write_features(file: Path, splits: Mapping[str, FeatureSplit]) -> Path:
    """Write splits to one .npz, completely or not at all; `read_features` reads it."""
    first = next(iter(splits.values()))
    content = {key: np.asarray(value) for key in SHARED if (value := _plain(getattr(first, key))) is not None}
    for name, split in splits.items():
        rows = {key: _plain(getattr(split, key)) for key in ("features", "targets", "logits")}
        content |= {f"{name}/{key}": np.asarray(value) for key, value in rows.items() if value is not None}
    return write_atomically(file, lambda stream: np.savez(stream, allow_pickle=False, **content))


def _splits(content: Mapping[str, Any]) -> dict[str, FeatureSplit]:
    known = [field.name for field in fields(FeatureSplit)]
    named = {split for split in SPLITS if any(key.startswith(f"{split}/") for key in content)}
    for key in content:
        if key.rpartition("/")[2] not in known or (key.rpartition("/")[0] or "train") not in SPLITS:
            raise unknown("key", key, [*known, *(f"{split}/features" for split in SPLITS)])
    if not named:
        return {"train": _split(content, "")}
    shared = {key: content[key] for key in SHARED if key in content}
    if others := [key for key in content if "/" not in key and key not in shared]:
        raise ValueError(f"key '{others[0]}' stands outside of the splits {', '.join(sorted(named))}; name its split")
    return {split: _split({**shared, **content}, f"{split}/") for split in SPLITS if split in named}


def _split(content: Mapping[str, Any], prefix: str) -> FeatureSplit:
    found = {field.name: content.get(prefix + field.name, content.get(field.name)) for field in fields(FeatureSplit)}
    for key in ("features", "targets"):
        if found[key] is None:
            raise ValueError(f"expected a key '{prefix}{key}', got {', '.join(content) or 'no keys'}")
    tensors = {key: _tensor(prefix + key, found[key]) for key in ("features", "targets", "weight", "bias", "logits")}
    counts, names = found["class_counts"], found["class_names"]
    if len(tensors["features"]) != len(tensors["targets"]):
        sizes = f"{len(tensors['features'])} and {len(tensors['targets'])}"
        raise ValueError(f"expected a target for each of the features, got {sizes} rows")
    return FeatureSplit(
        **tensors,
        class_counts=None if counts is None else [int(count) for count in np.asarray(counts).tolist()],
        class_names=None if names is None else [str(name) for name in np.asarray(names).tolist()],
    )


def _tensor(key: str, value: Any) -> Any:
    if value is None or isinstance(value, torch.Tensor):
        return value
    array = np.asarray(value)
    if array.dtype.kind not in "fiub":
        raise ValueError(f"key '{key}' must hold numbers, got {array.dtype}")
    return torch.from_numpy(np.ascontiguousarray(array))


def _plain(value: Any) -> Any:
    return value.detach().cpu().numpy() if isinstance(value, torch.Tensor) else value


def _read_npz(file: Path) -> dict[str, Any]:
    with np.load(file, allow_pickle=False) as archive:
        return {key: archive[key] for key in archive.files}


def _read_torch(file: Path) -> dict[str, Any]:
    content = torch.load(file, map_location="cpu", weights_only=True)
    if not isinstance(content, Mapping):
        raise TypeError(f"expected a mapping from keys to tensors, got {type(content).__name__}")
    return {str(key): value for key, value in content.items()}


def _read_safetensors(file: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    return dict(load_file(file))


def _read_parquet(file: Path) -> dict[str, Any]:
    """A column of lists `features`, and `targets` or `label`."""
    import pyarrow.parquet as pq

    table = pq.read_table(file)
    names = {"label": "targets", "labels": "targets"}
    columns = {names.get(name, name): table.column(name).combine_chunks() for name in table.column_names}
    return {name: np.asarray(column.to_pylist()) for name, column in columns.items()}


READERS: dict[str, Callable[[Path], dict[str, Any]]] = {
    ".npz": _read_npz,
    ".pt": _read_torch,
    ".pth": _read_torch,
    ".safetensors": _read_safetensors,
    ".parquet": _read_parquet,
}
