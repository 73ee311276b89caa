"""The typed, frozen twin of params.yaml: every option of a run with its type, range and default.

The YAML keys of the first seed are valid unchanged. Unknown keys are rejected with their full path and the nearest
spelling. Modules below this file do not use YAML. Importing this module does not import torch, which keeps `ncflow
--help` fast.
"""

from __future__ import annotations

import hashlib
import json
import re
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import deepcopy
from functools import cache
from pathlib import Path
from reprlib import Repr
from typing import Annotated, Any, Literal, Self, get_args, get_type_hints

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SerializeAsAny,
    SerializerFunctionWrapHandler,
    ValidationError,
    create_model,
    model_serializer,
    model_validator,
)

from ncflow.dotted import assign
from ncflow.lookup import fact, lookup, options_of, unknown
from ncflow.ranges import LARGEST, MOST, Count, NotNegative, Positive, Seed, Share
from ncflow.yaml_files import parse_yaml, read_yaml

WIDEST = 2**17  # features: the limit of ncflow.geometry
LARGEST_IMAGE = 1024  # pixels
MOST_WORKERS = 1024  # threads
MOST_BYTES = 2**50  # a thousand times the memory of a large machine
ORDERS = ("name", "frequency")  # of the classes from the most frequent to the rarest
WIDTHS = {"K-1": -1, "K": 0, "K+1": 1}  # of features, relative to the number of classes


class Section(BaseModel):
    """A part of the configuration. Unknown keys are errors, values are constant, and true is not the number 1."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


def _imbalance_factor(factor: float) -> float:
    if factor != -1 and not 0 < factor <= 1:
        raise ValueError("must lie in (0, 1], smallest class over largest, or be -1 for the native imbalance")
    return factor


def _path(path: str) -> str:
    if "\0" in path:
        raise ValueError("must be a path without a zero byte")
    return path


def _class_order(order: Any) -> Any:
    """Names that are whole numbers, such as those of digits, may be written as numbers."""
    if isinstance(order, list) and all(type(name) in (str, int) for name in order):
        return [str(name) for name in order]
    if order not in ORDERS:
        raise ValueError(f"must be {' or '.join(ORDERS)}, or a list of all class names, the most frequent first")
    return order


def _option(value: Any) -> Any:
    for item in value if isinstance(value, list | tuple) else [value]:
        fits = -LARGEST <= item <= LARGEST if isinstance(item, int | float) else isinstance(item, str | None)
        if not fits:  # nor NaN
            raise ValueError(
                f"must be a number of at most {LARGEST:g} in size, text, true, false, null or a list of these"
            )
    return value


Option = Annotated[Any, AfterValidator(_option)]
Options = dict[str, Option]  # of a row of a table, which defines them


class WithOptions(Section):
    """A section that names a row of a table; `options` are further options of a row that the user added."""

    options: Options = {}

    @model_validator(mode="after")
    def _set_once(self) -> Self:
        if twice := sorted(self.options.keys() & type(self).model_fields):
            raise ValueError(f"options holds {', '.join(twice)}, which the section sets itself; move it out of options")
        return self

    @model_serializer(mode="wrap")
    def _without_empty_options(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Plain data without empty `options`. So configurations of runs without options keep their digest."""
        values: dict[str, Any] = serialize(self)
        if not values.get("options"):
            values.pop("options", None)
        return values


class DatasetParams(WithOptions):
    """The images, and how the training split is made long-tailed; `seed` selects the samples that stay.

    First, `val_fraction` of the training data is held out. Then `label_noise` makes a share of the other labels wrong.
    Then the tail is made, from `samples_per_class` (None: all samples of each class) down to at least `min_samples`.
    `class_order` selects the classes that become rare. `test_fraction` splits a source that has only one split.
    `on_damaged` skips or rejects pictures that cannot be read. `label_column`, `image_column` and `lists` are options
    of sources with columns or lists. `options` are those of a user's source.
    """

    name: str = "digits"
    root: Annotated[str, AfterValidator(_path)] | None = None
    imb_type: Literal["exp", "step", "none"] = "exp"
    imb_factor: Annotated[float, AfterValidator(_imbalance_factor)] = 0.01
    seed: Seed = 0
    val_fraction: Share = 0.0
    label_noise: Share = 0.0
    samples_per_class: Count | None = None
    min_samples: Annotated[int, Field(ge=0, le=MOST)] = 0
    class_order: Annotated[str | list[str], BeforeValidator(_class_order)] = "name"
    test_fraction: Share = 0.0
    on_damaged: Literal["refuse", "skip"] = "refuse"
    label_column: str | None = None
    image_column: str | None = None
    lists: dict[Literal["train", "val", "test"], Annotated[str, AfterValidator(_path)]] | None = None


class DataParams(Section):
    """How pictures are stored and decoded, which changes no result.

    Up to `resident_bytes` of the pixels of a split stay on the device. A larger split is decoded batch by batch, in
    `workers` threads. None takes a share of the free memory, and one thread for each CPU.
    """

    workers: Annotated[int, Field(ge=1, le=MOST_WORKERS)] | None = None
    resident_bytes: Annotated[int, Field(ge=0, le=MOST_BYTES)] | None = None


def _width(width: Any) -> Any:
    if width not in (None, *WIDTHS) and not (type(width) is int and 1 <= width <= WIDEST):
        raise ValueError(
            f"must be a whole number from 1 to {WIDEST}, or one of {', '.join(WIDTHS)}, K the number of classes"
        )
    return width


class ModelParams(WithOptions):
    """The backbone and its options. None selects the backbone's default; a backbone rejects options that it lacks.

    `num_features` is a width d, or a width relative to the number of classes. A simplex ETF needs at least K-1.
    `checkpoint` is a file of weights to start from. `trainable` selects what learns: all, the head alone, or the head
    with the norms and biases of the backbone. `drop_path` is the rate of stochastic depth in the last block.
    `affine: false` removes scales, shifts and biases from every norm and layer, as AGD needs. `options` are those of a
    user's backbone.
    """

    name: str = "resnet20"
    image_size: Annotated[int, Field(ge=8, le=LARGEST_IMAGE)] = 32
    stem: str | None = None
    neck: str | None = None
    final_norm: bool | None = None
    patch_size: Annotated[int, Field(ge=1, le=LARGEST_IMAGE)] | None = None
    num_features: Annotated[int | str | None, BeforeValidator(_width)] = None
    pretrained: bool | None = None
    drop_path: Share | None = None
    affine: bool = True
    checkpoint: Annotated[str, AfterValidator(_path)] | None = None
    trainable: Literal["all", "head", "norm_bias"] = "all"

    def keywords(self, num_classes: int) -> dict[str, Any]:
        """The keyword options for `ncflow.nn.create_backbone`."""
        options = self.model_dump(exclude={"name", "affine", "checkpoint", "trainable", "options"})
        width = options["num_features"]
        return options | {"num_features": num_classes + WIDTHS[width] if width in WIDTHS else width} | self.options


class HeadParams(Section):
    """A head's name and its options, which are the keyword-only parameters of its row in `ncflow.nn.HEADS`."""

    name: str

    def option(self, name: str) -> Any:
        """The value of an option, or None where the head does not have it."""
        return getattr(self, name, None)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the values only. The other process makes the class from the row in its table."""
        return _restored_head, (self.model_dump(),)


class ForeignHeadParams(HeadParams):
    """The values of a head whose row this process does not have, as on a machine that only forwards jobs."""

    model_config = ConfigDict(frozen=True, extra="allow", strict=True)


def _restored_head(values: dict[str, Any]) -> HeadParams:
    from ncflow.nn.heads import HEADS

    section = head_section(values["name"]) if values["name"] in HEADS else ForeignHeadParams
    return section.model_validate(values)


def head_section(name: str) -> type[HeadParams]:
    """The section of the head called `name`: types, ranges and defaults are those of its signature."""
    from ncflow.nn.heads import HEADS  # imports torch, which `ncflow --help` does not need

    return _section_of(name, lookup(HEADS, name, "head"))


@cache
def _section_of(name: str, row: Callable[..., Any]) -> type[HeadParams]:
    hints = get_type_hints(row.__init__ if isinstance(row, type) else row, include_extras=True)  # type: ignore[misc]
    defaults: dict[str, Any] = fact(row, "defaults", {})
    fields: dict[str, Any] = {"name": (Literal[name], name)}
    for option, parameter in options_of(row).items():
        if hasattr(HeadParams, option) or option in HeadParams.model_fields or option.startswith("_"):
            raise ValueError(f"head '{name}' has an option '{option}', which a configuration cannot hold; rename it")
        default = defaults.get(option, parameter.default)
        hint: Any = Annotated[hints.get(option, Any), AfterValidator(_option)]
        fields[option] = (hint, ... if default is parameter.empty else default)
    return create_model(f"HeadParams_{name}", __base__=HeadParams, **fields)


def _resolve_head(head: Any) -> Any:
    """Resolve a head. A name alone means its defaults. Aliases are resolved, and unknown names are rejected."""
    if isinstance(head, HeadParams):
        return head
    if isinstance(head, str):
        head = {"name": head}
    if not isinstance(head, Mapping):
        return head
    from ncflow.nn.heads import HEAD_ALIASES

    name = head.get("name", "linear")
    name = HEAD_ALIASES.get(name, name) if isinstance(name, str) else _shown.repr(name)
    return head_section(name).model_validate({**head, "name": name})


def _batch_size(size: Any) -> Any:
    if size != "full" and not (type(size) is int and 2 <= size <= MOST):
        raise ValueError(f"must be full or a whole number from 2 to {MOST}")
    return size


def _names(names: Any) -> Any:
    if not isinstance(names, str) and not (isinstance(names, list) and names and all(type(n) is str for n in names)):
        raise ValueError("must be a name, or a list of names that apply in order")
    return names


class StopParams(Section):
    """Early stopping: training ends after `patience` analyses without a better `metric` of the validation split."""

    metric: str = "val/acc/balanced"
    patience: Count = 5


class TrainParams(Section):
    """How the classifier is trained and how often it is analyzed; names are those of the tables in ncflow.

    `reweight` is the β of class-balanced weights, which apply after a share `reweight_after` of the epochs.
    `posthoc_tau` is the τ of accuracies with logits adjusted at test time. None chooses it on the validation part, or
    takes 1 without one. 0 measures none. `penalties` are factors by name. `augment` is one name or several in order.
    `sam` is the radius of sharpness-aware minimization, and `ema` the decay of a moving average of the weights; 0 is
    without. For optimizers, None selects their own default. `max_steps` ends training before `epochs` do. Batches go
    through the backbone in `accumulate` parts. `max_grad_norm` limits the global norm of the gradients. `layer_decay`
    is the factor of the learning rate from a layer to the one before it. `analyze: streaming` measures the training
    split by the forwards of training.
    """

    epochs: Count = 200
    max_steps: Count | None = None
    stop: StopParams | None = None
    batch_size: Annotated[int | str, BeforeValidator(_batch_size)] = 256
    accumulate: Count = 1
    sampling: str = "shuffled"
    lr: Positive | None = 0.1
    optimizer: str = "sgd"
    optimizer_options: Options = {}
    momentum: Annotated[float, Field(ge=0, lt=1)] | None = None
    weight_decay: NotNegative | None = 1e-3
    decay: str = "all"
    layer_decay: Annotated[float, Field(gt=0, le=1)] = 1.0
    max_grad_norm: Positive | None = None
    schedule: str = "cosine"
    schedule_options: Options = {}
    schedule_per: Literal["epoch", "step"] = "epoch"
    warmup: Share = 0.0
    loss: str = "ce"
    loss_options: Options = {}
    label_smoothing: Share = 0.0
    reweight: Share | None = None
    reweight_after: Share = 0.8
    posthoc_tau: NotNegative | None = None
    drift_penalty: NotNegative = 0.0
    feature_decay: NotNegative = 0.0
    penalties: dict[str, NotNegative] = {}
    penalty_options: dict[str, Options] = {}
    augment: Annotated[str | list[str], BeforeValidator(_names)] = "none"
    augment_options: dict[str, Options] = {}
    mix: str = "none"
    mix_options: Options = {}
    sam: NotNegative = 0.0
    ema: Share = 0.0
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    compile: bool = False
    device: Literal["auto", "cpu"] = "auto"
    analyze_freq: Count = 2
    analyze: Literal["exact", "streaming"] = "exact"
    analyze_layers: bool = False
    analyze_solver: bool = False
    save_logits: bool = False
    save_features: bool = False


def _registered_name(name: str) -> str:
    if not name.strip() or set(name) & set("/:'\"") or len(name) > 200:
        raise ValueError("must be a name of 1 to 200 characters without slashes, colons and quotes")
    return name


with warnings.catch_warnings():  # pydantic finds the method `register` of every class of classes
    warnings.filterwarnings("ignore", message='Field name "register"')

    class TrackingParams(Section):
        """`register` is the name in MLflow's registry that gets a new version; `also` are trackers that get a copy."""

        register: Annotated[str, AfterValidator(_registered_name)] | None = None
        also: list[str] = []


class GridParams(Section):
    """The grid of `dvc repro` and the quickstart group: every head with every loss and every seed.

    Without `loss` every run has the loss of the section train.
    """

    head: Annotated[list[str], Field(min_length=1)] = ["linear", "fixed_etf", "nearest_etf"]
    loss: Annotated[list[str], Field(min_length=1)] | None = None
    seed: Annotated[list[Seed], Field(min_length=1)] = [0]


def plain_name(name: str) -> str:
    """Return a name of a run or of results; raise ValueError if it is no plain name of a folder."""
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.=+-]{,199}", name):
        raise ValueError(
            "must be a plain folder name of at most 200 letters, digits and _ . = + - that does not start with a dot"
        )
    return name


def name_of(option: str, name: str) -> str:
    """Return the name that an option gives to a folder; raise ValueError with both if it is no plain name."""
    try:
        return plain_name(name)
    except ValueError as error:
        raise ValueError(f"{option} {error}, got {name!r}") from None


class Params(Section):
    """One run: `exp_name` names its folder under models/, and `seed` sets all random numbers of training."""

    exp_name: Annotated[str, AfterValidator(plain_name)] = "run"
    seed: Seed = 0
    dataset: DatasetParams = DatasetParams()
    data: DataParams = DataParams()
    model: ModelParams = ModelParams()
    head: Annotated[SerializeAsAny[HeadParams], BeforeValidator(_resolve_head)] = Field(
        default_factory=lambda: head_section("linear")(name="linear")
    )
    train: TrainParams = TrainParams()
    tracking: TrackingParams = TrackingParams()
    grid: GridParams = GridParams()

    @model_validator(mode="before")
    @classmethod
    def _must_be_mapping(cls, values: Any) -> Any:
        if not isinstance(values, Mapping):
            raise ValueError(f"a configuration is a mapping of keys to values, got {type(values).__name__}")
        return values

    @model_validator(mode="before")
    @classmethod
    def _large_images(cls, values: Any) -> Any:
        """Use the usual image size of a data set of large pictures as the default."""
        if not isinstance(values, Mapping):
            return values
        dataset, model = values.get("dataset"), values.get("model", {})
        name = dataset.get("name") if isinstance(dataset, Mapping) else None
        if not isinstance(name, str) or not isinstance(model, Mapping):
            return values
        from ncflow.data.sources import SOURCES  # imports torch

        size = fact(SOURCES.get(name), "image_size")
        if size is None:
            return values
        return {**values, "model": {"image_size": size, **model}}

    def resolved(self) -> dict[str, Any]:
        """The complete configuration of this run as plain data, without the grid."""
        return self.model_dump(mode="json", exclude={"grid"})

    def experiment(self) -> dict[str, Any]:
        """The resolved configuration without the sections data and tracking, which do not change the run."""
        return self.model_dump(mode="json", exclude={"grid", "data", "tracking"})

    def digest(self) -> str:
        """12 hex digits that two runs share exactly when they differ only in name, in data and in tracking."""
        config = {key: value for key, value in self.experiment().items() if key != "exp_name"}
        return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()[:12]


def load_params(config: str | Path | None = None, overrides: Iterable[str] = ()) -> Params:
    """The parameters of a YAML file (default: all defaults), with overrides such as "train.lr=0.05" applied."""
    return make_params({} if config is None else read_config(config), overrides)


def read_config(path: str | Path) -> Any:
    """The content of a configuration file. Raises ValueError with the file and the line of an error."""
    if not Path(path).is_file():
        raise ValueError(f"no configuration file {path}; give one with --config, or run in the folder of params.yaml")
    values = read_yaml(path)
    return {} if values is None else values


def make_params(values: Any, overrides: Iterable[str] = ()) -> Params:
    """The parameters of nested plain data, with overrides applied. Raises ValueError that names every wrong key."""
    try:
        values = deepcopy(values)
        for override in overrides:
            _override(values, override)
        return Params.model_validate(values)
    except ValidationError as error:
        by_key: dict[tuple[Any, ...], list[Any]] = {}
        for problem in error.errors():
            by_key.setdefault(_keys(problem), []).append(problem)
        raise ValueError("\n".join(_explain(problems, values) for problems in by_key.values())) from None
    except RecursionError:
        raise ValueError("a configuration is a few sections of keys and values, got one nested too deeply") from None


def split_overrides(texts: Iterable[str]) -> list[str]:
    """Single overrides: `mlflow run -P set="a=1 b=[2, 3]"` passes several as one text.

    An override starts at a space before `key=`, outside brackets and quotes. Values may contain spaces.
    """
    return [override for text in texts for override in _split(text)]


def _split(text: str) -> list[str]:
    starts, depth, quote = [0], 0, ""
    for i, letter in enumerate(text):
        if quote:
            quote = "" if letter == quote and not (letter == '"' and text[i - 1] == "\\") else quote
        elif letter in "'\"" and (text[i - 1] == letter or text[:i].rstrip().endswith(tuple("=[{,:"))):
            quote = letter  # any other quote is an apostrophe
        elif letter in "[]{}":
            depth += 1 if letter in "[{" else -1
        elif depth <= 0 and _NEXT_OVERRIDE.match(text, i):
            starts.append(i)
    parts = (text[start:end].strip() for start, end in zip(starts, [*starts[1:], len(text)], strict=True))
    return [part for part in parts if part]


_NEXT_OVERRIDE = re.compile(r"\s+[A-Za-z_][\w.]*=")


def _override(values: Any, override: str) -> None:
    """Apply "a.b=c" in place. c is parsed as YAML."""
    path, equals, text = override.partition("=")
    path = path.strip()
    if not equals or not all(path.split(".")):
        raise ValueError(f"--set expects key=value such as train.lr=0.05, got '{override}'")
    try:
        value = parse_yaml(text)
    except ValueError as error:
        raise ValueError(f"--set {path}: '{text}' is not a YAML value: {error}") from None
    by_name = path == "head" and isinstance(value, str)  # keeps the other options of the head
    try:
        assign(values, "head.name" if by_name else path, value)
    except ValueError as error:
        raise ValueError(f"--set {override}: {error}") from None


def _explain(problems: Sequence[Any], values: Any) -> str:
    """One line about the problems with one key: full path, expected value, given value."""
    problem = problems[0]
    path = [str(key) for key in _keys(problem)]
    if problem["type"] == "extra_forbidden":
        choices = [".".join([*path[:-1], field]) for field in _section(path[:-1], values).model_fields]
        return str(unknown("key", ".".join(path), choices))
    message = " or ".join(dict.fromkeys(each["msg"].removeprefix("Value error, ") for each in problems))
    return f"{'.'.join(path)}: {message}, got {_shown.repr(problem['input'])}" if path else message


def _keys(problem: Any) -> tuple[Any, ...]:
    """The keys that lead to a problem. For an option of several types pydantic also names the type."""
    keys: tuple[Any, ...] = problem["loc"]
    return keys[:2] if keys[:1] == ("head",) else keys


def _section(path: Sequence[str], values: Any) -> Any:
    """The section that the keys lead to."""
    if path == ["head"]:
        return type(_resolve_head({"name": values["head"].get("name", "linear")}))
    section: Any = Params
    for key in path:
        section = section.model_fields[key].annotation
        section = next((each for each in get_args(section) if hasattr(each, "model_fields")), section)  # of `X | None`
    return section


_shown = Repr()  # values from a user may be very long, and may even contain themselves
_shown.maxlevel, _shown.maxstring, _shown.maxlong, _shown.maxother = 2, 80, 80, 80
