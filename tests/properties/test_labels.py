"""Labels and class sizes: what is no labelling is refused, what is one keeps exactly the samples that it says."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from thrown import refusal, throw

from ncflow.data import SAMPLINGS, Recipe, hold_out, longtail_counts, noisy_targets, sample_indices
from ncflow.data.longtail import longtail_indices

K = 4
labels = st.lists(st.integers(0, K - 1), min_size=1, max_size=30)
no_labels = st.sampled_from(
    [3, "labels", [[0, 1], [2, 3]], [0, 1.5], [0.0, 1.0], ["0", "1"], [None], [0, -1], [0, K], [0, 2**62], [0, 10**30],
     [0, math.nan], [[0], [1, 2]], [True, False], [0j], [0, "x"], np.zeros((2, 2), dtype=int), {"a": 1}]
)  # fmt: skip
no_seed = st.sampled_from([-1, 2**32, 10**30, 1.5, "0", None, math.nan, True])
SPLITTERS = {
    "sample_indices": lambda y, seed: sample_indices(y, [2] * K, seed=seed),
    "longtail_indices": lambda y, seed: longtail_indices(y, K, imb_type="exp", imb_factor=1.0, seed=seed),
    "native": lambda y, seed: longtail_indices(y, K, imb_type="exp", imb_factor=-1, seed=seed),
    "hold_out": lambda y, seed: hold_out(y, K, fraction=0.5, seed=seed),
    "noisy_targets": lambda y, seed: noisy_targets(y, K, fraction=0.5, seed=seed),
}
splitters = st.sampled_from([*SPLITTERS])


@throw(250)
@given(splitters, no_labels)
def test_what_is_no_labelling_is_refused(name, wrong):
    message = refusal(lambda: SPLITTERS[name](wrong, 0))
    assert message is not None and "target" in message


@throw(60)
@given(splitters, no_seed)
def test_what_is_no_seed_is_refused(name, seed):
    if name != "native":
        message = refusal(lambda: SPLITTERS[name](list(range(K)) * 3, seed))
        assert message is not None and "seed" in message


@throw(150)
@given(splitters, labels)
def test_any_labels_are_split_or_refused_by_the_lacking_class(name, targets):
    found: list[Any] = []
    message = refusal(lambda: found.append(SPLITTERS[name](targets, 0)))
    if message is not None:
        assert "class" in message
    elif name == "noisy_targets":
        assert (found[0] != targets).sum() == round(0.5 * len(targets)) and set(found[0]) <= set(range(K))
    elif name == "hold_out":
        assert sorted(np.concatenate(found[0])) == list(range(len(targets)))
    else:
        assert len(set(found[0].tolist())) == len(found[0]) and set(found[0].tolist()) <= set(range(len(targets)))


@throw(30)
@given(st.sampled_from([[1, 2], *([1, 2, 3, wrong] for wrong in (-1, 1.5, None, math.nan, "1", 2**65, True, [1]))]))
def test_counts_that_no_class_can_have_are_refused(counts):
    assert refusal(lambda: sample_indices([0, 1, 2, 3] * 3, counts, seed=0)) is not None


number = st.integers(-3, 300) | st.floats() | st.sampled_from([None, "7", True, 2**63, 10**400, [1], -1, 1e-300])


@throw(400)
@given(number, number, st.sampled_from(["exp", "step", "none", "linear", "", None, 3]), number, number)
def test_class_sizes_are_those_of_the_profile_or_refused(n_max, num_classes, imb_type, imb_factor, n_min):
    sizes: list[int] = []
    message = refusal(
        lambda: sizes.extend(longtail_counts(n_max, num_classes, imb_type=imb_type, imb_factor=imb_factor, n_min=n_min))
    )
    if message is not None:
        assert any(name in message for name in ("n_max", "num_classes", "imb_type", "imb_factor", "n_min", "class"))
    else:
        assert len(sizes) == num_classes and sizes[0] == n_max
        assert all(max(n_min, 1) <= size <= n_max for size in sizes) and sizes == sorted(sizes, reverse=True)


@throw(100)
@given(st.text(max_size=12) | st.sampled_from(["../up", "/abs", "a/b", "..", "~", "digits", "a\0", "x\n"]))
def test_the_name_of_a_snapshot_stays_in_its_folder(name):
    made: list[Recipe] = []
    if refusal(lambda: made.append(Recipe(name))) is None:
        assert not {"/", "\\", "\0"} & set(made[0].folder_name) and not made[0].folder_name.startswith(".")


@throw(100)
@given(st.sampled_from([*SAMPLINGS]), labels, st.integers(1, 9), st.integers(0, 2**32))
def test_every_sampling_of_any_labels_draws_as_many_as_there_are(name, targets, batch_size, seed):
    sizes = [min(batch_size, len(targets) - start) for start in range(0, len(targets), batch_size)]
    drawn = SAMPLINGS[name](torch.tensor(targets), sizes, torch.Generator().manual_seed(seed))
    assert len(drawn) == len(targets) and set(drawn.tolist()) <= set(range(len(targets)))
