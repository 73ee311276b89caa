"""The slow, obvious twin of the closed forms: minimize over (W, H̄) itself, and certify what claims to be minimal."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor
from torch.nn import functional as F

from ncflow.theory import Optimum

ClassLosses = Callable[[Tensor], Tensor]  # logits (K, K), row k those of class k -> losses (K,)


def cross_entropy(logits: Tensor) -> Tensor:
    return F.cross_entropy(logits, torch.arange(len(logits)), reduction="none")


def squared_error(logits: Tensor) -> Tensor:
    return (logits - torch.eye(len(logits))).square().sum(1) / 2


def minimum(
    losses: ClassLosses,
    class_counts: Sequence[float],
    *,
    lambda_w: float,
    lambda_h: float,
    num_features: int | None = None,
    nonnegative: bool = False,
    seed: int = 0,
) -> Optimum:
    """The minimum over W and H̄ (K, d) from a random start, d = K by default; `nonnegative` keeps the features so."""
    counts = torch.tensor(class_counts, dtype=torch.float64)
    shape = (len(counts), num_features or len(counts))
    size = shape[0] * shape[1]

    def objective(x: np.ndarray) -> tuple[float, np.ndarray]:
        rows = torch.from_numpy(x).requires_grad_()
        weight, means = rows.view(2, *shape)
        data = counts @ losses(means @ weight.mT) / counts.sum()
        decay = lambda_w / 2 * weight.square().sum() + lambda_h / 2 * counts @ means.square().sum(1)
        (data + decay).backward()
        return (data + decay).item(), rows.grad.numpy()

    start = np.random.default_rng(seed).normal(size=2 * size)
    start[size:] = abs(start[size:]) if nonnegative else start[size:]
    bounds = [(None, None)] * size + [(0 if nonnegative else None, None)] * size
    options = {"maxiter": 20_000, "maxfun": 50_000, "maxcor": 50, "ftol": 0, "gtol": 1e-10}
    found = minimize(objective, start, jac=True, bounds=bounds, options=options)
    return Optimum(*torch.from_numpy(found.x).view(2, *shape), counts)


def support_vectors(class_counts: Sequence[float], *, nonnegative: bool = False, seed: int = 0) -> Optimum:
    """The least ‖W‖² + Σ n_k‖h_k‖² under (w_y - w_c)·h_y >= 1 for every c != y, by quadratic programming.

    With `nonnegative` under h >= 0, too.
    """
    counts = np.array(class_counts, dtype=float)
    k = len(counts)
    pairs = [(y, c) for y in range(k) for c in range(k) if c != y]
    decay = np.concatenate([np.ones((k, k)), np.repeat(counts[:, None], k, 1)]).ravel()

    def margins(x: np.ndarray) -> np.ndarray:
        weight, means = x.reshape(2, k, k)
        return np.array([(weight[y] - weight[c]) @ means[y] - 1 for y, c in pairs])

    def slopes(x: np.ndarray) -> np.ndarray:
        weight, means = x.reshape(2, k, k)
        jacobian = np.zeros((len(pairs), 2, k, k))
        for row, (y, c) in zip(jacobian, pairs, strict=True):
            row[0, y], row[0, c], row[1, y] = means[y], -means[y], weight[y] - weight[c]
        return jacobian.reshape(len(pairs), -1)

    start = np.random.default_rng(seed).normal(size=2 * k * k)
    if nonnegative:  # near the axes: from elsewhere a class may be left without one
        start[k * k :] = 0.1 * abs(start[k * k :]) + np.eye(k).ravel()
    found = minimize(
        lambda x: (decay @ x**2 / 2, decay * x),
        start,
        jac=True,
        bounds=[(None, None)] * (k * k) + [(0 if nonnegative else None, None)] * (k * k),
        method="SLSQP",
        constraints={"type": "ineq", "fun": margins, "jac": slopes},
        options={"maxiter": 1000, "ftol": 1e-14},
    )
    weight, means = torch.from_numpy(found.x).view(2, k, k)
    return Optimum(weight, means, torch.from_numpy(counts))


def defect(losses: ClassLosses, optimum: Optimum, *, lambda_w: float, lambda_h: float) -> float:
    """How far an optimum is from being the global minimum over W and H̄ of any width, relative to the weight decay: 0.

    In X = D^½ Z the problem is convex, data(X) + c‖X‖_* with c = sqrt(λ_W λ_H): minimal exactly when the gradient G of
    the data has spectral norm <= c and ⟨G, X⟩ = -c‖X‖_*. And the factors must cost no more than the nuclear norm.
    """
    counts, c = optimum.class_counts, (lambda_w * lambda_h) ** 0.5
    roots = counts.sqrt().unsqueeze(1)
    x = (roots * optimum.logits).requires_grad_()
    (gradient,) = torch.autograd.grad(counts @ losses(x / roots) / counts.sum(), x)
    nuclear = torch.linalg.matrix_norm(x.detach(), "nuc")
    cost = lambda_w / 2 * optimum.weight.square().sum() + lambda_h / 2 * counts @ optimum.class_means.square().sum(1)
    excess = torch.linalg.matrix_norm(gradient, 2) / c - 1
    slack = (gradient * x.detach()).sum() / c + nuclear
    return max(excess.item(), abs(slack.item()) / max(nuclear.item(), 1), (cost / c - nuclear).abs().item())


def cost(losses: ClassLosses, optimum: Optimum, *, lambda_w: float, lambda_h: float) -> float:
    """The objective of unconstrained features."""
    counts, weight, means = optimum.class_counts, optimum.weight, optimum.class_means
    data = counts @ losses(optimum.logits) / counts.sum()
    return (data + lambda_w / 2 * weight.square().sum() + lambda_h / 2 * counts @ means.square().sum(1)).item()
