"""The laws that every loss keeps."""

from __future__ import annotations

import tracemalloc
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from framework import CrossEntropy, Ledger, Loss, MeanSquaredError, Spec, kernels
from framework.differentiation import value_and_grad
from framework.layers import Context

BLOCK = kernels.BLOCK
Shape = tuple[int, ...]

#: Shapes of y: no example, one, odd ones; and whole blocks, parts of blocks and rows wider than a block.
SMALL = st.tuples(st.integers(0, 4), st.lists(st.integers(1, 3), max_size=2), st.integers(1, 9)).map(
    lambda t: (t[0], *t[1], t[2])
)
LARGE: tuple[Shape, ...] = ((BLOCK // 8, 8), (BLOCK // 7 + 5, 7), (2, 3, BLOCK + 1), (3, 1500, 9), (1, BLOCK))
LOSSES: dict[str, Loss] = {"cross-entropy": CrossEntropy(), "mean squared error": MeanSquaredError()}

each_loss = pytest.mark.parametrize("name", LOSSES)
each_dtype = pytest.mark.parametrize("dtype", ["float32", "float64"])
each_weighting = pytest.mark.parametrize("weighted", [False, True], ids=["unweighted", "weighted"])
each_large = pytest.mark.parametrize("shape", LARGE, ids=str)


class Case:
    """A loss and read-only arrays to call it on; with weights, the first example counts nothing."""

    def __init__(self, name: str, shape: Shape, dtype: str, weighted: bool) -> None:
        generator = np.random.default_rng([len(shape), *shape])
        self.loss = LOSSES[name]
        self.y = generator.standard_normal(shape).astype(dtype)
        if name == "cross-entropy":
            self.targets: np.ndarray = generator.integers(0, shape[-1], shape[:-1])
        else:
            self.targets = generator.standard_normal(shape).astype(dtype)
        self.weights = generator.uniform(0, 2, shape[0]).astype(dtype) if weighted else None
        if self.weights is not None:
            self.weights[:1] = 0
        self.arrays = [a for a in (self.y, self.targets, self.weights) if a is not None]
        for a in self.arrays:
            a.setflags(write=False)
        self.footprint = self.loss.footprint(spec_of(self.y), spec_of(self.targets))

    def forward(self, ledger: Ledger | None = None) -> tuple[float, float, tuple[np.ndarray, ...]]:
        return self.loss.forward(self.y, self.targets, self.weights, Context(ledger or Ledger(), "loss"))

    def vjp(self, ledger: Ledger | None = None) -> np.ndarray:
        own = self.forward()[2]
        return self.loss.vjp(self.y, self.targets, self.weights, own, Context(ledger or Ledger(), "loss"))

    def expected(self, y: np.ndarray) -> tuple[float, float]:
        """The sum and the count by the formula, example by example in float64."""
        total = count = 0.0
        for example in range(len(y)):
            weight = 1.0 if self.weights is None else float(self.weights[example])
            outputs, targets = y[example].astype(np.float64), self.targets[example]
            if isinstance(self.loss, CrossEntropy):
                rows = outputs.reshape(-1, y.shape[-1])
                shares = np.exp(rows) / np.exp(rows).sum(axis=1, keepdims=True)
                losses = -np.log(shares[np.arange(len(rows)), np.reshape(targets, -1)])
            else:
                losses = np.square(outputs - targets.astype(np.float64)).reshape(-1)
            total += weight * float(losses.sum())
            count += weight * losses.size
        return total, count


def spec_of(a: np.ndarray) -> Spec:
    return Spec.of(a.shape, a.dtype)


def drawn(name: str, data: st.DataObject, dtype: str, weighted: bool) -> Case:
    # No example at all with weights has a test of its own below.
    return Case(name, data.draw(SMALL.filter(lambda s: s[0] > 0) if weighted else SMALL, "shape"), dtype, weighted)


#: Relative to the sum of positive terms; in float32 each loss is rounded before it is summed in float64.
TOLERANCE = {"float64": 1e-12, "float32": 1e-5}


def assert_forward_is_the_formula(case: Case) -> None:
    total, count, _ = case.forward()
    expected_total, expected_count = case.expected(case.y)
    tolerance = TOLERANCE[case.y.dtype.name]
    assert type(total) is type(count) is float
    assert total == pytest.approx(expected_total, rel=tolerance, abs=tolerance)
    assert count == pytest.approx(expected_count, rel=1e-12)


@each_weighting
@each_dtype
@each_loss
@given(data=st.data())
def test_forward_is_the_formula(name: str, dtype: str, weighted: bool, data: st.DataObject) -> None:
    assert_forward_is_the_formula(drawn(name, data, dtype, weighted))


@each_large
@each_weighting
@each_dtype
@each_loss
def test_forward_is_the_formula_over_several_blocks(name: str, dtype: str, weighted: bool, shape: Shape) -> None:
    assert_forward_is_the_formula(Case(name, shape, dtype, weighted))


@each_weighting
@each_loss
def test_vjp_is_the_derivative_element_by_element(name: str, weighted: bool) -> None:
    case, step = Case(name, (3, 2, 4), "float64", weighted), 1e-6
    found = case.vjp()
    for place in np.ndindex(case.y.shape):
        change = np.zeros(case.y.shape)
        change[place] = step
        expected = (case.expected(case.y + change)[0] - case.expected(case.y - change)[0]) / (2 * step)
        # The sum, some 50, has an error of 50 · 2⁻⁵³, divided by the step.
        assert found[place] == pytest.approx(expected, rel=1e-6, abs=1e-7)


@each_large
@each_weighting
@each_loss
def test_vjp_is_the_derivative_over_several_blocks(name: str, weighted: bool, shape: Shape) -> None:
    case, step = Case(name, shape, "float64", weighted), 1e-4
    direction = np.random.default_rng(1).standard_normal(shape)
    change = (case.expected(case.y + step * direction)[0] - case.expected(case.y - step * direction)[0]) / (2 * step)
    products = case.vjp() * direction
    # The error of the difference is step² · third derivative, and that of a sum of some 10⁵, 10⁵ · 2⁻⁵³ / step.
    assert abs(float(products.sum()) - change) <= 1e-7 * (1 + float(np.abs(products).sum()))


@each_dtype
@each_loss
@given(data=st.data())
def test_vjp_in_either_dtype_keeps_it_and_is_the_formula(name: str, dtype: str, data: st.DataObject) -> None:
    case = drawn(name, data, dtype, True)
    found, y = case.vjp(), case.y.astype(np.float64)
    if name == "cross-entropy":
        expected = np.exp(y) / np.exp(y).sum(axis=-1, keepdims=True)
        expected -= np.eye(y.shape[-1])[case.targets]
    else:
        expected = 2 * (y - case.targets)
    assert case.weights is not None
    expected *= case.weights.reshape(-1, *[1] * (y.ndim - 1))
    assert found.dtype == dtype
    assert all(own.dtype == dtype for own in case.forward()[2])
    np.testing.assert_allclose(found, expected, rtol=0, atol=10 * TOLERANCE[dtype])


def assert_footprint_is_exact(case: Case) -> None:
    ledger = Ledger()
    own = case.forward(ledger)[2]
    assert tuple(map(spec_of, own)) == case.footprint.own
    assert ledger.peak == case.footprint.own_nbytes + case.footprint.forward_workspace
    assert ledger.live == case.footprint.own_nbytes
    del own
    assert ledger.live == 0
    ledger = Ledger()
    cotangent = case.vjp(ledger)
    assert spec_of(cotangent) == spec_of(case.y)
    assert ledger.peak == cotangent.nbytes + case.footprint.backward_workspace
    assert ledger.by_category() == ({"cotangents": cotangent.nbytes} if cotangent.nbytes else {})


@each_weighting
@each_dtype
@each_loss
@given(data=st.data())
def test_the_footprint_is_exact_to_the_byte(name: str, dtype: str, weighted: bool, data: st.DataObject) -> None:
    assert_footprint_is_exact(drawn(name, data, dtype, weighted))


@each_large
@each_weighting
@each_dtype
@each_loss
def test_the_footprint_is_exact_over_several_blocks(name: str, dtype: str, weighted: bool, shape: Shape) -> None:
    assert_footprint_is_exact(Case(name, shape, dtype, weighted))


@pytest.mark.parametrize("backward", [False, True], ids=["forward", "vjp"])
@each_weighting
@each_loss
def test_numpy_allocates_nothing_behind_the_ledger(name: str, weighted: bool, backward: bool) -> None:
    case, ledger = Case(name, (40, 300, 8), "float64", weighted), Ledger()
    own, context = case.forward()[2], Context(ledger)
    tracemalloc.start()
    try:
        if backward:
            case.loss.vjp(case.y, case.targets, case.weights, own, context)
        else:
            case.loss.forward(case.y, case.targets, case.weights, context)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # The interpreter's objects and NumPy's buffers for casts; labels or losses of all rows would have 96 KB.
    assert ledger.peak <= peak <= ledger.peak + 90_000


@each_weighting
@each_loss
def test_arguments_are_not_changed_and_twice_gives_the_same_bits(name: str, weighted: bool) -> None:
    case = Case(name, (3, 1500, 9), "float32", weighted)
    before = [a.tobytes() for a in case.arrays]
    (total, count, own), (total2, count2, own2) = case.forward(), case.forward()
    assert (total, count) == (total2, count2)
    assert [a.tobytes() for a in own] == [a.tobytes() for a in own2]
    assert case.vjp().tobytes() == case.vjp().tobytes()
    assert [a.tobytes() for a in case.arrays] == before


@each_loss
def test_weights_of_one_are_no_weights(name: str) -> None:
    plain, ones = Case(name, (3, 50, 7), "float32", False), Case(name, (3, 50, 7), "float32", False)
    ones.weights = np.ones(3, np.float32)
    assert ones.forward()[:2] == plain.forward()[:2]
    assert ones.vjp().tobytes() == plain.vjp().tobytes()


@each_loss
def test_an_example_of_weight_zero_counts_nothing(name: str) -> None:
    case, fewer = Case(name, (3, 50, 7), "float64", False), Case(name, (3, 50, 7), "float64", False)
    case.weights = np.array([1.0, 1.0, 0.0])
    fewer.y, fewer.targets = case.y[:2], case.targets[:2]
    total, count, _ = case.forward()
    assert total == pytest.approx(fewer.forward()[0], rel=1e-12)
    assert count == fewer.forward()[1]
    assert not case.vjp()[2].any()
    np.testing.assert_array_equal(case.vjp()[:2], fewer.vjp())


@each_loss
def test_no_example_at_all_with_weights_is_a_sum_of_zero(name: str) -> None:
    case = Case(name, (0, 3), "float64", True)
    assert case.forward()[:2] == (0.0, 0.0)
    assert case.vjp().shape == (0, 3)


@each_loss
@pytest.mark.parametrize("count", [1, 2, 3, 6])
def test_weights_that_are_not_one_for_each_example_are_an_error(name: str, count: int) -> None:
    case = Case(name, (4, 5), "float64", False)
    case.weights = np.ones(count)
    with pytest.raises(ValueError, match=r"weights|shape"):
        case.forward()


def test_large_outputs_do_not_overflow() -> None:
    y = np.array([[1000.0, 0.0], [-1000.0, 0.0]], np.float32)
    targets, context = np.array([1, 0]), Context(Ledger())
    total, _, own = CrossEntropy().forward(y, targets, None, context)
    assert total == 2000.0
    found = CrossEntropy().vjp(y, targets, None, own, context)
    np.testing.assert_array_equal(found, [[1, -1], [-1, 1]])


@pytest.mark.parametrize("label", [-1, 3])
def test_a_target_outside_the_classes_is_an_error(label: int) -> None:
    with pytest.raises(ValueError, match=rf"\[0, 3\).*{label}"):
        CrossEntropy().forward(np.zeros((2, 3)), np.array([0, label]), None, Context(Ledger()))


@pytest.mark.parametrize("dtype", ["uint8", "int32", "int64"])
def test_targets_may_be_integers_of_any_size(dtype: str) -> None:
    # 300 classes: places in the flattened rows pass what a byte holds.
    y = np.random.default_rng(0).standard_normal((40, 300))
    targets = np.arange(200, 240)
    results = [CrossEntropy().forward(y, t, None, Context(Ledger()))[0] for t in (targets, targets.astype(dtype))]
    assert results[0] == results[1]


@pytest.mark.parametrize(
    ("name", "y", "targets"),
    [
        ("cross-entropy", ((2, 3), "float32"), ((2,), "float32")),
        ("cross-entropy", ((2, 3), "int64"), ((2,), "int64")),
        ("cross-entropy", ((2, 3), "float32"), ((3,), "int64")),
        ("cross-entropy", ((2, 3), "float32"), ((2, 1), "int64")),
        ("mean squared error", ((2, 3), "float32"), ((2, 1), "float32")),
        ("mean squared error", ((2, 3), "float32"), ((2, 3), "float64")),
        ("mean squared error", ((2, 3), "int64"), ((2, 3), "int64")),
    ],
)
def test_outputs_and_targets_that_do_not_fit_are_a_clear_error(name: str, y: Any, targets: Any) -> None:
    with pytest.raises(ValueError, match=r"takes .*but got") as caught:
        LOSSES[name].footprint(Spec.of(*y), Spec.of(*targets))
    assert str(Spec.of(*y)) in str(caught.value)
    assert str(Spec.of(*targets)) in str(caught.value)


@each_weighting
@each_loss
@given(data=st.data())
def test_forward_and_vjp_are_the_definition_and_its_gradient(name: str, weighted: bool, data: st.DataObject) -> None:
    case = drawn(name, data, "float64", weighted)
    total, gradient = value_and_grad(lambda y: case.loss.apply(y, case.targets, case.weights))(case.y)
    assert case.forward()[0] == pytest.approx(float(total), rel=1e-12, abs=1e-12)
    np.testing.assert_allclose(case.vjp(), gradient, rtol=0, atol=1e-12)


def hvp(case: Case, tangent: np.ndarray, ledger: Ledger | None = None, in_place: bool = False) -> np.ndarray:
    context = Context(ledger or Ledger(), "loss", in_place=in_place)
    return case.loss.hvp(case.y, tangent, case.targets, case.weights, case.forward()[2], context)


def assert_hvp_is_the_definitions(case: Case) -> None:
    tangent, ledger = np.random.default_rng(3).standard_normal(case.y.shape), Ledger()
    found = hvp(case, tangent, ledger)
    expected = Loss.hvp(case.loss, case.y, tangent, case.targets, case.weights, (), Context(Ledger()))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)
    assert ledger.peak == found.nbytes + case.footprint.hvp_workspace
    assert ledger.by_category() == ({"cotangents": found.nbytes} if found.nbytes else {})
    over = hvp(case, tangent, in_place=True)
    assert over is tangent
    assert over.tobytes() == found.tobytes()


@each_weighting
@each_loss
@given(data=st.data())
def test_the_hessians_product_is_that_of_the_definition_to_the_byte(
    name: str, weighted: bool, data: st.DataObject
) -> None:
    assert_hvp_is_the_definitions(drawn(name, data, "float64", weighted))


@each_large
@each_weighting
@each_loss
def test_the_hessians_product_is_that_of_the_definition_over_several_blocks(
    name: str, weighted: bool, shape: Shape
) -> None:
    assert_hvp_is_the_definitions(Case(name, shape, "float64", weighted))


def test_a_loss_without_apply_says_what_to_write_when_it_is_asked_for_second_derivatives() -> None:
    class Plain(MeanSquaredError):  # noqa: N818  (it is no exception)
        apply, hvp = Loss.apply, Loss.hvp  # type: ignore[assignment]

    y = np.ones((2, 3))
    with pytest.raises(NotImplementedError, match=r"Plain has no apply: write apply\(self, y, targets, weights\)"):
        Plain().hvp(y, y, y, None, (), Context(Ledger()))
