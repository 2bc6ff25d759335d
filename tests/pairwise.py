"""Combinations of options in which any two values of two options come together."""

from __future__ import annotations

import itertools
from typing import Any


def pairwise(factors: dict[str, tuple[Any, ...]]) -> list[dict[str, Any]]:
    """Returns combinations in which any two values of two factors come together once: each the one with most pairs that are new."""
    names = list(factors)
    places = [range(len(values)) for values in factors.values()]
    new = {
        ((i, a), (j, b)) for (i, p), (j, q) in itertools.combinations(enumerate(places), 2) for a in p for b in q
    }  # fmt: skip
    chosen = []
    everything = list(itertools.product(*places))
    while new:
        best = max(everything, key=lambda each: len(new.intersection(itertools.combinations(enumerate(each), 2))))
        new.difference_update(itertools.combinations(enumerate(best), 2))
        chosen.append({name: factors[name][value] for name, value in zip(names, best, strict=True)})
    return chosen


def require_all_pairs(combinations: list[dict[str, Any]], factors: dict[str, tuple[Any, ...]]) -> None:
    """Asserts that any two values of two factors come together."""
    for (one, some), (other, more) in itertools.combinations(factors.items(), 2):
        assert all(any(each[one] == a and each[other] == b for each in combinations) for a in some for b in more)
