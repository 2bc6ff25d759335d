"""What the comparisons with PyTorch's databases of operators and modules share: both sides' values and derivatives, and counts."""

from __future__ import annotations

import contextlib
import random
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

RELATIVE = 1e-9
#: Zeros are reached by cancelling numbers of order 1, in another order here than there.
ABSOLUTE = 1e-14


def seed() -> None:
    """Makes the databases' samples the same in each run."""
    import torch

    torch.manual_seed(0)
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002 - PyTorch's generators draw from it


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Samples stand at poles and kinks on purpose; infinities are compared, not warned of."""
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        yield


def mapped(tree: Any, function: Callable[[Any], Any]) -> Any:
    """Applies a function to the tensors and dtypes in a structure."""
    import torch

    if isinstance(tree, torch.Tensor | torch.dtype):
        return function(tree)
    if isinstance(tree, list | tuple):
        return type(tree)(mapped(item, function) for item in tree) if type(tree) in (list, tuple) else list(tree)
    if isinstance(tree, dict):
        return {key: mapped(value, function) for key, value in tree.items()}
    return tree


def variables(tree: Any) -> list[Any]:
    """The differentiable tensors, each once."""
    found: list[Any] = []
    mapped(
        tree,
        lambda x: found.append(x) if getattr(x, "requires_grad", False) and all(x is not y for y in found) else None,
    )
    return found


def agree(ours: Any, theirs: Any, what: str) -> None:
    """Asserts equality to 1e-9 relative, float64 and equal shapes."""
    expected = theirs.numpy(force=True)
    ours = np.asarray(ours)
    assert ours.shape == expected.shape, f"{what}: shape {ours.shape} instead of {expected.shape}"
    assert ours.dtype == np.float64, f"{what}: {ours.dtype} instead of float64"
    finite = np.abs(expected[np.isfinite(expected)])
    scale = float(finite.max()) if finite.size else 0.0
    np.testing.assert_allclose(ours, expected, rtol=RELATIVE, atol=RELATIVE * scale + ABSOLUTE, err_msg=what)


def pulled(call: Callable[..., list[Any]], tensors: list[Any], cotangents: list[Any]) -> tuple[list[Any], list[Any]]:
    """Returns PyTorch's values and VJPs.

    Args:
        call: The variables' values → the results.
        tensors: The variables.
        cotangents: An array for each result.
    """
    import torch

    ys = call(*tensors)
    live = [(y, torch.tensor(g)) for y, g in zip(ys, cotangents, strict=True) if y.requires_grad]
    found: Any = [None] * len(tensors)
    if tensors and live:
        outputs, gs = zip(*live, strict=True)
        found = torch.autograd.grad(outputs, tensors, gs, allow_unused=True)
    return ys, [torch.zeros_like(x) if g is None else g for g, x in zip(found, tensors, strict=True)]


def pushed(
    call: Callable[..., list[Any]], tensors: list[Any], tangents: list[Any], forward_mode: bool = True
) -> list[Any]:
    """Returns PyTorch's JVPs; without forward mode, the JVP is the VJP of the VJP, which is linear in its cotangent.

    Args:
        call: The variables' values → the results.
        tensors: The variables.
        tangents: An array for each variable.
        forward_mode: Whether PyTorch has it here.
    """
    import torch
    from torch.autograd import forward_ad

    moves = [torch.tensor(t) for t in tangents]
    if forward_mode:
        with forward_ad.dual_level():
            # Where nothing requires a gradient, PyTorch would take fast ways that have no derivative.
            still = [x.detach().requires_grad_() for x in tensors]
            duals = [forward_ad.make_dual(x, t) for x, t in zip(still, moves, strict=True)]
            pairs = [forward_ad.unpack_dual(y) for y in call(*duals)]
        return [torch.zeros_like(y) if t is None else t for y, t in pairs]
    ys = call(*tensors)
    forth = [torch.zeros_like(y) for y in ys]
    live = [i for i, y in enumerate(ys) if y.requires_grad]
    gs = [torch.zeros_like(ys[i], requires_grad=True) for i in live]
    if tensors and live:
        back = torch.autograd.grad([ys[i] for i in live], tensors, gs, create_graph=True, allow_unused=True)
        total = sum((g * t).sum() for g, t in zip(back, moves, strict=True) if g is not None)
        if getattr(total, "requires_grad", False):
            for i, t in zip(live, torch.autograd.grad(total, gs, allow_unused=True), strict=True):
                forth[i] = forth[i] if t is None else t
    return forth


def shown(sample: Any) -> str:
    """A sample with shapes in place of arrays."""
    return str(mapped(list(sample), lambda x: f"array{tuple(x.shape)}" if hasattr(x, "shape") else x))


def print_counts(what: str, counts: Mapping[str, Counter[str]]) -> Counter[str]:
    """Prints how many samples of each name passed, were unsupported, and failed; returns the sums."""
    total: Counter[str] = sum(counts.values(), Counter())
    print(f"\n{what:<26}{'passed':>8}{'unsupported':>13}{'failed':>8}{'total':>7}")
    for name, each in [*counts.items(), (f"{len(counts)} {what}s", total)]:
        print(f"{name:<26}{each['passed']:>8}{each['unsupported']:>13}{each['failed']:>8}{each.total():>7}")
    return total
