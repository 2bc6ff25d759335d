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

from framework.architectures import lenet, mlp, resnet, unet
from framework.data import Dataset, Examples, Form, Task, clusters, open_examples, open_text, pictures, prepare
from framework.layers import (
    GELU,
    LSTM,
    CausalAttention,
    Chain,
    Dropout,
    Embedding,
    Layer,
    LayerNorm,
    Linear,
    Residual,
    Shared,
)
from framework.losses import CrossEntropy, Loss, MeanSquaredError
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
        training: Options of `TrainingOptions` that suit the model, where a person names none.
        resize: Makes the model anew, given the keywords `outputs` and `loss`; None if its sizes are fixed.
        window: How many tokens it reads at once where none of its layers limits them; None for what reads no text.
    """

    name: str
    chain: Chain
    loss: Loss
    dataset: Callable[[Paths], Dataset]
    arguments: Mapping[str, Any] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)
    resize: Callable[..., Model] | None = None
    window: int | None = None

    def fitted(self, data: Dataset) -> Model:
        """Returns the model with as many outputs as the data have classes or numbers to predict, and with the loss for them.

        That is cross-entropy for integer targets, and the mean squared error for others. A model of fixed sizes is returned as it is.

        Raises:
            ValueError: The data do not tell their number of classes.
        """
        if self.resize is None:
            return self
        whole = data.targets.dtype.kind in "iu"
        classes = getattr(data, "classes", None)
        if whole and classes is None:
            raise ValueError(
                f"{self.name} takes its number of outputs from the data, but {type(data).__name__} has whole numbers as targets and does not "
                "say how many classes they tell apart; give it an attribute `classes`"
            )
        if not whole and not data.targets.shape:
            raise ValueError(
                f"{self.name} predicts numbers of shape (n, ...), one or more an example, but {type(data).__name__} has targets of shape (n,); "
                "give them another axis: targets[:, None]"
            )
        outputs = classes if whole else data.targets.shape[0]
        sizes = {"outputs": outputs, "regression": not whole}
        made = self.resize(outputs=outputs, loss=CrossEntropy() if whole else MeanSquaredError())
        return replace(made, arguments={**self.arguments, **sizes} if self.arguments else {})


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
    return Model(name, chain, CrossEntropy(), partial(_text, name, window))


def byte_lstm(
    name: str, layers: int, features: int, embedded: int, window: int, dtype: str = "float32", dropout: float = 0.0
) -> Model:
    """A recurrent network over bytes: an embedding that starts standard normal, LSTMs, and a head.

    With dropout, each LSTM is followed by one (Zaremba et al. 2014, arXiv 1409.2329).
    """
    chain: dict[str, Layer] = {"embedding": Embedding(256, None, embedded, dtype=dtype, initializer=Normal(1.0))}
    for number in range(layers):
        chain[f"lstm{number}"] = LSTM(features, chunks=8)
        if dropout:
            chain[f"dropout{number}"] = Dropout(dropout)
    return Model(name, Chain(**chain, head=Linear(256)), CrossEntropy(), partial(_text, name, window), window=window)


def sized(
    name: str,
    form: Form,
    generated: Callable[[str], Dataset],
    chain: Callable[[int, float], Chain],
    training: Mapping[str, Any] | None = None,
    dtype: str = "float32",
    dropout: float = 0.0,
    outputs: int = 10,
    loss: Loss | None = None,
    task: Task | None = None,
) -> Model:
    """A model that takes its sizes from the data.

    Args:
        name: Its name.
        form: What it takes: features or images.
        generated: Makes the default data set in a dtype.
        chain: Makes the chain from the number of outputs and the rate of dropout.
        training: See `Model.training`.
        dtype: Of parameters and data.
        dropout: The rate of Dropout layers.
        outputs: Classes, or numbers to predict.
        loss: By default cross-entropy.
        task: What is learned unless a person says; None is what the data suggest.
    """
    again = partial(sized, name, form, generated, chain, training, dtype, dropout, task=task)
    data = partial(_examples, name, form, dtype, generated, task)
    return Model(name, chain(outputs, dropout), loss or CrossEntropy(), data, {}, training or {}, again)


def _examples(
    name: str,
    form: Form,
    dtype: str,
    generated: Callable[[str], Dataset],
    usual: Task | None,
    paths: Paths,
    target: str | None = None,
    task: Task | None = None,
) -> Dataset:
    if paths:
        return open_examples(name, form, dtype, paths, target, task or usual)
    if target is not None or task is not None:
        raise ValueError(f"{name} is trained on a generated set unless data are named; name them with --data")
    return generated(dtype)


def _noisy_pictures(dtype: str) -> Dataset:
    clean = pictures(1024, (1, 16, 16), 10)
    return prepare(Examples("generated pictures", clean.x, clean.y), "images", dtype, "denoising")


#: What suits models of examples on sets of some thousands.
_OF_FEATURES = {"batch": 32, "shards": 4, "steps": 1000, "learning_rate": 2e-3}
_OF_IMAGES = {**_OF_FEATURES, "steps": 600}

MODELS: dict[str, Callable[..., Model]] = {
    "mlp-small": partial(
        sized, "mlp-small", "features", partial(clusters, 4096, 64, 10), partial(mlp, width=256, depth=2), _OF_FEATURES
    ),
    "mlp-deep": partial(
        sized,
        "mlp-deep",
        "features",
        partial(clusters, 4096, 64, 10),
        partial(mlp, width=512, depth=8),
        {**_OF_FEATURES, "steps": 400, "learning_rate": 1e-3},
    ),
    "lenet": partial(sized, "lenet", "images", partial(pictures, 2048, (1, 16, 16), 10), lenet, _OF_IMAGES),
    "resnet-small": partial(
        sized,
        "resnet-small",
        "images",
        partial(pictures, 1024, (3, 32, 32), 10),
        partial(resnet, widths=(16, 32, 64), blocks=2),
        _OF_IMAGES,
    ),
    "unet": partial(
        sized,
        "unet",
        "images",
        _noisy_pictures,
        partial(unet, widths=(16, 32, 64)),
        {**_OF_IMAGES, "learning_rate": 5e-3},
        outputs=1,
        loss=MeanSquaredError(),
        task="denoising",
    ),
    "byte-gpt-tiny": partial(byte_gpt, "byte-gpt-tiny", 4, 128, 4, 128),
    "byte-gpt-small": partial(byte_gpt, "byte-gpt-small", 6, 256, 4, 256),
    "byte-gpt-medium": partial(byte_gpt, "byte-gpt-medium", 12, 512, 8, 512),
    "byte-gpt-large": partial(byte_gpt, "byte-gpt-large", 24, 1024, 16, 1024),
    "byte-gpt-tiny-tied": partial(byte_gpt, "byte-gpt-tiny-tied", 4, 128, 4, 128, tied=True),
    "byte-gpt-small-tied": partial(byte_gpt, "byte-gpt-small-tied", 6, 256, 4, 256, tied=True),
    "byte-lstm-small": partial(byte_lstm, "byte-lstm-small", 2, 256, 128, 128),
}


def build(
    name: str, dtype: str = "float32", dropout: float = 0.0, *, outputs: int | None = None, regression: bool = False
) -> Model:
    """Builds a model.

    Args:
        name: One of `MODELS`, or ``package.module:function``; the function returns a `Model` and may take the keywords
            `dtype` and `dropout`.
        dtype: float32 or float64.
        dropout: The rate of the model's Dropout layers.
        outputs: Classes, or numbers to predict, of models that take their sizes from the data (see `Model.fitted`); by default as many as
            their default data set has.
        regression: Whether the outputs are numbers to predict.

    Raises:
        ValueError: The model is unknown, cannot be imported, or does not take an option that was given.
    """
    if dtype not in ("float32", "float64"):
        raise ValueError(f"unknown dtype {dtype!r}; known: float32, float64")
    if not 0 <= dropout < 1:
        raise ValueError(f"a dropout rate lies in [0, 1), but got {dropout}")
    arguments = {"name": name, "dtype": dtype, "dropout": dropout}
    if name in MODELS:
        model = replace(MODELS[name](dtype=dtype, dropout=dropout), arguments=arguments)
        if outputs is None:
            return model
        if model.resize is None:
            raise ValueError(f"model {name!r} has outputs of its own, so their number cannot be {outputs}")
        resized = model.resize(outputs=outputs, loss=MeanSquaredError() if regression else CrossEntropy())
        return replace(resized, arguments={**arguments, "outputs": outputs, "regression": regression})
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


def _text(name: str, window: int, paths: Paths) -> Dataset:
    return open_text(name, window, paths)
