"""Made-up run folders, and runs that hold the data of every figure."""

from __future__ import annotations

import pytest
import torch
from run_folders import make_run, three_heads, three_heads_two_seeds, write_run

from ncflow.metrics import METRICS
from ncflow.metrics.table import LAYER_METRICS
from ncflow.runs.reader import Run, load_runs

__all__ = ["make_run", "three_heads", "three_heads_two_seeds"]
LAYERS = ("stem", "layer1", "layer2")


@pytest.fixture(scope="session")
def complete_runs(tmp_path_factory: pytest.TempPathFactory) -> list[Run]:
    """Two heads and two losses; the linear head has two seeds. Logits, layers and every metric. Read only."""
    models = tmp_path_factory.mktemp("complete")
    arms = [(head, loss) for head in ("linear", "fixed_etf") for loss in ("ce", "balanced_softmax")]
    folders = [
        write_run(models / f"{head}-{loss}-{seed}", head=head, seed=seed, overrides={"train": {"loss": loss}})
        for head, loss in arms
        for seed in ((0, 1) if head == "linear" else (0,))
    ]
    return [complete(run, seed) for seed, run in enumerate(load_runs(folders))]


def complete(run: Run, seed: int) -> Run:
    """Add made-up logits, metrics of layers, and every other metric."""
    generator = torch.Generator().manual_seed(seed)
    targets, counts = run.dump["targets"], run.dump["class_counts"]
    logits = torch.randn(len(targets), len(counts), generator=generator) + counts.log()
    logits[torch.arange(len(targets)), targets] += 3
    run.dump.update(logits=logits, predictions=logits.argmax(dim=1))
    for analysis in run.analyses:
        for split in ("train", "test"):
            made_up = {name: 0.1 + torch.rand((), generator=generator).item() for name in METRICS}
            analysis[split].update({name: value for name, value in made_up.items() if name not in analysis[split]})
            layers = {
                f"layers/{layer}/{name}": 2.0**-depth for depth, layer in enumerate(LAYERS) for name in LAYER_METRICS
            }
            analysis[split].update(layers)
    return run
