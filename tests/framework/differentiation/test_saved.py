"""What reverse mode keeps: as little as the rules read, unchanged, counted, and gone when it has been used."""

from __future__ import annotations

import gc
import tracemalloc
import weakref
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from framework import Ledger
from framework.differentiation import (
    DifferentiationError,
    custom_rule,
    grad,
    jvp,
    linearize,
    stop_gradient,
    value_and_grad,
    vjp,
)
from framework.differentiation.saved import _locks, _waiting

N = 20_000


@pytest.fixture(autouse=True)
def without_the_cycle_collector() -> Iterator[None]:
    gc.collect()  # what earlier tests have left in cycles
    gc.disable()
    yield
    gc.enable()
    assert not _locks and not _waiting  # whatever a test did, nothing stays locked


def deep(x: Any) -> Any:
    for _ in range(20):
        x = np.sin(x)
    return np.sum(x)


class Watched(np.ndarray):
    """An array that can be watched."""


def test_a_saved_array_is_read_only_as_long_as_a_pullback_lives() -> None:
    x, w = np.ones(4), np.full(4, 2.0)
    value, pullback = vjp(lambda x: x * w * x, x)
    for a in (x, w):
        with pytest.raises(ValueError, match="read-only"):
            a += 1
    again, second = vjp(np.sin, x)
    del pullback
    w += 1
    with pytest.raises(ValueError, match="read-only"):
        x += 1  # the second trace holds it still
    second(again, last=True)
    x += 1
    value += 1
    assert x.tolist() == [2] * 4


def test_arrays_that_no_rule_reads_stay_writable_and_are_not_kept() -> None:
    x, y = np.ones(4), np.ones(4)
    _, pullback = vjp(lambda x, y: x + 2 * y - 1, x, y)
    x += 1
    y += 1
    assert [g.tolist() for g in pullback(np.ones(4))] == [[1.0] * 4, [2.0] * 4]


def test_an_array_that_was_read_only_before_stays_so_and_views_come_back_in_any_order() -> None:
    fixed, base = np.ones(3), np.ones(6)
    fixed.setflags(write=False)
    view = base[:3]
    _, of_view = vjp(lambda x: x * fixed * view, np.ones(3))
    _, of_base = vjp(lambda x: x * base, np.ones(6))
    del of_view  # the view cannot be writable while its base is held
    assert not view.flags.writeable
    del of_base
    assert base.flags.writeable and view.flags.writeable and not fixed.flags.writeable


def test_a_result_that_a_rule_reads_is_read_only_too_and_what_stop_gradient_gives() -> None:
    value, pullback = vjp(np.exp, np.zeros(3))
    with pytest.raises(ValueError, match="read-only"):
        value *= 2
    assert pullback(np.ones(3))[0].tolist() == [1, 1, 1]

    def writes(x: Any) -> Any:
        c = stop_gradient(np.sin(x))
        c += 1
        return x * c

    with pytest.raises(ValueError, match="read-only"):
        grad(lambda x: np.sum(writes(x)))(np.ones(3))


def test_verify_finds_what_numpy_cannot_stop() -> None:
    base = np.ones(6)
    _, pullback = vjp(np.sin, base[::2], verify=True)
    assert np.allclose(pullback(np.ones(3))[0], np.cos(1))
    base[2] = 7
    with pytest.raises(DifferentiationError, match=r"shape \(3,\) that np\.sin saved was changed"):
        pullback(np.ones(3))

    def meddles(x: Any) -> Any:
        y = np.sum(np.cos(x))
        base[0] = 3
        return y

    with pytest.raises(DifferentiationError, match=r"np\.cos saved was changed"):
        grad(meddles, verify=True)(base[:2])


def test_a_last_call_frees_what_it_has_used_as_it_goes() -> None:
    tracemalloc.start()
    try:
        x = np.ones(N)
        _, pullback = vjp(deep, x)
        held = tracemalloc.get_traced_memory()[0]
        lives: list[int] = []

        @custom_rule
        def spy(x: Any) -> Any:
            return x + 0

        @spy.vjp
        def rule(g: Any, y: Any, x: Any) -> Any:
            lives.append(tracemalloc.get_traced_memory()[0])
            return (g,)

        def with_spies(x: Any) -> Any:
            for _ in range(20):
                x = spy(np.sin(x))
            return np.sum(x)

        first = pullback(1.0)[0]
        assert np.array_equal(pullback(1.0, last=True)[0], first)
        assert tracemalloc.get_traced_memory()[0] < held - 18 * x.nbytes
        with pytest.raises(DifferentiationError, match=r"last=True before"):
            pullback(1.0)
        grad(with_spies)(x)
    finally:
        tracemalloc.stop()
    # Each of the steps gives back what the spy and the sine before it held.
    assert all(later < earlier - x.nbytes for earlier, later in pairwise(lives))


def test_gradients_belong_to_the_caller_alone() -> None:
    x = np.ones(3)
    _, pullback = vjp(lambda a, b: a + b, x, x)
    w = np.ones(3)
    for g in (*pullback(w), grad(np.sum)(x)):
        g *= 5  # neither read-only, nor another result, nor what was given
    assert w.tolist() == [1, 1, 1]
    a, b = pullback(w)
    a += 1
    assert b.tolist() == [1, 1, 1]


def test_nothing_traced_outlives_a_gradient_without_the_cycle_collector() -> None:
    seen: list[weakref.ref[Any]] = []

    def watched(x: Any) -> Any:
        inner = np.sin(x) * np.arange(3.0).view(Watched)
        seen.append(weakref.ref(stop_gradient(np.sin(x) * 2).base))
        return np.sum(inner * inner)

    for transform in (grad(watched), lambda x: jvp(watched, (x,), (x,)), lambda x: vjp(watched, x)[0]):
        transform(np.ones(3))
    with pytest.raises(DifferentiationError):
        grad(lambda x: watched(x) * np.ones(2))(np.ones(3))
    with pytest.raises(ZeroDivisionError):
        grad(lambda x: watched(x) * (1 // 0))(np.ones(3))
    with pytest.raises(DifferentiationError, match="to become float"):
        grad(lambda x: np.float64(watched(x)))(np.ones(3))  # NumPy's error, and what it means
    value_and_grad(lambda x: (watched(x), {"beside": x * 2}), has_aux=True)(np.ones(3))
    assert len(seen) == 7
    assert all(ref() is None for ref in seen)


def test_forward_mode_keeps_nothing_and_reverse_mode_a_value_a_step() -> None:
    def chain(depth: int) -> Any:
        def f(x: Any) -> Any:
            for _ in range(depth):
                x = np.sin(x)
            return x

        return f

    def peak(run: Any) -> int:
        tracemalloc.start()
        try:
            run()
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    x = np.ones(N)
    forward = [peak(lambda n=n: jvp(chain(n), (x,), (x,))) for n in (10, 1000)]
    assert abs(forward[1] - forward[0]) < x.nbytes / 10
    reverse = [peak(lambda n=n: vjp(chain(n), x)) for n in (10, 30)]
    assert reverse[1] - reverse[0] == pytest.approx(20 * x.nbytes, rel=0.1)


def test_a_ledger_counts_what_a_pullback_holds_each_buffer_once() -> None:
    ledger, w = Ledger(), np.ones((4, 4))
    x = np.ones((4, 4))
    _, pullback = vjp(lambda x: np.exp(x) @ w + w.T * np.exp(x), x, ledger=ledger)
    # Both exponentials are their own results; w and its transpose are one buffer; x is the caller's.
    assert ledger.live == 3 * x.nbytes
    assert {(category, owner) for category, owner, _ in ledger.holders()} >= {("residuals", "np.exp")}
    pullback(x, last=True)
    assert ledger.live == 0


def test_arrays_that_a_custom_rule_saves_are_in_the_ledger() -> None:
    @custom_rule
    def clipped(x: Any) -> Any:
        return np.maximum(x, 0)

    @clipped.forward
    def forward(x: Any) -> Any:
        return np.maximum(x, 0), (x > 0, np.packbits(x > 0))

    @clipped.vjp
    def rule(g: Any, mask: Any, bits: Any) -> Any:
        return (g * mask,)

    ledger, x = Ledger(), np.linspace(-1, 1, 64)
    y, pullback = vjp(clipped, x, ledger=ledger)
    assert ledger.holders() == [("residuals", "clipped", 64 + 8)]
    assert np.array_equal(pullback(np.ones(64))[0], x > 0)
    assert np.array_equal(jvp(clipped, (x,), (x,))[1], y)  # its transpose
    del pullback
    assert ledger.live == 0


def test_a_very_deep_graph_can_be_used_and_dropped() -> None:
    def f(x: Any) -> Any:
        for _ in range(50_000):
            x = x * 1.0
        return x

    _, pullback = vjp(f, 2.0)
    assert pullback(1.0)[0] == 1
    del pullback
    assert grad(f)(2.0) == 1


def test_a_gradient_is_never_an_array_that_a_rule_saved() -> None:
    @custom_rule
    def half_square(x: Any) -> Any:
        return 0.5 * np.sum(x * x)

    @half_square.vjp
    def rule(g: Any, y: Any, x: Any) -> Any:
        return (x,)

    x = np.array([1.0, 2.0])
    g = grad(half_square)(x)
    g *= 0
    assert x.tolist() == [1, 2]


def test_results_can_be_written_into_once_the_pullback_is_gone() -> None:
    x = np.ones(4)
    (first, view), pullback = vjp(lambda x: (np.sin(x), x[::-1]), x)
    del pullback
    for a in (x, first, view):
        a += 1
    assert x.tolist() == [2] * 4
    assert view.tolist() == [2] * 4  # a copy: it does not move with x again


def test_tangents_of_a_linear_map_belong_to_the_caller() -> None:
    x, v = np.ones(3), np.full(3, 2.0)
    _, push = linearize(lambda x: (x * 2, np.ones(3), x), x)
    for tangent in push(v):
        tangent += 5
    assert [t.tolist() for t in push(v)] == [[4.0] * 3, [0.0] * 3, [2.0] * 3]
