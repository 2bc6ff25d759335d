"""Forward mode and curvature of whole chains, over all parameters: slopes, Hessian and Gauss–Newton products.

Products run by plans, under any policy and budget, as gradients do: see `duals`.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from checkpointing.duals import DualChain, DualLoss, DualParameters, pair
from checkpointing.engine import PlannedGradient, require_parameters
from checkpointing.policies import Policy
from checkpointing.reduction import Totals, total_of
from checkpointing.reduction_tree import require_shards
from framework.keys import Key
from framework.layers import Composite, Context, Spec
from framework.losses import Loss
from framework.memory import Array, Ledger
from framework.optimizers import tree_sum
from framework.parameters import Parameters


class Slope(NamedTuple):
    """How the loss and the output move along a direction.

    Attributes:
        loss: The mean loss.
        slope: Its derivative along the direction.
        output_tangent: The derivative of the chain's output along it.
    """

    loss: float
    slope: float
    output_tangent: Array


class Product(NamedTuple):
    """A matrix of second derivatives times a direction.

    Attributes:
        loss: The mean loss.
        gradient: Its gradient.
        product: The matrix times the direction.
    """

    loss: float
    gradient: Parameters
    product: Parameters


class ChainJvp:
    """The slope along a direction as a function; made by `jvp`.

    Attributes:
        ledger: Counts what a call holds. Parameters and direction are the caller's: they count during a call.
    """

    def __init__(self, layer: Composite, loss: Loss, shards: int) -> None:
        require_shards(shards)
        self._layer, self._loss, self._shards = layer, loss, shards
        self.ledger = Ledger()

    def __call__(
        self, parameters: Parameters, x: Array, targets: Array, direction: Parameters, key: Key | None = None
    ) -> Slope:
        x, targets = np.ascontiguousarray(x), np.ascontiguousarray(targets)
        for given in (parameters, direction):
            require_parameters(self._layer, Spec.of(x.shape, x.dtype), given)
        if len(x) != len(targets) or len(x) % self._shards or not len(x):
            raise ValueError(
                f"{len(x)} inputs and {len(targets)} targets do not divide into {self._shards} equal shards"
            )
        held = self.ledger.count(2 * parameters.layout.nbytes, "parameters", "model")
        sums, slopes, moved = {}, [], []
        for shard, (some, some_targets) in enumerate(
            zip(np.split(x, self._shards), np.split(targets, self._shards), strict=True)
        ):
            sums[shard], slope, tangent = self._shard(
                parameters, some, some_targets, direction, (key or Key(0)).fold(shard)
            )
            slopes.append(slope)
            moved.append(tangent)
        del held
        totals = total_of(sums)
        tangent = np.concatenate(moved) if len(moved) > 1 else moved[0]
        return Slope(totals.loss / totals.divisor, tree_sum(slopes) / totals.divisor, tangent)

    def _shard(
        self, parameters: Parameters, x: Array, targets: Array, direction: Parameters, key: Key
    ) -> tuple[Totals, float, Array]:
        """Returns the totals of a shard, its sum of slopes, and the tangent of its output."""
        still: Array | None = None
        if x.dtype.kind == "f":
            still = self.ledger.empty(x.shape, x.dtype, "batch", "tangent")
            still.fill(0)
        y, tangent = self._layer.jvp(dict(parameters), x, dict(direction), still, Context(self.ledger, key=key))
        context = Context(self.ledger, "loss")
        total, count, own = self._loss.forward(y, targets, None, context)
        cotangent = self._loss.vjp(y, targets, None, own, context)
        cotangent *= tangent
        return Totals(total, count), float(np.sum(cotangent, dtype=np.float64)), tangent


class CurvatureProduct(PlannedGradient):
    """A product with a matrix of second derivatives as a function; made by `hvp` and `gauss_newton_vp`."""

    def __init__(
        self, layer: Composite, loss: Loss, policy: str | Policy | None, budget: str | None, shards: int, linear: bool
    ) -> None:
        super().__init__(DualChain(layer, linear), DualLoss(loss), policy, budget, shards)
        self._model = layer

    def __call__(
        self, parameters: Parameters, x: Array, targets: Array, direction: Parameters, key: Key | None = None
    ) -> Product:
        x, targets = np.asarray(x), np.asarray(targets)
        for given in (parameters, direction):
            require_parameters(self._model, self.shard_specs(x, targets)[0], given)
        outcome = self.run(DualParameters(parameters, direction), x, targets, key)
        assert outcome.gradient is not None
        gradient, product = np.split(outcome.gradient, 2)
        return Product(outcome.loss, *(Parameters(parameters.layout, flat) for flat in (gradient, product)))

    def batch_spec(self, x: Spec) -> Spec:
        return pair(x)

    def write_batch(self, into: Array, x: Array) -> None:
        if into.ndim == x.ndim:
            into[...] = x
        else:  # the inputs do not move
            into[0] = x
            into[1].fill(0)


def jvp(layer: Composite, loss: Loss, *, shards: int = 1) -> ChainJvp:
    """Returns a function that computes how the mean loss and the output move along a direction in the parameters.

    It is forward mode: nothing is kept but the pair of a value and its tangent at which the pass is, so memory does not grow with
    depth, and there is nothing to plan.

    Args:
        layer: The model.
        loss: Its loss.
        shards: Virtual shards that a batch is cut into.

    Returns:
        A function of ``(parameters, x, targets, direction, key=Key(0))``, the direction having the layout of the parameters, that
        returns a `Slope`. Dropout is drawn from the key as `value_and_grad` draws it.

    Raises:
        ValueError: When called: the parameters, direction, inputs or targets are not the model's.

    >>> import numpy as np
    >>> from checkpointing import value_and_grad
    >>> from framework import Chain, Linear, MeanSquaredError
    >>> chain, x, y = Chain(Linear(1)), np.ones((4, 3)), np.zeros((4, 1))
    >>> parameters = Parameters.initialize(chain.layout(Spec.of(x.shape, x.dtype)), Key(0))
    >>> _, gradient = value_and_grad(chain, MeanSquaredError())(parameters, x, y)
    >>> found = jvp(chain, MeanSquaredError())(parameters, x, y, gradient)
    >>> bool(np.isclose(found.slope, gradient.flat @ gradient.flat))
    True
    """
    return ChainJvp(layer, loss, shards)


def hvp(
    layer: Composite, loss: Loss, policy: str | Policy | None = None, *, budget: str | None = None, shards: int = 1
) -> CurvatureProduct:
    """Returns a function that computes the Hessian of the mean loss times a direction, and the gradient on the way.

    The Hessian is that over all parameters, H[i, j] = ∂²L / ∂pᵢ ∂pⱼ. A plan of any policy holds at most twice the activations of
    the gradient's, besides three buffers like the gradient (gradient, product, direction). What tracing holds inside one
    step is plain NumPy's and comes on top.

    Args:
        layer: The model. Each leaf layer that is not piecewise linear has an `apply`.
        loss: Its loss.
        policy: What to keep and what to recompute; the bits do not depend on it.
        budget: The most bytes that a call may hold, parameters, direction, gradient and product included: "engine:64MiB".
        shards: Virtual shards that a batch is cut into.

    Returns:
        A function of ``(parameters, x, targets, direction, key=Key(0))``, the direction having the layout of the parameters, that
        returns a `Product`. Dropout is drawn from the key as `value_and_grad` draws it.

    Raises:
        InfeasibleBudget: When called: the policy does not fit the budget, or nothing does.
        ValueError: When called: the parameters, direction, inputs or targets are not the model's.

    >>> import numpy as np
    >>> from framework import Chain, Linear, MeanSquaredError
    >>> chain, x, y = Chain(Linear(1)), np.ones((4, 3)), np.zeros((4, 1))
    >>> parameters = Parameters.initialize(chain.layout(Spec.of(x.shape, x.dtype)), Key(0))
    >>> direction = Parameters(parameters.layout, np.array([1.0, 0.0, 0.0, 2.0]))
    >>> hvp(chain, MeanSquaredError())(parameters, x, y, direction).product.flat.tolist()  # 2 xᵀx times it, x with a 1
    [6.0, 6.0, 6.0, 6.0]
    """
    return CurvatureProduct(layer, loss, policy, budget, shards, linear=False)


def gauss_newton_vp(
    layer: Composite, loss: Loss, policy: str | Policy | None = None, *, budget: str | None = None, shards: int = 1
) -> CurvatureProduct:
    """Returns a function that computes the Gauss–Newton matrix of the mean loss times a direction, and the gradient on the way.

    The matrix is Jᵀ H J with J the Jacobian of the chain's output by the parameters and H the Hessian of the loss by the output; for a
    convex loss it is positive semidefinite (Schraudolph 2002, "Fast curvature matrix-vector products for second-order gradient
    descent"). Only the layers' own JVPs and VJPs run. Arguments, result and errors are those of `hvp`, and so are its bytes.
    """
    return CurvatureProduct(layer, loss, policy, budget, shards, linear=True)
