"""Run folders as training writes them, small and made up: features around a simplex ETF, tighter with every epoch."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from ncflow.metrics import METRICS

TIGHTNESS = {"linear": 0.3, "fixed_etf": 0.6, "nearest_etf": 0.9}


def write_run(
    folder: Path,
    *,
    head: str = "linear",
    seed: int = 0,
    epochs: tuple[int, ...] = (3, 6, 9, 12),
    num_classes: int = 10,
    without: tuple[str, ...] = (),
    validation: tuple[float, ...] = (),
    class_counts: tuple[int, ...] = (),
    overrides: dict[str, Any] | None = None,
) -> Path:
    """A finished run folder; `without` names metrics left undefined, `overrides` replaces sections of the config.

    `validation` are balanced accuracies, one per epoch, of a validation part; `class_counts` those of its dump.
    """
    folder.mkdir(parents=True)
    config = resolved_config(folder.name, head, seed) | (overrides or {})
    (folder / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    generator = torch.Generator().manual_seed(seed)
    for number, epoch in enumerate(epochs):
        analysis = made_up_analysis(epoch, TIGHTNESS.get(head, 0.5), generator, without)
        if validation:
            analysis["val"] = analysis["test"] | {"acc/balanced": validation[number]}
        (folder / f"metrics_epoch_{epoch}.json").write_text(json.dumps(analysis), encoding="utf-8")
        dump = made_up_dump(num_classes, TIGHTNESS.get(head, 0.5), generator)
        dump |= {"class_counts": torch.tensor(class_counts)} if class_counts else {}
        torch.save(dump, folder / f"raw_geo_epoch_{epoch}.pt")
    history = [
        {"epoch": e, "loss": 2.3 / (1 + e), "lr": 0.1, "accuracy": 1 - 1 / (1 + e), "seconds": 1.5}
        for e in range(1, epochs[-1] + 1)
    ]
    (folder / "history.json").write_text(json.dumps(history), encoding="utf-8")
    return folder


def resolved_config(name: str, head: str, seed: int) -> dict[str, Any]:
    return {
        "exp_name": name,
        "seed": seed,
        "dataset": {"name": "digits", "imb_type": "exp", "imb_factor": 0.02, "seed": 0},
        "model": {"name": "resnet20", "image_size": 32},
        "head": {"name": head, "temperature": None if head == "linear" else 5.0},
        "train": {"lr": 0.1, "optimizer": "sgd", "weight_decay": 5e-4, "loss": "ce", "epochs": 12, "batch_size": 64},
    }


def made_up_analysis(
    epoch: int, tightness: float, generator: torch.Generator, without: tuple[str, ...]
) -> dict[str, Any]:
    def noise() -> float:
        return 1 + 0.1 * torch.randn((), generator=generator).item()

    progress = 1 - 0.8 ** (epoch * tightness)
    metrics = {
        "acc/overall": 0.5 + 0.4 * progress,
        "acc/balanced": min(1.0, (0.3 + 0.5 * progress) * noise()),
        "acc/few": min(1.0, 0.6 * progress * noise()),
        "acc/tail20": min(1.0, 0.5 * progress * noise()),
        "nc1/pinv": 10 ** (-4 * progress * tightness) * noise(),
        "nc2/etf_error_means": (1 - progress) * noise(),
        "nc3/self_duality": 0.8 * (1 - progress) * noise(),
        "nc4/ncc_mismatch": 0.4 * (1 - progress) * noise(),
        "drift/relative": 0.4 * (1 - tightness) * noise(),
    }
    metrics |= {name: noise() for name, row in METRICS.items() if row.view and name not in metrics}
    kept = {name: value for name, value in metrics.items() if name not in without}
    return {
        "epoch": epoch,
        "overall_acc": metrics["acc/overall"],
        "tail_acc": metrics["acc/tail20"],
        "drift_norm": 0.4,
        "layer_wise_drift": {},
        "lr": 0.1,
        "loss": 2.3 / (1 + epoch),
        "train": kept,
        "test": dict(kept),
    }


def made_up_dump(num_classes: int, tightness: float, generator: torch.Generator) -> dict[str, torch.Tensor]:
    counts = torch.logspace(2.1, 0.5, num_classes).round().long()
    targets = torch.arange(num_classes).repeat_interleave(36)
    chance = (0.35 + 0.6 * tightness) * (counts[targets] / counts.max()) ** (0.3 * (1 - tightness))
    right = torch.rand(len(targets), generator=generator) < chance
    wrong = torch.multinomial(counts.double(), len(targets), replacement=True, generator=generator)
    means = torch.eye(num_classes, 16 + num_classes) - 1 / num_classes
    noise = torch.randn((2, *means.shape), generator=generator) * (1 - tightness) * 0.3
    weight = means + noise[0] + (1 - tightness) * torch.linspace(0, 1, num_classes)[:, None] * means[-1]
    return {
        "predictions": torch.where(right, targets, wrong),
        "targets": targets,
        "drift_vector": means.mean(dim=0),
        "class_means": means + noise[1] + 1,
        "weight": weight,
        "bias": torch.zeros(num_classes),
        "class_counts": counts,
    }


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Path]:
    """`make_run("name", head=…, seed=…)` writes a run folder and returns its path."""
    return lambda name, **options: write_run(tmp_path / "models" / name, **options)


@pytest.fixture(scope="session")
def three_heads(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Read only: every test shares them."""
    models = tmp_path_factory.mktemp("models")
    return [write_run(models / f"digits-{head}", head=head) for head in TIGHTNESS]


@pytest.fixture(scope="session")
def three_heads_two_seeds(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Read only: every test shares them."""
    models = tmp_path_factory.mktemp("models")
    return [write_run(models / f"digits-{head}-{seed}", head=head, seed=seed) for head in TIGHTNESS for seed in (0, 1)]
