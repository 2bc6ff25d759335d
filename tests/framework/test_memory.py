"""The ledger counts every byte from birth to death."""

from __future__ import annotations

import gc
import sys
import tracemalloc
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from framework import BudgetExceeded, Ledger
from framework.memory import CATEGORIES, Allocation, Heap

SHAPES = st.lists(st.integers(1, 40), max_size=3).map(tuple)
DTYPES = st.sampled_from(["float32", "float64", "uint8", "bool", "int64"])
#: To make an array, to take a view of one and let the array go, or to drop one.
EVENTS = st.lists(
    st.one_of(
        st.tuples(st.just("make"), SHAPES, DTYPES, st.sampled_from(CATEGORIES), st.sampled_from(["", "a", "b"])),
        st.tuples(st.just("view"), st.integers(0, 100)),
        st.tuples(st.just("drop"), st.integers(0, 100)),
    ),
    max_size=25,
)


def numpy_bytes() -> int:
    """Bytes of NumPy's arrays that were made since tracing began."""
    only = [tracemalloc.DomainFilter(True, np.lib.tracemalloc_domain)]
    return sum(trace.size for trace in tracemalloc.take_snapshot().filter_traces(only).traces)


def run(ledger: Ledger, events: list[Any]) -> Any:
    """Follows the events, and yields after each of them what a list of the living arrays says."""
    arrays: list[tuple[np.ndarray, int, str, str]] = []
    peak = 0
    for kind, *details in events:
        if kind == "make":
            shape, dtype, category, owner = details
            array = ledger.empty(shape, dtype, category, owner)
            assert array.shape == shape
            assert array.dtype == dtype
            assert array.flags.c_contiguous
            assert type(array) is np.ndarray
            arrays.append((array, array.nbytes, category, owner))
            del array
        elif arrays and kind == "view":
            array, nbytes, category, owner = arrays.pop(details[0] % len(arrays))
            arrays.append((array.reshape(-1)[:1], nbytes, category, owner))
            del array
        elif arrays:
            del arrays[details[0] % len(arrays)]
        live = sum(nbytes for _, nbytes, _, _ in arrays)
        peak = max(peak, live)
        yield live, peak, [(category, owner, nbytes) for _, nbytes, category, owner in arrays]


@given(EVENTS)
def test_live_peak_categories_and_holders_are_exact(events: list[Any]) -> None:
    ledger = Ledger()
    for live, peak, held in run(ledger, events):
        assert (ledger.live, ledger.peak) == (live, peak)
        by_category = {c: sum(n for category, _, n in held if category == c) for c in CATEGORIES}
        assert ledger.by_category() == {c: n for c, n in by_category.items() if n}
        assert list(ledger.by_category()) == [c for c in CATEGORIES if by_category[c]]
        keys = {(category, owner) for category, owner, _ in held}
        totals = [(c, o, sum(n for *key, n in held if tuple(key) == (c, o))) for c, o in keys]
        assert ledger.holders(100) == sorted(totals, key=lambda row: (-row[2], row[0], row[1]))
        assert ledger.holders(2) == ledger.holders(100)[:2]
    assert ledger.live == 0


@given(EVENTS)
def test_the_ledger_agrees_with_what_numpy_allocated(events: list[Any]) -> None:
    tracemalloc.start()
    try:
        before = numpy_bytes()
        ledger = Ledger()
        for live, _, _ in run(ledger, events):
            assert numpy_bytes() - before == ledger.live == live
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "view",
    [
        lambda a: a[2:3],
        lambda a: a.T,
        lambda a: a.reshape(-1)[::2],
        lambda a: a.view(np.uint8)[:, :1],
        lambda a: a[1][1:][:1],
        lambda a: np.broadcast_to(a, (2, *a.shape)),
        lambda a: memoryview(a),
    ],
)
def test_a_view_keeps_the_bytes_alive_and_a_copy_does_not(view: Any) -> None:
    ledger = Ledger()
    array = ledger.empty((4, 6), "float64", "data")
    kept, copied = view(array), array.copy()
    del array
    assert ledger.live == 192
    del kept
    assert ledger.live == 0
    assert copied.shape == (4, 6)


def test_arrays_die_without_the_garbage_collector() -> None:
    ledger = Ledger()
    gc.disable()
    try:
        arrays = [ledger.empty((3,), "float32", "workspace") for _ in range(5)]
        assert ledger.live == 60
        arrays.clear()
        assert ledger.live == 0
    finally:
        gc.enable()


def test_arrays_of_no_bytes_come_and_go(monkeypatch: pytest.MonkeyPatch) -> None:
    errors: list[Any] = []  # errors inside a death, which Python swallows
    monkeypatch.setattr(sys, "unraisablehook", lambda death: errors.append(death.exc_value))
    ledger = Ledger()
    tracemalloc.start()
    try:
        before = numpy_bytes()
        arrays = [ledger.empty((0, 3), "float32", "residuals", "norm") for _ in range(2)]
        assert numpy_bytes() == before  # NumPy alone would take a byte each
    finally:
        tracemalloc.stop()
    assert ledger.holders() == []
    arrays.clear()
    assert errors == []
    assert (ledger.live, ledger.peak, ledger.by_category()) == (0, 0, {})


def test_a_limit_refuses_before_anything_is_allocated() -> None:
    made = []

    class Watched(Heap):
        def allocate(self, shape: tuple[int, ...], dtype: np.dtype[Any], allocation: Allocation) -> np.ndarray:
            made.append(shape)
            return super().allocate(shape, dtype, allocation)

    ledger = Ledger(limit=100, allocator=Watched())
    held = ledger.empty((60,), "uint8", "parameters", "model")
    with pytest.raises(BudgetExceeded) as caught:
        ledger.empty((41,), "uint8", "workspace", "block0.mix")
    assert made == [(60,)]
    assert (ledger.live, ledger.peak) == (60, 60)
    assert ledger.by_category() == {"parameters": 60}
    more = ledger.empty((40,), "uint8", "workspace", "block0.mix")
    assert ledger.live == held.nbytes + more.nbytes == ledger.limit
    assert isinstance(caught.value, MemoryError)


def test_a_refusal_names_who_what_how_many_and_who_holds_the_rest() -> None:
    ledger = Ledger(limit=20_000)
    kept = [ledger.empty((n,), "uint8", c, o) for n, c, o in [(5000, "parameters", "model"), (1200, "batch", "")]]
    with pytest.raises(BudgetExceeded) as caught:
        ledger.empty((2000,), "float64", "activations", "block0.up")
    message = str(caught.value)
    assert "block0.up asked for 16,000 bytes of activations" in message
    assert "6,200 of the limit of 20,000 bytes (19.5 KiB)" in message
    assert "parameters of model 5,000; batch of the engine 1,200" in message
    assert "larger budget" in message
    del kept


def test_an_allocation_that_fails_leaves_no_trace() -> None:
    class Broken(Heap):
        def allocate(self, shape: tuple[int, ...], dtype: np.dtype[Any], allocation: Allocation) -> np.ndarray:
            raise MemoryError("no memory is left")

    ledger = Ledger()
    with pytest.raises(MemoryError, match="no memory is left"):
        ledger.empty((1000,), "float64", "data", allocator=Broken())
    assert (ledger.live, ledger.by_category(), ledger.peak) == (0, {}, 0)


@pytest.mark.parametrize("ask", [lambda led: led.empty((2,), "float32", "misc"), lambda led: led.count(8, "misc")])
def test_an_unknown_category_is_an_error_that_lists_the_known(ask: Any) -> None:
    ledger = Ledger()
    with pytest.raises(ValueError, match=r"'misc'.*parameters, gradients.*communication"):
        ask(ledger)
    assert (ledger.live, ledger.peak) == (0, 0)


def test_counted_bytes_live_until_their_entry_dies() -> None:
    ledger = Ledger(limit=100)
    entry = ledger.count(80, "communication", "segment")
    assert ledger.holders() == [("communication", "segment", 80)]
    with pytest.raises(BudgetExceeded, match="21 bytes"):
        ledger.count(21, "data")
    del entry
    assert (ledger.live, ledger.peak) == (0, 80)


def test_an_allocator_gives_the_memory_and_its_entry_lives_with_it() -> None:
    taken = []

    class Block:
        """Hands out pieces of one buffer, and keeps their entries for as long as they are in use."""

        def __init__(self) -> None:
            self.buffer = np.zeros(100, np.uint8)
            self.entries: list[Allocation] = []

        def allocate(self, shape: tuple[int, ...], dtype: np.dtype[Any], allocation: Allocation) -> np.ndarray:
            taken.append((shape, dtype, allocation.nbytes, allocation.holder))
            self.entries.append(allocation)
            return self.buffer[: allocation.nbytes].view(dtype).reshape(shape)

    block, ledger = Block(), Ledger()
    array = ledger.empty((2, 3), "float32", "gradients", "shard 0", allocator=block)
    assert np.shares_memory(array, block.buffer)
    assert taken == [((2, 3), np.dtype("float32"), 24, ("gradients", "shard 0"))]
    del array
    assert ledger.live == 24
    block.entries.clear()
    assert ledger.live == 0


def test_a_moment_has_what_lives_after_it_and_the_most_inside() -> None:
    ledger = Ledger(record=True)
    kept = ledger.empty((10,), "uint8", "activations")
    ledger.empty((7,), "uint8", "workspace")
    ledger.mark("first")
    ledger.mark("nothing")
    large = ledger.empty((100,), "uint8", "batch")
    del large
    del kept
    ledger.mark("last")
    assert ledger.timeline is not None
    found = [(moment.label, moment.live, moment.inside, moment.categories) for moment in ledger.timeline]
    assert found == [
        ("first", 10, 17, {"activations": 10}),
        ("nothing", 10, 10, {"activations": 10}),
        ("last", 0, 110, {}),
    ]
    assert ledger.peak == 110


def test_the_peak_is_kept_over_marks_and_starts_again_when_told() -> None:
    ledger = Ledger()
    ledger.empty((50,), "uint8", "workspace")
    ledger.mark("an operation")
    assert ledger.timeline is None
    kept = ledger.empty((20,), "uint8", "data")
    assert ledger.peak == 50
    ledger.reset_peak()
    assert ledger.peak == kept.nbytes == 20


@given(EVENTS)
def test_a_recording_keeps_who_holds_the_most_bytes_at_once(events: list[Any]) -> None:
    """At the first moment of those with the most, after the recording began, as a list of the arrays says it."""
    ledger = Ledger()
    held = ledger.count(5, "data", "held")
    ledger.start_recording()
    most, holders = 5, {("data", "held"): 5}
    for live, _, rows in run(ledger, events):
        if live + 5 > most:
            most, holders = live + 5, {("data", "held"): 5}
            for category, owner, nbytes in rows:
                if nbytes:
                    holders[category, owner] = holders.get((category, owner), 0) + nbytes
    ledger.mark("all of it")
    found = ledger.stop_recording()
    del held
    assert found.before == {("data", "held"): 5}
    assert found.at_peak == holders
    (moment,) = found.moments
    assert (moment.label, moment.inside) == ("all of it", most)
    assert moment.seconds > 0


def test_only_what_is_being_recorded_can_be_stopped() -> None:
    with pytest.raises(ValueError, match="the ledger records nothing"):
        Ledger().stop_recording()
