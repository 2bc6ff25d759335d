"""PyTorch as judge of layers and losses: value, VJPs and JVP in float64, on the samples of PyTorch's own module database.

Every sample of every module of the database is met, in training mode, and in evaluation where the module differs there. Three
things can become of one:

- passed: value, VJPs of inputs and parameters with random cotangents, and JVP with random tangents of all of them agree to 1e-9
  relative;
- unsupported: ours have no such module or not this option, for the reason that is printed (`tests/peers/modules.py` and `losses.py`);
- failed: all else, an exception of ours included.

Run `make test-peers`, or `pytest -m peers -s tests/peers/test_modules_in_pytorch.py` for the table of counts and reasons.
"""

from __future__ import annotations

import inspect
import warnings
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from framework import CausalAttention, Dropout, Flatten, Layer, Loss, Reshape, Upsample2d
from framework.differentiation import jvp, vjp
from framework.layers import Add, Adding, Join
from tests.framework.every import concrete
from tests.peers.database import agree, mapped, print_counts, pulled, pushed, quiet, seed, shown, variables
from tests.peers.modules import ADAPTERS
from tests.peers.ours import RUN, Unsupported

pytestmark = pytest.mark.peers

#: Ours that have no module in the database, and what other test compares them with PyTorch.
WITHOUT: dict[type, str] = {
    Add: "test_models_in_pytorch",
    Adding: "test_models_in_pytorch",
    CausalAttention: "test_models_in_pytorch",
    Dropout: "none: its random numbers are others",
    Flatten: "test_layers_in_pytorch",
    Join: "test_layers_in_pytorch",
    Reshape: "test_layers_in_pytorch",
    Upsample2d: "test_layers_in_pytorch",
}


@pytest.fixture(scope="module")
def modules() -> dict[str, Any]:
    """PyTorch's module database by name; imported here, so that collecting the tests does not pay for it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch = pytest.importorskip("torch")
        pytest.importorskip("expecttest")
        from torch.testing._internal.common_modules import module_db

        torch.set_num_threads(1)
    return {info.module_cls.__name__: info for info in module_db}


def samples(info: Any) -> Iterator[tuple[Any, Any]]:
    """The database's samples: each a module with parameters moved away from ones and zeros, and its input."""
    import torch

    for training in (True, False) if info.train_and_eval_differ else (True,):
        seed()
        given = info.module_inputs_func(info, device="cpu", dtype=torch.float64, requires_grad=True, training=training)
        for sample in given:
            module = info.module_cls(*sample.constructor_input.args, **sample.constructor_input.kwargs)
            module.to(torch.float64).train(training)
            if info.is_lazy:
                module(*sample.forward_input.args, **sample.forward_input.kwargs)  # makes its parameters
            with torch.no_grad():
                for parameter in module.parameters():
                    parameter += 0.1 * torch.randn_like(parameter)
                for name, buffer in module.named_buffers():
                    if name.endswith("running_mean"):
                        buffer += torch.randn_like(buffer)
                    elif name.endswith("running_var"):
                        buffer += torch.rand_like(buffer)
            yield module, sample.forward_input


class Comparison:
    """One sample, both sides as functions of the same variables: the module's parameters, and its inputs of floats.

    Raises:
        Unsupported: Ours have no such module, or not with these options.
    """

    def __init__(self, kind: str, module: Any, given: Any) -> None:
        self.module, self.given = module, given
        self.names = list(dict(module.named_parameters()))
        # The targets of ours are data.
        self.inputs = variables(given.args[0] if "loss" in type(module).__module__ else [given.args, given.kwargs])
        self.tensors = [*module.parameters(), *self.inputs]
        self.arrays = [x.detach().numpy() for x in self.tensors]
        adapter = ADAPTERS.get(kind.removeprefix("Lazy"))
        if adapter is None:
            raise Unsupported("no counterpart")
        function = adapter(module)
        kwargs = {name: value for name, value in given.kwargs.items() if value is not None}
        try:
            inspect.signature(function).bind({}, *given.args, **kwargs)
        except TypeError:
            raise Unsupported(f"inputs {', '.join(kwargs) or len(given.args)}") from None
        state = {name: b.numpy().copy() for name, b in module.named_buffers() if b is not None}

        def ours(*values: Any) -> list[Any]:
            weights = dict(zip(self.names, values, strict=False))
            args, named = self._with([given.args, kwargs], values[len(self.names) :], lambda x: x.detach().numpy())
            result = function(state | weights, *args, **named)
            return list(result) if isinstance(result, tuple) else [result]

        self.ours = ours
        self.values = [np.asarray(y) for y in ours(*self.arrays)]

    def _with(self, tree: Any, values: Any, otherwise: Any) -> Any:
        """Arguments with other values of the variable inputs."""
        known = {id(tensor): value for tensor, value in zip(self.inputs, values, strict=True)}
        return mapped(tree, lambda x: known[id(x)] if id(x) in known else otherwise(x))

    def theirs(self, *values: Any) -> list[Any]:
        """PyTorch's outputs, as many as ours: it also gives attention's weights, which ours never hold."""
        import torch

        weights = dict(zip(self.names, values, strict=False))
        buffers = {name: b.clone() for name, b in self.module.named_buffers()}
        args, kwargs = self._with([self.given.args, self.given.kwargs], values[len(self.names) :], lambda x: x)
        result = torch.func.functional_call(self.module, weights | buffers, tuple(args), kwargs)
        return flat(result)[: len(self.values)]


def flat(result: Any) -> list[Any]:
    return [y for each in result for y in flat(each)] if isinstance(result, tuple) else [result]


def pushed_somehow(c: Comparison, tangents: list[Any]) -> list[Any]:
    """JVPs by the ways that have a second derivative in PyTorch: neither cross-entropy in chunks nor fused attention has one."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    if getattr(c.module, "options", None) is not None:
        c.module.options = None
    with sdpa_kernel(SDPBackend.MATH):
        try:
            return pushed(c.theirs, c.tensors, tangents)
        except (RuntimeError, NotImplementedError):  # some modules have no forward mode
            return pushed(c.theirs, c.tensors, tangents, forward_mode=False)


def compare(c: Comparison) -> None:
    rng = np.random.default_rng(0)
    cotangents = [rng.standard_normal(y.shape) for y in c.values]
    tangents = [rng.standard_normal(x.shape) for x in c.arrays]
    ys, back = pulled(c.theirs, c.tensors, cotangents)
    forth = pushed_somehow(c, tangents)
    for mine, y in zip(c.values, ys, strict=True):
        agree(mine, y, "value")
    _, pullback = vjp(c.ours, *c.arrays)
    names = [*c.names, *(f"input {i}" for i in range(len(c.inputs)))]
    for name, mine, g in zip(names, pullback(cotangents), back, strict=True):
        agree(mine, g, f"VJP of {name}")
    _, moved = jvp(c.ours, tuple(c.arrays), tuple(tangents))
    for mine, t in zip(moved, forth, strict=True):
        agree(mine, t, "JVP")


def test_values_vjps_and_jvps_are_pytorchs(modules: dict[str, Any]) -> None:
    counted: dict[str, Counter[str]] = {name: Counter() for name in modules}
    unsupported: dict[str, Counter[str]] = {name: Counter() for name in modules}
    failures: list[str] = []
    with quiet():
        for name, info in modules.items():
            counts, reasons = counted[name], unsupported[name]
            for module, given in samples(info):
                try:
                    compare(Comparison(name, module, given))
                    counts["passed"] += 1
                except Unsupported as reason:
                    counts["unsupported"] += 1
                    reasons[str(reason)] += 1
                except Exception as error:
                    counts["failed"] += 1
                    failures.append(f"{module} {shown([given.args, given.kwargs])}: {type(error).__name__}: {error}")
    total = print_counts("module", counted)
    for name, reasons in unsupported.items():
        if reasons:
            print(f"{name:<26}{', '.join(f'{reason} ({count})' for reason, count in reasons.items())}")
    assert not failures, f"{len(failures)} of {total.total()} samples; the first: " + "\n".join(failures[:3])
    passed = sorted(counts["passed"] for counts in counted.values() if counts["passed"])
    print(f"{total['passed']} samples of {len(passed)} modules were compared")
    assert len(passed) >= 20
    assert sum(passed[:-1]) >= 400, "without the module that has most of the samples"
    assert concrete(Layer) | concrete(Loss) == RUN | set(WITHOUT), (
        "a layer or loss is missing in tests/peers/modules.py"
    )
    assert not RUN & set(WITHOUT)
