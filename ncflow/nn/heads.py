"""The classifier on top of the features: learned, a fixed frame, or the ETF nearest to the current class means.

A head maps (features (B, d), targets (B,) or None) to logits (B, K). The map is linear, with `weight` (K, d) and `bias`
(K,) or None. It acts on the embedded features that `embed` returns. `embed` scales them to norm `temperature`, unless
that is None. In eval mode weight and bias are stored tensors that state_dict carries. So no prediction depends on the
rest of its batch.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ncflow.checks import LARGEST, check_batch, check_tensors, check_whole, where_float64_is
from ncflow.geometry import FRAMES, nearest_etf, simplex_etf
from ncflow.geometry.nearest import SOLVERS
from ncflow.lookup import check_options, explained_options, facts, lookup, takes
from ncflow.nn.diagnostics import search_diagnostics, solution_diagnostics
from ncflow.nn.processes import is_recomputed, sum_over_processes
from ncflow.ranges import Count, Interval, NotNegative, Positive, Seed

CENTER_MOMENTUM = 0.1  # weight of a batch in the running mean of the features, as in batch normalization


class Head(nn.Module):
    """Base class of the heads: the embedding of features and the linear map. Subclasses define the map.

    Examples:
        >>> import torch
        >>> from ncflow import HEADS
        >>> head = HEADS["fixed_etf"](16, 10)
        >>> isinstance(head, Head), head(torch.zeros(2, 16)).shape, head.weight.shape
        (True, torch.Size([2, 10]), torch.Size([10, 16]))
    """

    weight: Tensor
    bias: Tensor | None
    given_targets: Tensor | None = None  # those that a TargetedModel around it passes on

    def __init__(self, num_features: int, num_classes: int, *, temperature: float | None) -> None:
        super().__init__()
        check_whole(least=-LARGEST, num_features=num_features, num_classes=num_classes)
        if num_classes < 2 or num_features < 1:
            raise ValueError(f"a head needs num_classes >= 2 and num_features >= 1, got {num_classes}, {num_features}")
        if temperature is not None and not 0 < temperature < math.inf:
            raise ValueError(f"temperature must be > 0, or None for unscaled features, got {temperature}")
        self.num_features, self.num_classes, self.temperature = num_features, num_classes, temperature

    def embed(self, features: Tensor) -> Tensor:
        """Return the linear map's input, (B, d) in the weight's dtype: temperature·h/‖h‖, or h itself. Idempotent."""
        check_tensors(features=features)
        if features.ndim < 2 or features.shape[-1] != self.num_features or not features.is_floating_point():
            expected = f"(B, {self.num_features})"
            raise ValueError(f"features must be floats {expected}, got {tuple(features.shape)} {features.dtype}")
        features = features.to(self.weight.dtype)
        return features if self.temperature is None else self.temperature * F.normalize(features, dim=-1)

    def classify(self, embedded: Tensor, targets: Tensor | None = None) -> Tensor:
        """Return logits (B, K) of embedded features (B, d). Only heads that follow class means use the targets (B,)."""
        # Outside autocast: a K x d product is cheap, and bfloat16 logits would blur the measured geometry.
        kind = embedded.device.type
        with torch.autocast(kind if torch.amp.is_autocast_available(kind) else "cpu", enabled=False):  # not on meta
            weight, bias = self.linear_map(embedded, self.given_targets if targets is None else targets)
            return F.linear(embedded, weight, bias)

    def linear_map(self, embedded: Tensor, targets: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Return the weight (K, d) and bias (K,) for this batch; in eval mode the stored ones."""
        raise NotImplementedError

    def forward(self, features: Tensor, targets: Tensor | None = None) -> Tensor:
        """Return logits (B, K) of features (B, d) as a backbone returns them."""
        return self.classify(self.embed(features), targets)

    def diagnostics(self, *, solver: bool = False) -> dict[str, float]:
        """Return diagnostics of the stored tensors by name; with `solver` also those of the solver.

        Logged as `head/<name>`. Most heads have none.
        """
        return {}

    def extra_repr(self) -> str:
        return f"num_features={self.num_features}, num_classes={self.num_classes}, temperature={self.temperature}"


@facts(rows="learned", theory="linear", color="#0072B2", marker="o")
class LinearHead(Head):
    """A learned classifier. With `normalize` it applies the rows of `raw_weight` scaled to unit norm.

    The learned parameter is `weight`, or `raw_weight` with `normalize`. In both cases `weight` is the linear map.

    Examples:
        >>> import torch
        >>> head = LinearHead(16, 10, normalize=True)
        >>> torch.allclose(head.weight.norm(dim=1), torch.ones(10))
        True
    """

    def __init__(
        self,
        num_features: int,
        num_classes: int,
        *,
        bias: bool = False,
        normalize: bool = False,
        temperature: Positive | None = None,
    ) -> None:
        super().__init__(num_features, num_classes, temperature=temperature)
        parameter = nn.Parameter(torch.empty(num_classes, num_features))
        nn.init.kaiming_uniform_(parameter, a=5**0.5)  # as nn.Linear does
        self.register_parameter("raw_weight" if normalize else "weight", parameter)
        self.bias = nn.Parameter(torch.zeros(num_classes)) if bias else None

    def linear_map(self, embedded: Tensor, targets: Tensor | None) -> tuple[Tensor, Tensor | None]:
        return self.weight, self.bias

    def __getattr__(self, name: str) -> Any:
        if name == "weight" and "raw_weight" in self._parameters:
            return F.normalize(self.raw_weight, dim=1)
        return super().__getattr__(name)


@facts(rows="fixed", unit_rows=True, theory="fixed_frame", color="#CC79A7", marker="D", defaults={"temperature": 5.0})
class FixedFrameHead(Head):
    """Unit rows that stay fixed: those of a `frame` in `ncflow.FRAMES`; no parameters.

    For K > d+1, where no simplex ETF exists, take the frame "softmax_code". `frame_seed` rotates a frame at random, or
    starts its search; None is the canonical one. The frame "seli" needs class_counts (K,), the sizes of the training
    classes. Raises ValueError for sizes that the frame does not have.

    Examples:
        >>> import torch
        >>> head = FixedFrameHead(16, 10, frame="orthogonal")
        >>> torch.allclose(head.weight @ head.weight.T, torch.eye(10), atol=1e-6)
        True
    """

    def __init__(
        self,
        num_features: int,
        num_classes: int,
        *,
        frame: str = "simplex_etf",
        temperature: Positive | None = None,
        frame_seed: Seed | None = None,
        class_counts: Sequence[int] | Tensor | None = None,
    ) -> None:
        super().__init__(num_features, num_classes, temperature=temperature)
        self.frame = frame
        rows = _fixed_rows(frame, num_features, num_classes, seed=frame_seed, class_counts=class_counts)
        self.register_buffer("weight", rows)
        self.bias = None

    def linear_map(self, embedded: Tensor, targets: Tensor | None) -> tuple[Tensor, Tensor | None]:
        return self.weight, self.bias

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, frame={self.frame!r}"


@facts(rows="fixed", is_frame=True, theory="fixed_etf", color="#D55E00", marker="s", defaults={"temperature": 5.0})
class FixedETFHead(FixedFrameHead):
    """A simplex ETF that stays fixed: canonical, or rotated at random by `rotation_seed`. d >= K-1; no parameters.

    [Yang et al. 2022](https://arxiv.org/abs/2203.09081).

    Examples:
        >>> import torch
        >>> head = FixedETFHead(16, 10)
        >>> cosines = head.weight @ head.weight.T
        >>> round(float(cosines[0, 1]), 4), [*head.parameters()]
        (-0.1111, [])
    """

    def __init__(
        self,
        num_features: int,
        num_classes: int,
        *,
        temperature: Positive | None = None,
        rotation_seed: Seed | None = None,
    ) -> None:
        super().__init__(num_features, num_classes, temperature=temperature, frame_seed=rotation_seed)


@dataclass
class _Kept:
    """A batch's targets and the state before it, kept for a forward that is repeated.

    earlier: the targets of the previous forward, if it has not been repeated yet. with_gradient: whether this forward
    ran with gradients. repeated: whether this forward has been repeated.
    """

    targets: Tensor
    state: tuple[Tensor, Tensor, Tensor]
    earlier: Tensor | None
    with_gradient: bool
    repeated: bool = False


@facts(rows="solved", is_frame=True, color="#009E73", marker="^")
class NearestETFHead(Head):
    """The simplex ETF W nearest to running class means of the features, and the bias -Wμ that centers the features.

    In training each batch first updates the class means: m_k += α (batch mean of class k - m_k). α is 1/(t+1) for
    momentum "cumulative", 2/(t+2) for "ema", or a constant in (0, 1]. t counts the earlier batches that had class k;
    the first batch always sets the mean. The batch mean μ centers the features in training; its running mean does in
    eval mode, as in batch normalization. Only the running mean is stored. With `differentiate` gradients also flow
    through W and μ. `proximal` holds the ETF near the previous one, which makes it unique while classes are missing.
    Classes never seen lie at the center of the others. Sums run over all processes. No parameters. Targets are classes
    (B,), or soft targets (B, K) that weight each sample in the class sums.

    Each forward in training mode updates the class means, even without gradients, as batch normalization does. Two
    forwards of one step update them twice. A forward that torch.utils.checkpoint repeats does not update them again.
    Other code may write the rows, for example by averaging models. Then the first forward in eval mode makes them an
    ETF again.

    `max_iterations` and `tolerance`, of the gradient's norm, belong to the solver "riemannian"; None keeps its default.
    [Markou et al. 2024](https://arxiv.org/abs/2411.01248); their averages are "cumulative" and "ema", both slow to
    forget the first epochs.

    Examples:
        >>> import torch
        >>> head = NearestETFHead(16, 10)
        >>> logits = head(torch.randn(20, 16), torch.arange(20) % 10)  # in training it takes the targets
        >>> torch.equal(head.eval()(torch.zeros(2, 16)), head.bias.expand(2, 10))
        True
    """

    bias: Tensor
    center: Tensor
    class_means: Tensor
    num_updates: Tensor

    def __init__(
        self,
        num_features: int,
        num_classes: int,
        *,
        temperature: Positive | None = 5.0,
        proximal: NotNegative = 1e-3,
        momentum: Annotated[float, Interval(gt=0, le=1)] | Literal["cumulative", "ema"] = 0.1,
        differentiate: bool = True,
        solver: Literal["closed_form", "riemannian"] = "closed_form",
        max_iterations: Count | None = None,
        tolerance: Positive | None = None,
        rotation_seed: Seed | None = None,
    ) -> None:
        super().__init__(num_features, num_classes, temperature=temperature)
        if not 0 <= proximal < math.inf:
            raise ValueError(f"proximal must be >= 0, got {proximal}")
        self.solver_options = _solver_options(solver, max_iterations=max_iterations, tolerance=tolerance)
        self.proximal, self.differentiate, self.solver = proximal, differentiate, solver
        self.momentum, self._rate = momentum, _averaging_rate(momentum)
        self.register_buffer("weight", _initial_etf(num_features, num_classes, rotation_seed))
        self.register_buffer("bias", torch.zeros(num_classes))
        self.register_buffer("center", torch.zeros(num_features))
        self.register_buffer("class_means", torch.zeros(num_classes, num_features))
        self.register_buffer("num_updates", torch.zeros(num_classes, dtype=torch.long))
        self._before: _Kept | None = None
        self._frame: tuple[weakref.ref[Tensor], int] | None = None  # rows known to be an ETF, their write count

    def __getstate__(self) -> dict[str, Any]:
        """Return the state without references to these tensors, because a copy has other tensors."""
        return self.__dict__ | {"_before": None, "_frame": None}

    def train(self, mode: bool = True) -> NearestETFHead:
        super().train(mode)
        if not mode and _has_values(self.weight) and bool(self.weight.isfinite().all()):
            self._restore_frame()  # now, since exported or compiled code cannot read values
        return self

    def linear_map(self, embedded: Tensor, targets: Tensor | None) -> tuple[Tensor, Tensor | None]:
        if not self.training:
            if _has_values(self.weight):
                self._restore_frame()
            return self.weight, self.bias
        if targets is None:
            raise ValueError(
                "the nearest-ETF head needs targets in training mode: got None; call head(features, targets), wrap a "
                "model that passes no targets in ncflow.nn.TargetedModel, or call eval() to use the stored map"
            )
        check_batch(embedded, targets, self.num_classes)
        again = is_recomputed()
        seen, means, anchor = self._recall(targets) if again else self._keep(targets)
        embedded = embedded if self.differentiate else embedded.detach()
        sums, counts = self._batch_sums(embedded, targets)
        batch_mean = sums.sum(0) / counts.sum()
        means = self._moved(means, seen, sums, counts)
        seen = seen + (counts.squeeze(1) > 0).long()
        etf = nearest_etf(
            _fill(means, seen), proximal=self.proximal, anchor=anchor, solver=self.solver, **self.solver_options
        )
        if not again:
            self._store(etf, means, seen, batch_mean)
        return etf, -(etf @ batch_mean)

    @torch.no_grad()
    def _store(self, etf: Tensor, means: Tensor, seen: Tensor, batch_mean: Tensor) -> None:
        """Write the state after a batch in place, because data-parallel training keeps references to the buffers."""
        first = ~self.num_updates.any()
        self.center.lerp_(batch_mean, torch.where(first, 1.0, CENTER_MOMENTUM).to(batch_mean.dtype))
        self.num_updates.copy_(seen)
        self.class_means.copy_(means)
        self.weight.copy_(etf)
        self.bias.copy_(-(etf @ self.center))
        if not torch.compiler.is_compiling():
            self._know_frame()

    def _keep(self, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the state before a batch, and keep it: num_updates (K,), class_means (K, d), weight (K, d)."""
        if torch.compiler.is_compiling():
            return self.num_updates.clone(), self.class_means.clone(), _only_once(self.weight)
        state = self.num_updates.clone(), self.class_means.clone(), self.weight.clone()
        before = self._before
        earlier = None if before is None or before.repeated else before.targets
        self._before = _Kept(targets.detach(), state, earlier, torch.is_grad_enabled())
        return state

    def _recall(self, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the state before the last batch, for torch.utils.checkpoint, which runs forward twice."""
        kept, remedy = self._before, "call backward after each forward, or leave the head out of torch.utils.checkpoint"
        if kept is None or not torch.equal(kept.targets, targets):
            raise ValueError(
                "the nearest-ETF head is recomputed for a batch that is not its last one, so its class means have "
                f"changed; {remedy}"
            )
        unsure = kept.repeated or not kept.with_gradient
        if unsure and kept.earlier is not None and torch.equal(kept.earlier, targets):
            raise ValueError(
                "the nearest-ETF head is recomputed after two forwards with the same targets, and cannot identify "
                f"the one to repeat; {remedy}"
            )
        kept.repeated = True
        return kept.state

    @torch.no_grad()
    def _restore_frame(self) -> None:
        """Make the stored rows an ETF again if other code wrote them, as averages of models do.

        The average of ETFs is not an ETF. Use the ETF nearest to the stored class means; `proximal` holds it near the
        average. If averaging rounds num_updates to 0, no means remain. Then use the ETF nearest to the rows.
        """
        rows, version = self._frame or (None, 0)
        untouched = rows is not None and rows() is self.weight and version == self.weight._version
        if untouched and _has_unit_rows(self.weight):
            return
        if self.weight.any() and not _is_frame(self.weight):  # zeros: rows not loaded yet
            etf = nearest_etf(self.weight)
            if self.num_updates.any():
                etf = nearest_etf(_fill(self.class_means, self.num_updates), proximal=self.proximal, anchor=etf)
            self.weight.copy_(etf)
            self.bias.copy_(-(self.weight @ self.center))
        self._know_frame()

    def _know_frame(self) -> None:
        """Record that the rows are an ETF until the next write. Inference tensors do not count their writes."""
        self._frame = None if self.weight.is_inference() else (weakref.ref(self.weight), self.weight._version)

    @torch.no_grad()
    def diagnostics(self, *, solver: bool = False) -> dict[str, float]:
        if not self.num_updates.any():  # no means yet, no problem to solve
            return {}
        means = _fill(self.class_means, self.num_updates)
        found = solution_diagnostics(means, self.weight, proximal=self.proximal)
        if solver:
            found |= search_diagnostics(means, self.weight, proximal=self.proximal, **self.solver_options)
        return found

    def _batch_sums(self, embedded: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Return class sums (K, d) and counts (K, 1) over all processes; soft targets (B, K) weight each sample."""
        if targets.ndim == 1:
            members = F.one_hot(targets.long(), self.num_classes).to(embedded.dtype).mT  # (K, B)
        else:
            members = targets.to(embedded.dtype).mT
        sums = sum_over_processes(torch.cat([members @ embedded, members.sum(1, keepdim=True)], dim=1))
        return sums[:, :-1], sums[:, -1:].detach()

    def _moved(self, means: Tensor, seen: Tensor, sums: Tensor, counts: Tensor) -> Tensor:
        """Return class means (K, d) after a batch; the gradient reaches only the batch.

        With soft targets a class may have less than one sample in total. Then its mean moves proportionally less.
        """
        evidence = torch.where(seen.unsqueeze(1) > 0, counts.clamp(max=1), (counts > 0).to(counts.dtype))
        rate = self._rate(seen).to(sums.dtype).unsqueeze(1) * evidence
        return means + rate * (sums / torch.where(counts > 0, counts, 1) - means)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, proximal={self.proximal}, momentum={self.momentum!r}, solver={self.solver!r}"


def create_head(
    name: str,
    num_features: int,
    num_classes: int,
    *,
    class_counts: Sequence[int] | Tensor | None = None,
    **options: Any,
) -> Head:
    """Return the head called `name`; an alias of the second seed is also valid.

    class_counts (K,) are the sizes of the training classes, for heads that use them. Raises ValueError for a name or an
    option that does not exist.

    Examples:
        >>> head = create_head("nearest_etf", 16, 10, proximal=0.01)
        >>> head.weight.shape
        torch.Size([10, 16])
    """
    name = HEAD_ALIASES.get(name, name)
    head = lookup(HEADS, name, "head")
    check_options(head, options, f"head '{name}'")
    given = {"class_counts": class_counts} if takes(head, "class_counts") else {}
    with explained_options(f"head '{name}'", options):
        return head(num_features, num_classes, **options, **given)


def _fill(means: Tensor, seen: Tensor) -> Tensor:
    """Return class means (K, d), with classes never seen (seen (K,) = 0) at the center of the others."""
    known = (seen > 0).unsqueeze(1)
    return torch.where(known, means, (means * known).sum(0) / known.sum())


def _has_values(tensor: Tensor) -> bool:
    """Return whether code may read the values of a tensor: not while torch compiles, exports, maps or infers shapes."""
    return not (
        torch.compiler.is_compiling()
        or torch._C._are_functorch_transforms_active()
        or tensor.is_meta
        or type(tensor) is not Tensor
        or torch.utils._python_dispatch._get_current_dispatch_mode() is not None
    )


@torch.library.custom_op("ncflow::only_once", mutates_args=())
def _only_once(tensor: Tensor) -> Tensor:
    """Return a copy, in a compiled forward. Raise if compiled code repeats the forward after the state has changed."""
    if is_recomputed():
        raise ValueError(
            "the nearest-ETF head is inside torch.utils.checkpoint in compiled code, which repeats it with the next "
            "step's class means; compile it without checkpointing, or leave the head out of what is checkpointed"
        )
    return tensor.clone()


@_only_once.register_fake
def _shape_of_copy(tensor: Tensor) -> Tensor:
    return torch.empty_like(tensor)


def _has_unit_rows(weight: Tensor) -> bool:
    """Return whether rows (K, d) have unit norm up to rounding. Averages are shorter, even if written through .data."""
    return bool((torch.linalg.vector_norm(weight, dim=1) - 1).abs().max() < 64 * torch.finfo(weight.dtype).eps)


def _is_frame(weight: Tensor) -> bool:
    """Return whether rows (K, d) are a simplex ETF up to rounding."""
    num_classes = len(weight)
    rows = where_float64_is(weight).double()
    ideal = torch.eye(num_classes, dtype=rows.dtype, device=rows.device).sub_(1 / num_classes)
    gap = rows @ rows.mT - ideal * (num_classes / (num_classes - 1))
    return bool(gap.abs().max() < 64 * torch.finfo(weight.dtype).eps)


def _fixed_rows(frame: str, num_features: int, num_classes: int, *, seed: int | None, class_counts: Any) -> Tensor:
    """Return the unit rows (K, d) of a frame, in torch's default dtype. A row of FRAMES gets what it takes."""
    row = lookup(FRAMES, frame, "frame")
    options = {} if seed is None else {"seed": seed}
    check_options(row, options, f"frame '{frame}'")
    given = {"class_counts": class_counts} if takes(row, "class_counts") else {}
    rows = row(num_classes, num_features, **options, **given)
    check_tensors(**{f"frame '{frame}'": rows})
    fits = rows.shape == (num_classes, num_features) and rows.is_floating_point()
    if not fits or (_has_values(rows) and not _has_unit_rows(rows)):
        raise ValueError(
            f"frame '{frame}' must return {num_classes} unit rows of {num_features} features, got shape "
            f"{tuple(rows.shape)}; normalize its rows"
        )
    return rows.to(torch.get_default_dtype())


def _initial_etf(num_features: int, num_classes: int, rotation_seed: int | None) -> Tensor:
    generator = None if rotation_seed is None else torch.Generator().manual_seed(rotation_seed)
    return simplex_etf(num_classes, num_features, generator=generator)


def _solver_options(solver: str, **options: Any) -> dict[str, Any]:
    """Return the options of a solver that are not None. Raise for those it lacks and for values out of range."""
    chosen = {name: value for name, value in options.items() if value is not None}
    check_options(lookup(SOLVERS, solver, "solver"), chosen, f"solver '{solver}'")
    for name, value in chosen.items():
        if not value > 0:
            raise ValueError(f"solver '{solver}' needs {name} > 0, got {value}")
    return chosen


def _averaging_rate(momentum: str | float) -> Callable[[Tensor], Tensor]:
    """Return a function: number of earlier batches (K,) -> weight of a new batch in the running mean."""
    if isinstance(momentum, str):
        return lookup(AVERAGES, momentum, "momentum")
    if not 0 < momentum <= 1:
        raise ValueError(f"momentum must be {', '.join(map(repr, AVERAGES))} or a number in (0, 1], got {momentum}")
    return partial(_constant, rate=float(momentum))


def _constant(count: Tensor, *, rate: float) -> Tensor:
    return torch.where(count > 0, rate, 1.0)


def _cumulative(count: Tensor) -> Tensor:
    return 1 / (count + 1)


def _exponential(count: Tensor) -> Tensor:
    return 2 / (count + 2)


AVERAGES: dict[str, Callable[[Tensor], Tensor]] = {"cumulative": _cumulative, "ema": _exponential}
HEAD_ALIASES = {"standard": "linear", "fixed": "fixed_etf", "implicit": "nearest_etf"}  # the second seed's names
# A row: (num_features, num_classes, options by keyword) -> head. Its facts, all optional:
# rows        the origin of its weight: "learned", "fixed", or "solved" for each batch
# is_frame    whether its weight is a simplex ETF
# unit_rows   whether its rows are others of norm 1 that do not learn
# theory      a key of ncflow.reports.predictions.THEORIES
# color, marker    used in reports and in MLflow
# defaults    options whose default differs in a configuration
HEADS: dict[str, Callable[..., Head]] = {
    "linear": LinearHead,
    "fixed_etf": FixedETFHead,
    "fixed_frame": FixedFrameHead,
    "nearest_etf": NearestETFHead,
}
