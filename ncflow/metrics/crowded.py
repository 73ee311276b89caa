"""Gram matrices of more classes than dimensions, K-1 > d: their errors without a K x K matrix.

No rows (K, d) reach the ideal then, so the distance of two unit Gram matrices is sqrt(2 - 2 cos) without cancellation.
Their inner products need only d x d moments, traces and sums.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ncflow.geometry import seli_product
from ncflow.metrics.blocks import triangle
from ncflow.metrics.frame import Frame

CANCELS = 1e-4  # below this share of its terms, a trace of two moments is computed from triangles


def etf_error(frame: Frame, other: Frame | None = None) -> Tensor:
    """`nc2.etf_error` of G = A Bᵀ for the rows A and B (K, d) of two frames, by default of A Aᵀ."""
    a, b = frame.rows, (other or frame).rows
    product = a.flatten() @ b.flatten() - a.sum(0) @ b.sum(0) / len(a)
    norm = frame.norm * (other or frame).norm
    return _distance(product / norm / (gram_norm(frame, other) * math.sqrt(len(a) - 1)))


def orthogonal_error(frame: Frame) -> Tensor:
    """`nc2.orthogonal_error` of the Gram matrix of rows (K, d)."""
    return _distance(frame.moment.trace() / (gram_norm(frame) * math.sqrt(len(frame.rows))))


def seli_error(frame: Frame, class_counts: Tensor, *, of: str) -> Tensor:
    """`imbalance.seli_error` of the Gram matrix of rows (K, d) to that of SELI's rows, `of` "weight" or "means"."""
    product, norm = seli_product(frame.rows, class_counts, of=of)
    return _distance(product / frame.norm.square() / (norm * gram_norm(frame)))


def gram_norm(frame: Frame, other: Frame | None = None) -> Tensor:
    """‖A Bᵀ‖_F for the scaled rows A and B of two frames, by default ‖A Aᵀ‖_F: its square is tr(AᵀA BᵀB)."""
    if other is None:
        return torch.linalg.matrix_norm(frame.moment)
    product = (frame.moment * other.moment).sum()
    if bool(product > CANCELS * gram_norm(frame) * gram_norm(other)):
        return product.sqrt()
    left, right = (triangle(lambda rows: rows, each.rows) / each.norm for each in (frame, other))
    return torch.linalg.matrix_norm(left @ right.mT)


def _distance(cosine: Tensor) -> Tensor:
    return (2 - 2 * cosine).clamp(min=0).sqrt()
