"""What a torch.nn.Sequential costs, as plan.py --costs reads it (docs/costs.md has the schema).

It needs PyTorch and nothing of Retape, so it can be copied to the machine whose times matter, and used there from Python, or as

    python _torch_costs.py mine:build > costs.json

where build() in mine.py returns the Sequential, a batch, its targets, and the loss, a function of output and targets. What autograd saves
in a step's forward is told by saved-tensor hooks; its times are medians of warm runs.
"""

from __future__ import annotations

import importlib
import json
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch

Step = Callable[[torch.Tensor], torch.Tensor]


def profile(
    model: torch.nn.Sequential,
    x: torch.Tensor,
    targets: torch.Tensor,
    loss: Any,
    runs: int = 10,
    tell: Callable[[int, int, str], None] | None = None,
) -> dict[str, Any]:
    """Returns the costs of a training pass, JSON-ready.

    Args:
        model: Its children are the steps.
        x: A batch.
        targets: Its targets.
        loss: A function of output and targets.
        runs: Timed runs of each forward and backward.
        tell: Told before each step how many are done, of how many, and its name.

    Raises:
        ValueError: A child works in place, or its output is not one tensor.
    """
    device = torch.cuda.get_device_name(x.device) if x.is_cuda else f"CPU, {torch.get_num_threads()} threads"
    found: dict[str, Any] = {
        "format": "retape.costs",
        "version": 1,
        "measured": f"PyTorch {torch.__version__}, {device}",
        "batch": _spec(x),
        "targets": _spec(targets),
        "steps": [],
    }
    trains = False
    children = list(model.named_children())
    for number, (name, module) in enumerate(children):
        if tell is not None:
            tell(number, len(children), name)
        if any(getattr(inner, "inplace", False) for inner in module.modules()):
            raise ValueError(
                f"{name!r} ({type(module).__name__}) works in place, so its input is lost to others; build it with inplace=False"
            )
        wanted, parameters = trains, [p for p in module.parameters() if p.requires_grad]
        trains = trains or bool(parameters)
        x = x.detach().requires_grad_(wanted)
        y, saved = _saved(module, x)
        if not isinstance(y, torch.Tensor):
            raise ValueError(
                f"{name!r} ({type(module).__name__}) must return one tensor, but returned {type(y).__name__}"
            )
        own, (needs_input, needs_output) = _sorted(saved, x, y, [*module.parameters(), *module.buffers()])
        footprint = {
            "output": _spec(y),
            "own": own,
            "needs_input": [needs_input],
            "needs_output": needs_output,
            "output_aliases_input": _place(y) == _place(x),
        }
        step = {
            "path": name,
            "kind": type(module).__name__,
            "trains": trains,
            "wanted": [wanted],
            "footprint": footprint,
        }
        found["steps"].append(step | {"seconds": _seconds(module, x, [*parameters, *([x] if wanted else [])], runs)})
        x = y
    y = x.detach().requires_grad_()
    _, saved = _saved(lambda y: loss(y, targets), y)
    own, _ = _sorted(saved, y, targets, [])
    found["loss"] = {"own": own, "seconds": _seconds(lambda y: loss(y, targets), y, [y], runs)}
    found["gradient_nbytes"] = sum(p.nbytes for p in model.parameters() if p.requires_grad)
    found["static"] = {"parameters/model": sum(p.nbytes for p in [*model.parameters(), *model.buffers()])}
    return found


def _saved(step: Step, x: torch.Tensor) -> tuple[Any, list[torch.Tensor]]:
    """Runs a step and returns its output and what autograd saved."""
    saved: list[torch.Tensor] = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        saved.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        return step(x), saved


def _sorted(
    saved: list[torch.Tensor], x: torch.Tensor, y: torch.Tensor, others: list[torch.Tensor]
) -> tuple[list[dict[str, Any]], tuple[bool, bool]]:
    """Returns what was saved besides input, output and others, each piece of memory once, and whether input and output were."""
    pieces = {_place(tensor): tensor for tensor in saved}
    known = {_place(tensor) for tensor in (x, y, *others)}
    own = [tensor for place, tensor in pieces.items() if place not in known]
    sizes = [{"shape": [t.untyped_storage().nbytes() // t.element_size()], "dtype": _dtype(t)} for t in own]
    return sizes, (_place(x) in pieces, _place(y) in pieces and _place(y) != _place(x))


def _place(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _seconds(step: Step, x: torch.Tensor, inputs: list[torch.Tensor], runs: int) -> list[float]:
    """The median seconds of forward and backward, each after a run that is not timed."""
    y = step(x)
    cotangent = torch.ones_like(y)

    def backward() -> None:
        if y.requires_grad:
            torch.autograd.grad(y, inputs, cotangent, retain_graph=True, allow_unused=True)

    return [_median(lambda: step(x), x, runs), _median(backward, x, runs)]


def _median(call: Callable[[], Any], x: torch.Tensor, runs: int) -> float:
    times = []
    for _ in range(runs + 1):
        started = time.perf_counter()
        call()
        if x.is_cuda:
            torch.cuda.synchronize(x.device)
        times.append(time.perf_counter() - started)
    return statistics.median(times[1:])


def _spec(tensor: torch.Tensor) -> dict[str, Any]:
    return {"shape": list(tensor.shape), "dtype": _dtype(tensor)}


def _dtype(tensor: torch.Tensor) -> str:
    """The name of NumPy's dtype of that size, which is all that counts."""
    name = str(tensor.dtype).removeprefix("torch.")
    return "float16" if name == "bfloat16" else name


def built(name: str) -> tuple[Any, ...]:
    """Returns what package.module:function returns.

    Raises:
        ValueError: The name has no function, there is none of that name, or it returns something else than `profile` takes.
        ImportError: There is no such module.
    """
    module, _, function = name.partition(":")
    if not function:
        raise ValueError(f"the model must be package.module:function, but got {name!r}")
    found = importlib.import_module(module)
    if not hasattr(found, function):
        raise ValueError(f"module {module!r} has no attribute {function!r}")
    made = getattr(found, function)()
    told = made if isinstance(made, tuple) else (made,)
    right = len(told) == 4 and isinstance(told[0], torch.nn.Sequential) and callable(told[3])
    if not right or not all(isinstance(each, torch.Tensor) for each in told[1:3]):
        raise ValueError(
            f"{name} must return a torch.nn.Sequential, a batch, its targets, and a function of output and targets, but returned "
            f"{', '.join(type(each).__name__ for each in told)}"
        )
    return told


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python _torch_costs.py package.module:function > costs.json")
    sys.path.insert(0, "")
    json.dump(profile(*built(sys.argv[1])), sys.stdout, indent=1)
