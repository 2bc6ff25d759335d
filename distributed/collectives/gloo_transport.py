"""Messages between nodes whose numbers Gloo carries, through `ray.util.collective`; it takes PyTorch.

What a message is goes by a call of Ray's, as in `ray_transport.py`, and with it all that a transport must notice: receipts, and peers that died. Its numbers
follow by Gloo, straight from where they lie to the place that the inbox has for them. A thread for each other node sends, another one receives, both in
the order of the messages.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np

from distributed.collectives.communicator import CollectiveError
from distributed.collectives.transport import Inbox, Message, PeerLost, Receipt, Transport


class GlooTransport:
    """Carries messages among the leaders of nodes, all of which make theirs at once.

    Args:
        node: This node.
        nodes: How many nodes there are.
        calls: Carries what messages are, to where `deliver` is called with it; it may lose some.
        inbox: Where messages of other nodes arrive.
        group: A name that no other group has had.
        timeout: Seconds to wait for the other leaders.

    Raises:
        CollectiveError: The others did not come, or Gloo cannot reach them.
        ImportError: PyTorch is not installed.
    """

    def __init__(self, node: int, nodes: int, calls: Transport, inbox: Inbox, group: str, timeout: float) -> None:
        import torch
        from ray.util import collective

        torch.set_num_threads(1)
        self._collective, self._group, self._inbox = collective, group, inbox
        self._calls = calls
        try:
            collective.init_collective_group(nodes, node, "GLOO", group, gloo_timeout=int(timeout * 1000))
        except (RuntimeError, TimeoutError) as error:
            raise CollectiveError(f"node {node}: Gloo cannot form its group: {error}", "connect") from error
        others = [other for other in range(nodes) if other != node]
        self._next = dict.fromkeys(others, 0)
        self._sent: dict[int, dict[int, Future[None]]] = {other: {} for other in others}
        self._senders = {other: ThreadPoolExecutor(1, f"Gloo to node {other}") for other in others}
        self._coming: dict[int, queue.SimpleQueue[Message]] = {other: queue.SimpleQueue() for other in others}
        self._announced = dict.fromkeys(others, 0)
        self._early: dict[int, dict[int, Message]] = {other: {} for other in others}
        for other in others:
            threading.Thread(target=self._receive, args=(other,), name=f"Gloo from node {other}", daemon=True).start()

    def post(self, to: int, message: Message) -> Receipt:
        arrays = [array for array in message.arrays if array.size]
        if message.number < 0:
            return self._calls.post(to, message)
        call = self._calls.post(to, replace(message, arrays=(), apart=tuple(array.nbytes for array in arrays)))
        sent = self._sent[to]
        if (
            message.number == self._next[to]
        ):  # else it is told again, and its numbers are on their way, which loses none
            self._next[to] += 1
            for number in [number for number, each in sent.items() if each.done() and not each.exception()]:
                del sent[number]
            sent[message.number] = self._senders[to].submit(self._send, to, arrays)
        return _Sent(sent[message.number], call) if message.number in sent else call

    def deliver(self, message: Message) -> list[int]:
        """Takes what a message is, from a call of Ray's, all of which come in one thread."""
        if message.number < 0:
            return self._inbox.deliver(message)
        early, number = self._early[message.source], self._announced[message.source]
        if message.number >= number:  # not again
            early[message.number] = message
        while number in early:  # in order, as their numbers come
            self._coming[message.source].put(early.pop(number))
            number += 1
        self._announced[message.source] = number
        return self._inbox.waiting_for()

    def _send(self, to: int, arrays: Sequence[Any]) -> None:
        for array in arrays:
            self._collective.send(array.reshape(-1).view(np.uint8), to, self._group)

    def _receive(self, source: int) -> None:
        while True:
            message = self._coming[source].get()
            try:
                for piece in self._inbox.places(message):
                    self._collective.recv(piece, source, self._group)
            except (
                RuntimeError
            ):  # the connection is gone; whoever waits sees the process that has ended, or its own timeout
                return
            self._inbox.deliver(message)


class _Sent:
    """A message whose numbers Gloo sends."""

    def __init__(self, sent: Future[None], call: Receipt) -> None:
        self._sent, self._call = sent, call

    def arrived(self) -> list[int] | None:
        if not self._sent.done():
            return None
        if (error := self._sent.exception()) is not None:
            raise PeerLost(str(error)) from error
        return self._call.arrived()
