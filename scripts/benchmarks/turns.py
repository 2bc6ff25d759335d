"""Sides of a comparison that live at once and take turns of a few steps, so that what happens on the machine meanwhile falls on all alike.

On a machine with neighbours speed moves by a tenth from minute to minute: sides that run one after the other would be told apart by it. So each side
is started in a process of its own, takes its steps when it is told to, and while others take theirs stands still with all processes that it has
started (SIGSTOP), since Ray's would go on working. The first step of a turn is not timed: the caches are the side's before.

A side is a function whose last argument is its `Turns`.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from multiprocessing import get_context
from queue import Empty
from typing import Any

import psutil
from benchmarks.measure import failure, program_of

#: Seconds of a turn, or a step if that is longer. Ray gives up processes that stand still for a minute, and all others have their turns meanwhile.
SECONDS = 4.0
#: Steps before the first turn: the first takes the optimizer's state and loads code, the second takes the memory of later ones.
UNTIMED = 2
#: Before each line that a side says to who gives turns.
_MARK = "turns: "
#: Seconds that a side has to end by itself.
_PATIENCE = 30.0

#: What a side says of a turn: lists of seconds by name.
Found = dict[str, list[float]]


class Over(Exception):  # noqa: N818  (it is no error)
    """There are no more turns."""


class Turns:
    """The turns of a side, as it sees them.

    Args:
        wait: Waits for a turn and returns how many steps are to be timed; it raises `Over` when there is none.
        tell: Says what was found.
    """

    def __init__(self, wait: Callable[[], int], tell: Callable[[Found], None]) -> None:
        self.wait, self.tell = wait, tell

    @classmethod
    def of_process(cls) -> Turns:
        """The turns of a process that `in_turns` has started."""
        return cls(_wait, lambda found: print(_MARK + json.dumps(found), flush=True))

    def steps(self, **also: list[float]) -> Iterator[int]:
        """Yields the numbers of the steps to take, one after the other; a step has ended when the next one is asked for.

        Args:
            also: What is told besides when all is ready.

        Raises:
            Over: There are no more turns.
        """
        started, seconds = time.perf_counter(), [0.0]
        for number in range(UNTIMED):
            yield number
            started, seconds = time.perf_counter(), [time.perf_counter() - started]
        self.tell({"seconds": seconds, **also})
        number = UNTIMED
        while True:
            timed, seconds = self.wait(), []
            started = time.perf_counter()
            for _ in range(1 + timed):
                yield number
                now = time.perf_counter()
                number, started, seconds = number + 1, now, [*seconds, now - started]
            self.tell({"seconds": seconds[1:]})


def _wait() -> int:
    line = sys.stdin.readline()
    if not line.strip():
        raise Over
    return int(line)


def by_processes(turns: Turns, count: int, make: Callable[..., Callable[[int], Any]], *arguments: Any) -> None:
    """Takes a side's turns with several processes, which begin each turn together.

    What is told of a turn is the seconds of all their steps, and as ``lockstep`` of the longer of those that are taken at once.

    Args:
        turns: The side's.
        count: How many processes.
        make: Given the number of a process and `arguments`, returns what runs a step.
        arguments: They are pickled.

    Raises:
        RuntimeError: A process has failed.
    """
    context = get_context("spawn")
    told, waits = context.Queue(), [context.Queue() for _ in range(count)]
    processes = [
        context.Process(target=_member, args=(number, waits[number], told, make, arguments), daemon=True)
        for number in range(count)
    ]
    for process in processes:
        process.start()
    try:
        turns.tell(_together(told, processes))
        while True:
            steps = turns.wait()
            for wait in waits:
                wait.put(steps)
            turns.tell(_together(told, processes))
    except Over:
        for wait in waits:
            wait.put(None)
        for process in processes:
            process.join()


def _member(number: int, wait: Any, told: Any, make: Callable[..., Callable[[int], Any]], arguments: Any) -> None:
    def next_turn() -> int:
        steps: int | None = wait.get()
        if steps is None:
            raise Over
        return steps

    step = make(number, *arguments)
    with contextlib.suppress(Over):
        for at in Turns(next_turn, lambda found: told.put((number, found["seconds"]))).steps():
            step(at)


def _together(told: Any, processes: Sequence[Any]) -> Found:
    """Returns what all processes say of a turn."""
    each: dict[int, list[float]] = {}
    while len(each) < len(processes):
        try:
            number, seconds = told.get(timeout=0.5)
        except Empty:
            if failed := [process.exitcode for process in processes if process.exitcode]:
                raise RuntimeError(f"a process of this side ended with {failed[0]}") from None
        else:
            each[number] = seconds
    return {
        "seconds": [one for seconds in each.values() for one in seconds],
        "lockstep": [*map(max, zip(*each.values(), strict=True))],
    }


class Side:
    """A side, as it is seen by who gives turns. It stands still except in its turns.

    Args:
        function: Of a suite; it is given `arguments`, which go through JSON, and its turns.
        arguments: For it.

    Attributes:
        ready: What it says when it waits for its first turn.

    Raises:
        RuntimeError: It fails; its last words are in the message.
    """

    def __init__(self, function: Callable[..., None], *arguments: Any) -> None:
        self._name, self._errors = f"{function.__module__}.{function.__name__}", tempfile.TemporaryFile("w+")  # noqa: SIM115
        program = program_of(function, "from benchmarks.turns import Turns", "function(*arguments, Turns.of_process())")
        self._process = subprocess.Popen(
            [sys.executable, "-c", program, json.dumps(arguments)], text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors,
        )  # fmt: skip
        try:
            self.ready = self._answer()
            self._each(psutil.Process.suspend)
        except BaseException:
            self.close()
            raise

    def take(self, steps: int) -> Found:
        """Lets it take a turn of so many timed steps."""
        self._each(psutil.Process.resume)
        try:
            assert self._process.stdin is not None
            self._process.stdin.write(f"{steps}\n")
            self._process.stdin.flush()
            return self._answer()
        except BrokenPipeError:
            raise self._failed() from None
        finally:
            self._each(psutil.Process.suspend)

    def close(self) -> None:
        """Lets it end, and ends what does not."""
        self._each(psutil.Process.resume)
        started = self._all()
        with contextlib.suppress(BrokenPipeError):
            assert self._process.stdin is not None
            self._process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_PATIENCE)
        for process in started:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()
        self._errors.close()

    def __enter__(self) -> Side:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _answer(self) -> Found:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith(_MARK):
                found: Found = json.loads(line[len(_MARK) :])
                return found
        raise self._failed()

    def _failed(self) -> RuntimeError:
        code = self._process.wait()
        self._errors.seek(0)
        return failure(self._name, self._errors.read(), code)

    def _each(self, what: Callable[[psutil.Process], None]) -> None:
        for process in self._all():
            with contextlib.suppress(psutil.NoSuchProcess):
                what(process)

    def _all(self) -> list[psutil.Process]:
        """Returns its process and all that came from it."""
        try:
            first = psutil.Process(self._process.pid)
            return [first, *first.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []


def in_turns(
    sides: Mapping[str, Sequence[Any]], steps: int, tell: Callable[[int, int, str], None]
) -> tuple[dict[str, Found], dict[str, Found]]:
    """Lets sides take turns until each has timed so many steps.

    Args:
        sides: By name: a function of a suite, and its arguments.
        steps: Timed steps of each side.
        tell: Told how many turns are done, of how many, and whose comes now.

    Returns:
        What each said when it was ready, and what it said of all turns.
    """
    with contextlib.ExitStack() as stack:
        alive: dict[str, Side] = {}
        for name, (function, *arguments) in sides.items():
            tell(len(alive), len(sides), f"starting {name}")
            alive[name] = stack.enter_context(Side(function, *arguments))
        slowest = max(max(side.ready["seconds"]) for side in alive.values())
        most = max(1, int(SECONDS / slowest))
        found: dict[str, Found] = {name: {} for name in alive}
        turns = -(-steps // most)
        for turn in range(turns):
            timed = min(most, steps - turn * most)
            # There and back, so that a machine that becomes slower and slower favours nobody.
            for at, name in enumerate(alive if turn % 2 == 0 else reversed(alive)):
                tell(turn * len(alive) + at, turns * len(alive), name)
                for what, seconds in alive[name].take(timed).items():
                    found[name].setdefault(what, []).extend(seconds)
        return {name: side.ready for name, side in alive.items()}, found
