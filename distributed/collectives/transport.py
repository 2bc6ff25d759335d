"""Messages between nodes: what carries them, and where they arrive.

A transport may lose a message, bring it late, twice, or after a later one. Messages of a node are numbered, so an inbox takes each once; who sends
them keeps sending until they have arrived (`cross_node.py`).
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, Protocol

import numpy as np

from distributed.collectives.segment import CACHE_LINE, round_up
from framework.memory import Array

#: Numbers of messages that are none of a sequence: is anybody there, and somebody gave up.
PROBE, GIVEN_UP = -1, -2
#: How many messages a node may have sent more than it has received from another.
LEAD = 2
#: Seconds after which a message is sent again, each time twice as many, until they are so many times as many: were there no end to it, a run
#: of bad luck would leave too few tries before a timeout.
RETRY, BACK_OFF = 2.0, 4


@dataclass(frozen=True)
class Message:
    """What one node tells another.

    Attributes:
        source: The node that it comes from.
        number: Which one of those from there to here it is, from 0; or `PROBE`, or `GIVEN_UP`.
        words: What its sender is at, so that nodes that do not do the same are told so; of `GIVEN_UP` the reason.
        arrays: Contiguous numbers, which stay as they are until the message has arrived.
        apart: Where numbers do not come with the message, the bytes of each array: they are at `Inbox.places` when it is delivered.
    """

    source: int
    number: int
    words: str = ""
    arrays: Sequence[Array] = field(default=(), repr=False)
    apart: tuple[int, ...] = ()

    @property
    def nbytes(self) -> int:
        return sum(self.apart) + sum(array.nbytes for array in self.arrays)

    def with_numbers(self, numbers: Sequence[Array]) -> Message:
        """Returns the message with numbers that came beside it: its arrays, or all their bytes in any pieces."""
        return replace(self, arrays=numbers)


class PeerLost(Exception):  # noqa: N818  (no error of its own: `CollectiveError` tells it)
    """The process that a message was sent to has ended."""


class Receipt(Protocol):
    """What is known of a message that was sent."""

    def arrived(self) -> list[int] | None:
        """Returns the ranks that the other node's leader waits for on its node, once the message has arrived; None before.

        Raises:
            PeerLost: It never will.
        """
        ...


class Transport(Protocol):
    """What carries messages to the leaders of other nodes."""

    def post(self, to: int, message: Message) -> Receipt:
        """Sends a message to a node, where `Inbox.deliver` is called, and does not wait for that."""
        ...


@dataclass(frozen=True)
class SlotSizes:
    """Bytes of the messages that a node may get.

    Attributes:
        lead: How many messages a node may have sent more than it has received from another.
        largest: For each other node, the bytes of its largest message.
    """

    lead: int
    largest: Mapping[int, int]

    @classmethod
    def of(cls, messages: Mapping[int, int]) -> SlotSizes:
        """Returns the sizes of slots for messages of so many bytes, each on cache lines of its own."""
        return cls(LEAD, {source: round_up(nbytes, CACHE_LINE) for source, nbytes in messages.items()})

    @property
    def nbytes(self) -> int:
        """Bytes of all slots. A node that is ahead by the lead may meet one that is behind by it."""
        return 2 * self.lead * sum(self.largest.values())


class Inbox:
    """Where messages from other nodes arrive, at places that are there beforehand.

    Args:
        sizes: Of the messages.
        memory: For all slots: (sizes.nbytes,) of uint8. None takes them now.
    """

    def __init__(self, sizes: SlotSizes, memory: Array | None = None) -> None:
        self._count = 2 * sizes.lead
        memory = np.empty(sizes.nbytes, np.uint8) if memory is None else memory
        self._slots: dict[int, Array] = {}
        at = 0
        for source, nbytes in sizes.largest.items():
            self._slots[source] = memory[at : at + self._count * nbytes].reshape(self._count, nbytes)
            at += self._count * nbytes
        self._taken = dict.fromkeys(sizes.largest, 0)
        self._there: dict[tuple[int, int], tuple[str, int]] = {}
        self._changed = threading.Condition()
        #: The node that gave up, and why.
        self.given_up: tuple[int, str] | None = None
        #: Called when a node has given up.
        self.on_giving_up: Callable[[], None] = lambda: None
        #: The ranks of this node that its leader waits for.
        self.waiting_for: Callable[[], list[int]] = list

    def deliver(self, message: Message) -> list[int]:
        """Takes a message; any thread may call it. Returns the ranks of this node that its leader waits for."""
        if message.number == GIVEN_UP:
            with self._changed:
                self.given_up = self.given_up or (message.source, message.words)
                self._changed.notify_all()
            self.on_giving_up()
        elif message.number != PROBE:
            with self._changed:
                self._keep(message)
                self._changed.notify_all()
        return self.waiting_for()

    def places(self, message: Message) -> list[Array]:
        """Returns where the numbers of a message that come apart go: nobody else reads or writes there until it is delivered."""
        slot = self._slots[message.source][message.number % self._count]
        ends = [sum(message.apart[: number + 1]) for number in range(len(message.apart))]
        return [slot[end - nbytes : end] for end, nbytes in zip(ends, message.apart, strict=True)]

    def wait(self, source: int, seconds: float) -> bool:
        """Waits until the next message of a node is there, or somebody gave up; returns whether it is there."""
        with self._changed:
            return self._changed.wait_for(lambda: self._next(source) in self._there or self.given_up, seconds) is True

    def look(self, source: int) -> tuple[str, Array]:
        """Returns the words and bytes of a node's next message, which is there; they stay until `take`."""
        with self._changed:
            words, nbytes = self._there[self._next(source)]
        return words, self._slots[source][self._taken[source] % self._count, :nbytes]

    def take(self, source: int) -> None:
        """Forgets a node's next message."""
        with self._changed:
            del self._there[self._next(source)]
            self._taken[source] += 1

    def _next(self, source: int) -> tuple[int, int]:
        return source, self._taken[source]

    def _keep(self, message: Message) -> None:
        key, taken = (message.source, message.number), self._taken[message.source]
        if message.number < taken or key in self._there:
            return  # it has come before
        slot = self._slots[message.source][message.number % self._count]
        if message.number >= taken + self._count or message.nbytes > slot.size:
            raise RuntimeError(
                f"no room for message {message.number} of {message.nbytes} bytes from node {message.source}: slots have "
                f"{slot.size} bytes, and {taken} messages were taken"
            )
        at = sum(message.apart)
        for array in message.arrays:
            slot[at : at + array.nbytes] = array.reshape(-1).view(np.uint8)
            at += array.nbytes
        self._there[key] = (message.words, at)


class InProcess:
    """A transport between nodes that are threads of one process.

    Args:
        inboxes: Of all nodes.
    """

    def __init__(self, inboxes: Sequence[Inbox]) -> None:
        self._inboxes = inboxes

    def post(self, to: int, message: Message) -> Receipt:
        return Arrived(self._inboxes[to].deliver(message))


@dataclass(frozen=True)
class Arrived:
    """The receipt of a message that has arrived."""

    late: list[int]

    def arrived(self) -> list[int] | None:
        return self.late


@dataclass(frozen=True)
class Faults:
    """What a network does that is not perfect.

    Attributes:
        delay: Seconds that a message takes at most; each takes a part of them that is drawn, so they overtake each other.
        loss: Part of the messages that are lost, and of the receipts of those that are not.
        seed: Of the draws.
    """

    delay: float = 0.0
    loss: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not (0 <= self.delay < math.inf and 0 <= self.loss <= 1):
            raise ValueError(
                f"a delay is a number of seconds, and a loss a part of all messages, but got {self.delay} and {self.loss}"
            )


@dataclass(frozen=True)
class Network:
    """What is between nodes.

    Attributes:
        chunk: Bytes of an array that travel at once; the same on all ranks.
        carrier: What carries messages: Ray's own calls, or Gloo through `ray.util.collective`.
        faults: What is done to them on purpose.
    """

    chunk: int = 512 * 1024
    carrier: Literal["ray", "gloo"] = "ray"
    faults: Faults = Faults()

    @property
    def retry(self) -> float:
        """Seconds after which a message is sent again."""
        return RETRY if self.faults == Faults() else max(0.05, 2 * self.faults.delay)


class Faulty:
    """A transport that delays and loses messages.

    Args:
        inner: What carries those that are not lost.
        faults: What is done to them.
    """

    def __init__(self, inner: Transport, faults: Faults) -> None:
        self._inner, self._faults = inner, faults
        self._draw = np.random.default_rng(faults.seed)

    def post(self, to: int, message: Message) -> Receipt:
        lost, forgotten = self._draw.random(2) < self._faults.loss
        if lost:
            return _Late(forgotten=True)
        late = _Late(bool(forgotten))
        if not self._faults.delay:
            late.receipt = self._inner.post(to, message)
            return late

        def post() -> None:
            late.receipt = self._inner.post(to, message)

        timer = threading.Timer(self._faults.delay * self._draw.random(), post)
        timer.daemon = True
        timer.start()
        return late


class _Late:
    def __init__(self, forgotten: bool) -> None:
        self.receipt: Receipt | None = None
        self._forgotten = forgotten

    def arrived(self) -> list[int] | None:
        return None if self._forgotten or self.receipt is None else self.receipt.arrived()
