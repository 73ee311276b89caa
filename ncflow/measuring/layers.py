"""The last linear layer of any model and what it sees: its input are the features, its weight and bias the classifier.

with torch.no_grad(), evaluating(model), captured(model) as last:
    for images, targets in batches:
        logits = model(images)
        last.features  # (B, d), of these images
last.name, last.weight, last.bias  # "fc", (K, d), (K,)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ncflow.lookup import unknown
from ncflow.nn import Classifier, Head

CHECKED = 16  # rows of the first batch that show whether a layer is linear
TOLERANCE = 0.02  # relative: bfloat16 rounds by 0.004 and TF32 by 0.001; a cosine in place of a product is far off
NAMED = 8  # layers that a message names


class Call(NamedTuple):
    """One call of a layer: features (B, d), or (B, T, d) of sequences, and its output (B, K), or (B, T, K)."""

    name: str
    layer: nn.Module
    features: Tensor
    output: Tensor


class LastLinear:
    """What the last linear layer of a model saw in the model's last forward. `captured` makes it."""

    def __init__(self, layers: Mapping[str, nn.Module], chosen: str | None) -> None:
        self._layers, self._chosen = layers, chosen
        self._calls: list[Call] = []
        self._last: Call | None = None

    @property
    def call(self) -> Call:
        """The layer's call in the last forward. Raises ValueError before the first forward."""
        if self._last is None:
            raise ValueError("the last linear layer is known after the first forward; call the model first")
        return self._last

    @property
    def name(self) -> str:
        """The path of the layer, such as "fc" or "classifier.6"."""
        return self.call.name

    @property
    def layer(self) -> nn.Module:
        """The layer: an nn.Linear, a head of ncflow, or any module that is linear with its `weight` and `bias`."""
        return self.call.layer

    @property
    def features(self) -> Tensor:
        """The layer's input (B, d) or (B, T, d) in the last forward, detached, on its device and in its dtype."""
        return self.call.features

    @property
    def weight(self) -> Tensor:
        """The layer's weight (K, d), detached."""
        return self.layer.weight.detach()  # type: ignore[operator]

    @property
    def bias(self) -> Tensor | None:
        """The layer's bias (K,), detached, or None."""
        bias = getattr(self.layer, "bias", None)
        return None if bias is None else bias.detach()

    def _keep(self, name: str, module: nn.Module, given: Any, named: Any, output: Any) -> None:
        if self._last is not None and name != self._last.name:
            return
        call = _call_of(name, module, [*given, *named.values()], output)
        if call:
            self._calls.append(call)

    def _begin(self, *_: Any) -> None:
        self._calls = []

    def _end(self, module: nn.Module, given: Any, output: Any) -> None:
        calls, self._calls = self._calls, []
        name = self._last.name if self._last else self._chosen
        found = [call for call in calls if call.name == name] if name else calls[_last_match(calls, output) :]
        if not found:
            raise ValueError(_not_found(calls, self._layers, name, type(module).__name__, output))
        same = [call for call in calls if call.name == found[0].name]
        if len(same) > 1:
            raise ValueError(
                f"layer '{found[0].name}' ran {len(same)} times in one forward; expected once, so that each output has "
                "one row of features. Call the model with one input at a time, or name another layer"
            )
        if self._last is None and not _is_linear(found[0]):
            raise ValueError(
                f"layer '{found[0].name}' ({type(found[0].layer).__name__}) is not linear: its output is not input · "
                f"weightᵀ + bias. Evaluate the model in eval mode, or name one of {_names(self._layers)}"
            )
        self._last = found[0]


@contextmanager
def captured(model: nn.Module, layer: str | nn.Module | None = None) -> Iterator[LastLinear]:
    """Inside, every forward of the model refills the features that its last linear layer sees.

    The last linear layer is the last one whose output the model returns, as logits, softmax or log-softmax. `layer` is
    its path or the module. Wrappers of DDP and torch.compile are unwrapped; compiled models run without compilation
    inside. All hooks are removed at the end. Raises ValueError at once for an unknown layer, and in the first forward
    where no linear layer returns the logits, where the layer runs several times, or where it is not linear.

    Example::

        with captured(model) as last:
            logits = model(images)
        torch.equal(logits, last.features @ last.weight.T + last.bias)
    """
    inner = unwrapped(model)
    layers = _layers(inner)
    last = LastLinear(layers, None if layer is None else _choose(inner, layers, layer))
    hooks = [
        module.register_forward_hook(partial(last._keep, name), with_kwargs=True) for name, module in layers.items()
    ]
    hooks.append(inner.register_forward_pre_hook(last._begin))
    hooks.append(inner.register_forward_hook(last._end))
    try:
        with ExitStack() as stack:
            if any(_is_compiled(module) for module in model.modules()):
                stack.enter_context(torch.compiler.set_stance("force_eager"))  # compiled code has no hooks
            yield last
    finally:
        for hook in hooks:
            hook.remove()


def find_linear(
    model: nn.Module, *inputs: Any, layer: str | nn.Module | None = None, **options: Any
) -> tuple[str, nn.Module]:
    """Return path and module of the last linear layer, from one forward of model(*inputs, **options) in eval mode.

    Raises ValueError as `captured` does.
    """
    with torch.no_grad(), evaluating(model), captured(model, layer) as last:
        model(*inputs, **options)
    return last.name, last.layer


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Inside, the model is in eval mode; afterwards every module inside it has its own mode again."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def unwrapped(model: nn.Module) -> nn.Module:
    """The model inside of DDP, DataParallel and torch.compile. Raises ValueError for DataParallel over several GPUs."""
    while True:
        if isinstance(model, nn.DataParallel) and len(model.device_ids) > 1:
            raise ValueError("DataParallel copies the model to several GPUs in each forward; pass model.module")
        if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
            model = model.module
        elif isinstance(getattr(model, "_orig_mod", None), nn.Module):
            model = model._orig_mod  # type: ignore[assignment]
        else:
            return model


def _call_of(name: str, module: nn.Module, given: list[Any], output: Any) -> Call | None:
    """The call of a linear layer, or None for shapes that its weight (K, d) does not explain."""
    if isinstance(module, Classifier):
        return Call(name, module.head, output.features.detach(), output.logits.detach())
    features, weight = given[0] if given else None, module.weight
    if not (isinstance(features, Tensor) and isinstance(output, Tensor) and isinstance(weight, Tensor)):
        return None
    if not (features.is_floating_point() and output.is_floating_point() and features.shape[-1] == weight.shape[1]):
        return None
    if output.shape != (*features.shape[:-1], len(weight)):
        return None
    features = features.detach()
    return Call(name, module, module.embed(features) if isinstance(module, Head) else features, output.detach())


def _layers(model: nn.Module) -> dict[str, nn.Module]:
    """Path -> module for all that may be linear. A Classifier replaces its head, whose forward it does not call."""
    modules = {_clean(name): module for name, module in model.named_modules()}
    owners = {f"{name}.head".lstrip("."): module for name, module in modules.items() if isinstance(module, Classifier)}
    return {name: owners.get(name, module) for name, module in modules.items() if _may_be_linear(module)}


def _may_be_linear(module: nn.Module) -> bool:
    weight = getattr(module, "weight", None)
    return isinstance(weight, Tensor) and weight.ndim == 2 and not isinstance(module, nn.Embedding)


def _is_compiled(module: nn.Module) -> bool:
    return hasattr(module, "_orig_mod") or getattr(module, "_compiled_call_impl", None) is not None


def _is_linear(call: Call) -> bool:
    """Whether the output is features · weightᵀ + bias in the first rows."""
    rows, output = (tensor.flatten(0, -2)[:CHECKED].cpu().double() for tensor in (call.features, call.output))
    weight, bias = (getattr(call.layer, name, None) for name in ("weight", "bias"))
    assert isinstance(weight, Tensor)
    product = F.linear(rows, weight.detach().cpu().double(), None if bias is None else bias.detach().cpu().double())
    return bool((product - output).norm() <= TOLERANCE * product.norm()) or not bool(output.isfinite().all())


def _last_match(calls: list[Call], output: Any) -> int:
    """The index of the last call whose output the model returns; the number of calls if there is none."""
    logits = _logits(output)
    matches = [k for k, call in enumerate(calls) if any(_same(call.output, each) for each in logits)]
    return matches[-1] if matches else len(calls)


def _logits(output: Any) -> list[Tensor]:
    """The tensors of an output that may be the logits: those that are named so, else all."""
    named = output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", None)
    if isinstance(named, Tensor):
        return [named]
    values = (
        output.values() if isinstance(output, Mapping) else output if isinstance(output, tuple | list) else [output]
    )
    return [value for value in values if isinstance(value, Tensor) and value.is_floating_point()]


def _same(found: Tensor, logits: Tensor) -> bool:
    """Whether the logits are this output of a layer, or its softmax or log-softmax."""
    if found.numel() != logits.numel() or found.shape[-1] != logits.shape[-1]:
        return False
    found = found.reshape(logits.shape)
    if torch.equal(found.to(logits.dtype).nan_to_num(), logits.nan_to_num()):
        return True
    eps = 16 * max(torch.finfo(tensor.dtype).eps for tensor in (found, logits))
    forms = (f(found.float(), -1) for f in (F.log_softmax, F.softmax))
    return any(torch.allclose(form, logits.float(), rtol=eps, atol=eps) for form in forms)


def _choose(model: nn.Module, layers: Mapping[str, nn.Module], layer: str | nn.Module) -> str:
    """The path of a layer that was named, or given as a module."""
    known = {_clean(name): module for name, module in model.named_modules()}
    if isinstance(layer, nn.Module):
        names = [name for name, module in known.items() if module is layer or module is unwrapped(layer)]
        if not names:
            raise ValueError(f"layer ({type(layer).__name__}) is no part of the model; name one of {_names(layers)}")
        layer = names[0]
    name = _clean(layer)
    if name not in known:
        raise unknown("layer", layer, layers)
    if name not in layers:
        inside = {each: module for each, module in layers.items() if each.startswith(f"{name}.")}
        kind = type(known[name]).__name__
        raise ValueError(f"layer '{name}' is a {kind}, not a linear layer; name one of {_names(inside or layers)}")
    return name


def _clean(name: str) -> str:
    """The path of a module without the wrappers of torch.compile and DDP."""
    parts = [part for part in name.split(".") if part != "_orig_mod"]
    return ".".join(parts[1:] if parts[:1] == ["module"] and len(parts) > 1 else parts)


def _not_found(calls: list[Call], layers: Mapping[str, nn.Module], name: str | None, model: str, output: Any) -> str:
    ran = {call.name: call.layer for call in calls}
    if name:
        return f"layer '{name}' did not run in this forward; name one of {_names(ran or layers)}"
    if not calls:
        return (
            f"{model} ran no linear layer, so there are no features to measure; expected a last layer nn.Linear, or a "
            "module with a `weight` (K, d). A 1x1 convolution is none"
        )
    widths = {logits.shape[-1] for logits in _logits(output)}
    likely = {call.name: call.layer for call in calls if call.output.shape[-1] in widths}
    last = calls[-1]
    return (
        f"no linear layer of {model} returns its logits; the last one is '{last.name}' with output "
        f'{tuple(last.output.shape)}. Name the classifier, as layer="…": one of {_names(likely or ran)}'
    )


def _names(layers: Mapping[str, nn.Module]) -> str:
    """The last layers by name, as the last are the likely ones."""
    names = [f"'{name}'" for name in layers]
    return ", ".join(["…"] * (len(names) > NAMED) + names[-NAMED:]) or "none"
