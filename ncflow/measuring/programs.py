"""Exported programs and TorchScript as functions that also return what their last linear layer sees.

Their modules have no hooks, but their graphs name every operator. The graph is changed to return the layer's input, its
weight and its bias in place of the logits.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx

aten, hop = torch.ops.aten, torch.ops.higher_order


class Seen(NamedTuple):
    """What the last linear layer sees and is, for a batch: features (B, d), weight (K, d), bias (K,) or None."""

    features: Tensor
    weight: Tensor
    bias: Tensor | None


Reader = Callable[[Tensor], Seen]  # images (B, 3, S, S) -> Seen


class Pixels(NamedTuple):
    """The input of an exported program; None is a size that may vary. `last` means channels last: (B, H, W, C)."""

    batch: int | None
    channels: int | None
    height: int | None
    width: int | None
    dtype: torch.dtype
    last: bool


def pixels_of(program: torch.export.ExportedProgram) -> Pixels:
    """The input of a program. Raises ValueError unless it takes one tensor of pictures alone."""
    names = program.graph_signature.user_inputs
    nodes = [node for node in program.graph.nodes if node.op == "placeholder" and node.name in names]
    values = [node.meta.get("val") for node in nodes]
    if len(values) != 1 or not isinstance(values[0], Tensor) or values[0].ndim != 4:
        found = [tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__ for value in values]
        raise ValueError(f"the program takes {found}; expected one tensor of pictures, such as (B, 3, S, S)")
    batch, *rest = (int(size) if isinstance(size, int) else None for size in values[0].shape)
    dtype = values[0].dtype
    last = rest[0] not in (1, 3) and (rest[2] in (1, 3) or (rest[2] is None and dtype == torch.uint8))
    height, width, channels = rest if last else (*rest[1:], rest[0])
    return Pixels(batch, channels, height, width, dtype, last)


def read_exported(
    program: torch.export.ExportedProgram, layer: str | None, device: torch.device | str
) -> tuple[str, Reader]:
    """The name of the last linear layer of a program, and a function that gives what it sees.

    The last linear layer is the one whose output the program returns, or the one whose weight is `<layer>.weight`.
    Raises ValueError where there is none, and for a program that was exported in training mode.
    """
    graph_module = program.module(check_guards=False)  # guards are code in the file
    graph = graph_module.graph
    _inline(graph_module)
    if any(_trains(node) for node in graph.nodes):
        raise ValueError("the program was exported in training mode; export it after model.eval()")
    linears = {node: parts for node in graph.nodes if (parts := _linear(node)) is not None}
    names = {node: _layer(parts[1]) for node, parts in linears.items()}
    output = graph.output_node()
    returned = {_origin(node) for node in output.all_input_nodes}
    chosen = [node for node in linears if (names[node] == layer if layer else node in returned)]
    if not chosen:
        raise ValueError(_no_linear(layer, [name for name in names.values() if name]))
    seen = linears[chosen[-1]]
    graph.set_codegen(fx.graph.CodeGen())  # the outputs are no longer those of the program's own description
    with graph.inserting_before(output):
        features, weight, bias = seen
        if chosen[-1].target is not aten.linear.default:
            weight = graph.call_function(aten.t.default, (weight,))
    output.args = ((features, weight, bias),)
    graph.lint()
    graph_module.recompile()
    module = graph_module.to(device)
    return names[chosen[-1]] or chosen[-1].name, lambda images: Seen(*module(images))


def read_scripted(module: torch.jit.ScriptModule, layer: str | None, device: torch.device | str) -> tuple[str, Reader]:
    """As `read_exported`, for a TorchScript module in evaluation mode."""
    module = module.to(device)
    weights = {f"{name}.weight": value for name, value in _named(module)}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # torch advises torch.export to those who write such files
            graph = torch.jit.freeze(module, optimize_numerics=False).graph.copy()
    except (RuntimeError, AttributeError) as error:
        raise ValueError(
            f"its graph cannot be read ({' '.join(str(error).split())[:200]}); export the model instead"
        ) from error
    torch._C._jit_pass_inline(graph)
    linears = [node for node in graph.nodes() if node.kind() == "aten::linear" and _is_constant(_inputs(node)[1])]
    names = [_name_of(_inputs(node)[1].node().t("value"), weights) for node in linears]
    returned = [value.node() for value in _returned(list(graph.outputs()))]
    chosen = [node for node, name in zip(linears, names, strict=True) if (name == layer if layer else node in returned)]
    if not chosen:
        raise ValueError(_no_linear(layer, [name for name in names if name]))
    inputs = _inputs(chosen[-1])
    for _ in list(graph.outputs()):
        graph.eraseOutput(0)
    for value in inputs:
        graph.registerOutput(value)
    graph.makeMultiOutputIntoTuple()
    if next(graph.inputs()).uses():
        raise ValueError("its graph still reads from the module after freezing; export the model instead")
    graph.eraseInput(0)
    torch._C._jit_pass_dce(graph)
    function = torch._C._create_function_from_graph("features", graph)
    return names[linears.index(chosen[-1])] or "the last linear", lambda images: Seen(*function(images))


def _no_linear(layer: str | None, names: Sequence[str]) -> str:
    known = ", ".join(names[-FEW:]) or "none"
    if layer:
        return f"no linear layer is named '{layer}'; the last ones by name are {known}"
    return (
        "what the program returns is not the output of a linear layer, so its features are not known; name its "
        f"classifier with --layer, the last linear layers are {known}"
    )


def _inline(graph_module: fx.GraphModule) -> None:
    """Replace the parts that run without autocast, as heads of ncflow do, or without gradients by their content."""
    graph = graph_module.graph
    for node in list(graph.nodes):
        first = NESTED.get(node.target, 0) if node.op == "call_function" else 0
        if not first or (node.target is hop.wrap_with_autocast and node.args[2]):
            continue
        part, *inputs = node.args[first:]
        inside: Any = graph_module.get_submodule(part.target).graph
        places = dict(zip(inside.find_nodes(op="placeholder"), inputs, strict=True))
        with graph.inserting_before(node):
            values: Any = graph.graph_copy(inside, places)
        for user in list(node.users):  # each takes one of the outputs
            user.replace_all_uses_with(values[user.args[1]])
            graph.erase_node(user)
        graph.erase_node(node)


def _linear(node: fx.Node) -> tuple[Any, Any, Any] | None:
    """Features, weight (or its transpose) and bias of a linear operator; None for any other."""
    arguments = [*node.args, None, None]
    if node.target is aten.linear.default:
        return arguments[0], arguments[1], arguments[2]
    if node.target is aten.addmm.default and not node.kwargs:
        return arguments[1], arguments[2], arguments[0]
    if node.target is aten.mm.default:
        return arguments[0], arguments[1], None
    return None


def _layer(weight: Any) -> str | None:
    """The path of the module whose parameter a node is; None for a weight that is computed."""
    while isinstance(weight, fx.Node) and weight.target in TRANSPOSES:
        weight = weight.args[0]
    if not isinstance(weight, fx.Node) or weight.op != "get_attr":
        return None
    return str(weight.target).removesuffix(".weight")


def _origin(node: Any) -> Any:
    """The node before operators that only rename, copy or reshape."""
    while isinstance(node, fx.Node) and node.target in IDENTITIES:
        node = node.args[0]
    return node


def _trains(node: fx.Node) -> bool:
    """Whether an operator draws random numbers, or uses the statistics of the batch."""
    place = TRAINING.get(node.target) if node.op == "call_function" else None
    return place is not None and len(node.args) > place and node.args[place] is True


def _named(module: torch.jit.ScriptModule) -> Iterator[tuple[str, Tensor]]:
    for name, value in module.state_dict().items():
        if name.endswith(".weight"):
            yield name.removesuffix(".weight"), value


def _name_of(weight: Tensor, weights: dict[str, Tensor]) -> str | None:
    same = (name for name, value in weights.items() if value.shape == weight.shape and torch.equal(value, weight))
    return next((name.removesuffix(".weight") for name in same), None)


def _inputs(node: Any) -> list[Any]:
    return list(node.inputs())


def _is_constant(value: Any) -> bool:
    return bool(value.node().kind() == "prim::Constant" and value.node().hasAttribute("value"))


def _returned(values: list[Any]) -> Iterator[Any]:
    """The values inside of the containers that a graph returns."""
    for value in values:
        inside = value.node()
        yield from _returned(_inputs(inside)) if inside.kind().endswith("Construct") else [value]


FEW = 3
TRANSPOSES = (aten.t.default, aten.permute.default, aten.transpose.int, aten.numpy_T.default)
IDENTITIES = (aten.clone.default, aten.alias.default, aten.view.default, aten.reshape.default, aten.contiguous.default)
# operator with a graph inside -> place of the graph among its arguments
NESTED: dict[Any, int] = {hop.wrap_with_autocast: 4, hop.wrap_with_set_grad_enabled: 1}
TRAINING: dict[Any, int] = {  # operator -> place of its argument `training`
    aten.batch_norm.default: 5,
    aten._native_batch_norm_legit_functional.default: 5,
    aten._native_batch_norm_legit.default: 5,
    aten.native_batch_norm.default: 5,
    aten.dropout.default: 2,
    aten.dropout_.default: 2,
    aten.native_dropout.default: 2,
}
