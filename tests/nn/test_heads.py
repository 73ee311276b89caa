"""Heads: what holds for every row of the registry, and the nearest ETF's means and gradient against an obvious twin."""

from __future__ import annotations

import copy
import inspect
import pickle

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from two_processes import on_two

from ncflow.geometry import FRAMES, etf_distance, nearest_etf, simplex_etf
from ncflow.lookup import fact, options_of
from ncflow.nn.heads import AVERAGES, HEAD_ALIASES, HEADS, FixedETFHead, Head, LinearHead, NearestETFHead, create_head

K, D, B = 5, 8, 20

# Every head, and every option that changes what its map is.
VARIANTS = {
    "linear": ("linear", {}),
    "linear-bias": ("linear", {"bias": True, "temperature": 3.0}),
    "linear-normalize": ("linear", {"normalize": True, "temperature": 3.0}),
    "fixed_etf": ("fixed_etf", {}),
    "fixed_etf-rotated": ("fixed_etf", {"temperature": 5.0, "rotation_seed": 1}),
    "fixed_frame": ("fixed_frame", {}),
    "fixed_frame-orthogonal": ("fixed_frame", {"frame": "orthogonal", "temperature": 3.0}),
    "fixed_frame-random": ("fixed_frame", {"frame": "random", "frame_seed": 1}),
    "nearest_etf": ("nearest_etf", {}),
    "nearest_etf-raw": ("nearest_etf", {"temperature": None, "momentum": 0.5, "proximal": 0.0}),
    "nearest_etf-constant": ("nearest_etf", {"differentiate": False, "momentum": "ema", "rotation_seed": 1}),
}


@pytest.fixture(params=VARIANTS)
def head(request: pytest.FixtureRequest) -> Head:
    """Each variant after one training batch, in training mode."""
    name, options = VARIANTS[request.param]
    torch.manual_seed(0)
    head = create_head(name, D, K, **options)
    head(*batch(seed=100))
    return head


def batch(seed: int = 0, *, size: int = B, num_classes: int = K, dtype: torch.dtype = torch.float32) -> tuple:
    """Features (B, d) around class means that lie off the origin, and targets (B,) in which every class occurs."""
    generator = torch.Generator().manual_seed(seed)
    means = 1 + torch.randn(num_classes, D, generator=torch.Generator().manual_seed(42), dtype=dtype)
    targets = torch.arange(size) % num_classes
    return means[targets] + 0.3 * torch.randn(size, D, generator=generator, dtype=dtype), targets


def test_every_head_of_the_registry_has_a_variant_here():
    assert {name for name, _ in VARIANTS.values()} == set(HEADS), "add a line to VARIANTS"


# --- every head ---


@pytest.mark.parametrize("training", [True, False])
def test_logits_are_the_linear_map_of_the_embedded_features(head, training):
    head.train(training)
    features, targets = batch()
    logits = head(features, targets)
    embedded = head.embed(features)
    bias = 0 if head.bias is None else head.bias
    if training and isinstance(head, NearestETFHead):  # what centers a batch in training is its own mean
        bias = -head.weight @ embedded.mean(0)
    torch.testing.assert_close(logits, embedded @ head.weight.mT + bias)  # the map as it is afterwards
    assert head.weight.shape == (K, D)
    assert head.bias is None or head.bias.shape == (K,)


def test_a_state_dict_gives_back_the_same_logits_to_the_last_bit(head):
    features, _ = batch()
    twin = copy.deepcopy(head.eval())
    for tensor in twin.state_dict().values():
        tensor.zero_()
    assert not twin(features).any()
    twin.load_state_dict(head.state_dict())
    assert torch.equal(twin(features), head(features))


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda it: pickle.loads(pickle.dumps(it))], ids=["copy", "pickle"])
def test_a_copy_goes_on_as_the_original_does(head, clone):
    twin = clone(head)
    features, targets = batch()
    assert torch.equal(twin(features, targets), head(features, targets))
    for name, tensor in head.state_dict().items():
        assert torch.equal(twin.state_dict()[name], tensor), name


def test_a_decision_in_eval_mode_does_not_depend_on_its_batch(head):
    head.eval()
    features, _ = batch()
    before = {name: tensor.clone() for name, tensor in head.state_dict().items()}
    alone = torch.cat([head(row.unsqueeze(0)) for row in features])
    order = torch.randperm(B, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(head(features), alone)
    torch.testing.assert_close(head(features[order]), alone[order])
    for name, tensor in head.state_dict().items():
        assert torch.equal(tensor, before[name]), f"evaluation moved {name}"


def test_targets_are_ignored_in_eval_mode(head):
    features, targets = batch()
    head.eval()
    assert torch.equal(head(features, targets.flip(0)), head(features))


@pytest.mark.parametrize("name", HEADS)
def test_one_signature_serves_every_head(name):
    parameters = inspect.signature(HEADS[name]).parameters.values()
    assert [p.name for p in parameters if p.kind is not p.KEYWORD_ONLY] == ["num_features", "num_classes"]
    assert all(p.default is not p.empty for p in parameters if p.kind is p.KEYWORD_ONLY)
    assert list(inspect.signature(HEADS[name].forward).parameters) == ["self", "features", "targets"]


def test_embedding_twice_is_embedding_once(head):
    features, _ = batch()
    once = head.embed(features)
    torch.testing.assert_close(head.embed(once), once)


def test_embedded_features_have_the_temperature_as_their_norm(head):
    features, _ = batch()
    embedded = head.embed(features)
    expected = features.norm(dim=1) if head.temperature is None else torch.full((B,), head.temperature)
    torch.testing.assert_close(embedded.norm(dim=1), expected)


@pytest.mark.parametrize("training", [True, False])
def test_autocast_does_not_touch_the_logits(head, training):
    twin = copy.deepcopy(head)
    head.train(training), twin.train(training)
    features, targets = batch()
    features = features.bfloat16()  # as a backbone under autocast returns them
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = head(features, targets)
    assert logits.dtype == torch.float32
    assert torch.equal(logits, twin(features.float(), targets))
    assert head.weight.dtype == torch.float32


@pytest.mark.parametrize("variant", VARIANTS)
def test_training_and_evaluation_classify_alike_at_the_same_temperature(variant):
    """A head that has seen one batch has that batch's means: then nothing is left that could tell the modes apart."""
    name, options = VARIANTS[variant]
    head = create_head(name, D, K, **options)
    features, targets = batch()
    trained = head(features, targets)
    assert torch.equal(head.train().embed(features), head.eval().embed(features))
    torch.testing.assert_close(head.eval()(features), trained)


def test_a_feature_of_norm_zero_gives_finite_logits_and_gradients(head):
    features = torch.zeros(K, D, requires_grad=True)
    logits = head(features, torch.arange(K))
    logits.logsumexp(1).sum().backward()
    assert logits.isfinite().all() and features.grad.isfinite().all()


def test_the_gradient_reaches_every_feature_and_every_parameter(head):
    features, targets = batch()
    F.cross_entropy(head(features.requires_grad_(), targets), targets).backward()
    assert (features.grad.norm(dim=1) > 0).all()
    for name, parameter in head.named_parameters():
        assert parameter.grad.norm() > 0, name


@pytest.mark.parametrize("name", HEADS)
def test_two_classes_train(name):
    head = create_head(name, D, 2)
    features, targets = batch(num_classes=2)
    assert head(features, targets).isfinite().all()
    if fact(HEADS[name], "is_frame"):  # two classes: opposite unit vectors
        torch.testing.assert_close(head.weight[0], -head.weight[1])


@pytest.mark.parametrize("name", ["fixed_etf", "nearest_etf"])
@pytest.mark.parametrize("num_features", [K - 1, K, K + 3])
def test_the_map_is_a_simplex_etf_from_k_minus_1_features_on(name, num_features):
    head = create_head(name, num_features, K)
    head(torch.randn(B, num_features, generator=torch.Generator().manual_seed(0)), torch.arange(B) % K)
    gram = simplex_etf(K, num_features) @ simplex_etf(K, num_features).mT
    torch.testing.assert_close(head.weight @ head.weight.mT, gram, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["fixed_etf", "nearest_etf"])
def test_too_few_features_for_an_etf_are_refused_with_advice(name):
    with pytest.raises(ValueError, match=r"num_features >= num_classes - 1, got 3 and 5; use a wider neck"):
        create_head(name, K - 2, K)


@pytest.mark.parametrize("alias", HEAD_ALIASES)
def test_an_alias_of_the_second_seed_is_the_head_itself(alias):
    assert type(create_head(alias, D, K)) is HEADS[HEAD_ALIASES[alias]]


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("nearest_eft", {}, "unknown head 'nearest_eft'. Did you mean 'nearest_etf'"),
        ("linear", {"biass": True}, "unknown option of head 'linear' 'biass'. Did you mean 'bias'"),
        ("fixed_etf", {"momentum": "ema"}, "unknown option of head 'fixed_etf' 'momentum'"),
        ("fixed_frame", {"frame": "softmax_cod"}, "unknown frame 'softmax_cod'. Did you mean 'softmax_code'"),
        ("fixed_frame", {"frame": "seli"}, "frame seli needs class_counts"),
        ("nearest_etf", {"momentum": "cumulativ"}, "unknown momentum 'cumulativ'. Did you mean 'cumulative'"),
        ("nearest_etf", {"momentum": 0.0}, "number in \\(0, 1\\], got 0.0"),
        ("nearest_etf", {"solver": "closedform"}, "unknown solver 'closedform'. Did you mean 'closed_form'"),
        ("nearest_etf", {"proximal": -1e-3}, "proximal must be >= 0, got -0.001"),
        ("nearest_etf", {"tolerance": 1e-6}, "unknown option of solver 'closed_form' 'tolerance'"),
        ("nearest_etf", {"max_iterations": 10}, "unknown option of solver 'closed_form' 'max_iterations'"),
        ("nearest_etf", {"solver": "riemannian", "tolerance": 0.0}, "needs tolerance > 0, got 0.0"),
        ("nearest_etf", {"solver": "riemannian", "max_iterations": 0}, "needs max_iterations > 0, got 0"),
        *[
            (name, {"temperature": 0.0}, "temperature must be > 0, or None .* got 0.0")
            for name in HEADS
            if "temperature" in options_of(HEADS[name])
        ],
    ],
)
def test_a_wrong_name_or_option_is_refused_when_the_head_is_made(name, options, message):
    with pytest.raises(ValueError, match=message):
        create_head(name, D, K, **options)


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("shape", [(D, 1), (0, K)])
def test_shapes_that_classify_nothing_are_refused(name, shape):
    with pytest.raises(ValueError, match="num_classes >= 2 and num_features >= 1"):
        create_head(name, *shape)


# --- linear ---


def test_a_normalized_head_has_unit_rows_and_stores_what_it_learns():
    head = LinearHead(D, K, normalize=True)
    assert set(head.state_dict()) == {"raw_weight"} == {name for name, _ in head.named_parameters()}
    with torch.no_grad():
        head.raw_weight.mul_(7)
    torch.testing.assert_close(head.weight.norm(dim=1), torch.ones(K))
    torch.testing.assert_close(head.weight, F.normalize(head.raw_weight))


# --- fixed ETF ---


def test_a_fixed_etf_learns_nothing_and_is_the_canonical_one_by_default(head):
    fixed = FixedETFHead(D, K)
    assert not list(fixed.parameters())
    assert torch.equal(fixed.weight, simplex_etf(K, D))


@pytest.mark.parametrize("name", ["fixed_etf", "nearest_etf"])
def test_the_rotation_seed_alone_decides_the_first_etf(name):
    first, again, other = (create_head(name, D, K, rotation_seed=seed).weight for seed in (3, 3, 4))
    assert torch.equal(first, again)
    assert not torch.allclose(first, other)


# --- fixed frames ---


@pytest.mark.parametrize("seed", [None, 3])
@pytest.mark.parametrize("num_features", [K - 1, K, D])
def test_the_fixed_etf_is_the_fixed_frame_of_that_name(num_features, seed):
    """The same bits and the same keys, so a checkpoint of one is one of the other."""
    etf = create_head("fixed_etf", num_features, K, rotation_seed=seed).state_dict()
    frame = create_head("fixed_frame", num_features, K, frame="simplex_etf", frame_seed=seed).state_dict()
    generator = None if seed is None else torch.Generator().manual_seed(seed)
    assert set(etf) == set(frame) == {"weight"}
    assert torch.equal(etf["weight"], simplex_etf(K, num_features, generator=generator))
    assert torch.equal(etf["weight"], frame["weight"])


@pytest.mark.parametrize("name", FRAMES)
def test_a_head_has_the_rows_of_its_frame_and_learns_nothing(name):
    counts = [50, 20, 9, 3, 2, 1, 1]
    head = create_head(
        "fixed_frame", 4 if name in ("softmax_code", "random") else 7, 7, frame=name, class_counts=counts
    )
    torch.testing.assert_close(head.weight.norm(dim=1), torch.ones(7))
    assert not list(head.parameters())
    assert head.weight.dtype is torch.get_default_dtype()


def test_class_sizes_reach_only_heads_and_frames_that_take_them():
    sizes = {"class_counts": [40, 30, 3, 2, 1]}
    for name in HEADS:
        assert create_head(name, D, K, **sizes).weight.shape == (K, D)
    balanced, tail = (
        create_head("fixed_frame", D, K, frame="seli", class_counts=c) for c in ([7] * K, [90, 9, 3, 2, 1])
    )
    torch.testing.assert_close(balanced.weight, simplex_etf(K, D))
    assert tail.weight[-2] @ tail.weight[-1] > 0 > tail.weight[0] @ tail.weight[-1]
    with pytest.raises(ValueError, match="class_counts for 5 classes, got 2"):
        create_head("fixed_frame", D, K, frame="seli", class_counts=[3, 2])


def test_a_code_that_is_the_simplex_etf_is_taken_with_a_warning():
    with pytest.warns(UserWarning, match="softmax_code of 5 classes in 8 features is the simplex ETF"):
        head = create_head("fixed_frame", D, K, frame="softmax_code")
    assert torch.equal(head.weight, simplex_etf(K, D))


def test_a_users_frame_gets_what_it_takes_and_needs_unit_rows(monkeypatch):
    monkeypatch.setitem(FRAMES, "axes", lambda num_classes, num_features: torch.eye(num_classes, num_features))
    monkeypatch.setitem(FRAMES, "long", lambda num_classes, num_features: 2 * torch.eye(num_classes, num_features))
    assert torch.equal(create_head("fixed_frame", D, K, frame="axes").weight, torch.eye(K, D))
    with pytest.raises(ValueError, match="unknown option of frame 'axes' 'seed'"):
        create_head("fixed_frame", D, K, frame="axes", frame_seed=1)
    with pytest.raises(ValueError, match="frame 'long' must return 5 unit rows of 8 features"):
        create_head("fixed_frame", D, K, frame="long")


# --- nearest ETF: means ---


def averaging_rate(momentum: str | float, count: int) -> float:
    """Weight of a class's batch mean after `count` batches that had the class."""
    if count == 0:
        return 1.0
    return {"cumulative": 1 / (count + 1), "ema": 2 / (count + 2)}.get(momentum, momentum)


def obvious_means(batches: list[tuple[Tensor, Tensor]], momentum: str | float) -> dict[int, Tensor]:
    """Running class means of the classes seen, one class and one batch at a time."""
    means: dict[int, Tensor] = {}
    counts: dict[int, int] = {}
    for embedded, targets in batches:
        for k in targets.unique().tolist():
            mean, count = embedded[targets == k].mean(0), counts.get(k, 0)
            rate = averaging_rate(momentum, count)
            means[k] = (1 - rate) * means.get(k, torch.zeros_like(mean)) + rate * mean
            counts[k] = count + 1
    return means


def batches_with_gaps(dtype: torch.dtype = torch.float32) -> list[tuple[Tensor, Tensor]]:
    """Batches in which classes are missing; class 4 comes late and one batch holds class 2 alone."""
    kept = [{0, 1}, {2}, {0, 1, 2, 3}, {1, 3}, {0, 4}, {2}, {0, 1, 2, 3, 4}]
    chosen = []
    for seed, classes in enumerate(kept):
        features, targets = batch(seed, dtype=dtype)
        keep = torch.tensor([k in classes for k in targets.tolist()])
        chosen.append((features[keep], targets[keep]))
    return chosen


@pytest.mark.parametrize("momentum", [*AVERAGES, 0.3, 1.0])
def test_running_means_are_those_of_a_loop_over_batches_and_classes(momentum):
    head = NearestETFHead(D, K, momentum=momentum)
    batches = batches_with_gaps()
    for number, (features, targets) in enumerate(batches, start=1):
        head(features, targets)
        seen = obvious_means([(head.embed(h), y) for h, y in batches[:number]], momentum)
        torch.testing.assert_close(head.class_means[list(seen)], torch.stack(list(seen.values())))
        assert (head.num_updates > 0).nonzero().flatten().tolist() == sorted(seen)
    assert head.num_updates.tolist() == [sum(bool((y == k).any()) for _, y in batches) for k in range(K)]


def test_the_cumulative_mean_weighs_every_batch_alike():
    head = NearestETFHead(D, K, momentum="cumulative")
    batches = [batch(seed) for seed in range(6)]
    for features, targets in batches:
        head(features, targets)
    embedded, targets = head.embed(torch.cat([h for h, _ in batches])), torch.cat([y for _, y in batches])
    torch.testing.assert_close(head.class_means, torch.stack([embedded[targets == k].mean(0) for k in range(K)]))


@pytest.mark.parametrize("momentum", [*AVERAGES, 0.3])
def test_after_many_identical_batches_the_means_are_theirs(momentum):
    head = NearestETFHead(D, K, momentum=momentum, temperature=None).double()
    first, (features, targets) = batch(seed=7, dtype=torch.float64)[0], batch(dtype=torch.float64)
    head(first, targets)
    for _ in range(100):
        head(features, targets)
    start, target = (torch.stack([h[targets == k].mean(0) for k in range(K)]) for h in (first, features))
    share = {"cumulative": 1 / 101, "ema": 2 / (101 * 102)}.get(momentum, 0.7**100)  # of the first batch that is left
    torch.testing.assert_close(head.class_means - target, share * (start - target))


def test_the_stored_bias_centers_by_the_running_mean_of_the_features():
    head = NearestETFHead(D, K, temperature=None)
    expected = None
    for seed in range(3):
        features, targets = batch(seed)
        head(features, targets)
        expected = features.mean(0) if expected is None else 0.9 * expected + 0.1 * features.mean(0)
    torch.testing.assert_close(head.center, expected)
    torch.testing.assert_close(head.bias, -head.weight @ expected)


def test_logits_do_not_change_when_all_features_shift():
    features, targets = batch()
    shifted = NearestETFHead(D, K, temperature=None)
    plain = NearestETFHead(D, K, temperature=None)
    torch.testing.assert_close(shifted(features + 10, targets), plain(features, targets), atol=1e-4, rtol=1e-4)


def test_the_weight_is_the_etf_nearest_to_the_means():
    head = NearestETFHead(D, K, proximal=0.0)
    head(*batch())
    torch.testing.assert_close(head.weight, nearest_etf(head.class_means))
    centered = head.class_means - head.class_means.mean(0)
    gap = head.weight / K**0.5 - centered / centered.norm()
    torch.testing.assert_close(gap.square().sum(), etf_distance(head.class_means))


def test_classes_never_seen_lie_at_the_center_of_the_others():
    head = NearestETFHead(D, K)
    features, targets = batch()
    keep = targets < 3
    head(features[keep], targets[keep])
    means = head.class_means.clone()
    assert not means[3:].any()  # stored as unseen, not as an invented mean
    means[3:] = means[:3].mean(0)
    expected = nearest_etf(means, proximal=head.proximal, anchor=simplex_etf(K, D))
    torch.testing.assert_close(head.weight, expected)


def test_a_batch_of_one_class_leaves_the_first_etf_in_place():
    """One class has no direction relative to the others: only the proximal term speaks."""
    head = NearestETFHead(D, K)
    features, _ = batch()
    logits = head(features, torch.full((B,), 2))
    assert logits.isfinite().all()
    torch.testing.assert_close(head.weight, simplex_etf(K, D))


def test_training_without_targets_is_refused():
    with pytest.raises(ValueError, match=r"needs targets in training mode: .* call eval\(\)"):
        NearestETFHead(D, K)(batch()[0])


def test_solvers_agree():
    closed, searched = NearestETFHead(D, K), NearestETFHead(D, K, solver="riemannian")
    for seed in range(3):
        features, targets = batch(seed)
        h, g = features.clone().requires_grad_(), features.clone().requires_grad_()
        F.cross_entropy(closed(h, targets), targets).backward()
        F.cross_entropy(searched(g, targets), targets).backward()
        torch.testing.assert_close(searched.weight, closed.weight, atol=1e-5, rtol=0)
        torch.testing.assert_close(g.grad, h.grad, atol=1e-5, rtol=1e-4)


# --- nearest ETF: gradient ---


def obvious_loss(features: Tensor, targets: Tensor, head: NearestETFHead, *, differentiate: bool) -> Tensor:
    """Cross-entropy after the head's next step, from its state and the definitions; the polar factor by torch's SVD."""
    norms = features.norm(dim=1, keepdim=True)
    embedded = features if head.temperature is None else head.temperature * features / norms
    rows, seen = [], []
    for k in range(K):
        mean, count = head.class_means[k], int(head.num_updates[k])
        if (targets == k).any():
            rate = averaging_rate(head.momentum, count)
            mean = (1 - rate) * mean + rate * embedded[targets == k].mean(0)
            count += 1
        rows.append(mean)
        seen.append(count > 0)
    center = torch.stack([mean for mean, known in zip(rows, seen, strict=True) if known]).mean(0)
    means = torch.stack([mean if known else center for mean, known in zip(rows, seen, strict=True)])
    m = torch.eye(K, dtype=means.dtype) - 1 / K
    centered = m @ means
    q = torch.linalg.eigh(m).eigenvectors[:, 1:]  # any basis of the space orthogonal to ones
    scale = (K / (K - 1)) ** 0.5
    a = 2 / (K - 1) ** 0.5 * (centered / centered.norm()).mT @ q + head.proximal * head.weight.mT @ q / scale
    u, _, vh = torch.linalg.svd(a, full_matrices=False)
    weight = scale * q @ (u @ vh).mT
    bias = -weight @ embedded.mean(0)
    if not differentiate:
        weight, bias = weight.detach(), bias.detach()
    return F.cross_entropy(embedded @ weight.mT + bias, targets)


@pytest.mark.parametrize("differentiate", [True, False])
@pytest.mark.parametrize("temperature", [5.0, None])
@pytest.mark.parametrize("momentum", [*AVERAGES, 0.3])
def test_loss_and_gradient_are_those_of_the_obvious_twin(differentiate, temperature, momentum):
    head = NearestETFHead(D, K, temperature=temperature, momentum=momentum, differentiate=differentiate).double()
    for number, (features, targets) in enumerate(batches_with_gaps(torch.float64)):
        h, g = features.clone().requires_grad_(), features.clone().requires_grad_()
        expected = obvious_loss(g, targets, head, differentiate=differentiate)
        loss = F.cross_entropy(head(h, targets), targets)
        loss.backward()
        torch.testing.assert_close(loss, expected)
        if number >= 4:  # torch's SVD has a gradient once the means of all classes are there
            expected.backward()
            torch.testing.assert_close(h.grad, g.grad)


def test_gradients_are_numerical_ones_also_while_classes_are_missing():
    features, targets = batch(dtype=torch.float64, size=9)
    keep = targets < 4
    start = NearestETFHead(D, K, proximal=0.1, rotation_seed=0).double()

    def logits(h: Tensor) -> Tensor:
        return copy.deepcopy(start)(h, targets[keep])

    assert torch.autograd.gradcheck(logits, features[keep].requires_grad_())


def test_the_gradient_through_the_etf_is_what_differentiate_adds():
    grads = {}
    for differentiate in (True, False):
        head = NearestETFHead(D, K, differentiate=differentiate)
        features, targets = batch()
        F.cross_entropy(head(features.requires_grad_(), targets), targets).backward()
        grads[differentiate] = features.grad
        constant = batch()[0].requires_grad_()
        F.cross_entropy(F.linear(head.embed(constant), head.weight, head.bias), targets).backward()
        assert torch.allclose(features.grad, constant.grad, atol=1e-7) is not differentiate
    assert not torch.allclose(grads[True], grads[False])


def test_the_past_is_a_constant_for_the_gradient():
    """A second backward does not reach the first batch."""
    head = NearestETFHead(D, K)
    first, second = batch(1)[0].requires_grad_(), batch(2)[0].requires_grad_()
    targets = batch()[1]
    head(first, targets)
    head(second, targets).square().sum().backward()
    assert first.grad is None
    assert second.grad.norm() > 0


# --- nearest ETF: processes ---


def halves(rank: int, folder: str) -> None:
    """One of two processes, each with half of the batch."""
    head = NearestETFHead(D, K).double()
    for features, targets in batches_with_gaps(torch.float64):
        h, y = features.tensor_split(2)[rank].clone().requires_grad_(), targets.tensor_split(2)[rank]
        F.cross_entropy(head(h, y), y, reduction="sum").backward()
    torch.save({**head.state_dict(), "gradient": h.grad}, f"{folder}/{rank}.pt")


@pytest.mark.slow
def test_two_processes_with_half_a_batch_each_are_one_with_the_whole(tmp_path):
    on_two(halves, str(tmp_path))
    head = NearestETFHead(D, K).double()
    for features, targets in batches_with_gaps(torch.float64):
        h = features.clone().requires_grad_()
        F.cross_entropy(head(h, targets), targets, reduction="sum").backward()
    results = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    torch.testing.assert_close(torch.cat([result.pop("gradient") for result in results]), h.grad)
    for result in results:
        torch.testing.assert_close(result, dict(head.state_dict()))
