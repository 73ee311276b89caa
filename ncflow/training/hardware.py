"""Device and precision of a run: Accelerate's processes, and the meaning of `auto` on this machine."""

from __future__ import annotations

import ctypes
import os
import sys
from contextlib import AbstractContextManager

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from ncflow.lookup import lookup
from ncflow.training.meeting import meet


def create_accelerator(device: str = "auto") -> Accelerator:
    """Return the Accelerator of this run's processes, each on its GPU if there are any, unless `device` is "cpu".

    Raises ValueError if the launch does not fit this machine.

    Examples:
        >>> create_accelerator("cpu").num_processes
        1
    """
    if engines := [name for name in ENGINES if os.environ.get(name, "").lower() in ("true", "1")]:
        raise ValueError(
            f"expected processes that each hold the whole model, got {engines[0]}={os.environ[engines[0]]}; unset it, "
            "or choose no such engine in `accelerate config`"
        )
    if not torch.distributed.is_initialized():  # several runs in one process: each chooses again
        AcceleratorState._reset_state(reset_partial_state=True)
    cpu = device == "cpu" or not torch.cuda.is_available()
    here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # set by launchers
    if not cpu and here > torch.cuda.device_count():
        raise ValueError(
            f"expected a GPU for each of the {here} processes on this machine, got {torch.cuda.device_count()}; "
            "use fewer processes, or train.device=cpu"
        )
    meet(cpu=cpu)
    accelerator = Accelerator(cpu=cpu, mixed_precision="no")  # `autocast` below, not Accelerate's environment, decides
    if accelerator.num_processes == 1 and _several_were_asked_for():
        raise ValueError(
            "asked for several processes, but `accelerate launch` started one, as it does without several GPUs (it set "
            "MASTER_ADDR and no RANK); start them with ncflow train --processes or torchrun --nproc_per_node, or "
            "one with accelerate launch --num_processes 1 and no MASTER_ADDR"
        )
    return accelerator


def resolve_precision(precision: str, device: torch.device) -> str:
    """Return fp32, bf16 or fp16: the requested one, or for "auto" bf16 where the hardware multiplies in it.

    Raises ValueError for fp16 on a CPU, where it would silently run in float32.
    """
    if precision == "auto":
        return "bf16" if _multiplies_bfloat16(device) else "fp32"
    lookup(DTYPES, precision, "precision")
    if precision == "fp16" and device.type == "cpu":
        raise ValueError("precision fp16 needs a GPU; on a CPU use bf16, fp32 or auto")
    return precision


def autocast(precision: str, device: torch.device) -> AbstractContextManager[object]:
    """Return the autocast context of a precision; disabled for fp32."""
    dtype = DTYPES[precision]
    return torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32)


def keep_freed_memory() -> bool:
    """Make this process keep the memory that it frees, for later use; return whether the allocator agreed.

    glibc returns large blocks to the system at once. Each training step then gets the same blocks again, page by page
    and zeroed. Keeping them costs some more memory. Other allocators, and GPUs, keep theirs anyway.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    return mallopt is not None and all(mallopt(option, value) == 1 for option, value in KEEP_ALL.items())


def reproducible_convolutions(*, allow_tf32: bool) -> AbstractContextManager[None]:
    """Context: cuDNN gives the same bits every time; `allow_tf32` lets it round float32 inputs to TF32."""
    flags = torch.backends.cudnn.flags
    return flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=allow_tf32)


def _several_were_asked_for() -> bool:
    """Return whether Accelerate's launcher set an address to meet other processes, but no number of them.

    It sets the address only for two or more, and starts as many only on GPUs or by MPI.
    """
    told, ranked = {LAUNCHED, "MASTER_ADDR"} <= os.environ.keys(), {"RANK", "WORLD_SIZE"} & os.environ.keys()
    return told and not ranked


def _multiplies_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    # CPUs without these instructions emulate bfloat16, slower than float32.
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))


DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

# Accelerate's launcher sets these for engines that divide a model among processes.
ENGINES = ("ACCELERATE_USE_DEEPSPEED", "ACCELERATE_USE_FSDP", "ACCELERATE_USE_MEGATRON_LM")
LAUNCHED = "ACCELERATE_DYNAMO_MODE"  # `accelerate launch` always sets it, and few others do

# <malloc.h>: M_MMAP_MAX 0, no block has its own mapping; M_TRIM_THRESHOLD -1, the heap never shrinks
KEEP_ALL = {-4: 0, -1: -1}
