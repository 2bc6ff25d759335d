"""One block of memory for a whole step: every buffer lies where the plan's packing put it, and nothing is allocated."""

from __future__ import annotations

import math
from bisect import insort
from typing import Any

import numpy as np

from checkpointing.packing import ALIGNMENT, Packing, Slot
from framework.memory import Allocation, Array, BudgetExceeded


class _Memory(np.ndarray):
    """The block. NumPy stops at a subclass when it looks for the base of a view, so a `_Piece` stays the base of its views."""


class _Piece(np.ndarray):
    """An array in the block that carries its ledger entry; only ever handed out as a plain view."""

    __slots__ = ("allocation",)
    allocation: Allocation


#: The parts of an operation's scratch that are taken: their beginnings and ends, in order.
_Cuts = list[tuple[int, int]]


class _ScratchPiece(_Piece):
    """Scratch: its bytes are free again when it dies."""

    __slots__ = ("cut", "cuts")
    cut: tuple[int, int]
    cuts: _Cuts

    def __del__(self) -> None:
        if hasattr(self, "cut"):
            self.cuts.remove(self.cut)


class Block:
    """An allocator that hands out the slots of a packing, operation by operation.

    Who runs a plan calls `use` before and `begin` at each operation, and must see to it that what the plan has dropped is gone: its
    bytes are given to somebody else.
    """

    def __init__(self) -> None:
        self._memory = np.empty(0, np.uint8).view(_Memory)
        self._start = 0
        self._packing: Packing | None = None
        self._slots: dict[str, list[Slot]] = {}
        self._taken: dict[str, int] = {}
        self._cuts: _Cuts = []

    @property
    def nbytes(self) -> int:
        """Bytes of the block."""
        return int(self._memory.nbytes)

    def use(self, packing: Packing) -> None:
        """Makes room for a packing. No array of an earlier one may live."""
        self._packing = packing
        if packing.nbytes + ALIGNMENT > self._memory.nbytes:
            self._memory = np.empty(0, np.uint8).view(_Memory)  # the old one goes before the new one comes
            self._memory = np.empty(packing.nbytes + ALIGNMENT, np.uint8).view(_Memory)
            self._start = -self._memory.ctypes.data % ALIGNMENT

    def begin(self, place: int) -> None:
        """Says which operation asks next."""
        assert self._packing is not None
        self._slots = self._packing.slots[place]
        self._taken.clear()
        self._cuts = []

    def allocate(self, shape: tuple[int, ...], dtype: np.dtype[Any], allocation: Allocation) -> Array:
        """Returns the next array of the operation in the category of its ledger entry.

        Raises:
            BudgetExceeded: The plan has no such array there: the layer's footprint says otherwise.
        """
        category, owner = allocation.holder
        nbytes = math.prod(shape) * dtype.itemsize
        if category == "workspace":
            return self._scratch(shape, dtype, nbytes, allocation)
        number = self._taken.get(category, 0)
        planned = self._slots.get(category, [])
        if number >= len(planned) or planned[number][1] != nbytes:
            told = f"{planned[number][1]:,} bytes" if number < len(planned) else "none"
            raise BudgetExceeded(
                f"{owner or 'the engine'} asked for {nbytes:,} bytes of {category} (array {number} of the operation), where the "
                f"plan has {told}: its footprint does not say what it does"
            )
        self._taken[category] = number + 1
        return self.view_at(planned[number][0], shape, dtype, allocation)

    def view_at(self, offset: int, shape: tuple[int, ...], dtype: np.dtype[Any], allocation: Allocation) -> Array:
        """Returns an array that lies at an offset of the block and carries its ledger entry."""
        piece = _Piece(shape, dtype, self._memory, self._start + offset)
        piece.allocation = allocation
        return piece.view(np.ndarray)

    def _scratch(self, shape: tuple[int, ...], dtype: np.dtype[Any], nbytes: int, allocation: Allocation) -> Array:
        """Cuts an array from the operation's scratch, at the first place that is free."""
        region, size = self._slots["workspace"][0] if "workspace" in self._slots else (0, 0)
        at = 0
        for start, end in self._cuts:
            if start - at >= nbytes:
                break
            at = end
        if at + nbytes > size:
            raise BudgetExceeded(
                f"{allocation.holder[1] or 'the engine'} asked for {nbytes:,} bytes of workspace, where the plan has {size:,} for the "
                f"operation and {sum(end - start for start, end in self._cuts):,} are taken: its footprint does not say what it does"
            )
        piece = _ScratchPiece(shape, dtype, self._memory, self._start + region + at)
        piece.allocation, piece.cuts = allocation, self._cuts
        piece.cut = at, at + -(-nbytes // ALIGNMENT) * ALIGNMENT
        insort(self._cuts, piece.cut)
        return piece.view(np.ndarray)
