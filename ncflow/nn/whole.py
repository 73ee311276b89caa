"""Whole classifiers of timm and torchvision: built as their libraries do, with weights of the user's or published ones.

`ncflow measure --model` uses them. ncflow's own backbones are built in `ncflow.nn.backbones`.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from ncflow.lookup import lookup, unknown
from ncflow.nn.checkpoints import load_whole, prefix_of, read_weights
from ncflow.nn.stock import cached_weights, published, refuse_weightless, sized, without_retries

Transform = Callable[[Any], Tensor]  # a picture of Pillow -> (3, S, S)


@dataclass(frozen=True)
class Preprocessing:
    """How a picture becomes the input (3, S, S): `resize` pixels on the shorter side, center square, normalization.

    A resize of None leaves the size as it is, and a mean of None keeps bytes 0..255. Without a crop of the library
    `like` is None; with one, timm's own evaluation transform with these options is used.
    """

    image_size: int | None = 224
    resize: int | None = 256
    mean: tuple[float, ...] | None = (0.485, 0.456, 0.406)
    std: tuple[float, ...] | None = (0.229, 0.224, 0.225)
    interpolation: str = "bilinear"
    timm: Mapping[str, Any] | None = None

    def override(
        self, *, image_size: int | None = None, mean: Sequence[float] | None = None, std: Sequence[float] | None = None
    ) -> Preprocessing:
        """The same with the options that are given. An image size S means: shorter side S, then the center square."""
        chosen: dict[str, Any] = {"mean": mean, "std": std, "image_size": image_size, "resize": image_size}
        chosen = {key: tuple(value) if isinstance(value, Sequence) else value for key, value in chosen.items() if value}
        return replace(self, **chosen)

    def transform(self) -> Transform:
        """A function from an RGB picture of Pillow to the input (3, S, S): float32, or uint8 without a mean."""
        from torchvision import transforms as t

        if self.timm is not None:
            from timm.data import create_transform

            options = dict(self.timm) | {"mean": self.mean, "std": self.std}
            if self.image_size != options["input_size"][-1] or self.resize is not None:
                options |= {"input_size": (3, self.image_size, self.image_size), "crop_pct": 1.0}
            return cast(Transform, create_transform(**options, is_training=False))
        steps: list[Any] = []
        if self.resize is not None:
            steps.append(t.Resize(self.resize, t.InterpolationMode(self.interpolation), antialias=True))
        if self.image_size is not None:
            steps.append(t.CenterCrop(self.image_size))
        steps.append(t.PILToTensor())
        if self.mean is not None:
            steps += [t.ConvertImageDtype(torch.float32), t.Normalize(self.mean, self.std)]
        return cast(Transform, t.Compose(steps))

    def described(self) -> dict[str, Any]:
        """The options as plain values, for a run's configuration."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}


@dataclass(frozen=True)
class Weights:
    """Where the weights of a model come from: a file of tensors, the library, or random numbers of a seed."""

    checkpoint: Path | None = None
    pretrained: bool = False
    random: int | None = None

    def __post_init__(self) -> None:
        given = [self.checkpoint is not None, self.pretrained, self.random is not None]
        if sum(given) != 1:
            raise ValueError(
                "expected exactly one source of the model's weights: --checkpoint FILE, --pretrained for the library's "
                f"published weights, or --random-weights SEED for a baseline; got {sum(given)} of them"
            )
        if self.checkpoint is not None and not self.checkpoint.is_file():
            raise ValueError(
                f"no file {self.checkpoint}; --checkpoint expects tensors by key, .pth, .pt or .safetensors"
            )


def whole_model(
    name: str, weights: Weights, *, num_classes: int, image_size: int | None = None
) -> tuple[nn.Module, Preprocessing]:
    """A classifier by its name, such as "timm/resnet18.a1_in1k", and its library's preprocessing.

    Libraries are the rows of LIBRARIES; "hf-hub:<owner>/<name>" is timm's. The number of classes is that of the
    checkpoint's last layer, or of the published weights, or `num_classes` for random ones. `image_size` builds models
    that are made for one size. Raises ValueError for an unknown model, and for weights that do not fit.
    """
    library, _, model = name.partition("/")
    if name.startswith("hf-hub:"):
        library, model = "timm", name
    load = lookup(LIBRARIES, library, "kind of model")
    return load(model, weights, num_classes=num_classes, image_size=image_size)


def _timm_model(
    name: str, weights: Weights, *, num_classes: int, image_size: int | None
) -> tuple[nn.Module, Preprocessing]:
    """Any timm model, with timm's own evaluation transform for it."""
    import timm
    from timm.data import resolve_model_data_config

    hub = name.startswith("hf-hub:")
    if not hub and not timm.is_model(name):
        known = timm.list_models()
        raise unknown("timm model", name, [*difflib.get_close_matches(name, known, n=5), f"… ({len(known)} models)"])
    if weights.pretrained and not hub:
        refuse_weightless(name)

    def build(**options: Any) -> Any:
        make = partial(timm.create_model, name, pretrained=weights.pretrained, **options)
        chosen = make if image_size is None else partial(sized, make, image_size)
        online = hub or weights.pretrained
        return published(partial(without_retries, chosen), f"timm's {name}") if online else chosen()

    model = _with_weights(build, weights, num_classes)
    config = resolve_model_data_config(model)
    shape = {key: tuple(config.pop(key)) for key in ("mean", "std")}
    size = int(config["input_size"][-1])
    return model, Preprocessing(
        image_size=size, resize=None, **shape, interpolation=config["interpolation"], timm=config
    )


def _torchvision_model(
    name: str, weights: Weights, *, num_classes: int, image_size: int | None
) -> tuple[nn.Module, Preprocessing]:
    """Any classifier of torchvision, with the transforms of its published weights, or those of ImageNet."""
    from torchvision import models

    known = models.list_models(module=models)
    if name not in known:
        nearest = difflib.get_close_matches(name, known, n=5)
        raise unknown("torchvision classifier", name, [*nearest, f"… ({len(known)} models)"])

    def build(**options: Any) -> Any:
        options |= {} if image_size is None or "vit" not in name else {"image_size": image_size}
        if not weights.pretrained:
            return models.get_model(name, weights=None, **options)
        address = models.get_model_weights(name)["DEFAULT"].url
        make = partial(models.get_model, name, weights="DEFAULT", **options)
        return published(make, f"torchvision's {name}", cached=cached_weights(address))

    model = _with_weights(build, weights, num_classes)
    preset: Any = None
    with suppress(ValueError, AttributeError, KeyError):
        preset = models.get_model_weights(name)["DEFAULT"].transforms()
    if not all(hasattr(preset, key) for key in ("crop_size", "resize_size", "mean", "std", "interpolation")):
        return model, Preprocessing()
    return model, Preprocessing(
        image_size=int(preset.crop_size[0]),
        resize=int(preset.resize_size[0]),
        mean=tuple(preset.mean),
        std=tuple(preset.std),
        interpolation=preset.interpolation.value,
    )


def _with_weights(build: Callable[..., nn.Module], weights: Weights, num_classes: int) -> nn.Module:
    if weights.pretrained:
        return build()
    if weights.checkpoint is None:
        assert weights.random is not None
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(weights.random)
            return build(num_classes=num_classes)
    state = read_weights(weights.checkpoint)
    with torch.random.fork_rng(devices=[]):
        model = build()
        found = _classes_in(state, model)
        model = model if found is None else build(num_classes=found)
    load_whole(weights.checkpoint, state, model)
    return model


def _classes_in(state: Mapping[str, Tensor], model: nn.Module) -> int | None:
    """The number of rows that the weight of the model's last linear layer has in a checkpoint; None if it lacks it."""
    rows = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    key = f"{prefix_of(state, model)}{rows[-1]}.weight" if rows else ""
    return len(state[key]) if key in state else None


# library -> function of a model's name: the model with its weights, and its preprocessing
LIBRARIES: dict[str, Callable[..., tuple[nn.Module, Preprocessing]]] = {
    "timm": _timm_model,
    "torchvision": _torchvision_model,
}
