"""Features of pictures from any trained model: what its last linear layer sees, as files of features hold them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ncflow.data import ImageSource
from ncflow.lookup import unknown
from ncflow.measuring.archives import kind_of, load_exported, load_scripted
from ncflow.measuring.files import FeatureSplit
from ncflow.measuring.layers import captured, evaluating
from ncflow.measuring.pictures import picture_batches
from ncflow.measuring.programs import Pixels, Reader, Seen, pixels_of, read_exported, read_scripted
from ncflow.nn.whole import LIBRARIES, Preprocessing, Weights, whole_model

Named = tuple[str, Reader]  # the layer that is read, and the function of a batch that reads it


@dataclass(frozen=True, kw_only=True)
class Question:
    """Which model to measure on which pictures, and how: the options of `ncflow measure --model`."""

    model: str
    data: str
    checkpoint: Path | None = None
    pretrained: bool = False
    random_weights: int | None = None
    layer: str | None = None
    features_only: bool = False
    image_size: int | None = None
    mean: Sequence[float] | None = None
    std: Sequence[float] | None = None
    device: str = "auto"
    batch_size: int = 256

    def __post_init__(self) -> None:
        if self.device not in DEVICES:
            raise unknown("device", self.device, DEVICES)

    @property
    def name(self) -> str:
        """A plain name for the results: that of the checkpoint, else the last part of the model's own."""
        last = self.checkpoint.stem if self.checkpoint else self.model.rstrip("/").rpartition("/")[2]
        return re.sub(r"[^A-Za-z0-9_.=+-]+", "_", re.sub(r"\.(pt2?|pth)$", "", last)).lstrip(".-=+")[:200] or "model"


@dataclass(frozen=True)
class TrainedModel:
    """A model of any kind, ready to be read: `opened(layer, device)` gives the name of its last linear layer and a
    function images -> what that layer sees. `pixels` is the input of an exported program, None for other kinds.
    """

    opened: Callable[[str | None, torch.device], AbstractContextManager[Callable[[Tensor], tuple[str, Seen]]]]
    preprocessing: Preprocessing = field(default_factory=Preprocessing)
    pixels: Pixels | None = None


def open_model(asked: Question, *, num_classes: int, file: Path | None = None) -> TrainedModel:
    """Open a model by its name, "timm/…", "torchvision/…" or "hf-hub:…", or by its file: exported or TorchScript.

    `file` is the file of a model that has another name, as in MLflow. `num_classes` is for random weights. Files have
    no preprocessing, so theirs is that of ImageNet, at the size that the program takes. Image size, mean and std
    replace those of the preprocessing. Nothing is unpickled. Raises ValueError for what is unknown, damaged or unsafe.
    """
    chosen: dict[str, Any] = {"image_size": asked.image_size, "mean": asked.mean, "std": asked.std}
    if file is None and (asked.model.startswith("hf-hub:") or asked.model.partition("/")[0] in LIBRARIES):
        weights = Weights(asked.checkpoint, asked.pretrained, asked.random_weights)
        network, usual = whole_model(asked.model, weights, num_classes=num_classes, image_size=asked.image_size)
        return TrainedModel(partial(_hooked, network), usual.override(**chosen))
    file = file or Path(asked.model)
    if not file.exists():
        raise unknown("model", asked.model, [*(f"{library}/<name>" for library in LIBRARIES), *FORMS])
    opened = FILES[kind_of(file)](file)
    if asked.checkpoint is not None or asked.pretrained or asked.random_weights is not None:
        raise ValueError(
            f"{asked.model} has its own weights; leave out --checkpoint, --pretrained and --random-weights"
        )
    size = None if opened.pixels is None else opened.pixels.height
    if size and asked.image_size not in (None, size):
        raise ValueError(f"{file} takes pictures of {size} pixels, got --image-size {asked.image_size}; leave it out")
    return replace(opened, preprocessing=_usual(opened.pixels).override(**chosen))


@torch.no_grad()
def collect_features(
    model: TrainedModel,
    splits: Mapping[str, ImageSource],
    *,
    layer: str | None = None,
    features_only: bool = False,
    device: torch.device | str = "cpu",
    batch_size: int = 256,
    num_workers: int = 0,
    progress: Callable[[int], object] = lambda count: None,
) -> tuple[str, dict[str, FeatureSplit]]:
    """The name of the model's last linear layer, or `layer`, and its features of every split in float32 on the CPU.

    The classifier is the layer's weight and bias, unless `features_only`. `progress` gets the size of each batch.
    Raises ValueError where the layer has another number of outputs than the data has classes.
    """
    device, train = torch.device(device), splits["train"]
    fixed = model.pixels.batch if model.pixels is not None else None
    counts = np.bincount(train.targets, minlength=len(train.class_names)).tolist()
    found, name = {}, ""
    with model.opened(layer, device) as read:
        for split, source in splits.items():
            batches = picture_batches(
                source, model.preprocessing.transform(), batch_size=fixed or batch_size, num_workers=num_workers
            )
            features, done, seen = torch.empty(0, 0), 0, None
            for images in batches:
                name, seen = read(_as_taken(images, model.pixels).to(device))
                rows = seen.features[: len(images)]
                if done == 0:
                    _check(name, rows, None if features_only else seen.weight, train.class_names)
                    features = torch.empty(len(source), rows.shape[1])
                features[done : done + len(rows)] = rows
                done += len(rows)
                progress(len(rows))
            assert seen is not None
            weight, bias = (None, None) if features_only else (seen.weight, seen.bias)
            found[split] = FeatureSplit(
                features,
                torch.from_numpy(source.targets),
                None if weight is None else weight.float().cpu(),
                None if bias is None else bias.float().cpu(),
                class_counts=counts,
                class_names=train.class_names,
            )
    return name, found


def _check(name: str, rows: Tensor, weight: Tensor | None, class_names: Sequence[str]) -> None:
    if rows.ndim != 2:
        raise ValueError(
            f"layer '{name}' sees {tuple(rows.shape)} for a batch; expected one row (B, d) for each picture, so name "
            "a layer after the pooling with --layer"
        )
    if weight is not None and len(weight) != len(class_names):
        raise ValueError(
            f"layer '{name}' has {len(weight)} outputs, but the data has {len(class_names)} classes; expected class k "
            "of the model to be the k-th class of the data, so use the data that it was trained on, or --features-only "
            "to leave out the metrics of the classifier"
        )


def _as_taken(images: Tensor, pixels: Pixels | None) -> Tensor:
    """A batch (b, 3, H, W) in the shape and type that an exported program takes; a fixed batch is filled up."""
    if pixels is None:
        return images
    if pixels.batch is not None and len(images) < pixels.batch:
        images = images[torch.arange(pixels.batch).clamp_max(len(images) - 1)]
    if pixels.channels == 1:
        images = images[:, :1]
    return (images.permute(0, 2, 3, 1) if pixels.last else images).to(pixels.dtype)


def _usual(pixels: Pixels | None) -> Preprocessing:
    """ImageNet's preprocessing at the size that a program takes. One that takes bytes normalizes them itself."""
    usual = Preprocessing()
    if pixels is None:
        return usual
    bytes_ = pixels.dtype == torch.uint8
    if pixels.height is not None:
        usual = Preprocessing(pixels.height, pixels.height)
    elif bytes_:
        usual = Preprocessing(None, None)
    return Preprocessing(usual.image_size, usual.resize, None, None) if bytes_ else usual


@contextmanager
def _hooked(
    network: nn.Module, layer: str | None, device: torch.device
) -> Iterator[Callable[[Tensor], tuple[str, Seen]]]:
    network.to(device)
    with evaluating(network), captured(network, layer) as last:

        def read(images: Tensor) -> tuple[str, Seen]:
            network(images)
            return last.name, Seen(last.features, last.weight, last.bias)

        yield read


@contextmanager
def _graph(
    file: Path, reader: Callable[[str | None, torch.device], Named], layer: str | None, device: torch.device
) -> Iterator[Callable[[Tensor], tuple[str, Seen]]]:
    try:
        name, read = reader(layer, device)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error
    yield lambda images: (name, read(images))


def _exported(file: Path) -> TrainedModel:
    program = load_exported(file)
    return TrainedModel(partial(_graph, file, partial(read_exported, program)), pixels=pixels_of(program))


def _scripted(file: Path) -> TrainedModel:
    return TrainedModel(partial(_graph, file, partial(read_scripted, load_scripted(file))))


def _weights(file: Path) -> TrainedModel:
    raise ValueError(f"{file} holds weights and no model; name their model: --model timm/<name> --checkpoint {file}")


DEVICES = ("auto", "cpu")
FORMS = ("hf-hub:<owner>/<name>", "a file .pt2", "a TorchScript file", "models:/<name>/<version>", "runs:/<id>/model")
# kind of an archive -> function of the file
FILES: dict[str, Callable[[Path], TrainedModel]] = {
    "exported": _exported,
    "scripted": _scripted,
    "weights": _weights,
}
