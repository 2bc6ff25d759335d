"""Reports as JSON, written and read: docs/reports.md has the schema."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, fields
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from checkpointing.json_fields import Fields, Read, flag, listed, mapped, nullable, seconds, shown, text, whole
from checkpointing.report import timeline_json
from checkpointing.report.columns import column, written
from checkpointing.report.data import (
    SCHEMA,
    VERSION,
    Drawing,
    FrontierPoint,
    LayerRow,
    PolicyRow,
    Process,
    Rank,
    Report,
)
from framework.durable import write_all, written_aside


def to_json(report: Report) -> dict[str, Any]:
    """Returns a report as JSON-ready data."""
    return {
        "schema": SCHEMA,
        "version": VERSION,
        **{field.name: getattr(report, field.name) for field in fields(Report)},
        "advice": list(report.advice),
        "ranks": list(map(_written_rank, report.ranks)),
        "layers": _written_rows(report.layers),
        "policies": _written_rows(report.policies),
        "frontier": _written_rows(report.frontier),
        "drawing": _written_drawing(report.drawing),
    }


def from_json(data: Any) -> Report:
    """Reads what `to_json` wrote.

    Raises:
        ValueError: It is no report of this version; the message says where, what was received, and what to write.
    """
    found = Fields(data, "the report")
    schema, version = found.take("schema", _any, None), found.take("version", _any, None)
    if (schema, version) != (SCHEMA, VERSION):
        raise ValueError(
            f"expected {SCHEMA!r} version {VERSION}, but got {shown(schema)} version {shown(version)}; make the report again with this "
            "version of Retape"
        )
    report = Report(
        title=found.take("title", text),
        advice=found.take("advice", listed(text)),
        model=found.take("model", text),
        policy=found.take("policy", text),
        costs=found.take("costs", text),
        budget=found.take("budget", nullable(whole)),
        ranks=found.take("ranks", listed(_rank)),
        layers=found.take("layers", listed(_row(LayerRow, _LAYER))),
        policies=found.take("policies", listed(_row(PolicyRow, _POLICY))),
        frontier=found.take("frontier", listed(_row(FrontierPoint, _POINT))),
        drawing=found.take("drawing", _drawing),
        configuration=found.take("configuration", mapped(_any)),
        machine=found.take("machine", mapped(_any)),
        versions=found.take("versions", mapped(text)),
        failure=found.take("failure", text),
    )
    found.close()
    if not report.ranks:
        raise ValueError("ranks of the report must have at least one, but is empty")
    return report


def dumps(report: Report) -> str:
    """Returns a report as the text of a JSON file."""
    return json.dumps(to_json(report), allow_nan=False, ensure_ascii=False, separators=(",", ":")) + "\n"


def save(report: Report, path: Path) -> None:
    """Writes a report as a JSON file, which appears whole or not at all."""
    with written_aside(path) as descriptor:
        write_all(descriptor, dumps(report).encode())


def load(path: Path | str) -> Report:
    """Reads a JSON file that `save` wrote.

    Raises:
        FileNotFoundError: There is none.
        ValueError: It is no report of this version, or damaged.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no report {path}; scripts/profile_memory.py --out {path} makes one")
    try:
        data = json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path} is no JSON file: {error}") from error
    try:
        return from_json(data)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _any(value: Any, where: str) -> Any:
    return value


def _whole_or_negative(value: Any, where: str) -> int:
    if type(value) is not int:
        raise ValueError(f"{where} must be a whole number, but is {shown(value)}")
    return value


def _one_of(*known: str) -> Read[str]:
    def read(value: Any, where: str) -> str:
        if value not in known:
            raise ValueError(f"{where} must be one of {', '.join(map(repr, known))}, but is {shown(value)}")
        return str(value)

    return read


def _row(kind: type[Any], reads: dict[str, Read[Any]]) -> Callable[[Any, str], Any]:
    """Returns how to read a row of a table, of which all fields are there."""

    def read(value: Any, where: str) -> Any:
        found = Fields(value, where)
        row = kind(**{name: found.take(name, each) for name, each in reads.items()})
        found.close()
        return row

    return read


def _written_rows(rows: tuple[Any, ...]) -> list[dict[str, Any]]:
    return [_lists(asdict(row)) for row in rows]


def _lists(row: dict[str, Any]) -> dict[str, Any]:
    return {name: list(value) if isinstance(value, tuple) else value for name, value in row.items()}


_LAYER: dict[str, Read[Any]] = {
    "path": text,
    "kind": text,
    "output_shape": listed(whole),
    **dict.fromkeys(("parameters", "output", "residuals", "workspace", "flops"), whole),
    "forward_seconds": seconds,
    "backward_seconds": seconds,
    "kept": _one_of("kept", "in part", "recomputed"),
    "forwards": whole,
}
_POLICY: dict[str, Read[Any]] = {
    "policy": text,
    "budget": nullable(whole),
    "predicted_peak": whole,
    "predicted_seconds": seconds,
    "ledger_peak": nullable(whole),
    "rss_peak": nullable(whole),
    "step_seconds": nullable(seconds),
    "bound_seconds": seconds,
    "chosen": flag,
    "error": nullable(text),
}
_POINT: dict[str, Read[Any]] = {"budget": whole, "seconds": seconds, "bound_seconds": seconds, "policy": text}
_PROCESS: dict[str, Read[Any]] = {
    **dict.fromkeys(("rss", "engine", "interpreter", "ray"), whole),
    "unexplained": _whole_or_negative,
    "by_step": listed(whole),
    "predicted": nullable(whole),
}
_process = _row(Process, _PROCESS)


def _written_rank(rank: Rank) -> dict[str, Any]:
    return {
        "rank": rank.rank,
        "node": rank.node,
        "predicted": timeline_json.written(rank.predicted),
        "measured": None if rank.measured is None else timeline_json.written(rank.measured, rank.predicted),
        "step": rank.step,
        "process": None if rank.process is None else _lists(asdict(rank.process)),
    }


def _rank(value: Any, where: str) -> Rank:
    found = Fields(value, where)
    predicted = found.take("predicted", timeline_json.read)
    rank = Rank(
        found.take("rank", whole),
        found.take("node", text),
        predicted,
        found.take("measured", nullable(lambda value, where: timeline_json.read(value, where, predicted))),
        found.take("step", nullable(whole)),
        found.take("process", nullable(_process)),
    )
    found.close()
    return rank


def _written_drawing(drawing: Drawing) -> dict[str, Any]:
    """Of what is held only changes are written: for each operation, steps and their new digits."""
    rows = [np.frombuffer(row.encode("ascii"), np.uint8) for row in ("0" * len(drawing.steps), *drawing.held)]
    changes = [
        tuple((int(step), int(after[step]) - ord("0")) for step in np.flatnonzero(before != after))
        for before, after in pairwise(rows)
    ]
    return {
        "steps": list(drawing.steps),
        "labels": written(drawing.labels),
        "held": written(changes, lambda row: [number for pair in row for number in pair]),
        "running": written(drawing.running, lambda each: None if each is None else list(each)),
    }


def _drawing(value: Any, where: str) -> Drawing:
    found = Fields(value, where)
    steps = found.take("steps", listed(text))
    labels = found.take("labels", column(text))
    changes = found.take("held", column(timeline_json.pairs(len(steps))))
    running = found.take("running", column(nullable(_running)))
    found.close()
    if not len(labels) == len(changes) == len(running):
        raise ValueError(
            f"columns of {where} must be equally long, but there are {len(labels)} labels, {len(changes)} of held and {len(running)} of running"
        )
    row = ["0"] * len(steps)
    held = []
    for each in changes:
        for step, digit in each:
            if not 0 <= digit <= 3:
                raise ValueError(f"held of {where} has digits from 0 to 3, but step {step} has {digit}")
            row[step] = str(digit)
        held.append("".join(row))
    return Drawing(steps, labels, tuple(held), running)


def _running(value: Any, where: str) -> tuple[int, str]:
    if not isinstance(value, list) or len(value) != 2:
        raise ValueError(f"{where} must be a list of a step and 'F', 'R' or 'B', but is {shown(value)}")
    return whole(value[0], where), _one_of("F", "R", "B")(value[1], where)
