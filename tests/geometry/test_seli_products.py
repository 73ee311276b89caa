"""Inner products with SELI: the integral gives those of its matrices, for any class sizes."""

from __future__ import annotations

import pytest
import torch

from ncflow.geometry import seli_frame, seli_product
from ncflow.geometry import seli_products as products

SIZES = {
    "balanced": [7.0] * 12,
    "exponential": [round(1000 / 1.5**k) + 1.0 for k in range(15)],
    "step": [100.0] * 5 + [1.0] * 5,
    "two classes": [90.0, 3.0],
    "extreme": [1e6, 4e3, 4e3, 20.0, 2.0, 1.0],
}


@pytest.mark.parametrize("of", ["weight", "means"])
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", SIZES)
def test_products_and_norms_are_those_of_the_matrices(name, seed, of, monkeypatch):
    monkeypatch.setattr(products, "BATCH", 40)  # several batches of nodes
    counts = torch.tensor(SIZES[name], dtype=torch.float64)
    rows = torch.randn(len(counts), 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    ideal = dict(zip(("weight", "means"), seli_frame(counts), strict=True))[of]
    matrix, centered = ideal @ ideal.mT, rows - rows.mean(0)
    product, norm = seli_product(rows, counts, of=of)
    assert product.item() == pytest.approx((centered @ centered.mT * matrix).sum().item(), rel=1e-10)
    assert norm.item() == pytest.approx(torch.linalg.matrix_norm(matrix).item(), rel=1e-10)


def test_the_order_of_classes_does_not_matter():
    counts, order = torch.tensor(SIZES["extreme"], dtype=torch.float64), torch.tensor([3, 0, 5, 1, 4, 2])
    rows = torch.randn(6, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for of in ("weight", "means"):
        found = seli_product(rows[order], counts[order], of=of)
        torch.testing.assert_close(found, seli_product(rows, counts, of=of), rtol=1e-12, atol=0)
