"""Losses: (logits (B, K), targets (B,)) -> scalar, the mean over the batch.

Targets may be soft: shares t (B, K) of the classes, as mixing and smoothing make them. Every loss is then
Σ_k t_k ℓ(z, k), the average of its values for each class, weighted by the shares.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ncflow.checks import check_batch, check_tensors, counts_tensor
from ncflow.lookup import check_options, explained_options, fact, facts, lookup, takes

Loss = Callable[[Tensor, Tensor], Tensor]
NO_PROBABILITIES = "it fits the logits to a target, and not probabilities to labels; try train.loss=ce"


def create_loss(
    name: str,
    class_counts: Sequence[int] | Tensor | None = None,
    *,
    reweight: float | None = None,
    label_smoothing: float = 0.0,
    **options: Any,
) -> Loss:
    """Return the loss called `name`, ready to call with (logits, targets).

    class_counts (K,) are the sizes of the training classes; the losses for imbalanced data need them. `reweight` is the
    β of `class_weights`, which multiply each sample's loss, for any loss. Starting it late in training is deferred
    re-weighting, [Cao et al. 2019](https://arxiv.org/abs/1906.07413). `label_smoothing` is the ε of targets (1 - ε)
    one-hot + ε/K, for losses of log-probabilities. A sample's class weight multiplies its smoothed loss. Raises
    ValueError for an unknown option, a value out of range, and smoothing where it has no meaning.

    Examples:
        >>> import torch
        >>> loss = create_loss("balanced_softmax", [100, 10])
        >>> logits, targets = torch.zeros(4, 2), torch.tensor([0, 0, 0, 1])
        >>> prior = torch.tensor([100 / 110, 10 / 110])
        >>> torch.allclose(loss(logits, targets), -prior.log()[targets].mean())
        True
    """
    loss = lookup(LOSSES, name, "loss")
    check_options(loss, options, f"loss '{name}'")
    refuse_smoothing(name, label_smoothing)
    class_counts = None if class_counts is None else _class_counts(class_counts)
    criterion = partial(loss, **options)
    if takes(loss, "class_counts"):
        criterion = partial(criterion, class_counts=_positive_counts(class_counts, f"loss '{name}'"))
    _try(criterion, class_counts, name, options)
    if label_smoothing:
        criterion = partial(_smoothed, criterion=criterion, smoothing=label_smoothing)
    if reweight is not None:
        if loss is class_balanced:
            raise ValueError(f"loss '{name}' weighs the classes already; reweight another loss, such as 'ce'")
        weights = class_weights(_positive_counts(class_counts, "re-weighting"), beta=reweight)
        criterion = partial(_weighted, criterion=criterion, weights=weights)
    return partial(_checked, criterion=criterion, num_classes=None if class_counts is None else len(class_counts))


def refuse_smoothing(name: str, smoothing: float) -> None:
    """Raise ValueError for a label smoothing out of range, and for a loss on which it has no meaning."""
    if not 0 <= smoothing < 1:
        raise ValueError(f"label smoothing lies in [0, 1), got {smoothing}")
    reason = fact(LOSSES.get(name), "unsmoothed", "")
    if smoothing and reason:
        raise ValueError(f"loss '{name}' takes no label smoothing, got {smoothing:g}: {reason}")


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """-log softmax(z)_y, in nats."""
    return F.cross_entropy(logits, targets)


def focal(
    logits: Tensor, targets: Tensor, *, gamma: float = 2.0, alpha: float | Sequence[float] | None = None
) -> Tensor:
    """-α_y (1 - p_y)^γ log p_y: cross-entropy with less weight on samples already right; γ = 0 is cross-entropy.

    alpha: one factor for all classes, or one for each. [Lin et al. 2017](https://arxiv.org/abs/1708.02002).
    """
    if not gamma >= 0:
        raise ValueError(f"focal loss needs gamma >= 0, got {gamma}")
    log_p = F.log_softmax(logits, dim=1)
    log_p = log_p if targets.ndim == 2 else log_p.gather(1, targets.unsqueeze(1)).squeeze(1)
    # Where p is near one, -expm1(log p) keeps the digits of 1 - p. The clamp keeps the gradient of the power finite.
    loss = -((-torch.expm1(log_p)).clamp(min=torch.finfo(log_p.dtype).tiny) ** gamma) * log_p
    if alpha is not None:
        factors = torch.as_tensor(alpha, dtype=loss.dtype)
        if factors.shape not in ((), logits.shape[1:]):
            raise ValueError(f"focal loss needs one alpha, or one for each of {logits.shape[1]} classes, got {alpha}")
        if not bool((factors >= 0).all()):
            raise ValueError(f"focal loss needs alpha >= 0, got {alpha}")
        factors = factors.to(loss.device).expand(logits.shape[1])
        loss = (factors if targets.ndim == 2 else factors[targets]) * loss
    return _shared(loss, targets) if targets.ndim == 2 else loss.mean()


@facts(corrects_sizes=True)
def logit_adjustment(logits: Tensor, targets: Tensor, *, class_counts: Tensor, tau: float = 1.0) -> Tensor:
    """Cross-entropy of z + τ log π with class priors π: training adds the prior, so the logits do not learn it.

    τ = 1 is Fisher consistent for the balanced error. [Menon et al. 2021](https://arxiv.org/abs/2007.07314).
    """
    if not tau >= 0:
        raise ValueError(f"logit adjustment needs tau >= 0, got {tau}")
    priors = class_counts / class_counts.sum()
    return F.cross_entropy(logits + tau * priors.log().to(logits), targets)


@facts(corrects_sizes=True)
def balanced_softmax(logits: Tensor, targets: Tensor, *, class_counts: Tensor) -> Tensor:
    """-log of n_y exp z_y / Σ_k n_k exp z_k; the same as logit adjustment with τ = 1.

    [Ren et al. 2020](https://arxiv.org/abs/2007.10740).
    """
    return F.cross_entropy(logits + class_counts.log().to(logits), targets)


@facts(corrects_sizes=True)
def vs(logits: Tensor, targets: Tensor, *, class_counts: Tensor, gamma: float = 0.15, tau: float = 1.0) -> Tensor:
    """Cross-entropy of Δ_k z_k + τ log π_k with Δ_k = (n_k / n_max)^γ: the vector-scaling loss.

    γ = 0 is logit adjustment. τ = 0 is `cdt`. Both 0 is cross-entropy. [Kini et al.
    2021](https://arxiv.org/abs/2103.01550).
    """
    if not (gamma >= 0 and tau >= 0):
        raise ValueError(f"vs needs gamma >= 0 and tau >= 0, got {gamma} and {tau}")
    scales = ((class_counts / class_counts.max()) ** gamma).to(logits)
    return F.cross_entropy(scales * logits + tau * (class_counts / class_counts.sum()).log().to(logits), targets)


@facts(corrects_sizes=True)
def cdt(logits: Tensor, targets: Tensor, *, class_counts: Tensor, gamma: float = 0.2) -> Tensor:
    """Cross-entropy of Δ_k z_k with Δ_k = (n_k / n_max)^γ: class-dependent temperatures.

    It is `vs` with τ = 0. [Ye et al. 2020](https://arxiv.org/abs/2001.01385).
    """
    return vs(logits, targets, class_counts=class_counts, gamma=gamma, tau=0.0)


@facts(unsmoothed="it smooths labels itself; set train.loss_options.smoothing")
def label_smoothing(logits: Tensor, targets: Tensor, *, smoothing: float = 0.1) -> Tensor:
    """Cross-entropy to (1 - ε) one-hot + ε/K; ε = 0 is cross-entropy.

    [Szegedy et al. 2016](https://arxiv.org/abs/1512.00567).
    """
    if not 0 <= smoothing < 1:
        raise ValueError(f"label smoothing needs smoothing in [0, 1), got {smoothing}")
    if targets.ndim == 2:
        return F.cross_entropy(logits, smooth(targets, smoothing))
    return F.cross_entropy(logits, targets, label_smoothing=smoothing)


def smooth(targets: Tensor, smoothing: float) -> Tensor:
    """Return targets (1 - ε) t + ε/K Σ t, of shares t (B, K) of the classes. The sum over the classes stays."""
    return (1 - smoothing) * targets + smoothing / targets.shape[1] * targets.sum(1, keepdim=True)


@facts(unsmoothed="it smooths labels itself; set train.loss_options.head and tail")
def label_aware_smoothing(
    logits: Tensor, targets: Tensor, *, class_counts: Tensor, head: float = 0.3, tail: float = 0.0
) -> Tensor:
    """Label smoothing with ε_y = tail + (head - tail)·sin(π/2 · (n_y - n_min)/(n_max - n_min)).

    head and tail are the ε of the largest and of the smallest class, in [0, 1). Both equal is label smoothing; so are
    balanced classes, with ε = head. ε spreads over all classes, as in the code of [Zhong et al.
    2021](https://arxiv.org/abs/2104.00466).
    """
    if not (0 <= head < 1 and 0 <= tail < 1):
        raise ValueError(f"label-aware smoothing needs head and tail in [0, 1), got {head} and {tail}")
    low, high = class_counts.min(), class_counts.max()
    share = torch.where(high > low, (class_counts - low) / (high - low).clamp(min=1e-300), 1.0)
    smoothing = (tail + (head - tail) * torch.sin(share * math.pi / 2)).to(logits)
    log_p = F.log_softmax(logits, dim=1)
    losses = -(1 - smoothing) * log_p - smoothing * log_p.mean(
        1, keepdim=True
    )  # of each class, if it were the sample's
    return _shared(losses, targets) if targets.ndim == 2 else losses.gather(1, targets.unsqueeze(1)).mean()


@facts(log_probabilities=False, unsmoothed=NO_PROBABILITIES)
def mse(logits: Tensor, targets: Tensor, *, target: float = 1.0, emphasis: float = 1.0) -> Tensor:
    """½(κ(z_y - M)² + Σ_{k≠y} z_k²), summed over classes: by default ½‖z - e_y‖² with e_y the one-hot target.

    M (`target`) and κ (`emphasis`) rescale the loss for many classes, for example to 5 and 15. [Hui and Belkin
    2021](https://arxiv.org/abs/2006.07322). On the unit rows of an ETF the logits sum to zero. There the minimum for κ
    = 1 is M²/(2K), where h is (K-1)/K·M long in the direction of w_y. Features scaled to a larger `temperature` settle
    at an angle to w_y.
    """
    if not emphasis > 0:
        raise ValueError(f"mse needs emphasis > 0, got {emphasis}")
    if targets.ndim == 2:
        others = logits.square().sum(1, keepdim=True) - logits.square()
        return _shared(emphasis * (logits - target).square() + others, targets) / 2
    own = F.one_hot(targets, logits.shape[1]).to(logits)
    return ((1 + (emphasis - 1) * own) * (logits - target * own).square()).sum(1).mean() / 2


@facts(log_probabilities=False, unsmoothed=NO_PROBABILITIES)
def dot_regression(logits: Tensor, targets: Tensor, *, target: float = 1.0) -> Tensor:
    """½(z_y - t)²/t with t = √(E_W E_H), the product of the target lengths of w_y and h: 0 where z_y = t.

    [Yang et al. 2022](https://arxiv.org/abs/2203.09081); with t = 1 also the form of [Markou et al.
    2024](https://arxiv.org/abs/2411.01248). It uses only the logit of the sample's own class. So it suits heads that
    hold the classes apart themselves, the ETF ones. Features scaled to norm `temperature` meet unit rows at z_y <=
    temperature. Then t = temperature requires alignment; a smaller t requires an angle.
    """
    if not target > 0:
        raise ValueError(f"dot regression needs target > 0, got {target}")
    if targets.ndim == 2:
        return _shared((logits - target).square(), targets) / (2 * target)
    own = logits.gather(1, targets.unsqueeze(1))
    return (own - target).square().mean() / (2 * target)


@facts(log_probabilities=False, unsmoothed="its margin is for the one true class; try train.loss=ce")
def ldam(
    logits: Tensor, targets: Tensor, *, class_counts: Tensor, max_margin: float = 0.5, scale: float = 30.0
) -> Tensor:
    """Cross-entropy of s·(z - m_y e_y) with margins m_k = C / n_k^¼; C gives the rarest class `max_margin`.

    Meant for logits that are cosines, from the linear head with normalize and temperature 1; s = `scale` scales them.
    Margin 0 and scale 1 give cross-entropy. [Cao et al. 2019](https://arxiv.org/abs/1906.07413).
    """
    if not max_margin >= 0 or not scale > 0:
        raise ValueError(f"ldam needs max_margin >= 0 and scale > 0, got {max_margin} and {scale}")
    margins = (max_margin * (class_counts.min() / class_counts) ** 0.25).to(logits)
    if targets.ndim == 2:
        own = scale * (logits - margins)  # the logit of each class, if it were the sample's
        return _shared(torch.logaddexp(_of_others(scale * logits), own) - own, targets)
    own = F.one_hot(targets, logits.shape[1])
    return F.cross_entropy(scale * (logits - margins * own), targets)


@facts(
    corrects_sizes=True,
    unsmoothed="its weights would apply to smoothed labels by class; try train.loss=ce with train.reweight, which "
    "weighs each sample",
)
def class_balanced(logits: Tensor, targets: Tensor, *, class_counts: Tensor, beta: float = 0.9999) -> Tensor:
    """Cross-entropy times the `class_weights` of β; β = 0 is cross-entropy.

    [Cui et al. 2019](https://arxiv.org/abs/1901.05555).
    """
    weights = class_weights(class_counts, beta=beta).to(logits)
    if targets.ndim == 2:
        return F.cross_entropy(logits, targets * weights)
    return (weights[targets] * F.cross_entropy(logits, targets, reduction="none")).mean()


def class_weights(class_counts: Tensor, *, beta: float) -> Tensor:
    """w_k (K,) in proportion to (1 - β)/(1 - β^{n_k}), one over the effective number of samples. β in [0, 1).

    At β = 0 all are 1. As β -> 1 they tend to N/(K n_k), where every class counts the same. Their mean over the
    training samples is one, so β does not change the learning rate. Others scale them to the sum K (Cui et al.), or in
    each batch (LDAM-DRW's code). These are the same weights at another learning rate. [Cui et al.
    2019](https://arxiv.org/abs/1901.05555).
    """
    if not 0 <= beta < 1:
        raise ValueError(f"class weights need beta in [0, 1), got {beta}")
    counts = class_counts.double()
    weights = -1 / torch.expm1(counts * torch.tensor(beta, dtype=torch.float64).log())
    return weights * counts.sum() / (counts @ weights)


def posthoc_adjustment(logits: Tensor, class_counts: Tensor | Sequence[int], *, tau: float = 1.0) -> Tensor:
    """z - τ log π of logits (..., K) with class priors π: remove the training prior at test time.

    Probabilities p_k become p_k/π_k^τ, up to normalization. Use it for models trained without adjustment: τ = 1 gives
    the probabilities of balanced classes. A model trained with adjustment would be adjusted twice. [Menon et al.
    2021](https://arxiv.org/abs/2007.07314).

    Examples:
        >>> import torch
        >>> posthoc_adjustment(torch.zeros(2), [100, 10], tau=1.0).argmax().item()
        1
    """
    counts = _positive_counts(class_counts, "post-hoc logit adjustment")
    check_tensors(logits=logits)
    if logits.shape[-1:] != counts.shape or not logits.is_floating_point() or not 0 <= tau < math.inf:
        raise ValueError(
            f"logits must be floats (..., {len(counts)}) and tau >= 0, got {tuple(logits.shape)} and {tau}"
        )
    return logits - tau * (counts / counts.sum()).log().to(logits)


def _try(criterion: Loss, class_counts: Sequence[int] | Tensor | None, name: str, options: Mapping[str, Any]) -> None:
    """Call a loss once, to reject options out of range or of a wrong type before the first epoch."""
    per_class = [len(option) for option in options.values() if isinstance(option, list | tuple)]  # such as an alpha
    num_classes = max(per_class, default=2) if class_counts is None else len(class_counts)
    device = class_counts.device if isinstance(class_counts, Tensor) else None
    with explained_options(f"loss '{name}'", options):
        criterion(torch.zeros(1, num_classes, device=device), torch.zeros(1, dtype=torch.long, device=device))


def _checked(logits: Tensor, targets: Tensor, *, criterion: Loss, num_classes: int | None) -> Tensor:
    """Return the loss. Raise if logits (B, K), targets (B,) and any class counts do not fit together."""
    check_tensors(logits=logits)
    if logits.ndim != 2 or not logits.is_floating_point() or logits.shape[1] != (num_classes or logits.shape[1]):
        expected = f"(B, {num_classes or 'K'})"
        raise ValueError(f"logits must be floats {expected}, got {tuple(logits.shape)} {logits.dtype}")
    check_batch(logits, targets, logits.shape[1])
    return criterion(logits, targets.to(logits.dtype) if targets.is_floating_point() else targets.long())


def _smoothed(logits: Tensor, targets: Tensor, *, criterion: Loss, smoothing: float) -> Tensor:
    """Return a criterion of smoothed targets; it is linear in soft targets."""
    shares = targets if targets.ndim == 2 else F.one_hot(targets, logits.shape[1]).to(logits)
    return criterion(logits, smooth(shares, smoothing))


def _weighted(logits: Tensor, targets: Tensor, *, criterion: Loss, weights: Tensor) -> Tensor:
    """Return the mean over the batch of w_y times each sample's loss, for any criterion that is a batch mean."""
    if targets.ndim == 2:  # valid because a loss is linear in soft targets
        return criterion(logits, targets * weights.to(logits))

    def sample_loss(logit: Tensor, target: Tensor) -> Tensor:
        return criterion(logit.unsqueeze(0), target.unsqueeze(0))

    return (weights.to(logits)[targets] * torch.vmap(sample_loss)(logits, targets)).mean()


def _shared(class_losses: Tensor, targets: Tensor) -> Tensor:
    """Return the batch mean of Σ_k t_k ℓ_k, with the class losses ℓ (B, K) and shares t (B, K)."""
    return (targets * class_losses).sum(1).mean()


def _of_others(logits: Tensor) -> Tensor:
    """log Σ_{j≠k} exp z_j of each class k: (B, K) -> (B, K).

    For all classes but the largest, subtract the class from the total. For the largest, sum the others directly,
    because next to it they could be lost to rounding.
    """
    total = logits.logsumexp(1, keepdim=True)
    largest = logits.argmax(1, keepdim=True)
    others = logits.scatter(1, largest, -torch.inf).logsumexp(1, keepdim=True)
    is_largest = torch.zeros_like(logits, dtype=torch.bool).scatter(1, largest, True)
    share = (logits - total).exp().masked_fill(is_largest, 0)
    return torch.where(is_largest, others, total + torch.log1p(-share))


def _class_counts(class_counts: Sequence[int] | Tensor) -> Tensor:
    counts = counts_tensor(class_counts)
    if counts.ndim != 1 or not len(counts):
        raise ValueError(f"class_counts must hold a number for each class, got shape {tuple(counts.shape)}")
    return counts


def _positive_counts(class_counts: Sequence[int] | Tensor | None, what: str) -> Tensor:
    if class_counts is None:
        raise ValueError(f"{what} needs class_counts, the number of training samples of each class")
    counts = _class_counts(class_counts)
    if not bool((counts > 0).all()):
        raise ValueError(f"{what} needs samples in every class, got class_counts={counts.long().tolist()}")
    return counts


# A row: (logits (B, K), targets (B,) or (B, K), options by keyword) -> scalar. Its facts, all optional:
# corrects_sizes       whether it removes the effect of the class sizes; then nothing else may do so
# log_probabilities    False where its logits are no log-probabilities, so that adding log-priors has no meaning
# unsmoothed           why it takes no label smoothing of its targets
LOSSES: dict[str, Callable[..., Tensor]] = {
    "ce": cross_entropy,
    "focal": focal,
    "logit_adjustment": logit_adjustment,
    "balanced_softmax": balanced_softmax,
    "arb": balanced_softmax,  # attraction-repulsion balanced, Xie et al. 2023: the same loss
    "vs": vs,
    "cdt": cdt,
    "mse": mse,
    "label_smoothing": label_smoothing,
    "label_aware_smoothing": label_aware_smoothing,
    "dot_regression": dot_regression,
    "ldam": ldam,
    "class_balanced": class_balanced,
}
