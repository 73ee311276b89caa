"""Copies of a run for other trackers, off by default. MLflow keeps the record; a mirror gets the same numbers."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from ncflow.extras import require
from ncflow.lookup import lookup

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class Mirrored:
    """The MLflow run that is copied: its project, name, ID and configuration, and the last step that it has."""

    root: Path
    name: str
    run_id: str
    config: Mapping[str, Any]
    after: int = 0


class Mirror(Protocol):
    """What a tracker does with a step of a run."""

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        """Copy the metrics of one step."""

    def images(self, images: Mapping[str, np.ndarray], step: int) -> None:
        """Copy images (H,W,3) uint8 of one step."""


@contextmanager
def mirrored(names: Sequence[str], run: Mirrored) -> Iterator[Sequence[Mirror]]:
    """Inside, the trackers of these names take copies of a run. They learn whether it ends with an error."""
    with ExitStack() as stack:
        yield [stack.enter_context(lookup(MIRRORS, name, "tracker")(run)) for name in names]


def check_mirrors(names: Sequence[str]) -> None:
    """Raise ValueError for an unknown tracker, and MissingPackage for one that is not installed."""
    for name in names:
        lookup(MIRRORS, name, "tracker")
        require(name)  # a tracker has the name of its package


@contextmanager
def tensorboard(run: Mirrored) -> Iterator[Mirror]:
    """Write event files to `tensorboard/<run>-<start of its ID>`: one folder for each MLflow run.

    After an interruption TensorBoard hides the steps that are written again.
    """
    from torch.utils.tensorboard import SummaryWriter

    folder = run.root / "tensorboard" / f"{run.name}-{run.run_id[:8]}"
    with SummaryWriter(str(folder), purge_step=run.after + 1) as writer:
        writer.add_text("configuration", _as_markdown(run.config))
        yield TensorBoard(writer)


@dataclass(frozen=True)
class TensorBoard:
    """A writer of TensorBoard's event files."""

    writer: Any

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)
        self.writer.flush()

    def images(self, images: Mapping[str, np.ndarray], step: int) -> None:
        for name, pixels in images.items():
            self.writer.add_image(name, pixels, step, dataformats="HWC")


@contextmanager
def wandb(run: Mirrored) -> Iterator[Mirror]:
    """Log to Weights & Biases under the ID of the MLflow run; files are in `wandb/`. WANDB_* variables apply."""
    import wandb

    project = os.environ.get("WANDB_PROJECT", "ncflow")
    # The code and the text on the terminal stay here: MLflow and the run's log have them.
    settings = wandb.Settings(console="off", disable_git=True, save_code=False, silent=True)
    try:
        opened = wandb.init(
            project=project,
            name=run.name,
            id=run.run_id,
            resume="allow",
            dir=str(run.root),
            config=dict(run.config),
            settings=settings,
        )
    except wandb.errors.Error as error:
        raise ValueError(
            f"tracking.also=[wandb] failed: {error}; run `wandb login`, or set WANDB_MODE=offline and send the folder "
            "wandb/ later with `wandb sync`"
        ) from error
    try:
        yield WandB(opened, wandb.Image)
    except BaseException:
        opened.finish(exit_code=1)
        raise
    opened.finish()


@dataclass(frozen=True)
class WandB:
    """An open run of Weights & Biases. A step that it already has is ignored there."""

    run: Any
    image: Callable[[np.ndarray], Any]

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        self.run.log(dict(values), step=step)

    def images(self, images: Mapping[str, np.ndarray], step: int) -> None:
        self.run.log({name: self.image(pixels) for name, pixels in images.items()}, step=step)


def _as_markdown(config: Mapping[str, Any]) -> str:
    """A configuration as a block of code, one key a line."""
    from ncflow.dotted import flatten

    return "\n".join(f"    {key}: {value}" for key, value in flatten(config).items())


MIRRORS: dict[str, Callable[[Mirrored], AbstractContextManager[Mirror]]] = {
    "tensorboard": tensorboard,
    "wandb": wandb,
}
