"""Models by name, and one's own as ``package.module:build``."""

from __future__ import annotations

import importlib
import inspect
import math
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from framework.data import ByteText, Dataset, clusters
from framework.layers import (
    GELU,
    CausalAttention,
    Chain,
    Dropout,
    Embedding,
    Layer,
    LayerNorm,
    Linear,
    ReLU,
    Residual,
    Shared,
)
from framework.losses import CrossEntropy, Loss
from framework.parameters import Normal

Paths = Sequence[str]


@dataclass(frozen=True)
class Model:
    """A chain, its loss, and the data it is trained on unless told otherwise.

    Attributes:
        name: For records.
        chain: The layers.
        loss: The last step.
        dataset: Makes the data set from the paths that the user named (none: the default).
        arguments: What `build` was called with, so that the model can be built again; empty if it was not.
    """

    name: str
    chain: Chain
    loss: Loss
    dataset: Callable[[Paths], Dataset]
    arguments: Mapping[str, Any] = field(default_factory=dict)


def byte_gpt(
    name: str,
    layers: int,
    features: int,
    heads: int,
    window: int,
    dtype: str = "float32",
    dropout: float = 0.0,
    tied: bool = False,
) -> Model:
    """A transformer over bytes: learned positions, pre-norm blocks, MLP ratio 4, head without bias.

    Weights start normal with standard deviation 0.02, those that write into the residual stream divided by
    √(2·layers) (Radford et al. 2019). With dropout, each branch of a block ends in it. If it is tied, the head's weight is the table of
    tokens (Press and Wolf 2017, arXiv 1608.05859).
    """
    small, branch = Normal(0.02), Normal(0.02 / math.sqrt(2 * layers))

    def block() -> Chain:
        attention: dict[str, Layer] = {
            "norm": LayerNorm(),
            "qkv": Linear(3 * features, initializer=small),
            "mix": CausalAttention(heads),
            "out": Linear(features, initializer=branch),
        }
        mlp: dict[str, Layer] = {
            "norm": LayerNorm(),
            "up": Linear(4 * features, initializer=small),
            "act": GELU(),
            "down": Linear(features, initializer=branch),
        }
        if dropout:
            attention["dropout"] = mlp["dropout"] = Dropout(dropout)
        return Chain(attention=Residual(Chain(**attention)), mlp=Residual(Chain(**mlp)))

    blocks: dict[str, Layer] = {f"block{i}": block() for i in range(layers)}
    head = Linear(256, bias=False, initializer=small)
    chain = Chain(
        embedding=Embedding(256, window, features, dtype=dtype),
        **blocks,
        norm=LayerNorm(),
        head=Shared(head, weight="embedding.token") if tied else head,
    )
    return Model(name, chain, CrossEntropy(), partial(_text, window))


def mlp_small(name: str, dtype: str = "float32", dropout: float = 0.0) -> Model:
    """64 → 256 → 256 → 10 with ReLU, on a generated classification set."""
    layers: list[Layer] = []
    for _ in range(2):
        layers += [Linear(256), ReLU()]
        if dropout:
            layers.append(Dropout(dropout))
    return Model(name, Chain(*layers, Linear(10)), CrossEntropy(), partial(_clusters, name, dtype))


MODELS: dict[str, Callable[..., Model]] = {
    "mlp-small": partial(mlp_small, "mlp-small"),
    "byte-gpt-tiny": partial(byte_gpt, "byte-gpt-tiny", 4, 128, 4, 128),
    "byte-gpt-small": partial(byte_gpt, "byte-gpt-small", 6, 256, 4, 256),
    "byte-gpt-tiny-tied": partial(byte_gpt, "byte-gpt-tiny-tied", 4, 128, 4, 128, tied=True),
    "byte-gpt-small-tied": partial(byte_gpt, "byte-gpt-small-tied", 6, 256, 4, 256, tied=True),
}


def build(name: str, dtype: str = "float32", dropout: float = 0.0) -> Model:
    """Builds a model.

    Args:
        name: One of `MODELS`, or ``package.module:function``; the function returns a `Model` and may take the keywords
            `dtype` and `dropout`.
        dtype: float32 or float64.
        dropout: The rate of the model's Dropout layers.

    Raises:
        ValueError: The model is unknown, cannot be imported, or does not take an option that was given.
    """
    if dtype not in ("float32", "float64"):
        raise ValueError(f"unknown dtype {dtype!r}; known: float32, float64")
    if not 0 <= dropout < 1:
        raise ValueError(f"a dropout rate lies in [0, 1), but got {dropout}")
    arguments = {"name": name, "dtype": dtype, "dropout": dropout}
    if name in MODELS:
        return replace(MODELS[name](dtype=dtype, dropout=dropout), arguments=arguments)
    module, _, function = name.partition(":")
    if not function:
        known = ", ".join(MODELS)
        raise ValueError(f"unknown model {name!r}; known: {known}, or your own as package.module:build")
    return replace(_build_own(name, module, function, dtype, dropout), arguments=arguments)


def _build_own(name: str, module: str, function: str, dtype: str, dropout: float) -> Model:
    try:
        builder = getattr(importlib.import_module(module), function)
        taken = inspect.signature(builder).parameters
    except (ImportError, AttributeError, TypeError) as error:
        raise ValueError(
            f"model {name!r} cannot be imported: {error}; write it as package.module:function, its folder on PYTHONPATH"
        ) from error
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in taken.values())
    options: dict[str, Any] = {}
    for option, value, default in (("dtype", dtype, "float32"), ("dropout", dropout, 0.0)):
        if option in taken or takes_any:
            options[option] = value
        elif value != default:
            raise ValueError(f"model {name!r} was built with {option}={value}, but {function} takes no {option!r}")
    try:
        model = builder(**options)
    except Exception as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        raise ValueError(
            f"model {name!r} failed to build at {place.filename}:{place.lineno}: {type(error).__name__}: {error}"
        ) from error
    if not isinstance(model, Model):
        raise ValueError(
            f"model {name!r}: {function} must return a framework.Model(name, chain, loss, dataset), where dataset is a function "
            f"from paths to a data set, but gave {type(model).__name__}"
        )
    return model


def _text(window: int, paths: Paths) -> Dataset:
    return ByteText(paths, window)


def _clusters(name: str, dtype: str, paths: Paths) -> Dataset:
    if paths:
        raise ValueError(f"{name} is trained on a generated set and takes no data, but got {', '.join(paths)}")
    return clusters(4096, 64, 10, dtype)
