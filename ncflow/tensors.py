"""Write files of tensors completely or not at all, and read them only if they are unchanged."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import torch

from ncflow.files import write_atomically


def write_tensors(path: Path, content: Mapping[str, Any]) -> Path:
    """Write `content` with torch.save, completely or not at all. `read_tensors` reads it."""
    return write_atomically(path, lambda file: torch.save(dict(content), file))


def read_tensors(path: Path) -> Any:
    """The content that `write_tensors` wrote: tensors and data, never code. Raises ValueError if it is damaged."""
    try:
        with ZipFile(path) as archive:  # torch stores checksums but does not check them
            if changed := archive.testzip():
                raise ValueError(f"the checksum of {changed} does not match")
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ValueError(f"{path} is damaged or not a checkpoint: {error}") from error
