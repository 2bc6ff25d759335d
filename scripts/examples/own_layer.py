"""A layer of one's own, twice: as a definition alone, and with a rule by hand that takes less memory.

A definition in plain NumPy is enough to train it under any policy and budget: derivatives are traced, bytes are measured. The second
layer writes its VJP, takes its arrays from the ledger and says its bytes; the first one is its test.

    python own_layer.py
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import tyro

from checkpointing import value_and_grad
from distributed import Trainer
from framework import Chain, CrossEntropy, Key, Layer, Linear, Parameters, Spec
from framework.data import clusters
from framework.layers import Footprint


@dataclass(frozen=True)
class Swish(Layer):
    """y = x · sigmoid(x), any shape."""

    def apply(self, params: Any, x: Any, context: Any) -> Any:
        return x / (1 + np.exp(-x))


@dataclass(frozen=True)
class FrugalSwish(Swish):
    """The same. The VJP reads the input: with s = sigmoid(x), x̄ = ȳ · s · (1 + x · (1 - s))."""

    def forward(self, params: Any, x: Any, context: Any) -> Any:
        y = context.empty(x.shape, x.dtype, "activations")
        write_sigmoid(x, y)
        y *= x
        return y, ()  # no residuals of its own: who holds x is the plan's business

    def vjp(self, params: Any, x: Any, y: Any, own: Any, cotangent: Any, grads: Any, context: Any) -> Any:
        s = context.empty(x.shape, x.dtype, "workspace")
        x_cotangent = context.empty(x.shape, x.dtype, "cotangents")
        write_sigmoid(x, s)
        np.subtract(1, s, out=x_cotangent)
        x_cotangent *= x
        x_cotangent += 1
        x_cotangent *= s
        return np.multiply(x_cotangent, cotangent, out=x_cotangent)

    def footprint(self, x: Any, training: bool = True) -> Footprint:
        flops = 13 * x.size
        return Footprint(x, needs_input=(True,), backward_workspace=x.nbytes, forward_flops=flops, backward_flops=flops)


def write_sigmoid(x: np.ndarray, out: np.ndarray) -> None:
    np.exp(np.negative(x, out=out), out=out)
    out += 1
    np.reciprocal(out, out=out)


def main(steps: int = 200) -> None:
    """Compares the layers' gradients, and trains with each for `steps` steps of 256 examples."""
    x, targets, gradients = np.random.default_rng(0).normal(size=(64, 16)), np.arange(64) % 4, []
    for layer in (Swish(), FrugalSwish()):
        chain = Chain(Linear(32), layer, Linear(4))
        parameters = Parameters.initialize(chain.layout(Spec.of(x.shape, x.dtype)), Key(0))
        gradients.append(value_and_grad(chain, CrossEntropy())(parameters, x, targets)[1].flat)
    print(f"gradients by hand and traced differ by {np.max(np.abs(gradients[0] - gradients[1])):.1e}")
    for layer in (Swish(), FrugalSwish()):
        chain, data = Chain(Linear(256), layer, Linear(256), layer, Linear(10)), clusters(4096, 64, 10)
        trainer = Trainer(chain, CrossEntropy(), data=data, batch=256, shards=1, steps=steps, policy="every-k:1")
        told = trainer.fit().summary
        print(f"{type(layer).__name__:11}  loss {told['validation_loss']:.3f}", end="  ")
        print(f"peak {told['ledger_peak_bytes']:,} bytes, predicted {trainer.plans.peak:,}")


if __name__ == "__main__":
    tyro.cli(main)
