"""Messages between nodes by calls of Ray actors.

Ray pickles a NumPy array with its numbers apart (protocol 5): from where they lie they are copied once, into the object store of the sender's node; the
nodes' object managers send that on; and the receiver sees it in the object store of its own node, read-only, without another copy. There
`Inbox.deliver` copies it to its place, and the object is free again, so the stores hold no more than what is on its way.

The actor takes messages in a thread of its own (a concurrency group), while its main thread is in a step.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from distributed.collectives.transport import Message, PeerLost, Receipt

#: The concurrency group of actors that take messages, with its one thread.
GROUP = "cross_node"
ACTOR_OPTIONS: dict[str, Any] = {"concurrency_groups": {GROUP: 1}}
#: Bytes that Ray itself takes for a moment, from Python's heap, to make or answer a call, whatever its arguments: buffers of msgpack. One call is
#: made and one answered at a time.
CALLS_NBYTES = 2 * 1_200_000


class RayTransport:
    """Carries messages to actors that have a method ``deliver(message)``, which gives them to their `Inbox`.

    Such actors are made with `ACTOR_OPTIONS`.

    Args:
        leaders: The actor of each node's leader.
        method: What is called instead of ``deliver``.
    """

    def __init__(self, leaders: Sequence[Any], method: str = "deliver") -> None:
        import ray

        self._ray = ray
        self._deliver = [getattr(leader, method).options(concurrency_group=GROUP) for leader in leaders]

    def post(self, to: int, message: Message) -> Receipt:
        return _Call(self._ray, self._deliver[to].remote(message))


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
