"""The Lightning callback: the right numbers, at the right epochs, and the same training with and without it."""

from __future__ import annotations

import importlib
import random
import warnings

import lightning.pytorch as lightning
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping
from torch import Tensor, nn
from torch.utils.data import DataLoader, SubsetRandomSampler, TensorDataset
from two_processes import on_two

from ncflow import NeuralCollapse, collect_features
from ncflow.integrations.lightning import NeuralCollapseCallback, call_on_batch

pytestmark = pytest.mark.filterwarnings("ignore")  # Lightning's advice about workers and devices


class Noisy(TensorDataset):
    """Augmented with all random numbers that people use."""

    def __getitem__(self, index):
        features, target = super().__getitem__(index)
        return features + torch.randn(5) + random.random() + np.random.rand(), target


def loader(seed: int, dataset=TensorDataset, **options) -> DataLoader:
    generator = torch.Generator().manual_seed(seed)
    targets = torch.arange(27) % 3
    features = torch.eye(5)[targets] + 0.1 * torch.randn(27, 5, generator=generator)
    return DataLoader(dataset(features, targets), batch_size=8, **options)


def make(base=lightning.LightningModule, **options):
    class Module(base):
        """Dropout and batch normalization react to every additional forward."""

        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(nn.BatchNorm1d(5), nn.Linear(5, 4), nn.Dropout(0.5), nn.ReLU(), nn.Linear(4, 3))

        def forward(self, features: Tensor) -> Tensor:
            return self.net(features)

        def training_step(self, batch, index):
            return nn.functional.cross_entropy(self(batch[0]), batch[1])

        def validation_step(self, batch, index):
            self(batch[0])

        test_step = validation_step

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    torch.manual_seed(0)
    return Module(**options)


def trainer(tmp_path, *callbacks, library=lightning, **options):
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    where = {"accelerator": "cpu", "devices": 1, "default_root_dir": tmp_path, "logger": False}
    return library.Trainer(**({"max_epochs": 2, "callbacks": [*callbacks]} | quiet | where | options))


class Seen(lightning.Callback):
    """The metrics that are there after each epoch."""

    def __init__(self) -> None:
        self.epochs: list[dict[str, float]] = []

    def on_train_epoch_end(self, trainer, pl_module) -> None:
        self.epochs.append({key: float(value) for key, value in trainer.callback_metrics.items()})


@pytest.mark.parametrize("name", ["lightning.pytorch", "pytorch_lightning"])
def test_the_logged_metrics_are_those_of_the_features(tmp_path, name):
    library = importlib.import_module(name)
    module, train, val = make(library.LightningModule), loader(0, shuffle=True), loader(1)
    fitted = trainer(tmp_path, NeuralCollapseCallback(class_counts=[99, 30, 8]), library=library)
    fitted.fit(module, train, val)
    seen, unseen = (collected(module, given) for given in (loader(0), val))
    expected = unseen.measure(train=seen, class_counts=[99, 30, 8]).metrics
    for split, name in (("train", "train"), ("test", "val")):
        found = {key.removeprefix(f"{name}/"): float(v) for key, v in fitted.callback_metrics.items() if name in key}
        assert found == pytest.approx(expected[split], rel=1e-4, abs=1e-5)  # Lightning logs float32
        assert {"nc1/pinv", "nc3/self_duality", "nc4/ncc_mismatch", "acc/balanced"} <= found.keys()


def collected(module, given):
    with collect_features(module) as found:
        for features, targets in given:
            module(features)
            found.add(targets)
    return found


def test_the_training_is_the_same_bit_for_bit(tmp_path):
    states = []
    for callbacks in ([], [NeuralCollapseCallback()]):
        module = make()
        random.seed(1)
        np.random.seed(1)
        torch.manual_seed(1)
        given = loader(0, Noisy, shuffle=True), loader(1, Noisy)
        trainer(tmp_path, *callbacks, max_epochs=3).fit(module, *given)
        states.append((module.state_dict(), torch.rand(3), random.random(), np.random.rand()))
    (without, *numbers), (with_callback, *same) = states
    assert all(torch.equal(value, with_callback[name]) for name, value in without.items())
    assert torch.equal(numbers[0], same[0]) and numbers[1:] == same[1:]


@pytest.mark.slow
def test_workers_that_persist_stay_those_of_the_training(tmp_path):
    states = []
    for callbacks in ([], [NeuralCollapseCallback()]):
        module = make()
        torch.manual_seed(1)
        given = loader(0, Noisy, shuffle=True, num_workers=1, persistent_workers=True)
        trainer(tmp_path, *callbacks).fit(module, given)
        states.append(module.state_dict())
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())


def test_it_measures_every_nth_epoch_and_the_last(tmp_path):
    seen, measured = Seen(), []

    class Counting(NeuralCollapseCallback):
        def _log(self, trainer, *options):
            measured.append(trainer.current_epoch)
            super()._log(trainer, *options)

    trainer(tmp_path, Counting(every_n_epochs=2), seen, max_epochs=5).fit(make(), loader(0))
    assert measured == [1, 3, 4]
    assert [any("nc1" in key for key in epoch) for epoch in seen.epochs][:2] == [False, True]


def test_another_callback_can_monitor_a_metric(tmp_path):
    stop = EarlyStopping("val/nc1/pinv", patience=0, min_delta=1e9, check_on_train_epoch_end=True)
    fitted = trainer(tmp_path, NeuralCollapseCallback(), stop, max_epochs=9)
    fitted.fit(make(), loader(0), loader(1))
    assert fitted.current_epoch == 2


def test_validate_and_test_log_their_splits(tmp_path):
    module = make()
    alone = trainer(tmp_path, NeuralCollapseCallback())
    (values,) = alone.validate(module, loader(1), verbose=False)
    assert values["val/nc1/pinv"] == pytest.approx(collected(module, loader(1)).measure().metrics["train"]["nc1/pinv"])
    fitted = trainer(tmp_path, NeuralCollapseCallback())
    fitted.fit(module, loader(0))
    (values,) = fitted.test(module, loader(2), verbose=False)
    expected = collected(module, loader(2)).measure(train=collected(module, loader(0))).metrics["test"]
    assert values["test/nc4/ncc_mismatch"] == pytest.approx(expected["nc4/ncc_mismatch"])


def test_several_loaders_have_numbers(tmp_path):
    fitted = trainer(tmp_path, NeuralCollapseCallback(), max_epochs=1)
    module = make()
    module.validation_step = lambda batch, index, dataloader_idx=0: None
    fitted.fit(module, loader(0), [loader(1), loader(2)])
    assert {"train/nc1/pinv", "val_0/nc1/pinv", "val_1/nc1/pinv"} <= fitted.callback_metrics.keys()


def test_a_limit_of_the_trainer_holds_for_the_pass(tmp_path):
    rows = []

    def forward(module, batch):
        rows.append(len(batch[0]))
        return call_on_batch(module, batch)

    fitted = trainer(tmp_path, NeuralCollapseCallback(forward=forward), max_epochs=1, limit_train_batches=2)
    fitted.fit(make(), loader(0))
    assert rows == [8] + [8, 8]  # one to find the layer


def test_samples_that_the_training_leaves_out_are_not_measured(tmp_path):
    counted = []
    callback = NeuralCollapseCallback(
        forward=lambda module, batch: counted.append(batch[1]) or call_on_batch(module, batch)
    )
    trainer(tmp_path, callback, max_epochs=1).fit(make(), loader(0, sampler=SubsetRandomSampler([7, 3, 5])))
    assert counted[-1].tolist() == [0, 2, 1]  # of samples 3, 5 and 7


def test_a_loader_of_ones_choice_replaces_the_training_loader(tmp_path):
    module = make()
    fitted = trainer(tmp_path, NeuralCollapseCallback(train_loader=loader(5)), max_epochs=1)
    fitted.fit(module, loader(0))
    expected = collected(module, loader(5)).measure().metrics["train"]["nc1/cdnv"]
    assert float(fitted.callback_metrics["train/nc1/cdnv"]) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(
    "batch, message",
    [
        ((1, 2, 3), "got tuple of 3"),
        ({"image": 1, "class": 2}, "got a dict with the keys image, class"),
        (torch.zeros(2), "got Tensor"),
    ],
)
def test_an_unknown_form_of_a_batch_names_the_remedy(batch, message):
    with pytest.raises(ValueError, match=f"{message}; pass forward="):
        call_on_batch(make(), batch)


def test_a_batch_that_is_a_dict_gives_its_inputs_by_name():
    targets = call_on_batch(make(), {"features": torch.zeros(2, 5), "labels": torch.ones(2)})
    assert torch.equal(targets, torch.ones(2))


@pytest.mark.parametrize(
    "options, message",
    [
        ({"layer": "net.9"}, "unknown layer 'net.9'"),
        ({"layer": "net.0"}, "'net.0' is a BatchNorm1d, not a linear layer"),
        ({"every_n_epochs": 0}, "every_n_epochs must be a whole number from 1"),
    ],
)
def test_a_wrong_option_is_refused_before_the_training(tmp_path, options, message):
    module = make()
    with pytest.raises(ValueError, match=message):
        trainer(tmp_path, NeuralCollapseCallback(**options)).fit(module, loader(0))
    assert all(torch.equal(value, make().state_dict()[key]) for key, value in module.state_dict().items())


def test_a_sampler_without_known_samples_is_refused(tmp_path):
    unknown = loader(0, sampler=[4, 4, 2])
    with pytest.raises(ValueError, match="the samples of a list are not known in advance; pass a DataLoader"):
        trainer(tmp_path, NeuralCollapseCallback()).fit(make(), unknown)


def test_a_strategy_that_splits_the_weights_is_refused():
    class FSDPStrategy:
        pass

    from types import SimpleNamespace

    with pytest.raises(ValueError, match="whole model on each device .*, got FSDPStrategy"):
        NeuralCollapseCallback().setup(SimpleNamespace(strategy=FSDPStrategy()), None, "fit")


def test_a_training_that_diverges_gets_a_warning_and_continues(tmp_path):
    module = make()
    module.configure_optimizers = lambda: torch.optim.SGD(module.parameters(), lr=1e38)
    fitted = trainer(tmp_path, NeuralCollapseCallback(), max_epochs=2)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fitted.fit(module, loader(0))
    assert any("no collapse metrics in this epoch" in str(warning.message) for warning in caught)
    assert fitted.current_epoch == 2


def fit_on_two(rank: int, folder: str) -> None:
    """One of the two processes of DDP: Lightning joins the group that is there."""
    from lightning.fabric.plugins.environments import LightningEnvironment

    class Environment(LightningEnvironment):
        creates_processes_externally = True
        main_address, main_port = "127.0.0.1", 0

        def world_size(self):
            return 2

        def global_rank(self):
            return rank

        def local_rank(self):
            return rank

        def set_world_size(self, size):
            pass

        def set_global_rank(self, rank):
            pass

    strategy = lightning.strategies.DDPStrategy(cluster_environment=Environment(), process_group_backend="gloo")
    module = make()
    fitted = trainer(folder, NeuralCollapseCallback(), strategy=strategy, devices=2)
    fitted.fit(module, loader(0, shuffle=True), loader(1))
    values = {key: float(value) for key, value in fitted.callback_metrics.items()}
    torch.save({"values": values, "state": module.state_dict()}, f"{folder}/{rank}.pt")


@pytest.mark.slow
def test_two_processes_measure_all_samples_once(tmp_path):
    on_two(fit_on_two, str(tmp_path))
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert first["values"] == second["values"]
    module = make()
    module.load_state_dict(first["state"])
    expected = collected(module, loader(1)).measure(train=collected(module, loader(0))).metrics
    for split, name in (("train", "train"), ("test", "val")):
        found = {key.removeprefix(f"{name}/"): value for key, value in first["values"].items() if name in key}
        assert found == pytest.approx(expected[split], rel=1e-4, abs=1e-5)


def test_a_module_logs_the_torchmetrics_metric_itself(tmp_path):
    class Logging(type(make())):
        def __init__(self) -> None:
            super().__init__()
            self.all, self.one = NeuralCollapse(3, 4, classifier=self.net[4]), NeuralCollapse(3, 4, only="nc1/cdnv")

        def training_step(self, batch, index):
            features = self.net[:4](batch[0]).detach()
            for metric in (self.all, self.one):
                metric.update(features, batch[1])
            self.log("one", self.one, on_step=False, on_epoch=True)
            return super().training_step(batch, index)

        def on_train_epoch_end(self):
            self.log_dict(self.all.compute())
            self.all.reset()

    fitted = trainer(tmp_path, max_epochs=2)
    fitted.fit(Logging(), loader(0))
    found = fitted.callback_metrics
    assert float(found["one"]) == pytest.approx(float(found["nc1/cdnv"]), rel=1e-6) and "nc3/self_duality" in found
