"""The table of what layers and losses keep for the backward: `residual_table`, which docs/layers.md holds.

``python -m tests.peers.residuals`` makes it anew, with what PyTorch keeps beside it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from framework.layers import (
    BATCH,
    ELU,
    GELU,
    LSTM,
    Add,
    Attention,
    AveragePool2d,
    BatchNorm,
    CausalAttention,
    Composite,
    Conv2d,
    Dropout,
    Embedding,
    Flatten,
    GlobalAveragePool,
    GroupNorm,
    Hardswish,
    Hardtanh,
    Join,
    Layer,
    LayerNorm,
    LeakyReLU,
    Linear,
    LogSoftmax,
    MaxPool2d,
    Mish,
    ReLU,
    Reshape,
    RMSNorm,
    Sigmoid,
    SiLU,
    Softmax,
    Softplus,
    Spec,
    Tanh,
    Upsample2d,
    flatten,
    input_specs,
)
from framework.losses import (
    L1,
    BinaryCrossEntropy,
    CrossEntropy,
    Huber,
    Loss,
    MeanSquaredError,
    NegativeLogLikelihood,
    SoftTargetCrossEntropy,
)

_BEGIN, _END = "<!-- residuals: begin -->", "<!-- residuals: end -->"

_ROWS = Spec.of((64, 256), "float32")
_TOKENS = Spec.of((8, 128), "int64")
_QKV = Spec.of((8, 128, 192), "float32")
_SEQUENCES = Spec.of((8, 128, 64), "float32")
_IMAGES = Spec.of((8, 16, 32, 32), "float32")
_LABELS = Spec.of((64,), "int64")

#: Layers and losses as one writes them, with the specs of their inputs; a loss takes outputs and targets.
EXAMPLES: dict[str, tuple[Layer | Loss, Spec | tuple[Spec, Spec]]] = {
    "Linear(512)": (Linear(512), _ROWS),
    "Embedding(256, 128, 64)": (Embedding(256, 128, 64), _TOKENS),
    "Attention(4)": (Attention(4), _QKV),
    "CausalAttention(4)": (CausalAttention(4), _QKV),
    "LSTM(64)": (LSTM(64), _SEQUENCES),
    "Conv2d(32, 3, padding=1)": (Conv2d(32, 3, padding=1), _IMAGES),
    "Conv2d(32, 1)": (Conv2d(32, 1), _IMAGES),
    "Upsample2d(2)": (Upsample2d(2), _IMAGES),
    "MaxPool2d(2)": (MaxPool2d(2), _IMAGES),
    "AveragePool2d(2)": (AveragePool2d(2), _IMAGES),
    "GlobalAveragePool()": (GlobalAveragePool(), _IMAGES),
    "BatchNorm()": (BatchNorm(), _IMAGES),
    "GroupNorm(4)": (GroupNorm(4), _IMAGES),
    "LayerNorm()": (LayerNorm(), _ROWS),
    "RMSNorm()": (RMSNorm(), _ROWS),
    "ReLU()": (ReLU(), _ROWS),
    "LeakyReLU()": (LeakyReLU(), _ROWS),
    "ELU()": (ELU(), _ROWS),
    "Hardtanh(0, 6)": (Hardtanh(0, 6), _ROWS),
    "Hardswish()": (Hardswish(), _ROWS),
    "Mish()": (Mish(), _ROWS),
    "GELU()": (GELU(), _ROWS),
    "GELU(approximate=False)": (GELU(approximate=False), _ROWS),
    "SiLU()": (SiLU(), _ROWS),
    "Tanh()": (Tanh(), _ROWS),
    "Sigmoid()": (Sigmoid(), _ROWS),
    "Softplus()": (Softplus(), _ROWS),
    "Softmax()": (Softmax(), _ROWS),
    "LogSoftmax()": (LogSoftmax(), _ROWS),
    "Dropout(0.1)": (Dropout(0.1), _ROWS),
    "Flatten()": (Flatten(), _IMAGES),
    "Reshape((32, 16, 32))": (Reshape((32, 16, 32)), _IMAGES),
    "Add()": (Add(), (_ROWS, _ROWS)),
    "Join()": (Join(), (_IMAGES, _IMAGES)),
    "CrossEntropy()": (CrossEntropy(), (_ROWS, _LABELS)),
    "NegativeLogLikelihood()": (NegativeLogLikelihood(), (_ROWS, _LABELS)),
    "SoftTargetCrossEntropy()": (SoftTargetCrossEntropy(), (_ROWS, _ROWS)),
    "MeanSquaredError()": (MeanSquaredError(), (_ROWS, _ROWS)),
    "L1()": (L1(), (_ROWS, _ROWS)),
    "Huber()": (Huber(), (_ROWS, _ROWS)),
    "BinaryCrossEntropy()": (BinaryCrossEntropy(), (_ROWS, _ROWS)),
}


@dataclass(frozen=True)
class Kept:
    """Bytes that live from a step's forward to its backward on its behalf.

    Attributes:
        own: Its own residuals; of a composite those of its steps, and what they read of each other.
        inputs: Its inputs, if its VJP reads them.
        output: Its output, if its VJP reads that; of a loss the cotangent, which it makes at once, over the output if it may.
    """

    own: int
    inputs: int
    output: int

    @property
    def total(self) -> int:
        return self.own + self.inputs + self.output

    @classmethod
    def by(cls, kind: Layer | Loss, x: Any) -> Kept:
        """Returns what a layer or loss keeps for inputs of these specs."""
        if isinstance(kind, Loss):
            y, targets = x
            kind.footprint(y, targets)
            return cls(0, 0, y.nbytes)
        if isinstance(kind, Composite):
            return cls._by_steps(kind, x)
        footprint = kind.footprint(x)
        specs = x if isinstance(x, tuple) else (x,)
        read = sum(spec.nbytes for spec, needed in zip(specs, footprint.needs_input, strict=True) if needed)
        return cls(footprint.own_nbytes, read, footprint.output.nbytes * footprint.needs_output)

    @classmethod
    def _by_steps(cls, kind: Composite, x: Spec) -> Kept:
        steps = flatten(kind)
        own, outputs, read = 0, {BATCH: x}, set()
        for number, (step, spec) in enumerate(zip(steps, input_specs(steps, x), strict=True)):
            footprint = step.layer.footprint(spec)
            own += footprint.own_nbytes
            outputs[number] = footprint.output
            read |= {source for source, needed in zip(step.inputs, footprint.needs_input, strict=True) if needed}
            read |= {number} if footprint.needs_output else set()
        nbytes = {value: outputs[value].nbytes for value in read}
        inputs, output = nbytes.pop(BATCH, 0), nbytes.pop(len(steps) - 1, 0)
        return cls(own + sum(nbytes.values()), inputs, output)


def residual_table(pytorch: Mapping[str, int]) -> str:
    """Returns the table as Markdown.

    Args:
        pytorch: What PyTorch keeps, in bytes, by the names of `EXAMPLES`.
    """
    lines = [
        "| layer or loss | takes | own | inputs | output | kept | PyTorch keeps |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, (kind, x) in EXAMPLES.items():
        kept, specs = Kept.by(kind, x), x if isinstance(x, tuple) else (x,)
        numbers = (kept.own, kept.inputs, kept.output, kept.total, pytorch[name])
        cells = [f"`{name}`", ", ".join(map(str, specs)), *(f"{n:,}" for n in numbers)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def with_table(text: str, pytorch: Mapping[str, int]) -> str:
    """Returns a Markdown page with the table between its marks made anew."""
    before, _, rest = text.partition(_BEGIN)
    _, _, after = rest.partition(_END)
    return f"{before}{_BEGIN}\n{residual_table(pytorch)}\n{_END}{after}"
