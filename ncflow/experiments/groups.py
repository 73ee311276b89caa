"""The experiment groups: one function per group, with its hypothesis, its expected result, and its grid.

exp1 to exp10 are the first seed's, with its grids and names; exp11 and exp12 are the second seed's. exp13 to exp16 are
ncflow's own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import product
from typing import Any

from ncflow.experiments.grids import Grid, Settings, each
from ncflow.params import Params, make_params


def quickstart(base: Params) -> Iterator[Params]:
    """Heads and losses on the data of params.yaml: every head of its grid with every loss and every seed.

    Hypothesis: the class priors in the loss decide the accuracy on the rare classes, and the head decides the geometry.
    Expected: balanced softmax gains more accuracy over cross-entropy than any head over another. With either loss the
    nearest ETF ends with a far lower nc1 than the linear head.
    """
    losses = base.grid.loss or [base.train.loss]
    for head, loss, seed in product(base.grid.head, losses, base.grid.seed):
        values = base.model_dump(mode="json")
        # Options of the base belong to its own head and loss.
        kept = values["head"] if values["head"]["name"] == head else {}
        train = values["train"] | ({} if loss == base.train.loss else {"loss": loss, "loss_options": {}})
        name = "_".join([base.exp_name, head, *([loss] if base.grid.loss else []), f"seed{seed}"])
        yield make_params(values | {"exp_name": name, "seed": seed, "head": kept | {"name": head}, "train": train})


def main(base: Params) -> Iterator[Params]:
    """The runs of `dvc repro`: params.yaml with every head, loss and seed of its grid.

    Hypothesis: that of quickstart. Expected: as there. The runs have the names of the pipeline, so a suite skips those
    that the pipeline has finished. `--grid` replaces the section grid.
    """
    yield from quickstart(base)


def exp1() -> Grid:
    """Universality: 4 data sets × 14 models.

    Hypothesis: under imbalance the global mean of the features drifts, in every architecture and on every data set.
    Expected: drift/relative settles far above that of balanced training while nc1 falls, and tail accuracy suffers.
    """
    data = each("dataset.name", "mnist", "fmnist", "cifar10", "cifar100")
    return Grid("exp1_univ_{dataset.name}_{model.name}", [data, each("model.name", *MODELS)])


def exp2() -> Grid:
    """Scaling law: 10 imbalance factors × 2 data sets × 3 models.

    Hypothesis: the drift is a function of the imbalance factor. Expected: drift/relative grows as the factor falls and
    saturates, as the closed form for a step profile does. The weights of the rare classes approach each other at the
    same rate. At 0.001 of CIFAR-100's 500 samples a class would be empty: it keeps one sample.
    """
    factors = each("dataset.imb_factor", 1.0, 0.5, 0.2, 0.1, 0.05, 0.02, 0.01, 0.005, 0.002, 0.001)
    names = "exp2_scaling_{model.name}_{dataset.name}_f_{dataset.imb_factor}"
    return Grid(names, [CIFAR, factors, THREE], {"dataset.min_samples": 1})


def exp3() -> Grid:
    """Loss functions: 6 losses × 2 data sets × 3 models.

    Hypothesis: how a loss uses the class sizes decides the accuracy of the tail. Expected: balanced softmax and logit
    adjustment are one loss at tau 1. They agree up to rounding and have by far the highest acc/few. Focal loss, squared
    error (at twice the rate) and label smoothing stay near cross-entropy in acc/few. Their geometry differs.
    """
    losses = each("train.loss", "ce", "focal", "logit_adjustment", "balanced_softmax", "label_smoothing")
    losses.append({"train.loss": "mse", "train.lr": 0.2})
    return Grid("exp3_loss_{model.name}_{dataset.name}_{train.loss}", [CIFAR, losses, THREE])


def exp4() -> Grid:
    """Weight decay: 5 strengths × 2 data sets × 3 models.

    Hypothesis: weight decay drives the collapse. Expected: without it nc1 falls slowest. With more of it nc1 and the
    drift fall, until the rare classes merge (imbalance/minority_cosine). They are too small to afford separate norms.
    """
    strengths = each("train.weight_decay", 0.0, 1e-4, 5e-4, 1e-3, 5e-3)
    return Grid("exp4_wd_{model.name}_{dataset.name}_{train.weight_decay:g}", [CIFAR, strengths, THREE])


def exp5() -> Grid:
    """Optimizers: SGD, Adam, AdamW and RMSprop × 2 data sets × 3 models.

    Hypothesis: the final geometry depends on the problem, not on the optimizer. Expected: the drift appears with all
    four. AdamW does not normalize its decay with the gradient, and collapses differently from the others.
    """
    adaptive = [{"train.optimizer": name, "train.lr": 1e-3} for name in ("adam", "adamw", "rmsprop")]
    optimizers: list[Settings] = [{"train.optimizer": "sgd"}, *adaptive]
    return Grid("exp5_opt_{model.name}_{dataset.name}_{train.optimizer}", [CIFAR, optimizers, THREE])


def exp6() -> Grid:
    """Drift penalty: 6 strengths and none × 2 data sets × 3 models.

    Hypothesis: the drift causes the low tail accuracy and does not merely accompany it. Expected: drift/norm falls
    steadily with the penalty. If the hypothesis holds, acc/tail20 rises with the penalty; otherwise it stays the same.
    """
    penalties = each("train.drift_penalty", 0.0, 0.001, 0.01, 0.05, 0.1, 0.5, 1.0)
    return Grid("exp6_drift_{model.name}_{dataset.name}_{train.drift_penalty:g}", [CIFAR, penalties, THREE])


def exp7() -> Grid:
    """Batch size: 4 sizes with learning rates in proportion × 2 data sets × 3 models.

    Hypothesis: the drift is not an artifact of the batch size. Expected: at the same lr per sample the curves over
    epochs coincide, within the spread over seeds of exp9.
    """
    sizes = [{"train.batch_size": size, "train.lr": 0.1 * size / 256} for size in (32, 64, 128, 512)]
    return Grid("exp7_bs_{model.name}_{dataset.name}_{train.batch_size}", [CIFAR, sizes, THREE])


def exp8() -> Grid:
    """ViT ablation: two ViTs with their final LayerNorm and without × 2 data sets.

    Hypothesis: a final LayerNorm hides the collapse, because it fixes the norm of each feature. Expected: without it
    nc1 and nc2 of the ViTs fall as those of the convolutional models do.
    """
    models = each("model.name", "vit_tiny", "vit_tiny_orig", "EVA-02", "EVA-02_orig")
    return Grid("exp8_ablation_{model.name}_{dataset.name}", [CIFAR, models])


def exp9() -> Grid:
    """Reproducibility: 5 seeds × 2 data sets × 3 models, on the same split.

    Hypothesis: the effects in the other groups are larger than chance. Expected: the spread of accuracies and metrics
    over seeds is small compared with the differences between factors (exp2) and losses (exp3).
    """
    return Grid("exp9_univ_{dataset.name}_{model.name}_repeat_{seed}", [each("seed", *SEEDS), CIFAR, THREE])


def exp10() -> Grid:
    """ImageNet-LT: 2 models on 1,000 classes with their native imbalance, in batches of 32.

    Hypothesis: the results on small images hold on large ones. Expected: drift and tail accuracy as in exp1. With more
    classes than features (512) no simplex ETF fits. nc2 is that of a frame as spread out as the width allows.
    """
    data = {"dataset.name": "imagenet_lt", "dataset.imb_factor": -1.0}
    training = {"train.batch_size": 32, "train.lr": 0.0125, "train.analyze_freq": 50}
    return Grid("exp10_{dataset.name}_{model.name}", [each("model.name", "vgg11", "resnet18")], data | training)


def exp11() -> Grid:
    """Heads: the second seed's three methods × MNIST and Fashion-MNIST × 5 seeds, ResNet-18 and AGD.

    Hypothesis: following the nearest simplex ETF reaches collapse sooner than a fixed ETF or a learned classifier. The
    spread over seeds is smaller. Expected: at every epoch nc1, nc3 and the loss are lowest for nearest_etf. The final
    accuracies are similar. All three heads get features of norm 5, both in training and in evaluation.
    """
    heads = [{"head.name": "linear", "head.normalize": True}, *each("head.name", "fixed_etf", "nearest_etf")]
    data = each("dataset.name", "mnist", "fmnist")
    agd: Settings = {"train.optimizer": "agd", "train.lr": None, "train.weight_decay": None, "train.schedule": "none"}
    settings = BALANCED | agd | {"model.name": "resnet18", "model.affine": False, "head.temperature": 5.0}
    names = "exp11_heads_{model.name}_{dataset.name}_{head.name}_seed{seed}"
    return Grid(names, [data, heads, each("seed", *SEEDS)], settings)


def exp12() -> Grid:
    """Unconstrained features: UFM-10, 100, 200 and 1000 × 3 heads, 1,000 features in full batches.

    Hypothesis: if features are parameters, training finds the closed-form optimum of the theory. Expected: with the
    linear head the norms and cosines of balanced cross-entropy, and nc1 at 0. With an ETF head the features follow it.
    """
    widths = {"ufm10": 512, "ufm100": 512, "ufm200": 512, "ufm1000": 1024}  # an ETF of K classes needs K - 1
    data = [{"dataset.name": name, "model.num_features": width} for name, width in widths.items()]
    # The mean over N samples gives each feature 1/N of the gradient, hence the high rate. With one sample per class, a
    # weight decay of 1/K would bring all features to zero.
    training = {"train.batch_size": 1000, "train.lr": 100.0, "train.weight_decay": 5e-4, "train.epochs": 1000}
    settings = BALANCED | training | {"train.analyze_freq": 20, "model.name": "free_features"}
    heads = each("head.name", "linear", "fixed_etf", "nearest_etf")
    return Grid("exp12_{dataset.name}_d{model.num_features}_{head.name}", [data, heads], settings)


def exp13() -> Grid:
    """Heads and losses: exp11 on long-tailed data, each head with cross-entropy and balanced softmax.

    Hypothesis: the class priors in the loss decide the accuracy of the tail, and the head decides the geometry.
    Expected: with balanced softmax all heads gain more acc/balanced than any head gains over another. nc1 is lowest for
    nearest_etf with either loss. The adjusted accuracies of the cross-entropy runs come near those of balanced softmax.
    """
    losses = each("train.loss", "ce", "balanced_softmax")
    tail: Settings = {"dataset.imb_type": "exp", "dataset.imb_factor": 0.01}
    names = "exp13_heads_{model.name}_{dataset.name}_{head.name}_{train.loss}_seed{seed}"
    data, heads, seeds = exp11().axes
    return Grid(names, [data, heads, losses, seeds], exp11().settings | tail)


def exp14() -> Grid:
    """K > d+1: 4 classifiers × 4 and 8 features × digits and Fashion-MNIST × 3 seeds.

    Hypothesis: learned rows and class means of ten classes spread out as a softmax code (Jiang et al. 2023). A code
    that is fixed from the start loses nothing. Expected: nc2/margin_means and nc2/max_cosine_means of the linear head
    come near those of the code, and nc1 is lowest with the code. acc/balanced of code and linear head is equal within
    the spread over seeds. Random rows are worse, most at d = 4, where their largest cosine is far above the code's.
    """
    cosine: Settings = {"head.name": "linear", "head.normalize": True, "head.temperature": 5.0}
    fixed = [{"head.name": "fixed_frame", "head.frame": frame} for frame in ("softmax_code", "random")]
    heads: list[Settings] = [{"head.name": "linear"}, cosine, *fixed]
    data, widths = each("dataset.name", "digits", "fmnist"), each("model.num_features", 4, 8)
    settings: Settings = {"model.name": "resnet20", "dataset.imb_factor": 0.02, "train.batch_size": 64}
    names = "exp14_codes_{dataset.name}_d{model.num_features}_{variant}_seed{seed}"
    return Grid(names, [data, widths, heads, each("seed", *SEEDS[:3])], settings)


def exp15() -> Grid:
    """Weight balancing in steps: weight decay, feature decay and a fixed ETF, × 2 data sets × 3 seeds.

    Hypothesis: weight decay collapses the features, feature decay and the ETF balance their norms, and a multiplicative
    adjustment of the logits does the rest. So one stage of training is enough (Hasegawa and Sato 2024). Expected: nc1
    falls with each step. acc/balanced after the adjustment is highest with all three. Without weight decay the
    adjustment gains little. The strength τ of the adjustment is chosen on the validation part.
    """
    etf: Settings = {"head.name": "fixed_etf", "head.temperature": None}
    decay, features = {"train.weight_decay": 5e-3}, {"train.feature_decay": 0.01}
    steps: list[Settings] = [{"train.weight_decay": 0.0}, decay, decay | features, decay | etf, decay | features | etf]
    names = "exp15_steps_{model.name}_{dataset.name}_{head.name}_wd{train.weight_decay:g}_fd{train.feature_decay:g}"
    settings: Settings = {"model.name": "resnet34", "train.batch_size": 64, "train.lr": 0.01}
    held_out: Settings = {"dataset.val_fraction": 0.1, "train.augment": "crop_flip"}
    axes, adjusted = [CIFAR, steps, each("seed", *SEEDS[:3])], ("multiplicative", "logit_adjustment")
    return Grid(f"{names}_seed{{seed}}", axes, settings | held_out, posthoc=adjusted)


def exp16() -> Grid:
    """Weight balancing: 5 strengths of weight decay, then bounded rows, × 2 data sets.

    Hypothesis: decay tuned for the long tail balances the norms of the rows (Alshammari, Wang, Ramanan and Kong 2022).
    A second stage that retrains the classifier with bounded norms (max_norm) gains again. Expected: val/acc/balanced is
    highest at a decay near 5e-3, ten times the usual one. After max_norm it beats cRT and τ-norm on the same features.
    """
    strengths = each("train.weight_decay", 0.0, 5e-4, 1e-3, 5e-3, 1e-2)
    names = "exp16_balance_{model.name}_{dataset.name}_wd{train.weight_decay:g}"
    settings: Settings = {"model.name": "resnet34", "train.batch_size": 64, "train.lr": 0.01}
    held_out: Settings = {"dataset.val_fraction": 0.1, "train.augment": "crop_flip"}
    return Grid(names, [CIFAR, strengths], settings | held_out, posthoc=("max_norm", "crt", "tau_norm"))


MODELS = (
    *("vgg11", "vgg16", "resnet18", "resnet50", "mobilenet_v2", "shufflenet_v2", "regnet_y_400mf", "vit_tiny"),
    *("densenet121", "efficientnet_b0", "googlenet", "mobilenetv4_small", "repvit_m1", "dinov3_small"),
)
BALANCED: Settings = {"dataset.imb_type": "none", "dataset.imb_factor": 1.0}
SEEDS = (1, 2, 3, 4, 5)
CIFAR = each("dataset.name", "cifar10", "cifar100")
THREE = each("model.name", "vgg11", "resnet18", "vit_tiny")

PUBLISHED: dict[str, Callable[[], Grid]] = {
    "exp1": exp1,
    "exp2": exp2,
    "exp3": exp3,
    "exp4": exp4,
    "exp5": exp5,
    "exp6": exp6,
    "exp7": exp7,
    "exp8": exp8,
    "exp9": exp9,
    "exp10": exp10,
    "exp11": exp11,
    "exp12": exp12,
    "exp13": exp13,
    "exp14": exp14,
    "exp15": exp15,
    "exp16": exp16,
}
# Add your own group, a function from the parameters of params.yaml to runs: EXPERIMENTS["mine"] = mine
MAIN = "main"
EXPERIMENTS: dict[str, Callable[..., Any]] = {"quickstart": quickstart, MAIN: main, **PUBLISHED}
