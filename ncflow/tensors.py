"""Files of tensors, complete or not there, and read back only when unchanged."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import torch

from ncflow.files import write_atomically


def write_tensors(path: Path, content: Mapping[str, Any]) -> Path:
    """torch.save, complete or not at all; `read_tensors` reads it."""
    return write_atomically(path, lambda file: torch.save(dict(content), file))


def read_tensors(path: Path) -> Any:
    """What `write_tensors` wrote: tensors and plain data, never code. A ValueError names a file that is damaged."""
    try:
        with ZipFile(path) as archive:  # torch stores checksums but does not look at them
            if changed := archive.testzip():
                raise ValueError(f"the checksum of {changed} does not match")
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ValueError(f"{path} is damaged or not a checkpoint: {error}") from error
