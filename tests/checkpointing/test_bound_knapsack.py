"""Covering knapsacks of several moments: by all choices, in exact units and in coarse ones, whatever the moments have in common."""

from __future__ import annotations

import itertools
import math
import random

import numpy as np
import pytest

from checkpointing import bound_knapsack
from checkpointing.bound_knapsack import Knapsacks
from framework.memory import Array


def drawn(draw: random.Random, largest: int) -> list[tuple[Array, Array]]:
    """Moments of up to seven items: each has some of those before, in their order, and others."""
    items: list[tuple[int, float]] = []
    moments = []
    for _ in range(8):
        items = items[: draw.randint(0, len(items))]
        items += [(draw.randint(1, largest), float(draw.randint(0, 9))) for _ in range(draw.randint(0, 7 - len(items)))]
        nbytes, seconds = zip(*items, strict=True) if items else ((), ())
        moments.append((np.array(nbytes, np.int64), np.array(seconds)))
    return moments


def by_all_choices(nbytes: Array, seconds: Array, over: int) -> float:
    """The least seconds of items with so many bytes; all of them where these have fewer."""
    over, best = min(over, int(nbytes.sum())), math.inf
    for chosen in itertools.product((False, True), repeat=len(nbytes)):
        if nbytes[list(chosen)].sum() >= over:
            best = min(best, float(seconds[list(chosen)].sum()))
    return best


def test_the_least_seconds_are_those_of_all_choices() -> None:
    draw = random.Random(1)
    for _ in range(6):
        moments = drawn(draw, 20)
        found = Knapsacks(moments)
        tables = [(found.table(*moment), moment) for moment in moments]
        for table, moment in tables:
            for over in range(int(moment[0].sum()) + 3):
                assert found.least(table, over) == by_all_choices(*moment, over)


def test_coarse_units_never_say_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bound_knapsack, "UNITS", 40)
    draw, less, same = random.Random(2), 0, 0
    for _ in range(6):
        moments = drawn(draw, 10**6)
        found = Knapsacks(moments)
        for moment in moments:
            table = found.table(*moment)
            assert len(table) <= 40 + 7 + 1
            for _ in range(20):
                over = draw.randint(0, 10**7)
                told, exact = found.least(table, over), by_all_choices(*moment, over)
                assert told <= exact
                less, same = less + (told < exact), same + (told == exact)
    assert less > 0
    assert same > less


def test_no_items_take_no_time() -> None:
    nothing = np.empty(0, np.int64), np.empty(0)
    found = Knapsacks([nothing])
    assert found.least(found.table(*nothing), 100) == 0.0
    assert Knapsacks([]).table(*nothing).tolist() == [0.0]
