"""Times of steps, measured on this machine: what ranks plans where FLOPs do not tell.

Each leaf step's forward and VJP run on drawn numbers of the shapes that are planned, in a process of its own, whose memory goes with it.
Equal steps (the same layer, input and cotangents) are measured once, and never again on this machine: `timing_cache` remembers them.
"""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, NoReturn

import cloudpickle
import numpy as np
from threadpoolctl import threadpool_limits

from checkpointing import timing_cache
from checkpointing.costs import Costs, Seconds, Times
from framework.keys import Key
from framework.layers import Context, Footprint, Layer, Spec, flatten, input_specs
from framework.losses import Loss
from framework.memory import Allocation, Array, Ledger
from framework.parameters import Layout, Parameters

#: A median is of at least so many runs, and of more until they took so many seconds or there are so many.
LEAST_RUNS, LEAST_SECONDS, MOST_RUNS = 5, 0.05, 50

#: Runs in the child: it finds modules where this process does.
_CHILD = "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from checkpointing.timing import _serve; _serve(int(sys.argv[2]))"

#: Called with how many of how many different steps are known, and the name of the one that is measured next.
Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class StepQuestion:
    """A leaf step to be timed: its layer, the spec of its input (a tuple for several), and which cotangents are wanted (None: no VJP)."""

    layer: Layer
    x: Any
    wanted: tuple[bool, ...] | None

    def text(self) -> str:
        return f"{_words(self.layer)} of {_told(self.x)}, cotangents {_told(self.wanted)}"


@dataclass(frozen=True)
class LossQuestion:
    """A loss to be timed, on outputs and targets of these specs."""

    layer: Loss
    x: Spec
    targets: Spec

    def text(self) -> str:
        return f"{_words(self.layer)} of {self.x}, targets {self.targets}"


Question = StepQuestion | LossQuestion


def measure_times(
    costs: Costs, layer: Layer, loss: Loss, threads: int = 1, progress: Progress | None = None, remember: bool = True
) -> Times:
    """Returns the times of each step of a chain on this machine.

    Args:
        costs: The costs of a shard's training pass, for its specs.
        layer: The model that they are of.
        loss: Its loss.
        threads: Threads of matrix products.
        progress: Told how far it is.
        remember: Whether times are read from the user's cache and written to it; those of layers of one's own never are, since
            their code may change.

    Raises:
        ValueError: A step cannot be sent to the other process, or fails there; the message names it.
        RuntimeError: The other process ended before it answered.
    """
    steps = flatten(layer)
    specs = input_specs(steps, costs.batch)
    questions: list[Question] = [
        StepQuestion(step.layer, x, cost.wanted if cost.trains else None)
        for step, x, cost in zip(steps, specs, costs.steps, strict=True)
    ]
    questions.append(LossQuestion(loss, costs.output(len(steps) - 1), costs.targets))
    names = [*(f"step {step.path!r}" for step in steps), "the loss"]
    payloads = [_payload(question, name) for question, name in zip(questions, names, strict=True)]
    machine = timing_cache.machine(threads)
    known = timing_cache.read(machine) if remember else {}
    found: dict[bytes, Seconds] = {}
    open_: dict[bytes, tuple[Question, str, bytes]] = {}
    for question, name, (key, payload) in zip(questions, names, payloads, strict=True):
        if (seconds := known.get(question.text())) is not None and _cacheable(question.layer):
            found[key] = seconds
        else:
            open_.setdefault(key, (question, name, payload))
    fresh: dict[str, Seconds] = {}
    total = len({key for key, _ in payloads})
    names_left = [name for _, name, _ in open_.values()]
    answers = _ask([payload for _, _, payload in open_.values()], names_left, threads)
    for key, (question, name, _) in open_.items():
        if progress is not None:
            progress(len(found), total, name)
        found[key] = next(answers)
        if _cacheable(question.layer):
            fresh[question.text()] = found[key]
    if progress is not None:
        progress(total, total, "")
    if remember and fresh:
        timing_cache.add(machine, fresh)
    *each, last = (found[key] for key, _ in payloads)
    return Times(timing_cache.told(machine), tuple(each), last)


def _payload(question: Question, name: str) -> tuple[bytes, bytes]:
    """Returns a key that equal questions share, and the question as bytes."""
    try:
        payload = cloudpickle.dumps(question)
    except Exception as error:  # whatever its __reduce__ raises
        raise ValueError(
            f"{name} cannot be timed in another process, since it cannot be pickled ({type(error).__name__}: {error}); plan with modelled "
            "costs, or keep what cannot be pickled out of the layer"
        ) from error
    return hashlib.sha256(payload).digest(), payload


def _cacheable(layer: Layer | Loss) -> bool:
    """Whether a layer and all that it is made of come with Retape, and its text says all of it."""
    parts = [value for value in vars(layer).values() if isinstance(value, Layer | Loss)]
    ours = type(layer).__module__.partition(".")[0] == "framework" and " at 0x" not in _words(layer)
    return ours and all(map(_cacheable, parts))


def _words(layer: Layer | Loss) -> str:
    """A layer with all that it holds."""
    if type(layer).__repr__ is not object.__repr__:
        return repr(layer)
    return f"{type(layer).__name__}({', '.join(f'{name}={value!r}' for name, value in vars(layer).items())})"


def _told(x: Any) -> str:
    return "none" if x is None else ", ".join(map(str, x)) if isinstance(x, tuple) else str(x)


def _ask(payloads: list[bytes], names: Sequence[str], threads: int) -> Iterator[Seconds]:
    """Yields the answers of a fresh process to pickled questions, as they come."""
    if not payloads:
        return
    command = [sys.executable, "-c", _CHILD, json.dumps(sys.path), str(threads)]
    with tempfile.TemporaryFile() as asked, tempfile.TemporaryFile() as words:
        pickle.dump(payloads, asked)
        asked.seek(0)
        with subprocess.Popen(command, stdin=asked, stdout=subprocess.PIPE, stderr=words) as child:
            try:
                assert child.stdout is not None
                for name in names:
                    line = child.stdout.readline()
                    if not line:
                        _died(child.wait(), name, words)
                    answer = json.loads(line)
                    if isinstance(answer, str):
                        raise ValueError(
                            f"{name} fails when it is timed on drawn numbers: {answer}; plan with modelled costs"
                        )
                    yield Seconds(*answer)
            finally:
                child.kill()


def _died(code: int, name: str, words: Any) -> NoReturn:
    words.seek(0)
    last = words.read().decode(errors="replace").strip()[-2000:]
    raise RuntimeError(
        f"the process that times steps ended with code {code} at {name}; a negative code is a signal, -9 mostly a lack of memory. Its last "
        f"words: {last or 'none'}. Plan with modelled costs, or give a smaller batch"
    )


def _serve(threads: int) -> None:
    """Answers the questions on standard input, a line each; what layers print goes elsewhere."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    with threadpool_limits(threads), np.errstate(all="ignore"), warnings.catch_warnings(action="ignore"):
        for payload in pickle.load(sys.stdin.buffer):
            try:
                answer: Any = _answer(pickle.loads(payload))
            except Exception as error:
                answer = f"{type(error).__name__}: {error}"
            print(json.dumps(answer), file=out, flush=True)


def _answer(question: Question) -> list[float]:
    """Times forward and VJP, in seconds."""
    # A table takes integers below its length; how long it is, the first axes of parameters suggest.
    parameters = {} if isinstance(question, LossQuestion) else question.layer.parameters(question.x)
    limits = [*sorted({spec.shape[0] for spec in parameters.values() if spec.shape}, reverse=True), 2, 1]
    for number, limit in enumerate(limits):  # integers below which the layer takes
        try:
            return _timed_loss(question, limit) if isinstance(question, LossQuestion) else _timed_step(question, limit)
        except (IndexError, ValueError):
            if number == len(limits) - 1:
                raise
    raise AssertionError


class _SamePlaces:
    """Gives the n-th array of a call the place that it had in the call before, as a planned block does: no page is new."""

    def __init__(self) -> None:
        self._places: list[Array] = []
        self.next = 0

    def allocate(self, shape: tuple[int, ...], dtype: np.dtype[Any], allocation: Allocation) -> Array:
        place, self.next = self.next, self.next + 1
        if place == len(self._places):
            self._places.append(np.empty(shape, dtype))
        held = self._places[place]
        if (held.shape, held.dtype) != (shape, dtype):
            held = self._places[place] = np.empty(shape, dtype)
        return held


def _timed_step(question: StepQuestion, limit: int) -> list[float]:
    layer, spec, places = question.layer, question.x, _SamePlaces()
    specs: tuple[Spec, ...] = spec if isinstance(spec, tuple) else (spec,)
    footprint: Footprint = layer.footprint(spec)
    key = Key(0).fold("timing")
    layout, generator = Layout(layer.parameters(spec)), key.generator()
    params = dict(Parameters.initialize(layout, key))
    states = {layer.kind: dict(Parameters.initialize(Layout(layer.state(spec)), key))}
    inputs = tuple(_drawn(generator, each, limit) for each in specs)
    wanted = question.wanted or (True,) * len(specs)
    context = Context(
        Ledger(allocator=places), layer.kind, key, True, wanted, output=footprint.output, states=states
    )  # fmt: skip

    def forward() -> Any:
        places.next = 0
        return layer.forward(params, inputs if isinstance(spec, tuple) else inputs[0], context)

    times = [_median(forward), 0.0]
    if question.wanted is None:
        return times
    y, own = forward()
    after = places.next
    cotangent = _drawn(generator, footprint.output, limit)
    grads = {name: np.zeros(each.shape, each.dtype) for name, each in layout.specs.items()}
    given: tuple[Any, ...] = tuple(
        x if needed else None for x, needed in zip(inputs, footprint.needs_input, strict=True)
    )
    kept = y if footprint.needs_output else None

    def backward() -> Any:
        places.next = after
        return layer.vjp(params, given if isinstance(spec, tuple) else given[0], kept, own, cotangent, grads, context)

    times[1] = _median(backward)
    return times


def _timed_loss(question: LossQuestion, limit: int) -> list[float]:
    places, generator = _SamePlaces(), Key(0).fold("timing").generator()
    y, targets = _drawn(generator, question.x, limit), _drawn(generator, question.targets, limit)
    context = Context(Ledger(allocator=places), "loss", output=question.x)

    def forward() -> Any:
        places.next = 0
        return question.layer.forward(y, targets, None, context)

    def backward() -> Any:
        places.next = after
        return question.layer.vjp(y, targets, None, own, context)

    times = [_median(forward)]
    own = forward()[2]
    after = places.next
    return [*times, _median(backward)]


def _drawn(generator: np.random.Generator, x: Spec, limit: int) -> Array:
    if x.dtype.kind == "f":
        return generator.random(x.shape).astype(x.dtype)
    return generator.integers(limit, size=x.shape).astype(x.dtype)


def _median(call: Callable[[], Any]) -> float:
    """The median seconds of a call, after one that is not timed."""
    call()
    found: list[float] = []
    while len(found) < LEAST_RUNS or (sum(found) < LEAST_SECONDS and len(found) < MOST_RUNS):
        started = time.perf_counter()
        call()
        found.append(time.perf_counter() - started)
    return median(found)
