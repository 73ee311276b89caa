"""Sums over all training processes: p processes on B/p samples each train as one process does on B."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode


def count_processes() -> int:
    """Return the number of processes that train together; 1 without a process group."""
    there = torch.distributed.is_available() and torch.distributed.is_initialized()
    return torch.distributed.get_world_size() if there else 1


def sum_over_processes(tensor: Tensor) -> Tensor:
    """Return the sum over all processes, with gradient; the tensor itself if there is one process."""
    world = torch.distributed.group.WORLD if count_processes() > 1 else None
    if world is None:
        return tensor
    _refuse_join()
    # torch deprecates torch.distributed.nn.functional.all_reduce and names this module as its successor.
    from torch.distributed._functional_collectives import AsyncCollectiveTensor, all_reduce

    # Every process's sum depends on this summand, so the gradient is also a sum over processes.
    total: Tensor = all_reduce(tensor, "sum", world)
    return total.wait() if isinstance(total, AsyncCollectiveTensor) else total


def rows_of_processes(rows: Tensor) -> tuple[Tensor, int]:
    """Return the rows (b, ...) of all processes, with gradient, and the index of this process's first row in them.

    It is a sum over processes of each one's rows at their place. So processes may have different numbers of rows.
    """
    processes = count_processes()
    if processes == 1:
        return rows, 0
    sizes = torch.zeros(processes, dtype=torch.long, device=rows.device)
    sizes[torch.distributed.get_rank()] = len(rows)
    ends = sum_over_processes(sizes).cumsum(0).tolist()
    first = ends[torch.distributed.get_rank()] - len(rows)
    padding = [0, 0] * (rows.ndim - 1) + [first, ends[-1] - first - len(rows)]
    return sum_over_processes(F.pad(rows, padding)), first


def is_recomputed() -> bool:
    """Return whether this forward runs inside a backward, as torch.utils.checkpoint repeats it."""
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1


def _refuse_join() -> None:
    """Raise inside DDP's `join`: a process without batches takes part in DDP's sums, and not in these."""
    from torch.nn.parallel import DistributedDataParallel

    module = DistributedDataParallel._active_ddp_module
    if module is not None and module._join_config.enable:
        raise ValueError(
            "sums over all processes in forward, such as those of the nearest-ETF head, need every process in every "
            "step: expected as many batches in each, got uneven inputs (`join`); drop the last batch or pad the sampler"
        )


def synchronize_batch_norms(module: nn.Module, device: torch.device) -> nn.Module:
    """Return the module with torch's fast SyncBatchNorm if GPUs share a batch; its parameters stay the same.

    It is for GPUs alone; `common_batch_norms` does the same on any device.
    """
    if count_processes() == 1 or device.type != "cuda":
        return module
    from timm.layers import convert_sync_batchnorm  # torch's converter drops the activation of timm's

    synchronized: nn.Module = convert_sync_batchnorm(module)
    return synchronized


def common_batch_norms() -> AbstractContextManager[object]:
    """Return a context in which every batch norm in training mode normalizes by the batch of all processes.

    It covers batch norms of any class.
    """
    return _CommonBatchNorms() if count_processes() > 1 else nullcontext()


def common_batch_norm(
    images: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """`F.batch_norm` in training mode over the (B, C, ...) of all processes, each with at least one sample.

    Ioffe and Szegedy 2015; the mean first and then the mean square around it, to avoid cancellation.
    """
    x = images.to(torch.promote_types(images.dtype, torch.float32)).movedim(1, -1)  # (B, ..., C)
    others = tuple(range(x.ndim - 1))
    sums = sum_over_processes(torch.cat([x.sum(others), x.new_tensor([x[..., 0].numel()])]))
    count = sums[-1].detach()
    centered = x - (mean := sums[:-1] / count)
    var = sum_over_processes(centered.square().sum(others)) / count
    with torch.no_grad():  # in place: data-parallel training keeps references to the buffers
        if running_mean is not None and running_var is not None:
            running_mean.lerp_(mean.to(running_mean), momentum)
            running_var.lerp_((var * count / (count - 1)).to(running_var), momentum)
    y = centered * (var + eps).rsqrt()
    y = y if weight is None else y * weight
    y = y if bias is None else y + bias
    return y.movedim(-1, 1).to(images.dtype)


class _CommonBatchNorms(TorchFunctionMode):
    """Replaces the function that batch norms call; the modules do not change."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        options = kwargs or {}
        if func is F.batch_norm and options.get("training"):
            return common_batch_norm(*args, **{name: value for name, value in options.items() if name != "training"})
        return func(*args, **options)
