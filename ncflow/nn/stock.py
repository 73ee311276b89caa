"""Stock models: networks of torchvision and timm up to their pooled features, with random or published weights."""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from torch import hub, nn

from ncflow.lookup import unknown
from ncflow.nn.necks import Backbone


def timm_backbone(
    model: str,
    *,
    image_size: int | None = None,
    neck: str = "none",
    num_features: int | None = None,
    pretrained: bool = False,
    drop_path: float = 0.0,
) -> Backbone:
    """Any timm model without its classifier; models that are built for one size receive `image_size`.

    `drop_path` is the rate of stochastic depth in the last block; it rises linearly from the first. Huang et al. 2016.
    """
    body = timm_body(model, pretrained=pretrained, image_size=image_size, drop_path=drop_path)
    layers = {path: path for path in _feature_stages(body)}
    return Backbone(body, body.head_hidden_size, neck=neck, project_to=num_features, layers=layers)


def timm_body(
    model: str, *, pretrained: bool, image_size: int | None = None, drop_path: float = 0.0, **options: Any
) -> Any:
    """Return timm's model up to its pooled features, `.head_hidden_size` of them.

    Raises ValueError for a rate of `drop_path` in a model without it.
    """
    import timm

    if not timm.is_model(model):
        known = timm.list_models()
        nearest = difflib.get_close_matches(model, known, n=5)
        raise unknown("timm model", model, [*nearest, f"... (timm.list_models() has {len(known)})"])
    options |= {"drop_path_rate": drop_path} if drop_path else {}
    build = partial(timm.create_model, model, pretrained=pretrained, num_classes=0, **options)
    make = build if image_size is None else partial(sized, build, image_size)
    try:
        body = published(partial(without_retries, make), f"timm's {model}") if pretrained else make()
    except (TypeError, ValueError) as refusal:
        if "'drop_path_rate'" not in str(refusal):
            raise
        body = nn.Module()
    if drop_path and not any(getattr(module, "drop_prob", 0) for module in body.modules()):
        raise ValueError(f"timm's {model} has no drop path: expected model.drop_path 0, got {drop_path:g}")
    return body


def refuse_weightless(model: str) -> None:
    """Raise ValueError if timm has no weights for one of its models."""
    import timm

    known = timm.get_pretrained_cfg(model) if timm.is_model(model.partition(".")[0]) else None
    if known is not None and not (known.url or known.hf_hub_id or known.file):
        raise ValueError(
            f"timm has no weights for '{model}': expected pretrained false, or a model with weights, of which "
            f"timm.list_models(pretrained=True) has {len(timm.list_models(pretrained=True))}"
        )


def torchvision_body(model: str, classifier: str, *, pretrained: bool, **options: Any) -> Any:
    """Return torchvision's model up to its pooled features: its attribute `classifier` becomes the identity."""
    from torchvision.models import get_model, get_model_weights

    build = partial(get_model, model, weights="DEFAULT" if pretrained else None, **options)
    if pretrained:
        address: str = get_model_weights(model)["DEFAULT"].url
        build = partial(published, build, f"torchvision's {model}", cached=cached_weights(address))
    body = build()
    setattr(body, classifier, nn.Identity())
    return body


def published(build: Callable[[], Any], model: str, *, cached: Path | None = None) -> Any:
    """Return the result of `build`, with weights that it downloads or finds at `cached`. Runs no code of theirs.

    Raises ValueError with the reason of a failure; it names the file if the file is the cause.
    """
    try:
        with _weights_only():
            return build()
    except Exception as error:  # the hubs' clients share no base class
        reason = f"{type(error).__name__}: {_brief(error)}"
        if cached and cached.exists():  # so the network is not the cause
            raise ValueError(
                f"{cached} should hold the published weights of {model} and nothing else, got {reason}. "
                "Delete it, and it is downloaded again; or choose pretrained: false"
            ) from error
        raise ValueError(
            f"no pretrained weights for {model}: {reason}. They are downloaded on first use; "
            "without a network copy the cache of torch.hub or Hugging Face here, or choose pretrained: false"
        ) from error


def sized(build: Callable[..., Any], image_size: int) -> Any:
    """Build for one image size if the model takes one. timm shows this only by rejecting the argument."""
    try:
        return build(img_size=image_size)
    except TypeError as refusal:
        if "'img_size'" not in str(refusal):
            raise
        return build()


def without_retries(build: Callable[[], Any]) -> Any:
    """Return `build()`. If Hugging Face's server does not answer, use its cache alone.

    Its client would retry for a minute.
    """
    from huggingface_hub import constants
    from huggingface_hub.errors import LocalEntryNotFoundError

    silence = _silence_of_hugging_face()
    if silence is None:
        return build()
    offline, constants.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE, True
    try:
        return build()
    except LocalEntryNotFoundError:
        raise silence from None
    finally:
        constants.HF_HUB_OFFLINE = offline


def cached_weights(address: str) -> Path:
    """Return the path at which torch.hub keeps a download from this address."""
    return Path(hub.get_dir(), "checkpoints", Path(urlparse(address).path).name)


@contextmanager
def _weights_only() -> Iterator[None]:
    """Inside, torch unpickles tensors alone. torchvision allows any object, and hashes a file only on download."""
    before = {name: os.environ.pop(name, None) for name in (FORCE, "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD")}
    os.environ[FORCE] = "1"
    try:
        yield
    finally:
        del os.environ[FORCE]
        os.environ.update({name: value for name, value in before.items() if value is not None})


def _brief(error: BaseException) -> str:
    """Return the reason on one line, without torch's advice on how to load a file with any code in it."""
    if str(error).startswith("Weights only load failed"):
        error = error.__context__ or error  # the unpickler's error, without the advice
    return " ".join(str(error).partition("Please use `torch.")[0].split())[:300].rstrip(".")


def _silence_of_hugging_face() -> Exception | None:
    """Return why the server does not answer one short request; None if it does.

    The request goes to HF_ENDPOINT through the user's proxies.
    """
    from huggingface_hub import constants, get_session

    try:
        get_session().head(constants.ENDPOINT, timeout=PATIENCE)
    except Exception as error:  # of huggingface_hub's HTTP client, or of its offline mode
        return error
    return None


def _feature_stages(body: Any) -> list[str]:
    """Return the modules that timm lists as ends of the model's feature stages."""
    modules = dict(body.named_modules())
    return [path for stage in getattr(body, "feature_info", []) if (path := stage["module"]) and path in modules]


PATIENCE = 10.0  # seconds for the first answer of a server
FORCE = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"  # overrides the arguments of torch.load
