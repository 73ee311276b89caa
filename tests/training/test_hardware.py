"""Precision and processes: what `auto` means, and what is refused instead of done silently otherwise."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest
import torch

from ncflow.training.hardware import (
    DTYPES,
    autocast,
    create_accelerator,
    reproducible_convolutions,
    resolve_precision,
)

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("device", [CPU, CUDA])
def test_a_precision_asked_for_is_the_one_used(precision, device):
    assert resolve_precision(precision, device) == precision


def test_half_precision_is_refused_on_a_cpu():
    with pytest.raises(ValueError, match="fp16 needs a GPU; on a CPU use bf16, fp32 or auto"):
        resolve_precision("fp16", CPU)
    assert resolve_precision("fp16", CUDA) == "fp16"


def test_an_unknown_precision_is_answered_with_the_nearest():
    with pytest.raises(ValueError, match="unknown precision 'bfp16'. Did you mean '(bf16|fp16)'"):
        resolve_precision("bfp16", CPU)


@pytest.mark.parametrize(
    ("capabilities", "expected"),
    [
        ({}, "fp32"),
        ({"avx512": True, "avx512_bf16": False, "amx_bf16": False}, "fp32"),
        ({"avx512_bf16": True}, "bf16"),
        ({"amx_bf16": True, "avx512_bf16": False}, "bf16"),
        ({"bf16": True}, "bf16"),
    ],
)
def test_auto_is_bfloat16_exactly_where_the_cpu_multiplies_in_it(monkeypatch, capabilities, expected):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    assert resolve_precision("auto", CPU) == expected


def test_torch_can_tell_what_this_cpu_multiplies_in():
    """The names that `auto` looks for are names that torch reports."""
    names = torch.cpu.get_capabilities()
    assert {"avx512_bf16", "amx_bf16"} <= set(names) or "bf16" in names


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other allocators keep what is freed anyway")
def test_freed_memory_is_kept_when_asked():
    """The pages of a block that was freed and allocated again are there already; by default they come anew."""
    by_default, kept = map(int, subprocess.check_output([sys.executable, "-c", FAULTS]).split())
    assert kept < 100 < 10_000 < by_default


FAULTS = """
import resource, torch
from ncflow.training import keep_freed_memory

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def page_faults_of_a_block():
    counts = []
    for _ in range(12):  # where blocks in use separate the freed ones, the first rounds still grow the heap
        before = faults()
        torch.ones(2**24)
        counts.append(faults() - before)
    return min(counts)

print(page_faults_of_a_block())
assert keep_freed_memory()
print(page_faults_of_a_block())
"""


@pytest.mark.parametrize("native", [True, False])
def test_auto_on_a_gpu_does_not_count_emulated_bfloat16(monkeypatch, native):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation or native)
    assert resolve_precision("auto", CUDA) == ("bf16" if native else "fp32")


@pytest.mark.parametrize("precision", [name for name in DTYPES if name != "fp16"])
def test_autocast_computes_in_its_precision(precision):
    with autocast(precision, CPU):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == DTYPES[precision]


def test_accelerates_environment_does_not_change_the_precision(monkeypatch):
    """`accelerate launch` passes on a default of another project; it would reach the evaluation, too."""
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    accelerator = create_accelerator("cpu")
    assert accelerator.mixed_precision == "no"
    model = accelerator.prepare(torch.nn.Linear(2, 2))
    assert model(torch.ones(1, 2)).dtype == torch.float32


def test_cpu_is_the_cpu_and_one_process_every_time():
    for _ in range(2):  # several runs in one process
        accelerator = create_accelerator("cpu")
        assert accelerator.device.type == "cpu" and accelerator.num_processes == 1 and accelerator.is_main_process


def test_more_processes_than_gpus_are_refused_unless_on_the_cpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="a GPU for each of the 2 processes on this machine, got 1; use fewer"):
        create_accelerator()
    assert create_accelerator("cpu").device.type == "cpu"


@pytest.mark.parametrize("allow_tf32", [True, False])
def test_convolutions_are_reproducible_inside_and_as_before_outside(allow_tf32):
    cudnn = torch.backends.cudnn
    before = cudnn.deterministic, cudnn.benchmark, cudnn.allow_tf32
    with reproducible_convolutions(allow_tf32=allow_tf32):
        assert (cudnn.deterministic, cudnn.benchmark, cudnn.allow_tf32) == (True, False, allow_tf32)
    assert (cudnn.deterministic, cudnn.benchmark, cudnn.allow_tf32) == before


@pytest.fixture
def accelerate_launch(monkeypatch):
    """Give this process the environment in which `accelerate launch` would start it."""
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser
    from accelerate.utils.launch import prepare_simple_launcher_cmd_env

    def launch(*words: str) -> None:
        chosen = launch_command_parser().parse_args(["--cpu", *words, "script.py"])
        _, environment = prepare_simple_launcher_cmd_env(_validate_launch_command(chosen)[0])
        for name in environment.keys() - os.environ.keys():
            monkeypatch.setenv(name, environment[name])

    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    return launch


@pytest.mark.parametrize("several", [("--num_processes", "2"), ("--num_processes", "7")])
def test_one_process_where_accelerate_was_asked_for_several_is_an_error(accelerate_launch, several):
    accelerate_launch(*several)
    with pytest.raises(ValueError, match="asked for several processes, but .* started one.*ncflow train --processes"):
        create_accelerator("cpu")


@pytest.mark.parametrize("one", [(), ("--num_processes", "1")])
def test_one_process_where_accelerate_was_asked_for_one_is_right(accelerate_launch, one):
    accelerate_launch(*one)
    assert create_accelerator("cpu").num_processes == 1


def test_where_others_would_be_met_says_nothing_without_accelerates_launcher(accelerate_launch, monkeypatch):
    """Such as in a batch script that exports it for all of its jobs."""
    monkeypatch.setenv("MASTER_ADDR", "node1")
    assert create_accelerator("cpu").num_processes == 1


def test_a_launcher_around_accelerates_that_ranks_its_processes_is_right(accelerate_launch, monkeypatch):
    accelerate_launch("--num_processes", "2")
    for name, value in {"RANK": "0", "WORLD_SIZE": "1"}.items():
        monkeypatch.setenv(name, value)
    assert create_accelerator("cpu").num_processes == 1


@pytest.mark.parametrize("engine", ["DEEPSPEED", "FSDP", "MEGATRON_LM"])
def test_an_engine_that_divides_the_model_is_refused_by_its_variable(engine, monkeypatch):
    monkeypatch.setenv(f"ACCELERATE_USE_{engine}", "true")
    with pytest.raises(ValueError, match=f"ACCELERATE_USE_{engine}=true; unset it"):
        create_accelerator("cpu")
