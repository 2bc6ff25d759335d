"""Messages between nodes by calls of Ray actors.

Ray sends an argument of less than 100 KB with the call itself, from process to process, and a larger one by the object stores of both nodes. These take
milliseconds for each object, and as much of the processor's time as all else: their servers are told of it, ask for its place, and copy it. So numbers
travel as many small arguments of one call. What is too much for a call to bring goes by the object stores, as one object for each array.

Ray pickles a NumPy array with its numbers apart (protocol 5), and the receiver sees them where Ray has them, read-only. There `Inbox.deliver` copies them
to their place, and they are forgotten.

The actor takes messages in a thread of its own (a concurrency group), while its main thread is in a step.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from distributed.collectives.transport import Message, PeerLost, Receipt
from framework.memory import Array

#: The concurrency group of actors that take messages, with its one thread.
GROUP = "cross_node"
ACTOR_OPTIONS: dict[str, Any] = {"concurrency_groups": {GROUP: 1}}
#: Bytes of an argument that goes with its call: Ray's limit is 100 KiB, with some that say what it is (max_direct_call_object_size).
PIECE = 96 * 1024
#: Most bytes that go so with one call: Ray's limit is 10 MiB (task_rpc_inlined_bytes_limit).
MOST = 8 << 20
#: Bytes that Ray itself takes for a moment, from Python's heap, to make or answer a call, whatever its arguments: buffers of msgpack. One call is
#: made and one answered at a time.
CALLS_NBYTES = 2 * 1_200_000


class RayTransport:
    """Carries messages to actors that have a method ``deliver(message, *numbers)``, which gives them to their `Inbox`.

    The numbers come apart from their message, in order, and `Message.with_numbers` puts them together. Such actors are made with `ACTOR_OPTIONS`.

    Args:
        leaders: The actor of each node's leader.
        method: What is called instead of ``deliver``.
    """

    def __init__(self, leaders: Sequence[Any], method: str = "deliver") -> None:
        import ray

        self._ray = ray
        # Events of a call, for Ray's dashboard, hold all that it brings for a second or so: as much memory as was sent in that time.
        options = {"concurrency_group": GROUP, "enable_task_events": False}
        self._deliver = [getattr(leader, method).options(**options) for leader in leaders]

    def post(self, to: int, message: Message) -> Receipt:
        arrays = (
            message.arrays if message.nbytes > MOST else [piece for array in message.arrays for piece in _pieces(array)]
        )
        return _Call(self._ray, self._deliver[to].remote(replace(message, arrays=()), *arrays))


class _Call:
    """A call of `deliver`."""

    def __init__(self, ray: Any, reference: Any) -> None:
        self._ray, self._reference = ray, reference

    def arrived(self) -> list[int] | None:
        done, _ = self._ray.wait([self._reference], timeout=0)
        if not done:
            return None
        try:
            return list(self._ray.get(self._reference))
        except self._ray.exceptions.ActorUnavailableError:
            return None  # it may be there again, and is asked again
        except self._ray.exceptions.RayActorError as error:
            raise PeerLost(str(error).strip().splitlines()[0]) from error


def _pieces(array: Array) -> Iterator[Array]:
    flat = array.reshape(-1).view(np.uint8)
    for start in range(0, flat.size, PIECE):
        yield flat[start : start + PIECE]
