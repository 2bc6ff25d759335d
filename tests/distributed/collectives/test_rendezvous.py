"""Waiting for ranks that are late, stopped, killed, or told to give up. Ranks are processes forked from this one."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import ClassVar

import pytest

from checkpointing.reduction_tree import additions_between
from distributed.collectives.communicator import CollectiveError
from distributed.collectives.rendezvous import CONTROL_NBYTES, Rendezvous
from distributed.collectives.segment import Segment, SegmentAddress, attach_all
from framework.optimizers import tree_sum
from tests.distributed.collectives.worlds import descriptors

PROGRAM = """
import sys, time
from distributed.collectives.rendezvous import CONTROL_NBYTES, Rendezvous
from distributed.collectives.segment import Segment
segment = Segment.create("test", CONTROL_NBYTES)
print(segment.address.descriptor, flush=True)
exec(sys.stdin.read())
"""


@contextmanager
def peer(then: str) -> Iterator[tuple[subprocess.Popen[str], Callable[[float], Rendezvous]]]:
    """Starts a process that owns the segment of rank 1, and yields it and what connects rank 0, who is here, with it.

    Args:
        then: What the process runs when this one is connected.
    """
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    )
    assert process.stdin and process.stdout
    own = Segment.create("test", CONTROL_NBYTES)
    other = SegmentAddress(process.pid, int(process.stdout.readline()), CONTROL_NBYTES)

    def connect(timeout: float) -> Rendezvous:
        assert process.stdin
        found = Rendezvous(0, attach_all(0, own, [own.address, other]), timeout)
        process.stdin.write(f"own = {asdict(own.address)}\n{then}")
        process.stdin.close()
        return found

    try:
        yield process, connect
    finally:
        process.kill()
        process.wait()
        process.stdin.close()
        process.stdout.close()


def test_a_killed_peer_is_named_long_before_the_timeout() -> None:
    with peer("time.sleep(60)") as (process, connect):
        rendezvous = connect(60.0)
        process.kill()
        started = time.monotonic()
        with pytest.raises(
            CollectiveError, match=rf"rank 0: rank 1 \(pid {process.pid}\) died, waited .* in mine"
        ) as e:
            rendezvous.channel(2).barrier("mine")
        assert time.monotonic() - started < 10
        assert (e.value.operation, e.value.late, e.value.dead) == ("mine", (1,), (1,))


def test_a_stopped_peer_is_late_when_the_timeout_has_passed() -> None:
    with peer("time.sleep(60)") as (process, connect):
        rendezvous = connect(60.0)
        process.send_signal(signal.SIGSTOP)
        with pytest.raises(CollectiveError, match=r"rank 0: ranks \[1\] late, waited 0\.\d s in mine") as error:
            rendezvous.channel(0).barrier("mine", timeout=0.3)
        assert (error.value.late, error.value.dead) == ((1,), ())
        assert error.value.seconds >= 0.3


def test_a_peer_that_has_arrived_may_end() -> None:
    with peer("segment.words(64, 1)[0] = 1") as (process, connect):
        rendezvous = connect(60.0)
        process.wait()
        rendezvous.channel(0).barrier()
        with pytest.raises(CollectiveError, match="died"):
            rendezvous.channel(0).barrier()


def test_another_process_that_is_told_an_address_can_abort() -> None:
    program = "from distributed.collectives.rendezvous import abort\nfrom distributed.collectives.segment import SegmentAddress\nabort(SegmentAddress(**own))\ntime.sleep(60)"
    with peer(program) as (process, connect):
        rendezvous = connect(60.0)
        with pytest.raises(CollectiveError, match=f"rank 0: mine given up .* since process {process.pid} aborted it"):
            rendezvous.channel(1).barrier("mine")


def test_a_descriptor_that_is_of_something_else_is_a_clear_error(tmp_path: Path) -> None:
    with (tmp_path / "other").open("w+b") as other:
        address = SegmentAddress(os.getpid(), other.fileno(), CONTROL_NBYTES)
        with pytest.raises(CollectiveError, match=r"shared memory of rank 1: /proc/\d+/fd/\d+ is not it any more"):
            attach_all(0, Segment.create("test", CONTROL_NBYTES), [address, address])


def test_channels_are_independent() -> None:
    segments = [Segment.create("test", CONTROL_NBYTES) for _ in range(2)]
    one, two = (Rendezvous(rank, segments, 10.0) for rank in range(2))
    meeting = one.channel(0).arrive()
    two.channel(1).arrive()
    with pytest.raises(CollectiveError, match=r"ranks \[1\] late"):
        one.channel(0).wait(meeting, "mine", timeout=0.01)
    one.channel(1).barrier()
    two.channel(0).arrive()
    one.channel(0).wait(meeting, "mine")


def test_no_descriptor_is_left_open() -> None:
    gc.collect()  # errors of other tests
    assert (descriptors("memfd:test"), descriptors("[pidfd]")) == (0, 0)
    with peer("time.sleep(60)") as (_, connect):
        rendezvous = connect(1.0)
        assert (descriptors("memfd:test"), descriptors("[pidfd]")) == (3, 1)  # its own twice, as a mapping has one, too
        rendezvous.close()
        del rendezvous, connect
    assert (descriptors("memfd:test"), descriptors("[pidfd]")) == (0, 0)


@pytest.mark.parametrize("world", range(1, 10))
def test_ranks_are_added_in_the_order_of_tree_sum(world: int) -> None:
    values = [(1.0 + rank) * 10.0 ** (7 * rank % 16) for rank in range(world)]
    found = list(values)
    for i, j in additions_between(range(world)):
        found[i] += found[j]
    assert found[0] == tree_sum(values)


def test_who_waits_calmly_looks_rarely() -> None:
    segments = [Segment.create("test", CONTROL_NBYTES) for _ in range(2)]
    rank, looks, most = Rendezvous(0, segments, 60), [0], 20

    def late() -> list[int]:
        looks[0] += 1
        return [1] if looks[0] < most else []

    started = time.monotonic()
    rank.wait(late, "test", hurry=threading.Event())
    assert time.monotonic() - started >= (most - 1) * 2e-3  # it sleeps after every look but the last
    rank.close()


def test_who_waits_calmly_sleeps_where_it_can_be_woken_and_then_hurries() -> None:
    class Told(threading.Event):
        """Set while it is waited for the fifth time."""

        waits: ClassVar[list[float | None]] = []

        def wait(self, timeout: float | None = None) -> bool:
            self.waits.append(timeout)
            if len(self.waits) == 5:
                self.set()
            return self.is_set()

    segments = [Segment.create("test", CONTROL_NBYTES) for _ in range(2)]
    rank, hurry, looks = Rendezvous(0, segments, 60), Told(), [0]

    def late() -> list[int]:
        looks[0] += 1
        return [1] if looks[0] < 50 else []

    rank.wait(late, "test", hurry=hurry)
    assert len(hurry.waits) == 5, "it sleeps nowhere else before it is told, and not there afterwards"
    assert all(timeout is not None and 2e-3 <= timeout <= 1e-2 for timeout in hurry.waits)
    rank.close()
