"""Twins of our models in PyTorch, for tests and benchmarks: the same layers, names, parameters and training step.

A twin is translated from the layers of a built model, so there is no second list of sizes. PyTorch is no dependency of Retape.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from framework import AdamW, CrossEntropy, MeanSquaredError, Model
from framework.layers import (
    GELU,
    LSTM,
    AveragePool2d,
    BatchNorm,
    CausalAttention,
    Chain,
    Concat,
    Conv2d,
    Embedding,
    Flatten,
    GlobalAveragePool,
    Join,
    Layer,
    LayerNorm,
    Linear,
    MaxPool2d,
    ReLU,
    Residual,
    Shared,
    Spec,
    Upsample2d,
    flatten,
)
from framework.memory import Array
from framework.parameters import ParameterSpec

Specs = Mapping[str, ParameterSpec]


def twin(model: Model, x: Spec) -> nn.Module:
    """Returns a module of PyTorch that computes the model's outputs.

    Its parameters have our names and shapes; their values are PyTorch's until `load_parameters`. It starts in training mode.

    Args:
        model: A model whose layers PyTorch has, too.
        x: Spec of a batch of inputs, which tells the sizes that layers take from their inputs.

    Raises:
        TypeError: A layer has no twin, or the loss is neither `CrossEntropy` nor `MeanSquaredError`.
    """
    if not isinstance(model.loss, CrossEntropy | MeanSquaredError):
        raise TypeError(
            f"twins are trained with CrossEntropy or MeanSquaredError, but the model's loss is {model.loss!r}"
        )
    layout = model.chain.layout(x)
    module = _module(
        model.chain, "", {**layout.specs, **{own: layout.specs[name] for own, name in layout.aliases.items()}}
    )
    for step in flatten(model.chain):
        for local, name in step.shared.items():
            setattr(module.get_submodule(step.path), local, module.get_parameter(name))
    return module


class _Residual(nn.Sequential):
    """x + inner(x), or shortcut(x) + inner(x); as with ours, the names of the inner chain are enough."""

    def forward(self, x: Tensor) -> Tensor:
        y, skip = x, x
        for name, module in self.named_children():
            if name == "shortcut":
                skip = module(x)
            else:
                y = module(y)
        return y + skip


class _Concat(nn.Sequential):
    """x beside inner(x)."""

    def __init__(self, axis: int) -> None:
        super().__init__()
        self.axis = axis

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat((x, super().forward(x)), self.axis)


class _Embedding(nn.Module):
    """Embedding of tokens, with learned positions if there are any. Two parameters of one module, since ours have the names of one layer."""

    def __init__(self, layer: Embedding) -> None:
        super().__init__()
        dtype = getattr(torch, layer.dtype)
        self.token = nn.Parameter(torch.zeros(layer.vocabulary, layer.features, dtype=dtype))
        self.position: nn.Parameter | None = None
        if layer.positions is not None:
            self.position = nn.Parameter(torch.zeros(layer.positions, layer.features, dtype=dtype))

    def forward(self, x: Tensor) -> Tensor:
        y = functional.embedding(x, self.token)
        return y if self.position is None else y + self.position[: x.shape[-1]]


class _LSTM(nn.Module):
    """One layer over (batch, time, features), by PyTorch's own function; of its two biases the second is zero."""

    def __init__(self, features: int, given: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight_ih = nn.Parameter(torch.zeros(4 * features, given, dtype=dtype))
        self.weight_hh = nn.Parameter(torch.zeros(4 * features, features, dtype=dtype))
        self.bias = nn.Parameter(torch.zeros(4 * features, dtype=dtype))

    def forward(self, x: Tensor) -> Tensor:
        start = x.new_zeros(1, len(x), self.weight_hh.shape[1])
        weights = [self.weight_ih, self.weight_hh, self.bias, torch.zeros_like(self.bias)]
        y: Tensor = torch._VF.lstm(x, (start, start), weights, True, 1, 0.0, self.training, False, True)[0]
        return y


class _CausalAttention(nn.Module):
    """Causal attention over (batch, tokens, 3 x features), by PyTorch's fused kernel."""

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.heads = heads

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        queries, keys, values = x.view(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(queries, keys, values, is_causal=True)
        return mixed.transpose(1, 2).reshape(batch, length, width // 3)


class _BatchNorm(nn.modules.batchnorm._BatchNorm):
    """BatchNorm of any number of axes, as ours is."""

    def _check_input_dim(self, x: Tensor) -> None:
        pass


class _GlobalAveragePool(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean((-2, -1))


def _module(layer: Layer, path: str, specs: Specs) -> nn.Module:
    def shape(name: str) -> tuple[int, ...]:
        return specs[f"{path}.{name}"].shape

    def dtype() -> torch.dtype:
        return getattr(torch, specs[f"{path}.weight"].dtype.name)  # type: ignore[no-any-return]

    match layer:
        case Chain():
            return _filled(nn.Sequential(), layer, path, specs)
        case Residual():
            inner = layer.inner if isinstance(layer.inner, Chain) else Chain(inner=layer.inner)
            module = _filled(_Residual(), inner, path, specs)
            if layer.shortcut is not None:
                module.add_module("shortcut", _module(layer.shortcut, f"{path}.shortcut", specs))
            return module
        case Concat(end=Join(axis)):
            inner = layer.inner if isinstance(layer.inner, Chain) else Chain(inner=layer.inner)
            return _filled(_Concat(axis), inner, path, specs)
        case Upsample2d(scale):
            return nn.Upsample(scale_factor=scale, mode="nearest")
        case Linear():
            features, given = shape("weight")
            return nn.Linear(given, features, bias=layer.bias, dtype=dtype())
        case LayerNorm():
            return nn.LayerNorm(shape("weight"), eps=layer.epsilon, dtype=dtype())
        case BatchNorm(affine=True):
            (channels,) = shape("weight")
            sizes = (channels, layer.epsilon, layer.momentum)
            return _BatchNorm(*sizes, track_running_stats=layer.tracked, dtype=dtype())
        case Embedding():
            return _Embedding(layer)
        case CausalAttention():
            return _CausalAttention(layer.heads)
        case Conv2d():
            features, part, *kernel = shape("weight")
            sizes = (tuple(kernel), layer.stride, layer.padding, layer.dilation, layer.groups)
            return nn.Conv2d(part * layer.groups, features, *sizes, bias=layer.bias, dtype=dtype())
        case MaxPool2d() | AveragePool2d():
            pool = nn.MaxPool2d if isinstance(layer, MaxPool2d) else nn.AvgPool2d
            return pool(layer.kernel, layer.stride, layer.padding)
        case GlobalAveragePool():
            return _GlobalAveragePool()
        case Flatten():
            return nn.Flatten()
        case GELU():
            return nn.GELU(approximate="tanh")
        case ReLU():
            return nn.ReLU()
        case LSTM():
            _, given = shape("weight_ih")
            return _LSTM(layer.features, given, getattr(torch, specs[f"{path}.weight_ih"].dtype.name))
        case Shared():
            return _module(layer.layer, path, specs)
    raise TypeError(f"step {path!r}: {layer.kind} has no twin in PyTorch")


def _filled(module: nn.Sequential, chain: Chain, path: str, specs: Specs) -> nn.Sequential:
    for name, layer in chain.layers.items():
        module.add_module(name, _module(layer, f"{path}.{name}" if path else name, specs))
    return module


def load_parameters(module: nn.Module, parameters: Mapping[str, Array]) -> None:
    """Copies our parameters into a twin. Running statistics, which are no parameters, stay where both sides start them.

    Raises:
        ValueError: Names differ.
        RuntimeError: Shapes differ.
    """
    theirs = dict(module.named_parameters())  # each once, also where it is tied
    if set(theirs) != set(parameters):
        raise ValueError(f"our parameters are {', '.join(parameters)}, but the twin's are {', '.join(theirs)}")
    with torch.no_grad():
        for name, view in parameters.items():
            theirs[name].copy_(torch.from_numpy(view))


def gradients(module: nn.Module) -> dict[str, Array]:
    """Returns the gradients of the last backward pass by our names."""
    return {name: p.grad.numpy() for name, p in module.named_parameters() if p.grad is not None}


def tensors(x: Array, targets: Array) -> tuple[Tensor, Tensor]:
    """Returns a batch as PyTorch takes it: it looks nothing up by bytes, so integers become int64."""
    tokens = torch.from_numpy(x.astype(np.int64) if x.dtype.kind in "iu" else x)
    return tokens, torch.from_numpy(targets.astype(np.int64) if targets.dtype.kind in "iu" else targets)


def mean_loss(module: nn.Module, x: Tensor, targets: Tensor) -> Tensor:
    """Returns the mean cross-entropy over all targets, or the mean squared error of floats."""
    if targets.is_floating_point():
        return functional.mse_loss(module(x), targets)
    return functional.cross_entropy(module(x).flatten(0, -2), targets.flatten())


def optimizer_of(module: nn.Module, options: AdamW, fused: bool = False) -> torch.optim.AdamW:
    """Returns PyTorch's AdamW with our options; `train_step` gives it each step's learning rate.

    Args:
        module: Its parameters are trained.
        options: Ours.
        fused: Whether one kernel does it all, instead of a tensor operation for each part of the formula, PyTorch's default.
    """
    return torch.optim.AdamW(
        module.parameters(),
        lr=0.0,
        betas=(options.beta1, options.beta2),
        eps=options.epsilon,
        weight_decay=options.weight_decay,
        fused=fused or None,
    )


def train_step(
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    x: Tensor,
    targets: Tensor,
    learning_rate: float,
    clip: float | None = None,
) -> Tensor:
    """Runs one training step and returns its mean loss."""
    optimizer.zero_grad()  # frees the gradients, so none lives through the forward pass
    loss = mean_loss(module, x, targets)
    loss.backward()
    if clip is not None:
        _clip(module, clip)
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
    optimizer.step()
    return loss.detach()


def _clip(module: nn.Module, most: float) -> None:
    """Brings the norm of the gradients down to at most `most`, like `framework.optimizers.clip_factor`.

    torch.nn.utils.clip_grad_norm_ divides by norm + 1e-6 instead, a difference that tests of 1e-8 would see.
    """
    found = [p.grad for p in module.parameters() if p.grad is not None]
    norm = torch.nn.utils.get_total_norm(found)
    # Without asking whether it is larger, which fake tensors, having no values, could not answer.
    factor = torch.clamp(most / norm, max=1.0)
    for gradient in found:
        gradient.mul_(factor)
