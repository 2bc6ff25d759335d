"""Ranks that change cores: who is where when, that nothing of it stays, and when they are to stay."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from checkpointing.plan import PARTS
from distributed import RunFolder, Trainer, core_rotation
from distributed.collectives.spread import Spread
from distributed.core_rotation import BEHIND, CoreRotation, cores_to_change
from distributed.worker_actor import WorkerActor
from framework import Chain, CrossEntropy, Linear
from framework.data import clusters

CORES = sorted(os.sched_getaffinity(0))
several = pytest.mark.skipif(len(CORES) < 2, reason="one core")


def falling_behind() -> list[int]:
    """What ranks tell of whom one falls behind all the time."""
    return [PARTS, 0]


def refuse(why: str) -> None:
    raise AssertionError(why)


@contextmanager
def waiting_threads(count: int) -> Iterator[list[int]]:
    """Yields the native ids of threads that do nothing."""
    end = threading.Event()
    threads = [threading.Thread(target=end.wait) for _ in range(count)]
    for thread in threads:
        thread.start()
    try:
        yield [thread.native_id or 0 for thread in threads]
    finally:
        end.set()
        for thread in threads:
            thread.join()


@contextmanager
def busy_processes(count: int) -> Iterator[list[int]]:
    processes = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield [process.pid for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()


def described(folder: Path, caches: dict[int, str]) -> Path:
    """Returns a folder that describes the first core's caches, by level, as Linux does."""
    for number, (level, cores) in enumerate(caches.items()):
        index = folder / f"cpu{CORES[0]}" / "cache" / f"index{number}"
        index.mkdir(parents=True)
        (index / "level").write_text(f"{level}\n")
        (index / "shared_cpu_list").write_text(f"{cores}\n")
    return folder


@pytest.mark.parametrize("count", [2, 3, 5])
def test_each_rank_has_a_core_of_its_own_at_any_time_and_comes_to_all(
    monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    moves: list[tuple[int, set[int]]] = []
    monkeypatch.setattr(core_rotation, "_move", lambda thread, cores: moves.append((thread, cores)))
    threads, cores = range(100, 100 + count), [*range(7, 7 + count)]
    rotation = CoreRotation(threads, cores, falling_behind, refuse, 0.001)
    while len(moves) < 2 * count * (count + 1):
        time.sleep(0.001)
    rotation.close()
    turns = [moves[at : at + 2 * count] for at in range(0, 2 * count * count, 2 * count)]
    been: dict[int, set[int]] = {thread: set() for thread in threads}
    for turn in turns:
        placed, freed = turn[:count], turn[count:]
        assert sorted(core for _, (core,) in placed) == cores and [thread for thread, _ in placed] == [*threads]
        assert freed == [(thread, {*cores}) for thread in threads]
        for thread, (core,) in placed:
            been[thread].add(core)
    assert all(found == {*cores} for found in been.values())


def test_ranks_change_when_one_is_behind_and_does_not_catch_up(monkeypatch: pytest.MonkeyPatch) -> None:
    little, much = round(0.9 * BEHIND * PARTS), round(1.5 * BEHIND * PARTS)
    told = [
        ((much, 0), True),
        ((much - 1, 0), False),  # it catches up
        ((much - 1, 0), True),
        ((little, 0), False),
        ((little + 1, 0), False),  # falls behind, but is not behind by much
        ((0, little), False),
        ((0, much), True),
        ((1, much), False),
        ((9 * much, 0), True),
        ((100 * PARTS, 99 * PARTS), False),  # many steps have passed since the last look
    ]
    looks, changes = iter(told), list[int]()

    def progress() -> tuple[int, ...]:
        changes.append(0)
        found = next(looks, None)
        if found is None:
            end.set()
            return 0, 0
        return found[0]

    def moved(thread: int, cores: set[int]) -> None:
        changes[-1] += 1

    end = threading.Event()
    monkeypatch.setattr(core_rotation, "_move", moved)
    rotation = CoreRotation([100, 101], [0, 1], progress, refuse, 0.001)
    assert end.wait(10)
    rotation.close()
    assert [count > 0 for count in changes[: len(told)]] == [expected for _, expected in told]


def test_ranks_with_fewer_shards_than_others_have_time() -> None:
    actor: Any = WorkerActor()
    actor._shared = SimpleNamespace(progress_here=lambda: [5, 6, 9])
    for spread, shards, expected in (([0, 0, 0], 8, [5, 6]), ([0, 0, 0], 6, [5, 6, 9]), ([0, 0, 0, 1], 5, [5])):
        actor._task = SimpleNamespace(shards=shards, world=len(spread), rank=0, spread=Spread.of(spread))
        assert actor._progress() == expected


@several
def test_busy_processes_come_to_all_cores_and_nothing_of_it_stays() -> None:
    with busy_processes(len(CORES)) as processes:
        been: dict[int, set[int]] = {process: set() for process in processes}
        rotation = CoreRotation(processes, CORES, falling_behind, refuse, 0.02)
        end = time.monotonic() + 30
        while any(found != {*CORES} for found in been.values()) and time.monotonic() < end:
            for process in processes:
                fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
                been[process].add(int(fields[36]))  # the core it runs on, field 39 of all
            time.sleep(0.005)
        rotation.close()
        assert all(found == {*CORES} for found in been.values())
        assert all(os.sched_getaffinity(process) == {*CORES} for process in processes)


def test_the_rotation_ends_with_words_when_a_rank_is_gone() -> None:
    with busy_processes(1) as (gone,):
        pass
    told: list[str] = []
    rotation = CoreRotation([gone, gone], [0, 1], falling_behind, told.append, 0.001)
    rotation._thread.join(10)
    assert told == [f"ranks change cores no more: [Errno 3] thread {gone} cannot be moved: No such process"]
    rotation.close()


@several
def test_as_many_ranks_of_one_thread_as_cores_that_share_a_cache_change(tmp_path: Path) -> None:
    shares = described(tmp_path / "shares", {1: str(CORES[0]), 3: ",".join(map(str, CORES)), 2: str(CORES[0])})
    apart = described(tmp_path / "apart", {1: str(CORES[0]), 2: str(CORES[0])})
    in_ranges = described(tmp_path / "ranges", {1: str(CORES[0]), 3: f"{CORES[0]}-{CORES[-1] + 8},9999"})
    with waiting_threads(len(CORES)) as threads:
        assert cores_to_change(threads, 1, shares) == CORES
        assert cores_to_change(threads, 1, in_ranges) == CORES
        assert cores_to_change(threads, 1, apart) == []
        assert cores_to_change(threads, 1, tmp_path / "says nothing") == []
        assert cores_to_change(threads, 2, shares) == []
        assert cores_to_change(threads[1:], 1, shares) == []
        assert cores_to_change([*threads, threads[0]], 1, shares) == []
        os.sched_setaffinity(threads[-1], {CORES[0]})
        assert cores_to_change(threads, 1, shares) == [], "somebody has chosen where it runs"


@pytest.mark.parametrize("rotate", [True, False])
def test_workers_change_cores_if_they_may_and_say_so(ray_cluster: None, tmp_path: Path, rotate: bool) -> None:
    Trainer(
        Chain(Linear(10)), CrossEntropy(), data=clusters(128, 8, 10), batch=8, shards=8, steps=2,
        validation_examples=8, workers=2, run_folder=RunFolder(tmp_path / "run"), rotate_cores=rotate,
    ).fit()  # fmt: skip
    alike = len(CORES) == 2 and {*CORES} <= core_rotation._sharing_a_cache(CORES[0], core_rotation._CPUS)
    logs = [(tmp_path / "run" / "logs" / f"rank-{rank}.log").read_text() for rank in range(2)]
    assert ["change cores" in log for log in logs] == [rotate and alike, False]
