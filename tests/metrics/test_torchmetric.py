"""NeuralCollapse: however samples are cut into batches and processes, it says what one look at all of them says."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import references
import torch
from torchmetrics import MetricCollection, MetricTracker
from two_processes import on_two

from ncflow.metrics import ClassMoments, NeuralCollapse, moment_metrics

PROBLEM = references.draw_problem(0, sizes=(25, 18, 0, 9, 6, 3), offset=3)
FEATURES, TARGETS, WEIGHT, BIAS = PROBLEM.tensors
SPLITS = [(61,), (60, 1), (1, 60), (30, 0, 31), (20, 20, 20, 1), (1,) * 61]


def whole(count: int = len(FEATURES)) -> dict[str, float]:
    return moment_metrics(ClassMoments.from_features(FEATURES[:count], TARGETS[:count], 6))


def updated(*lengths: int, **options) -> NeuralCollapse:
    metric = NeuralCollapse(6, 8, **options)
    for features, targets in zip(FEATURES.split(lengths), TARGETS.split(lengths), strict=True):
        metric.update(features, targets)
    return metric


def classifier() -> torch.nn.Linear:
    linear = torch.nn.Linear(8, 6).double()
    linear.load_state_dict({"weight": WEIGHT, "bias": BIAS})
    return linear


@pytest.mark.parametrize("lengths", SPLITS)
def test_batches_of_any_length_are_the_whole(lengths):
    assert updated(*lengths).compute() == pytest.approx(whole(), rel=1e-10)


def test_a_sorted_stream_is_the_whole():
    metric, order = NeuralCollapse(6, 8), TARGETS.argsort()
    for features, targets in zip(FEATURES[order].split(5), TARGETS[order].split(5), strict=True):
        metric.update(features, targets)
    assert metric.compute() == pytest.approx(whole(), rel=1e-10)


def test_reset_forgets_everything():
    metric = updated(61)
    metric.reset()
    metric.update(FEATURES[:40], TARGETS[:40])
    assert metric.compute() == pytest.approx(whole(40), rel=1e-12)


def test_forward_returns_the_batch_and_remembers_the_stream():
    metric = NeuralCollapse(6, 8)
    metric(FEATURES[:40], TARGETS[:40])
    batch = metric(FEATURES[40:], TARGETS[40:])
    alone = moment_metrics(ClassMoments.from_features(FEATURES[40:], TARGETS[40:], 6))
    assert batch == pytest.approx(alone, rel=1e-10)
    assert metric.compute() == pytest.approx(whole(), rel=1e-10)


@pytest.mark.filterwarnings("ignore:The ``compute`` method")  # torchmetrics' own warning is welcome there
def test_before_the_first_sample_there_are_no_metrics():
    metric = NeuralCollapse(6, 8)
    assert metric.compute() == {}
    metric.update(FEATURES[:0], TARGETS[:0])
    assert metric.compute() == {}


def test_a_classifier_brings_its_metrics_and_not_its_parameters():
    linear = classifier()
    metric = updated(30, 31, classifier=linear)
    moments = ClassMoments.from_features(FEATURES, TARGETS, 6)
    assert metric.compute() == pytest.approx(moment_metrics(moments, WEIGHT, BIAS), rel=1e-10)
    assert "nc3/self_duality" in metric.compute() and "nc3/self_duality" not in whole()
    assert not list(metric.parameters()) and not metric.state_dict()
    with torch.no_grad():
        linear.weight *= -1
    metric.update(FEATURES[:1], TARGETS[:1])  # what was computed before is cached until something new comes
    assert metric.compute()["nc3/alignment"] < 0


@pytest.mark.parametrize("copy", [lambda metric: metric.clone(), lambda metric: pickle.loads(pickle.dumps(metric))])
def test_copies_go_their_own_way(copy):
    metric = updated(40, 21, classifier=classifier())
    twin = copy(metric)
    assert twin.compute() == metric.compute()
    twin.update(FEATURES + 1, TARGETS)
    assert twin.compute() != metric.compute()
    assert metric.compute()["drift/norm"] == pytest.approx(whole()["drift/norm"])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_low_precision_batches_are_counted_in_float64(dtype):
    metric = NeuralCollapse(6, 8).to(torch.float32).half()  # a metric does not follow its model's precision
    low = FEATURES.to(dtype)
    for features, targets in zip(low.split(20), TARGETS.split(20), strict=True):
        metric.update(features.requires_grad_(), targets)
    expected = moment_metrics(ClassMoments.from_features(low.detach(), TARGETS, 6))
    assert metric.compute() == pytest.approx(expected, rel=1e-10)
    assert metric.means.dtype is torch.float64 and not metric.means.requires_grad


@pytest.mark.parametrize(
    "features, targets, message",
    [
        (FEATURES[:, 1:], TARGETS, r"features must have shape \(B, 8\), got \(61, 7\)"),
        (FEATURES, TARGETS[1:], r"targets must be integers \(61,\), one per feature, got \(60,\)"),
        (FEATURES[0], TARGETS, r"features must be floats \(N, d\), .* got \(8,\)"),
        (FEATURES, TARGETS + 1, "targets must lie in 0..5"),
        (FEATURES, TARGETS - 1, "targets must lie in 0..5"),
        (FEATURES * torch.nan, TARGETS, "features hold NaN"),
    ],
)
def test_an_unfit_batch_is_refused_and_leaves_no_trace(features, targets, message):
    metric = updated(61)
    with pytest.raises(ValueError, match=message):
        metric.update(features, targets)
    assert metric.compute() == pytest.approx(whole(), rel=1e-12)


def compute_on_one_of_two(rank: int, folder: str) -> None:
    """One process's share: the first has no sample of the last classes, and one batch more than the second."""
    metric = NeuralCollapse(6, 8)
    order = TARGETS.argsort()
    for part in (order[:10], order[10:45]) if rank == 0 else (order[45:],):
        metric.update(FEATURES[part], TARGETS[part])
    together = metric.compute()
    metric.update(FEATURES[:0], TARGETS[:0])  # after synchronizing, a process goes on with its own share
    torch.save((together, metric.compute(), float(metric.counts.sum())), f"{folder}/{rank}.pt")


@pytest.mark.slow
def test_two_processes_are_one(tmp_path: Path):
    on_two(compute_on_one_of_two, str(tmp_path))
    for rank, share in enumerate((45, 16)):
        together, again, own = torch.load(tmp_path / f"{rank}.pt")
        assert together == pytest.approx(whole(), rel=1e-10)
        assert again == together
        assert own == share


def test_groups_follow_the_training_sizes_that_are_given():
    """A balanced test stream: without the sizes of training no class would be rare."""
    counts = [3, 8, 0, 60, 20, 150]
    moments = ClassMoments.from_features(FEATURES, TARGETS, 6)
    found = updated(30, 31, classifier=classifier(), class_counts=counts).compute()
    assert found == pytest.approx(moment_metrics(moments, WEIGHT, BIAS, class_counts=counts), rel=1e-10)
    assert (
        found["imbalance/minority_cosine"]
        != updated(61, classifier=classifier()).compute()["imbalance/minority_cosine"]
    )
    assert {"nc1/cdnv_many", "nc3/alignment_few"} <= found.keys()


@pytest.mark.parametrize("counts", [[1, 2, 3], [1, 2, 3, 4, 5, -6], "sizes"])
def test_training_sizes_that_do_not_fit_are_refused_at_once(counts):
    with pytest.raises(ValueError, match="class_counts must hold"):
        NeuralCollapse(6, 8, class_counts=counts)


def test_one_metric_alone_is_a_tensor():
    metric = updated(61, only="nc1/pinv")
    assert metric.compute().shape == () and metric.compute() == pytest.approx(whole()["nc1/pinv"])
    assert updated(61, only="nc3/self_duality").compute().isnan()  # no classifier
    with pytest.raises(ValueError, match="unknown metric 'nc1/pinvv'. Did you mean 'nc1/pinv'"):
        NeuralCollapse(6, 8, only="nc1/pinvv")


def test_a_collection_flattens_the_metrics_and_keeps_single_ones():
    collection = MetricCollection({"all": NeuralCollapse(6, 8)}, prefix="train/")
    collection.update(FEATURES, TARGETS)
    assert collection.compute() == pytest.approx({f"train/{name}": value for name, value in whole().items()})
    assert collection(FEATURES, TARGETS) == pytest.approx({f"train/{name}": value for name, value in whole().items()})
    names = ("nc1/pinv", "nc2/etf_error_means")
    singles = MetricCollection({name: NeuralCollapse(6, 8, only=name) for name in names})
    for part in (slice(30), slice(30, None)):
        singles.update(FEATURES[part], TARGETS[part])
    assert {name: float(value) for name, value in singles.compute().items()} == pytest.approx(
        {name: whole()[name] for name in names}
    )


def test_a_tracker_keeps_all_epochs_and_finds_the_best_of_one_metric():
    tracker = MetricTracker(NeuralCollapse(6, 8, only="nc1/cdnv"), maximize=False)
    everything = MetricTracker(NeuralCollapse(6, 8), maximize=False)
    for scale in (1.0, 0.1, 0.5):
        for each in (tracker, everything):
            each.increment()
            each.update(FEATURES + scale * torch.randn(FEATURES.shape), TARGETS)
    values = [epoch["nc1/cdnv"] for epoch in everything.compute_all()]
    best, step = tracker.best_metric(return_step=True)
    assert best == min(tracker.compute_all().tolist()) and step == 1
    assert len(values) == 3


@pytest.mark.parametrize("as_states", [True, False])
def test_merged_states_are_the_whole(as_states):
    metric, other = NeuralCollapse(6, 8), NeuralCollapse(6, 8)
    metric.update(FEATURES[:40], TARGETS[:40])
    metric.compute()
    other.update(FEATURES[40:], TARGETS[40:])
    metric.merge_state(other.metric_state if as_states else other)
    assert metric.compute() == pytest.approx(whole(), rel=1e-10)


def test_a_persistent_state_resumes():
    metric, resumed = updated(40, 21), NeuralCollapse(6, 8)
    for each in (metric, resumed):
        each.persistent(True)
    resumed.load_state_dict(metric.state_dict())
    resumed.update(FEATURES[:0], TARGETS[:0])
    assert resumed.compute() == pytest.approx(whole(), rel=1e-12)


def test_a_plot_names_each_metric():
    metric = updated(61)
    figure, axes = metric.plot()
    assert [label.get_text() for label in axes.get_xticklabels()] == list(metric.compute())
    assert len(axes.lines) == len(metric.compute()) and axes.get_yscale() == "symlog"
    steps = [whole(40), whole()]
    figure, axes = metric.plot(steps)
    assert {text.get_text() for text in axes.get_legend().texts} == steps[0].keys() & steps[1].keys()
    assert len(axes.lines[0].get_ydata()) == 2
    figure, axes = updated(61, only="nc1/pinv").plot()
    assert float(axes.lines[0].get_ydata()[0]) == pytest.approx(whole()["nc1/pinv"])
