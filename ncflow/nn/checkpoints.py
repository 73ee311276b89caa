"""Start from weights on disk: find a backbone in a file of tensors, under any prefix; freeze parts."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ncflow.lookup import lookup
from ncflow.nn.classifier import Classifier

FEW = 3  # keys of each side that a message names
NESTS = ("state_dict", "model_state_dict", "model", "net")  # keys under which checkpoints hold the weights
NOT_WEIGHTS = ("num_batches_tracked",)  # endings of keys that old checkpoints lack
AUXILIARY = ("aux1.", "aux2.", "AuxLogits.")  # beginnings of keys of torchvision's classifiers that only training uses


def load_checkpoint(file: str | Path, classifier: Classifier) -> str:
    """Load the backbone, and the head if the file has one of the same keys and shapes. Return a note on both.

    Files are .safetensors, or those of torch.save with tensors only. Keys may begin with any prefix, such as `module.`
    of DataParallel, `model.` of Lightning or `backbone.` of ncflow. Raises ValueError that names the file for one that
    is missing, damaged or of another model. Nothing is unpickled.
    """
    state = read_weights(file)
    prefix = prefix_of(state, classifier.backbone)
    _load(Path(file), state, prefix, classifier.backbone)
    outer = prefix.removesuffix("backbone.")
    head = {key: state[f"{outer}head.{key}"] for key in classifier.head.state_dict() if f"{outer}head.{key}" in state}
    fits = prefix.endswith("backbone.") and _shapes(head) == _shapes(classifier.head.state_dict())
    if fits:
        classifier.head.load_state_dict(head)
    return f"started from {Path(file).name}: backbone" + (" and head" if fits else "; the head is new")


def read_weights(file: str | Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint by key. Raises ValueError for a file that is missing, damaged or no checkpoint."""
    file = Path(file)
    if not file.is_file():
        raise ValueError(f"no checkpoint {file}; name a file of weights in model.checkpoint")
    try:
        content = _read(file)
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(
            f"{file} is no checkpoint of tensors alone: {reason}; save a state_dict with torch.save, or .safetensors"
        ) from error
    for nest in NESTS:
        if isinstance(content, Mapping) and isinstance(content.get(nest), Mapping):
            content = content[nest]
    if not isinstance(content, Mapping):
        raise ValueError(f"{file} holds {type(content).__name__}, expected a mapping from keys to tensors")
    found = {str(key): tensor for key, tensor in content.items() if isinstance(tensor, Tensor)}
    if not found:
        raise ValueError(f"{file} holds no tensors under its keys {', '.join(map(str, list(content)[:FEW]))}")
    return found


def prefix_of(state: Mapping[str, Tensor], model: nn.Module) -> str:
    """What the keys of a model begin with in a checkpoint: the prefix under which most of them are found."""
    expected = list(model.state_dict())
    first = {key: re.compile(rf"(|.*\.){re.escape(key)}") for key in expected[:FEW] + expected[-FEW:]}
    matches = (pattern.fullmatch(key) for key in state for pattern in first.values())
    prefixes = sorted({match[1] for match in matches if match}, key=len)
    return max(prefixes, key=lambda prefix: sum(prefix + key in state for key in expected), default="")


def load_whole(file: str | Path, state: Mapping[str, Tensor], model: nn.Module) -> None:
    """Load all of a model from a checkpoint, whose keys may begin with any prefix.

    Layers of training alone, AUXILIARY, may be absent on either side. Raises ValueError where the keys differ, with the
    first keys of each side: a file of a larger model of the same kind has all keys of a smaller one.
    """
    prefix, expected = prefix_of(state, model), model.state_dict()
    found = {key.removeprefix(prefix): tensor for key, tensor in state.items() if key.startswith(prefix)}
    missing = [key for key in expected if key not in found and not _is_optional(key)]
    strange = [prefix + key for key in found if key not in expected and not _is_optional(key)]
    shapes = {key: (tuple(found[key].shape), tuple(expected[key].shape)) for key in expected if key in found}
    differing = [f"{prefix}{key} {a}, expected {b}" for key, (a, b) in shapes.items() if a != b]
    if missing or strange or differing:
        kinds = {"the model's": missing, "the file's": strange, "with another shape": differing}
        parts = [f"{kind} {', '.join(keys[:FEW])}{_more(keys)}" for kind, keys in kinds.items() if keys]
        known = f"; without the prefix '{prefix}', " if prefix else "; "
        raise ValueError(
            f"{file} is no checkpoint of this model{known}keys that do not fit: {'; '.join(parts)}; "
            "expected the model that wrote it as --model"
        )
    model.load_state_dict(expected | {key: found[key] for key in expected if key in found})


def freeze(classifier: Classifier, trainable: str) -> None:
    """Select what learns: "all", the "head" alone, or "norm_bias", the head with the backbone's norms and biases.

    A backbone without anything to learn stays in evaluation mode, so its batch norms keep their statistics. Raises
    ValueError if nothing is left to learn.
    """
    chosen = lookup(TRAINABLE, trainable, "choice of trainable parts")
    if trainable == "all":
        return
    for module in classifier.backbone.modules():
        for key, parameter in module.named_parameters(recurse=False):
            parameter.requires_grad_(chosen(module, key))
    if not any(parameter.requires_grad for parameter in classifier.parameters()):
        others = " or ".join(f"model.trainable={name}" for name in TRAINABLE if name not in (trainable, "head"))
        raise ValueError(
            f"model.trainable={trainable} leaves nothing to learn: neither the head nor that part of the backbone has "
            f"parameters; try head.name=linear, or {others}"
        )


def _read(file: Path) -> Any:
    if file.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(file)
    return torch.load(file, map_location="cpu", weights_only=True)


def _load(file: Path, state: Mapping[str, Tensor], prefix: str, backbone: nn.Module) -> None:
    expected = backbone.state_dict()
    missing = [key for key in expected if prefix + key not in state and not key.endswith(NOT_WEIGHTS)]
    others = [key for key in state if not key.startswith(prefix) or key.removeprefix(prefix) not in expected]
    differing = [
        f"{prefix}{key} {tuple(state[prefix + key].shape)}, expected {tuple(tensor.shape)}"
        for key, tensor in expected.items()
        if prefix + key in state and state[prefix + key].shape != tensor.shape
    ]
    if missing or differing:
        kinds = {"it lacks": missing, "shapes differ in": differing, "it has": others if missing else []}
        parts = [f"{kind} {', '.join(keys[:FEW])}{_more(keys)}" for kind, keys in kinds.items() if keys]
        known = f" (its keys begin with '{prefix}')" if prefix else ""
        raise ValueError(f"{file} is no checkpoint of this backbone{known}: {'; '.join(parts)}; try another model.name")
    found = {key: state[prefix + key] for key in expected if prefix + key in state}
    backbone.load_state_dict(expected | found)


def _more(keys: list[str]) -> str:
    return f" and {len(keys) - FEW} more" if len(keys) > FEW else ""


def _is_optional(key: str) -> bool:
    return key.endswith(NOT_WEIGHTS) or key.startswith(AUXILIARY)


def _shapes(state: Mapping[str, Tensor]) -> dict[str, torch.Size]:
    return {key: tensor.shape for key, tensor in state.items()}


def _is_norm_or_bias(module: nn.Module, key: str) -> bool:
    norm = "norm" in type(module).__name__.lower() or isinstance(module, nn.modules.batchnorm._NormBase)
    return norm or key.endswith("bias")


# choice -> function of a backbone's module and the name of its parameter: whether the parameter learns
TRAINABLE = {
    "all": lambda module, key: True,
    "head": lambda module, key: False,
    "norm_bias": _is_norm_or_bias,
}
