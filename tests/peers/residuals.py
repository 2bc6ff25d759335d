"""What PyTorch keeps for the backward of our layers' counterparts; as a program, makes the table of docs/layers.md anew."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from framework import Loss, Spec
from framework.listing import EXAMPLES, with_table

PAGE = Path(__file__).parents[2] / "docs" / "layers.md"


class _Embedding(nn.Module):
    """Tokens and learned positions."""

    def __init__(self, tokens: int, positions: int, features: int) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(tokens, features), nn.Parameter(torch.zeros(positions, features))

    def forward(self, x: Any) -> Any:
        return self.tokens(x) + self.positions[: x.shape[-1]]


def _attention(heads: int, causal: bool) -> Callable[[Any], Any]:
    def function(x: Any) -> Any:
        batch, length, width = x.shape
        queries, keys, values = x.reshape(batch, length, 3, heads, width // 3 // heads).permute(2, 0, 3, 1, 4)
        y = functional.scaled_dot_product_attention(queries, keys, values, is_causal=causal)
        return y.transpose(1, 2).reshape(batch, length, width // 3)

    return function


#: By the names of `EXAMPLES`: modules, or functions without parameters.
TWINS: dict[str, Callable[..., Any]] = {
    "Linear(512)": nn.Linear(256, 512),
    "Embedding(256, 128, 64)": _Embedding(256, 128, 64),
    "Attention(4)": _attention(4, causal=False),
    "CausalAttention(4)": _attention(4, causal=True),
    "LSTM(64)": nn.LSTM(64, 64, batch_first=True),
    "Conv2d(32, 3, padding=1)": nn.Conv2d(16, 32, 3, padding=1),
    "Conv2d(32, 1)": nn.Conv2d(16, 32, 1),
    "Upsample2d(2)": nn.Upsample(scale_factor=2),
    "MaxPool2d(2)": nn.MaxPool2d(2),
    "AveragePool2d(2)": nn.AvgPool2d(2),
    "GlobalAveragePool()": lambda x: x.mean((-2, -1)),
    "BatchNorm()": nn.BatchNorm2d(16),
    "GroupNorm(4)": nn.GroupNorm(4, 16),
    "LayerNorm()": nn.LayerNorm(256),
    "RMSNorm()": nn.RMSNorm(256),
    "ReLU()": nn.ReLU(),
    "LeakyReLU()": nn.LeakyReLU(),
    "ELU()": nn.ELU(),
    "Hardtanh(0, 6)": nn.ReLU6(),
    "Hardswish()": nn.Hardswish(),
    "Mish()": nn.Mish(),
    "GELU()": nn.GELU("tanh"),
    "GELU(approximate=False)": nn.GELU(),
    "SiLU()": nn.SiLU(),
    "Tanh()": nn.Tanh(),
    "Sigmoid()": nn.Sigmoid(),
    "Softplus()": nn.Softplus(),
    "Softmax()": nn.Softmax(-1),
    "LogSoftmax()": nn.LogSoftmax(-1),
    "Dropout(0.1)": nn.Dropout(0.1),
    "Flatten()": nn.Flatten(),
    "Reshape((32, 16, 32))": lambda x: x.reshape(len(x), 32, 16, 32),
    "Add()": torch.add,
    "Join()": lambda a, b: torch.cat((a, b), 1),
    "CrossEntropy()": nn.CrossEntropyLoss(),
    "NegativeLogLikelihood()": nn.NLLLoss(),
    "SoftTargetCrossEntropy()": nn.CrossEntropyLoss(),
    "MeanSquaredError()": nn.MSELoss(),
    "L1()": nn.L1Loss(),
    "Huber()": nn.HuberLoss(),
    "BinaryCrossEntropy()": nn.BCEWithLogitsLoss(),
}


def saved_bytes(twin: Callable[..., Any], inputs: list[Any]) -> int:
    """Returns the bytes of the distinct storages that PyTorch saves for the backward of a call, without those of parameters and buffers."""
    lasting = [*twin.parameters(), *twin.buffers()] if isinstance(twin, nn.Module) else []
    parameters = {tensor.untyped_storage().data_ptr() for tensor in lasting}
    found: dict[int, Any] = {}

    def pack(tensor: Any) -> Any:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            found[storage.data_ptr()] = storage  # held, so that no other storage takes the address
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        y = twin(*inputs)
    y = y[0] if isinstance(y, tuple) else y  # an LSTM gives its state, too
    assert y.requires_grad
    return sum(int(storage.nbytes()) for storage in found.values())


def measured() -> dict[str, int]:
    """Returns what PyTorch keeps, in bytes, for each of `EXAMPLES`."""
    found = {}
    for name, (kind, specs) in EXAMPLES.items():
        tensors = [of_spec(spec) for spec in (specs if isinstance(specs, tuple) else (specs,))]
        for tensor in tensors[:1] if isinstance(kind, Loss) else tensors:  # targets are data
            tensor.requires_grad_(tensor.is_floating_point())
        found[name] = saved_bytes(TWINS[name], tensors)
    return found


def of_spec(spec: Spec) -> Any:
    return torch.rand(spec.shape) if spec.dtype.kind == "f" else torch.randint(0, 8, spec.shape)


if __name__ == "__main__":
    PAGE.write_text(with_table(PAGE.read_text(), measured()))
