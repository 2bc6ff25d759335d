"""PyTorch's side of the suite `policies`: which children of a twin are checkpointed, what that saves, and a step of it.

**Bytes.** One forward under `torch.autograd.graph.saved_tensors_hooks` tells which pieces of memory (storages) autograd saves in each
child and in the loss; parameters are left out, and a piece counts once, however many tensors lie in it. A configuration's bytes are the most that it
saves at any moment:

- at the end of the forward: all that children save which are not checkpointed, the loss, and the inputs of the checkpointed segments;
- when a segment has been computed again: what it saves, its input, and what was saved before it in the forward.

What is behind it in the forward has been freed by then. A test holds the first of the two against what hooks see in a real forward.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from benchmarks import pytorch_models
from benchmarks.engine_cases import Case
from benchmarks.engine_sides import OPTIMIZER, RATE, Step
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

from framework import Parameters, Spec

#: Bytes of pieces of memory, by where they are.
Pieces = dict[int, int]


@dataclass(frozen=True)
class Configuration:
    """A way to run a twin's children.

    Attributes:
        kind: store-all, per-block (each child that is made of others is checkpointed), or sequential (`checkpoint_sequential`).
        segments: Of the latter.
    """

    kind: str
    segments: int = 1

    def __str__(self) -> str:
        return {
            "store-all": "store-all",
            "per-block": "checkpoint of each block",
            "sequential": f"checkpoint_sequential, {self.segments} segments",
        }[self.kind]

    def checkpointed(self, children: list[nn.Module]) -> list[range]:
        """Returns which children are computed again together."""
        if self.kind == "per-block":
            return [range(i, i + 1) for i, child in enumerate(children) if list(child.children())]
        size = len(children) // self.segments
        return [range(start, start + size) for start in range(0, size * (self.segments - 1), size)]

    def run(self, module: nn.Sequential, x: Tensor) -> Tensor:
        """Returns the module's output. No child draws random numbers, so their state need not be kept."""
        options: dict[str, Any] = {"use_reentrant": False, "preserve_rng_state": False}
        if self.kind == "sequential":
            return checkpoint_sequential(module, self.segments, x, **options)  # type: ignore[no-any-return]
        for child in module:
            x = checkpoint(child, x, **options) if self.kind == "per-block" and list(child.children()) else child(x)
        return x


def configurations(module: nn.Sequential) -> list[Configuration]:
    """Returns all that there are; one segment is store-all."""
    sequential = [Configuration("sequential", count) for count in range(2, len(module) + 1)]
    return [Configuration("store-all"), Configuration("per-block"), *sequential]


class _Configured(nn.Module):
    """A module that runs by a configuration."""

    def __init__(self, module: nn.Sequential, configuration: Configuration) -> None:
        super().__init__()
        self.module, self.configuration = module, configuration

    def forward(self, x: Tensor) -> Tensor:
        return self.configuration.run(self.module, x)


@dataclass
class Twin:
    """A case's twin with its batch."""

    module: nn.Sequential
    x: Tensor
    targets: Tensor

    @classmethod
    def of(cls, case: Case, start: Parameters | None = None) -> Twin:
        x, targets = case.arrays(case.batch)
        module = pytorch_models.twin(case.model(), Spec.of(x.shape, x.dtype))
        assert isinstance(module, nn.Sequential)
        if start is not None:
            pytorch_models.load_parameters(module, start)
        return cls(module, *pytorch_models.tensors(x, targets))

    def steps(self, some: list[Configuration]) -> list[Step]:
        """Returns a training step of each configuration, on the same parameters and optimizer (one kernel, the fastest)."""
        optimizer = pytorch_models.optimizer_of(self.module, OPTIMIZER, fused=True)

        def step_of(configured: nn.Module) -> Step:
            batch = self.x, self.targets
            return lambda number: pytorch_models.train_step(configured, optimizer, *batch, RATE).item()

        return [step_of(_Configured(self.module, each)) for each in some]

    def outer_pieces(self, configuration: Configuration) -> Pieces:
        """Returns what hooks see of a forward of the whole configuration: all that is saved at its end."""
        with _Hooks(self.module) as hooks:
            pytorch_models.mean_loss(_Configured(self.module, configuration), self.x, self.targets)
        return hooks.pieces


class _Hooks:
    """Notes what is saved: its pieces of memory stay as long as this lives, so no other piece gets their place."""

    def __init__(self, module: nn.Module) -> None:
        self._own = {_place(tensor) for tensor in (*module.parameters(), *module.buffers())}
        self._held: list[Tensor] = []
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self._pack, lambda tensor: tensor)
        self.pieces: Pieces = {}

    def __enter__(self) -> _Hooks:
        self._hooks.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._hooks.__exit__(*error)

    def note(self, tensor: Tensor) -> Pieces:
        self._held.append(tensor)
        storage = tensor.untyped_storage()
        return {storage.data_ptr(): storage.nbytes()}

    def take(self) -> Pieces:
        """Returns what was saved since the last call."""
        taken, self.pieces = self.pieces, {}
        return taken

    def _pack(self, tensor: Tensor) -> Tensor:
        if _place(tensor) not in self._own:
            self.pieces.update(self.note(tensor))
        return tensor


def _place(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


@dataclass
class Saved:
    """What a forward saves: for each child its input and its pieces, and those of the loss."""

    inputs: list[Pieces] = field(default_factory=list)
    children: list[Pieces] = field(default_factory=list)
    loss: Pieces = field(default_factory=dict)

    @classmethod
    def of(cls, twin: Twin) -> Saved:
        found, x = cls(), twin.x
        with _Hooks(twin.module) as hooks:
            for child in twin.module:
                found.inputs.append(hooks.note(x))
                x = child(x)
                found.children.append(hooks.take())
            pytorch_models.mean_loss(nn.Identity(), x, twin.targets)
            found.loss = hooks.take()
        return found

    def outer(self, segments: list[range], until: int | None = None) -> Pieces:
        """What is saved of the children before `until` (of all, and of the loss) that are not computed again."""
        inside = {child for segment in segments for child in segment}
        last = len(self.children) if until is None else until
        found: Pieces = {} if until is not None else dict(self.loss)
        for child in range(last):
            if child not in inside:
                found |= self.children[child]
        for segment in segments:
            if segment.start < last:
                found |= self.inputs[segment.start]
        return found

    def nbytes(self, segments: list[range]) -> int:
        """The most bytes that are saved at once if these children are computed again together."""
        moments = [self.outer(segments)]
        for segment in segments:
            again: Pieces = {}
            for child in segment:
                again |= self.children[child]
            moments.append(self.outer(segments, segment.start) | self.inputs[segment.start] | again)
        return max(sum(pieces.values()) for pieces in moments)
