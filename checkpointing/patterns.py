"""Naming steps by patterns: by the kind of their layer or by their path, as "Linear" or "block*.mlp.*"."""

from __future__ import annotations

import re
from collections.abc import Sequence
from fnmatch import fnmatchcase

from checkpointing.costs import Costs

#: Kinds of layers whose forward is mostly matrix products: they take most of the time, and their outputs are no larger than others'.
PRODUCTS = ("Linear", "Conv2d", "Attention", "CausalAttention", "LSTMChunk")


def matching(costs: Costs, patterns: Sequence[str]) -> frozenset[int]:
    """Returns the steps that some patterns name.

    A pattern names a step if it matches the kind of its layer, its path, or the path of a composite that it is in; ``*`` stands for any
    letters, dots included, ``?`` for one, and upper and lower case differ.

    Raises:
        ValueError: A pattern names no step; the message lists kinds and paths.
    """
    found: set[int] = set()
    for pattern in patterns:
        steps = {number for number, step in enumerate(costs.steps) if _matches(pattern, step.kind, step.path)}
        if not steps:
            kinds = ", ".join(dict.fromkeys(step.kind for step in costs.steps))
            # Equal blocks have a number each: one line for all of them.
            paths = ", ".join(dict.fromkeys(re.sub(r"\d+", "*", step.path) for step in costs.steps))
            raise ValueError(
                f"the pattern {pattern!r} names no step of this chain. Its kinds: {kinds}. Its paths: {paths}"
            )
        found |= steps
    return frozenset(found)


def _matches(pattern: str, kind: str, path: str) -> bool:
    return fnmatchcase(kind, pattern) or fnmatchcase(path, pattern) or fnmatchcase(path, f"{pattern}.*")
