"""Class counts and sample indices: exact, seeded, nested, and never silently empty."""

from __future__ import annotations

import re
from fractions import Fraction

import numpy as np
import pytest

from ncflow.data.longtail import PROFILES, hold_out, longtail_counts, longtail_indices, sample_indices, tail_counts

FACTORS = (1, 0.5, 0.2, 0.1, 0.05, 0.02, 0.01, 0.005, 0.002, 0.001)


def exact_exponential_counts(n_max: int, num_classes: int, imb_factor: float) -> list[int]:
    """Twin of the exp profile in integers: the largest c with c^(K-1) <= n_max^(K-1) · factor^k."""
    factor, power = Fraction(str(imb_factor)), num_classes - 1
    counts = []
    for k in range(num_classes):
        count = round(n_max * imb_factor ** (k / power)) + 1
        while Fraction(count) ** power > Fraction(n_max) ** power * factor**k:
            count -= 1
        counts.append(count)
    return counts


@pytest.mark.parametrize("imb_factor", FACTORS)
@pytest.mark.parametrize(("n_max", "num_classes"), [(5000, 10), (6000, 10), (1000, 4), (1000, 100), (1280, 11)])
def test_exponential_counts_are_exact(n_max, num_classes, imb_factor):
    expected = exact_exponential_counts(n_max, num_classes, imb_factor)
    assert longtail_counts(n_max, num_classes, imb_factor=imb_factor) == expected


def test_long_tailed_fashion_mnist_has_its_known_counts():
    assert longtail_counts(6000, 10) == [6000, 3596, 2156, 1292, 774, 464, 278, 166, 100, 60]


@pytest.mark.parametrize("imb_type", PROFILES)
@pytest.mark.parametrize("imb_factor", FACTORS)
def test_every_profile_falls_from_n_max(imb_type, imb_factor):
    counts = longtail_counts(2000, 7, imb_type=imb_type, imb_factor=imb_factor)
    assert len(counts) == 7 and counts[0] == 2000
    assert counts == sorted(counts, reverse=True)
    assert counts[-1] == (2000 if imb_type == "none" else round(2000 * imb_factor))


@pytest.mark.parametrize("imb_type", PROFILES)
def test_factor_one_is_balanced(imb_type):
    assert longtail_counts(50, 5, imb_type=imb_type, imb_factor=1) == [50] * 5


def test_step_makes_the_second_half_rare_and_leaves_the_middle_class_frequent():
    assert longtail_counts(100, 4, imb_type="step", imb_factor=0.1) == [100, 100, 10, 10]
    assert longtail_counts(100, 5, imb_type="step", imb_factor=0.1) == [100, 100, 100, 10, 10]


@pytest.mark.parametrize("imb_type", ["exp", "step"])
@pytest.mark.parametrize("n_max", [3, 7, 143, 500, 6000])
def test_an_empty_class_is_named_and_the_factor_to_try_works(imb_type, n_max):
    with pytest.raises(ValueError, match=r"class .*9 without a sample") as error:
        longtail_counts(n_max, 10, imb_type=imb_type, imb_factor=0.5 / n_max)
    suggested = float(str(error.value).rsplit(" ", 1)[1])
    assert longtail_counts(n_max, 10, imb_type=imb_type, imb_factor=suggested)[-1] == 1


@pytest.mark.parametrize("imb_factor", [0, -0.5, 1.5, -1, float("nan")])
def test_a_factor_out_of_range_is_refused(imb_factor):
    with pytest.raises(ValueError, match=r"imb_factor must be in \(0, 1\]"):
        longtail_counts(100, 10, imb_factor=imb_factor)


def test_an_unknown_profile_is_refused_with_the_nearest_spelling():
    with pytest.raises(ValueError, match="Did you mean 'step'"):
        longtail_counts(100, 10, imb_type="stpe")


@pytest.fixture
def targets():
    return np.random.RandomState(0).permutation(np.repeat(np.arange(5), [40, 30, 30, 20, 10]))


@pytest.mark.parametrize("seed", range(3))
def test_the_asked_number_of_each_class_is_chosen(targets, seed):
    counts = [25, 20, 9, 3, 1]
    indices = sample_indices(targets, counts, seed=seed)
    assert np.bincount(targets[indices]).tolist() == counts
    assert (np.diff(indices) > 0).all()


def test_indices_equal_those_of_an_obvious_loop(targets):
    chosen = []
    for k, count in enumerate([25, 20, 9, 3, 1]):
        of_class = [i for i, target in enumerate(targets) if target == k]
        chosen += [int(i) for i in np.random.RandomState([4, k]).permutation(of_class)[:count]]
    assert sample_indices(targets, [25, 20, 9, 3, 1], seed=4).tolist() == sorted(chosen)


def test_a_split_is_the_same_for_good():
    assert sample_indices([0, 1] * 10, [4, 2], seed=0).tolist() == [6, 8, 9, 12, 14, 19]


def test_a_class_gives_what_it_has_where_more_is_asked_for(targets):
    indices = sample_indices(targets, [100] * 5, seed=0)
    assert indices.tolist() == list(range(len(targets)))


def test_another_seed_chooses_other_samples(targets):
    first, second = (sample_indices(targets, [20] * 5, seed=seed) for seed in (0, 1))
    assert first.tolist() != second.tolist()


@pytest.mark.parametrize("imb_type", ["exp", "step"])
def test_a_smaller_factor_keeps_a_subset(targets, imb_type):
    larger, smaller = (
        longtail_indices(targets, 5, imb_type=imb_type, imb_factor=factor, seed=3, n_max=20) for factor in (0.5, 0.1)
    )
    assert set(smaller) < set(larger)


def test_native_imbalance_keeps_every_sample(targets):
    assert longtail_indices(targets, 5, imb_type="exp", imb_factor=-1, seed=0).tolist() == list(range(130))


def test_a_class_without_samples_is_named():
    with pytest.raises(ValueError, match="class 1 has no sample"):
        sample_indices([0, 0, 2], [1, 1, 1], seed=0)


def test_a_target_without_a_count_is_refused():
    with pytest.raises(ValueError, match="got target 2"):
        sample_indices([0, 1, 2], [1, 1], seed=0)


@pytest.mark.parametrize("imb_type", ["exp", "step"])
def test_min_samples_fills_only_classes_that_would_be_empty(imb_type):
    shares = PROFILES[imb_type](10, 0.001)
    counts = longtail_counts(143, 10, imb_type=imb_type, imb_factor=0.001, n_min=1)
    assert counts == [max(int(143 * share + 1e-9), 1) for share in shares]
    with pytest.raises(ValueError, match="min_samples must be between 0 and 143, those of .*; got 144"):
        longtail_counts(143, 10, n_min=144)


def test_the_number_of_samples_per_class_scales_the_whole_profile():
    targets = np.arange(1000) % 10
    for imb_type, imb_factor in (("exp", 0.1), ("step", 0.1), ("none", 1.0)):
        options = {"imb_type": imb_type, "imb_factor": imb_factor}
        indices = longtail_indices(targets, 10, seed=0, n_max=40, **options)
        assert np.bincount(targets[indices]).tolist() == longtail_counts(40, 10, **options)
        assert set(indices) <= set(longtail_indices(targets, 10, seed=0, **options))


def test_the_number_of_samples_per_class_caps_a_native_imbalance(targets):
    indices = longtail_indices(targets, 5, imb_type="exp", imb_factor=-1, seed=0, n_max=25)
    assert np.bincount(targets[indices]).tolist() == [25, 25, 25, 20, 10]


@pytest.mark.parametrize("n_max", [0, 41])
def test_more_samples_per_class_than_there_are_or_none_is_refused(targets, n_max):
    with pytest.raises(ValueError, match=f"between 1 and 40, those of the largest class; got {n_max}"):
        longtail_indices(targets, 5, imb_type="exp", imb_factor=0.5, seed=0, n_max=n_max)


@pytest.mark.parametrize("fraction", [0.01, 0.1, 0.25, 0.9, 0.99])
@pytest.mark.parametrize("seed", range(3))
def test_every_class_gives_its_share_to_the_part_that_is_held_out(targets, fraction, seed):
    rest, held_out = hold_out(targets, 5, fraction=fraction, seed=seed)
    assert sorted([*rest, *held_out]) == list(range(len(targets)))
    assert (np.diff(rest) > 0).all() and (np.diff(held_out) > 0).all()
    sizes = [40, 30, 30, 20, 10]
    assert np.bincount(targets[held_out]).tolist() == [min(max(round(fraction * n), 1), n - 1) for n in sizes]


def test_a_class_of_one_sample_keeps_it():
    rest, held_out = hold_out([0, 0, 0, 1], 2, fraction=0.5, seed=0)
    assert 3 in rest and len(held_out) == 2


def test_what_is_held_out_is_the_seeds_choice(targets):
    first, again, other = (hold_out(targets, 5, fraction=0.2, seed=seed)[1].tolist() for seed in (0, 0, 1))
    assert first == again != other


@pytest.mark.parametrize("fraction", [0, 1, -0.1, float("nan")])
def test_a_fraction_that_leaves_a_part_empty_is_refused(targets, fraction):
    with pytest.raises(ValueError, match=r"fraction to hold out must be in \(0, 1\)"):
        hold_out(targets, 5, fraction=fraction, seed=0)


SHORT = np.repeat([0, 1, 2], [5, 200, 40])  # N // K = 81


@pytest.mark.parametrize("imb_factor", [0.02, 0.5, 1.0])
def test_a_class_too_small_for_its_part_is_named_with_a_remedy(imb_factor):
    with pytest.raises(ValueError, match="class ant has 5 samples of 81") as error:
        tail_counts(SHORT, 3, imb_type="exp", imb_factor=imb_factor, names=["ant", "bee", "cow"])
    assert "dataset.imb_factor=-1" in str(error.value)
    assert ("class_order=frequency" in str(error.value)) == (imb_factor == 0.02)
    most = int(re.search(r"samples_per_class=(\d+)", str(error.value))[1])
    n_min = 1 if "min_samples=1" in str(error.value) else 0
    counts = tail_counts(SHORT, 3, imb_type="exp", imb_factor=imb_factor, n_max=most, n_min=n_min)
    assert all(counts <= np.bincount(SHORT))
    with pytest.raises(ValueError):
        tail_counts(SHORT, 3, imb_type="exp", imb_factor=imb_factor, n_max=most + 1, n_min=n_min)


@pytest.mark.parametrize("seed", range(60))
def test_the_advised_size_is_the_largest_that_every_class_can_give(seed):
    random = np.random.RandomState(seed)
    num_classes = random.randint(2, 7)
    targets = np.repeat(np.arange(num_classes), random.randint(1, 60, num_classes))
    how = {"imb_type": random.choice(list(PROFILES)), "imb_factor": random.choice([1.0, 0.5, 0.1, 0.02])}
    how["order"] = random.permutation(num_classes).tolist()
    try:
        tail_counts(targets, num_classes, **how)
    except ValueError as error:
        if not (found := re.search(r"samples_per_class=(\d+)( with dataset.min_samples=1)?", str(error))):
            return  # a class would be left without a sample, which min_samples helps
        how["n_min"] = 1 if found[2] else 0
        counts = tail_counts(targets, num_classes, n_max=int(found[1]), **how)
        assert all(counts <= np.bincount(targets)) and min(counts) >= 1
        with pytest.raises(ValueError):
            tail_counts(targets, num_classes, n_max=int(found[1]) + 1, **how)


@pytest.mark.parametrize("order", [[0, 1, 2], [2, 0, 1]])
def test_the_class_that_would_be_empty_is_named(order):
    names = ["ant", "bee", "cow"]
    with pytest.raises(ValueError, match=f"leaves class {names[order[-1]]} without a sample"):
        tail_counts(np.repeat([0, 1, 2], 10), 3, imb_type="exp", imb_factor=0.02, order=order, names=names)
    with pytest.raises(ValueError, match="class bee has no training sample"):
        tail_counts(np.repeat([0, 2], 10), 3, imb_type="exp", imb_factor=0.5, order=order, names=names)


@pytest.mark.parametrize("size", [89, 90, 99])
def test_a_class_may_lack_a_tenth(size):
    targets = np.repeat([0, 1, 2], [size, 105, 300 - 105 - size])
    if size < 90:
        with pytest.raises(ValueError, match="the tail cannot be cut"):
            tail_counts(targets, 3, imb_type="step", imb_factor=0.5)
    else:
        assert tail_counts(targets, 3, imb_type="step", imb_factor=0.5) == [100, 100, 50]


@pytest.mark.parametrize("seed", range(3))
def test_the_order_of_classes_says_which_become_rare(seed):
    order = np.random.RandomState(seed).permutation(5).tolist()
    targets = np.repeat(np.arange(5), 50)
    usual = tail_counts(targets, 5, imb_type="exp", imb_factor=0.1)
    turned = tail_counts(targets, 5, imb_type="exp", imb_factor=0.1, order=order)
    assert [turned[k] for k in order] == usual


def test_more_classes_than_memory_holds_are_refused():
    with pytest.raises(ValueError, match="num_classes must be a whole number"):
        longtail_counts(100, 2**63)
