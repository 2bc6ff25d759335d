"""Memory budgets as people write them."""

from __future__ import annotations

from dataclasses import dataclass

from checkpointing.policies import RunPlans
from framework.sizes import parse_size

_EXAMPLES = "write engine:64MiB, or engine:60% for at most 60 % of what store-all would hold in activations"


@dataclass(frozen=True)
class EngineBudget:
    """The most bytes that the engine of each worker may hold.

    Attributes:
        text: As it was written.
        nbytes: A size, or None where it is a part.
        part: A part of StoreAll's activation bytes on top of parameters, gradients and optimizer state.
    """

    text: str
    nbytes: int | None = None
    part: float | None = None

    def resolve(self, store_all: RunPlans) -> int:
        """Returns the budget in bytes, given what StoreAll would hold."""
        if self.nbytes is not None:
            return self.nbytes
        assert self.part is not None
        activations = store_all.store_all_activation_nbytes
        largest = max(plan.peak for plan in store_all.train)
        return largest - activations + int(self.part * activations)


def parse_budget(text: str) -> EngineBudget:
    """Reads ``engine:SIZE`` or ``engine:PERCENT%``.

    Raises:
        ValueError: It is neither; whole-process budgets (a bare size) are not supported yet.
    """
    scope, colon, amount = text.strip().partition(":")
    if not colon:
        size = parse_size(text)
        raise ValueError(
            f"a budget of {text!r} would be for the whole process, which is not supported yet; write engine:{text} for a "
            f"budget of the engine's bytes ({size:,} bytes of arrays in each worker)"
        )
    if scope != "engine":
        raise ValueError(f"unknown budget scope {scope!r} in {text!r}; {_EXAMPLES}")
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
