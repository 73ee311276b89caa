"""Inner products with the SELI geometry of any class sizes, without its K x K matrices.

With A = M D M, M = I - J/K and D = diag(class_counts), SELI's Gram matrices are A^(1/2) of the classifier and A^(-1/2)
of the class means. Both are integrals over t of (t² + A)⁻¹, which is diagonal up to the center: for centered rows R,

    (t² + A)⁻¹ R = D_t (R - 1 r̄ᵀ),   D_t = (t² + D)⁻¹,   r̄ = Σ_k (D_t)_k R_k / Σ_k (D_t)_k

So no eigenvectors are needed. In log t the integrand falls off exponentially on both sides, and the trapezoidal rule
converges exponentially. https://doi.org/10.1137/130932132
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

STEP = 0.28  # of log t: the error of the rule is exp(-π²/STEP), 5e-16
TAIL = 36.0  # beyond the extreme sizes: exp(-36) is 2e-16
BLOCK = 4096  # rows at a time
BATCH = 2**22  # numbers in a batch of nodes


def seli_product(rows: Tensor, class_counts: Tensor, *, of: str) -> tuple[Tensor, Tensor]:
    """⟨R Rᵀ, S⟩ and ‖S‖_F, 0-dim, for rows R (K, d) and SELI's Gram matrix S (K, K) `of` the "weight" or the "means".

    class_counts (K,) are > 0. In float64, at about 260 nodes t, O(Gd) each for G different sizes.
    """
    assert of in ("weight", "means")
    rows, counts = rows.double() - rows.double().mean(0), class_counts.double()
    inverse = 1 / counts
    if of == "weight":
        norm = (counts.sum() * (1 - 1 / len(counts))).sqrt()
    else:
        norm = (inverse.sum() - inverse.square().sum() / inverse.sum()).sqrt()
    sizes, group = torch.unique(counts, return_inverse=True)
    members = torch.zeros_like(sizes).index_add_(0, group, torch.ones_like(counts))
    means = torch.zeros(len(sizes), rows.shape[1], dtype=rows.dtype, device=rows.device).index_add_(0, group, rows)
    means /= members.unsqueeze(1)
    within = torch.zeros_like(sizes)
    for part, of_size in zip(torch.split(rows, BLOCK), torch.split(group, BLOCK), strict=True):
        within.index_add_(0, of_size, (part - means[of_size]).square().sum(1))
    inverse_sizes = members / sizes
    origin = inverse_sizes @ means / inverse_sizes.sum()  # the center at t = 0: differences from it do not cancel
    means -= origin
    total = torch.zeros_like(norm)
    low, high = (0.5 * math.log(float(end)) for end in (sizes[0], sizes[-1]))
    logs = torch.arange(math.ceil((high - low + 2 * TAIL) / STEP)).to(sizes) * STEP + (low - TAIL)
    for t in torch.split(logs.exp().unsqueeze(1), max(1, BATCH // len(sizes))):
        resolvent = 1 / (t.square() + sizes)  # (nodes, G), as all below
        weights = resolvent * members
        centers = weights @ means / weights.sum(1, keepdim=True)
        gaps = means.square().sum(1) - 2 * centers @ means.mT + centers.square().sum(1, keepdim=True)
        squares = within + members * gaps  # Σ ‖R_k - r̄‖² over the classes of a size
        if of == "weight":
            values = (sizes * resolvent * squares).sum(1) - len(rows) * (centers + origin).square().sum(1)
        else:
            values = (resolvent * squares).sum(1)
        total += t.squeeze(1) @ values
    return total * (2 / math.pi * STEP), norm
