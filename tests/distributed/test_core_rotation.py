"""Ranks that change cores: who is where when, that nothing of it stays, and when they are to stay."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from checkpointing.plan import PARTS
from distributed import RunFolder, Trainer, core_rotation
from distributed.collectives.spread import Spread
from distributed.core_rotation import GAIN, HORIZON, CoreRotation, Lags, cores_to_change
from distributed.worker_actor import WorkerActor
from framework import Chain, CrossEntropy, Linear
from framework.data import clusters

CORES = sorted(os.sched_getaffinity(0))
several = pytest.mark.skipif(len(CORES) < 2, reason="one core")


def nobody() -> dict[int, int]:
    raise AssertionError("nobody is to look")


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
    rotation = CoreRotation(threads, cores, nobody, refuse)
    for turn in range(1, count + 2):
        rotation.change()
        while len(moves) < 2 * count * turn:
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


def step_of(speeds: Sequence[float], lags: Lags | None, start: int = 0, looks: int = 200) -> tuple[float, int]:
    """Runs a step of ranks of which each is on a core with such a speed; the others wait for the last.

    Returns:
        By how much of a step the first and the last were apart when the first had ended, and how often they changed cores.
    """
    done, turn = [0.0] * len(speeds), 0
    while max(done) < 1:
        for at in range(len(speeds)):
            done[at] = min(1.0, done[at] + speeds[(at + turn) % len(speeds)] / looks)
        if lags is not None:
            turn += lags.ask_for_change({at: (start * PARTS) + int(PARTS * each) for at, each in enumerate(done)})
    return max(done) - min(done), turn


@given(st.lists(st.floats(0.7, 1.0), min_size=2, max_size=2))
def test_two_ranks_on_cores_of_any_speeds_end_their_steps_together(speeds: list[float]) -> None:
    staying, _ = step_of(speeds, None)
    lags = Lags(2)
    for step in range(3):
        apart, changes = step_of(speeds, lags, step)
        # Over a quarter of a step a change gains half of what they would be apart by in the whole step, and has to gain GAIN.
        assert apart <= max(2 * GAIN, staying / 8)
        assert changes > 0 or staying < 2.1 * GAIN
        assert changes <= 3


@given(st.lists(st.floats(0.7, 1.0), min_size=3, max_size=5))
def test_more_ranks_are_closer_in_the_end_than_if_they_stayed(speeds: list[float]) -> None:
    staying, _ = step_of(speeds, None)
    assert step_of(speeds, Lags(len(speeds)))[0] <= staying + GAIN


def test_ranks_change_when_they_will_just_be_abreast_at_the_horizon() -> None:
    lags, slow = Lags(2), 0.9
    changed = [
        passed
        for passed in range(1, 100)
        if lags.ask_for_change({0: PARTS * passed // 100, 1: round(slow * PARTS * passed / 100)})
    ]
    assert changed[0] == pytest.approx(100 * HORIZON, abs=3)


def test_the_first_look_of_a_step_forgets_the_step_before() -> None:
    lags = Lags(2)
    assert not lags.ask_for_change({0: PARTS // 50, 1: 0}), "too early to know the speeds"
    assert lags.ask_for_change({0: PARTS // 3, 1: PARTS // 4})
    assert not lags.ask_for_change({0: PARTS, 1: PARTS - PARTS // 9}), "the first has ended its step"
    assert not lags.ask_for_change({0: PARTS + PARTS // 3, 1: PARTS + PARTS // 3 - PARTS // 200}), "too little"
    assert lags.ask_for_change({0: PARTS + PARTS // 2, 1: PARTS + PARTS // 2 - PARTS // 9})


def test_a_lag_in_short_steps_is_shorter_than_a_change() -> None:
    lags = Lags(2)
    for step in range(7, 500, 7):  # so many have passed between looks
        assert not lags.ask_for_change({0: step * PARTS + PARTS // 3, 1: step * PARTS + PARTS // 5})


def test_a_rank_looks_when_it_tells_its_progress_and_not_each_time() -> None:
    looks, slow = list[int](), 0.8
    word = [0]

    def progress() -> dict[int, int]:
        looks.append(word[0])
        return {0: word[0], 1: int(slow * word[0])}

    def moved(why: str) -> None:
        raise AssertionError(why)

    changes = threading.Event()
    with waiting_threads(2) as threads:
        rotation = CoreRotation(threads, CORES[:1] * 2, progress, moved, period=0.01)
        rotation.change = changes.set  # type: ignore[method-assign]
        watched = rotation.watch(word)
        started = time.monotonic()
        for percent in range(100):
            watched[0] = PARTS * percent // 100
            assert watched[0] == word[0] == PARTS * percent // 100
            time.sleep(0.002)
        passed = time.monotonic() - started
        rotation.close()
    assert 3 <= len(looks) <= passed / 0.01 + 1
    assert changes.is_set()


def test_ranks_with_fewer_shards_than_others_have_time() -> None:
    actor: Any = WorkerActor()
    actor._shared = SimpleNamespace(progress_here=lambda: [5, 6, 9])
    for spread, shards, expected in (
        ([0, 0, 0], 8, {0: 5, 1: 6}),
        ([0, 0, 0], 6, {0: 5, 1: 6, 2: 9}),
        ([0, 0, 0, 1], 5, {0: 5}),
    ):
        actor._task = SimpleNamespace(shards=shards, world=len(spread), rank=0, spread=Spread.of(spread))
        assert actor._progress() == expected


@several
def test_busy_processes_come_to_all_cores_and_nothing_of_it_stays() -> None:
    with busy_processes(len(CORES)) as processes:
        been: dict[int, set[int]] = {process: set() for process in processes}
        rotation = CoreRotation(processes, CORES, nobody, refuse)
        end = time.monotonic() + 30
        for at in itertools.count():
            if all(found == {*CORES} for found in been.values()) or time.monotonic() > end:
                break
            if at % 4 == 0:
                rotation.change()
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
    rotation = CoreRotation([gone, gone], [0, 1], nobody, told.append)
    rotation.change()
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
