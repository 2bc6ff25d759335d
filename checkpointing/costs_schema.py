"""The JSON form of costs: docs/costs.md explains the schema to those who profile a chain elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from checkpointing import json_fields as fields_of
from checkpointing.json_fields import Fields, flag, flops, listed, mapped, nbytes, nullable, shown, spec, text, whole
from framework.layers import BATCH, Extent, Footprint, Spec
from framework.losses import LossFootprint
from framework.memory import CATEGORIES

if TYPE_CHECKING:
    from checkpointing.costs import Costs

FORMAT, VERSION = "retape.costs", 1


@dataclass(frozen=True)
class Read:
    """What was read.

    Attributes:
        steps: The fields of each `StepCost`.
        whole: The other fields of `Costs`.
        source: Where times were measured.
        seconds: Forward and backward of each step; None where nothing was measured.
        loss_seconds: Of the loss.
    """

    steps: tuple[dict[str, Any], ...]
    whole: dict[str, Any]
    source: str
    seconds: tuple[tuple[float, ...], ...] | None
    loss_seconds: tuple[float, ...]


def written(costs: Costs) -> dict[str, Any]:
    """Returns costs as JSON-ready data."""
    times = costs.times
    steps = []
    for number, step in enumerate(costs.steps):
        told = {
            "path": step.path,
            "kind": step.kind,
            "inputs": list(step.inputs),
            "stage": step.stage,
            "trains": step.trains,
            "wanted": list(step.wanted),
            "gradient_nbytes": step.gradient_nbytes,
            "footprint": _plain(step.footprint),
        }
        steps.append(told | ({"seconds": list(times.steps[number])} if times else {}))
    loss = _plain(costs.loss) | ({"seconds": list(times.loss)} if times else {})
    return {
        "format": FORMAT,
        "version": VERSION,
        **({"measured": times.source} if times else {}),
        "batch": _spec(costs.batch),
        "targets": _spec(costs.targets),
        **({"weights": _spec(costs.weights)} if costs.weights else {}),
        "steps": steps,
        "loss": loss,
        "gradient_nbytes": costs.gradient_nbytes,
        "norm_workspace": costs.norm_workspace,
        "update_workspace": costs.update_workspace,
        "static": dict(costs.static),
        "disk_bandwidth": costs.disk_bandwidth,
    }


def read(data: Any) -> Read:
    """Reads JSON data of costs.

    Raises:
        ValueError: It is no such data; the message says where, what was received, and what to write.
    """
    costs = Fields(data, "the costs")
    form, version = costs.take("format", _any, None), costs.take("version", _any, None)
    if form != FORMAT or version != VERSION:
        raise ValueError(
            f"costs are {FORMAT!r} version {VERSION}, but these are {shown(form)} version {shown(version)}; write the fields 'format' and "
            "'version' as docs/costs.md has them, or make the file again"
        )
    found = costs.take("steps", _steps)
    if not found:
        raise ValueError("the costs have no steps; a chain has at least one")
    _require_chain([step for step, _ in found])
    loss, loss_seconds = costs.take("loss", _loss, (LossFootprint(), None))
    measured = [seconds for _, seconds in found] + [loss_seconds]
    source = costs.take("measured", text, "")
    if None in measured and (source or any(pair is not None for pair in measured)):
        lacking = [step["path"] for step, seconds in found if seconds is None] + ["loss"] * (loss_seconds is None)
        raise ValueError(
            f"times were measured of all steps and the loss, or of nothing, but {lacking[0]!r} has no 'seconds'"
            f"{f' (nor have {len(lacking) - 1} more)' if len(lacking) > 1 else ''}; write [forward, backward], or leave all away and 'measured'"
        )
    rest: dict[str, Any] = {
        "batch": costs.take("batch", spec),
        "targets": costs.take("targets", spec),
        "weights": costs.take("weights", spec, None),
        "loss": loss,
        **{name: costs.take(name, nbytes, 0) for name in ("gradient_nbytes", "norm_workspace", "update_workspace")},
        "static": costs.take("static", mapped(nbytes), {}),
    }
    if (bandwidth := costs.take("disk_bandwidth", _bandwidth, None)) is not None:
        rest["disk_bandwidth"] = bandwidth
    costs.close()
    _require_arrays([step for step, _ in found], rest["batch"])
    of_steps = sum(step["gradient_nbytes"] for step, _ in found)
    if of_steps > rest["gradient_nbytes"]:
        raise ValueError(
            f"gradient_nbytes of the steps are {of_steps} in all, but those of the costs, which are all cotangents of parameters, are "
            f"{rest['gradient_nbytes']}"
        )
    for name in rest["static"]:
        if name.partition("/")[0] not in CATEGORIES or "/" not in name:
            raise ValueError(
                f"static bytes are named 'category/owner', but one is {name!r}; the categories are {', '.join(CATEGORIES)}"
            )
    seconds = None if None in measured else tuple(pair for pair in measured[:-1] if pair is not None)
    return Read(tuple(step for step, _ in found), rest, source or "elsewhere", seconds, loss_seconds or ())


def _steps(value: Any, where: str) -> list[tuple[dict[str, Any], tuple[float, ...] | None]]:
    each: tuple[Any, ...] = listed(_any)(value, where)
    return [_step(data, number) for number, data in enumerate(each)]


def _step(data: Any, number: int) -> tuple[dict[str, Any], tuple[float, ...] | None]:
    path = Fields(data, f"step {number}").take("path", text)
    step = Fields(data, f"step {path!r}")
    inputs: tuple[int, ...] = step.take("inputs", listed(_input), (number - 1,))
    if not inputs or any(source >= number for source in inputs):
        raise ValueError(
            f"inputs of step {path!r} must name steps before it, 0 to {number - 1}, or the batch, {BATCH}, but are {list(inputs)}"
        )
    wanted: tuple[bool, ...] = step.take("wanted", listed(flag), tuple(source != BATCH for source in inputs))
    found: dict[str, Any] = {
        "path": step.take("path", text),
        "kind": step.take("kind", text, "step"),
        "inputs": inputs,
        "stage": step.take("stage", whole, number),
        "footprint": step.take("footprint", lambda value, where: _footprint(value, where, len(inputs))),
        "trains": step.take("trains", flag, True),
        "wanted": wanted,
        "gradient_nbytes": step.take("gradient_nbytes", nbytes, 0),
    }
    seconds = step.take("seconds", _pair, None)
    step.close()
    if len(wanted) != len(inputs):
        raise ValueError(
            f"wanted of step {path!r} must say true or false for each of {len(inputs)} inputs, but is {list(found['wanted'])}"
        )
    return found, seconds


def _footprint(data: Any, where: str, inputs: int) -> Footprint:
    """Reads a footprint; what is left away is what the dataclass has, for each input."""
    read = Fields(data, where)
    each = dict.fromkeys(("needs_input", "cotangent_aliases"), (False,) * inputs)
    found: dict[str, Any] = {"output": read.take("output", spec), "own": read.take("own", listed(spec), ())}
    found |= {name: read.take(name, listed(flag), default) for name, default in each.items()}
    found["cotangent_extents"] = read.take("cotangent_extents", listed(nullable(_extent)), ())
    found |= _counts_and_flags(Footprint, read)
    read.close()
    for name in (*each, "cotangent_extents"):
        if len(found[name]) != inputs and (name in each or found[name]):
            raise ValueError(
                f"{name} of {where} must have an element for each of {inputs} inputs, but has {len(found[name])}"
            )
    return Footprint(**found)


def _loss(data: Any, where: str) -> tuple[LossFootprint, tuple[float, ...] | None]:
    read = Fields(data, "the loss")
    found: dict[str, Any] = {"own": read.take("own", listed(spec), ())}
    found |= _counts_and_flags(LossFootprint, read)
    seconds = read.take("seconds", _pair, None)
    read.close()
    return LossFootprint(**found), seconds


def _counts_and_flags(kind: type, read: Fields) -> dict[str, Any]:
    """Takes the fields of a dataclass that are bytes, FLOPs, or true or false, by their defaults."""
    found: dict[str, Any] = {}
    for each in fields(kind):
        if type(each.default) is int:
            found[each.name] = read.take(each.name, flops if each.name.endswith("flops") else nbytes, each.default)
        elif type(each.default) is bool and each.name not in found:
            found[each.name] = read.take(each.name, flag, each.default)
    return found


def _require_chain(steps: Sequence[dict[str, Any]]) -> None:
    """Raises unless paths differ and stages follow each other without a gap."""
    paths: set[str] = set()
    stage = -1
    for step in steps:
        if step["path"] in paths:
            raise ValueError(f"two steps have the path {step['path']!r}; paths name steps, so let them differ")
        paths.add(step["path"])
        if step["stage"] not in (stage, stage + 1) or step["stage"] < 0:
            raise ValueError(
                f"stages are numbered from 0 on in the order of steps, but after {'none' if stage < 0 else stage} step {step['path']!r} has {step['stage']}; "
                "write a number for each group of steps that recomputation takes as one, or leave 'stage' away for one a step"
            )
        stage = step["stage"]


def _require_arrays(steps: Sequence[dict[str, Any]], batch: Spec) -> None:
    """Raises where a footprint calls arrays parts of each other, or the same, that by their shapes cannot be."""
    for step in steps:
        footprint, where = step["footprint"], f"of footprint of step {step['path']!r}"
        made = footprint.output
        for number, source in enumerate(step["inputs"]):
            x = batch if source == BATCH else steps[source]["footprint"].output
            extent, told = footprint.extent(number), f"input {number}, {x}"
            if extent is not None and not (
                extent.axis < len(x.shape) and extent.start <= extent.stop <= x.shape[extent.axis]
            ):
                raise ValueError(f"cotangent_extents {where} must be a part of {told}, but has {list(extent)}")
            if footprint.cotangent_aliases[number] and x.nbytes != made.nbytes:
                raise ValueError(
                    f"cotangent_aliases {where} says that the cotangent of {told}, is that of the output, {made}; they differ in bytes"
                )
            for name in ("forward_in_place", "backward_in_place"):
                if number == 0 and getattr(footprint, name) and x.nbytes != made.nbytes:
                    raise ValueError(
                        f"{name} {where} says that {told}, and the output, {made}, lie in one place; they differ in bytes"
                    )


def _input(value: Any, where: str) -> int:
    if type(value) is not int or value < BATCH:
        raise ValueError(f"{where} must be the number of a step, or {BATCH} for the batch, but is {shown(value)}")
    return value


def _extent(value: Any, where: str) -> Extent:
    axis, *part = listed(whole)(value, where)
    if len(part) != 2:
        raise ValueError(f"{where} must be [axis, start, stop], but is {shown(value)}")
    return Extent(axis, *part)


def _pair(value: Any, where: str) -> tuple[float, ...]:
    pair = listed(fields_of.seconds)(value, where)
    if len(pair) != 2:
        raise ValueError(f"{where} must be two, [forward, backward], but is {shown(value)}")
    return pair


def _bandwidth(value: Any, where: str) -> int:
    if whole(value, where) == 0:
        raise ValueError(f"{where} must be bytes a second, a whole number from 1, but is 0")
    return int(value)


def _any(value: Any, where: str) -> Any:
    return value


def _spec(x: Spec) -> dict[str, Any]:
    return {"shape": list(x.shape), "dtype": x.dtype.name}


def _plain(footprint: Footprint | LossFootprint) -> dict[str, Any]:
    """A footprint's fields, specs as shape and dtype; those that are as by default are left away."""
    told = {}
    for each in fields(footprint):
        value = getattr(footprint, each.name)
        if value != each.default:
            told[each.name] = _written(value)
    return told


def _written(value: Any) -> Any:
    if isinstance(value, Spec):
        return _spec(value)
    return [_written(inner) for inner in value] if isinstance(value, tuple) else value
