"""torchinfo and PyTorch's own counter as judges of `summary`: parameters, and the FLOPs of matrix products and convolutions."""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
import pytest

from checkpointing import Summary, summary
from framework import Model, Spec, build
from framework.layers import flatten

pytestmark = pytest.mark.peers

EXAMPLES = {"mlp-small": 16, "lenet": 8, "resnet-small": 4, "unet": 4, "byte-gpt-tiny": 4, "byte-lstm-small": 2}


@pytest.fixture(scope="module")
def peer() -> Any:
    """The module of twins."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of an import that is not ours
        pytest.importorskip("torchinfo")
        from scripts.benchmarks import pytorch_models
    return pytorch_models


def both(peer: Any, name: str) -> tuple[Model, Summary, Any, Any]:
    """A model, our summary, the twin in PyTorch, and an input of it."""
    model = build(name)
    data = model.dataset(())
    model = model.fitted(data)
    x = Spec((EXAMPLES.get(name, 2), *data.inputs.shape), data.inputs.dtype)
    zeros = np.zeros(x.shape, x.dtype)
    return model, summary(model, x), peer.twin(model, x), peer.tensors(zeros, zeros)[0]


@pytest.mark.parametrize("name", EXAMPLES)
def test_parameters_are_those_that_torchinfo_counts(peer: Any, name: str) -> None:
    import torchinfo

    _, ours, module, x = both(peer, name)
    theirs = torchinfo.summary(module, input_data=x, verbose=0, depth=9)
    assert ours.totals.parameters == theirs.total_params
    assert ours.totals.parameter_bytes == theirs.total_param_bytes


def test_torchinfo_counts_a_tied_weight_twice_and_we_once(peer: Any) -> None:
    import torchinfo

    _, ours, module, x = both(peer, "byte-gpt-tiny-tied")
    theirs = torchinfo.summary(module, input_data=x, verbose=0, depth=9)
    assert ours.totals.parameters == theirs.total_params - 256 * 128
    assert ours.totals.parameters == sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize("name", [name for name in EXAMPLES if "lstm" not in name])
def test_flops_of_products_are_those_that_pytorch_counts(peer: Any, name: str) -> None:
    """A bias that a convolution adds is ours alone, and what attention and elementwise layers do is not compared."""
    from torch.utils.flop_counter import FlopCounterMode

    model, ours, module, x = both(peer, name)
    with FlopCounterMode(display=False) as counter:
        module(x)
    theirs: dict[str, int] = {}
    for operator, flops in counter.get_flop_counts()["Global"].items():
        kind = {"addmm": "Linear", "mm": "Linear", "convolution": "Conv2d"}.get(str(operator).rpartition(".")[2])
        theirs[kind or "other"] = theirs.get(kind or "other", 0) + flops
    for kind in ("Linear", "Conv2d"):
        rows = [
            (row, kind == "Conv2d" and step.layer.bias)
            for row, step in zip(ours.rows, flatten(model.chain), strict=True)
            if row.kind == kind
        ]
        products = sum(row.forward_flops - (math.prod(row.output_shape) if added else 0) for row, added in rows)
        assert products == theirs.get(kind, 0)
    assert theirs.keys() & {"Linear", "Conv2d"}
