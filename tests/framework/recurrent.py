"""Calls of the leaf steps of an LSTM, for the laws of `test_lstm`."""

from __future__ import annotations

from hypothesis import strategies as st

from framework import Layer
from framework.layers import LSTMChunk, LSTMOutput
from tests.framework.images import ImageCall
from tests.framework.test_layers import Shape

#: Leaf steps and shapes of their first input: chunks that divide time and not, a short one, an empty one, a single one.
STEPS: dict[str, tuple[Layer, tuple[Shape, ...]]] = {
    "the first chunk": (LSTMChunk(3, 0, 3), ((2, 7, 4), (1, 1, 1), (0, 5, 2), (5, 3, 2))),
    "a chunk in the middle": (LSTMChunk(3, 1, 3), ((2, 7, 4), (3, 6, 2), (0, 5, 2))),
    "a chunk that is shorter": (LSTMChunk(2, 2, 3), ((2, 7, 4),)),
    "a chunk of a step": (LSTMChunk(4, 4, 5), ((2, 5, 3),)),
    "a chunk without a step": (LSTMChunk(2, 3, 4), ((2, 3, 4), (1, 9, 2))),
    "a single chunk": (LSTMChunk(3, 0, 1), ((2, 5, 4),)),
    "one feature": (LSTMChunk(1, 1, 2), ((2, 5, 1),)),
    "a long chunk": (LSTMChunk(33, 1, 2), ((17, 40, 21),)),
    "outputs": (LSTMOutput(3), ((5, 2, 4), (3, 0, 2))),
    "outputs of a single chunk": (LSTMOutput(1), ((5, 2, 4),)),
    "outputs of chunks without a step": (LSTMOutput(4), ((3, 2, 3),)),
}
CALLS = [(name, shape) for name, (_, shapes) in STEPS.items() for shape in shapes]


@st.composite
def any_step(draw: st.DrawFn) -> tuple[Layer, Shape]:
    """A leaf step and the shape of its first input."""
    chunks = draw(st.integers(1, 5))
    batch, size = draw(st.integers(0, 4)), draw(st.integers(1, 6))
    if draw(st.booleans()):
        return LSTMOutput(chunks), (draw(st.integers(3, 6)), batch, size)
    layer = LSTMChunk(draw(st.integers(1, 6)), draw(st.integers(0, chunks - 1)), chunks)
    return layer, (batch, draw(st.integers(1, 12)), size)


class StepCall(ImageCall):
    """A leaf step with arrays to call it on; chunks of outputs are as long as the first, the last one shorter."""

    def shapes(self, first: Shape) -> list[Shape]:
        layer = self.layer
        if isinstance(layer, LSTMOutput):
            each = first[0] - 2
            length = max(1, layer.chunks * each - 1) if each > 1 else each * max(1, layer.chunks - 1)
            spans = [LSTMChunk(1, number, layer.chunks).span(length) for number in range(layer.chunks)]
            return [(stop - start + 2, *first[1:]) for start, stop in spans]
        assert isinstance(layer, LSTMChunk)
        if layer.number == 0:
            return [first]
        start, stop = LSTMChunk(1, layer.number - 1, layer.chunks).span(first[1])
        return [first, (stop - start + 2, first[0], layer.features)]
