"""Calls of single layers on images, for the laws of `test_image_layers`."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import strategies as st

from framework import (
    AveragePool2d,
    Conv2d,
    Flatten,
    GlobalAveragePool,
    Layer,
    Ledger,
    MaxPool2d,
    Reshape,
    Upsample2d,
)
from framework.layers import Join
from tests.framework.test_layer_tangents import Moving
from tests.framework.test_layers import Shape, numbers, spec_of

#: Layers and the shapes that they are tried on: a channel, a pixel, an image alone, none, and more than one block.
LAYERS: dict[str, tuple[Layer, tuple[Shape, ...]]] = {
    "convolution": (Conv2d(4, 3), ((3, 2, 5, 6), (1, 1, 3, 3), (0, 2, 5, 6), (5, 3, 40, 37))),
    "padded convolution": (Conv2d(3, 3, padding=1), ((2, 2, 5, 1), (1, 1, 1, 1), (70, 3, 4, 4))),
    "far padded convolution": (Conv2d(2, 2, padding=3), ((2, 3, 1, 2),)),
    "stride above the kernel": (Conv2d(3, 2, stride=3), ((2, 2, 7, 8), (1, 1, 2, 2))),
    "stride below the kernel": (Conv2d(5, (3, 2), stride=(2, 1), padding=(0, 1)), ((3, 2, 6, 4),)),
    "dilated convolution": (Conv2d(2, 3, stride=2, padding=2, dilation=(2, 3)), ((2, 3, 6, 7),)),
    "grouped convolution": (Conv2d(6, 3, padding=1, groups=3), ((2, 6, 4, 5), (9, 3, 9, 9))),
    "depthwise convolution": (Conv2d(6, 3, padding=1, groups=3), ((4, 3, 4, 5),)),
    "convolution of one pixel": (Conv2d(5, 1), ((3, 4, 2, 3), (1, 1, 1, 1), (0, 2, 3, 3))),
    "grouped convolution of one pixel": (Conv2d(4, 1, groups=2, bias=False), ((3, 4, 2, 3),)),
    "convolution of one pixel with a stride": (Conv2d(3, 1, stride=2, bias=False), ((2, 3, 5, 4),)),
    "largest": (MaxPool2d(2), ((2, 3, 5, 6), (1, 1, 2, 2), (0, 2, 4, 4), (3, 5, 80, 82))),
    "largest of windows that overlap": (MaxPool2d(3, 2, 1), ((2, 2, 6, 5), (1, 2, 1, 1))),
    "largest with gaps": (MaxPool2d((1, 2), 3), ((2, 2, 5, 6),)),
    "largest of many": (MaxPool2d(17), ((2, 1, 18, 34),)),
    "mean": (AveragePool2d(2), ((2, 3, 5, 6), (1, 1, 2, 2), (0, 2, 4, 4), (3, 5, 80, 82))),
    "mean of windows that overlap": (AveragePool2d(3, 2, 1), ((2, 2, 6, 5), (1, 2, 1, 1))),
    "mean with gaps": (AveragePool2d((1, 2), 3), ((2, 2, 5, 6),)),
    "mean of all": (GlobalAveragePool(), ((2, 3, 4, 5), (1, 1, 1, 1), (0, 2, 3, 3))),
    "upsampling": (Upsample2d(2), ((2, 3, 2, 3), (1, 1, 1, 1), (0, 1, 2, 2))),
    "upsampling of one axis": (Upsample2d((1, 3)), ((2, 1, 2, 3),)),
    "flatten": (Flatten(), ((2, 3, 4, 5), (3, 1), (0, 2, 3))),
    "reshape": (Reshape((4, 1, 3)), ((2, 12), (1, 3, 4), (0, 12))),
    "join": (Join(), ((2, 3, 4, 5), (1, 1), (0, 2, 3))),
    "join along the last axis": (Join(-1), ((2, 3, 4),)),
}
CALLS = [(name, shape) for name, (_, shapes) in LAYERS.items() for shape in shapes]

_NUMBER = st.integers(1, 4)
_PAIR = st.tuples(_NUMBER, _NUMBER)


@st.composite
def _convolutions(draw: st.DrawFn) -> tuple[Layer, Shape]:
    groups, kernel, dilation = draw(st.integers(1, 3)), draw(_PAIR), draw(_PAIR)
    padding = draw(st.tuples(st.integers(0, 3), st.integers(0, 3)))
    layer = Conv2d(groups * draw(_NUMBER), kernel, draw(_PAIR), padding, dilation, groups, draw(st.booleans()))
    reach = [d * (k - 1) + 1 - 2 * p for d, k, p in zip(dilation, kernel, padding, strict=True)]
    return layer, (
        draw(st.integers(0, 3)),
        groups * draw(_NUMBER),
        *(max(1, n) + draw(st.integers(0, 9)) for n in reach),
    )


@st.composite
def _pools(draw: st.DrawFn) -> tuple[Layer, Shape]:
    kernel = draw(_PAIR)
    padding = tuple(draw(st.integers(0, size // 2)) for size in kernel)
    layer = draw(st.sampled_from([MaxPool2d, AveragePool2d]))(kernel, draw(st.none() | _PAIR), padding)
    sizes = (max(1, k - 2 * p) + draw(st.integers(0, 9)) for k, p in zip(kernel, padding, strict=True))
    return layer, (draw(st.integers(0, 3)), draw(_NUMBER), *sizes)


@st.composite
def _others(draw: st.DrawFn) -> tuple[Layer, Shape]:
    shape = (draw(st.integers(0, 3)), *(draw(st.integers(1, 9)) for _ in range(3)))
    layers = [GlobalAveragePool(), Upsample2d(draw(_PAIR)), Flatten(), Reshape((shape[3], shape[1] * shape[2]))]
    layers.append(Join(draw(st.sampled_from([1, 2, 3, -1]))))
    return draw(st.sampled_from(layers)), shape


#: A layer with options, and a shape that it takes.
ANY_IMAGES = _convolutions() | _pools() | _others()


class ImageCall(Moving):
    """A layer with arrays to call it on, and tangents of them; a Join's second input is one longer."""

    def __init__(self, layer: Layer, shape: Shape, dtype: str = "float64") -> None:
        generator = np.random.default_rng([len(shape), *shape])
        self.dtype, self.training, self.layer = dtype, True, layer
        shapes = self.shapes(shape)
        self.inputs = tuple(numbers(generator, shape, dtype) for shape in shapes)
        self.spec = self.joined([spec_of(x) for x in self.inputs])
        self.footprint = layer.footprint(self.spec)
        parameters = layer.parameters(spec_of(self.inputs[0]))
        self.params = {local: numbers(generator, p.shape, p.dtype.name) for local, p in parameters.items()}
        self.state: dict[str, np.ndarray] = {}
        self.cotangent = numbers(generator, self.footprint.output.shape, dtype)
        self.tangents = tuple(numbers(generator, x.shape, dtype) for x in self.inputs)
        self.params_tangent = {local: numbers(generator, p.shape, dtype) for local, p in self.params.items()}
        self.cotangent_tangent = numbers(generator, self.cotangent.shape, dtype)

    def shapes(self, first: Shape) -> list[Shape]:
        """The shapes of all inputs, given that of the first."""
        if not isinstance(self.layer, Join):
            return [first]
        axis = self.layer.axis % len(first)
        return [first, (*first[:axis], first[axis] + 1, *first[axis + 1 :])]


def assert_bytes_are_exact(call: ImageCall) -> None:
    """Forward, VJP and JVP take from a ledger what the footprint says, and leave what they return."""
    footprint, ledger = call.footprint, Ledger()
    made = 0 if footprint.output_aliases_input else footprint.output.nbytes
    y, own = call.forward(ledger)
    assert spec_of(y) == footprint.output
    assert tuple(map(spec_of, own)) == footprint.own
    assert (ledger.live, ledger.peak) == (
        made + footprint.own_nbytes,
        made + footprint.own_nbytes + footprint.forward_workspace,
    )
    del y, own
    assert ledger.live == 0
    for wanted in (True, False):
        ledger = Ledger()
        kept: Any = call.vjp(ledger, wanted=wanted)
        aliases = enumerate(zip(call.inputs, footprint.cotangent_aliases, strict=True))
        sizes = [footprint.cotangent(i, spec_of(x)).nbytes for i, (x, alias) in aliases if not alias]
        new = sum(sizes) if wanted else 0
        has_work = wanted or bool(call.params)
        assert (ledger.live, ledger.peak) == (new, new + footprint.backward_workspace * has_work)
        assert ledger.by_category() == ({"cotangents": new} if new else {})
        del kept
    ledger = Ledger()
    kept = call.jvp(ledger)
    assert (ledger.live, ledger.peak) == (2 * made, 2 * made + footprint.jvp_workspace)
    assert ledger.by_category() == ({"activations": 2 * made} if made else {})
    del kept
