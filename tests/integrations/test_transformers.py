"""The callback for the Trainer of transformers: the right numbers in its log, and the same training without it."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    ViTConfig,
    ViTForImageClassification,
)

from ncflow import collapse_metrics, collect_features
from ncflow.integrations.transformers import NeuralCollapseCallback, logit_metrics

pytestmark = pytest.mark.filterwarnings("ignore")
TINY = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8, "num_labels": 3}


def samples(seed: int, kind: str = "vit", count: int = 27) -> list[dict[str, torch.Tensor]]:
    """Images, or sentences of tokens, of three classes."""
    generator = torch.Generator().manual_seed(seed)
    targets = torch.arange(count) % 3
    if kind == "vit":
        inputs = torch.randn(count, 3, 8, 8, generator=generator) + targets.reshape(-1, 1, 1, 1)
        return [{"pixel_values": x, "labels": y} for x, y in zip(inputs, targets, strict=True)]
    tokens = torch.randint(3, 20, (count, 6), generator=generator)
    tokens[:, 1] = targets
    labels = targets if kind == "bert" else tokens
    return [{"input_ids": x, "labels": y} for x, y in zip(tokens, labels, strict=True)]


def model_of(kind: str):
    torch.manual_seed(0)
    if kind == "vit":
        return ViTForImageClassification(ViTConfig(image_size=8, patch_size=4, **TINY))
    if kind == "bert":
        return BertForSequenceClassification(BertConfig(vocab_size=20, **TINY))
    tokens = {"vocab_size": 20, "bos_token_id": 0, "eos_token_id": 0}
    return GPT2LMHeadModel(GPT2Config(n_embd=8, n_layer=1, n_head=2, n_positions=8, **tokens))


def trainer(folder, kind: str = "vit", *, callback: bool = True, others=(), evaluation=None, **options) -> Trainer:
    named = {k: options.pop(k) for k in ("every_n_epochs", "layer", "train_dataset", "class_counts") if k in options}
    chosen = {"num_train_epochs": 2, "eval_strategy": "epoch", "save_strategy": "no", "disable_tqdm": True} | options
    arguments = TrainingArguments(str(folder), use_cpu=True, report_to="none", per_device_train_batch_size=9, **chosen)
    evaluation = samples(1, kind) if evaluation is None else evaluation
    made = Trainer(
        model_of(kind), arguments, train_dataset=samples(0, kind), eval_dataset=evaluation, callbacks=[*others]
    )
    if callback:
        made.add_callback(NeuralCollapseCallback(made, **named))
    return made


def collected(model, given):
    key = next(name for name in given[0] if name != "labels")
    with collect_features(model) as found:
        model(**{key: torch.stack([sample[key] for sample in given])})
        found.add(torch.stack([sample["labels"] for sample in given]))
    return found


@pytest.mark.parametrize("kind", ["vit", "bert"])
def test_the_log_has_the_metrics_of_the_features(tmp_path, kind):
    fitted = trainer(tmp_path, kind, class_counts=[99, 30, 8])
    fitted.train()
    logged = [entry for entry in fitted.state.log_history if "nc1/pinv" in entry]
    assert [entry["epoch"] for entry in logged] == [1, 2]
    seen, unseen = (collected(fitted.model, samples(seed, kind)) for seed in (0, 1))
    expected = unseen.measure(train=seen, class_counts=[99, 30, 8]).metrics
    found = {key: value for key, value in logged[-1].items() if key not in ("epoch", "step")}
    test = {key.removeprefix("eval_"): value for key, value in found.items() if key.startswith("eval_")}
    train = {key: value for key, value in found.items() if not key.startswith("eval_")}
    assert train == pytest.approx(expected["train"], rel=1e-3, abs=1e-5)
    assert test == pytest.approx(expected["test"], rel=1e-3, abs=1e-5)
    assert {"nc3/self_duality", "nc4/ncc_mismatch", "acc/balanced"} <= test.keys()


def test_evaluate_returns_the_metrics_of_its_split(tmp_path):
    fitted = trainer(tmp_path)
    metrics = fitted.evaluate()
    assert {"eval_loss", "eval_nc1/pinv"} <= metrics.keys() and "nc1/pinv" not in metrics
    assert "test_nc1/pinv" in fitted.evaluate(samples(3), metric_key_prefix="test")


def test_the_best_checkpoint_can_be_that_of_a_metric(tmp_path):
    best = {"load_best_model_at_end": True, "metric_for_best_model": "nc1/cdnv", "greater_is_better": False}
    fitted = trainer(tmp_path, save_strategy="epoch", **best)
    fitted.train()
    values = [entry["eval_nc1/cdnv"] for entry in fitted.state.log_history if "eval_nc1/cdnv" in entry]
    assert fitted.state.best_metric == pytest.approx(min(values))


def test_several_evaluation_datasets_keep_their_names(tmp_path):
    fitted = trainer(tmp_path, evaluation={"near": samples(1), "far": samples(2)})
    metrics = fitted.evaluate()
    expected = collected(fitted.model, samples(2)).measure(train=collected(fitted.model, samples(0))).metrics["test"]
    assert metrics["eval_far_nc1/cdnv"] == pytest.approx(expected["nc1/cdnv"], rel=1e-3)
    assert "eval_near_nc1/cdnv" in metrics


@pytest.mark.parametrize("options", [{}, {"every_n_epochs": 1}])
def test_the_training_is_the_same_bit_for_bit(tmp_path, options):
    states = []
    for callback in (False, True):
        torch.manual_seed(1)
        fitted = trainer(tmp_path, callback=callback, **(options if callback else {}))
        fitted.train()
        states.append((fitted.model.state_dict(), torch.rand(3)))
    assert all(torch.equal(value, states[1][0][name]) for name, value in states[0][0].items())
    assert torch.equal(states[0][1], states[1][1])


def test_reporters_get_the_metrics_every_nth_epoch(tmp_path):
    reported = []

    class Reporter(TrainerCallback):
        def on_log(self, arguments, state, control, logs=None, **_):
            if "nc1/pinv" in logs:
                reported.append((state.epoch, "eval_nc1/pinv" in logs))

    fitted = trainer(tmp_path, every_n_epochs=2, num_train_epochs=4, eval_strategy="no", others=[Reporter()])
    fitted.train()
    assert reported == [(2, True), (4, True)]


def test_a_language_model_is_measured_on_the_next_token(tmp_path):
    fitted = trainer(tmp_path, "gpt2")
    metrics = fitted.evaluate()
    tokens = torch.stack([sample["input_ids"] for sample in samples(1, "gpt2")])
    model = fitted.model.eval()
    with torch.no_grad():
        correct = model(tokens).logits[:, :-1].argmax(-1) == tokens[:, 1:]
    assert metrics["eval_acc/overall"] == pytest.approx(correct.double().mean().item())


@pytest.mark.parametrize(
    "options, message",
    [
        ({"layer": "classifer"}, "unknown layer 'classifer'. Did you mean 'classifier'"),
        ({"every_n_epochs": 0}, "every_n_epochs must be a whole number from 1"),
    ],
)
def test_a_wrong_option_is_refused_before_the_training(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        trainer(tmp_path, **options).train()


def test_a_model_that_is_split_over_devices_is_refused():
    with pytest.raises(ValueError, match="needs the whole model on each device; FSDP and DeepSpeed split it"):
        NeuralCollapseCallback(SimpleNamespace(is_fsdp_enabled=True, is_deepspeed_enabled=False))


@pytest.mark.parametrize("seed", range(3))
def test_metrics_of_logits_are_those_of_an_identity_classifier(seed):
    """Logits are features of a classifier with weight I."""
    random = np.random.default_rng(seed)
    logits, targets = random.standard_normal((90, 7)), random.integers(7, size=90)
    counts = [200, 150, 90, 60, 30, 10, 5]
    found = logit_metrics(class_counts=counts)(SimpleNamespace(predictions=logits, label_ids=targets))
    expected = collapse_metrics(logits, targets, np.eye(7), class_counts=counts)
    assert found == pytest.approx({name: expected[name] for name in found}, rel=1e-12)
    assert {"acc/few", "acc/top5", "acc/tail20", "calibration/ece", "calibration/nll"} <= found.keys()
    without = logit_metrics()(SimpleNamespace(predictions=(logits, None), label_ids=targets))
    assert without == {name: value for name, value in found.items() if name in without} and "acc/few" not in without


def test_metrics_of_logits_leave_out_ignored_targets():
    logits, targets = np.eye(3)[[0, 1, 2, 0]], np.array([0, 1, -100, 1])
    found = logit_metrics()(SimpleNamespace(predictions=logits[None], label_ids=targets[None]))
    assert found["acc/overall"] == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    "predictions, targets, message",
    [
        (np.zeros((4, 3)), np.zeros(5, int), r"predictions \(4, 3\) .* targets \(5,\)"),
        (np.zeros((4, 3)), np.zeros(4), "whole numbers .N,. as targets, got .* torch.float64"),
        (np.zeros((4, 3)), np.full(4, 3), r"targets must lie in 0\.\.2"),
    ],
)
def test_logits_and_targets_that_do_not_fit_are_refused(predictions, targets, message):
    with pytest.raises(ValueError, match=message):
        logit_metrics()(SimpleNamespace(predictions=predictions, label_ids=targets))


def test_the_trainer_computes_metrics_of_its_logits(tmp_path):
    fitted = trainer(tmp_path, callback=False)
    fitted.compute_metrics = logit_metrics(class_counts=[150, 50, 5])
    metrics = fitted.evaluate()
    expected = collected(fitted.model, samples(1)).measure(class_counts=[150, 50, 5]).metrics["train"]
    assert metrics["eval_acc/few"] == pytest.approx(expected["acc/few"])
    assert metrics["eval_calibration/ece"] == pytest.approx(expected["calibration/ece"], rel=1e-4)
