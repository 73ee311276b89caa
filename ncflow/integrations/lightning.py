"""A Lightning callback: measure neural collapse every n epochs of a training, without any effect on it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib.util import find_spec
from itertools import islice
from typing import Any

from torch import nn

from ncflow.checks import check_whole
from ncflow.integrations.passes import Collected, collect, in_order, share, split_metrics

if find_spec("lightning") is None and find_spec("pytorch_lightning") is not None:
    from pytorch_lightning import Callback
else:
    from lightning.pytorch import Callback

STRATEGIES = ("SingleDeviceStrategy", "DDPStrategy")  # others split the weights over devices
TARGETS = ("labels", "label", "targets", "target", "y")  # keys of the targets in a batch that is a dict


class NeuralCollapseCallback(Callback):  # type: ignore[misc]
    """Log every collapse metric of the training and validation data as train/nc1/pinv, val/nc1/pinv and so on.

    Every n-th epoch, and in the last one, a second pass evaluates the training samples in order, then the validation
    data. The pass is in eval mode and does not change weights, batch statistics, or random numbers of the training.
    trainer.validate and trainer.test log val/… and test/… in the same way. Several loaders are val_0/…, val_1/….
    Processes of DDP share each pass.

    `layer` names the last linear layer, by default it is found. `forward(module, batch)` calls the module on a batch
    and returns the targets. By default batch is (inputs, targets), or a dict with a key of TARGETS; the module takes
    the others by name. `train_loader` replaces the training loader, for example one without augmentation. class_counts
    (K,) are the sizes of the training classes, by default counted. Raises ValueError before the training for a model
    without a last linear layer.

    Example::

        trainer = Trainer(max_epochs=100, callbacks=[NeuralCollapseCallback(every_n_epochs=10)])
        trainer.fit(module, train_loader, val_loader)
    """

    def __init__(
        self,
        *,
        every_n_epochs: int = 1,
        layer: str | None = None,
        forward: Callable[[Any, Any], Any] | None = None,
        train_loader: Any = None,
        class_counts: Any = None,
    ) -> None:
        check_whole(every_n_epochs=every_n_epochs)
        self.every_n_epochs, self.layer, self.class_counts = every_n_epochs, layer, class_counts
        self.forward, self.train_loader = forward or call_on_batch, train_loader

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Check that every device holds the whole model."""
        kinds = {kind.__name__ for kind in type(trainer.strategy).__mro__}
        if kinds.isdisjoint(STRATEGIES):
            found = type(trainer.strategy).__name__
            raise ValueError(
                f"NeuralCollapseCallback needs the whole model on each device (one device, or DDP), got {found}"
            )

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Find the layer with one batch, so that a model without one is refused before the training."""
        for batches in self._train_batches(trainer).values():
            self._collect(trainer, pl_module, _first(batches))

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Measure the training and the validation data."""
        epoch = trainer.current_epoch + 1
        if epoch % self.every_n_epochs == 0 or epoch == trainer.max_epochs:
            self._log(trainer, pl_module, "val", trainer.val_dataloaders, trainer.limit_val_batches)

    def on_validation_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Measure the validation data in trainer.validate. In a training it follows at the end of the epoch."""
        if trainer.state.fn == "validate":
            self._log(trainer, pl_module, "val", trainer.val_dataloaders, trainer.limit_val_batches)

    def on_test_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Measure the test data in trainer.test."""
        self._log(trainer, pl_module, "test", trainer.test_dataloaders, trainer.limit_test_batches)

    def _log(self, trainer: Any, module: Any, split: str, loaders: Any, limit: float) -> None:
        batches = self._train_batches(trainer)
        batches |= {name: _limited(in_order(loader), limit) for name, loader in _named(split, loaders).items()}
        splits = {name: self._collect(trainer, module, each) for name, each in batches.items()}
        found = split_metrics(splits, class_counts=self.class_counts, device=module.device)
        values = {f"{name}/{metric}": value for name, metrics in found.items() for metric, value in metrics.items()}
        module.log_dict(values, on_step=False, on_epoch=True, batch_size=1, sync_dist=trainer.world_size > 1)

    def _train_batches(self, trainer: Any) -> dict[str, Iterable[Any]]:
        if self.train_loader is not None:
            return {"train": share(self.train_loader)}
        if trainer.train_dataloader is None:
            return {}
        return {"train": _limited(in_order(trainer.train_dataloader), trainer.limit_train_batches)}

    def _collect(self, trainer: Any, module: Any, batches: Iterable[Any]) -> Collected:
        def run(batch: Any) -> Any:
            batch = trainer.strategy.batch_to_device(trainer.precision_plugin.convert_input(batch))
            with trainer.precision_plugin.forward_context():
                return self.forward(module, batch)

        return collect(module, batches, run, layer=self.layer, device=module.device)


def call_on_batch(module: nn.Module, batch: Any) -> Any:
    """Call a module on the inputs of a batch, and return its targets. Raises ValueError for an unknown form."""
    if isinstance(batch, Mapping):
        found = [key for key in TARGETS if key in batch]
        if len(found) == 1:
            module(**{key: value for key, value in batch.items() if key != found[0]})
            return batch[found[0]]
        form = f"a dict with the keys {', '.join(map(str, batch))}"
    elif isinstance(batch, tuple | list) and len(batch) == 2:
        module(batch[0])
        return batch[1]
    else:
        form = f"{type(batch).__name__} of {len(batch)}" if isinstance(batch, tuple | list) else type(batch).__name__
    raise ValueError(
        f"expected a batch (inputs, targets), or a dict with one of {', '.join(TARGETS)}, got {form}; pass "
        "forward=, a function of module and batch that calls the module and returns the targets"
    )


def _named(split: str, loaders: Any) -> dict[str, Any]:
    """Name -> loader, for one loader or several."""
    if isinstance(loaders, Mapping):
        return {f"{split}_{name}": loader for name, loader in loaders.items()}
    if isinstance(loaders, tuple | list) and len(loaders) != 1:
        return {f"{split}_{k}": loader for k, loader in enumerate(loaders)}
    loaders = loaders[0] if isinstance(loaders, tuple | list) else loaders
    return {} if loaders is None else {split: loaders}


def _first(batches: Iterable[Any]) -> Iterator[Any]:
    yield from islice(batches, 1)


def _limited(loader: Any, limit: float) -> Iterator[Any]:
    """The batches that Lightning's limit leaves: a number of batches, or a share of them.

    A generator starts the loader only where its batches are used: the start takes a random number.
    """
    if isinstance(limit, int):
        yield from islice(loader, limit)
    else:
        yield from loader if limit >= 1 else islice(loader, int(limit * len(loader)))
