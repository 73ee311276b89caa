"""Softmax codes on disk, so that a descent runs once per machine. A file is a checksum and the rows, in float64.

Files lie in ~/.cache/ncflow/codes, named by (K, d, seed) and the version of the descent. A damaged file counts as
missing. Where the folder is not writable, no file is kept.
"""

from __future__ import annotations

import hashlib
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ncflow.files import write_atomically

VERSION = 1  # raise it where the descent changes
CHECKSUM = 32  # bytes of sha256


def load_code(num_classes: int, num_features: int, seed: int) -> Tensor | None:
    """The stored rows (K, d), None without an undamaged file."""
    content = b""
    with suppress(OSError, RuntimeError):  # RuntimeError: this user has no home
        content = _path(num_classes, num_features, seed).read_bytes()
    checksum, data = content[:CHECKSUM], content[CHECKSUM:]
    if len(data) != 8 * num_classes * num_features or hashlib.sha256(data).digest() != checksum:
        return None
    rows = np.frombuffer(data, "<f8").astype(np.float64).reshape(num_classes, num_features)
    return torch.from_numpy(rows)


def store_code(rows: Tensor, seed: int) -> None:
    """Store rows (K, d), if the folder is writable."""
    data = rows.numpy().astype("<f8").tobytes()
    with suppress(OSError, RuntimeError):
        path = _path(len(rows), rows.shape[1], seed)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, lambda file: file.write(hashlib.sha256(data).digest() + data))


def _path(num_classes: int, num_features: int, seed: int) -> Path:
    name = f"softmax-{num_classes}x{num_features}-seed{seed}-v{VERSION}.code"
    return Path("~/.cache/ncflow/codes").expanduser() / name
