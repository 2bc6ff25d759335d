"""Sides of a comparison that take turns: scripts/benchmarks/turns.py."""

from __future__ import annotations

import importlib
import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.scripts.helpers import ROOT

#: Sides, as a suite would have them. Each step is written down with its begin and end.
SIDES = """
import json, os, subprocess, sys, time
from benchmarks.turns import Over, by_processes

def note(path, *what):
    with open(path, "a") as file:
        file.write(json.dumps(what) + "\\n")

def one(name, path, seconds, turns):
    steps = turns.steps()
    try:
        for number in steps:
            started = time.perf_counter()
            time.sleep(seconds)
            note(path, name, number, started, time.perf_counter())
    except Over:
        note(path, name, "over", 0, 0)

def with_a_child(name, path, seconds, turns):
    ticks = "import sys, time, json\\nwhile True:\\n  print(json.dumps(time.perf_counter()), file=open(sys.argv[1], 'a'))\\n  time.sleep(.002)"
    child = subprocess.Popen([sys.executable, "-c", ticks, path + ".ticks"])
    try:
        one(name, path, seconds, turns)
    finally:
        child.kill()
        child.wait()

def failing(turns):
    for number in turns.steps():
        if number == 3:
            raise ArithmeticError("no more of this")

def never_ready(turns):
    raise LookupError("nothing here")

def _member(number, seconds, fails):
    def step(at):
        time.sleep(seconds * (1 + number))
        if fails and number == 1 and at == 4:
            os._exit(7)
    return step

def pair(seconds, fails, turns):
    by_processes(turns, 2, _member, seconds, fails)
"""


@pytest.fixture
def turns(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    return importlib.import_module("benchmarks.turns")


@pytest.fixture
def sides(turns: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    (tmp_path / "sides_in_turns.py").write_text(SIDES)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.invalidate_caches()
    return importlib.reload(importlib.import_module("sides_in_turns"))


def silent(done: int, total: int, words: str) -> None:
    assert 0 <= done < total and words


def lines(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_one_side_at_a_time_takes_steps_and_only_its_processes_run(
    turns: Any, sides: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(turns, "SECONDS", 0.1)
    path, second = tmp_path / "steps", 0.03
    before = set(psutil.Process().children(recursive=True))
    ready, found = turns.in_turns(
        {"a": (sides.one, "a", str(path), second), "b": (sides.with_a_child, "b", str(path), second)}, 7, silent
    )
    assert {name: [*each] for name, each in ready.items()} == {"a": ["seconds"], "b": ["seconds"]}
    assert all(len(each["seconds"]) == 7 and min(each["seconds"]) >= second for each in found.values())
    *steps, _, _ = taken = lines(path)
    assert {tuple(line[:2]) for line in taken if line[1] == "over"} == {("a", "over"), ("b", "over")}
    assert all(end <= start for (*_, end), (_, _, start, _) in pairwise(steps) if start)
    for name in "ab":
        numbers = [number for side, number, *_ in taken if side == name][:-1]
        assert numbers == [*range(len(numbers))]
        rounds = len(numbers) - turns.UNTIMED - 7  # each turn has one step that is not timed
        assert rounds >= 2
    order = [side for side, number, *_ in steps if number != "over"][2 * turns.UNTIMED :]
    changes = 1 + sum(side != after for side, after in pairwise(order))
    assert changes == rounds + 1, "there and back"
    begun = min(start for side, number, start, _ in steps if side == "a" and number == turns.UNTIMED)
    of_a = [(start, end) for side, _, start, end in steps if side == "a" and start >= begun]
    ticks = lines(tmp_path / "steps.ticks")
    assert any(tick > begun for tick in ticks)
    assert not [tick for tick in ticks for start, end in of_a if start <= tick <= end]
    assert set(psutil.Process().children(recursive=True)) == before


def test_several_processes_of_a_side_begin_together(turns: Any, sides: Any) -> None:
    ready, found = turns.in_turns({"pair": (sides.pair, 0.01, False)}, 4, silent)
    assert len(ready["pair"]["seconds"]) == 2
    seconds, lockstep = found["pair"]["seconds"], found["pair"]["lockstep"]
    assert len(seconds) == 8 and len(lockstep) == 4
    assert all(each in seconds and each >= 0.02 for each in lockstep)


@pytest.mark.parametrize(
    ("which", "arguments", "words"),
    [
        ("failing", (), r"sides_in_turns.failing failed in its process: ArithmeticError: no more of this"),
        ("never_ready", (), r"sides_in_turns.never_ready failed in its process: LookupError: nothing here"),
        ("pair", (0.01, True), r"RuntimeError: a process of this side ended with 7"),
    ],
)
def test_a_side_that_fails_ends_all_with_its_last_words(
    turns: Any, sides: Any, tmp_path: Path, which: str, arguments: tuple[Any, ...], words: str
) -> None:
    before = set(psutil.Process().children(recursive=True))
    well = sides.one, "a", str(tmp_path / "steps"), 0.01
    with pytest.raises(RuntimeError, match=words):
        turns.in_turns({"well": well, "bad": (getattr(sides, which), *arguments)}, 20, silent)
    assert set(psutil.Process().children(recursive=True)) == before
