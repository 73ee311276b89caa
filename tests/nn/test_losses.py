"""Losses: what holds for every row of the registry, the identities between them, and where each puts a boundary."""

from __future__ import annotations

import inspect
import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from ncflow.geometry import simplex_etf
from ncflow.nn.losses import (
    LOSSES,
    class_weights,
    create_loss,
    posthoc_adjustment,
)

COUNTS = [500, 120, 30, 7]
K, B = len(COUNTS), 12
REGRESSIONS = ("mse", "dot_regression")  # of the logits themselves: not a function of their differences
SHAPED = (
    *REGRESSIONS,
    "focal",
    "label_smoothing",
    "label_aware_smoothing",
    "ldam",
)  # these differ from cross-entropy on balanced classes, too
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"))]


def logits_and_targets(scale: float = 2.0, *, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Gaussian logits (B, K) and targets (B,) in which every class occurs."""
    logits = scale * torch.randn(B, K, generator=torch.Generator().manual_seed(0), dtype=dtype)
    return logits, torch.arange(B) % K


def gradient(loss, logits: Tensor, targets: Tensor) -> Tensor:
    logits = logits.detach().requires_grad_()
    loss(logits, targets).backward()
    return logits.grad


def needs_counts(name: str) -> bool:
    return "class_counts" in inspect.signature(LOSSES[name]).parameters


def obvious_loss(name: str, logits: Tensor, targets: Tensor) -> float:
    """Each loss with its defaults by its definition, one sample at a time, in Python's floats."""
    return sum(OBVIOUS[name](z, y) for z, y in zip(logits.tolist(), targets.tolist(), strict=True)) / len(targets)


def softmax(z: list[float], priors: list[float] | None = None) -> list[float]:
    weights = [n * math.exp(v) for n, v in zip(priors or [1.0] * K, z, strict=True)]
    return [weight / sum(weights) for weight in weights]


def obvious_focal(z: list[float], y: int, gamma: float = 2.0, alpha: float = 1.0) -> float:
    p = softmax(z)[y]
    return -alpha * (1 - p) ** gamma * math.log(p)


def obvious_label_smoothing(z: list[float], y: int, smoothing: float = 0.1) -> float:
    target = [smoothing / K + (1 - smoothing) * (k == y) for k in range(K)]
    return -sum(t * math.log(p) for t, p in zip(target, softmax(z), strict=True))


def obvious_mse(z: list[float], y: int, target: float = 1.0, emphasis: float = 1.0) -> float:
    return sum(emphasis * (v - target) ** 2 if k == y else v**2 for k, v in enumerate(z)) / 2


def obvious_ldam(z: list[float], y: int, max_margin: float = 0.5, scale: float = 30.0) -> float:
    constant = max_margin * min(COUNTS) ** 0.25
    return -math.log(softmax([scale * (v - constant / COUNTS[y] ** 0.25 * (k == y)) for k, v in enumerate(z)])[y])


def obvious_weights(beta: float) -> list[float]:
    raw = [(1 - beta) / (1 - beta**n) for n in COUNTS]
    mean = sum(n * w for n, w in zip(COUNTS, raw, strict=True)) / sum(COUNTS)
    return [w / mean for w in raw]


def obvious_vs(z: list[float], y: int, gamma: float = 0.15, tau: float = 1.0) -> float:
    scaled = [(n / max(COUNTS)) ** gamma * v + tau * math.log(n / sum(COUNTS)) for n, v in zip(COUNTS, z, strict=True)]
    return -math.log(softmax(scaled)[y])


def obvious_label_aware_smoothing(z: list[float], y: int, head: float = 0.3, tail: float = 0.0) -> float:
    share = (COUNTS[y] - min(COUNTS)) / (max(COUNTS) - min(COUNTS))
    return obvious_label_smoothing(z, y, tail + (head - tail) * math.sin(math.pi / 2 * share))


OBVIOUS = {
    "ce": lambda z, y: -math.log(softmax(z)[y]),
    "focal": obvious_focal,
    "logit_adjustment": lambda z, y: -math.log(softmax(z, COUNTS)[y]),
    "balanced_softmax": lambda z, y: -math.log(softmax(z, COUNTS)[y]),
    "arb": lambda z, y: -math.log(softmax(z, COUNTS)[y]),
    "vs": obvious_vs,
    "cdt": lambda z, y: obvious_vs(z, y, gamma=0.2, tau=0.0),
    "label_aware_smoothing": obvious_label_aware_smoothing,
    "mse": obvious_mse,
    "label_smoothing": obvious_label_smoothing,
    "dot_regression": lambda z, y: (z[y] - 1) ** 2 / 2,
    "ldam": obvious_ldam,
    "class_balanced": lambda z, y: -obvious_weights(0.9999)[y] * math.log(softmax(z)[y]),
}


# --- every loss ---


def test_every_loss_has_an_obvious_twin_here():
    assert OBVIOUS.keys() == LOSSES.keys(), "write its definition in OBVIOUS"


@pytest.mark.parametrize("name", OBVIOUS)
def test_a_loss_is_its_definition_averaged_over_the_batch(name):
    logits, targets = logits_and_targets(dtype=torch.float64)
    loss = create_loss(name, COUNTS)(logits, targets)
    assert loss.shape == ()
    assert loss.item() == pytest.approx(obvious_loss(name, logits, targets), rel=1e-12)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("scale", [0.0, 1.0, 30.0, 1e4, 1e30])
@pytest.mark.parametrize("right", [True, False])
def test_loss_and_gradient_are_finite_however_sure_the_classifier_is(name, scale, right):
    """Squares leave float32 at 1e19: for regressions of the logits large is 1e15."""
    scale = min(scale, 1e15) if name in REGRESSIONS else scale
    targets = torch.arange(B) % K
    predicted = targets if right else (targets + 1) % K
    logits = scale * F.one_hot(predicted, K).float()
    loss = create_loss(name, COUNTS)
    assert 0 <= loss(logits, targets).item() < math.inf
    assert gradient(loss, logits, targets).isfinite().all()


@pytest.mark.parametrize("name", LOSSES)
def test_the_gradient_is_the_numerical_one(name):
    logits, targets = logits_and_targets(dtype=torch.float64)
    loss = create_loss(name, COUNTS)
    assert torch.autograd.gradcheck(lambda z: loss(z, targets), logits.requires_grad_())


@pytest.mark.parametrize("name", [name for name in LOSSES if name not in (*REGRESSIONS, "vs", "cdt")])
def test_only_differences_of_logits_matter(name):
    logits, targets = logits_and_targets(dtype=torch.float64)
    loss = create_loss(name, COUNTS)
    torch.testing.assert_close(loss(logits + 17, targets), loss(logits, targets))


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("device", DEVICES)
def test_a_loss_works_where_its_logits_are(name, device):
    """class_counts may stay behind."""
    logits, targets = logits_and_targets()
    for options in ({}, {"reweight": 0.99} if name != "class_balanced" else {}):
        loss = create_loss(name, COUNTS, **options)
        there = loss(logits.to(device), targets.to(device))
        assert there.device.type == device
        torch.testing.assert_close(there.cpu(), loss(logits, targets))


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("counts", [tuple(COUNTS), torch.tensor(COUNTS), torch.tensor(COUNTS).float()])
def test_class_counts_may_be_a_sequence_or_a_tensor(name, counts):
    logits, targets = logits_and_targets()
    assert torch.equal(create_loss(name, counts)(logits, targets), create_loss(name, COUNTS)(logits, targets))


@pytest.mark.parametrize("name", [name for name in LOSSES if needs_counts(name)])
def test_class_counts_that_are_missing_or_empty_are_refused(name):
    with pytest.raises(ValueError, match=f"loss '{name}' needs class_counts"):
        create_loss(name)
    with pytest.raises(ValueError, match=r"needs samples in every class, got class_counts=\[5, 0, 2\]"):
        create_loss(name, [5, 0, 2])


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("focall", {}, "unknown loss 'focall'. Did you mean 'focal'"),
        ("ce", {"gamma": 2.0}, "unknown option of loss 'ce' 'gamma'. Choices: none"),
        ("focal", {"gama": 2.0}, "unknown option of loss 'focal' 'gama'. Did you mean 'gamma'"),
        ("balanced_softmax", {"tau": 1.0}, "unknown option of loss 'balanced_softmax' 'tau'"),
        ("dot_regresion", {}, "unknown loss 'dot_regresion'. Did you mean 'dot_regression'"),
        ("ldam", {"margin": 0.5}, "unknown option of loss 'ldam' 'margin'. Did you mean 'max_margin'"),
        ("class_balanced", {"reweight": 0.9}, "loss 'class_balanced' weighs the classes already"),
    ],
)
def test_an_unknown_loss_or_option_is_refused(name, options, message):
    with pytest.raises(ValueError, match=message):
        create_loss(name, COUNTS, **options)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("focal", {"gamma": -1.0}, "gamma >= 0, got -1"),
        ("focal", {"gamma": math.nan}, "gamma >= 0, got nan"),
        ("focal", {"gamma": "two"}, "option gamma of loss 'focal' must be a number, got 'two'"),
        ("focal", {"alpha": [0.1, 0.2, -0.3, 0.4]}, r"alpha >= 0, got \[0.1, 0.2, -0.3, 0.4\]"),
        ("logit_adjustment", {"tau": -0.5}, "tau >= 0, got -0.5"),
        ("focal", {"alpha": [0.1, 0.2]}, r"one alpha, or one for each of 4 classes, got \[0.1, 0.2\]"),
        ("label_smoothing", {"smoothing": 1.0}, r"smoothing in \[0, 1\), got 1"),
        ("label_smoothing", {"smoothing": -0.1}, r"smoothing in \[0, 1\), got -0.1"),
        ("mse", {"emphasis": 0.0}, "emphasis > 0, got 0"),
        ("dot_regression", {"target": 0.0}, "target > 0, got 0"),
        ("ldam", {"max_margin": -0.5}, "max_margin >= 0 and scale > 0, got -0.5 and 30"),
        ("ldam", {"scale": 0.0}, "max_margin >= 0 and scale > 0, got 0.5 and 0"),
        ("class_balanced", {"beta": 1.0}, r"beta in \[0, 1\), got 1"),
        ("ce", {"reweight": -0.5}, r"beta in \[0, 1\), got -0.5"),
    ],
)
def test_options_out_of_range_are_refused_when_the_loss_is_made(name, options, message):
    with pytest.raises(ValueError, match=message):
        create_loss(name, COUNTS, **options)


def test_without_class_counts_an_option_gives_the_number_of_classes():
    loss = create_loss("focal", alpha=[0.1, 0.2, 0.3, 0.4])
    assert loss(*logits_and_targets()) > 0
    with pytest.raises(ValueError, match="one for each of 3 classes"):
        loss(torch.zeros(1, 3), torch.zeros(1, dtype=torch.long))


@pytest.mark.parametrize("name", LOSSES)
def test_every_option_of_a_loss_changes_it(name):
    logits, targets = logits_and_targets(dtype=torch.float64)
    plain = create_loss(name, COUNTS)(logits, targets)
    for option, p in inspect.signature(LOSSES[name]).parameters.items():
        if p.kind is p.KEYWORD_ONLY and option != "class_counts":
            changed = create_loss(name, COUNTS, **{option: 0.7 * p.default if p.default else 0.5})
            assert abs(changed(logits, targets) - plain) > 1e-4, option


def test_a_loss_of_the_users_own_joins_the_table(monkeypatch):
    def margin(logits: Tensor, targets: Tensor, *, class_counts: Tensor, width: float = 1.0) -> Tensor:
        return width * class_counts.sum() + logits.sum() * 0

    monkeypatch.setitem(LOSSES, "margin", margin)
    assert create_loss("margin", COUNTS, width=2.0)(*logits_and_targets()) == 2 * sum(COUNTS)


# --- identities ---


def same(first, second, *, up_to_a_constant: bool = False) -> None:
    logits, targets = logits_and_targets(dtype=torch.float64)
    if not up_to_a_constant:
        torch.testing.assert_close(first(logits, targets), second(logits, targets))
    torch.testing.assert_close(gradient(first, logits, targets), gradient(second, logits, targets))


def test_balanced_softmax_is_logit_adjustment_at_tau_one():
    same(create_loss("balanced_softmax", COUNTS), create_loss("logit_adjustment", COUNTS, tau=1.0))


def test_logit_adjustment_at_tau_zero_is_cross_entropy():
    same(create_loss("logit_adjustment", COUNTS, tau=0.0), create_loss("ce"))


def test_arb_is_balanced_softmax():
    same(create_loss("arb", COUNTS), create_loss("balanced_softmax", COUNTS))


@pytest.mark.parametrize("tau", [0.0, 0.5, 1.0, 2.0])
def test_vs_at_gamma_zero_is_logit_adjustment(tau):
    same(create_loss("vs", COUNTS, gamma=0.0, tau=tau), create_loss("logit_adjustment", COUNTS, tau=tau))


@pytest.mark.parametrize("gamma", [0.0, 0.15, 1.0])
def test_vs_at_tau_zero_is_cdt(gamma):
    same(create_loss("vs", COUNTS, gamma=gamma, tau=0.0), create_loss("cdt", COUNTS, gamma=gamma))


def test_vs_at_zero_is_cross_entropy():
    same(create_loss("vs", COUNTS, gamma=0.0, tau=0.0), create_loss("ce"))


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.4])
def test_label_aware_smoothing_of_one_size_is_label_smoothing(smoothing):
    equal = create_loss("label_aware_smoothing", COUNTS, head=smoothing, tail=smoothing)
    same(equal, create_loss("label_smoothing", smoothing=smoothing))
    balanced = create_loss("label_aware_smoothing", [50] * K, head=smoothing, tail=0.9)
    same(balanced, create_loss("label_smoothing", smoothing=smoothing))


def test_focal_at_gamma_zero_is_cross_entropy():
    same(create_loss("focal", gamma=0.0), create_loss("ce"))


def test_label_smoothing_by_zero_is_cross_entropy():
    same(create_loss("label_smoothing", smoothing=0.0), create_loss("ce"))


def test_ldam_without_margin_at_scale_one_is_cross_entropy():
    same(create_loss("ldam", COUNTS, max_margin=0.0, scale=1.0), create_loss("ce"))


def test_class_balanced_at_beta_zero_is_cross_entropy():
    same(create_loss("class_balanced", COUNTS, beta=0.0), create_loss("ce"))


def test_mse_is_half_the_squared_distance_from_the_one_hot_target():
    same(create_loss("mse"), lambda z, y: (z - F.one_hot(y, K)).square().sum(1).mean() / 2)


@pytest.mark.parametrize("name", [name for name in OBVIOUS if name not in SHAPED])
def test_on_balanced_classes_the_losses_for_imbalanced_data_are_cross_entropy(name):
    same(create_loss(name, [50] * K), create_loss("ce"), up_to_a_constant=True)


@pytest.mark.parametrize("name", [name for name in LOSSES if name != "class_balanced"])
def test_only_the_ratio_of_class_counts_matters(name):
    """But for the effective number of samples: it saturates."""
    same(create_loss(name, COUNTS), create_loss(name, [10 * n for n in COUNTS]), up_to_a_constant=True)


# --- options and limits, one loss at a time ---


@pytest.mark.parametrize("gamma", [0.5, 1.0, 2.0, 5.0])
@pytest.mark.parametrize("alpha", [None, 0.25, [0.1, 0.2, 0.3, 0.4]])
def test_focal_is_the_obvious_formula(gamma, alpha):
    factors = alpha if isinstance(alpha, list) else [1.0 if alpha is None else alpha] * K
    logits, targets = logits_and_targets(dtype=torch.float64)
    expected = [obvious_focal(z, y, gamma, factors[y]) for z, y in zip(logits.tolist(), targets.tolist(), strict=True)]
    loss = create_loss("focal", gamma=gamma, alpha=alpha)
    assert loss(logits, targets).item() == pytest.approx(sum(expected) / B)


@pytest.mark.parametrize("gamma", [0.01, 0.5, 0.99, 1.0, 2.0])
@pytest.mark.parametrize("gap", [5.0, 16.0, 17.0, 36.0, 50.0, 103.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_focal_gradient_fades_as_p_reaches_one(gamma, gap, dtype):
    """For gamma < 1 the power's own derivative is infinite there; the product's is (1 + γ)(1 - p)^(1 + γ) at first."""
    logits, targets = torch.tensor([[gap, 0.0]], dtype=dtype), torch.tensor([0])
    grad = gradient(create_loss("focal", gamma=gamma), logits, targets)
    assert grad.isfinite().all()
    q, eps = 1 / (1 + math.exp(gap)), torch.finfo(dtype).eps
    largest = (1 + gamma) * (q + eps) ** (1 + gamma)
    assert -largest <= grad[0, 0] <= 0 <= grad[0, 1] <= largest
    if q > 1e3 * eps:
        assert -grad[0, 0].item() == pytest.approx((1 + gamma) * q ** (1 + gamma), rel=0.02, abs=0)


@pytest.mark.parametrize(("name", "options"), [("mse", {"target": 5.0, "emphasis": 15.0}), ("mse", {"emphasis": 0.5})])
def test_rescaled_mse_is_the_obvious_formula(name, options):
    logits, targets = logits_and_targets(dtype=torch.float64)
    expected = [obvious_mse(z, y, **options) for z, y in zip(logits.tolist(), targets.tolist(), strict=True)]
    assert create_loss(name, **options)(logits, targets).item() == pytest.approx(sum(expected) / B)


@pytest.mark.parametrize("target", [0.2, 1.0, 5.0])
def test_dot_regression_vanishes_exactly_at_its_target_and_sees_no_other_class(target):
    """½(w_y·h - √(E_W E_H))²/√(E_W E_H), with rows of length √E_W = 1 and features of length √E_H = target."""
    logits, targets = logits_and_targets(dtype=torch.float64)
    loss = create_loss("dot_regression", target=target)
    own = F.one_hot(targets, K).bool()
    assert loss(logits.masked_fill(own, target), targets) == 0
    off = loss(logits.masked_fill(own, target + 3), targets)
    assert off.item() == pytest.approx(9 / (2 * target))
    assert gradient(loss, logits, targets)[~own].count_nonzero() == 0


@pytest.mark.parametrize("target", [1.0, 5.0])
def test_squared_error_on_an_etf_fixes_length_and_leaves_the_orthogonal_part(target):
    """Why it needs features of bounded length there: the orthogonal part costs nothing and has no gradient."""
    generator = torch.Generator().manual_seed(0)
    etf = simplex_etf(K, 7, generator=generator, dtype=torch.float64)
    along = etf.mT @ torch.linalg.pinv(etf.mT)  # the projection on the span of the rows
    loss = create_loss("mse", target=target)
    for scale in (0.0, 1.0, 100.0):
        noise = scale * torch.randn(K, 7, generator=generator, dtype=torch.float64)
        features = (K - 1) / K * target * etf + noise - noise @ along
        assert loss(features @ etf.mT, torch.arange(K)).item() == pytest.approx(target**2 / (2 * K))
        grad = gradient(lambda h, y: loss(h @ etf.mT, y), features, torch.arange(K))
        torch.testing.assert_close(grad, torch.zeros(K, 7, dtype=torch.float64), atol=1e-9, rtol=0)


@pytest.mark.parametrize(("temperature", "cosine"), [(0.5, 1.0), ((K - 1) / K, 1.0), (5.0, (K - 1) / K / 5)])
def test_squared_error_on_a_large_sphere_fixes_an_angle(temperature, cosine):
    etf = simplex_etf(K, 7, dtype=torch.float64)
    orthogonal = torch.linalg.svd(etf).Vh[-1]  # a unit vector off the span of the rows
    loss = create_loss("mse")

    def at(c: float) -> float:
        h = temperature * (c * etf[:1] + math.sqrt(1 - c**2) * orthogonal)
        return loss(h @ etf.mT, torch.tensor([0])).item()

    assert all(at(cosine) <= at(step / 1000) + 1e-12 for step in range(1001))


def test_dot_regression_is_content_with_one_row_for_all_classes():
    """Why it is for rows that stay apart by themselves: here it is 0, and no class is told from another."""
    row = F.normalize(torch.ones(1, 7), dim=1)
    logits = row.expand(B, 7) @ row.expand(K, 7).mT
    targets = torch.arange(B) % K
    assert create_loss("dot_regression")(logits, targets).item() == pytest.approx(0, abs=1e-12)
    assert create_loss("ce")(logits, targets).item() == pytest.approx(math.log(K))


def test_ldam_margins_fall_with_the_fourth_root_of_class_size():
    """Logits level when the own one is ahead by the margin: then the loss is log K."""
    targets = torch.arange(K)
    loss = create_loss("ldam", COUNTS, max_margin=0.4)
    margins = torch.tensor([0.4 * (min(COUNTS) / n) ** 0.25 for n in COUNTS])
    for k in range(K):
        assert loss(torch.diag(margins)[k : k + 1], targets[k : k + 1]).item() == pytest.approx(math.log(K), rel=1e-5)


# --- class weights ---


@pytest.mark.parametrize("beta", [0.0, 0.5, 0.9, 0.99, 0.9999])
def test_class_weights_are_inverse_effective_numbers_with_mean_one(beta):
    weights = class_weights(torch.tensor(COUNTS), beta=beta)
    assert weights.tolist() == pytest.approx(obvious_weights(beta), rel=1e-9)
    assert (weights @ torch.tensor(COUNTS).double() / sum(COUNTS)).item() == pytest.approx(1)


def test_class_weights_range_from_one_to_equal_class_shares():
    counts = torch.tensor(COUNTS)
    assert class_weights(counts, beta=0.0).tolist() == [1.0] * K
    nearly = class_weights(counts, beta=1 - 1e-12)
    assert nearly.tolist() == pytest.approx([sum(COUNTS) / (K * n) for n in COUNTS], rel=1e-6)


@pytest.mark.parametrize("name", [name for name in LOSSES if name != "class_balanced"])
def test_a_reweighted_loss_is_each_samples_loss_times_its_class_weight(name):
    logits, targets = logits_and_targets(dtype=torch.float64)
    loss, weights = create_loss(name, COUNTS), class_weights(torch.tensor(COUNTS), beta=0.99)

    def one_by_one(z: Tensor, y: Tensor) -> Tensor:
        return sum(weights[y[i]] * loss(z[i : i + 1], y[i : i + 1]) for i in range(B)) / B

    reweighted = create_loss(name, COUNTS, reweight=0.99)
    torch.testing.assert_close(reweighted(logits, targets), one_by_one(logits, targets))
    torch.testing.assert_close(gradient(reweighted, logits, targets), gradient(one_by_one, logits, targets))


def test_reweighted_cross_entropy_is_the_class_balanced_loss():
    same(create_loss("ce", COUNTS, reweight=0.999), create_loss("class_balanced", COUNTS, beta=0.999))


def test_reweighting_needs_class_counts_whatever_the_loss():
    with pytest.raises(ValueError, match="re-weighting needs class_counts"):
        create_loss("ce", reweight=0.9)
    with pytest.raises(ValueError, match=r"re-weighting needs samples in every class, got class_counts=\[5, 0\]"):
        create_loss("ce", [5, 0], reweight=0.9)


# --- post-hoc adjustment ---


@pytest.mark.parametrize("tau", [0.0, 0.5, 1.0, 2.0])
def test_posthoc_adjustment_subtracts_what_training_added(tau):
    """Softmax with the prior^tau divided out, and the inverse of the shift in the loss."""
    logits, targets = logits_and_targets(dtype=torch.float64)
    adjusted = posthoc_adjustment(logits, COUNTS, tau=tau)
    divided = logits.softmax(1) / torch.tensor(COUNTS).double().pow(tau)
    torch.testing.assert_close(adjusted.softmax(1), divided / divided.sum(1, keepdim=True))
    trained = create_loss("logit_adjustment", COUNTS, tau=tau)
    torch.testing.assert_close(trained(adjusted, targets), create_loss("ce")(logits, targets))


def test_posthoc_adjustment_needs_samples_in_every_class():
    with pytest.raises(ValueError, match=r"post-hoc logit adjustment needs samples in every class.*\[5, 0, 2, 1\]"):
        posthoc_adjustment(torch.zeros(1, 4), [5, 0, 2, 1])


# --- two Gaussians ---


def gaussians(prior: float) -> tuple[list[int], Tensor, Tensor]:
    """Class counts, x and targets: classes at +1 (share `prior`) and -1, both of variance 1, at their quantiles."""
    counts = [round(4000 * prior), round(4000 * (1 - prior))]
    quantiles = [torch.distributions.Normal(0, 1).icdf((torch.arange(n).double() + 0.5) / n) for n in counts]
    x = torch.cat([quantiles[0] + 1, quantiles[1] - 1])
    return counts, x, torch.arange(2).repeat_interleave(torch.tensor(counts))


def boundary(name: str, prior: float, *, posthoc_tau: float = 0.0, **options: float) -> float:
    """Where the one-dimensional logistic model that minimizes the loss changes its mind, adjusted afterwards."""
    counts, x, targets = gaussians(prior)
    slope, offset = torch.ones(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    parameters = [slope.requires_grad_(), offset.requires_grad_()]
    loss = create_loss(name, counts, **options)
    optimizer = torch.optim.LBFGS(parameters, max_iter=100, tolerance_grad=1e-10, line_search_fn="strong_wolfe")

    def logits(x: Tensor) -> Tensor:
        return torch.stack([slope * x + offset, -slope * x - offset], dim=-1) / 2

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = loss(logits(x), targets)
        value.backward()
        return value

    optimizer.step(closure)
    margins = posthoc_adjustment(logits(torch.zeros(1).double()), counts, tau=posthoc_tau)[0]
    return -((margins[0] - margins[1]) / slope).item()


def bayes_boundary(prior: float) -> float:
    """-(σ²/2μ) log(π/(1-π)) for the class at +μ of prior π."""
    return -math.log(prior / (1 - prior)) / 2


@pytest.mark.parametrize("prior", [0.9, 0.98])
@pytest.mark.parametrize("tau", [0.0, 0.5, 1.0, 1.5])
def test_logit_adjustment_moves_the_boundary_to_one_minus_tau_of_bayes(prior, tau):
    """In training as after it; a wrong sign of τ would give 1 + τ."""
    expected = pytest.approx((1 - tau) * bayes_boundary(prior), abs=0.05)
    assert boundary("logit_adjustment", prior, tau=tau) == expected
    assert boundary("ce", prior, posthoc_tau=tau) == expected


def test_cross_entropy_favors_the_majority_and_imbalance_losses_do_not():
    assert boundary("ce", 0.9) == pytest.approx(bayes_boundary(0.9), abs=0.05)
    assert boundary("balanced_softmax", 0.9) == pytest.approx(0, abs=0.05)
    assert boundary("class_balanced", 0.9, beta=1 - 1e-9) == pytest.approx(0, abs=0.05)


SOFT_OPTIONS = {"focal": [{}, {"alpha": [0.5, 1.0, 2.0, 0.1]}], "mse": [{}, {"target": 3.0, "emphasis": 5.0}]}
SOFT_OPTIONS |= {"vs": [{}, {"gamma": 1.0, "tau": 0.5}], "label_aware_smoothing": [{}, {"head": 0.4, "tail": 0.2}]}
SOFT_OPTIONS |= {"ldam": [{}, {"max_margin": 2.0, "scale": 10.0}], "label_smoothing": [{}, {"smoothing": 0.3}]}


def soft_cases():
    return [(name, options) for name in LOSSES for options in SOFT_OPTIONS.get(name, [{}])]


def soft_targets(seed: int) -> torch.Tensor:
    drawn = torch.rand(6, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return drawn / drawn.sum(1, keepdim=True)


@pytest.mark.parametrize("reweight", [None, 0.9])
@pytest.mark.parametrize(("name", "options"), soft_cases())
@pytest.mark.parametrize("seed", range(3))
def test_soft_targets_share_the_loss_among_the_classes(seed, name, options, reweight):
    """The definition, one sample and one class after the other: Σ_k t_k ℓ(z, k)."""
    if name == "class_balanced" and reweight:
        return
    loss = create_loss(name, [40, 20, 10, 5], reweight=reweight, **options)
    logits = 3 * torch.randn(6, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    logits[0] *= 10  # a class that is nearly certain
    soft = soft_targets(seed)
    losses = torch.tensor([[loss(row[None], torch.tensor([k])).item() for k in range(4)] for row in logits])
    expected = (soft * losses.double()).sum(1).mean().item()
    assert loss(logits, soft).item() == pytest.approx(expected, rel=1e-6)
    targets = torch.arange(6) % 4
    hard, one_hot = loss(logits, targets), loss(logits, torch.nn.functional.one_hot(targets, 4).double())
    assert one_hot.item() == pytest.approx(hard.item(), rel=1e-9)


@pytest.mark.parametrize("name", LOSSES)
def test_the_gradient_of_a_soft_loss_is_that_of_finite_differences(name):
    loss = create_loss(name, [40, 20, 10, 5])
    logits = torch.randn(6, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda z: loss(z, soft_targets(1)), logits)


@pytest.mark.parametrize("name", LOSSES)
def test_soft_targets_that_are_no_shares_are_refused(name):
    loss = create_loss(name, [40, 20, 10, 5])
    for wrong in (2 * soft_targets(0), -soft_targets(0), soft_targets(0)[:, :3], soft_targets(0)[:5]):
        with pytest.raises(ValueError, match="soft targets must be shares|targets must be whole numbers"):
            loss(torch.zeros(6, 4, dtype=torch.float64), wrong)
