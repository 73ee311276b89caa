"""The training state after an epoch: how it is collected, restored and stored, for an exact resumption.

A state is plain data and tensors: model, optimizer, gradient scaler and every random generator of every process. The
schedule and the order of samples need no state, because they are functions of the epoch.
"""

from __future__ import annotations

import random
import re
import shutil
import uuid
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast, gather_object
from torch import nn

from ncflow.files import folder_next_to, replace_folder, write_atomically, write_text
from ncflow.tensors import read_tensors, write_tensors
from ncflow.training.stopping import EarlyStopping

State = dict[str, Any]
LIKE_PARAMETERS = {"momentum_buffer", "exp_avg", "exp_avg_sq", "square_avg"}  # an optimizer's, shaped like parameters
# An optimizer of torch -> what one step leaves for each parameter, given the options of its group.
SLOTS: dict[type, Callable[[Mapping[str, Any]], set[str]]] = {
    torch.optim.SGD: lambda group: {"momentum_buffer"} if group["momentum"] else set(),
    **dict.fromkeys(
        (torch.optim.Adam, torch.optim.AdamW),
        lambda group: {"step", "exp_avg", "exp_avg_sq", *["max_exp_avg_sq"] * group["amsgrad"]},
    ),
    torch.optim.RMSprop: lambda group: {
        *("step", "square_avg"),
        *["momentum_buffer"] * bool(group["momentum"]),
        *["grad_avg"] * group["centered"],
    },
}
ORIGIN = "extends"  # file with the epochs of the finished run that a run began with
FEW = 3  # tensors of each kind that a message names
KEPT = 2  # the newest states: if the last is damaged, the one before it is used


class StateFolder:
    """The states of one unfinished run. The folder's name holds the digests of all that decides a run.

    `files` keeps the run's finished files until the run is finished, even if its run folder changes or disappears.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.files = self.path / "files"

    def token(self) -> str:
        """Return a name for this attempt at the run, created on first use.

        Tracking uses it to find the run that a killed process opened.
        """
        file = self.path / "token"
        if not file.exists():
            shutil.rmtree(self._removed, ignore_errors=True)
            self.path.mkdir(parents=True, exist_ok=True)
            write_atomically(file, lambda stream: stream.write(uuid.uuid4().hex.encode()))
        return file.read_text()

    def write(self, state: State) -> Path:
        """Add the state of a finished epoch and return its file; keep it and the one before it."""
        self.path.mkdir(parents=True, exist_ok=True)
        file = write_tensors(self._file(state["epoch"]), {"run": self.path.name, **state})
        epochs = self._epochs()  # later ones are damaged: training resumed before them
        for other in set(epochs) - set([n for n in epochs if n <= state["epoch"]][:KEPT]):
            self._file(other).unlink()
        return file

    def newest(self, accelerator: Accelerator) -> State | None:
        """Return the newest intact state, the same in every process, or None. Warn of damaged and foreign ones by name.

        The main process chooses; the others read the same file.
        """
        state = self._newest_whole() if accelerator.is_main_process else None
        chosen = torch.tensor(state["epoch"] if state else 0, device=accelerator.device)
        epoch = int(broadcast(chosen).item())
        return state or (self.read(epoch) if epoch else None)

    def read(self, epoch: int) -> State:
        """Return the state after an epoch.

        Raises ValueError, naming the file, if it is missing, damaged or of another run.
        """
        file = self._file(epoch)
        state = read_tensors(file)
        expected = self.path.name, epoch, int  # 2.0 is no number of an epoch
        if not isinstance(state, dict) or expected != (state.get("run"), state.get("epoch"), type(state.get("epoch"))):
            raise ValueError(f"{file} is not the state of this run after epoch {epoch}")
        return state

    def leave_out(self, epoch: int, reason: str) -> None:
        """Warn that an intact state is not used."""
        warnings.warn(f"{self._file(epoch)} does not fit this run: {reason}; it is left out", stacklevel=3)

    def remove(self) -> None:
        """Delete the states of a finished run. The folder is renamed first, so no partial folder remains."""
        shutil.rmtree(self._removed, ignore_errors=True)
        self.path.rename(self._removed)
        shutil.rmtree(self._removed, ignore_errors=True)

    def archive(self, finished: Path) -> None:
        """Move the newest state and the files of a finished run to the folder `finished`, for `begin_after`."""
        for epoch in self._epochs()[1:]:
            self._file(epoch).unlink()
        (self.path / ORIGIN).unlink(missing_ok=True)
        shutil.rmtree(finished, ignore_errors=True)  # of an earlier, shorter or longer run
        finished.parent.mkdir(parents=True, exist_ok=True)
        self.path.rename(finished)

    def finished_epoch(self) -> int:
        """The epoch of the newest state; 0 without a state."""
        return next(iter(self._epochs()), 0)

    def began_after(self) -> int | None:
        """The epochs of the finished run that this run extends; None where it extends none."""
        file = self.path / ORIGIN
        return int(file.read_text()) if file.is_file() else None

    def begin_after(self, finished: StateFolder) -> None:
        """Copy the newest state and the files of a finished run, so that this run resumes from them."""
        epoch = finished.finished_epoch()
        try:
            state = read_tensors(finished._file(epoch))
        except ValueError as error:
            raise ValueError(f"{error}; train without --extend") from error
        with folder_next_to(self.path) as temporary:
            copy = StateFolder(temporary / self.path.name)
            shutil.copytree(finished.files, copy.files, ignore=shutil.ignore_patterns("*.pth"))  # no final model yet
            copy.write(state | {"run": self.path.name})
            write_text(copy.path / ORIGIN, str(epoch))
            replace_folder(copy.path, self.path)

    @property
    def _removed(self) -> Path:
        """The folder's name during deletion."""
        return self.path.with_name(f".{self.path.name}.removed")

    def _newest_whole(self) -> State | None:
        for epoch in self._epochs():
            try:
                return self.read(epoch)
            except ValueError as error:
                warnings.warn(f"{error}; it is left out", stacklevel=4)
        return None

    def _epochs(self) -> list[int]:
        """The epochs that have a state, newest first."""
        names = (re.fullmatch(r"epoch_(\d+)\.pt", file.name) for file in self.path.glob("epoch_*.pt"))
        return sorted((int(name[1]) for name in names if name), reverse=True)

    def _file(self, epoch: int) -> Path:
        return self.path / f"epoch_{epoch}.pt"


@dataclass(frozen=True)
class Parts:
    """The parts of a training that have a state: the trained classifier, and how it moves."""

    classifier: nn.Module
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    average: nn.Module | None = None
    stop: EarlyStopping | None = None


def collect_state(epoch: int, parts: Parts) -> State:
    """Return the state after `epoch`, with the tensors of training itself; all processes call it together."""
    average, stop = parts.average, parts.stop
    return {
        "epoch": epoch,
        "model": parts.classifier.state_dict(),
        "optimizer": parts.optimizer.state_dict(),
        "scaler": parts.scaler.state_dict(),
        "randomness": gather_object([get_randomness()]),
        **({} if average is None else {"average": average.state_dict()}),
        **({} if stop is None else {"stop": stop.state_dict()}),
    }


def misfit(
    state: State,
    classifier: nn.Module,
    optimizer: torch.optim.Optimizer,
    *,
    averaged: bool = False,
    stopping: bool = False,
) -> str | None:
    """Return in a few words why an intact state does not fit this classifier and optimizer; None if it fits.

    `averaged` is whether the training has a moving average, and `stopping` whether it may stop early.
    """
    needed = ("model", "optimizer", "scaler", "randomness", *["average"] * averaged, *["stop"] * stopping)
    if lacking := [key for key in needed if key not in state]:
        return f"it lacks {', '.join(lacking)}"
    if other := differing_tensors(state["model"], classifier.state_dict()):
        return other
    ours, saved = optimizer.state_dict(), state["optimizer"]
    try:
        groups = [[len(group["params"]) for group in found["param_groups"]] for found in (ours, saved)]
        shapes = [parameter.shape for group in optimizer.param_groups for parameter in group["params"]]
        slots = [
            (number, slot[name]) for number, slot in saved["state"].items() for name in LIKE_PARAMETERS & slot.keys()
        ]
        wrong = [number for number, tensor in slots if tensor is not None and tensor.shape != shapes[number]]
        if groups[0] != groups[1] or wrong:
            return "its optimizer has parameters of other shapes"
        if SLOTS.get(type(optimizer)) and _has_other_slots(optimizer, saved["state"]):
            return "its optimizer is another one"
        known = {"python", "numpy", "torch", "cuda"}
        if not state["randomness"] or not all(known <= process.keys() for process in state["randomness"]):
            return "it lacks the state of the random numbers"
        if not all(map(_can_be_set, state["randomness"])):
            return "the state of its random numbers is of another layout"
    except (KeyError, TypeError, AttributeError, IndexError):
        return "its layout is another one"
    return None if isinstance(state["scaler"], dict) else "its layout is another one"


def _has_other_slots(optimizer: torch.optim.Optimizer, saved: Mapping[int, Mapping[str, Any]]) -> bool:
    """Whether saved slots of parameters are not those that a step of this optimizer leaves."""
    expected: dict[int, set[str]] = {}
    for group in optimizer.param_groups:
        names = SLOTS[type(optimizer)](group)
        expected |= {len(expected) + i: names for i in range(len(group["params"]))}
    filled = {number: {name for name, value in slot.items() if value is not None} for number, slot in saved.items()}
    lost = any(expected.values()) and not any(filled.values())
    return lost or any(bool(names) and names != expected[number] for number, names in filled.items())


def _can_be_set(randomness: Mapping[str, Any]) -> bool:
    """Whether the generators take this state; afterwards they are as before."""
    before = get_randomness()
    try:
        set_randomness(randomness)
    except (TypeError, ValueError, AttributeError, IndexError, RuntimeError, OverflowError):
        return False
    finally:
        set_randomness(before)
    return True


def differing_tensors(found: object, expected: Mapping[str, torch.Tensor]) -> str | None:
    """Return how a checkpoint's tensors differ from a model's, at most three of each kind; None if they fit."""
    if not isinstance(found, Mapping) or not all(isinstance(tensor, torch.Tensor) for tensor in found.values()):
        return "it is no mapping from names to tensors"
    kinds = {
        "it lacks": [name for name in expected if name not in found],
        "it has in addition": [name for name in found if name not in expected],
        "shapes differ in": [
            f"{name} {tuple(found[name].shape)}, expected {tuple(expected[name].shape)}"
            for name in expected
            if name in found and found[name].shape != expected[name].shape
        ],
    }
    told = [f"{kind} {', '.join(map(str, names[:FEW]))}{_more(names)}" for kind, names in kinds.items() if names]
    return "; ".join(told) or None


def _more(names: Sequence[str]) -> str:
    return f" and {len(names) - FEW} more" if len(names) > FEW else ""


def apply_state(state: State, parts: Parts, process_index: int) -> int:
    """Restore a state in place; return its epoch. A process without a saved state keeps its generators.

    Raises ValueError for a state of another model or optimizer.
    """
    try:
        parts.classifier.load_state_dict(state["model"])
        parts.optimizer.load_state_dict(state["optimizer"])
        if parts.average is not None:
            parts.average.load_state_dict(state["average"])
        if parts.stop is not None:
            parts.stop.load_state_dict(state["stop"])
    except (RuntimeError, ValueError, KeyError) as error:
        raise ValueError(f"the state after epoch {state['epoch']} is of another model or optimizer: {error}") from error
    parts.scaler.load_state_dict(state["scaler"])
    if process_index < len(state["randomness"]):
        set_randomness(state["randomness"][process_index])
    return int(state["epoch"])


def get_randomness(*, cuda: bool = True) -> dict[str, Any]:
    """Return this process's global generators, which layers and users' functions use, as plain data and tensors."""
    kind, keys, *rest = np.random.get_state()
    return {
        "python": random.getstate(),
        "numpy": (kind, torch.from_numpy(np.asarray(keys, np.int64)), *rest),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if cuda and torch.cuda.is_available() else None,
    }


def set_randomness(state: Mapping[str, Any]) -> None:
    """Restore the generators from the result of `get_randomness`."""
    kind, keys, *rest = state["numpy"]
    random.setstate(state["python"])
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
