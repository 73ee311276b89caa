"""What the precision of the input cannot tell apart is no difference, and what it can tell apart stays one."""

from __future__ import annotations

from functools import reduce

import pytest
import torch

from ncflow.metrics import ClassMoments, NeuralCollapse, collapse_metrics, moment_metrics

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
FULL = [torch.float64, torch.float32]
SEEDS = range(4)
MERGED = slice(5, 10)  # classes of one mean: the minority after its collapse
NOT_DEFINED = (
    "nc1/cdnv",
    "nc1/cdnv_medium",
    "nc2/gnc2_log",
    "nc2/gnc2_spread",
    "nc3/etf_gap",
)  # where two means coincide


def draw(seed: int, num_features: int = 64) -> tuple[torch.Tensor, torch.Tensor]:
    """Class means and rows (10, d) of unit length or so."""
    generator = torch.Generator().manual_seed(seed)
    means, weight = torch.randn(2, 10, num_features, generator=generator, dtype=torch.float64) / num_features**0.5
    return means, weight


def samples(means: torch.Tensor, dtype: torch.dtype, seed: int, *, per_class: int = 40):
    """Features that are their class mean, but for one unit in the last place of some numbers."""
    generator = torch.Generator().manual_seed(seed)
    targets = torch.arange(10).repeat_interleave(per_class)
    ulps = torch.randint(-1, 2, (len(targets), means.shape[1]), generator=generator)
    exact = means.to(dtype).double()[targets]
    return (exact * (1 + torch.finfo(dtype).eps * ulps)).to(dtype), targets


def merged(seed: int, num_features: int = 64) -> tuple[torch.Tensor, torch.Tensor]:
    means, weight = draw(seed, num_features)
    means[MERGED] = means[5]
    return means, weight


@pytest.mark.parametrize("num_features", [9, 64, 512])
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_merged_means_have_the_rank_that_is_left(dtype, seed, num_features):
    means, weight = merged(seed, num_features)
    found = collapse_metrics(*samples(means, dtype, seed), weight.to(dtype))
    eps = torch.finfo(dtype).eps
    assert found["nc1/pinv"] < 100 * eps**2
    assert found["nc1/vci"] == pytest.approx((9 - 5) / 9, abs=100 * eps**2)
    assert not found.keys() & set(NOT_DEFINED)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_merged_means_cannot_be_told_apart_by_distance_or_least_squares(dtype, seed):
    """One of five merged classes gets all of their samples; the best output for each of them is 1/5."""
    found = collapse_metrics(*samples(merged(seed)[0], dtype, seed))
    assert found["nc4/ncc_accuracy"] == pytest.approx(0.6)
    square = 100 * torch.finfo(dtype).eps ** 2
    assert found["squared_error/means"] == pytest.approx(0.2, abs=square + 1e-12)
    assert 0 <= found["squared_error/within"] < square + 1e-27


@pytest.mark.parametrize("dtype", DTYPES)
def test_many_samples_do_not_make_merged_means_differ(dtype):
    means, weight = merged(0, 9)
    found = collapse_metrics(*samples(means, dtype, 0, per_class=30_000), weight.to(dtype))
    assert found["nc1/vci"] == pytest.approx((9 - 5) / 9, abs=1e-4)
    assert not found.keys() & set(NOT_DEFINED)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_stream_of_batches_remembers_the_precision(dtype):
    features, targets = samples(merged(0)[0], dtype, 0)
    whole = collapse_metrics(features, targets)
    order = torch.randperm(len(targets), generator=torch.Generator().manual_seed(1))
    metric = NeuralCollapse(10, 64)
    parts = [(features[part], targets[part]) for part in order.split(7)]
    for part in parts:
        metric.update(*part)
    assert metric.moments().eps == torch.finfo(dtype).eps
    merged_parts = reduce(ClassMoments.merge, (ClassMoments.from_features(*part, 10) for part in parts))
    for streamed in (metric.compute(), moment_metrics(merged_parts)):
        assert streamed.keys() <= whole.keys()
        assert streamed["nc1/vci"] == pytest.approx(whole["nc1/vci"], rel=1e-9)


def test_the_coarsest_part_of_a_stream_decides():
    features, targets = samples(draw(0)[0], torch.float64, 0)
    metric = NeuralCollapse(10, 64)
    assert metric.moments().eps == torch.finfo(torch.float64).eps
    for dtype in (torch.float64, torch.float32, torch.float64):
        metric.update(features.to(dtype), targets)
    metric.update(features[:0].half(), targets[:0])  # no numbers, no precision
    assert metric.moments().eps == torch.finfo(torch.float32).eps


@pytest.mark.parametrize(("seed", "num_features"), [*((seed, d) for seed in SEEDS for d in (64, 512)), (0, 2048)])
@pytest.mark.parametrize("dtype, gap", [(torch.float64, 1e-9), (torch.float32, 1e-3), (torch.float16, 1e-2)])
def test_close_means_that_the_precision_tells_apart_stay_apart(dtype, gap, seed, num_features):
    means, weight = draw(seed, num_features)
    means[6] = means[5] + gap * weight[6] / torch.linalg.vector_norm(weight[6])
    features, targets = samples(means, dtype, seed)
    found = collapse_metrics(features, targets, weight.to(dtype))
    exact = collapse_metrics(features.double(), targets, weight.to(dtype).double())
    assert found == exact
    assert found.keys() >= set(NOT_DEFINED)


@pytest.mark.parametrize("dtype", DTYPES)
def test_means_that_all_coincide_have_no_geometry(dtype):
    means, weight = draw(0)
    features, targets = samples(means[:1].expand(10, -1), dtype, 0)
    found = collapse_metrics(features, targets, weight.to(dtype))
    of_means = ("nc1/pinv", "nc1/quotient", "nc2/equinorm_means", "nc2/equiangularity_means", "nc3/alignment")
    assert not found.keys() & {*NOT_DEFINED, *of_means, "nc4/ncc_mismatch", "margin/mean", "margin/min"}


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_mean_in_the_center_points_nowhere(dtype, seed):
    """Once centered it is rounding alone, whose angles are those of a lottery."""
    means, weight = draw(seed)
    opposite = torch.cat([means[:1], -means[:1], means[1:2], -means[1:2], torch.zeros(1, 64)]) + 0.5
    features, targets = samples(opposite.repeat(2, 1), dtype, seed)
    keep = targets < 5
    found = collapse_metrics(features[keep], targets[keep], weight[:5].to(dtype))
    assert not found.keys() & {"nc2/equiangularity_means", "nc2/gnc2_log", "nc3/alignment"}


@pytest.mark.parametrize("dtype", FULL)
def test_merged_rows_of_a_classifier_have_no_single_nearest_etf(dtype):
    means, weight = draw(0)
    features, targets = samples(means, dtype, 0)
    assert "nc3/etf_gap" in collapse_metrics(features, targets, weight.to(dtype))
    weight[MERGED] = weight[5] * (1 + torch.finfo(dtype).eps * torch.arange(5).unsqueeze(1))
    assert "nc3/etf_gap" not in collapse_metrics(features, targets, weight.to(dtype))


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_of_merged_means_each_is_as_near_as_the_others(dtype, seed):
    """A classifier of the nearest mean decides between them by rounding, and does not contradict itself."""
    means, _ = merged(seed)
    features, targets = samples(means, dtype, seed)
    train_means = ClassMoments.from_features(features, targets, 10).means
    bias = -train_means.square().sum(1) / 2
    bias[8] += 1e-3 if dtype in FULL else 0.1
    found = collapse_metrics(features, targets, train_means, bias, train_means=train_means)
    assert found["nc4/ncc_mismatch"] == 0
    assert found["acc/overall"] == 0.6  # all of the merged are taken for class 8


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_feature_in_the_center_has_no_margin(dtype):
    means, _ = draw(0)
    features, targets = samples(means - means.mean(0), torch.float64, 0)
    center = features.mean(0, keepdim=True).expand(3, -1)
    ulps = torch.finfo(dtype).eps * torch.tensor([[0.0], [1.0], [-1.0]])
    rows = torch.cat([features, center * (1 + ulps)]) + 1
    found = collapse_metrics(rows.to(dtype), torch.cat([targets, torch.zeros(3, dtype=torch.long)]), means.to(dtype))
    assert found["margin/min"] >= 0
