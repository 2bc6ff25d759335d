"""Adapters: a module of PyTorch → the same function of its parameters and inputs, with our layers and losses.

An adapter gets a module and returns a function (p, *inputs), p holding the module's parameters and buffers by name. It reads
options from the module's attributes, and raises `Unsupported` with a reason for what ours lack; an option overlooked here would
fail the comparison. Around our layers it only takes views (axes in another order, joined, or of length one), and of a loss's data
the weights of examples.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from framework import (
    ELU,
    GELU,
    Attention,
    AveragePool2d,
    BatchNorm,
    Conv2d,
    Embedding,
    GlobalAveragePool,
    GroupNorm,
    Hardswish,
    Hardtanh,
    Layer,
    LayerNorm,
    LeakyReLU,
    Linear,
    LogSoftmax,
    MaxPool2d,
    Mish,
    ReLU,
    RMSNorm,
    Sigmoid,
    SiLU,
    Softmax,
    Softplus,
    Tanh,
)
from framework.layers import LSTMChunk, LSTMOutput
from tests.peers.losses import LOSSES
from tests.peers.ours import Function, run, unless


def elementwise(layer: Layer) -> Function:
    """Ours take at least one axis."""
    return lambda p, x: np.reshape(run(layer, {}, np.reshape(x, (-1,))), np.shape(x))


def along(layer: Layer, axis: int | None) -> Function:
    """A layer over the last axis, along another."""
    unless(axis is not None, "no axis is named")

    def function(p: Any, x: Any) -> Any:
        if not x.ndim:
            return np.reshape(run(layer, {}, np.reshape(x, (1,))), ())
        return np.moveaxis(run(layer, {}, np.moveaxis(x, axis, -1)), -1, axis)

    return function


def linear(m: Any) -> Function:
    def function(p: Any, input: Any) -> Any:
        layer = Linear(m.out_features, bias=m.bias is not None)
        return np.reshape(run(layer, p, np.reshape(input, (-1, m.in_features))), (*input.shape[:-1], m.out_features))

    return function


def embedding(m: Any) -> Function:
    unless(m.max_norm is None and not m.scale_grad_by_freq and m.padding_idx is None, "max_norm, padding_idx, …")

    def function(p: Any, x: Any) -> Any:
        layer = Embedding(m.num_embeddings, x.shape[-1], m.embedding_dim, "float64")
        nowhere = np.zeros((x.shape[-1], m.embedding_dim))  # positions that add nothing
        return run(layer, {"token": p["weight"], "position": nowhere}, x)

    return function


def as_images(x: Any, axes: int, layer: Callable[[Any], Any]) -> Any:
    """Runs a layer on images for a signal of one axis (images of height 1), or one without a batch."""
    unless(axes <= 2, "three axes of space")
    single = x.ndim == axes + 1
    images = np.reshape(x, (*((1,) if single else ()), *x.shape[:-axes], *(1,) * (2 - axes), *x.shape[-axes:]))
    y = layer(images)
    y = y[:, :, 0] if axes == 1 else y
    return y[0] if single else y


def sizes(value: Any, axes: int, beside: int) -> tuple[int, int]:
    """PyTorch's size of each axis as (height, width); `beside` is that of an axis that is not there."""
    each = tuple(value) if isinstance(value, tuple | list) else (value,) * axes
    unless(axes <= 2, "three axes of space")
    return (beside,) * (2 - axes) + each  # type: ignore[return-value]


def convolution(m: Any) -> Function:
    axes = len(m.kernel_size)
    unless(not m.transposed, "transposed convolution")
    unless(m.padding_mode == "zeros", f"padding with {m.padding_mode}")
    padding = m.padding
    if padding == "same":
        reach = [d * (k - 1) for d, k in zip(m.dilation, m.kernel_size, strict=True)]
        unless(all(n % 2 == 0 for n in reach), "padding of unequal sides")
        padding = tuple(n // 2 for n in reach)
    options = sizes(m.stride, axes, 1), sizes(padding, axes, 0), sizes(m.dilation, axes, 1)
    layer = Conv2d(m.out_channels, sizes(m.kernel_size, axes, 1), *options, m.groups, m.bias is not None)

    def function(p: Any, x: Any) -> Any:
        weight = p["weight"]
        given = p | {"weight": np.reshape(weight, (*weight.shape[:2], *layer.kernel))}
        return as_images(x, axes, lambda images: run(layer, given, images))

    return function


def pooling(kind: type[MaxPool2d | AveragePool2d], axes: int) -> Callable[[Any], Function]:
    def adapter(m: Any) -> Function:
        unless(not getattr(m, "return_indices", False), "places as a second output")
        unless(getattr(m, "divisor_override", None) is None, "another divisor than the window's size")
        unless(not m.ceil_mode, "ceil_mode")
        unless(getattr(m, "count_include_pad", True), "padding that does not count")
        unless(getattr(m, "dilation", 1) == 1, "windows with dilation")
        stride = m.kernel_size if m.stride is None else m.stride
        layer = kind(sizes(m.kernel_size, axes, 1), sizes(stride, axes, 1), sizes(m.padding, axes, 0))
        return lambda p, x: as_images(x, axes, lambda images: run(layer, {}, images))

    return adapter


def adaptive_mean(axes: int) -> Callable[[Any], Function]:
    def adapter(m: Any) -> Function:
        each = m.output_size if isinstance(m.output_size, tuple | list) else (m.output_size,) * axes
        unless(set(each) == {1}, "an adaptive pool to more than one output")

        def function(p: Any, x: Any) -> Any:
            return as_images(x, axes, lambda images: run(GlobalAveragePool(), {}, images)[..., None, None])

        return function

    return adapter


def over_rows(m: Any) -> Function:
    """LayerNorm and RMSNorm; over several axes they are one; without a weight it is 1, without a bias 0."""
    width = math.prod(m.normalized_shape)
    centered = type(m).__name__ == "LayerNorm"
    layer: Layer = LayerNorm(m.eps) if centered else RMSNorm(m.eps)

    def function(p: Any, x: Any) -> Any:
        given = {"weight": np.reshape(p["weight"], (width,)) if "weight" in p else np.ones(width)}
        if centered:
            given["bias"] = np.reshape(p["bias"], (width,)) if "bias" in p else np.zeros(width)
        return np.reshape(run(layer, given, np.reshape(x, (-1, width))), x.shape)

    return function


def below(p: dict[str, Any], name: str) -> dict[str, Any]:
    """The parameters of a module in a module."""
    return {long.removeprefix(f"{name}."): value for long, value in p.items() if long.startswith(f"{name}.")}


def attention(m: Any) -> Function:
    """Three Linears, side by side, Attention and a Linear."""
    unless(m.bias_k is None and not m.add_zero_attn, "keys and values besides those of the tokens")
    unless(m.in_proj_weight is not None, "keys or values of another width")
    unless(not m.dropout, "dropout of attention's weights")

    def function(p: Any, query: Any, key: Any, value: Any) -> Any:
        unless(query.shape == key.shape == value.shape, "keys of another sequence")
        each = zip((query, key, value), np.split(p["in_proj_weight"], 3), strict=True)
        biases = np.split(p["in_proj_bias"], 3) if "in_proj_bias" in p else None
        projected = [
            project(x, {"weight": w} | ({"bias": biases[i]} if biases is not None else {}))
            for i, (x, w) in enumerate(each)
        ]
        heads = np.concatenate(projected, axis=-1)
        batched = heads[None] if heads.ndim == 2 else heads if m.batch_first else np.swapaxes(heads, 0, 1)
        y = run(Attention(m.num_heads), {}, batched)
        y = y[0] if heads.ndim == 2 else y if m.batch_first else np.swapaxes(y, 0, 1)
        return project(y, below(p, "out_proj"))

    return function


def project(x: Any, p: dict[str, Any]) -> Any:
    return run(Linear(p["weight"].shape[0], bias="bias" in p), p, x)


def encoder_layer(m: Any) -> Function:
    unless(not m.training or m.dropout.p == 0, "other random numbers")
    attend, first, second = attention(m.self_attn), over_rows(m.norm1), over_rows(m.norm2)
    gelu = m.activation is not None and "gelu" in m.activation.__name__

    def function(p: Any, src: Any) -> Any:
        def mixed(x: Any) -> Any:
            return attend(below(p, "self_attn"), x, x, x)

        def fed(x: Any) -> Any:
            hidden = project(x, below(p, "linear1"))
            hidden = elementwise(GELU(approximate=False) if gelu else ReLU())({}, hidden)
            return project(hidden, below(p, "linear2"))

        if m.norm_first:
            src = src + mixed(first(below(p, "norm1"), src))
            return src + fed(second(below(p, "norm2"), src))
        src = first(below(p, "norm1"), src + mixed(src))
        return second(below(p, "norm2"), src + fed(src))

    return function


def encoder(m: Any) -> Function:
    layers = [encoder_layer(layer) for layer in m.layers]
    end = None if m.norm is None else over_rows(m.norm)

    def function(p: Any, src: Any) -> Any:
        for number, layer in enumerate(layers):
            src = layer(below(p, f"layers.{number}"), src)
        return src if end is None else end(below(p, "norm"), src)

    return function


def lstm(m: Any) -> Function:
    """An LSTM of two chunks a layer, whose bias is the sum of both; backwards in time is forwards over a view turned around."""
    unless(not m.proj_size, "projected outputs")
    unless(not m.dropout, "dropout between layers")

    def function(p: Any, x: Any, state: Any = None) -> Any:
        unless(state is None, "a state at the start")
        single = x.ndim == 2
        y = x[None] if single else x if m.batch_first else np.swapaxes(x, 0, 1)
        hidden, memory = [], []
        for number in range(m.num_layers):
            ways = []
            for end, turn in ((f"l{number}", 1), (f"l{number}_reverse", -1))[: 1 + m.bidirectional]:
                way, last = over_time(p, y[:, ::turn], end)
                ways.append(way[:, ::turn])
                hidden.append(last[-2])
                memory.append(last[-1])
            y = np.concatenate(ways, axis=-1)
        y = y[0] if single else y if m.batch_first else np.swapaxes(y, 0, 1)
        return (y, *(a[:, 0] if single else a for a in (np.stack(hidden), np.stack(memory))))

    def over_time(p: Any, x: Any, end: str) -> tuple[Any, Any]:
        """The outputs, and those of the last chunk, whose end is the state."""
        bias = p[f"bias_ih_{end}"] + p[f"bias_hh_{end}"] if m.bias else np.zeros(4 * m.hidden_size)
        given = {name: p[f"{name}_{end}"] for name in ("weight_ih", "weight_hh")} | {"bias": bias}
        first = run(LSTMChunk(m.hidden_size, 0, 2), given, x)
        second = run(LSTMChunk(m.hidden_size, 1, 2), given, x, first)
        return run(LSTMOutput(2), {}, first, second), second

    return function


def batch_norm(m: Any) -> Function:
    """Without a bias it is 0. How running statistics move is compared elsewhere: they are no output."""
    tracked = m.track_running_stats
    layer = BatchNorm(epsilon=m.eps, affine=m.affine, tracked=tracked)

    def function(p: Any, x: Any) -> Any:
        unless(x.size > 0 or (tracked and not m.training), "a batch of nothing")
        given = {"weight": p["weight"], "bias": p.get("bias", np.zeros(m.num_features))} if m.affine else {}
        state = {name: p[name] for name in ("running_mean", "running_var")} if tracked else None
        return run(layer, given, x, training=m.training, state=state)

    return function


def group_norm(m: Any) -> Function:
    """Without a bias it is 0."""
    layer = GroupNorm(m.num_groups, m.eps, m.affine)

    def function(p: Any, x: Any) -> Any:
        return run(
            layer, {"weight": p["weight"], "bias": p.get("bias", np.zeros(m.num_channels))} if m.affine else {}, x
        )

    return function


def instance_norm(axes: int) -> Callable[[Any], Function]:
    """A GroupNorm of as many groups as channels."""

    def adapter(m: Any) -> Function:
        unless(m.training or not m.track_running_stats, "running statistics of InstanceNorm")
        layer = GroupNorm(m.num_features, m.eps, m.affine)

        def function(p: Any, x: Any) -> Any:
            given = {"weight": p["weight"], "bias": p.get("bias", np.zeros(m.num_features))} if m.affine else {}
            return run(layer, given, x) if x.ndim == axes + 2 else run(layer, given, x[None])[0]

        return function

    return adapter


#: PyTorch's module → the adapter. Modules that are not here have no counterpart.
ADAPTERS: dict[str, Callable[[Any], Function]] = {
    "ReLU": lambda m: elementwise(ReLU()),
    "LeakyReLU": lambda m: elementwise(LeakyReLU(m.negative_slope) if m.negative_slope else ReLU()),
    "ELU": lambda m: elementwise(ELU(m.alpha)),
    "Hardtanh": lambda m: elementwise(Hardtanh(m.min_val, m.max_val)),
    "ReLU6": lambda m: elementwise(Hardtanh(0.0, 6.0)),
    "Hardswish": lambda m: elementwise(Hardswish()),
    "Mish": lambda m: elementwise(Mish()),
    "GELU": lambda m: elementwise(GELU(approximate=m.approximate == "tanh")),
    "SiLU": lambda m: elementwise(SiLU()),
    "Sigmoid": lambda m: elementwise(Sigmoid()),
    "Tanh": lambda m: elementwise(Tanh()),
    "Softplus": lambda m: elementwise(Softplus(float(m.beta), float(m.threshold))),
    "Softmax": lambda m: along(Softmax(), m.dim),
    "Softmax2d": lambda m: along(Softmax(), -3),
    "LogSoftmax": lambda m: along(LogSoftmax(), m.dim),
    "Linear": linear,
    "Embedding": embedding,
    "Conv1d": convolution,
    "Conv2d": convolution,
    "Conv3d": convolution,
    "MaxPool1d": pooling(MaxPool2d, 1),
    "MaxPool2d": pooling(MaxPool2d, 2),
    "MaxPool3d": pooling(MaxPool2d, 3),
    "AvgPool1d": pooling(AveragePool2d, 1),
    "AvgPool2d": pooling(AveragePool2d, 2),
    "AvgPool3d": pooling(AveragePool2d, 3),
    "AdaptiveAvgPool1d": adaptive_mean(1),
    "AdaptiveAvgPool2d": adaptive_mean(2),
    "AdaptiveAvgPool3d": adaptive_mean(3),
    "BatchNorm1d": batch_norm,
    "BatchNorm2d": batch_norm,
    "BatchNorm3d": batch_norm,
    "GroupNorm": group_norm,
    "InstanceNorm1d": instance_norm(1),
    "InstanceNorm2d": instance_norm(2),
    "InstanceNorm3d": instance_norm(3),
    "LayerNorm": over_rows,
    "RMSNorm": over_rows,
    "LSTM": lstm,
    "MultiheadAttention": attention,
    "TransformerEncoderLayer": encoder_layer,
    "TransformerEncoder": encoder,
} | LOSSES
