"""An epoch of training: ncflow's loop against the usual one with PIL, and against the bare steps that are its limit.

ResNet-18 for 32x32 images, batches of 256, random crops and flips, SGD with momentum, on the long tail of Fashion-MNIST
(digits where its package is missing). One call is an epoch of two batches; images per second are below the table. The
usual loop opens every image with PIL in the worker processes of a DataLoader and trains in float32 (`baselines/
pil_loop.py`). The bare steps are forward, backward and optimizer on batches that are on the device already, augmented
and in the layout of the loop; the last case is of bare steps alone, with an allocator that keeps the memory of the step
before, as `ncflow train` has it, and with one that gives it back. Each side runs in a process of its own. The results
are mean losses of an epoch from the same weights: that of the bare steps is the same number, that of the usual loop,
which draws another order and other crops, is near it.

Predicted: on a CPU with bfloat16 instructions 4 times the usual loop, by precision and layout alike; the loop's own
work, augmentation and a look at every loss, 1 to 2 % of a step; 230,000 page faults of the default allocator 0.5 s of
system time in a step of 1.3 s.
Came, on two cores with AVX512-BF16 and without AMX: bare steps in bfloat16 run at nine tenths of what this CPU
multiplies in bfloat16 at all (415 GFLOP/s in a square product, 157 in float32), so 4 times the usual loop is out of its
reach. The page faults cost 0.5 of 5.3 CPU seconds in a step; to keep the memory leaves few of 215,000 and takes a
tenth more of it.
"""

from __future__ import annotations

import io
import os
import statistics
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F

from benchmarks.frame import DEVICE, Case, run
from ncflow.data import Batches, Snapshot, load_batches, longtail_counts
from ncflow.data.published import DEBIAN_FASHION_MNIST
from ncflow.nn import Classifier, LinearHead, create_backbone, create_loss
from ncflow.training import Analysis, Objective, Splits, fit, keep_freed_memory, resolve_precision
from ncflow.training.hardware import autocast

Call = Callable[[], Any]
SIZE, K, BATCH = 32, 10, 256
STEPS = 2 if DEVICE.type == "cpu" else 100
QUICK = 0.25  # one batch that is not full
WORKERS = min(8, os.cpu_count() or 1)
FACTOR = 0.01
ENDLESS = 10**9  # epochs
LEAST = {"bf16": 4.0, "fp32": 1.1}  # times the usual loop
NEAR, SAME = 0.1, 1e-5  # relative differences of losses


def cases(quick: bool) -> list[Case]:
    """Both precisions against the usual loop and against their limit; the quick one is small, not fast."""
    name, steps = ("resnet20", QUICK) if quick else ("resnet18", STEPS)
    auto = resolve_precision("auto", DEVICE)
    precisions = dict.fromkeys((auto, "fp32"))
    usual = [against_usual(name, steps, precision) for precision in precisions]
    if quick:
        return [replace(usual[0], least_ratio=None)]
    limits = [against_limit(name, steps, precision) for precision in precisions]
    if DEVICE.type != "cpu":
        return [*usual, *limits]
    careful, careless = (partial(bare_steps, name, steps, auto, keep=keep) for keep in (True, False))
    kept = Case(f"{name} {auto}, memory kept against given back", careful, careless, SAME, apart=True)
    return [*usual, *limits, kept]


def against_usual(name: str, steps: float, precision: str) -> Case:
    sides = partial(ours, name, steps, precision), partial(usual_loop, name, steps)
    return Case(f"{name} {precision} against the usual loop", *sides, NEAR, apart=True, least_ratio=LEAST[precision])


def against_limit(name: str, steps: float, precision: str) -> Case:
    sides = partial(ours, name, steps, precision), partial(bare_steps, name, steps, precision)
    return Case(f"{name} {precision} against bare steps", *sides, SAME, apart=True, least_ratio=0.95)


def findings(rows: list[dict[str, Any]]) -> str:
    """Images per second of both sides, and ncflow's share of the limit."""
    lines = []
    for row in rows:
        number = num_images(STEPS if row["case"].startswith("resnet18") else QUICK)
        rates = {side: number / statistics.median(seconds) for side, seconds in row["seconds"].items()}
        lines.append(f"{row['case']}: {rates['ours']:.0f} against {rates['baseline']:.0f} images/s.")
    return "\n".join(f"* {line}" for line in lines)


def ours(name: str, steps: float, precision: str) -> Call:
    """An epoch of `fit`, without analysis."""
    keep_freed_memory()
    train, classifier, optimizer = problem(name, steps)
    records = fit(
        classifier,
        Splits(train, train, torch.bincount(train.targets, minlength=K).tolist()),
        Objective(create_loss("ce")),
        optimizer,
        epochs=ENDLESS,
        analysis=Analysis(every=ENDLESS),
        precision=precision,
    )
    return lambda: next(records).loss


def bare_steps(name: str, steps: float, precision: str, *, keep: bool = True) -> Call:
    """The same steps on batches that need nothing more done to them."""
    if keep:
        keep_freed_memory()
    train, classifier, optimizer = problem(name, steps)
    classifier.to(memory_format=torch.channels_last).train()
    batches = [(x.contiguous(memory_format=torch.channels_last), y) for x, y in train.shuffled(1)]

    def call() -> float:
        total = torch.zeros((), device=DEVICE)
        for images, targets in batches:
            with autocast(precision, DEVICE):
                logits = classifier(images).logits
            loss = F.cross_entropy(logits, targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.detach() * len(targets)
        return total.item() / train.num_samples

    return call


def usual_loop(name: str, steps: float) -> Call:
    from benchmarks.baselines.pil_loop import Pictures, pil_epoch  # imports torchvision, as only this side does

    train, classifier, optimizer = problem(name, steps)
    with images(steps) as snapshot:
        files = [Image.open(io.BytesIO(content)).convert("L") for content in snapshot.encoded_images("train")]
    pixels = torch.from_numpy(np.stack([np.asarray(file) for file in files]))
    mean, std = float(train.pixel_mean[0]), float(train.pixel_std[0])
    return pil_epoch(
        lambda batch: classifier.train()(batch).logits,
        Pictures(pixels, train.targets.cpu(), mean, std, SIZE),
        optimizer,
        batch_size=BATCH,
        num_workers=WORKERS if steps > 1 else 0,
        device=DEVICE,
    )


def problem(name: str, steps: float) -> tuple[Batches, Classifier, torch.optim.Optimizer]:
    """Batches of the training split, a classifier on the device, and its optimizer."""
    torch.manual_seed(0)
    with images(steps) as snapshot:
        train = load_batches(snapshot, "train", image_size=SIZE, batch_size=BATCH, device=DEVICE, augment="crop_flip")
    backbone = create_backbone(name, image_size=SIZE)
    classifier = Classifier(backbone, LinearHead(backbone.num_features, K)).to(DEVICE)
    return train, classifier, torch.optim.SGD(classifier.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-3)


@contextmanager
def images(steps: float) -> Iterator[Snapshot]:
    """A snapshot of as many images as `steps` batches take, on disk while it is read."""
    name = "fmnist" if DEBIAN_FASHION_MNIST.exists() and steps > 1 else "digits"  # its test split takes seconds
    with tempfile.TemporaryDirectory() as folder:
        choices = {"imb_factor": FACTOR, "samples_per_class": largest_class(steps), "min_samples": 1}
        yield Snapshot.create(Path(folder, name), name=name, **choices)


def largest_class(steps: float) -> int:
    """Samples of the most frequent class when all together fill `steps` batches, nearly."""
    sizes = range(1, int(BATCH * steps))
    return max(n for n in sizes if sum(longtail_counts(n, K, imb_factor=FACTOR, n_min=1)) <= BATCH * steps)


def num_images(steps: float) -> int:
    return sum(longtail_counts(largest_class(steps), K, imb_factor=FACTOR, n_min=1))


if __name__ == "__main__":
    print(f"precision auto is {resolve_precision('auto', DEVICE)} here")
    run(cases, findings)
