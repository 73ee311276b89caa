"""Heads in other people's loops: checkpointing, compiling, averaging, soft targets, foreign models."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.checkpoint import checkpoint
from two_processes import on_two

from ncflow.geometry import simplex_etf
from ncflow.nn import HEADS, NearestETFHead, TargetedModel, create_head

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning", "ignore::DeprecationWarning")
SEEDS = range(3)


def batch(seed: int, *, count: int = 12, dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(count, 8, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
    return features, torch.randint(5, (count,), generator=generator)


def assert_same_state(one: nn.Module, other: nn.Module) -> None:
    for name, tensor in one.state_dict().items():
        torch.testing.assert_close(other.state_dict()[name], tensor, rtol=0, atol=0, msg=name)


@pytest.mark.parametrize("use_reentrant", [False, True])
@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("seed", SEEDS)
def test_checkpointing_changes_neither_gradient_nor_state(seed, head, use_reentrant):
    torch.manual_seed(seed)
    plain = create_head(head, 8, 5).double()
    body = nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.3)).double()
    repeated, other_body = copy.deepcopy(plain), copy.deepcopy(body)
    for step in range(4):
        features, targets = batch(10 * seed + step)
        again = features.detach().clone().requires_grad_()
        torch.manual_seed(step)
        F.cross_entropy(plain(body(features), targets), targets).backward()
        torch.manual_seed(step)
        logits = checkpoint(lambda h, y: repeated(other_body(h), y), again, targets, use_reentrant=use_reentrant)
        F.cross_entropy(logits, targets).backward()
        assert torch.equal(again.grad, features.grad)
    assert_same_state(plain, repeated)


@pytest.mark.parametrize("views", ["two", "one twice", "one without gradients"])
def test_two_forwards_of_the_same_targets_are_not_repeated_in_doubt(views):
    """Contrastive learning shows a batch twice: the state that the first forward met is gone."""
    head = NearestETFHead(8, 5).double()
    (first, targets), (second, _) = batch(0), batch(1)
    second = first if views == "one twice" else second
    loss = F.cross_entropy(checkpoint(head, first, targets, use_reentrant=False), targets)
    if views == "one without gradients":
        with torch.no_grad():
            head(second, targets)
    else:
        loss = loss + F.cross_entropy(checkpoint(head, second, targets, use_reentrant=False), targets)
    with pytest.raises(ValueError, match="after two forwards with the same targets"):
        loss.backward()


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_steps_of_full_batches_with_the_same_targets_are_repeated(use_reentrant):
    head = NearestETFHead(8, 5).double()
    features, targets = batch(0)
    for _ in range(3):
        F.cross_entropy(checkpoint(head, features, targets, use_reentrant=use_reentrant), targets).backward()
    assert head.num_updates.max() == 3


def test_a_batch_that_is_not_the_last_one_is_not_repeated():
    head = NearestETFHead(8, 5).double()
    (first, targets), (second, others) = batch(0), batch(1)
    losses = [
        F.cross_entropy(checkpoint(head, h, y, use_reentrant=False), y) for h, y in ((first, targets), (second, others))
    ]
    with pytest.raises(ValueError, match="recomputed for a batch that is not its last one"):
        sum(losses).backward()


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_a_compiled_head_is_the_same(backend):
    torch._dynamo.reset()
    torch.manual_seed(0)
    plain = NearestETFHead(8, 5)
    other = copy.deepcopy(plain)
    compiled = torch.compile(other, fullgraph=True, backend=backend)
    for step in range(3):
        features, targets = batch(step, dtype=torch.float32)
        again = features.detach().clone().requires_grad_()
        F.cross_entropy(plain(features, targets), targets).backward()
        F.cross_entropy(compiled(again, targets), targets).backward()
        torch.testing.assert_close(again.grad, features.grad)
    for name, tensor in plain.state_dict().items():
        torch.testing.assert_close(other.state_dict()[name], tensor)


AVERAGES = {"equal": {}, "exponential": {"multi_avg_fn": get_ema_multi_avg_fn(0.8)}}


@pytest.mark.parametrize("average", AVERAGES)
@pytest.mark.parametrize("head", ["fixed_etf", "nearest_etf"])
def test_an_average_of_models_has_an_etf_again(head, average):
    torch.manual_seed(0)
    model = create_head(head, 8, 5).double()
    averaged = AveragedModel(model, use_buffers=True, **AVERAGES[average])
    for step in range(6):
        features, targets = batch(step)
        model((features + 3 * step * torch.eye(8)[:5].double()[targets]), targets)
        averaged.update_parameters(model)
    logits = averaged.eval()(features)
    weight, bias = averaged.module.weight, averaged.module.bias
    torch.testing.assert_close(
        weight @ weight.mT, simplex_etf(5, 5).double() @ simplex_etf(5, 5).double().mT, atol=1e-6, rtol=0
    )
    torch.testing.assert_close(logits, F.linear(averaged.module.embed(features), weight, bias))
    assert torch.equal(averaged(features), logits)


def is_etf(weight: torch.Tensor) -> bool:
    ideal = simplex_etf(len(weight), dtype=torch.float64)
    return torch.allclose(weight.double() @ weight.double().mT, ideal @ ideal.mT, atol=1e-5, rtol=0)


@torch.no_grad()
def all_floats(average, model):
    for mean, value in zip(average.state_dict().values(), model.state_dict().values(), strict=True):
        mean.copy_(0.9 * mean + 0.1 * value)  # of counts, too: they stay 0


@torch.no_grad()
def without_counts(average, model):
    for name, mean in average.state_dict().items():
        if mean.is_floating_point():
            mean.mul_(0.9).add_(model.state_dict()[name], alpha=0.1)


@torch.no_grad()
def unseen(average, model):
    for mean, value in zip(average.buffers(), model.buffers(), strict=True):
        mean.data.copy_((0.9 * mean + 0.1 * value).to(mean.dtype))


@pytest.mark.parametrize("update", [all_floats, without_counts, unseen])
@pytest.mark.parametrize("before", [0, 1, 3])  # a copy must not inherit what is known of the original's rows
def test_averages_that_others_write_have_an_etf_again(update, before):
    model = NearestETFHead(8, 5).double()
    for step in range(before):
        model(*batch(step))
    average = copy.deepcopy(model).eval()
    for step in range(6):
        features, targets = batch(10 + step)
        model(features + 3 * step * torch.eye(8)[:5].double()[targets], targets)
        update(average, model)
        average(features)
        assert is_etf(average.weight), step


def test_rows_written_in_inference_mode_are_an_etf_again():
    with torch.inference_mode():
        head = NearestETFHead(8, 5).double()
        head.load_state_dict({name: 0.9 * value for name, value in head.state_dict().items()})
        head.eval()(batch(0)[0])
        assert is_etf(head.weight)


@pytest.mark.parametrize("way", ["export", "compile"])
def test_an_average_leaves_the_house_with_an_etf(way):
    """Code that is traced cannot look at the rows; eval() does."""
    torch._dynamo.reset()
    head = NearestETFHead(8, 5).double()
    head(*batch(0))
    head.weight.mul_(0.9)
    head.eval()
    features = batch(1)[0].detach()
    program = torch.compile(head, backend="eager", fullgraph=True)
    program = torch.export.export(head, (features,)).module() if way == "export" else program
    torch.testing.assert_close(program(features), head(features))
    assert is_etf(head.weight)


def test_a_head_that_trained_is_evaluated_as_it_is():
    head = NearestETFHead(8, 5)
    features, targets = batch(0, dtype=torch.float32)
    head(features, targets)
    before = {name: tensor.clone() for name, tensor in head.state_dict().items()}
    for copied in (head, copy.deepcopy(head), pickle.loads(pickle.dumps(head))):
        copied.eval()(features)
        for name, tensor in before.items():
            assert torch.equal(copied.state_dict()[name], tensor)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_a_head_in_another_precision_stays_a_head(dtype):
    head = NearestETFHead(8, 5)
    features, targets = batch(0, dtype=torch.float32)
    head(features, targets)
    converted = copy.deepcopy(head).to(dtype).eval()
    expected = head.eval()(features)
    torch.testing.assert_close(converted(features.to(dtype)).float(), expected, rtol=0.05, atol=0.1)


def test_a_saved_head_is_loaded_strictly():
    head, buffer = NearestETFHead(8, 5), io.BytesIO()
    head(*batch(0, dtype=torch.float32))
    torch.save(head.state_dict(), buffer)
    buffer.seek(0)
    other = NearestETFHead(8, 5)
    other.load_state_dict(torch.load(buffer, weights_only=True))
    assert_same_state(head, other)


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int16, torch.uint16, torch.int32, torch.uint32])
@pytest.mark.parametrize("head", HEADS)
def test_targets_may_be_whole_numbers_of_any_width(head, dtype):
    torch.manual_seed(0)
    one = create_head(head, 8, 5).double()
    other = copy.deepcopy(one)
    features, targets = batch(0)
    assert torch.equal(one(features, targets), other(features, targets.to(dtype)))


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("seed", SEEDS)
def test_one_hot_soft_targets_are_hard_ones(seed, head):
    torch.manual_seed(seed)
    one = create_head(head, 8, 5).double()
    other = copy.deepcopy(one)
    for step in range(3):
        features, targets = batch(10 * seed + step)
        soft = F.one_hot(targets, 5).double()
        torch.testing.assert_close(other(features, soft), one(features, targets))
    for name, tensor in one.state_dict().items():
        torch.testing.assert_close(other.state_dict()[name], tensor)


def test_soft_targets_weigh_the_sums_of_the_classes():
    head = NearestETFHead(8, 5, temperature=None, momentum=1.0).double()
    features, _ = batch(0)
    shares = torch.rand(12, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    shares /= shares.sum(1, keepdim=True)
    head(features, shares)
    torch.testing.assert_close(head.class_means, (shares.mT @ features) / shares.sum(0).unsqueeze(1))


def test_little_evidence_moves_a_mean_little():
    head = NearestETFHead(8, 5, temperature=None, momentum=1.0).double()
    features, targets = batch(0, count=40)
    head(features, targets)
    before = head.class_means.clone()
    shares = F.one_hot(torch.zeros(4, dtype=torch.long), 5).double()
    shares[:, 0], shares[:, 1] = 0.95, 0.05  # 0.2 of a sample in all
    head(features[:4], shares)
    torch.testing.assert_close(head.class_means[1], before[1] + 0.2 * (features[:4].mean(0) - before[1]))


@pytest.mark.parametrize("shares", [[[0.5, 0.6]], [[-0.1, 1.1]], [[0.2, 0.2]], [[float("nan"), 1.0]]])
def test_shares_that_are_none_are_refused(shares):
    head = NearestETFHead(8, 2).double()
    with pytest.raises(ValueError, match="soft targets must be shares of the classes"):
        head(batch(0, count=1)[0], torch.tensor(shares).double())


class Foreign(nn.Module):
    """A model that calls its classifier with features alone, as those of timm and transformers do."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.body, self.fc = nn.Linear(8, 8).double(), head

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return self.fc(self.body(features))


def test_a_foreign_model_gets_its_targets_to_its_head():
    torch.manual_seed(0)
    model = Foreign(NearestETFHead(8, 5).double())
    direct = copy.deepcopy(model)
    features, targets = batch(0)
    logits = TargetedModel(model)(features, targets=targets)
    torch.testing.assert_close(logits, direct.fc(direct.body(features), targets))
    assert_same_state(model, direct)
    with pytest.raises(ValueError, match="needs targets in training mode"):
        TargetedModel(model)(features)
    with pytest.raises(ValueError, match="needs targets"):
        model(features)  # those of the last call are not kept
    assert TargetedModel(model).eval()(features).shape == (12, 5)


def test_a_model_without_a_head_has_no_use_for_targets():
    with pytest.raises(ValueError, match="expected a model with a head of ncflow"):
        TargetedModel(nn.Linear(8, 5))


@pytest.mark.slow
def test_a_timm_model_trains_with_a_head_as_its_classifier():
    import timm

    model = timm.create_model("resnet10t", num_classes=0)
    model.fc = NearestETFHead(model.num_features, 5)
    targets = torch.arange(4) % 5
    F.cross_entropy(TargetedModel(model)(torch.randn(4, 3, 32, 32), targets=targets), targets).backward()
    assert model.fc.num_updates.tolist() == [1, 1, 1, 1, 0]
    assert any(p.grad is not None and p.grad.any() for p in model.parameters())


def join(rank: int, folder: str) -> None:
    """One of two processes, the second of which has fewer batches."""
    torch.manual_seed(0)
    model = nn.parallel.DistributedDataParallel(TargetedModel(Foreign(NearestETFHead(8, 5).double())))
    try:
        with model.join():
            for step in range(3 - rank):
                features, targets = batch(step)
                F.cross_entropy(model(features, targets=targets), targets).backward()
        message = "no error"
    except ValueError as error:
        message = str(error)
    with open(f"{folder}/{rank}", "w") as file:
        file.write(message)


@pytest.mark.slow
def test_uneven_inputs_are_refused_before_a_process_waits_for_ever(tmp_path):
    on_two(join, str(tmp_path))
    for rank in range(2):
        assert "expected as many batches in each, got uneven inputs" in (tmp_path / str(rank)).read_text()


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("seed", SEEDS)
def test_an_ensemble_of_heads_is_mapped_like_a_loop(seed, training):
    torch.manual_seed(seed)
    heads = [NearestETFHead(8, 5, rotation_seed=k).double().train(training) for k in range(3)]
    (features, targets), inputs = batch(seed), (batch(seed)[0],)
    inputs = (features, targets) if training else inputs
    parameters, buffers = torch.func.stack_module_state(heads)
    buffers = {name: tensor.clone() for name, tensor in buffers.items()}
    template = copy.deepcopy(heads[0])
    found = torch.func.vmap(lambda p, b: torch.func.functional_call(template, (p, b), inputs))(parameters, buffers)
    torch.testing.assert_close(found, torch.stack([head(*inputs) for head in heads]))


def test_a_head_tells_its_shapes_without_numbers():
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        assert NearestETFHead(8, 5).eval()(torch.randn(6, 8)).shape == (6, 5)


@pytest.mark.parametrize("head", HEADS)
def test_a_head_on_the_meta_device_trains_without_numbers(head):
    head = create_head(head, 8, 5).to("meta")
    features = torch.empty(6, 8, device="meta", requires_grad=True)
    logits = head(features, torch.empty(6, dtype=torch.long, device="meta"))
    logits.sum().backward()
    assert logits.shape == head.eval()(features).shape == (6, 5)
    assert features.grad.shape == (6, 8)


@pytest.mark.parametrize("proximal", [0.0, 1e-3])
def test_a_compiled_head_has_the_same_gradient_while_classes_are_missing(proximal):
    torch._dynamo.reset()
    plain = NearestETFHead(8, 5, proximal=proximal).double()
    compiled = torch.compile(copy.deepcopy(plain), backend="aot_eager", fullgraph=True)
    features, targets = batch(0)
    again, targets = features.detach().clone().requires_grad_(), targets % 3
    F.cross_entropy(plain(features, targets), targets).backward()
    F.cross_entropy(compiled(again, targets), targets).backward()
    torch.testing.assert_close(again.grad, features.grad, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_checkpointing_in_compiled_code_is_right_or_refused(backend):
    torch._dynamo.reset()
    torch.manual_seed(0)
    plain = NearestETFHead(8, 5)
    other = copy.deepcopy(plain)
    repeated = torch.compile(lambda h, y: checkpoint(other, h, y, use_reentrant=False), backend=backend)
    for step in range(3):
        features, targets = batch(step, dtype=torch.float32)
        again = features.detach().clone().requires_grad_()
        F.cross_entropy(plain(features, targets), targets).backward()
        try:
            F.cross_entropy(repeated(again, targets), targets).backward()
        except (ValueError, RuntimeError) as error:
            # Ours, or torch's own, which sees that the state has moved.
            assert "leave the head out of what is checkpointed" in str(error) or "inplace operation" in str(error)
            return
        torch.testing.assert_close(again.grad, features.grad)
