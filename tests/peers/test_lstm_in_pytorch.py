"""PyTorch as judge of LSTM: outputs and VJPs of torch.nn.LSTM in float64, one layer and several, under policies; and its residuals."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest

from checkpointing import value_and_grad
from framework import LSTM, Chain, Key, Linear, MeanSquaredError, Parameters, Spec
from framework.layers import flatten, input_specs

pytestmark = pytest.mark.peers

TOLERANCE = 1e-9
#: Chunks, and (batch, time, features in, features).
SIZES = [(1, (2, 5, 3, 4)), (4, (3, 7, 5, 6)), (3, (1, 1, 2, 1)), (8, (4, 30, 16, 24)), (5, (2, 3, 4, 5))]


@pytest.fixture(scope="module")
def torch() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of an import that is not ours
        return pytest.importorskip("torch")


def twin(torch: Any, parameters: Parameters, layers: list[str], features: int) -> Any:
    """A torch.nn.LSTM with our parameters; our one bias is its first, and its second is zero."""
    width = parameters[f"{layers[0]}.weight_ih"].shape[1]
    module = torch.nn.LSTM(width, features, num_layers=len(layers), batch_first=True).double()
    with torch.no_grad():
        for number, name in enumerate(layers):
            for theirs, ours in (("weight_ih", "weight_ih"), ("weight_hh", "weight_hh"), ("bias_ih", "bias")):
                getattr(module, f"{theirs}_l{number}").copy_(torch.tensor(parameters[f"{name}.{ours}"]))
            getattr(module, f"bias_hh_l{number}").zero_()
    return module


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("policy", ["store-all", "every-k:2", "recompute-all"])
@pytest.mark.parametrize(("chunks", "sizes"), SIZES)
def test_output_and_vjps_are_those_of_pytorchs_lstm(
    torch: Any, chunks: int, sizes: tuple[int, ...], policy: str, layers: int
) -> None:
    batch, length, width, features = sizes
    names = [f"rnn{number}" for number in range(layers)]
    # A Linear in front whose weight's cotangent is that of the input, seen through x itself.
    chain = Chain(front=Linear(width, bias=False), **{name: LSTM(features, chunks) for name in names})
    generator = np.random.default_rng(sizes)
    x, targets = generator.standard_normal((batch, length, width)), generator.standard_normal((batch, length, features))
    parameters = Parameters.initialize(chain.layout(Spec.of(x.shape, x.dtype)), Key(1))
    parameters.flat += 0.3 * generator.standard_normal(parameters.flat.size)
    loss, gradient = value_and_grad(chain, MeanSquaredError(), policy)(parameters, x, targets)

    module = twin(torch, parameters, names, features)
    front = torch.tensor(parameters["front.weight"], requires_grad=True)
    y, _ = module(torch.tensor(x) @ front.T)
    theirs = torch.nn.functional.mse_loss(y, torch.tensor(targets))
    theirs.backward()
    assert loss == pytest.approx(theirs.item(), rel=TOLERANCE)
    expected = {"front.weight": front.grad}
    for number, name in enumerate(names):
        expected[f"{name}.weight_ih"] = getattr(module, f"weight_ih_l{number}").grad
        expected[f"{name}.weight_hh"] = getattr(module, f"weight_hh_l{number}").grad
        expected[f"{name}.bias"] = getattr(module, f"bias_ih_l{number}").grad
    assert set(expected) == set(gradient)
    for name, other in expected.items():
        np.testing.assert_allclose(gradient[name], other.numpy(), rtol=TOLERANCE, atol=TOLERANCE)


@pytest.mark.parametrize(("chunks", "sizes"), [(1, (4, 32, 16, 32)), (8, (8, 128, 64, 96)), (16, (8, 128, 128, 256))])
def test_an_lstm_keeps_less_than_pytorchs(torch: Any, chunks: int, sizes: tuple[int, ...]) -> None:
    batch, length, width, features = sizes
    x, layer = Spec.of((batch, length, width), "float32"), LSTM(features, chunks)
    steps = flatten(layer)
    ours = sum(s.layer.footprint(spec).own_nbytes for s, spec in zip(steps, input_specs(steps, x), strict=True))
    ours += batch * length * features * 4  # the output, which who reads it keeps; PyTorch's saves it, too
    from tests.peers.residuals import saved_bytes

    module = torch.nn.LSTM(width, features, batch_first=True)
    theirs = saved_bytes(module, [torch.zeros(x.shape, requires_grad=True)])
    assert 0 < x.nbytes + ours <= theirs
