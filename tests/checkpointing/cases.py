"""Models, data and schedules that the tests of this package share."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from checkpointing import Engine, Plan, RunPlans, parse_policy, run_plans
from framework import (
    ELU,
    GELU,
    LSTM,
    AdamW,
    AveragePool2d,
    BatchNorm,
    CausalAttention,
    Chain,
    Concat,
    Conv2d,
    CrossEntropy,
    Dropout,
    Embedding,
    Flatten,
    GlobalAveragePool,
    GroupNorm,
    Hardswish,
    Hardtanh,
    Key,
    LayerNorm,
    LeakyReLU,
    Ledger,
    Linear,
    LogSoftmax,
    MaxPool2d,
    MeanSquaredError,
    Mish,
    NegativeLogLikelihood,
    ReLU,
    Reshape,
    Residual,
    RMSNorm,
    Shared,
    Sigmoid,
    SiLU,
    Softmax,
    Softplus,
    Spec,
    Tanh,
    Upsample2d,
)
from framework.layers import Layer
from framework.losses import Loss
from framework.memory import Array

#: Linear and Conv2d: every chain here has one of them.
SELECTIVE = "selective:[LC][io]n*"
POLICIES = (
    "store-all",
    "every-k:1",
    "every-k:2",
    "every-k:3",
    "sqrt-n",
    "revolve:2",
    "mixed:2",
    "recompute-all",
    SELECTIVE,
    "offload",
    "offload:1",
)
#: Those that hold nothing on disk.
IN_MEMORY = tuple(policy for policy in POLICIES if not policy.startswith("offload"))


@dataclass(frozen=True)
class Case:
    """A chain, its loss, and one global batch for it."""

    name: str
    chain: Chain
    loss: Loss
    x: Array
    targets: Array

    def specs(self, shards: int) -> tuple[Spec, Spec]:
        rows = len(self.x) // shards
        return (
            Spec.of((rows, *self.x.shape[1:]), self.x.dtype),
            Spec.of((rows, *self.targets.shape[1:]), self.targets.dtype),
        )

    def mean_loss(self, y: Any) -> Any:
        """The mean loss of an output by the definition, in plain NumPy."""
        ignore = getattr(self.loss, "ignore", None)
        counted = self.targets.size if ignore is None else np.count_nonzero(self.targets != ignore)
        return self.loss.apply(y, self.targets, None) / counted

    def plans(self, policy: str | None = None, shards: int = 1, world: int = 1, **options: Any) -> RunPlans:
        chosen = parse_policy(policy) if policy else None
        return run_plans(
            self.chain, self.loss, *self.specs(shards), AdamW(), policy=chosen, shards=shards, world=world, **options
        )

    def loader(self, shards: int) -> Callable[[int, Array, Array], None]:
        rows = len(self.x) // shards

        def load(shard: int, x: Array, targets: Array) -> None:
            x[...] = self.x[shard * rows : (shard + 1) * rows]
            targets[...] = self.targets[shard * rows : (shard + 1) * rows]

        return load

    def engine(
        self, ledger: Ledger | None = None, block: bool = False, folder: Path | None = None, **more: Any
    ) -> Engine:
        layout = self.chain.layout(self.specs(1)[0])
        how: dict[str, Any] = {"seed": 3, "clip": 0.5, "ledger": ledger, "block": block, "offload_dir": folder}
        return Engine(self.chain, self.loss, layout, AdamW(), **how, **more)

    def bits_after(self, plan: Plan, steps: int = 2) -> tuple[str, tuple[float, ...]]:
        """The parameters' hash and the losses after some training steps."""
        engine = self.engine()
        outcomes = [engine.train_step(plan, self.loader(plan.shards), step, 1e-2) for step in range(steps)]
        return engine.parameters.sha256(), tuple(o.loss for o in outcomes) + tuple(o.gradient_norm for o in outcomes)


def digest(array: Array) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).data).hexdigest()


def _generator(name: str) -> np.random.Generator:
    return Key(5).fold(name).generator()


def mlp(dtype: str = "float32", dropout: float = 0.2, batch: int = 8) -> Case:
    generator = _generator("mlp")
    chain = Chain(Linear(13), ReLU(), Dropout(dropout), Linear(11, bias=False), GELU(), LayerNorm(), Linear(5))
    x = generator.standard_normal((batch, 7)).astype(dtype)
    return Case(f"mlp-{dtype}", chain, CrossEntropy(), x, generator.integers(5, size=batch))


def tokens(dtype: str = "float32", dropout: float = 0.2, batch: int = 8, length: int = 12, features: int = 8) -> Case:
    generator = _generator("tokens")

    def block() -> Layer:
        attention = Chain(LayerNorm(), Linear(3 * features), CausalAttention(2), Linear(features), Dropout(dropout))
        return Chain(
            attention=Residual(attention),
            mlp=Residual(Chain(LayerNorm(), Linear(2 * features), GELU(), Linear(features))),
        )

    chain = Chain(Embedding(17, length, features, dtype=dtype), block(), block(), LayerNorm(), Linear(17, bias=False))
    x = generator.integers(17, size=(batch, length)).astype(np.uint8)
    return Case(f"tokens-{dtype}", chain, CrossEntropy(), x, np.roll(x, -1, axis=1))


def nested(dtype: str = "float64", dropout: float = 0.3, batch: int = 8) -> Case:
    """Residuals in residuals, identities inside, and a stage without parameters at the front."""
    generator = _generator("nested")
    chain = Chain(
        ReLU(),
        Residual(Residual(Dropout(0.0))),
        Linear(6),
        Residual(Chain()),
        Residual(Chain(Residual(Dropout(dropout)), Residual(Chain(GELU(), Residual(Linear(6)))))),
        Residual(Residual(Residual(Chain()))),
        Residual(Chain(Dropout(0.0), Residual(Dropout(0.0)))),
        Linear(3),
        Dropout(dropout),
    )
    x, targets = generator.standard_normal((batch, 4)), generator.standard_normal((batch, 3))
    return Case(f"nested-{dtype}", chain, MeanSquaredError(), x.astype(dtype), targets.astype(dtype))


def smooth(dtype: str = "float64", batch: int = 8) -> Case:
    """Activations that read their output or their input, norms and softmaxes, and a loss with both options."""
    generator = _generator("smooth")
    gate = Chain(RMSNorm(), Linear(6), Softmax(), Linear(6), LogSoftmax(), Tanh())
    chain = Chain(
        Linear(6), SiLU(), Residual(gate), LeakyReLU(), Linear(6), Softplus(), Linear(5), GELU(approximate=False), Sigmoid()
    )  # fmt: skip
    targets = generator.integers(5, size=batch)
    targets[::3] = 3
    x = generator.standard_normal((batch, 4)).astype(dtype)
    return Case(f"smooth-{dtype}", chain, CrossEntropy(label_smoothing=0.1, ignore=3), x, targets)


def bent(dtype: str = "float64", batch: int = 8) -> Case:
    """Activations with bends and edges, groups of channels, and log-probabilities at the end."""
    generator = _generator("bent")
    inside = Chain(GroupNorm(4, affine=False), Mish(), Linear(6))
    chain = Chain(
        Linear(6), GroupNorm(2), ELU(0.7), Linear(6), Hardswish(), Residual(inside), Hardtanh(-0.8, 2.0), Flatten(), Linear(5), LogSoftmax()
    )  # fmt: skip
    targets = generator.integers(5, size=batch)
    targets[::3] = 3
    x = generator.standard_normal((batch, 4, 3)).astype(dtype)
    return Case(f"bent-{dtype}", chain, NegativeLogLikelihood(ignore=3), x, targets)


def images(dtype: str = "float64", batch: int = 8) -> Case:
    """A small U-Net on images: convolutions of all kinds, pools, views, shortcuts, and inputs joined to outputs two deep."""
    generator = _generator("images")
    inside = Concat(Chain(AveragePool2d(2), Conv2d(4, 1), Concat(Reshape((4, 1, 2))), Upsample2d(2)))
    unet = Concat(Chain(MaxPool2d(2), Conv2d(4, 3, padding=1), ReLU(), inside, Upsample2d(2)))
    chain = Chain(
        Reshape((1, 4, 8)),
        Conv2d(3, 3, padding=1, bias=False),
        BatchNorm(),
        ReLU(),
        unet,
        Conv2d(6, 3, stride=(1, 2), padding=1, groups=3),
        Residual(Chain(BatchNorm(affine=False), Conv2d(6, 3, padding=1, groups=6))),
        Residual(Chain(Conv2d(4, 3, padding=1), ReLU(), Conv2d(5, 3, padding=1)), Chain(Conv2d(5, 1, bias=False))),
        MaxPool2d(3, 1, 1),
        Chain(GELU(), Conv2d(5, 2)),
        Flatten(),
        Reshape((5, 3, 3)),
        GlobalAveragePool(),
        Linear(3),
    )
    x, targets = generator.standard_normal((batch, 32)), generator.integers(3, size=batch)
    return Case(f"images-{dtype}", chain, CrossEntropy(), x.astype(dtype), targets)


def tied(dtype: str = "float64", batch: int = 8, length: int = 6) -> Case:
    """Weights that two layers share and three, over the borders of stages and within one, and an owner that comes last."""
    generator = _generator("tied")

    def again(*owner: str, bias: bool = True) -> Layer:
        return Shared(Linear(6, bias=bias), **{name.rpartition(".")[2]: name for name in owner})

    block = Chain(norm=LayerNorm(), mix=Linear(6), act=Tanh(), back=again("mix.weight"))
    chain = Chain(
        embedding=Embedding(11, length, 6, dtype=dtype),
        one=Residual(block),
        two=Residual(Chain(again("one.mix.weight", bias=False), GELU(), again("last.weight", "last.bias"))),
        drop=Dropout(0.2),
        last=Linear(6),
        head=Shared(Linear(11, bias=False), weight="embedding.token"),
    )
    x = generator.integers(11, size=(batch, length)).astype(np.uint8)
    return Case(f"tied-{dtype}", chain, CrossEntropy(), x, np.roll(x, -1, axis=1))


def recurrent(dtype: str = "float64", batch: int = 8, length: int = 11) -> Case:
    """LSTMs whose chunks are stages and such inside of one, with chunks that are short or empty, and an input with several readers."""
    generator = _generator("recurrent")
    chain = Chain(
        embedding=Embedding(7, length, 4, dtype=dtype),
        first=LSTM(6, 4),
        norm=LayerNorm(),
        inside=Residual(Chain(LSTM(6, 3), Dropout(0.2))),
        joined=Concat(LSTM(5, 7), axis=2),
        single=LSTM(5, 1),
        head=Linear(7),
    )
    x = generator.integers(7, size=(batch, length)).astype(np.uint8)
    return Case(f"recurrent-{dtype}", chain, CrossEntropy(), x, np.roll(x, -1, axis=1))


def all_cases() -> list[Case]:
    return [
        make(dtype)
        for make in (mlp, tokens, nested, smooth, bent, images, tied, recurrent)
        for dtype in ("float32", "float64")
    ]


#: Layers without parameters whose VJPs read their input, and their output; and those that work on rows.
OF_INPUT = (GELU(), GELU(approximate=False), SiLU(), Softplus(2.0, 5.0))
OF_OUTPUT = (ReLU(), LeakyReLU(), Tanh(), Sigmoid(), Softplus())
NORMALIZED = (LayerNorm(), RMSNorm(), Softmax(), LogSoftmax())


def random_layers(draw: random.Random, width: int, depth: int) -> Iterator[Layer]:
    """Layers that keep the width, residuals nested up to a depth."""
    for _ in range(draw.randint(1, 4)):
        kind = draw.randrange(8 if depth else 6)
        if kind == 0:
            yield Linear(width, bias=draw.random() < 0.5)
        elif kind < 5:
            others = draw.choice(NORMALIZED), Dropout(draw.choice((0.0, 0.3)))
            yield (draw.choice(OF_INPUT), draw.choice(OF_OUTPUT), *others)[kind - 1]
        elif kind == 5:
            yield Chain(*random_layers(draw, width, 0))
        else:
            inner = Chain(*random_layers(draw, width, depth - 1)) if draw.random() < 0.9 else Chain()
            yield Residual(inner, Linear(width) if draw.random() < 0.25 else None)
