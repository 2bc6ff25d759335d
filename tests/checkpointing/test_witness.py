"""The third witness: honest layers agree to the byte on the heap and in the block, and each kind of lie is found and named."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from checkpointing.running import NotAsPlanned
from checkpointing.witness import TOLERANCE, Verification, Witness
from framework import BudgetExceeded, Chain, Key, Ledger, Linear, MeanSquaredError, Residual
from framework.layers import Footprint, Layer, Spec
from framework.memory import Array
from tests.checkpointing.cases import Case, all_cases

WIDTH, ROWS = 64, 512
NBYTES = WIDTH * ROWS * 4  # 128 KiB, above what may be allocated in passing
LEAKED: list[Array] = []


def witnessed(case: Case, policy: str, shards: int, block: bool, steps: int = 2) -> Verification:
    """Runs training steps and a validation under the witness."""
    plans = case.plans(policy, shards)
    witness = Witness(ledger := Ledger())
    try:
        engine = case.engine(ledger, block=block)
        for step in range(steps):
            engine.train_step(plans.train[0], case.loader(shards), step, 1e-2, witness)
        engine.evaluate(plans.evaluate[0], case.loader(shards), witness)
        return witness.found
    finally:
        witness.close()


@pytest.mark.parametrize("case", all_cases()[::2], ids=lambda case: case.name)
@pytest.mark.parametrize("block", [False, True], ids=["heap", "block"])
def test_honest_layers_agree_to_the_byte(case: Case, block: bool) -> None:
    found = witnessed(case, "sqrt-n", shards=2, block=block, steps=1)
    assert found.faults == []
    assert found.largest_difference == 0
    assert found.largest_inside <= TOLERANCE
    assert found.points > 20


@dataclass(frozen=True)
class Identity(Layer):
    """The identity by a copy, honest; lies are its subclasses."""

    def forward(self, params: Any, x: Any, context: Any) -> tuple[Array, tuple[Array, ...]]:
        y = context.empty(x.shape, x.dtype, "activations")
        y[...] = x
        return y, ()

    def vjp(self, params: Any, x: Any, y: Any, own: Any, cotangent: Array, grads: Any, context: Any) -> Any:
        copy = context.empty(cotangent.shape, cotangent.dtype, "cotangents")
        copy[...] = cotangent
        return copy

    def footprint(self, x: Any, training: bool = True) -> Footprint:
        return Footprint(output=x)


class Understates(Identity):
    """Takes scratch that its footprint does not say."""

    def forward(self, params: Any, x: Any, context: Any) -> Any:
        scratch = context.empty(x.shape, x.dtype, "workspace")
        np.multiply(x, 1, out=scratch)
        return super().forward(params, scratch, context)


class KeepsASmallView(Identity):
    """Its residual is one row of a large array."""

    def forward(self, params: Any, x: Any, context: Any) -> Any:
        whole = context.empty(x.shape, x.dtype, "workspace")
        whole[...] = x
        return super().forward(params, x, context)[0], (whole[:1],)

    def footprint(self, x: Any, training: bool = True) -> Footprint:
        return Footprint(output=x, own=(Spec((1, *x.shape[1:]), x.dtype),), forward_workspace=x.nbytes)


class Leaks(Identity):
    """Puts a residual into a global."""

    def forward(self, params: Any, x: Any, context: Any) -> Any:
        own = context.empty(x.shape, x.dtype, "residuals")
        own[...] = x
        LEAKED.append(own)
        return super().forward(params, x, context)[0], (own,)

    def footprint(self, x: Any, training: bool = True) -> Footprint:
        return Footprint(output=x, own=(x,))


class CopiesInPassing(Identity):
    """Makes a copy that nobody counts, and lets it go."""

    def vjp(self, params: Any, x: Any, y: Any, own: Any, cotangent: Array, grads: Any, context: Any) -> Any:
        return super().vjp(params, x, y, own, np.tanh(cotangent) * 0 + cotangent, grads, context)


class KeepsACopy(Identity):
    """Makes a copy that nobody counts, and keeps it."""

    def forward(self, params: Any, x: Any, context: Any) -> Any:
        LEAKED.append(x.copy())
        return super().forward(params, x, context)


class OverwritesItsInput(Identity):
    """Writes into what it may only read, while the skip of a Residual reads it, too."""

    def forward(self, params: Any, x: Any, context: Any) -> Any:
        x *= 2
        return super().forward(params, x, context)


class OverwritesItsCotangent(Identity):
    def vjp(self, params: Any, x: Any, y: Any, own: Any, cotangent: Array, grads: Any, context: Any) -> Any:
        cotangent += 1
        return super().vjp(params, x, y, own, cotangent, grads, context)


def case_of(layer: Layer) -> Case:
    generator = Key(2).generator()
    x, targets = (generator.standard_normal((2 * ROWS, n)).astype(np.float32) for n in (8, 3))
    chain = Chain(Linear(WIDTH), Residual(Chain(lying=layer)), Linear(3))
    return Case(type(layer).__name__, chain, MeanSquaredError(), x, targets)


LIES: dict[Callable[[], Layer], str] = {
    Understates: rf"forward 1\.lying: \+{NBYTES:,} bytes at its peak against the prediction",
    KeepsASmallView: rf"forward 1\.lying: \+{NBYTES - WIDTH * 4:,} bytes live against the prediction: \+{NBYTES:,} of workspace of 1\.lying",
    Leaks: rf"drop r\[1\]: \+{NBYTES:,} bytes live against the prediction: \+{NBYTES:,} of residuals of 1\.lying",
    CopiesInPassing: r"backward 1\.lying: .* bytes at its peak against the ledger: an array is made in passing",
    KeepsACopy: rf"forward 1\.lying: NumPy holds \+{NBYTES:,} bytes against the ledger",
    OverwritesItsInput: rf"forward 1\.lying: it overwrote its input, an array of {NBYTES:,} bytes",
    OverwritesItsCotangent: rf"backward 1\.lying: it overwrote its output's cotangent, an array of {NBYTES:,} bytes",
}


def test_the_honest_identity_is_not_accused() -> None:
    for block in (False, True):
        assert witnessed(case_of(Identity()), "store-all", 2, block).faults == []


@pytest.mark.parametrize("lie", LIES, ids=lambda lie: lie.__name__)
def test_each_kind_of_lie_is_found_and_named_with_its_bytes(lie: Callable[[], Layer]) -> None:
    try:
        faults = witnessed(case_of(lie()), "store-all", 2, block=False, steps=1).faults
    finally:
        LEAKED.clear()
    assert faults
    assert any(re.search(LIES[lie], fault) for fault in faults), faults


@pytest.mark.parametrize(
    ("lie", "error", "message"),
    [
        (Understates, BudgetExceeded, rf"1\.lying asked for {NBYTES:,} bytes of workspace, where the plan has 0"),
        (KeepsASmallView, NotAsPlanned, rf"{NBYTES:,} bytes of workspace of 1\.lying"),
        (Leaks, NotAsPlanned, rf"{NBYTES:,} bytes of residuals of 1\.lying"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_the_block_refuses_to_give_a_place_to_two(lie: Callable[[], Layer], error: Any, message: str) -> None:
    case = case_of(lie())
    engine = case.engine(block=True)
    plan = case.plans("store-all", 2).train[0]
    try:
        with pytest.raises(error, match=message):
            engine.train_step(plan, case.loader(2), 0, 1e-2)
    finally:
        LEAKED.clear()
    # The engine is as it was: an honest step follows.
    honest = case_of(Identity())
    fresh = honest.engine(block=True)
    fresh.train_step(plan := honest.plans("store-all", 2).train[0], honest.loader(2), 0, 1e-2)
    assert plan.peak
