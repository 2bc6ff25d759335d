"""PyTorch as judge of the layers on images: forward and VJP in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from framework import AveragePool2d, Conv2d, Flatten, GlobalAveragePool, Layer, MaxPool2d, Reshape, Upsample2d
from framework.layers import Join
from tests.framework.images import CALLS, LAYERS, ImageCall
from tests.framework.test_layers import Shape

pytestmark = pytest.mark.peers

TOLERANCE = 1e-9


def twin(layer: Layer) -> Callable[..., Any]:
    """PyTorch's function of the inputs and parameters."""
    torch = pytest.importorskip("torch")
    functional = torch.nn.functional
    match layer:
        case Conv2d(_, _, stride, padding, dilation, groups, bias):
            return lambda x, w, b=None: functional.conv2d(x, w, b if bias else None, stride, padding, dilation, groups)
        case MaxPool2d(kernel, stride, padding):
            return lambda x: functional.max_pool2d(x, kernel, stride, padding)
        case AveragePool2d(kernel, stride, padding):
            return lambda x: functional.avg_pool2d(x, kernel, stride, padding)
        case GlobalAveragePool():
            return lambda x: functional.adaptive_avg_pool2d(x, 1).flatten(1)
        case Upsample2d(scale):
            return lambda x: functional.interpolate(x, scale_factor=scale, mode="nearest")
        case Flatten():
            return lambda x: torch.flatten(x, 1)
        case Reshape(shape):
            return lambda x: x.reshape(len(x), *shape)
        case Join(axis):
            return lambda a, b: torch.cat((a, b), axis)
    raise AssertionError(f"{layer} has no twin")


def assert_equal_to_pytorch(call: ImageCall) -> None:
    torch = pytest.importorskip("torch")
    arguments = [torch.tensor(a, requires_grad=True) for a in (*call.inputs, *call.params.values())]
    y = twin(call.layer)(*arguments)
    expected = torch.autograd.grad(y, arguments, torch.tensor(call.cotangent))
    cotangents, grads = call.vjp()
    found = call.forward()[0], *cotangents, *grads.values()
    for one, other in zip(found, (y.detach(), *expected), strict=True):
        np.testing.assert_allclose(one, other.numpy(), rtol=TOLERANCE, atol=TOLERANCE)


@pytest.mark.parametrize(("name", "shape"), [(name, shape) for name, shape in CALLS if shape[0]])
def test_forward_and_vjp_are_pytorchs(name: str, shape: Shape) -> None:
    assert_equal_to_pytorch(ImageCall(LAYERS[name][0], shape))


@pytest.mark.parametrize("layer", [MaxPool2d(2), MaxPool2d(3, 1, 1), MaxPool2d((3, 2), (1, 2))])
def test_the_first_of_equal_pixels_has_the_cotangent_as_in_pytorch(layer: Layer) -> None:
    call = ImageCall(layer, (2, 3, 6, 7))
    call.inputs = (np.random.default_rng(0).integers(0, 2, (2, 3, 6, 7)).astype(float),)
    assert_equal_to_pytorch(call)


@pytest.mark.parametrize("seed", range(200))
def test_random_convolutions_are_pytorchs(seed: int) -> None:
    draw = np.random.default_rng(seed)
    groups = int(draw.integers(1, 4))
    channels, features = (groups * int(n) for n in draw.integers(1, 4, 2))
    kernel, stride, dilation = ((int(a), int(b)) for a, b in draw.integers(1, 4, (3, 2)))
    padding = (int(draw.integers(0, 4)), int(draw.integers(0, 4)))
    layer = Conv2d(features, kernel, stride, padding, dilation, groups, bool(draw.integers(2)))
    least = [max(1, d * (k - 1) + 1 - 2 * p) for k, d, p in zip(kernel, dilation, padding, strict=True)]
    shape = (int(draw.integers(1, 4)), channels, *(n + int(draw.integers(6)) for n in least))
    assert_equal_to_pytorch(ImageCall(layer, shape))
