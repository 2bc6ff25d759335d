"""What reverse mode keeps between forward and backward: kept from being changed, counted, and checked where asked."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import numpy as np

from framework.differentiation.table import describe
from framework.differentiation.tracing import DifferentiationError
from framework.memory import Allocation, Array, Ledger, checksum

#: Arrays that were made read-only, by id, and how many nodes of any trace hold each.
_locks: dict[int, tuple[Array, int]] = {}
#: Views that could not be made writable again yet, since the array below them is still held.
_waiting: list[Array] = []


#: Several threads may trace at once. An array's death may come in the middle of either function, hence a lock that can be taken twice.
_guard = threading.RLock()


def lock(a: Array) -> None:
    """Makes an array read-only until it is unlocked as often. One that was read-only before stays so."""
    with _guard:
        held = _locks.get(id(a))
        if held is not None:
            _locks[id(a)] = (a, held[1] + 1)
        elif a.flags.writeable:
            a.setflags(write=False)
            _locks[id(a)] = (a, 1)


def unlock(a: Array) -> None:
    """Undoes one `lock`."""
    with _guard:
        held = _locks.get(id(a))
        if held is None:
            return
        if held[1] > 1:
            _locks[id(a)] = (a, held[1] - 1)
            return
        del _locks[id(a)]
        if not _make_writable(a):
            _waiting.append(a)
        elif _waiting:
            _waiting[:] = [view for view in _waiting if not _make_writable(view)]


def unlocked(value: Any) -> Any:
    """The value itself, or a copy of a view that is read-only for ever, since it was made while the array below it was locked."""
    if type(value) is np.ndarray and not value.flags.writeable and id(value) not in _locks and id(value.base) in _locks:
        return value.copy()
    return value


def _make_writable(a: Array) -> bool:
    try:
        a.setflags(write=True)
    except ValueError:  # a view of an array that is locked itself
        return False
    return True


class Keeper:
    """The arrays that one trace holds.

    Args:
        ledger: Counts each buffer once as residuals of the function that saved it; None counts nothing.
        verify: Whether a checksum is taken of each, and compared before it is used.
        own: Buffers that are the caller's, which are not counted.
    """

    __slots__ = ("_counted", "_ledger", "_own", "verify")

    def __init__(self, ledger: Ledger | None = None, verify: bool = False, own: Sequence[Array] = ()) -> None:
        self._ledger, self.verify = ledger, verify
        self._own = {id(_buffer(a)) for a in own}
        self._counted: dict[int, tuple[Allocation, int]] = {}

    def hold(self, a: Array, owner: str) -> None:
        """Locks an array and counts it."""
        lock(a)
        if self._ledger is not None:
            buffer = _buffer(a)
            held = self._counted.get(id(buffer))
            if held is not None:
                self._counted[id(buffer)] = (held[0], held[1] + 1)
            elif id(buffer) not in self._own and not hasattr(buffer, "allocation"):  # the ledger's own are counted
                self._counted[id(buffer)] = (self._ledger.count(buffer.nbytes, "residuals", owner), 1)

    def release(self, a: Array) -> None:
        """Undoes one `hold`."""
        unlock(a)
        held = self._counted.get(id(_buffer(a)))
        if held is not None:
            if held[1] > 1:
                self._counted[id(_buffer(a))] = (held[0], held[1] - 1)
            else:
                del self._counted[id(_buffer(a))]


def _buffer(a: Array) -> Array:
    return a.base if isinstance(a.base, np.ndarray) else a


class Saved:
    """The arrays of one call; they are released with it."""

    __slots__ = ("_checksums", "_keeper", "arrays")

    def __init__(self, arrays: list[Array], keeper: Keeper, owner: str) -> None:
        self.arrays: list[Array] = []
        self._keeper = keeper
        for a in arrays:
            keeper.hold(a, owner)  # a ledger may refuse it
            self.arrays.append(a)
        self._checksums = [checksum(a) for a in arrays] if keeper.verify else []

    def check(self, function: Any) -> None:
        """Raises if an array is not what it was; does nothing unless that is to be verified."""
        if not self._keeper.verify:
            return
        for a, before in zip(self.arrays, self._checksums, strict=True):
            if checksum(a) != before:
                raise DifferentiationError(
                    f"an array of shape {a.shape} that {describe(function)} saved was changed between forward and backward, so its "
                    "derivative would be wrong; write the changed values into another array"
                )

    def __del__(self) -> None:
        for a in self.arrays:
            self._keeper.release(a)
