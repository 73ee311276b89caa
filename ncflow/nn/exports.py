"""Write a classifier of pictures as a program that runs without ncflow, and check the file against the classifier."""

from __future__ import annotations

import io
import json
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ncflow.extras import require
from ncflow.nn.pictures import PictureClassifier

Run = Callable[[Tensor], Tensor]  # pictures (B, H, W, C) uint8 -> logits (B, K)


def export(model: PictureClassifier, file: Path, kind: str, facts: Mapping[str, Any]) -> None:
    """Write a model in evaluation mode to `file`, as a row of FORMATS, with plain `facts`. B, H, W and C are free.

    Raises ValueError if the file gives other logits than the model, and MissingPackage if a package is missing.
    """
    row = FORMATS[kind]
    require(*row.packages)
    with torch.no_grad(), _quiet():
        row.write(model, file, json.dumps(facts))
        compare(row.read(file), model, kind)


@torch.no_grad()
def compare(run: Run, model: PictureClassifier, kind: str) -> None:
    """Raise ValueError unless both give equal logits for pictures of several sizes, batches and numbers of channels."""
    generator = torch.Generator().manual_seed(0)
    size = model.resize
    for shape, exact in (
        ((3, size, size, 3), True),
        ((1, size, size, 1), True),
        ((2, size + 7, 2 * size + 3, 4), False),
    ):
        pictures = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
        expected, found = model(pictures), run(pictures)
        largest = float((found - expected).abs().max() / expected.abs().max().clamp_min(1))
        tolerance = FORMATS[kind].tolerance if exact else max(FORMATS[kind].tolerance, FORMATS[kind].resized)
        if not largest <= tolerance:  # also rejects NaN
            raise ValueError(
                f"the {kind} program differs from the classifier by {largest:.1e} of the largest logit on pictures "
                f"{tuple(shape)}, expected at most {tolerance:g}; nothing is written"
            )


def _write_program(model: PictureClassifier, file: Path, facts: str) -> None:
    program = torch.export.export(model, (_example(),), dynamic_shapes=(_any_shape(),))
    content = io.BytesIO()  # on a full disk torch's own writer would abort the process
    torch.export.save(program, content, extra_files={"ncflow.json": facts})
    file.write_bytes(content.getbuffer())


def _read_program(file: Path) -> Run:
    """Load a program that this process has written; torch may unpickle parts of one from elsewhere."""
    run: Run = torch.export.load(file).module()
    return run


def _write_onnx(model: PictureClassifier, file: Path, facts: str) -> None:
    names: dict[str, Any] = {"input_names": ["pictures"], "output_names": ["logits"]}
    shapes = {"pictures": _any_shape()}
    program = torch.onnx.export(model, (_example(),), dynamic_shapes=shapes, dynamo=True, verbose=False, **names)
    assert program is not None
    program.model.metadata_props["ncflow"] = facts
    program.save(file)


def _read_onnx(file: Path) -> Run:
    import onnxruntime

    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])

    def run(pictures: Tensor) -> Tensor:
        (logits,) = session.run(None, {"pictures": pictures.numpy()})
        return torch.from_numpy(np.asarray(logits))

    return run


def _example() -> Tensor:
    """Pictures to trace with. Their sizes all differ, because the graph takes equal ones as always equal."""
    return torch.zeros(2, 9, 11, 3, dtype=torch.uint8)


def _any_shape() -> dict[int, Any]:
    return dict.fromkeys(range(4), torch.export.Dim.AUTO)


@contextmanager
def _quiet() -> Iterator[None]:
    """Inside, the exporters' notes on their own work are not printed."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


class Format(NamedTuple):
    """A kind of file. `tolerance` is relative to the largest logit, or to 1 if that is smaller.

    `resized` is that for pictures that are resized: another runtime rounds a few pixels to the next gray value.
    """

    write: Callable[[PictureClassifier, Path, str], None]
    read: Callable[[Path], Run]
    packages: tuple[str, ...] = ()
    tolerance: float = 1e-5
    resized: float = 1e-5


FORMATS = {
    "pt2": Format(_write_program, _read_program),
    "onnx": Format(_write_onnx, _read_onnx, ("onnx", "onnxscript", "onnxruntime"), 1e-4, 1e-2),
}
