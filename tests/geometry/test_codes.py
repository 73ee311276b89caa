"""Softmax codes reach their bounds, alike on every machine, and stay on disk; every frame has unit rows."""

from __future__ import annotations

import math

import numpy as np
import pytest
import references
import torch
from torch.nn import functional as F

from ncflow.geometry import FRAMES, code_bound, codes, orthogonal_frame, seli_frame, simplex_etf, softmax_code
from ncflow.geometry.code_files import load_code, store_code
from ncflow.lookup import takes

SEEDS = range(3)
SIMPLEX = [(2, 1), (2, 9), (5, 4), (10, 64)]  # (K, d), K <= d+1
ORTHOPLEX = [(6, 4), (7, 4), (8, 4), (20, 10), (100, 64), (1000, 512)]  # d+1 < K <= 2d
DESCENT = [(10, 4), (24, 3), (13, 6)]  # K > 2d


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """A home without codes, and no codes in memory."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    codes._code.cache_clear()
    yield tmp_path
    codes._code.cache_clear()


def gaussian(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def unit(*shape: int, seed: int = 0) -> torch.Tensor:
    return F.normalize(gaussian(*shape, seed=seed), dim=1)


def cosine_of(num_classes: int, num_features: int, seed: int = 0) -> float:
    return codes.largest_cosine(softmax_code(num_classes, num_features, seed=seed))


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("num_classes, num_features", SIMPLEX)
def test_for_few_classes_a_code_is_the_simplex_etf(num_classes, num_features, seed):
    code = softmax_code(num_classes, num_features, seed=seed)
    assert torch.equal(code, simplex_etf(num_classes, num_features, dtype=torch.float64))
    assert codes.largest_cosine(code) == pytest.approx(code_bound(num_classes, num_features), abs=1e-14)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("num_classes, num_features", ORTHOPLEX)
def test_up_to_two_classes_a_feature_the_largest_cosine_is_zero(num_classes, num_features, seed):
    code = softmax_code(num_classes, num_features, seed=seed)
    assert code_bound(num_classes, num_features) == 0
    assert abs(codes.largest_cosine(code)) < 1e-14
    torch.testing.assert_close(code.norm(dim=1), torch.ones(num_classes, dtype=torch.float64))
    torch.testing.assert_close(code.sum(0), torch.zeros(num_features, dtype=torch.float64))


def test_two_classes_a_feature_make_an_orthoplex():
    gram = softmax_code(12, 6) @ softmax_code(12, 6).mT
    assert sorted(gram.round(decimals=9).abs().flatten().tolist()) == [0.0] * 120 + [1.0] * 24


@pytest.mark.parametrize("num_classes", [4, 5, 9])
def test_in_two_dimensions_a_code_is_the_regular_polygon(num_classes):
    ideal = math.cos(2 * math.pi / num_classes)
    assert cosine_of(num_classes, 2) == pytest.approx(ideal, abs=1e-14)
    assert code_bound(num_classes, 2) == pytest.approx(ideal, abs=1e-14)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(
    "num_classes, num_features, best", [(10, 4, 1 / 6), (16, 5, 1 / 5), (9, 3, 1 / 3), (12, 3, 5**-0.5)]
)
def test_descent_reaches_the_best_known_codes(num_classes, num_features, best, seed):
    assert cosine_of(num_classes, num_features, seed) == pytest.approx(best, abs=1e-3)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("num_classes, num_features", DESCENT)
def test_no_code_is_below_its_bound_or_worse_than_random(num_classes, num_features, seed):
    found = cosine_of(num_classes, num_features, seed)
    random = codes.largest_cosine(FRAMES["random"](num_classes, num_features, seed=seed))
    assert code_bound(num_classes, num_features) <= found < random - 0.1


@pytest.mark.parametrize("num_classes, num_features", [(16, 5), (27, 6), (275, 22)])
def test_the_bound_is_sharp_for_tight_codes(num_classes, num_features):
    """The Clebsch, Schläfli and McLaughlin configurations, with cosines 1/5, 1/4 and 1/6."""
    best = {16: 1 / 5, 27: 1 / 4, 275: 1 / 6}[num_classes]
    assert code_bound(num_classes, num_features) == pytest.approx(best, abs=1e-12)


def test_the_bound_is_the_root_of_levenshteins_polynomial_and_rises_with_classes():
    for d in (3, 4, 10):
        bounds = [code_bound(k, d) for k in range(2, 3 * d * d)]
        assert bounds == sorted(bounds)
        for k in range(2 * d, d * (d + 3) // 2 + 1):
            s = code_bound(k, d)
            assert d * (1 - s) * (2 + (d + 1) * s) == pytest.approx(k * (1 - d * s * s))


@pytest.mark.slow
def test_a_thousand_classes_in_128_features_are_as_close_as_published():
    assert cosine_of(1000, 128) < 0.084


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("sharpness", [1.0, 30.0])
@pytest.mark.parametrize("block", [3, 4, 100])
def test_the_blockwise_gradient_is_that_of_its_definition(monkeypatch, block, sharpness, seed):
    monkeypatch.setattr(codes, "BLOCK", block)
    rows, step = unit(8, 3, seed=seed), 1e-6
    found = codes.crowding_gradient(rows, sharpness)
    for i in range(8):
        for j in range(3):
            moved = np.stack([rows.numpy(), rows.numpy()])
            moved[0, i, j] += step
            moved[1, i, j] -= step
            up, down = (references.crowding(array, sharpness) for array in moved)
            assert found[i, j].item() == pytest.approx((up - down) / (2 * step), abs=1e-7)


def test_cosines_are_in_memory_for_one_block_at_a_time(monkeypatch):
    shapes = []
    cosines = codes._cosines
    monkeypatch.setattr(codes, "_cosines", lambda *a: (shapes.append((c := cosines(*a)).shape), c)[1])
    codes.crowding_gradient(unit(600, 4), 10.0)
    codes.largest_cosine(unit(600, 4))
    assert shapes == 2 * [(256, 600), (256, 600), (88, 600)]


@pytest.mark.parametrize("num_classes, num_features", DESCENT)
def test_rounding_stays_rounding_in_the_descent(monkeypatch, num_classes, num_features):
    """Another machine sums in another order; here all gradients are off by the last digits."""
    start = unit(num_classes, num_features)
    exact = codes._descend(start)
    gradient, noise = codes.crowding_gradient, iter(range(10_000))

    def rounded(rows, sharpness):
        off = 1 + 1e-15 * gaussian(*rows.shape, seed=next(noise))
        return gradient(rows, sharpness) * off

    monkeypatch.setattr(codes, "crowding_gradient", rounded)
    torch.testing.assert_close(codes._descend(start), exact, atol=1e-9, rtol=0)


@pytest.mark.parametrize("num_classes, num_features", [(7, 4), (10, 4)])
def test_the_seed_alone_decides_a_code_and_leaves_global_randomness(num_classes, num_features):
    state = torch.get_rng_state()
    first = softmax_code(num_classes, num_features, seed=1)
    first.add_(1)  # to a copy
    codes._code.cache_clear()
    again, other = (softmax_code(num_classes, num_features, seed=seed) for seed in (1, 2))
    assert torch.equal(first - 1, again.add(1) - 1)
    assert not torch.allclose(again, other)
    assert torch.equal(torch.get_rng_state(), state)


# --- files ---


def test_a_code_is_searched_once_and_then_read(home, monkeypatch):
    code = softmax_code(10, 4)
    (file,) = (home / ".cache" / "ncflow" / "codes").iterdir()
    codes._code.cache_clear()
    monkeypatch.setattr(codes, "_search", lambda *a: pytest.fail("searched again"))
    assert torch.equal(softmax_code(10, 4), code)
    assert "10x4-seed0" in file.name


@pytest.mark.parametrize("damage", [lambda b: b[:-1], lambda b: b"", lambda b: b[:50] + bytes([b[50] ^ 1]) + b[51:]])
def test_a_damaged_file_is_ignored_and_replaced(home, damage):
    code = softmax_code(10, 4)
    (file,) = (home / ".cache" / "ncflow" / "codes").iterdir()
    whole = file.read_bytes()
    file.write_bytes(damage(whole))
    codes._code.cache_clear()
    assert torch.equal(softmax_code(10, 4), code)
    assert file.read_bytes() == whole


def test_a_folder_that_is_none_is_no_obstacle(home):
    (home / ".cache").write_text("a file where the folder would be")
    assert softmax_code(10, 4).shape == (10, 4)
    assert load_code(10, 4, 0) is None


def test_a_stored_code_has_the_same_bits(home):
    rows = unit(7, 3)
    store_code(rows, 5)
    assert torch.equal(load_code(7, 3, 5), rows)
    assert load_code(3, 7, 5) is None


# --- frames ---


@pytest.mark.parametrize("seed", [None, *SEEDS])
@pytest.mark.parametrize("name", FRAMES)
def test_a_frame_has_unit_rows_that_its_seed_decides(name, seed):
    options = {} if seed is None else {"seed": seed}
    if takes(FRAMES[name], "class_counts"):
        options["class_counts"] = [90, 20, 5, 3, 1]
    for num_features in (3, 5, 8) if name in ("softmax_code", "random") else (5, 8):
        rows = FRAMES[name](5, num_features, **options)
        torch.testing.assert_close(rows.norm(dim=1), torch.ones(5, dtype=torch.float64))
        assert rows.shape == (5, num_features)
        assert torch.equal(FRAMES[name](5, num_features, **options), rows)
        other = FRAMES[name](5, num_features, **{**options, "seed": 77})
        assert not torch.allclose(other, rows)


def test_orthogonal_rows_are_the_axes_or_a_random_basis():
    assert torch.equal(orthogonal_frame(3, 5), torch.eye(3, 5, dtype=torch.float64))
    rows = orthogonal_frame(3, 5, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(rows @ rows.mT, torch.eye(3, dtype=torch.float64))
    with pytest.raises(ValueError, match="num_features >= num_classes, got 3 and 5"):
        orthogonal_frame(5, 3)


@pytest.mark.parametrize("num_features", [4, 5, 9])
@pytest.mark.parametrize("seed", [None, 0, 1])
def test_the_frame_of_seli_has_the_cosines_of_seli(num_features, seed):
    counts = [90, 20, 5, 3, 1]
    weight = F.normalize(seli_frame(counts)[0], dim=1)
    rows = FRAMES["seli"](5, num_features, seed=seed, class_counts=torch.tensor(counts))
    torch.testing.assert_close(rows @ rows.mT, weight @ weight.mT)


def test_seli_of_equal_sizes_is_the_simplex_etf():
    for num_features in (4, 5, 9):
        rows = FRAMES["seli"](5, num_features, class_counts=[7] * 5)
        torch.testing.assert_close(rows, simplex_etf(5, num_features, dtype=torch.float64))


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: softmax_code(3, 1), "num_features >= 2 for more than two classes, got 3 and 1"),
        (lambda: softmax_code(1, 4), "num_classes >= 2"),
        (lambda: code_bound(3, 1), "got 3 and 1"),
        (lambda: softmax_code(10.5, 4), "num_classes must be a whole number"),
        (lambda: FRAMES["seli"](5, 3, class_counts=[1] * 5), "frame seli needs num_features >= num_classes - 1"),
        (lambda: FRAMES["seli"](5, 8), "frame seli needs class_counts"),
        (lambda: FRAMES["seli"](5, 8, class_counts=[5, 0, 1, 1, 1]), "each with samples"),
        (lambda: FRAMES["simplex_etf"](5, 3), "use a wider neck"),
    ],
)
def test_a_frame_that_does_not_exist_is_refused_with_advice(call, message):
    with pytest.raises(ValueError, match=message):
        call()
