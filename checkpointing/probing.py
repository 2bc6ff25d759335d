"""Probing: what the rules of a layer take in passing from plain NumPy, measured before a plan is made.

A layer of `apply` alone holds arrays inside its calls that no ledger hands out. How many bytes they are follows from its shapes, but nobody
wrote it down; so its forward and VJP are run on drawn numbers of the very shapes that are asked for, under `tracemalloc`. All layers
of a chain are run in one process, which is then gone: what this takes does not stay with the process that trains. Shapes alone must
decide, which is tried on three draws, zeros among them: a draw on which the layer fails tells nothing, the first one must work.
"""

from __future__ import annotations

import gc
import hashlib
import json
import os
import pickle
import subprocess
import sys
import traceback
import tracemalloc
import warnings
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import cloudpickle
import numpy as np

from framework.keys import Key
from framework.layers import Context, Layer, Spec
from framework.memory import Array, Ledger
from framework.parameters import Layout, Parameters

#: Measured bytes are rounded up to a multiple of it: Python's own objects, which are among them, differ by some hundred bytes from
#: run to run. Draws that differ by no more count as equal.
ROUNDING = 4096

#: How many results are remembered.
_MOST_REMEMBERED = 4096

#: Runs in the child: it finds modules where this process does.
_CHILD = "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from checkpointing.probing import _serve; _serve()"


@dataclass(frozen=True)
class Question:
    """A layer to be measured, as a plan calls it.

    Attributes:
        layer: The leaf layer.
        x: The spec of its input (a tuple for several).
        training: False in an evaluation pass.
        wanted: For each input, whether its cotangent is wanted; None where the VJP does not run.
    """

    layer: Layer
    x: Any
    training: bool
    wanted: tuple[bool, ...] | None


@dataclass(frozen=True)
class Heap:
    """What was measured, in bytes.

    Attributes:
        forward: The most that the forward took on top of what the ledger gave it, rounded up.
        backward: The same of the VJP.
        spread: By how much draws of different data differed, 0 where it is within the rounding.
    """

    forward: int
    backward: int
    spread: int


@dataclass(frozen=True)
class Failure:
    """Why a layer could not be measured.

    Attributes:
        error: The original error in words.
        details: Its traceback.
        unreadable: Whether the layer did not even arrive in the other process.
    """

    error: str
    details: str = ""
    unreadable: bool = False


_remembered: dict[Hashable, Heap] = {}


def measure(questions: Sequence[Question], names: Sequence[str]) -> list[Heap]:
    """Returns what each layer takes, measured in one other process for all that this process did not ask before.

    A layer that cannot be sent there is measured here, with a warning that says why.

    Args:
        questions: The layers.
        names: What errors call them.

    Raises:
        ValueError: A layer failed; the message has the original error, and a note its traceback.
        RuntimeError: The other process ended before it answered.
    """
    keys: list[Hashable] = []
    here: dict[Hashable, str] = {}
    payloads: dict[Hashable, bytes] = {}
    for question in questions:
        try:
            payload = cloudpickle.dumps(question)
        except Exception as error:  # whatever its __reduce__ raises
            keys.append(_key_of(question))
            here[keys[-1]] = f"it cannot be pickled ({type(error).__name__}: {error})"
            continue
        keys.append(hashlib.sha256(payload).digest())
        if keys[-1] not in _remembered:
            payloads[keys[-1]] = payload
            if question.training:  # a validation is mostly planned next
                twin = cloudpickle.dumps(replace(question, training=False, wanted=None))
                payloads.setdefault(hashlib.sha256(twin).digest(), twin)
    found: dict[Hashable, Heap | Failure] = {key: _remembered[key] for key in keys if key in _remembered}
    if payloads:
        asked = ", ".join(dict.fromkeys(question.layer.kind for question in questions))
        try:
            found |= zip(payloads, _ask(list(payloads.values()), asked), strict=True)
        except OSError as error:
            here |= dict.fromkeys(payloads, f"no other Python process could be started ({error})")
    for key, question, name in zip(keys, questions, names, strict=True):
        answer = found.get(key)
        if isinstance(answer, Failure) and answer.unreadable:
            here[key] = f"it could not be read in another process ({answer.error})"
        if key in here and not isinstance(answer, Heap):
            warnings.warn(
                f"{name}: what {question.layer.kind} takes from NumPy is measured in this process, whose peak memory it may raise, since "
                f"{here[key]}",
                stacklevel=2,
            )
            answer = found[key] = _answer(question)
        if isinstance(answer, Failure):
            failed = ValueError(
                f"{name}: {question.layer.kind} fails when it is tried on drawn numbers, input {_text(question.x)}: {answer.error}"
            )
            failed.add_note(answer.details)
            raise failed
    if len(_remembered) > _MOST_REMEMBERED:
        _remembered.clear()
    _remembered.update((key, answer) for key, answer in found.items() if isinstance(answer, Heap))
    return [answer for key in keys if isinstance(answer := found[key], Heap)]


def _key_of(question: Question) -> Hashable:
    try:
        hash(question)
    except TypeError:
        return object()  # nothing else is equal to it
    return question


def _text(x: Any) -> str:
    return ", ".join(map(str, x)) if isinstance(x, tuple) else str(x)


def _ask(payloads: list[bytes], kinds: str) -> list[Heap | Failure]:
    """Sends pickled questions to a fresh process and returns its answers."""
    command = [sys.executable, "-c", _CHILD, json.dumps(sys.path)]
    done = subprocess.run(command, input=pickle.dumps(payloads), capture_output=True, check=False)
    if done.returncode:
        words = done.stderr.decode(errors="replace").strip()
        raise RuntimeError(
            f"the process that measures what layers take from NumPy ({kinds}) ended with code {done.returncode}; a negative code is a signal, "
            f"-9 mostly a lack of memory. Its last words: {words[-2000:] or 'none'}. A layer that says its bytes in a footprint of its own "
            "is not measured"
        )
    answers: list[Heap | Failure] = pickle.loads(done.stdout)
    return answers


def _serve() -> None:
    """Answers the questions on standard input; what layers print goes elsewhere."""
    out = os.dup(1)
    os.dup2(2, 1)
    answers: list[Heap | Failure] = []
    for payload in pickle.load(sys.stdin.buffer):
        try:
            question = pickle.loads(payload)
        except Exception as error:  # a module that cannot be imported, say
            answers.append(Failure(f"{type(error).__name__}: {error}", unreadable=True))
        else:
            gc.freeze()  # else each collection would go over all modules, which takes 40 ms
            answers.append(_answer(question))
    with os.fdopen(out, "wb") as file:
        pickle.dump(answers, file)


def _answer(question: Question) -> Heap | Failure:
    """Measures a layer in this process."""
    was_tracing = tracemalloc.is_tracing()
    if not was_tracing:
        tracemalloc.start()
    try:
        with np.errstate(all="ignore"), warnings.catch_warnings(action="ignore"):
            return _measured(question)
    except Exception as error:
        details = "".join(traceback.format_exception(error))
        return Failure(f"{type(error).__name__}: {error}", details)
    finally:
        if not was_tracing:
            tracemalloc.stop()


def _measured(question: Question) -> Heap:
    first, *others = _DRAWS
    _run(question, first)  # caches and imports of the first time
    runs = [_run(question, first)]
    for draw in others:
        try:
            runs.append(_run(question, draw))
        except Exception:  # such numbers may be none that the layer takes
            continue
    pairs = list(zip(*runs, strict=True))
    spread = max(max(each) - min(each) for each in pairs)
    forward, backward = (-(-max(each) // ROUNDING) * ROUNDING for each in pairs)
    return Heap(forward, backward, spread if spread > ROUNDING else 0)


def _run(question: Question, draw: _Draw) -> tuple[int, int]:
    """Runs forward and VJP on some numbers, as the executor does, and returns the bytes that they take besides the ledger's."""
    layer, spec = question.layer, question.x
    footprint, ledger = layer.footprint(spec, question.training), Ledger()
    key = Key(0).fold("probe")
    layout = Layout(layer.parameters(spec))
    params, generator = dict(Parameters.initialize(layout, key)), key.generator()
    states = {layer.kind: dict(Parameters.initialize(Layout(layer.state(spec)), key))}
    specs: tuple[Spec, ...] = spec if isinstance(spec, tuple) else (spec,)
    inputs: tuple[Array | None, ...] = tuple(draw(generator, each) for each in specs)
    context = Context(
        ledger, layer.kind, key, question.training, question.wanted or (True,) * len(specs),
        output=footprint.output, states=states,
    )  # fmt: skip

    def given() -> Any:
        return inputs if isinstance(spec, tuple) else inputs[0]

    (y, own), forward = _in_passing(ledger, lambda: layer.forward(params, given(), context))
    if question.wanted is None:
        return forward, 0
    cotangent = generator.standard_normal(footprint.output.shape).astype(footprint.output.dtype)
    grads = {name: np.zeros(each.shape, each.dtype) for name, each in layout.specs.items()}
    inputs = tuple(x if needed else None for x, needed in zip(inputs, footprint.needs_input, strict=True))
    y = y if footprint.needs_output else None
    _, backward = _in_passing(ledger, lambda: layer.vjp(params, given(), y, own, cotangent, grads, context))
    return forward, backward


def _in_passing(ledger: Ledger, call: Callable[[], Any]) -> tuple[Any, int]:
    """Returns the result of a call, and the most bytes alive during it on top of what the ledger gave."""
    gc.collect()
    ledger.reset_peak()
    held, before = ledger.live, tracemalloc.get_traced_memory()[0]
    tracemalloc.reset_peak()
    result = call()
    return result, max(0, tracemalloc.get_traced_memory()[1] - before - (ledger.peak - held))


#: Makes an input.
_Draw = Callable[[np.random.Generator, Spec], Array]


def _uniform(generator: np.random.Generator, x: Spec) -> Array:
    return generator.random(x.shape).astype(x.dtype)  # zeros where x holds integers


def _normal(generator: np.random.Generator, x: Spec) -> Array:
    if x.dtype.kind == "f":
        return generator.standard_normal(x.shape).astype(x.dtype)
    return generator.integers(2, size=x.shape).astype(x.dtype)


def _zeros(generator: np.random.Generator, x: Spec) -> Array:
    return np.zeros(x.shape, x.dtype)


_DRAWS: tuple[_Draw, ...] = (_uniform, _normal, _zeros)
