"""Options that are each valid but contradict each other: the rules, and what to try instead."""

from __future__ import annotations

from collections.abc import Callable

from ncflow.data import SOURCES
from ncflow.lookup import fact
from ncflow.nn.heads import HEADS
from ncflow.nn.losses import LOSSES
from ncflow.nn.penalties import needs_hard_targets
from ncflow.params import Params

Rule = tuple[Callable[[Params], object], str]  # whether it is broken, and its message: a format string


def refuse_contradictions(params: Params) -> None:
    """Check every rule. Raises one ValueError with the message of every rule that the parameters break."""
    broken_rules = [message.format(**dict(params)) for broken, message in RULES.values() if broken(params)]
    if broken_rules:
        raise ValueError("\n".join(broken_rules))


def _has_unit_rows(p: Params) -> bool:
    """Whether the classifier's rows have norm 1 and do not learn, as those of a simplex ETF or another frame."""
    head = HEADS[p.head.name]
    return bool(fact(head, "is_frame") or fact(head, "unit_rows"))


def _has_free_features(p: Params) -> bool:
    return p.model.name == "free_features"


def _has_numbered_images(p: Params) -> bool:
    return bool(fact(SOURCES[p.dataset.name], "numbered"))


def _is_built_in(p: Params) -> bool:
    return bool(fact(SOURCES[p.dataset.name], "built_in"))


def _has_small_parts(p: Params) -> bool:
    """Whether parts of a batch would have less than two samples. A full batch is known only with the data."""
    size = p.train.batch_size
    return p.train.accumulate > 1 and isinstance(size, int) and 2 * p.train.accumulate > size


def _may_have_validation(p: Params) -> bool:
    """Whether the source may have a validation split without `val_fraction`: only the user's own files do."""
    return bool(fact(SOURCES[p.dataset.name], "own_files"))


def _feature_decay(p: Params) -> float:
    return p.train.feature_decay or p.train.penalties.get("feature_decay", 0.0)


def _feature_penalties(p: Params) -> bool:
    """Whether the objective has a penalty with a factor; every row of PENALTIES acts on features."""
    return bool(p.train.drift_penalty or p.train.feature_decay or any(p.train.penalties.values()))


def _features_decay(p: Params) -> bool:
    """Whether the objective limits the length of features. The optimizer decays free features: they are parameters."""
    return _feature_decay(p) > 0 or bool(_has_free_features(p) and p.train.weight_decay and p.train.decay != "head")


def _asks_beyond_reach(p: Params) -> bool:
    """Unit rows and features of norm τ give logits of at most τ. The loss itself rejects a target that is no number."""
    target, temperature = p.train.loss_options.get("target", 1.0), p.head.option("temperature")
    return temperature is not None and isinstance(target, int | float) and target > temperature


def _corrections(p: Params) -> int:
    """How many options correct for class sizes."""
    by_loss, by_batches = bool(fact(LOSSES.get(p.train.loss), "corrects_sizes")), p.train.sampling == "class_balanced"
    return sum([by_loss, by_batches, bool(p.train.reweight), bool(p.train.posthoc_tau)])


def _has_log_probabilities(p: Params) -> bool:
    """Whether the logits are log-probabilities, up to a constant for each sample."""
    return bool(fact(LOSSES.get(p.train.loss), "log_probabilities", True))


def posthoc_tau(p: Params) -> float | None:
    """The τ of post-hoc adjustment while training: the given one, None to choose it, 0 where none applies."""
    given = p.train.posthoc_tau
    return given if given is not None or (_has_log_probabilities(p) and not _corrections(p)) else 0.0


def _twice(p: Params) -> bool:
    """Whether a penalty has a factor under two keys."""
    doubles = {"drift": p.train.drift_penalty, "feature_decay": p.train.feature_decay}
    return any(factor and name in p.train.penalties for name, factor in doubles.items())


RULES: dict[str, Rule] = {
    # Loss and head. Weight decay of a learned classifier pulls features into the span of its rows. Fixed rows do not.
    "a regression on rows that do not learn needs features of bounded length": (
        lambda p: (
            p.train.loss in ("mse", "dot_regression")
            and _has_unit_rows(p)
            and p.head.option("temperature") is None
            and not _features_decay(p)
        ),
        "loss '{train.loss}' fits logits of finite size. Head '{head.name}' has fixed rows of norm 1. The part of a "
        "feature that is orthogonal to these rows does not change the loss, and may not collapse. "
        "Expected a head.temperature or train.feature_decay > 0, got null and {train.feature_decay:g}; "
        "try head.temperature=1 or train.feature_decay=1e-3",
    ),
    # w_1 = … = w_K with all features on one line is a minimum that cannot tell the classes apart.
    "dot regression needs rows that stay apart by themselves": (
        lambda p: p.train.loss == "dot_regression" and fact(HEADS[p.head.name], "rows") == "learned",
        "loss 'dot_regression' uses only the row of a sample's own class. Learned rows can reach its target by their "
        "length, or by becoming equal. Expected head fixed_etf, fixed_frame or nearest_etf, whose rows stay apart, "
        "got head '{head.name}'; try head.name=nearest_etf, or train.loss=mse",
    ),
    "the target of dot regression must be within reach": (
        lambda p: p.train.loss == "dot_regression" and _has_unit_rows(p) and _asks_beyond_reach(p),
        "loss 'dot_regression' cannot reach its target: features have norm head.temperature={head.temperature:g}, and "
        "rows have norm 1. Expected a target of at most {head.temperature:g} (default 1), "
        "got train.loss_options={train.loss_options}; "
        "try train.loss_options.target={head.temperature:g}",
    ),
    "features of fixed length do not decay": (
        lambda p: _feature_decay(p) > 0 and p.head.option("temperature") is not None,
        "a decay of features has no effect, because head '{head.name}' scales features to "
        "norm {head.temperature:g}. Expected train.feature_decay or head.temperature, got both; "
        "try train.feature_decay=0 or head.temperature=null",
    ),
    "only a head with a solver has one to analyze": (
        lambda p: p.train.analyze_solver and p.head.option("solver") is None,
        "train.analyze_solver needs a head that runs a solver at each step. Expected head nearest_etf, "
        "got '{head.name}'; try train.analyze_solver=false",
    ),
    # Class sizes.
    "the class sizes are taken out once": (
        lambda p: _corrections(p) > 1,
        "the class sizes would be corrected for more than once. Expected at most one of: a loss that uses them, "
        "train.reweight, train.sampling=class_balanced, train.posthoc_tau; got train.loss={train.loss}, "
        "train.reweight={train.reweight}, train.sampling={train.sampling}, train.posthoc_tau={train.posthoc_tau}; "
        "try train.loss=ce",
    ),
    # It divides softmax(logits) by powers of the priors. The probabilities of ldam are softmax(scale · logits).
    "post-hoc adjustment needs logits that are log-probabilities": (
        lambda p: p.train.posthoc_tau and not _has_log_probabilities(p),
        "post-hoc adjustment subtracts log-priors from the logits. The logits of loss '{train.loss}' are not "
        "log-probabilities. Expected train.posthoc_tau=0, got {train.posthoc_tau:g}; try train.loss=ce",
    ),
    "re-weighting sets in only where there is one": (
        lambda p: p.train.reweight is None and p.train.reweight_after != type(p.train)().reweight_after,
        "train.reweight_after={train.reweight_after:g} sets when train.reweight starts. Expected a train.reweight in "
        "[0, 1), got null; try train.reweight=0.9999",
    ),
    "a native imbalance has no profile": (
        lambda p: p.dataset.imb_factor == -1 and p.dataset.imb_type != "exp",
        "dataset.imb_type={dataset.imb_type} would be ignored, because dataset.imb_factor=-1 keeps the class sizes of "
        "the source. Expected a factor in (0, 1], got -1; try dataset.imb_factor=1, or dataset.imb_type=exp",
    ),
    "a native imbalance has no order": (
        lambda p: p.dataset.imb_factor == -1 and p.dataset.class_order != "name",
        "dataset.class_order={dataset.class_order} would be ignored, because dataset.imb_factor=-1 keeps the class "
        "sizes of the source. Expected a factor in (0, 1], got -1; try dataset.imb_factor=0.01, or "
        "dataset.class_order=name",
    ),
    # Unconstrained features.
    "free features need numbered images": (
        lambda p: _has_free_features(p) and not _has_numbered_images(p),
        "model 'free_features' has one feature per numbered sample. Expected dataset ufm10, ufm100, ufm200 or ufm1000, "
        "got '{dataset.name}'; try dataset.name=ufm10, or another model",
    ),
    "numbered images need free features": (
        lambda p: _has_numbered_images(p) and not _has_free_features(p),
        "the images of dataset '{dataset.name}' contain only the numbers of its samples, and no sign of their classes. "
        "Expected model free_features, got '{model.name}'; try model.name=free_features",
    ),
    "numbered images are taken as they are": (
        lambda p: _has_numbered_images(p) and (p.train.augment != "none" or p.model.image_size % 8),
        "the images of dataset '{dataset.name}' contain the numbers of its samples in 8x8 pixels. An augmentation, or "
        "a size that 8 does not divide, would change them. "
        "Expected train.augment=none and a model.image_size that is a multiple of 8, "
        "got {train.augment} and {model.image_size}; try train.augment=none and model.image_size=8",
    ),
    "a held-out sample has no free feature": (
        lambda p: _has_free_features(p) and p.dataset.val_fraction > 0,
        "the features of held-out samples would be parameters that nothing trains. Expected dataset.val_fraction=0 "
        "with model 'free_features', got {dataset.val_fraction:g}; try dataset.val_fraction=0",
    ),
    "free features have no layers": (
        lambda p: _has_free_features(p) and p.train.analyze_layers,
        "model 'free_features' has no layers below its features. Expected train.analyze_layers=false, got true; "
        "try another model, or train.analyze_layers=false",
    ),
    # Options that would otherwise be dropped silently.
    "published weights stay as they were published": (
        lambda p: p.model.pretrained and (not p.model.affine or p.train.optimizer == "agd"),
        "model.pretrained=true would lose its weights. Optimizer agd starts from random weights, and "
        "model.affine=false removes scales and shifts of the norms. Expected another optimizer and model.affine=true, "
        "got {train.optimizer} and {model.affine}; try model.pretrained=false",
    ),
    "training starts from one set of weights": (
        lambda p: p.model.pretrained and p.model.checkpoint is not None,
        "model.pretrained=true and model.checkpoint={model.checkpoint} both set the weights to start from. Expected "
        "one of them, got both; try model.pretrained=false, or model.checkpoint=null",
    ),
    "an option is set in one place": (
        lambda p: {"lr", "weight_decay", "momentum"} & p.train.optimizer_options.keys(),
        "learning rate, weight decay and momentum are keys of train itself. Expected train.optimizer_options without "
        "them, got {train.optimizer_options}; try train.lr, train.weight_decay or train.momentum",
    ),
    "a choice of what decays needs a decay": (
        lambda p: p.train.decay != "all" and p.train.weight_decay is None,
        "train.decay={train.decay} selects the parameters for train.weight_decay. Expected a number for it, got null; "
        "try train.weight_decay=5e-4, or train.decay=all",
    ),
    "a penalty has one factor": (
        _twice,
        "train.penalties={train.penalties} repeats a key of train. Expected each penalty once, got "
        "train.drift_penalty={train.drift_penalty:g} and train.feature_decay={train.feature_decay:g}; "
        "try without train.penalties",
    ),
    "options of a penalty need the penalty": (
        lambda p: p.train.penalty_options.keys() - p.train.penalties.keys(),
        "train.penalty_options={train.penalty_options} has options of a penalty that is not used. Expected them for "
        "penalties in train.penalties, got {train.penalties}; try train.penalties.<name>=0.1",
    ),
    # Mixing.
    "a mixed sample has no single class": (
        lambda p: p.train.mix != "none" and any(needs_hard_targets(name) for name in p.train.penalties),
        "train.mix={train.mix} makes samples of two classes. Expected penalties that take shares of classes, got "
        "train.penalties={train.penalties}; try train.mix=none",
    ),
    "pictures of numbers cannot be mixed": (
        lambda p: p.train.mix != "none" and _has_numbered_images(p),
        "the images of dataset '{dataset.name}' contain the numbers of its samples. Expected train.mix=none, got "
        "{train.mix}; try train.mix=none",
    ),
    # Sharpness-aware minimization.
    "sharpness needs gradients of full range": (
        lambda p: p.train.sam and p.train.precision == "fp16",
        "train.sam={train.sam:g} divides by the norm of a gradient, which overflows in float16. Expected precision "
        "bf16 or fp32, got {train.precision}; try train.precision=bf16",
    ),
    # Steps, and the end of training.
    "a part of a batch has two samples": (
        _has_small_parts,
        "train.accumulate={train.accumulate} would make parts of less than two samples, on which no batch norm can "
        "train. Expected at most half of train.batch_size, got a batch_size of {train.batch_size}; try "
        "train.accumulate=1, or a larger train.batch_size",
    ),
    "a step that follows from the size of gradients needs them whole": (
        lambda p: p.train.max_grad_norm is not None and p.train.optimizer == "agd",
        "optimizer agd takes the length of its step from the size of the gradients, which train.max_grad_norm changes. "
        "Expected train.max_grad_norm=null, got {train.max_grad_norm:g}; try train.max_grad_norm=null, or "
        "train.optimizer=sgd",
    ),
    "rates by layer need a rate, and layers that learn": (
        lambda p: (
            p.train.layer_decay < 1
            and (p.train.optimizer == "agd" or p.model.trainable == "head" or _has_free_features(p))
        ),
        "train.layer_decay={train.layer_decay:g} scales the learning rates of a network's layers. Expected an "
        "optimizer with a learning rate and a network that learns, got train.optimizer={train.optimizer}, "
        "model.name={model.name} and model.trainable={model.trainable}; try train.layer_decay=1",
    ),
    "penalties of features need features that learn": (
        lambda p: p.model.trainable == "head" and _feature_penalties(p),
        "the penalties {train.penalties}, train.drift_penalty={train.drift_penalty:g} and "
        "train.feature_decay={train.feature_decay:g} act on features, and model.trainable={model.trainable} keeps "
        "those. Expected features that learn, got model.trainable={model.trainable}; try model.trainable=all",
    ),
    "blocks are dropped where blocks learn": (
        lambda p: p.model.drop_path and p.model.trainable == "head",
        "model.drop_path={model.drop_path:g} would be ignored, because a network that does not learn stays in "
        "evaluation mode. Expected model.trainable=all or norm_bias, got {model.trainable}; try model.drop_path=null",
    ),
    "labels are smoothed once, for losses of probabilities": (
        lambda p: p.train.label_smoothing and fact(LOSSES.get(p.train.loss), "unsmoothed"),
        "train.label_smoothing={train.label_smoothing:g} smooths the targets of a loss of probabilities. Expected one "
        "that does not smooth or weigh them itself, got train.loss={train.loss}; try train.loss=ce, or "
        "train.label_smoothing=0",
    ),
    "early stopping needs a validation part": (
        lambda p: p.train.stop and not p.dataset.val_fraction and not _may_have_validation(p),
        "train.stop ends training by a metric of the validation split. Expected dataset.val_fraction > 0, got "
        "{dataset.val_fraction:g}; try dataset.val_fraction=0.1, or train.stop=null",
    ),
    # Analysis.
    "a stream shows each training sample once, as the measured model sees it": (
        lambda p: (
            p.train.analyze == "streaming"
            and (p.train.mix != "none" or p.train.ema or p.train.sampling == "class_balanced")
        ),
        "train.analyze=streaming measures what training itself sees. It cannot be mixed samples, a class-balanced "
        "choice, or an average of weights. Expected train.mix=none, train.ema=0 and another train.sampling, got "
        "{train.mix}, {train.ema:g} and {train.sampling}; try train.analyze=exact",
    ),
    "layers and features need a pass over the data": (
        lambda p: p.train.analyze == "streaming" and (p.train.analyze_layers or p.train.save_features),
        "train.analyze=streaming keeps neither features nor the layers below them. Expected train.analyze_layers=false "
        "and train.save_features=false, got {train.analyze_layers} and {train.save_features}; try train.analyze=exact",
    ),
    "built-in data has no folder": (
        lambda p: p.dataset.root is not None and _is_built_in(p),
        "dataset '{dataset.name}' is built in and reads no folder. Expected dataset.root=null, got {dataset.root}; "
        "try dataset.root=null, or dataset.name=imagefolder for your own pictures",
    ),
}
