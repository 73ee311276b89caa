"""Other machines, declared where they cannot be had: a device without float64, a system without POSIX's names."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import references
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

from ncflow import checks
from ncflow.geometry import etf_distance, nearest_etf, polar_factor
from ncflow.metrics import ClassMoments, NeuralCollapse, collapse_metrics
from ncflow.nn import LOSSES, create_head, create_loss

FEATURES, TARGETS, WEIGHT, BIAS = (tensor.float() if tensor.is_floating_point() else tensor
                                   for tensor in references.draw_problem(0).tensors)  # fmt: skip


DEVICE = "mps"


class Declared(torch.Tensor):
    """A tensor that says it lies on Apple's device, and like that refuses float64 and company from elsewhere."""

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(function, args, kwargs or {})


class Device(TorchFunctionMode):
    """Inside, the device can be moved to and made on."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(function, args, kwargs or {})


def run(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    given = [value for value in tree_leaves((args, kwargs)) if isinstance(value, torch.Tensor)]
    here = any(isinstance(value, Declared) for value in given)
    if function == torch.Tensor.device.__get__ and here:
        return torch.device(DEVICE)
    target = "cpu" if function == torch.Tensor.cpu else kwargs.pop("device", None)
    moves = function in (torch.Tensor.to, torch.Tensor.cpu, torch.Tensor.copy_)
    if function == torch.Tensor.to:
        args, target = without_device(args, target)
    if here and not moves and any(not isinstance(value, Declared) and value.ndim for value in given):
        raise RuntimeError("Expected all tensors to be on the same device")
    stays = here if target is None else torch.device(target).type == DEVICE
    with torch._C.DisableTorchFunctionSubclass():
        found = function(*tree_map(bare, args), **tree_map(bare, kwargs))
    return tree_map(there, found) if stays else found


def without_device(args: tuple[Any, ...], target: Any) -> tuple[tuple[Any, ...], Any]:
    """The arguments of `to` without a device, and that device; a tensor to be like is a device and a dtype."""
    rest: list[Any] = [args[0]]
    for value in args[1:]:
        if isinstance(value, torch.Tensor):
            target = DEVICE if isinstance(value, Declared) else "cpu"
            rest.append(bare(value).dtype)
        elif isinstance(value, str | torch.device):
            target = value
        elif value is not None:
            rest.append(value)
    return (*rest, *([bare(args[0]).dtype] if len(rest) == 1 else [])), target


def there(value: Any) -> Any:
    if not isinstance(value, torch.Tensor):
        return value
    if value.dtype == torch.float64:
        raise TypeError("Cannot convert a MPS Tensor to float64 dtype")
    return value.as_subclass(Declared)


def bare(value: Any) -> Any:
    return value.as_subclass(torch.Tensor) if isinstance(value, Declared) else value


def declared(*tensors: torch.Tensor) -> list[Declared]:
    return [there(tensor) for tensor in tensors]


def test_a_declared_device_refuses_float64_and_company_from_elsewhere():
    (moved,) = declared(FEATURES)
    assert moved.device.type == DEVICE and moved.cpu().device.type == "cpu"
    with pytest.raises(TypeError, match="float64"):
        moved.double()
    with pytest.raises(RuntimeError, match="same device"):
        moved @ FEATURES.mT
    with Device():
        assert isinstance(FEATURES.to(DEVICE), Declared)


@pytest.mark.parametrize("function", [nearest_etf, polar_factor, etf_distance])
def test_geometry_works_beside_a_device_without_float64(function):
    means = WEIGHT.mT.contiguous() if function is polar_factor else WEIGHT
    with Device():
        found = function(there(means))
    assert isinstance(found, Declared)
    torch.testing.assert_close(bare(found), function(means), rtol=0, atol=0)


def test_geometry_holds_its_anchor_and_its_means_on_one_side():
    with Device():
        found = nearest_etf(there(WEIGHT), proximal=0.5, anchor=nearest_etf(there(WEIGHT + 1)))
    torch.testing.assert_close(bare(found), nearest_etf(WEIGHT, proximal=0.5, anchor=nearest_etf(WEIGHT + 1)))


@pytest.mark.parametrize("head", ["linear", "fixed_etf", "nearest_etf"])
def test_heads_train_and_decide_on_a_device_without_float64(head):
    torch.manual_seed(0)
    plain = create_head(head, 8, 6)
    with Device(), torch.no_grad():
        torch.manual_seed(0)
        moved = create_head(head, 8, 6)
        for name, tensor in (*moved._buffers.items(), *moved._parameters.items()):
            if tensor is not None:
                moved._buffers[name] = there(tensor.detach())
                moved._parameters.pop(name, None)
        found = moved(*declared(FEATURES, TARGETS))
        decided = moved.eval()(there(FEATURES))
    torch.testing.assert_close(bare(found), plain(FEATURES, TARGETS))
    torch.testing.assert_close(bare(decided), plain.eval()(FEATURES))


@pytest.mark.parametrize("loss", LOSSES)
def test_losses_work_on_a_device_without_float64(loss):
    counts, logits = [25, 18, 12, 9, 6, 3], FEATURES[:, :6].contiguous()
    with Device():
        found = create_loss(loss, counts)(*declared(logits, TARGETS))
    torch.testing.assert_close(bare(found), create_loss(loss, counts)(logits, TARGETS))


def test_metrics_are_measured_on_the_cpu_where_the_device_has_no_float64():
    expected = collapse_metrics(FEATURES, TARGETS, WEIGHT, BIAS)
    with Device():
        found = collapse_metrics(*declared(FEATURES, TARGETS, WEIGHT, BIAS))
        assert found == pytest.approx(expected, rel=1e-12)
        moments = ClassMoments.from_features(*declared(FEATURES, TARGETS), 6)
        metric = NeuralCollapse(6, 8).to(DEVICE)
        metric.update(*declared(FEATURES, TARGETS))
    assert torch.equal(moments.means, ClassMoments.from_features(FEATURES, TARGETS, 6).means)
    assert metric.compute()["nc1/pinv"] == pytest.approx(expected["nc1/pinv"], rel=1e-12)


def test_gradients_pass_the_way_to_the_cpu_and_back(monkeypatch):
    means, upstream = WEIGHT.clone().requires_grad_(), torch.ones_like(WEIGHT)
    expected = torch.autograd.grad(nearest_etf(means), means, upstream)
    monkeypatch.setattr(checks, "WITHOUT_FLOAT64", {"cpu"})
    assert torch.equal(torch.autograd.grad(nearest_etf(means), means, upstream)[0], expected[0])


WITHOUT_POSIX = """
import ctypes, os, signal, sys
for module, names in {
    os: "EX_TEMPFAIL killpg setsid getpgid sched_getaffinity",
    signal: "SIGKILL SIGHUP SIGUSR1 SIGUSR2 SIGALRM",
}.items():
    for name in names.split():
        if hasattr(module, name):
            delattr(module, name)
import pkgutil, importlib, ncflow
for module in pkgutil.walk_packages(ncflow.__path__, "ncflow."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
from pathlib import Path
from ncflow import stages
from ncflow.interruption import interruptible
from ncflow.params import make_params
here = Path(sys.argv[1])
small = ["dataset.imb_factor=0.1", "dataset.samples_per_class=30", "model.image_size=8"]
params = make_params({}, ["train.epochs=1", "train.analyze_freq=1", "train.device=cpu", *small])
with interruptible():
    folder = stages.train(params, folder=here / "models" / "run", data=here / "data" / "digits", root=here)
stages.evaluate(folder, here / "data" / "digits", here / "evaluation.json")
print("finished")
"""


@pytest.mark.slow
def test_a_single_run_touches_no_name_that_windows_lacks(tmp_path):
    command = [sys.executable, "-c", WITHOUT_POSIX, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.stdout.endswith("finished\n"), done.stderr
