"""Profiles a torch.nn.Sequential into a file of costs, which plan.py --costs plans (docs/costs.md has the schema).

It needs PyTorch and nothing of Retape, so it can be copied to the machine whose times matter. Each child of the Sequential is a step:
what autograd saves in its forward is told by saved-tensor hooks, its times are medians of warm runs.

    # mine.py
    def build():  # returns the Sequential, a batch, its targets, and the loss, a function of output and targets
        return nn.Sequential(...), torch.randn(32, 784), torch.randint(10, (32,)), nn.functional.cross_entropy

    python profile_torch.py mine:build costs.json
    python plan.py --costs costs.json --memory-budget engine:8GB

Scratch inside operations and the optimizer's state are not known to autograd: add them to the file, as forward_workspace and
backward_workspace of a step's footprint, and to "static" as "optimizer/NAME".
"""

from __future__ import annotations

import argparse
import importlib
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

Step = Callable[[torch.Tensor], torch.Tensor]


def profile(
    model: torch.nn.Sequential, x: torch.Tensor, targets: torch.Tensor, loss: Any, runs: int = 10
) -> dict[str, Any]:
    """Returns the costs of a training pass, JSON-ready.

    Args:
        model: Its children are the steps.
        x: A batch.
        targets: Its targets.
        loss: A function of output and targets.
        runs: Timed runs of each forward and backward.

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
    for name, module in model.named_children():
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("build", help="package.module:function, which returns (Sequential, batch, targets, loss)")
    parser.add_argument("file", type=Path, help="the file of costs to write")
    parser.add_argument("--runs", type=int, default=10, help="timed runs of each forward and backward (default 10)")
    parser.add_argument("--force", action="store_true", help="overwrite an existing file")
    options = parser.parse_args()
    sys.path.insert(0, str(Path.cwd()))
    module, _, function = options.build.partition(":")
    try:
        if options.file.exists() and not options.force:
            raise ValueError(f"{options.file} exists; name another file, or overwrite it with --force")
        if options.runs < 1 or not function:
            raise ValueError(
                f"--runs must be at least 1 and the model package.module:function, but got {options.runs} and {options.build!r}"
            )
        costs = profile(*getattr(importlib.import_module(module), function)(), runs=options.runs)
    except (ImportError, AttributeError, ValueError) as error:
        parser.error(str(error))
    options.file.write_text(json.dumps(costs, indent=1) + "\n")
    print(f"wrote {options.file}: {len(costs['steps'])} steps")


if __name__ == "__main__":
    main()
