"""Options that are right one by one and contradict each other: when they do, why, and what to try instead."""

from __future__ import annotations

from collections.abc import Callable

from ncflow.data import SOURCES
from ncflow.lookup import fact
from ncflow.nn.heads import HEADS
from ncflow.params import Params

Rule = tuple[Callable[[Params], object], str]  # is it broken, and what to say: a format string over the parameters


def refuse_contradictions(params: Params) -> None:
    """Raise one ValueError with the message of every rule that the parameters break."""
    broken_rules = [message.format(**dict(params)) for broken, message in RULES.values() if broken(params)]
    if broken_rules:
        raise ValueError("\n".join(broken_rules))


def _has_etf(p: Params) -> bool:
    return bool(fact(HEADS[p.head.name], "is_frame"))


def _has_free_features(p: Params) -> bool:
    return p.model.name == "free_features"


def _has_numbered_images(p: Params) -> bool:
    return bool(fact(SOURCES[p.dataset.name], "numbered"))


def _is_built_in(p: Params) -> bool:
    return bool(fact(SOURCES[p.dataset.name], "built_in"))


def _features_decay(p: Params) -> bool:
    """Whether the objective holds the features short; free features are parameters, with the optimizer's decay."""
    return p.train.feature_decay > 0 or bool(_has_free_features(p) and p.train.weight_decay and p.train.decay != "head")


def _asks_beyond_reach(p: Params) -> bool:
    """Unit rows meet features of norm τ at logits of τ at most; a target that is no number is the loss's to refuse."""
    target, temperature = p.train.loss_options.get("target", 1.0), p.head.option("temperature")
    return temperature is not None and isinstance(target, int | float) and target > temperature


def _corrections(p: Params) -> int:
    """How many options take the class sizes out of the decision."""
    by_loss = p.train.loss in ("logit_adjustment", "balanced_softmax", "class_balanced")
    by_batches = p.train.sampling == "class_balanced"
    return sum([by_loss, by_batches, bool(p.train.reweight), p.train.posthoc_tau > 0])


RULES: dict[str, Rule] = {
    # Loss and head. A learned classifier's weight decay pulls features into the span of its rows; a fixed one has none.
    "a regression on rows that do not learn needs features of bounded length": (
        lambda p: (
            p.train.loss in ("mse", "dot_regression")
            and _has_etf(p)
            and p.head.option("temperature") is None
            and not _features_decay(p)
        ),
        "loss '{train.loss}' fits logits of finite size, and the rows of head '{head.name}' are units that do not "
        "learn: the part of a feature that is orthogonal to them costs nothing and need not collapse. "
        "Expected a head.temperature or train.feature_decay > 0, got null and {train.feature_decay:g}; "
        "try head.temperature=1 or train.feature_decay=1e-3",
    ),
    # w_1 = … = w_K with all features on the same line is a minimum, at which all classes look alike.
    "dot regression needs rows that stay apart by themselves": (
        lambda p: p.train.loss == "dot_regression" and fact(HEADS[p.head.name], "rows") == "learned",
        "loss 'dot_regression' uses only the row of a sample's own class. Learned rows can meet its target by length, "
        "or by all becoming one: expected head fixed_etf or nearest_etf, whose unit rows stay apart, "
        "got head '{head.name}'; try head.name=nearest_etf, or train.loss=mse",
    ),
    "the target of dot regression must be within reach": (
        lambda p: p.train.loss == "dot_regression" and _has_etf(p) and _asks_beyond_reach(p),
        "loss 'dot_regression' with features of norm head.temperature={head.temperature:g} and unit rows: expected a "
        "target of {head.temperature:g} at most (default 1), got train.loss_options={train.loss_options}; "
        "try train.loss_options.target={head.temperature:g}",
    ),
    "features of fixed length do not decay": (
        lambda p: p.train.feature_decay > 0 and p.head.option("temperature") is not None,
        "train.feature_decay={train.feature_decay:g} changes nothing, because head '{head.name}' scales features to "
        "norm {head.temperature:g}: expected one of the two at most, got both; "
        "try train.feature_decay=0 or head.temperature=null",
    ),
    "only a head with a solver has one to analyze": (
        lambda p: p.train.analyze_solver and p.head.option("solver") is None,
        "train.analyze_solver needs a head that solves a problem at each step: expected head nearest_etf, "
        "got '{head.name}'; try train.analyze_solver=false",
    ),
    # Class sizes.
    "the class sizes are taken out once": (
        lambda p: _corrections(p) > 1,
        "the class sizes would be corrected for more than once: expected at most one of a loss that knows them, "
        "train.reweight, train.sampling=class_balanced and train.posthoc_tau, got train.loss={train.loss}, "
        "train.reweight={train.reweight}, train.sampling={train.sampling}, train.posthoc_tau={train.posthoc_tau:g}; "
        "try train.loss=ce",
    ),
    # It divides softmax(logits) by powers of the priors; ldam's probabilities are softmax(scale · logits).
    "post-hoc adjustment needs logits that are log-probabilities": (
        lambda p: p.train.posthoc_tau > 0 and p.train.loss in ("mse", "dot_regression", "ldam"),
        "post-hoc adjustment subtracts log-priors from the logits, and those that loss '{train.loss}' trains are no "
        "log-probabilities: expected train.posthoc_tau=0, got {train.posthoc_tau:g}; try train.loss=ce",
    ),
    "re-weighting sets in only where there is one": (
        lambda p: p.train.reweight is None and p.train.reweight_after != type(p.train)().reweight_after,
        "train.reweight_after={train.reweight_after:g} is the start of train.reweight: expected a train.reweight in "
        "[0, 1), got null; try train.reweight=0.9999",
    ),
    "a native imbalance has no profile": (
        lambda p: p.dataset.imb_factor == -1 and p.dataset.imb_type != "exp",
        "dataset.imb_type={dataset.imb_type} would be ignored, because a dataset.imb_factor of -1 keeps the classes as "
        "the source has them: expected a factor in (0, 1], got -1; try dataset.imb_factor=1, or dataset.imb_type=exp",
    ),
    "a native imbalance has no order": (
        lambda p: p.dataset.imb_factor == -1 and p.dataset.class_order != "name",
        "dataset.class_order={dataset.class_order} would be ignored, because a dataset.imb_factor of -1 keeps the "
        "classes as the source has them: expected a factor in (0, 1], got -1; try dataset.imb_factor=0.01, or "
        "dataset.class_order=name",
    ),
    # Unconstrained features.
    "free features need numbered images": (
        lambda p: _has_free_features(p) and not _has_numbered_images(p),
        "model 'free_features' is one feature per numbered sample: expected dataset ufm10, ufm100, ufm200 or ufm1000, "
        "got '{dataset.name}'; try dataset.name=ufm10, or another model",
    ),
    "numbered images need free features": (
        lambda p: _has_numbered_images(p) and not _has_free_features(p),
        "the images of dataset '{dataset.name}' only number its samples and show nothing of their classes: "
        "expected model free_features, got '{model.name}'; try model.name=free_features",
    ),
    "numbered images are taken as they are": (
        lambda p: _has_numbered_images(p) and (p.train.augment != "none" or p.model.image_size % 8),
        "the images of dataset '{dataset.name}' number their samples by 8x8 pixels, which an augmentation or an uneven "
        "size would change: expected train.augment=none and a model.image_size that 8 divides, "
        "got {train.augment} and {model.image_size}; try train.augment=none and model.image_size=8",
    ),
    "a held-out sample has no free feature": (
        lambda p: _has_free_features(p) and p.dataset.val_fraction > 0,
        "the features of held-out samples would be parameters that nothing trains: expected dataset.val_fraction=0 "
        "with model 'free_features', got {dataset.val_fraction:g}; try dataset.val_fraction=0",
    ),
    "free features have no layers": (
        lambda p: _has_free_features(p) and p.train.analyze_layers,
        "model 'free_features' has no layers below its features: expected train.analyze_layers=false, got true; "
        "try another model, or train.analyze_layers=false",
    ),
    # What would be lost without a word.
    "published weights stay as they were published": (
        lambda p: p.model.pretrained and (not p.model.affine or p.train.optimizer == "agd"),
        "model.pretrained=true would lose its weights: optimizer agd starts from random ones, and model.affine=false "
        "takes the norms' scales and shifts away. Expected another optimizer and model.affine=true, "
        "got {train.optimizer} and {model.affine}; try model.pretrained=false",
    ),
    "an option is set in one place": (
        lambda p: {"lr", "weight_decay", "momentum"} & p.train.optimizer_options.keys(),
        "learning rate, weight decay and momentum are keys of train itself: expected train.optimizer_options without "
        "them, got {train.optimizer_options}; try train.lr, train.weight_decay or train.momentum",
    ),
    "a choice of what decays needs a decay": (
        lambda p: p.train.decay != "all" and p.train.weight_decay is None,
        "train.decay={train.decay} chooses what train.weight_decay acts on: expected a number, got null; "
        "try train.weight_decay=5e-4, or train.decay=all",
    ),
    "built-in data has no folder": (
        lambda p: p.dataset.root is not None and _is_built_in(p),
        "dataset '{dataset.name}' is built in and reads no folder: expected dataset.root=null, got {dataset.root}; "
        "try dataset.root=null, or dataset.name=imagefolder for pictures of your own",
    ),
}
