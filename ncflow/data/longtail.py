"""How many and which samples each class keeps: pure functions of labels, imbalance profile and seed."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ncflow.checks import check_whole
from ncflow.lookup import lookup

Indices = npt.NDArray[np.int64]

HOLD_OUT_STREAM = 2**31
TOLERATED = 0.1  # share of its requested samples that a class may lack; MNIST's classes differ by this much
NATIVE = -1  # imb_factor of a source that is long-tailed by nature: every sample is kept


def longtail_counts(
    n_max: int,
    num_classes: int,
    *,
    imb_type: str = "exp",
    imb_factor: float = 0.01,
    n_min: int = 0,
    names: Sequence[str] | None = None,
) -> list[int]:
    """Samples to keep of each of the K classes, most frequent first: floor(n_max · share of the class), n_min or more.

    `imb_factor` in (0, 1] is the share of the rarest class (an imbalance of 100 is 0.01). [Cao et al.
    2019](https://arxiv.org/abs/1906.07413). Raises ValueError if a class would be empty. n_min = 1 leaves it one sample
    instead, at a lower imbalance than requested. `names` (K,), most frequent first, are for that message; default:
    their numbers.

    Examples:
        >>> longtail_counts(100, 5, imb_factor=0.01)
        [100, 31, 10, 3, 1]
        >>> longtail_counts(100, 4, imb_type="step", imb_factor=0.1)
        [100, 100, 10, 10]
    """
    profile = lookup(PROFILES, imb_type, "imb_type")
    check_whole(least=-(2**63), most=2**63, n_max=n_max, n_min=n_min)
    check_whole(least=-(2**63), num_classes=num_classes)
    if n_max < 1 or num_classes < 2:
        raise ValueError(f"expected n_max >= 1 and at least 2 classes, got n_max {n_max} and {num_classes} classes")
    if not 0 <= n_min <= n_max:
        raise ValueError(f"min_samples must be between 0 and {n_max}, those of the most frequent class; got {n_min}")
    if not isinstance(imb_factor, int | float) or not 0 < imb_factor <= 1:
        raise ValueError(f"imb_factor must be in (0, 1], or {NATIVE} to keep a source as it is; got {imb_factor}")
    counts = [max(_taken(n_max, share), n_min) for share in profile(num_classes, imb_factor)]
    empty = [str(k) if names is None else names[k] for k, count in enumerate(counts) if count == 0]
    if empty:
        smallest = math.ceil(1e6 / n_max) / 1e6
        raise ValueError(
            f"imb_factor {imb_factor} of at most {n_max} samples per class leaves class {', '.join(empty)} without "
            f"a sample; min_samples 1 gives it one; the smallest imb_factor that keeps every class is {smallest:g}"
        )
    return counts


def sample_indices(targets: Any, counts: Sequence[int], *, seed: int) -> Indices:
    """Indices to keep, ascending: of targets (N,), a random counts[k] of class k, or all if it has fewer.

    Each class has one random order per seed, and its first counts[k] are kept. So smaller counts choose a subset.
    Raises ValueError that names a class without samples.

    Examples:
        >>> sample_indices([0, 1, 0, 1, 1], [2, 1], seed=0)[[0, 1]].tolist()
        [0, 2]
    """
    targets = check_labels(targets, len(counts))
    check_whole(least=0, most=2**32 - 1, seed=seed)
    for count in counts:
        check_whole(least=0, most=2**63, counts=count)
    sizes = np.bincount(targets, minlength=len(counts))
    empty = [str(k) for k in np.flatnonzero(sizes == 0)]
    if empty:
        raise ValueError(f"class {', '.join(empty)} has no sample to choose from")
    members = np.split(np.argsort(targets, kind="stable"), np.cumsum(sizes)[:-1])
    # RandomState, not default_rng: NumPy guarantees that its stream, and so a split, never changes.
    chosen = [
        np.random.RandomState([seed, k]).permutation(of_class)[:count]
        for k, (of_class, count) in enumerate(zip(members, counts, strict=True))
    ]
    return np.sort(np.concatenate(chosen)).astype(np.int64)


def longtail_indices(
    targets: Any,
    num_classes: int,
    *,
    imb_type: str,
    imb_factor: float,
    seed: int,
    n_max: int | None = None,
    n_min: int = 0,
    order: Sequence[int] | None = None,
    names: Sequence[str] | None = None,
) -> Indices:
    """Indices of a long-tailed subset of targets (N,); all of them if `imb_factor` is -1 and `n_max` is None.

    The sizes of the classes are `tail_counts`. A class may have slightly fewer samples.
    """
    targets = check_labels(targets, num_classes)
    counts = tail_counts(
        targets,
        num_classes,
        imb_type=imb_type,
        imb_factor=imb_factor,
        n_max=n_max,
        n_min=n_min,
        order=order,
        names=names,
    )
    if counts is None:
        return np.arange(len(targets), dtype=np.int64)
    return sample_indices(targets, counts, seed=seed)


def tail_counts(
    targets: Any,
    num_classes: int,
    *,
    imb_type: str,
    imb_factor: float,
    n_max: int | None = None,
    n_min: int = 0,
    order: Sequence[int] | None = None,
    names: Sequence[str] | None = None,
) -> list[int] | None:
    """Samples to keep of each of the K classes of targets (N,); None if all samples are kept.

    `n_max` is the number of samples of the most frequent class, by default N // K. With the native imbalance no class
    keeps more. `order` lists the classes from the most frequent to the rarest; default: as they are numbered.
    Raises ValueError that names a class with less than nine tenths of its requested samples. With `n_max` or `n_min`, a
    class must not lack any sample that they request.
    """
    targets = check_labels(targets, num_classes)
    names = [str(k) for k in range(num_classes)] if names is None else names
    sizes = np.bincount(targets, minlength=num_classes)
    if n_max is not None and not 1 <= n_max <= sizes.max():
        raise ValueError(
            f"samples_per_class must be between 1 and {sizes.max()}, those of the largest class; got {n_max}"
        )
    if imb_factor == NATIVE:
        if n_min:
            raise ValueError(f"min_samples {n_min} cannot change the native imbalance, imb_factor {NATIVE}; use 0")
        return None if n_max is None else [n_max] * num_classes
    if without := [names[int(k)] for k in np.flatnonzero(sizes == 0)]:
        raise ValueError(
            f"the tail cannot be cut: class {', '.join(without[:5])} has no training sample; keep the classes as they "
            f"are with dataset.imb_factor={NATIVE}, or leave the empty classes out"
        )
    places = range(num_classes) if order is None else order
    profile = longtail_counts(
        n_max or len(targets) // num_classes,
        num_classes,
        imb_type=imb_type,
        imb_factor=imb_factor,
        n_min=n_min,
        names=[names[k] for k in places],
    )
    counts = [0] * num_classes
    for k, count in zip(places, profile, strict=True):
        counts[k] = count
    _refuse_if_short(sizes, [n_min] * num_classes if n_max is None else counts, names)
    short = [k for k in range(num_classes) if sizes[k] < (1 - TOLERATED) * counts[k]]
    if short:
        shares = dict(zip(places, PROFILES[imb_type](num_classes, imb_factor), strict=True))
        raise ValueError(_how_to_cut(sizes, counts, shares, names, short))
    return counts


def _how_to_cut(
    sizes: Indices, counts: Sequence[int], shares: Mapping[int, float], names: Sequence[str], short: Sequence[int]
) -> str:
    """The error message for classes with fewer samples than the profile requests."""
    found = ", ".join(f"class {names[k]} has {sizes[k]} samples of {counts[k]}" for k in short[:5])
    more = f" and {len(short) - 5} more classes" if len(short) > 5 else ""
    most = min(int(sizes.max()), *(_most_of(int(sizes[k]), share) for k, share in shares.items()))
    rarest = " with dataset.min_samples=1" if _taken(most, min(shares.values())) < 1 else ""
    pairs = zip(sorted(sizes.tolist(), reverse=True), sorted(counts, reverse=True), strict=True)
    helps = all(size >= (1 - TOLERATED) * count for size, count in pairs)
    order = "; dataset.class_order=frequency makes the small classes the rare ones" if helps else ""
    return (
        f"the tail cannot be cut: {found}{more} that the profile requests; keep the classes as they are with "
        f"dataset.imb_factor={NATIVE}, or use dataset.samples_per_class={most}{rarest}, the most that every "
        f"class can give{order}"
    )


def _taken(n_max: int, share: float) -> int:
    """floor(n_max · share). A product below an integer by float error alone counts as it: 1000 · 0.001^(1/3)."""
    return math.floor(n_max * share * (1 + 1e-12))


def _most_of(size: int, share: float) -> int:
    """The largest n_max for which a class of this size can give its share."""
    most = math.ceil((size + 1) / share)
    while _taken(most, share) > size:
        most -= 1
    return most


def hold_out(targets: Any, num_classes: int, *, fraction: float, seed: int) -> tuple[Indices, Indices]:
    """Indices (rest, held out), ascending: of each class of targets (N,) a random round(fraction · its size) held out.

    This makes a validation part before the tail is cut, so it is as balanced as the source. A class of two or more
    samples gives at least one and keeps at least one. A single sample is kept.
    Raises ValueError if `fraction` is outside (0, 1).
    """
    if not 0 < fraction < 1:
        raise ValueError(f"the fraction to hold out must be in (0, 1), got {fraction}")
    check_whole(least=0, most=2**32 - 1, seed=seed)
    targets = check_labels(targets, num_classes)
    sizes = np.bincount(targets, minlength=num_classes)
    counts = [min(max(round(fraction * int(size)), 1), max(int(size) - 1, 0)) for size in sizes]
    # A separate random stream, because the tail of the rest uses the stream of the seed.
    held_out = sample_indices(targets, counts, seed=(seed + HOLD_OUT_STREAM) % 2**32)
    rest = np.setdiff1d(np.arange(len(targets), dtype=np.int64), held_out)
    return rest, held_out


def check_labels(targets: Any, num_classes: int) -> Indices:
    """Labels (N,) of K classes as int64. Raises ValueError for anything else."""
    check_whole(num_classes=num_classes)
    try:
        labels = np.asarray(targets)
    except ValueError:
        labels = np.empty((0, 0))
    if labels.ndim != 1 or not (labels.dtype.kind in "iu" or labels.size == 0):
        raise ValueError(f"targets must be whole numbers (N,), got {labels.dtype} of shape {labels.shape}")
    for label in (labels.min(), labels.max()) if labels.size else ():
        if not 0 <= label < num_classes:
            raise ValueError(f"expected targets below {num_classes}, numbered from 0; got target {label}")
    return labels.astype(np.int64)


def _refuse_if_short(sizes: Sequence[int] | Indices, asked: Sequence[int], names: Sequence[str]) -> None:
    """Raise if a class has fewer samples than the user requested."""
    short = [
        f"class {name} for {n} of its {size}" for name, n, size in zip(names, asked, sizes, strict=True) if n > size
    ]
    if short:
        raise ValueError(f"samples_per_class and min_samples ask {', '.join(short)} samples; lower them")


def _exponential(num_classes: int, imb_factor: float) -> list[float]:
    return [imb_factor ** (k / (num_classes - 1)) for k in range(num_classes)]


def _step(num_classes: int, imb_factor: float) -> list[float]:
    """The last K // 2 classes are rare; for an odd K the middle class is frequent."""
    rare = num_classes // 2
    return [1.0] * (num_classes - rare) + [imb_factor] * rare


def _balanced(num_classes: int, imb_factor: float) -> list[float]:
    return [1.0] * num_classes


PROFILES: dict[str, Callable[[int, float], list[float]]] = {"exp": _exponential, "step": _step, "none": _balanced}
