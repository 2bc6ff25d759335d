"""The laws that every leaf layer keeps: definition, derivative, bytes, dtypes, purity."""

from __future__ import annotations

import math
import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from framework import (
    ELU,
    GELU,
    Attention,
    BatchNorm,
    CausalAttention,
    Dropout,
    Embedding,
    GroupNorm,
    Hardswish,
    Hardtanh,
    Key,
    Layer,
    LayerNorm,
    LeakyReLU,
    Ledger,
    Linear,
    LogSoftmax,
    Mish,
    ReLU,
    RMSNorm,
    Sigmoid,
    SiLU,
    Softmax,
    Softplus,
    Spec,
    Tanh,
    kernels,
)
from framework.differentiation import vjp
from framework.layers import Add, Context

BLOCK = kernels.BLOCK
Shape = tuple[int, ...]

#: Definition and rule in float64 differ by rounding alone: a few hundred times 2⁻⁵³, relative to the largest element.
TOLERANCE = {"float64": 1e-12, "float32": 1e-5}
STEP = 1e-6
#: Central differences with this step have a relative error of some STEP² · third derivative + 2⁻⁵³ / STEP ≈ 1e-10,
#: a thousand times more where a LayerNorm's row is nearly constant.
DIFFERENCES = 1e-6


@dataclass(frozen=True)
class Family:
    """A layer and the inputs that it is tried on.

    Attributes:
        make: Makes the layer for a dtype.
        small: Shapes of up to some hundred elements, zero rows among them.
        large: Shapes that take several blocks, whole and not.
        tiny: A shape whose every element is checked.
        inputs: Number of inputs.
        tokens: Whether the input is integers below 11.
        training: False for evaluation.
    """

    make: Callable[[str], Layer]
    small: st.SearchStrategy[Shape]
    large: tuple[Shape, ...]
    tiny: Shape
    inputs: int = 1
    tokens: bool = False
    training: bool = True


def shapes(*last: st.SearchStrategy[int]) -> st.SearchStrategy[Shape]:
    """Up to two axes of any length, zero too, before the given ones."""
    return st.tuples(st.lists(st.integers(0, 4), max_size=2).map(tuple), *last).map(lambda t: (*t[0], *t[1:]))


ANY = shapes(st.integers(0, 9))
ROWS = shapes(st.integers(1, 9))
FLAT = ((BLOCK,), (BLOCK + 1,), (2 * BLOCK + 77,), (3, BLOCK // 2 + 1), (1, 2, BLOCK))
TABLE = ((BLOCK // 8, 8), (BLOCK // 7 + 5, 7), (1, BLOCK), (3, BLOCK + 1), (2, 3, BLOCK // 2 - 1), (2, 1300, 9))
TALL = st.tuples(st.integers(2, 6), st.integers(1, 5))
PLANES = st.tuples(st.integers(2, 5), st.integers(1, 4), st.integers(1, 3), st.integers(1, 3))
CHANNELS = ((40, 3, 12, 12), (3, 2, BLOCK // 4 + 3), (2, 3, BLOCK // 2), (2, 2, BLOCK + 1))

GROUPS = st.tuples(
    st.integers(0, 4), st.sampled_from([2, 4, 6]), st.lists(st.integers(1, 3), max_size=2).map(tuple)
).map(lambda t: (*t[:2], *t[2]))
GROUPED = ((40, 6, 12, 12), (3, 2, BLOCK // 2 + 3), (2, 6, BLOCK // 4), (2, 2, BLOCK + 1), (5000, 4))


def attention(width: int) -> dict[str, Any]:
    lengths = (63, 64, 65, 128, 150)
    return {
        "small": st.tuples(st.integers(0, 3), st.integers(1, 9), st.just(width)),
        "large": (*((2, length, width) for length in lengths), (0, 70, width)),
        "tiny": (2, 4, width),
    }


FAMILIES = {
    "linear": Family(lambda _: Linear(5), ANY, TABLE, (3, 4)),
    "linear without bias": Family(lambda _: Linear(3, bias=False), ANY, TABLE, (2, 2, 3)),
    "embedding": Family(
        lambda dtype: Embedding(11, 20, 5, dtype),
        shapes(st.integers(1, 20)),
        ((BLOCK // 5, 1), (400, 20), (2, 171, 19)),
        (2, 3),
        tokens=True,
    ),
    "embedding without positions": Family(
        lambda dtype: Embedding(11, None, 5, dtype), shapes(st.integers(0, 20)), ((2, 171, 19),), (2, 3), tokens=True
    ),
    "layer norm": Family(lambda _: LayerNorm(), ROWS, TABLE, (2, 2, 3)),
    "attention": Family(lambda _: CausalAttention(2), **attention(18)),
    "attention of one head": Family(lambda _: CausalAttention(1), **attention(3)),
    "attention to all tokens": Family(lambda _: Attention(2), **attention(18)),
    "gelu": Family(lambda _: GELU(), ANY, FLAT, (2, 3)),
    "relu": Family(lambda _: ReLU(), ANY, FLAT, (2, 3)),
    "exact gelu": Family(lambda _: GELU(approximate=False), ANY, FLAT[:3], (2, 3)),
    "leaky relu": Family(lambda _: LeakyReLU(), ANY, FLAT[:3], (2, 3)),
    "steep relu": Family(lambda _: LeakyReLU(1.7), ANY, FLAT[:1], (2, 3)),
    "elu": Family(lambda _: ELU(), ANY, FLAT[:3], (2, 3)),
    "elu of alpha 0.3": Family(lambda _: ELU(0.3), ANY, FLAT[:1], (2, 3)),
    "hardtanh": Family(lambda _: Hardtanh(), ANY, FLAT[:3], (2, 3)),
    "relu6": Family(lambda _: Hardtanh(0.0, 6.0), ANY, FLAT[:1], (2, 3)),
    "hardswish": Family(lambda _: Hardswish(), ANY, FLAT[:3], (2, 3)),
    "mish": Family(lambda _: Mish(), ANY, FLAT[:3], (2, 3)),
    "tanh": Family(lambda _: Tanh(), ANY, FLAT[:3], (2, 3)),
    "sigmoid": Family(lambda _: Sigmoid(), ANY, FLAT[:3], (2, 3)),
    "silu": Family(lambda _: SiLU(), ANY, FLAT[:3], (2, 3)),
    "softplus": Family(lambda _: Softplus(), ANY, FLAT[:3], (2, 3)),
    "sharp softplus with its threshold among the inputs": Family(lambda _: Softplus(2.5, 1.2), ANY, FLAT[:3], (2, 3)),
    "softplus with a threshold below zero": Family(lambda _: Softplus(2.0, -0.9), ANY, FLAT[:1], (2, 3)),
    "softmax": Family(lambda _: Softmax(), ANY, TABLE[:4], (2, 2, 3)),
    "log-softmax": Family(lambda _: LogSoftmax(), ANY, TABLE[:4], (2, 2, 3)),
    "rms norm": Family(lambda _: RMSNorm(), ROWS, TABLE, (2, 2, 3)),
    "group norm": Family(lambda _: GroupNorm(2), GROUPS, (*GROUPED, (0, 4, 3)), (2, 4, 2)),
    "group norm of one group": Family(lambda _: GroupNorm(1, epsilon=0.1), GROUPS, GROUPED[:3], (2, 2, 2)),
    "group norm without weights": Family(lambda _: GroupNorm(2, affine=False), GROUPS, GROUPED[:3], (2, 4, 2)),
    "batch norm": Family(lambda _: BatchNorm(), PLANES, CHANNELS, (3, 2, 2)),
    "batch norm of a table": Family(
        lambda _: BatchNorm(epsilon=0.1), TALL, ((2 * BLOCK // 7 + 5, 7), (3, BLOCK + 1)), (3, 4)
    ),
    "batch norm without weights": Family(lambda _: BatchNorm(affine=False), PLANES, CHANNELS[:2], (3, 2, 2)),
    "batch norm in evaluation": Family(lambda _: BatchNorm(), PLANES, CHANNELS[:2], (3, 2, 2), training=False),
    "dropout": Family(lambda _: Dropout(0.3), ANY, FLAT, (2, 3)),
    "dropout of rate zero": Family(lambda _: Dropout(0.0), ANY, FLAT, (2, 3)),
    "dropout in evaluation": Family(lambda _: Dropout(0.3), ANY, FLAT, (2, 3), training=False),
    "add": Family(lambda _: Add(), ANY, FLAT, (2, 3), inputs=2),
}
LARGE = [(name, shape) for name, family in FAMILIES.items() for shape in family.large]

each_layer = pytest.mark.parametrize("name", FAMILIES)
each_dtype = pytest.mark.parametrize("dtype", ["float32", "float64"])
each_large = pytest.mark.parametrize(("name", "shape"), LARGE)


def numbers(generator: np.random.Generator, shape: Shape, dtype: str) -> np.ndarray:
    """Normal numbers kept away from zero, where ReLU has no derivative; read-only, so that writing to them raises."""
    normal = generator.standard_normal(shape)
    return locked((normal + np.copysign(0.1, normal)).astype(dtype))


def locked(a: np.ndarray) -> np.ndarray:
    a.setflags(write=False)
    return a


def spec_of(a: np.ndarray) -> Spec:
    return Spec.of(a.shape, a.dtype)


class Call:
    """A layer together with read-only arrays to call it on."""

    def __init__(self, name: str, shape: Shape, dtype: str = "float64") -> None:
        family = FAMILIES[name]
        generator = np.random.default_rng([len(shape), *shape])
        self.dtype, self.training = dtype, family.training
        self.layer = family.make(dtype)
        if family.tokens:
            self.inputs = (locked(generator.integers(0, 11, shape).astype(np.uint8)),)
        else:
            self.inputs = tuple(numbers(generator, shape, dtype) for _ in range(family.inputs))
        self.spec = self.joined([spec_of(x) for x in self.inputs])
        self.footprint = self.layer.footprint(self.spec, self.training)
        first = spec_of(self.inputs[0])
        self.params = {
            local: numbers(generator, parameter.shape, parameter.dtype.name)
            for local, parameter in self.layer.parameters(first).items()
        }
        self.cotangent = numbers(generator, self.footprint.output.shape, dtype)
        kept = self.layer.state(first)
        self.state = {n: locked(np.abs(numbers(generator, each.shape, dtype))) for n, each in kept.items()}

    @staticmethod
    def joined(each: Any) -> Any:
        """One input as it is, several as a tuple."""
        return each[0] if len(each) == 1 else tuple(each)

    @property
    def x(self) -> Any:
        return self.joined(self.inputs)

    def context(self, ledger: Ledger | None = None, wanted: bool = True) -> Context:
        wants = (wanted,) * len(self.inputs)
        states = {"step": self.state}
        return Context(ledger or Ledger(), "step", Key(3).fold("step"), self.training, wants, states=states)

    def apply(self, x: Any = None, params: Any = None) -> np.ndarray:
        result: np.ndarray = self.layer.apply(params or self.params, self.x if x is None else x, self.context())
        return result

    def forward(self, ledger: Ledger | None = None) -> tuple[np.ndarray, tuple[np.ndarray, ...]]:
        return self.layer.forward(self.params, self.x, self.context(ledger))

    def vjp(
        self,
        ledger: Ledger | None = None,
        wanted: bool = True,
        fill: float = np.nan,
        only_needed: bool = True,
    ) -> tuple[tuple[Any, ...], dict[str, np.ndarray]]:
        """Returns the cotangents of the inputs and of the parameters, whose arrays start full of `fill`."""
        y, own = self.forward()
        needs = self.footprint.needs_input
        xs = [x if need or not only_needed else None for x, need in zip(self.inputs, needs, strict=True)]
        grads = {local: np.full_like(parameter, fill) for local, parameter in self.params.items()}
        found = self.layer.vjp(
            self.params,
            self.joined(xs),
            locked(y) if self.footprint.needs_output or not only_needed else None,
            tuple(map(locked, own)),
            self.cotangent,
            grads,
            self.context(ledger, wanted),
        )
        return found if len(self.inputs) > 1 else (found,), grads


def spread(call: Call, cotangents: Any) -> list[Any]:
    """Cotangents of the inputs with zeros around those that are a part."""
    found = []
    for number, (x, cotangent) in enumerate(zip(call.inputs, cotangents, strict=True)):
        extent = call.footprint.extent(number)
        if extent is not None and cotangent is not None:
            part, cotangent = cotangent, np.zeros_like(x)
            extent.of(cotangent)[...] = part
        found.append(cotangent)
    return found


def drawn(name: str, data: st.DataObject, dtype: str | None = None) -> Call:
    shape = data.draw(FAMILIES[name].small, "shape")
    return Call(name, shape, dtype or data.draw(st.sampled_from(["float32", "float64"]), "dtype"))


def assert_near(found: Any, expected: Any, tolerance: float) -> None:
    """The two differ by at most `tolerance` times the largest element (but not less than one)."""
    assert found.shape == expected.shape
    scale = max(1.0, float(np.abs(expected).max(initial=0)))
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance * scale)


def same_bits(a: Any, b: Any) -> bool:
    if a is None or b is None:
        return a is b
    return spec_of(a) == spec_of(b) and a.tobytes() == b.tobytes()


def assert_forward_is_the_definition(call: Call) -> None:
    assert_near(call.forward()[0], call.apply(), TOLERANCE[call.dtype])


@each_layer
@given(data=st.data())
def test_forward_is_the_definition(name: str, data: st.DataObject) -> None:
    assert_forward_is_the_definition(drawn(name, data))


@each_dtype
@each_large
def test_forward_is_the_definition_over_several_blocks(name: str, shape: Shape, dtype: str) -> None:
    assert_forward_is_the_definition(Call(name, shape, dtype))


def assert_vjp_is_the_derivative(call: Call) -> None:
    """⟨x̄, v⟩ = ⟨ȳ, (f(x + h v) - f(x - h v)) / 2h⟩ for a random v, for each input and each parameter."""
    generator = np.random.default_rng(7)
    cotangents, grads = call.vjp()
    cotangents = spread(call, cotangents)

    def check(cotangent: np.ndarray, start: np.ndarray, definition: Callable[[np.ndarray], np.ndarray]) -> None:
        direction = generator.standard_normal(start.shape)
        change = (definition(start + STEP * direction) - definition(start - STEP * direction)) / (2 * STEP)
        scale = 1 + float(np.abs(cotangent * direction).sum())
        assert abs(float((cotangent * direction).sum() - (call.cotangent * change).sum())) <= DIFFERENCES * scale

    if not isinstance(call.layer, Embedding):
        for place, (x, cotangent) in enumerate(zip(call.inputs, cotangents, strict=True)):
            check(
                cotangent,
                x,
                lambda v, at=place: call.apply(call.joined([*call.inputs[:at], v, *call.inputs[at + 1 :]])),
            )
    for local, parameter in call.params.items():
        check(grads[local], parameter, lambda v, at=local: call.apply(params={**call.params, at: v}))


@each_layer
@given(data=st.data())
def test_vjp_is_the_derivative_along_random_directions(name: str, data: st.DataObject) -> None:
    assert_vjp_is_the_derivative(drawn(name, data, "float64"))


@each_large
def test_vjp_is_the_derivative_over_several_blocks(name: str, shape: Shape) -> None:
    assert_vjp_is_the_derivative(Call(name, shape))


@each_layer
def test_vjp_is_the_derivative_element_by_element(name: str) -> None:
    call = Call(name, FAMILIES[name].tiny)
    cotangents, grads = call.vjp()

    def differences(start: np.ndarray, definition: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        found = np.empty_like(start)
        for place in np.ndindex(start.shape):
            change = np.zeros_like(start)
            change[place] = STEP
            found[place] = (call.cotangent * (definition(start + change) - definition(start - change))).sum() / (
                2 * STEP
            )
        return found

    for local, parameter in call.params.items():
        expected = differences(parameter, lambda v, at=local: call.apply(params={**call.params, at: v}))
        assert_near(grads[local], expected, DIFFERENCES)
    if FAMILIES[name].tokens:
        assert cotangents == (None,)
        return
    for place, x in enumerate(call.inputs):
        expected = differences(
            x, lambda v, at=place: call.apply(call.joined([*call.inputs[:at], v, *call.inputs[at + 1 :]]))
        )
        assert_near(cotangents[place], expected, DIFFERENCES)


#: Inputs are rounded to float32 as well, and a nearly constant row of LayerNorm magnifies that by up to 1/√epsilon = 316.
FLOAT32_DERIVATIVE = 2e-4


@each_layer
@given(data=st.data())
def test_vjp_in_float32_is_that_of_float64_rounded(name: str, data: st.DataObject) -> None:
    single = drawn(name, data, "float32")
    double = Call(name, single.inputs[0].shape, "float64")
    for found, expected in zip(single.vjp()[0], double.vjp()[0], strict=True):
        if expected is not None:
            assert_near(found, expected, FLOAT32_DERIVATIVE)
    grads = double.vjp()[1]
    for local, found in single.vjp()[1].items():
        assert_near(found, grads[local], FLOAT32_DERIVATIVE)


@each_layer
@given(data=st.data())
def test_vjp_overwrites_what_the_gradient_held(name: str, data: st.DataObject) -> None:
    call = drawn(name, data)
    from_nan, from_zero = call.vjp(fill=np.nan)[1], call.vjp(fill=0.0)[1]
    assert set(from_nan) == set(call.params)
    for local, found in from_nan.items():
        assert np.isfinite(found).all()
        assert same_bits(found, from_zero[local])


@each_layer
@given(data=st.data())
def test_what_the_footprint_does_not_need_may_be_none(name: str, data: st.DataObject) -> None:
    call = drawn(name, data)
    (few, few_grads), (all_, all_grads) = call.vjp(only_needed=True), call.vjp(only_needed=False)
    assert all(same_bits(a, b) for a, b in zip(few, all_, strict=True))
    assert all(same_bits(few_grads[local], all_grads[local]) for local in call.params)


@each_layer
@given(data=st.data())
def test_an_unwanted_cotangent_is_none_and_the_gradient_the_same(name: str, data: st.DataObject) -> None:
    call = drawn(name, data)
    cotangents, grads = call.vjp(wanted=False)
    assert cotangents == (None,) * len(call.inputs)
    assert all(same_bits(grads[local], found) for local, found in call.vjp()[1].items())


def assert_footprint_is_exact(call: Call) -> None:
    footprint, ledger = call.footprint, Ledger()
    y, own = call.forward(ledger)
    output = 0 if footprint.output_aliases_input else footprint.output.nbytes
    assert spec_of(y) == footprint.output
    assert tuple(map(spec_of, own)) == footprint.own
    assert (y is call.inputs[0]) == footprint.output_aliases_input
    assert ledger.peak == output + footprint.own_nbytes + footprint.forward_workspace
    assert ledger.live == output + footprint.own_nbytes
    found = {"activations": output, "residuals": footprint.own_nbytes}
    assert ledger.by_category() == {category: nbytes for category, nbytes in found.items() if nbytes}
    del y, own
    assert ledger.live == 0

    ledger = Ledger()
    cotangents, _ = call.vjp(ledger)
    assert [c is call.cotangent for c in cotangents] == list(footprint.cotangent_aliases)
    inputs = zip(call.inputs, footprint.cotangent_aliases, strict=True)
    new = sum(x.nbytes for x, aliases in inputs if x.dtype.kind == "f" and not aliases)
    assert ledger.peak == new + footprint.backward_workspace
    assert ledger.live == new
    assert ledger.by_category() == ({"cotangents": new} if new else {})


@each_layer
@given(data=st.data())
def test_the_footprint_is_exact_to_the_byte(name: str, data: st.DataObject) -> None:
    assert_footprint_is_exact(drawn(name, data))


@each_dtype
@each_large
def test_the_footprint_is_exact_over_several_blocks(name: str, shape: Shape, dtype: str) -> None:
    assert_footprint_is_exact(Call(name, shape, dtype))


@each_layer
@given(data=st.data())
def test_an_unwanted_cotangent_takes_no_bytes(name: str, data: st.DataObject) -> None:
    call, ledger = drawn(name, data), Ledger()
    call.vjp(ledger, wanted=False)
    assert ledger.live == 0
    # What has no parameters has nothing to do then, and no backward in any plan.
    assert ledger.peak == (call.footprint.backward_workspace if call.params else 0)


#: Tracing counts the interpreter's objects too (the list of 8,000 tokens that Embedding's VJP runs over has 64 KB), and
#: NumPy's buffers for casts; every array of a call's size has at least 320 KB.
OBJECTS = 100_000


@pytest.mark.parametrize("backward", [False, True], ids=["forward", "vjp"])
@each_layer
def test_numpy_allocates_nothing_behind_the_ledger(name: str, backward: bool) -> None:
    shape = {
        "linear": (8000, 9),
        "embedding": (400, 20),
        "layer": (8000, 9),
        "attention": (3, 500, 36),
        "batch": (30, 2, 1000),
        "group": (30, 2, 1000),
    }.get(name.split()[0], (60_000,))
    call, ledger = Call(name, (3, 5000, 3) if name == "attention of one head" else shape), Ledger()
    y, own = call.forward()
    grads = {local: np.empty_like(parameter) for local, parameter in call.params.items()}
    tracemalloc.start()
    try:
        if backward:
            call.layer.vjp(call.params, call.x, y, own, call.cotangent, grads, call.context(ledger))
        else:
            call.layer.forward(call.params, call.x, call.context(ledger))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert ledger.peak <= peak <= ledger.peak + OBJECTS


@each_dtype
@each_layer
@given(data=st.data())
def test_no_dtype_changes(name: str, dtype: str, data: st.DataObject) -> None:
    call = drawn(name, data, dtype)
    y, own = call.forward()
    cotangents, grads = call.vjp()
    arrays = [y, *own, *(c for c in cotangents if c is not None), *grads.values()]
    assert {a.dtype.name for a in arrays} == {dtype}
    assert call.apply().dtype.name == dtype


@each_layer
@given(data=st.data())
def test_arguments_are_not_changed(name: str, data: st.DataObject) -> None:
    call = drawn(name, data)  # its arrays are read-only, so that writing would raise; the bytes say it once more
    arrays = [*call.inputs, *call.params.values(), call.cotangent]
    before = [a.tobytes() for a in arrays]
    call.forward()
    call.vjp()
    assert [a.tobytes() for a in arrays] == before


@each_large
def test_twice_gives_the_same_bits(name: str, shape: Shape) -> None:
    call = Call(name, shape, "float32")
    (y, own), (y2, own2) = call.forward(), call.forward()
    (xs, grads), (xs2, grads2) = call.vjp(), call.vjp()
    first, second = [y, *own, *xs, *grads.values()], [y2, *own2, *xs2, *grads2.values()]
    assert all(same_bits(a, b) for a, b in zip(first, second, strict=True))


@each_layer
@given(data=st.data())
def test_in_place_has_the_same_bits_and_takes_no_array(name: str, data: st.DataObject) -> None:
    call = drawn(name, data)
    footprint, ledger = call.footprint, Ledger()
    context = call.context(ledger)
    context.in_place = True
    (y, own), (cotangents, grads) = call.forward(), call.vjp()
    if footprint.forward_in_place:
        over = [x.copy() for x in call.inputs]
        found, found_own = call.layer.forward(call.params, call.joined(over), context)
        assert found is over[0]
        assert all(same_bits(a, b) for a, b in zip((y, *own), (found, *found_own), strict=True))
        assert ledger.peak == footprint.own_nbytes + footprint.forward_workspace
        del found_own
        ledger.mark("vjp")
    if footprint.backward_in_place:
        cotangent = call.cotangent.copy()
        into = {local: np.empty_like(parameter) for local, parameter in call.params.items()}
        given_y = y if footprint.needs_output else None
        back = call.layer.vjp(call.params, call.x, given_y, own, cotangent, into, context)
        back = back[0] if len(call.inputs) > 1 else back
        assert np.may_share_memory(back, cotangent) or not cotangent.size
        assert same_bits(back, cotangents[0])
        assert all(same_bits(into[local], grads[local]) for local in grads)
        assert ledger.live == 0


#: Where exponentials overflow, squares are large, and signs change.
EXTREMES = [-1e4, -100.0, -88.8, -20.5, -20.0, -1.0, -0.0, 0.0, 1e-30, 1.0, 19.9, 20.0, 20.5, 88.8, 100.0, 1e4]
OF_ONE = {
    "leaky relu": lambda x: np.where(x > 0, x, 0.01 * x),
    "elu": lambda x: np.where(x > 0, x, np.expm1(np.minimum(x, 0))),
    "hardswish": lambda x: x * np.clip(x / 6 + 0.5, 0, 1),
    "mish": lambda x: x * np.tanh(np.logaddexp(0, x)),
    "tanh": np.tanh,
    "sigmoid": lambda x: np.exp(-np.logaddexp(0, -x)),
    "silu": lambda x: x * np.exp(-np.logaddexp(0, -x)),
    "softplus": lambda x: np.logaddexp(0, x),
    "gelu": lambda x: 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))),
    "exact gelu": lambda x: 0.5 * x * (1 + np.vectorize(math.erf)(x / np.sqrt(2))),
    "softmax": lambda x: np.exp(x - np.logaddexp.reduce(x)),
    "log-softmax": lambda x: x - np.logaddexp.reduce(x),
    "layer norm": lambda x: (x - x.mean()) / np.sqrt(x.var() + 1e-5),
    "rms norm": lambda x: x / np.sqrt((x * x).mean() + 1e-5),
}


@each_dtype
@pytest.mark.parametrize("name", OF_ONE)
def test_nothing_overflows_at_ten_thousand_in_float32(name: str, dtype: str) -> None:
    call = Call(name, (len(EXTREMES),), dtype)
    x = np.array(EXTREMES, dtype)
    call.inputs = (x,)
    call.params = {local: np.full(x.shape, local == "weight", dtype) for local in call.params}
    y, _ = call.forward()
    np.testing.assert_allclose(
        y, OF_ONE[name](x.astype(np.float64)), rtol=1e-5, atol=1e-6 if dtype == "float32" else 1e-8
    )
    cotangents, grads = call.vjp()
    for found in (y, *cotangents, *grads.values(), call.apply()):
        assert found.dtype == dtype
        assert np.isfinite(found).all()
    assert_near(y, call.apply(), TOLERANCE[dtype])
    traced = vjp(lambda params, x: call.apply(x, params), call.params, x)[1](call.cotangent)
    assert_near(cotangents[0], traced[1], 1e-4 if dtype == "float32" else 1e-8)
    wide = Call(name, x.shape, "float64")
    wide.inputs, wide.cotangent = (x.astype(np.float64),), call.cotangent.astype(np.float64)
    wide.params = {local: parameter.astype(np.float64) for local, parameter in call.params.items()}
    (exact, *_), exact_grads = wide.vjp()
    np.testing.assert_allclose(cotangents[0], exact, rtol=1e-4, atol=1e-6)
    for local, found in grads.items():
        np.testing.assert_allclose(found, exact_grads[local], rtol=1e-4, atol=1e-6)


def test_group_norm_does_not_overflow_at_ten_thousand_in_float32() -> None:
    narrow, wide = (Call("group norm", (3, 4, 16), dtype) for dtype in ("float32", "float64"))
    x = np.stack([np.roll(np.resize(np.array(EXTREMES, np.float32), (4, 16)), n, axis=1) for n in range(3)])
    narrow.inputs, wide.inputs = (x,), (x.astype(np.float64),)
    wide.cotangent = narrow.cotangent.astype(np.float64)
    wide.params = {local: parameter.astype(np.float64) for local, parameter in narrow.params.items()}
    assert_near(narrow.forward()[0], wide.forward()[0], 1e-5)
    (cotangents, grads), (exact, exact_grads) = narrow.vjp(), wide.vjp()
    assert_near(cotangents[0], exact[0], 1e-5)
    for local, found in grads.items():
        assert_near(found, exact_grads[local], 1e-5)


def test_activations_and_group_norm_say_what_they_do_not_take() -> None:
    for alpha in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="ELU takes a finite alpha above 0"):
            ELU(alpha)
    for low, high in ((1.0, 1.0), (2.0, 1.0), (math.nan, 1.0)):
        with pytest.raises(ValueError, match="Hardtanh takes a low below its high"):
            Hardtanh(low, high)
    for groups, epsilon in ((0, 1e-5), (2.0, 1e-5), (2, 0.0), (2, math.nan)):
        with pytest.raises(ValueError, match="GroupNorm takes a whole number of groups"):
            GroupNorm(groups, epsilon)  # type: ignore[arg-type]
    for slope in (0.0, -0.1, math.nan, math.inf):
        with pytest.raises(ValueError, match="LeakyReLU takes a finite slope above 0"):
            LeakyReLU(slope)
    for beta in (0.0, -1.0, math.nan):
        with pytest.raises(ValueError, match="Softplus takes a finite beta above 0"):
            Softplus(beta)
    with pytest.raises(ValueError, match="threshold"):
        Softplus(threshold=math.nan)


def test_a_softplus_keeps_its_output_alone_where_that_tells_its_slope() -> None:
    x = Spec.of((4,), np.float64)
    needs = [(f.needs_input, f.needs_output) for f in (Softplus(threshold=t).footprint(x) for t in (20.0, 19.0))]
    assert needs == [((False,), True), ((True,), False)]


@each_layer
def test_an_input_that_is_not_contiguous_is_refused_or_read_right(name: str) -> None:
    call = Call(name, FAMILIES[name].tiny)
    expected = call.forward()[0]
    call.inputs = tuple(np.asfortranarray(x) for x in call.inputs)
    assert not call.inputs[0].flags.c_contiguous
    try:
        found = call.forward()[0]
    except ValueError as error:
        assert "contiguous" in str(error) or "unit stride" in str(error)
    else:
        np.testing.assert_allclose(found, expected, rtol=1e-12)


@pytest.mark.parametrize(
    ("layer", "x", "message"),
    [
        (Linear(3), Spec.of((2, 3), np.int64), "Linear takes an array of floats.*int64"),
        (Linear(3), Spec.of((), np.float32), "at least one axis"),
        (LayerNorm(), Spec.of((2, 3), np.uint8), "LayerNorm takes an array of floats.*uint8"),
        (GELU(), Spec.of((), np.float32), "GELU takes"),
        (ReLU(), Spec.of((2,), np.bool_), "ReLU takes"),
        (SiLU(), Spec.of((2,), np.int64), "SiLU takes"),
        (Softmax(), Spec.of((), np.float32), "Softmax takes"),
        (LogSoftmax(), Spec.of((2, 3), np.int64), "LogSoftmax takes"),
        (RMSNorm(), Spec.of((2, 3), np.uint8), "RMSNorm takes"),
        (GroupNorm(2), Spec.of((2, 4), np.int32), "GroupNorm takes an array of floats"),
        (GroupNorm(2), Spec.of((4,), np.float32), r"GroupNorm with 2 groups takes an input \(N, C, ...\)"),
        (GroupNorm(2), Spec.of((2, 5), np.float32), "channels are divisible by them"),
        (GroupNorm(2), Spec.of((2, 4, 0), np.float32), "and not empty"),
        (Dropout(0.5), Spec.of((2,), np.int32), "Dropout takes"),
        (Embedding(4, 3, 2), Spec.of((2, 3), np.float32), "integer tokens.*float32"),
        (Embedding(4, 3, 2), Spec.of((), np.int32), "at least one axis"),
        (Embedding(4, 3, 2), Spec.of((2, 4), np.int32), "3 positions.*4 tokens"),
        (CausalAttention(2), Spec.of((2, 6), np.float32), "CausalAttention with 2 heads.*batch, tokens"),
        (Attention(2), Spec.of((2, 6), np.float32), "^Attention with 2 heads.*batch, tokens"),
        (CausalAttention(2), Spec.of((2, 5, 9), np.float32), r"2 heads.*2, 5, 9"),
        (CausalAttention(2), Spec.of((2, 5, 12), np.int64), "floats"),
        (Add(), (Spec.of((2,), np.float32), Spec.of((3,), np.float32)), r"input is float32\[3\].*float32\[2\]"),
        (Add(), (Spec.of((2,), np.float32), Spec.of((2,), np.float64)), "shape and dtype"),
    ],
)
def test_an_input_that_a_layer_does_not_take_is_a_clear_error(layer: Layer, x: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        layer.footprint(x)


@pytest.mark.parametrize("token", [-1, 4])
def test_a_token_outside_the_vocabulary_is_an_error(token: int) -> None:
    layer = Embedding(4, 3, 2)
    params = {"token": np.zeros((4, 2), np.float32), "position": np.zeros((3, 2), np.float32)}
    with pytest.raises(ValueError, match=rf"\[0, 4\).*{token}"):
        layer.forward(params, np.array([[0, token]]), Context(Ledger()))


def test_an_embedding_of_no_tokens_runs_or_is_refused_by_its_footprint() -> None:
    layer, x = Embedding(4, 3, 2, "float64"), np.empty((2, 0), np.int64)
    try:
        layer.footprint(spec_of(x))
    except ValueError:
        return
    params = {"token": np.ones((4, 2)), "position": np.ones((3, 2))}
    grads = {local: np.full_like(parameter, np.nan) for local, parameter in params.items()}
    y, own = layer.forward(params, x, Context(Ledger()))
    layer.vjp(params, x, None, own, np.empty(y.shape), grads, Context(Ledger()))
    assert not grads["token"].any()
    assert not grads["position"].any()


def test_positions_beyond_the_sequence_have_a_zero_cotangent() -> None:
    layer, x = Embedding(4, 5, 2, "float64"), np.array([[1, 2, 1]])
    params = {"token": np.ones((4, 2)), "position": np.ones((5, 2))}
    grads = {local: np.full_like(parameter, np.nan) for local, parameter in params.items()}
    cotangent = np.arange(6.0).reshape(1, 3, 2)
    layer.vjp(params, x, None, (), cotangent, grads, Context(Ledger()))
    np.testing.assert_array_equal(grads["token"], [[0, 0], [4, 6], [2, 3], [0, 0]])
    np.testing.assert_array_equal(grads["position"], [[0, 1], [2, 3], [4, 5], [0, 0], [0, 0]])


def test_a_linear_layer_starts_within_one_over_the_root_of_its_width() -> None:
    specs = Linear(200).parameters(Spec.of((4, 25), np.float64))
    weight = np.full(specs["weight"].shape, np.nan)
    specs["weight"].initializer(weight, Key(0))
    # 5,000 uniform numbers: the largest lies within 1 % of the bound, the mean within six of its standard deviations.
    assert 0.99 * 0.2 < np.abs(weight).max() <= 0.2
    assert abs(weight.mean()) < 6 * 0.2 / np.sqrt(3 * weight.size)


def test_specs_know_their_size() -> None:
    spec = Spec.of([2, 3, 4], "float32")
    assert (spec.size, spec.nbytes, spec.rows, str(spec)) == (24, 96, 6, "float32[2, 3, 4]")
    assert Spec.of((), "float64").nbytes == 8
    assert Spec.of((2, 0), "float64").nbytes == 0
