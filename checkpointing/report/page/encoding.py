"""What the page's script reads: drawn data as JSON, columns of numbers as differences from one to the next."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

from checkpointing.report.data import PHASES
from checkpointing.report.page.drawn import Drawn, DrawnRank
from checkpointing.report.page.points import PASSING, Points
from framework.memory import CATEGORIES


def embedded(drawn: Drawn) -> str:
    """Returns the JSON of drawn data, fit to stand inside of a script element.

    Lines that follow each other are alike, so differences are short, most of them one digit. `decode.js` is the reverse.
    """
    text = json.dumps(encoded(drawn), separators=(",", ":"), ensure_ascii=False)
    # Nothing in it can end the element, or begin a comment in it.
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def encoded(drawn: Drawn) -> dict[str, Any]:
    """Returns drawn data in values of JSON."""
    return {
        "categories": [*CATEGORIES, PASSING],
        "phases": list(PHASES),
        "ranks": [_rank(rank) for rank in drawn.ranks],
        "frontier": asdict(drawn.frontier),
        "cells": asdict(drawn.cells),
    }


def _rank(rank: DrawnRank) -> dict[str, Any]:
    return {
        "rank": rank.rank,
        "words": rank.words,
        "predicted": _points(rank.predicted),
        "measured": None if rank.measured is None else _measured(rank.predicted, rank.measured),
        "process": None if rank.process is None else asdict(rank.process),
    }


def _measured(predicted: Points, measured: Points) -> dict[str, Any]:
    """Only the times where the bytes are as predicted, as they should be."""
    if replace(measured, starts=predicted.starts, ends=predicted.ends) == predicted:
        return {"as_predicted": True, "starts": differences(measured.starts), "ends": differences(measured.ends)}
    return _points(measured)


def _points(points: Points) -> dict[str, Any]:
    return {
        "operations": points.operations,
        "stride": points.stride,
        "at": differences(points.at),
        "labels": _indexed(points.labels),
        "layers": _indexed(points.layers),
        "phases": _indexed(points.phases),
        "shards": differences(points.shards),
        "recomputed": "".join("01"[each] for each in points.recomputed),
        "starts": differences(points.starts),
        "ends": differences(points.ends),
        "live": differences(points.live),
        "inside": differences(points.inside),
        "categories": points.categories,
        "stacks": [differences(stack) for stack in points.stacks],
        "holders": points.holders,
        "changes": [[number for change in changes for number in change] for changes in points.changes],
        "peak": points.peak,
    }


def differences(values: Sequence[int]) -> list[int]:
    """Returns the first value, and of each other by how much it is larger than the one before.

    >>> differences([5, 7, 7, 4])
    [5, 2, 0, -3]
    """
    return [value - before for before, value in zip((0, *values), values, strict=False)]


def _indexed(texts: Sequence[str]) -> dict[str, Any]:
    """Texts that repeat, each once, and for each place which one it is."""
    order = {text: number for number, text in enumerate(dict.fromkeys(texts))}
    return {"texts": list(order), "at": [order[text] for text in texts]}
