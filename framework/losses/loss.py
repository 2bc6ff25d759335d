"""The contract of losses: the last step of a chain. They give sums, never means, so that the one division by the global count of
targets is the only one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from framework.differentiation.forward import jvp
from framework.differentiation.reverse import grad
from framework.layers.layer import Context, Spec
from framework.memory import Array


@dataclass(frozen=True)
class LossFootprint:
    """Bytes and FLOPs of a loss; see `Footprint`. The VJP's cotangent has the spec of y, and lies over it if `in_place`.

    `score_workspace` is the scratch of `Loss.score`, beside which y, the targets and the own residuals live.
    """

    own: tuple[Spec, ...] = ()
    forward_workspace: int = 0
    backward_workspace: int = 0
    hvp_workspace: int = 0
    score_workspace: int = 0
    forward_flops: int = 0
    backward_flops: int = 0
    in_place: bool = False

    @property
    def own_nbytes(self) -> int:
        return sum(spec.nbytes for spec in self.own)


class Loss(ABC):
    """A sum of losses over targets, and how many targets it summed.

    `weights` of shape (B,), or None for all ones, weigh the examples: an example of weight 0 counts nothing.

    Attributes:
        metric: What the mean of `score` over the targets is called, as "accuracy"; None for a loss that has none. Validations report it.
        unit: What the mean of the sum over the targets is called or counted in, as "nats"; None: the class's name tells it.
    """

    metric: ClassVar[str | None] = None
    unit: ClassVar[str | None] = None

    def apply(self, y: Any, targets: Array, weights: Array | None) -> Any:
        """Returns the sum of losses by the definition, in plain NumPy: the oracle of the rules, and the source of `hvp`."""
        raise NotImplementedError(
            f"{type(self).__name__} has no apply: write apply(self, y, targets, weights), which returns the sum of losses in plain "
            "NumPy functions; second derivatives follow from it"
        )

    @abstractmethod
    def forward(
        self, y: Array, targets: Array, weights: Array | None, context: Context
    ) -> tuple[float, float, tuple[Array, ...]]:
        """Returns the float64 sum of losses, the (weighted) count of targets, and own residuals."""

    def score(self, y: Array, targets: Array, weights: Array | None, context: Context) -> float:
        """Returns the (weighted) sum over targets of what `metric` is the mean of: for accuracy, how many are right."""
        return 0.0

    @abstractmethod
    def vjp(self, y: Array, targets: Array, weights: Array | None, own: tuple[Array, ...], context: Context) -> Array:
        """Returns the cotangent of y for the cotangent 1 of the sum."""

    def hvp(
        self, y: Array, tangent: Array, targets: Array, weights: Array | None, own: tuple[Array, ...], context: Context
    ) -> Array:
        """Returns the Hessian of the sum times a tangent of y, which is how the result of `vjp` moves. By default from `apply`.

        The result comes from `context.like(tangent, "cotangents")`, so that it can lie over the tangent.
        """
        _, product = jvp(grad(lambda y: self.apply(y, targets, weights)), (y,), (tangent,))
        target = context.like(tangent, "cotangents")
        target[...] = product
        return target

    @abstractmethod
    def footprint(self, y: Spec, targets: Spec) -> LossFootprint:
        """Returns bytes and FLOPs.

        Raises:
            ValueError: The loss does not take such outputs and targets.
        """


def weighted(losses: Any, weights: Array | None) -> Any:
    """Losses of shape (B, ...) times the weights of their examples."""
    return losses if weights is None else losses * each_weight(weights, np.ndim(losses))


def each_weight(weights: Array, axes: int) -> Array:
    """Weights of examples in a form that multiplies an array of so many axes."""
    return weights.reshape(-1, *[1] * (axes - 1))


def require_weights(weights: Array | None, y: Array) -> None:
    if weights is not None and weights.shape != y.shape[:1]:
        raise ValueError(f"there must be one weight an example, shape {y.shape[:1]}, but got shape {weights.shape}")


def count_of(weights: Array | None, targets: int) -> float:
    """The count of targets: each of an example's counts as much as the example weighs."""
    if weights is None:
        return float(targets)
    return float(np.add.reduce(weights, dtype=np.float64)) * (targets // max(1, weights.size))


def weigh(rows: Array, weights: Array, block: slice, total: int) -> None:
    """Multiplies rows `block` of `total` by the weights of the examples they belong to."""
    each = total // weights.size
    for example in range(block.start // each, -(-block.stop // each)):
        first, last = example * each - block.start, (example + 1) * each - block.start
        rows[max(0, first) : last] *= weights[example]
