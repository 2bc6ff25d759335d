"""What a Trainer is given besides its options: checked, and brought into one form."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from numbers import Real
from typing import Any

from distributed.callbacks import Callback
from distributed.run_folder import RunFolder
from framework.data import Dataset
from framework.layers import Chain
from framework.losses import Loss
from framework.models import Model
from framework.optimizers import Optimizer
from framework.schedules import Schedule

#: What a data set has; see `Dataset`.
_OF_DATA = ("inputs", "targets", "nbytes", "size", "load", "describe")


def require_kinds(loss: Any, optimizer: Any, data: Any, schedule: Any, run_folder: Any, callbacks: Any) -> None:
    """Checks what kinds of objects a Trainer was given, of those that may be None.

    Raises:
        TypeError: One is of another kind; the message says of which, and what to write.
    """
    for name, given, kind, example in (
        ("loss", loss, Loss, "CrossEntropy()"),
        ("optimizer", optimizer, Optimizer, "AdamW()"),
        ("run_folder", run_folder, RunFolder, "RunFolder('runs/mine')"),
    ):
        if given is not None and not isinstance(given, kind):
            raise TypeError(f"{name} is {_article(kind.__name__)}, as {example}, but got {_told(given)}")
    if (
        schedule is not None
        and not isinstance(schedule, str)
        and (isinstance(schedule, type) or not callable(schedule))
    ):
        raise TypeError(
            f"schedule is a function of the step, as WarmupConstant(0.01), but got {_told(schedule)}; a rate alone is learning_rate"
        )
    if data is not None and (missing := [name for name in _OF_DATA if not hasattr(data, name)]):
        raise TypeError(
            f"data has what framework.Dataset names, but {_told(data)} has no {', '.join(missing)}; of arrays make an ArrayDataset(x, y)"
        )
    wrong = callbacks if not isinstance(callbacks, Sequence) else None
    for each in callbacks if wrong is None else ():
        wrong = wrong if isinstance(each, Callback) else each
    if wrong is not None:
        raise TypeError(
            f"callbacks is a list of objects of subclasses of distributed.Callback, but got {_told(wrong)}; fit also takes functions"
        )


def _told(given: Any) -> str:
    return f"the class {given.__name__}" if isinstance(given, type) else _article(type(given).__name__)


def _article(word: str) -> str:
    return f"{'an' if word[0] in 'AEIOUaeiou' else 'a'} {word}"


def model_of(model: Model | Chain | Callable[[], Model | Chain], loss: Loss | None, data: Dataset | None) -> Model:
    """Returns a model, made of a chain, or built by a function, where that was given."""
    if callable(model):
        built = model()
        if not isinstance(built, Model | Chain):
            raise TypeError(
                f"a function that builds a model returns a Model or a Chain, but got {type(built).__name__}"
            )
        model = built
    if isinstance(model, Model):
        return model
    if not isinstance(model, Chain):
        raise TypeError(
            f"a model is a Chain, a Model, or a function that builds one, but got {type(model).__name__}; make a chain of a layer: "
            "Chain(layer)"
        )
    if loss is None or data is None:
        raise ValueError("a chain says neither its loss nor its data: pass both, Trainer(chain, loss, data=...)")
    return Model("chain", model, loss, lambda paths: data)


def require_alone(options: dict[str, Any]) -> None:
    """Refuses options that a schedule of one's own would leave without effect."""
    if told := [name for name in ("learning_rate", "warmup_steps") if options.get(name) is not None]:
        raise ValueError(f"a schedule of one's own says each step's learning rate; leave {' and '.join(told)} away")


def require_rates(schedule: Schedule, steps: int) -> None:
    """Tries a schedule at both ends of a run."""
    for step in (0, steps - 1):
        rate: Any = schedule(step)
        if not isinstance(rate, Real) or not 0 <= float(rate) < math.inf:
            raise ValueError(
                f"a schedule gives a learning rate for each step, 0 or more and finite, but {schedule!r} gives {rate!r} for step {step}"
            )
