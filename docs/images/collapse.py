"""Draw collapse.svg: features of three digits in two dimensions over training, with equal and with unequal classes.

uv run python docs/images/collapse.py
"""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from ncflow import collapse_metrics, sample_indices

CLASSES, EPOCHS = 3, (1, 10, 400)
SIZES = {"100 samples of each class": [100, 100, 100], "100, 5 and 5 samples": [100, 5, 5]}
COLORS = ("#0072B2", "#D55E00", "#009E73")  # apart also for the color-blind


def main() -> None:
    figure, axes = plt.subplots(len(SIZES), len(EPOCHS), figsize=(7, 4.9), layout="constrained")
    for row, (name, sizes) in zip(axes, SIZES.items(), strict=True):
        images, targets = samples(sizes)
        for axis, (epoch, (features, weight)) in zip(row, train(images, targets).items(), strict=True):
            draw(axis, features, targets, weight)
            axis.set_title(f"epoch {epoch}", fontsize=9)
        row[0].set_ylabel(name, fontsize=9)
    with plt.rc_context({"svg.hashsalt": "ncflow", "svg.fonttype": "none"}):
        figure.savefig(Path(__file__).with_suffix(".svg"), metadata={"Date": None})


def samples(sizes: list[int]) -> tuple[Tensor, Tensor]:
    """Pictures (N, 64) and classes (N,), with so many samples of each class."""
    pixels, targets = map(torch.tensor, load_digits(return_X_y=True))
    kept = torch.as_tensor(sample_indices(targets[targets < CLASSES], sizes, seed=0))
    chosen = (targets < CLASSES).nonzero().squeeze(1)[kept]
    return pixels[chosen].float() / 16, targets[chosen]


def train(images: Tensor, targets: Tensor) -> dict[int, tuple[Tensor, Tensor]]:
    """Epoch -> features (N, 2) and rows of the classifier (3, 2)."""
    torch.manual_seed(1)
    body = nn.Sequential(
        nn.Linear(64, 128), nn.BatchNorm1d(128), nn.ReLU(), nn.Linear(128, 128), nn.BatchNorm1d(128), nn.ReLU()
    ).append(nn.Linear(128, 2))
    last = nn.Linear(2, CLASSES, bias=False)
    parameters = [*body.parameters(), *last.parameters()]
    optimizer = torch.optim.SGD(parameters, lr=0.05, momentum=0.9, weight_decay=5e-3)
    found = {}
    for epoch in range(1, max(EPOCHS) + 1):
        body.train()
        for part in torch.randperm(len(targets)).split(32):
            if len(part) > 1:  # a batch norm needs two samples
                optimizer.zero_grad()
                nn.functional.cross_entropy(last(body(images[part])), targets[part]).backward()
                optimizer.step()
        if epoch in EPOCHS:
            with torch.no_grad():
                found[epoch] = body.eval()(images), last.weight.detach().clone()
    return found


def draw(axis: plt.Axes, features: Tensor, targets: Tensor, weight: Tensor) -> None:
    """Features as points, class means as arrows, rows of the classifier as dashed lines, from the mean of the means."""
    means = torch.stack([features[targets == k].mean(0) for k in range(CLASSES)])
    center = means.mean(0)
    scale = (means - center).norm(dim=1).max()
    unit = weight / weight.norm(dim=1).max()
    for k, color in enumerate(COLORS):
        points, mean = (features[targets == k] - center) / scale, (means[k] - center) / scale
        axis.plot(*points.T, ".", color=color, markersize=3, alpha=0.5)
        axis.annotate("", mean.tolist(), (0, 0), arrowprops={"color": color, "width": 1, "headwidth": 6})
        axis.plot(*torch.stack([torch.zeros(2), 1.3 * unit[k]]).T, "--", color=color, linewidth=1)
    found = collapse_metrics(features, targets, weight)
    label = f"nc1/pinv {found['nc1/pinv']:.1g}, etf_error {found['nc2/etf_error_means']:.2f}"
    axis.set(xlim=(-1.8, 1.8), ylim=(-1.8, 1.8), aspect="equal", xticks=[], yticks=[])
    axis.set_xlabel(label, fontsize=8)


if __name__ == "__main__":
    main()
