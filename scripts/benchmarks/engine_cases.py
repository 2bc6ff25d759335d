"""The models of the suite `engine`, and the ways in which each side runs a step of one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
from benchmarks.measure import picked

from framework import CrossEntropy, Key, Model, Spec, build
from framework.data import ArrayDataset, Dataset
from framework.layers import Chain, Layer, Linear, ReLU, flatten, input_specs
from framework.memory import Array
from framework.models import MODELS
from framework.parameters import Normal


@dataclass(frozen=True)
class Case:
    """A model and its batch; the numbers in it are random, since times and bytes depend on shapes alone.

    Attributes:
        name: As `--only` takes it.
        title: For rows.
        model: Builds it.
        batch: Examples.
        inputs: Spec of an example.
        targets: Spec of an example's targets.
        classes: How many targets there are to tell apart.
        budget: A budget to measure beside store-all; None where recomputation is of no use.
    """

    name: str
    title: str
    model: Callable[[], Model]
    batch: int
    inputs: Spec
    targets: Spec
    classes: int
    budget: str | None = "engine:60%"

    def arrays(self, examples: int, tiny: bool = False) -> tuple[Array, Array]:
        """Returns inputs and targets of some examples; tiny ones are the shortest of their kind, for warming up."""
        generator = Key(0).fold("engine", self.name).generator()
        x_shape, shape = self.inputs.shape, self.targets.shape
        if tiny and shape:  # windows of tokens, of which a model takes shorter ones
            x_shape = shape = (8,)
        targets = generator.integers(self.classes, size=(examples, *shape)).astype(self.targets.dtype)
        if self.inputs.dtype.kind in "iu":
            return generator.integers(self.classes, size=(examples, *x_shape)).astype(self.inputs.dtype), targets
        return generator.standard_normal((examples, *x_shape), self.inputs.dtype.type), targets

    def dataset(self) -> Dataset:
        """Returns a data set of the batch, for training and again for validation, as the Trainer wants it."""
        x, targets = (np.concatenate([array, array]) for array in self.arrays(self.batch))
        return ArrayDataset(x, targets, validation=0.5)

    def widest(self) -> tuple[int, int]:
        """Returns the most rows and columns of any layer's input: what BLAS is warmed up with."""
        x = Spec((self.batch, *self.inputs.shape), self.inputs.dtype)
        given = input_specs(flatten(self.model().chain), x)
        specs = [spec for each in given for spec in (each if isinstance(each, tuple) else (each,))]
        return max(spec.rows for spec in specs), max(spec.shape[-1] for spec in specs)


@dataclass(frozen=True)
class Configuration:
    """A way to run a step.

    Attributes:
        side: Whose step.
        threads: Of each process.
        processes: One, or several that share the batch, of one thread each: our workers, or DistributedDataParallel over gloo.
        shards: V; ours only.
        budget: What `--memory-budget` would be; ours only.
        fused: Whether AdamW is one kernel (`fused=True`) instead of PyTorch's default; PyTorch only.
        shares: Whether processes have the weights once and the optimizer's state shared out (`--share-weights yes`); ours only.
    """

    side: Literal["ours", "pytorch"]
    threads: int = 1
    processes: int = 1
    shards: int = 1
    budget: str | None = None
    fused: bool = False
    shares: bool = False

    @property
    def cores(self) -> int:
        return self.threads * self.processes

    def __str__(self) -> str:
        what = "thread" if self.processes == 1 else "worker" if self.side == "ours" else "process"
        count = max(self.threads, self.processes)
        parts = [f"{count} {what}{'' if count == 1 else 'es' if what == 'process' else 's'}"]
        if self.side == "ours":
            parts.append(f"V = {self.shards}")
            if self.budget is not None:
                parts.append(self.budget)
            if self.shares:
                parts.append("weights shared")
        elif self.fused:
            parts.append("fused AdamW")
        return ", ".join(parts)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def ours(case: Case, cores: int, shards: int) -> list[Configuration]:
    """Returns our configurations on so many cores with V shards (with V = 1, two workers have a shard each)."""
    found = [Configuration("ours", threads=cores, shards=shards)]
    if cores > 1 and case.batch % max(shards, cores) == 0:
        for shares in (False, True):
            found.append(Configuration("ours", processes=cores, shards=max(shards, cores), shares=shares))
    return found


def peers(case: Case, cores: int) -> list[Configuration]:
    """Returns PyTorch's configurations on so many cores: either AdamW, by threads and by processes."""
    ways = [(cores, 1)]
    if cores > 1 and case.batch % cores == 0:
        ways.append((1, cores))
    return [
        Configuration("pytorch", threads, processes, fused=fused)
        for threads, processes in ways
        for fused in (False, True)
    ]


def shard_counts(case: Case) -> list[int]:
    """The numbers of virtual shards to measure: one, and the usual eight where the batch divides."""
    return [shards for shards in (1, 8) if case.batch % shards == 0]


def _mlp() -> Model:
    layers: list[Layer] = []
    for _ in range(8):
        layers += [Linear(512), ReLU()]
    return Model("mlp-8x512", Chain(*layers, Linear(10)), CrossEntropy(), no_data)


def _tiny_chain() -> Model:
    """Its weights keep the size of what passes through, so that no number on the way is too small to be a normal one."""
    layers: list[Layer] = []
    for _ in range(50):
        layers += [Linear(8, initializer=Normal((2 / 8) ** 0.5)), ReLU()]
    return Model("tiny-chain", Chain(*layers), CrossEntropy(), no_data)


def no_data(paths: Sequence[str]) -> Dataset:
    raise RuntimeError("the suite gives its own data")


_LABEL = Spec.of((), np.int64)

_ALL = [
    Case(
        "byte-gpt-small",
        "byte-gpt-small, 8 x 256 tokens",
        partial(build, "byte-gpt-small"),
        8,
        Spec.of((256,), np.uint8),
        Spec.of((256,), np.uint8),
        256,
    ),
    Case("mlp", "MLP of 8 x 512, batch 512", _mlp, 512, Spec.of((512,), np.float32), _LABEL, 10),
    Case(
        "resnet-small",
        "resnet-small, batch 32",
        partial(build, "resnet-small"),
        32,
        Spec.of((3, 32, 32), np.float32),
        _LABEL,
        10,
    ),
    Case("tiny-chain", "100 layers of width 8, batch 1", _tiny_chain, 1, Spec.of((8,), np.float32), _LABEL, 8, None),
]

#: By name; a model that this version does not have is left out.
CASES = {case.name: case for case in _ALL if case.name != "resnet-small" or case.name in MODELS}


def chosen(only: str | None) -> list[Case]:
    """Returns the cases that were asked for.

    Raises:
        ValueError: There is none of that name.
    """
    return picked(CASES, only, "engine")
