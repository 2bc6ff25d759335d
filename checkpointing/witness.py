"""A third witness of memory: NumPy's own reports to `tracemalloc`, compared with prediction and ledger at every operation.

NumPy reports each buffer that it takes from the heap, in a domain of its own, so what it says does not depend on anything here. It makes
tiny operations about three times slower: it is for tests and for `--verify-memory`, one step of a run. It is blind to the scratch
of BLAS.
"""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from checkpointing.plan import Plan
from framework.memory import Array, Ledger, checksum

#: What may be allocated in passing besides what footprints say: NumPy's own buffers for casts and Python's objects.
TOLERANCE = 72 * 1024


@dataclass
class Verification:
    """What the witness found.

    Attributes:
        points: Operation boundaries that were compared.
        largest_difference: Bytes between NumPy and the ledger at a boundary, the most.
        largest_inside: Bytes between NumPy's peak inside an operation and the ledger's, the most either way.
        faults: What does not agree, in words, with the operation and the bytes.
    """

    points: int = 0
    largest_difference: int = 0
    largest_inside: int = 0
    faults: list[str] = field(default_factory=list)


class Witness:
    """Compares, after each operation of a plan: predicted bytes, the ledger's, and NumPy's.

    It is made before the engine's first array, which starts `tracemalloc` if nobody has.

    Args:
        ledger: The engine's ledger.
        beside: Bytes that Python's own objects of other threads may take in passing at any time, on top of `TOLERANCE`.

    Attributes:
        found: What was found so far.
    """

    def __init__(self, ledger: Ledger, beside: int = 0) -> None:
        self._ledger, self._beside = ledger, beside
        self.found = Verification()
        self._stop = not tracemalloc.is_tracing()
        if self._stop:
            tracemalloc.start()
        # What the engine does not take from the heap, or took before, stays as it is.
        self._elsewhere = ledger.live - numpy_bytes()
        self._watched: list[tuple[str, Array, int]] = []

    def close(self) -> None:
        """Stops `tracemalloc` if this started it."""
        if self._stop:
            tracemalloc.stop()

    def start(self, plan: Plan, block: bool, shared: bool) -> None:
        """A plan begins.

        Args:
            plan: The plan.
            block: Whether its buffers lie in one block, of which NumPy reports nothing during the step.
            shared: Whether its gradients lie in shared memory, of which NumPy reports nothing.
        """
        self._shared = shared
        self._moments, self._static = plan.simulation.timeline, plan.simulation.static
        self._heap = plan.simulation.heap
        assert plan.labels  # made before the first reading
        self._block, self._held = block, self._ledger.live
        self._elsewhere = self._on_heap() - numpy_bytes()
        self._known: set[str] = set()
        self._begin(numpy_bytes())

    def watch(self, what: str, arrays: Any) -> None:
        """Takes checksums of arrays that an operation may read and not change."""
        for a in arrays_of(arrays):
            self._watched.append((what, a, checksum(a)))

    def after(self, place: int, label: str) -> None:
        """Compares at the end of an operation, before the ledger's mark."""
        ledger, found, moment = self._ledger, self.found, self._moments[place]
        traced, peak = tracemalloc.get_traced_memory()
        for what, a, before in self._watched:
            if checksum(a) != before:
                self._fault(label, f"it overwrote {what}, an array of {a.nbytes:,} bytes that it may only read")
        self._watched.clear()
        found.points += 1
        expected = self._held + moment.live - self._static
        if ledger.live != expected:
            self._fault(
                label, f"{ledger.live - expected:+,} bytes live against the prediction: {self._whose(moment.holders)}"
            )
        most = self._held + moment.inside - self._static
        if ledger.peak_since_mark != most:
            self._fault(
                label,
                f"{ledger.peak_since_mark - most:+,} bytes at its peak against the prediction of {most:,}: its footprint does not "
                "say what it does",
            )
        seen = numpy_bytes()
        told = self._on_heap() - self._elsewhere
        found.largest_difference = max(found.largest_difference, abs(seen - told))
        if seen != told:
            self._fault(
                label,
                f"NumPy holds {seen - told:+,} bytes against the ledger: an array that was not made by context.empty is kept, or the "
                "ledger counts one that is gone",
            )
            self._elsewhere = self._on_heap() - seen  # say it once
        # Python's own objects are traced, too; those that stay (caches) are known, those in passing are not.
        stayed = max(0, (traced - seen) - (self._traced - self._seen))
        inside = peak - self._traced - stayed
        # In the block the heap holds only what a rule takes from plain NumPy, as its footprint says.
        told_inside = self._heap.get(place, 0) if self._block else ledger.peak_since_mark - self._live
        if self._shared and not self._block:
            told_inside -= max(0, self._gradients() - self._gradients_before)
        found.largest_inside = max(found.largest_inside, abs(inside - told_inside))
        if not -TOLERANCE <= inside - told_inside <= TOLERANCE + self._beside:
            self._fault(
                label,
                f"{inside - told_inside:+,} bytes at its peak against the ledger: "
                + (
                    "an array is made in passing that was not made by context.empty and is not in its footprint's heap"
                    if inside > told_inside
                    else "its footprint says more than it takes"
                ),
            )
        self._begin(seen)

    def _on_heap(self) -> int:
        """What the ledger says that the heap holds."""
        if self._block:
            return self._held
        return self._ledger.live - (self._gradients() if self._shared else 0)

    def _gradients(self) -> int:
        return self._ledger.by_category().get("gradients", 0)

    def _begin(self, seen: int) -> None:
        self._live, self._gradients_before = self._ledger.live, self._gradients()
        tracemalloc.reset_peak()
        self._traced, self._seen = tracemalloc.get_traced_memory()[0], seen

    def _fault(self, label: str, what: str) -> None:
        fault = f"{label}: {what}"
        if what not in self._known:  # what stays wrong is said where it went wrong
            self._known.add(what)
            self.found.faults.append(fault)

    def _whose(self, expected: dict[tuple[str, str], int]) -> str:
        held = {(category, owner): n for category, owner, n in self._ledger.holders(10**9)}
        rows = [
            f"{n - expected.get(holder, 0):+,} of {holder[0]} of {holder[1] or 'the engine'}"
            for holder, n in sorted(held.items(), key=lambda item: -item[1])
            if n != expected.get(holder, 0)
        ]
        rows += [f"{-n:+,} of {holder[0]} of {holder[1]}" for holder, n in expected.items() if holder not in held]
        return "; ".join(rows[:10])


def numpy_bytes() -> int:
    """Returns the live bytes that NumPy itself reports; `tracemalloc` must be tracing."""
    domain = np.lib.tracemalloc_domain
    # The records themselves: (domain, size, …). Making an object of each takes five times as long.
    records: Any = tracemalloc.take_snapshot().traces
    return sum(record[1] for record in records._traces if record[0] == domain)


def arrays_of(tree: Any) -> Iterator[Array]:
    """Yields the arrays of nested dicts, tuples and lists."""
    if isinstance(tree, np.ndarray):
        yield tree
    elif isinstance(tree, dict):
        yield from arrays_of(tree.values())
    elif isinstance(tree, Iterable):
        for item in tree:
            yield from arrays_of(item)
