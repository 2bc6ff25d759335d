"""The ledger: every array the engine holds, counted to the byte.

All arrays of a run come from `Ledger.empty`. The ledger knows how many bytes live, in which
category and for whom, keeps the peak, and refuses an array that would pass a hard limit *before*
it exists. An array counts until its Python death: as long as any view of it lives.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any, Protocol

import numpy as np
from numpy.typing import DTypeLike, NDArray

from framework.sizes import format_size

Array = NDArray[Any]

#: What an array is for. The order is that of tables and reports.
CATEGORIES = (
    "parameters",
    "gradients",
    "optimizer",
    "data",
    "batch",
    "activations",
    "residuals",
    "cotangents",
    "workspace",
    "communication",
)
_KNOWN = frozenset(CATEGORIES)


class BudgetExceeded(MemoryError):  # noqa: N818  (the name that callers act on)
    """An array was refused because it would have passed the ledger's hard limit."""


class Allocation:
    """One entry of a ledger. Whoever owns the bytes holds it; its death is the bytes' death."""

    __slots__ = ("_ledger", "holder", "nbytes")

    def __init__(self, ledger: Ledger, nbytes: int, holder: tuple[str, str]) -> None:
        self._ledger = ledger
        self.nbytes = nbytes
        self.holder = holder

    def __del__(self) -> None:
        self._ledger._release(self.nbytes, self.holder)


class Allocator(Protocol):
    """Where bytes come from: the heap, shared memory, one planned block."""

    def allocate(self, shape: tuple[int, ...], dtype: np.dtype[Any], allocation: Allocation) -> Array:
        """Returns an uninitialized array; `allocation` must live exactly as long as its memory."""
        ...


class _OwningArray(np.ndarray):
    """An array that owns heap memory and carries its ledger entry.

    It is only ever handed out as a plain view. NumPy makes the *owner* the base of every further
    view, so the owner dies with the last of them, and the entry with it. (2.5 µs an array.)
    """

    __slots__ = ("allocation",)
    allocation: Allocation


_NOTHING = bytearray(1)


class Heap:
    """The default allocator: NumPy's own memory, one piece an array."""

    def allocate(self, shape: tuple[int, ...], dtype: np.dtype[Any], allocation: Allocation) -> Array:
        # For an array of no bytes NumPy would take one.
        owner = _OwningArray(shape, dtype, None if math.prod(shape) else _NOTHING)
        owner.allocation = allocation
        return owner.view(np.ndarray)


@dataclass(frozen=True, slots=True)
class Moment:
    """The ledger at the end of one operation.

    Attributes:
        label: The operation.
        live: Bytes alive after it.
        inside: The most bytes alive at any time during it.
        holders: Bytes alive after it by (category, owner), zeros left out.
        seconds: How long it took, or takes by a plan; moments are equal whatever this is.
    """

    label: str
    live: int
    inside: int
    holders: dict[tuple[str, str], int]
    seconds: float = field(default=0.0, compare=False)

    @property
    def categories(self) -> dict[str, int]:
        """Bytes alive after it by category, in the order of `CATEGORIES`, zeros left out."""
        return by_category(self.holders)


@dataclass(frozen=True)
class Recording:
    """What a ledger saw from `Ledger.start_recording` to `Ledger.stop_recording`.

    Attributes:
        before: Bytes alive at its start by (category, owner), zeros left out.
        moments: One for each operation.
        at_peak: Bytes by (category, owner), zeros left out, at the first moment of those with the most bytes alive.
    """

    before: dict[tuple[str, str], int]
    moments: tuple[Moment, ...]
    at_peak: dict[tuple[str, str], int]


def checksum(a: Array) -> int:
    """Returns a number that changes, but for one chance in 2³², when the array does."""
    return zlib.crc32(np.ascontiguousarray(a).data) if a.size else 0


def by_category(holders: Mapping[tuple[str, str], int]) -> dict[str, int]:
    """Adds bytes up by category, in the order of `CATEGORIES`, zeros left out."""
    totals = dict.fromkeys(CATEGORIES, 0)
    for (category, _), nbytes in holders.items():
        totals[category] += nbytes
    return {category: nbytes for category, nbytes in totals.items() if nbytes}


class Ledger:
    """Counts live bytes by category and owner, and holds a hard limit.

    Args:
        limit: The most bytes that may live at once; None for no limit.
        record: Whether to keep the timeline (a `Moment` for each call of `mark`) from the start.
        allocator: Where `empty` takes memory from unless told otherwise.

    One ledger is for one thread.

    Attributes:
        allocator: Where `empty` takes memory from unless told otherwise; whoever changes it for a while puts it back.
    """

    def __init__(self, limit: int | None = None, record: bool = False, allocator: Allocator | None = None) -> None:
        self.limit = limit
        self.live = 0
        self.timeline: list[Moment] | None = None
        self.allocator: Allocator = allocator or Heap()
        self._holders: dict[tuple[str, str], int] = {}
        self._peak = 0
        self._peak_since_mark = 0
        self._began = 0.0  # when the operation at work did
        self._before: dict[tuple[str, str], int] = {}
        # Of a recording: the most bytes so far, whether they live now, and else who held them.
        self._highest: float = math.inf
        self._rising = False
        self._at_peak: dict[tuple[str, str], int] = {}
        if record:
            self.start_recording()

    def start_recording(self) -> None:
        """Begins to keep the timeline, and who holds the most bytes at once; what was kept before is forgotten."""
        self.timeline = []
        self._before = self._at_peak = self._holders.copy()
        self._highest, self._rising = self.live, False
        self.begin()

    def stop_recording(self) -> Recording:
        """Returns what was recorded, and keeps the timeline no longer.

        Raises:
            ValueError: Nothing is being recorded.
        """
        if self.timeline is None:
            raise ValueError("the ledger records nothing; call start_recording before")
        self._note_peak()
        found = Recording(self._before, tuple(self.timeline), self._at_peak)
        self.timeline, self._highest = None, math.inf
        self._before = self._at_peak = {}
        return found

    def _note_peak(self) -> None:
        """Writes down who holds the most bytes so far, before they become fewer."""
        if self._rising:
            self._at_peak, self._rising = self._holders.copy(), False

    @property
    def peak(self) -> int:
        """The most bytes that were ever alive at once since the start or `reset_peak`."""
        return max(self._peak, self._peak_since_mark)

    @property
    def peak_since_mark(self) -> int:
        """The most bytes that were alive at once since the last operation ended."""
        return self._peak_since_mark

    def reset_peak(self) -> None:
        """Starts the peak again from what lives now."""
        self._peak = self._peak_since_mark = self.live

    def empty(
        self,
        shape: Sequence[int],
        dtype: DTypeLike,
        category: str,
        owner: str = "",
        allocator: Allocator | None = None,
    ) -> Array:
        """Returns an uninitialized C-contiguous array that the ledger counts until its death.

        Args:
            shape: Its shape.
            dtype: Its dtype.
            category: One of `CATEGORIES`.
            owner: Who asks: a layer's path or a part of the engine; named in errors and reports.
            allocator: Where to take the memory from, if not the ledger's own allocator.

        Raises:
            BudgetExceeded: It would pass the limit; nothing was allocated.
            ValueError: The category is unknown.
        """
        shape = tuple(shape)
        dtype = np.dtype(dtype)
        nbytes = dtype.itemsize
        for length in shape:
            nbytes *= length
        array = (allocator or self.allocator).allocate(shape, dtype, self._take(nbytes, category, owner))
        if self.live > self._peak_since_mark:  # only now: an allocation may fail
            self._rise()
        return array

    def count(self, nbytes: int, category: str, owner: str = "") -> Allocation:
        """Counts bytes that something else holds (a shared segment, a data set's arrays).

        They count until the returned entry dies.
        """
        allocation = self._take(nbytes, category, owner)
        if self.live > self._peak_since_mark:
            self._rise()
        return allocation

    def _rise(self) -> None:
        self._peak_since_mark = self.live
        if self.live > self._highest:
            self._highest, self._rising = self.live, True

    def hand_over(self, array: Array) -> Array:
        """Stops counting an array of the heap, which is somebody else's from now on, and returns it."""
        owner = array.base
        if not isinstance(owner, _OwningArray):
            raise ValueError("only a whole array from the ledger's heap can be handed over")
        del owner.allocation
        return array

    def by_category(self) -> dict[str, int]:
        """Live bytes by category, in the order of `CATEGORIES`, zeros left out."""
        return by_category(self._holders)

    def holders(self, most: int = 10) -> list[tuple[str, str, int]]:
        """The largest holders as (category, owner, bytes), most bytes first."""
        rows = [(category, owner, n) for (category, owner), n in self._holders.items()]
        return sorted(rows, key=lambda row: (-row[2], row[0], row[1]))[:most]

    def begin(self) -> None:
        """Begins an operation: what was alive before, and is gone, is not in it."""
        if self._peak_since_mark > self._peak:
            self._peak = self._peak_since_mark
        self._peak_since_mark = self.live
        if self.timeline is not None:
            self._began = perf_counter()

    def mark(self, label: str) -> None:
        """Ends an operation: records a `Moment` if a timeline is kept."""
        if self.timeline is not None:
            seconds = perf_counter() - self._began
            self.timeline.append(Moment(label, self.live, self._peak_since_mark, self._holders.copy(), seconds))
        self.begin()

    def _take(self, nbytes: int, category: str, owner: str) -> Allocation:
        if category not in _KNOWN:
            raise ValueError(f"unknown memory category {category!r}; known: {', '.join(CATEGORIES)}")
        live = self.live + nbytes
        if self.limit is not None and live > self.limit:
            raise BudgetExceeded(self._refusal(nbytes, category, owner))
        holder = (category, owner)
        if nbytes:
            self.live = live
            self._holders[holder] = self._holders.get(holder, 0) + nbytes
        return Allocation(self, nbytes, holder)

    def _release(self, nbytes: int, holder: tuple[str, str]) -> None:
        if nbytes:
            if self._rising:
                self._note_peak()
            self.live -= nbytes
            left = self._holders[holder] - nbytes
            if left:
                self._holders[holder] = left
            else:
                del self._holders[holder]

    def _refusal(self, nbytes: int, category: str, owner: str) -> str:
        held = "; ".join(f"{c} of {o or 'the engine'} {n:,}" for c, o, n in self.holders())
        return (
            f"{owner or 'the engine'} asked for {nbytes:,} bytes of {category}, but {self.live:,} of the limit "
            f"of {self.limit:,} bytes ({format_size(self.limit or 0)}) are taken. Largest holders: {held or 'none'}. "
            "Give a larger budget, or a policy that keeps less."
        )
