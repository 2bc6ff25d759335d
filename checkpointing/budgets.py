"""Memory budgets as people write them, and what they leave to the engine.

``engine:64MiB`` and ``engine:60%`` are of the engine's bytes, which the ledger counts; ``512MiB`` and ``auto`` of a worker's
whole process, of which the engine gets what interpreter, libraries and heap leave.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from pathlib import Path

from checkpointing.memory_limits import automatic_budget, require_memory
from checkpointing.runs import NAME_A_FOLDER, InfeasibleBudget, RunPlans
from framework.sizes import format_size, parse_size

_EXAMPLES = (
    "write 512MiB for the whole process, auto for what is free, engine:64MiB for the engine's arrays, or engine:60% for at most "
    "60 % of what store-all would hold in activations"
)

#: What a process takes after its baseline and outside the ledger, whatever the model: Python's objects, Ray's messages, and code
#: read at its first use; 0.1 to 1.9 MiB were seen, and 3 more for a progress bar.
RESERVE_NBYTES = 6 * 2**20

#: Of that, what a process usually takes, for a prediction of its peak.
USUAL_GROWTH_NBYTES = 4 * 2**20

#: What glibc's heap loses to gaps between arrays at the peak, in percent of the ledger's bytes: up to 2.6 were seen.
HEAP_PERCENT = 4


@dataclass(frozen=True)
class ProcessUse:
    """What a worker's process takes besides the ledger's bytes, in bytes.

    Attributes:
        baseline: Resident before the first array (`process_memory.measure_baseline`).
        outside: Arrays and pages that the ledger does not count, such as those of other workers' shared memory.
        reserve: Kept back for what the process takes later.
        heap_percent: Kept back for gaps in the heap, in percent of the ledger's bytes.
    """

    baseline: int
    outside: int = 0
    reserve: int = RESERVE_NBYTES
    heap_percent: int = HEAP_PERCENT

    @property
    def fixed(self) -> int:
        """What does not depend on the engine."""
        return self.baseline + self.outside + self.reserve

    def left_to_engine(self, process_nbytes: int) -> int:
        """Returns the limit for the ledger in a process of so many bytes; negative where even the rest has no room."""
        return (process_nbytes - self.fixed) * 100 // (100 + self.heap_percent)

    def with_engine(self, engine_nbytes: int) -> int:
        """Returns the bytes of a process whose engine holds so many: the least that leaves them to it."""
        return self.fixed - (-engine_nbytes * (100 + self.heap_percent) // 100)

    def __str__(self) -> str:
        parts = [f"{format_size(self.baseline)} are taken by the interpreter and its libraries before the first array"]
        if self.outside:
            parts.append(f"{format_size(self.outside)} lie outside the engine")
        parts.append(f"{format_size(self.reserve)} and {self.heap_percent} % of the engine's bytes are kept back")
        return ", ".join(parts)


class MemoryBudget(ABC):
    """The most bytes that each worker may take.

    Attributes:
        text: As it was written.
    """

    text: str

    @abstractmethod
    def on_this_node(self, workers: int = 1, held: int = 0) -> MemoryBudget:
        """Returns the budget in terms of this machine: `auto` gets its size, and what the machine cannot give is refused.

        Args:
            workers: Workers that share the node.
            held: Bytes that they hold already.

        Raises:
            ValueError: The machine or its container could never give so much.
        """

    @abstractmethod
    def resolve(self, store_all: RunPlans, process: ProcessUse | None = None) -> int:
        """Returns the limit for the ledger in bytes.

        Args:
            store_all: What StoreAll would hold.
            process: What the process takes besides; a budget of the whole process needs it.

        Raises:
            InfeasibleBudget: Nothing is left to the engine.
            ValueError: The budget is of the whole process, and what this takes is not given.
        """


@dataclass(frozen=True)
class EngineBudget(MemoryBudget):
    """The most bytes that the engine of each worker may hold.

    Attributes:
        text: As it was written.
        nbytes: A size, or None where it is a part.
        part: A part of StoreAll's activation bytes on top of parameters, gradients and optimizer state.
    """

    text: str
    nbytes: int | None = None
    part: float | None = None

    def on_this_node(self, workers: int = 1, held: int = 0) -> EngineBudget:
        return self

    def resolve(self, store_all: RunPlans, process: ProcessUse | None = None) -> int:
        if self.nbytes is not None:
            return self.nbytes
        assert self.part is not None
        activations = store_all.store_all_activation_nbytes
        largest = max(plan.peak for plan in store_all.train)
        return largest - activations + int(self.part * activations)


@dataclass(frozen=True)
class ProcessBudget(MemoryBudget):
    """The most bytes that the whole process of each worker may take.

    Attributes:
        text: As it was written.
        nbytes: The size; None for `auto` until `on_this_node`.
        reason: Where the size of `auto` comes from.
    """

    text: str
    nbytes: int | None
    reason: str = ""

    def on_this_node(self, workers: int = 1, held: int = 0, *, root: Path = Path("/")) -> ProcessBudget:
        if self.nbytes is None:
            found = automatic_budget(workers, held, root=root)
            return replace(self, nbytes=found.nbytes, reason=found.reason)
        require_memory(self.nbytes, workers, root=root)
        return self

    def resolve(self, store_all: RunPlans, process: ProcessUse | None = None) -> int:
        if process is None or self.nbytes is None:
            require_engine_budget(self)
        assert process is not None and self.nbytes is not None
        left = process.left_to_engine(self.nbytes)
        if left > 0:
            return left
        lasting = max(plan.peak for plan in store_all.train) - store_all.store_all_activation_nbytes
        enough = process.with_engine(store_all.peak)
        raise InfeasibleBudget(
            f"{self._too_small(process)}. Nothing is left for the engine, whose parameters, gradients and optimizer state take "
            f"{format_size(lasting)}; give more than {format_size(process.with_engine(lasting))}, while "
            f"{enough:,} bytes ({format_size(enough)}) are enough for store-all",
            enough,
        )

    def explain(self, error: InfeasibleBudget, process: ProcessUse) -> InfeasibleBudget:
        """Returns the error of a plan that does not fit the engine's part, told in bytes of the whole process."""
        smallest, disk = process.with_engine(error.smallest), ""
        if (needed := error.with_disk) is not None:
            disk = f"; with values on disk the engine needs {needed:,} bytes ({format_size(needed)}): {NAME_A_FOLDER}"
        return InfeasibleBudget(
            f"{self._too_small(process)}. {format_size(max(0, process.left_to_engine(self.nbytes or 0)))} are left for the engine, "
            f"which needs {error.smallest:,} bytes ({format_size(error.smallest)}) or more; give {smallest} "
            f"({format_size(smallest)}) or more{disk}",
            smallest,
        )

    def _too_small(self, process: ProcessUse) -> str:
        nbytes = self.nbytes or 0
        because = f": {self.reason}" if self.reason else ""
        return f"a budget of {nbytes:,} bytes ({format_size(nbytes)}{because}) is too small for the whole process: {process}"


def require_engine_budget(budget: MemoryBudget) -> EngineBudget:
    """Returns a budget of the engine's bytes, for callers that know nothing of their process.

    Raises:
        ValueError: The budget is of the whole process.
    """
    if isinstance(budget, EngineBudget):
        return budget
    example = budget.text if isinstance(budget, ProcessBudget) and budget.nbytes is not None else "64MiB"
    raise ValueError(
        f"a budget of {budget.text!r} would be for the whole process, which is not supported here; write engine:{example} for a "
        "budget of the engine's arrays in each worker"
    )


def parse_budget(text: str) -> MemoryBudget:
    """Reads a budget: ``512MiB`` or ``auto`` of the whole process, ``engine:SIZE`` or ``engine:PERCENT%`` of the engine's bytes.

    Raises:
        ValueError: It is none of them, or a size that no process fits in; the message says what to write.

    >>> parse_budget("1.5GB").nbytes, parse_budget("engine:60%").part
    (1500000000, 0.6)
    """
    scope, colon, amount = text.strip().partition(":")
    if not colon:
        return _process_budget(text.strip())
    if scope != "engine":
        raise ValueError(f"unknown budget scope {scope!r} in {text!r}; {_EXAMPLES}")
    if amount == "auto":
        raise ValueError(f"{text!r} is no budget: auto is for the whole process; write auto, or {_EXAMPLES}")
    if amount.isdecimal() and int(amount) <= 100:
        raise ValueError(f"a budget of {amount} bytes holds nothing; did you mean engine:{amount}%?")
    if not amount.endswith("%"):
        return EngineBudget(text, nbytes=parse_size(amount))
    try:
        part = float(amount[:-1]) / 100
    except ValueError:
        part = -1.0
    if not 0 < part <= 1:
        raise ValueError(f"{amount!r} in {text!r} is no percentage in (0, 100]; {_EXAMPLES}")
    return EngineBudget(text, part=part)


def _process_budget(text: str) -> ProcessBudget:
    if text == "auto":
        return ProcessBudget(text, None)
    if text.endswith("%"):
        raise ValueError(
            f"a part of the whole process is no budget; write engine:{text} for that part of store-all's activations"
        )
    size = parse_size(text)
    if size < 2**20:
        hint = f"did you mean {text}MiB?" if text.isdecimal() else _EXAMPLES
        raise ValueError(
            f"a budget of {size:,} bytes holds no process, which takes tens of MiB before its first array; {hint}"
        )
    return ProcessBudget(text, size)
