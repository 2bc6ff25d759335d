"""The laws that every loss keeps."""

from __future__ import annotations

import tracemalloc
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from framework import (
    L1,
    BinaryCrossEntropy,
    CrossEntropy,
    Huber,
    Ledger,
    Loss,
    MeanSquaredError,
    NegativeLogLikelihood,
    SoftTargetCrossEntropy,
    Spec,
    kernels,
)
from framework.differentiation import value_and_grad
from framework.layers import Context
from framework.losses.cross_entropy import OverClasses

BLOCK = kernels.BLOCK
Shape = tuple[int, ...]

#: Shapes of y: no example, one, odd ones; and whole blocks, parts of blocks and rows wider than a block.
SMALL = st.tuples(st.integers(0, 4), st.lists(st.integers(1, 3), max_size=2), st.integers(1, 9)).map(
    lambda t: (t[0], *t[1], t[2])
)
LARGE: tuple[Shape, ...] = ((BLOCK // 8, 8), (BLOCK // 7 + 5, 7), (2, 3, BLOCK + 1), (3, 1500, 9), (1, BLOCK))
LOSSES: dict[str, Loss] = {
    "cross-entropy": CrossEntropy(),
    "smoothed cross-entropy": CrossEntropy(label_smoothing=0.1),
    "cross-entropy that ignores a number": CrossEntropy(ignore=-100),
    "smoothed cross-entropy that ignores a class": CrossEntropy(label_smoothing=0.3, ignore=0),
    "negative log-likelihood": NegativeLogLikelihood(),
    "negative log-likelihood that ignores a class": NegativeLogLikelihood(ignore=1),
    "cross-entropy of soft targets": SoftTargetCrossEntropy(),
    "cross-entropy of smoothed soft targets": SoftTargetCrossEntropy(label_smoothing=0.2),
    "mean squared error": MeanSquaredError(),
    "l1": L1(),
    "huber": Huber(0.7),
    "binary cross-entropy": BinaryCrossEntropy(),
}

OF_CLASSES = CrossEntropy | NegativeLogLikelihood

each_loss = pytest.mark.parametrize("name", LOSSES)
each_dtype = pytest.mark.parametrize("dtype", ["float32", "float64"])
each_weighting = pytest.mark.parametrize("weighted", [False, True], ids=["unweighted", "weighted"])
#: Two losses take all large shapes; the others differ from them in formulas alone.
each_large = pytest.mark.parametrize(
    ("name", "shape"),
    [
        (name, shape)
        for name in LOSSES
        for shape in (LARGE if name in ("cross-entropy", "mean squared error") else LARGE[1:4])
    ],
    ids=str,
)
few = settings(max_examples=20)


class Case:
    """A loss and read-only arrays to call it on; with weights, the first example counts nothing."""

    def __init__(self, name: str, shape: Shape, dtype: str, weighted: bool) -> None:
        generator = np.random.default_rng([len(shape), *shape])
        self.loss = LOSSES[name]
        self.y = generator.standard_normal(shape).astype(dtype)
        if isinstance(self.loss, OF_CLASSES):
            self.targets: np.ndarray = generator.integers(0, shape[-1], shape[:-1])
            if self.loss.ignore is not None:
                self.targets[generator.random(shape[:-1]) < 0.3] = self.loss.ignore
        elif isinstance(self.loss, BinaryCrossEntropy | SoftTargetCrossEntropy):
            self.targets = generator.random(shape).astype(dtype)
        else:
            away = generator.standard_normal(shape)
            # From where L1 and Huber have no first or second derivative.
            away += np.copysign(0.01, away)
            away += np.copysign(0.02, away) * (abs(abs(away) - 0.7) < 0.01)
            self.targets = (self.y - away).astype(dtype)
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

    def elements(self, y: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The formulas in float64 over rows: losses, gradients, and whether they count."""
        y, t, loss = y.astype(np.float64), self.targets, self.loss
        if isinstance(loss, CrossEntropy):
            shares = np.exp(y) / np.exp(y).sum(axis=-1, keepdims=True)
            counts = np.full(t.shape, True) if loss.ignore is None else t != loss.ignore
            goal = np.full(y.shape, loss.label_smoothing / y.shape[-1])
            places = np.where(counts, t, 0)[..., None]
            hit = np.take_along_axis(goal, places, axis=-1) + 1 - loss.label_smoothing
            np.put_along_axis(goal, places, hit, axis=-1)
            return -(goal * np.log(shares)).sum(axis=-1) * counts, (shares - goal) * counts[..., None], counts
        if isinstance(loss, NegativeLogLikelihood):
            counts = t != loss.ignore
            hit = np.zeros(y.shape)
            np.put_along_axis(hit, np.where(counts, t, 0)[..., None], -1.0 * counts[..., None], axis=-1)
            return (hit * y).sum(axis=-1), hit, counts
        if isinstance(loss, SoftTargetCrossEntropy):
            shares = np.exp(y) / np.exp(y).sum(axis=-1, keepdims=True)
            goal = (1 - loss.label_smoothing) * t.astype(np.float64) + loss.label_smoothing / y.shape[-1]
            slope = shares * goal.sum(axis=-1, keepdims=True) - goal
            return -(goal * np.log(shares)).sum(axis=-1), slope, np.full(t.shape[:-1], True)
        d = y - t.astype(np.float64)
        if isinstance(loss, BinaryCrossEntropy):
            p = 1 / (1 + np.exp(-y))
            return -(t * np.log(p) + (1 - t) * np.log(1 - p)), p - t, np.full(t.shape, True)
        losses, slopes = {
            MeanSquaredError: (d**2, 2 * d),
            L1: (abs(d), np.sign(d)),
            Huber: (np.where(abs(d) < 0.7, d**2 / 2, 0.7 * (abs(d) - 0.35)), np.clip(d, -0.7, 0.7)),
        }[type(loss)]
        return losses, slopes, np.full(t.shape, True)

    def each_weight(self, axes: int) -> np.ndarray:
        weights = np.ones(len(self.y)) if self.weights is None else self.weights.astype(np.float64)
        return weights.reshape(-1, *[1] * (axes - 1))

    def expected(self, y: np.ndarray) -> tuple[float, float]:
        """The sum and the count by the formula in float64."""
        losses, _, counts = self.elements(y)
        weights = self.each_weight(losses.ndim)
        return float((weights * losses).sum()), float((weights * counts).sum())


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
@few
@given(data=st.data())
def test_forward_is_the_formula(name: str, dtype: str, weighted: bool, data: st.DataObject) -> None:
    assert_forward_is_the_formula(drawn(name, data, dtype, weighted))


@each_large
@each_weighting
@each_dtype
def test_forward_is_the_formula_over_several_blocks(name: str, dtype: str, weighted: bool, shape: Shape) -> None:
    assert_forward_is_the_formula(Case(name, shape, dtype, weighted))


def assert_score_is_the_formula(case: Case) -> None:
    ledger = Ledger()
    own = case.forward()[2]
    found = case.loss.score(case.y, case.targets, case.weights, Context(ledger, "loss"))
    assert type(found) is float
    assert (ledger.live, ledger.peak) == (0, case.footprint.score_workspace)
    if not isinstance(case.loss, OverClasses):
        assert (case.loss.metric, found, case.footprint.score_workspace) == (None, 0.0, 0)
        return
    assert case.loss.metric == "accuracy"
    right = (np.argmax(case.y, axis=-1) == case.targets) & (case.targets != case.loss.ignore)
    assert found == pytest.approx(float((case.each_weight(right.ndim) * right).sum()), rel=1e-6)
    del own


@each_weighting
@each_dtype
@each_loss
@few
@given(data=st.data())
def test_the_score_counts_the_targets_with_the_largest_output(
    name: str, dtype: str, weighted: bool, data: st.DataObject
) -> None:
    assert_score_is_the_formula(drawn(name, data, dtype, weighted))


@each_large
@each_weighting
def test_the_score_over_several_blocks(name: str, weighted: bool, shape: Shape) -> None:
    assert_score_is_the_formula(Case(name, shape, "float32", weighted))


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
def test_vjp_is_the_derivative_over_several_blocks(name: str, weighted: bool, shape: Shape) -> None:
    case, step = Case(name, shape, "float64", weighted), 1e-4
    direction = np.random.default_rng(1).standard_normal(shape)
    change = (case.expected(case.y + step * direction)[0] - case.expected(case.y - step * direction)[0]) / (2 * step)
    products = case.vjp() * direction
    # The error of the difference is step² · third derivative, and that of a sum of some 10⁵, 10⁵ · 2⁻⁵³ / step.
    assert abs(float(products.sum()) - change) <= 1e-7 * (1 + float(np.abs(products).sum()))


@each_dtype
@each_loss
@few
@given(data=st.data())
def test_vjp_in_either_dtype_keeps_it_and_is_the_formula(name: str, dtype: str, data: st.DataObject) -> None:
    case = drawn(name, data, dtype, True)
    found = case.vjp()
    expected = case.elements(case.y)[1] * case.each_weight(case.y.ndim)
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
@few
@given(data=st.data())
def test_the_footprint_is_exact_to_the_byte(name: str, dtype: str, weighted: bool, data: st.DataObject) -> None:
    assert_footprint_is_exact(drawn(name, data, dtype, weighted))


@each_large
@each_weighting
@each_dtype
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
        ("negative log-likelihood", ((2, 3), "float32"), ((2,), "float32")),
        ("cross-entropy of soft targets", ((2, 3), "float32"), ((2,), "int64")),
        ("cross-entropy of soft targets", ((2, 3), "float32"), ((2, 3), "float64")),
        ("mean squared error", ((2, 3), "float32"), ((2, 1), "float32")),
        ("mean squared error", ((2, 3), "float32"), ((2, 3), "float64")),
        ("mean squared error", ((2, 3), "int64"), ((2, 3), "int64")),
        ("l1", ((2, 3), "float32"), ((3, 2), "float32")),
        ("huber", ((2, 3), "float32"), ((2, 3), "float64")),
        ("binary cross-entropy", ((2, 3), "float32"), ((2, 3), "int64")),
    ],
)
def test_outputs_and_targets_that_do_not_fit_are_a_clear_error(name: str, y: Any, targets: Any) -> None:
    with pytest.raises(ValueError, match=r"takes .*but got") as caught:
        LOSSES[name].footprint(Spec.of(*y), Spec.of(*targets))
    assert str(Spec.of(*y)) in str(caught.value)
    assert str(Spec.of(*targets)) in str(caught.value)


@each_weighting
@each_loss
@few
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
@few
@given(data=st.data())
def test_the_hessians_product_is_that_of_the_definition_to_the_byte(
    name: str, weighted: bool, data: st.DataObject
) -> None:
    assert_hvp_is_the_definitions(drawn(name, data, "float64", weighted))


@each_large
@each_weighting
def test_the_hessians_product_is_that_of_the_definition_over_several_blocks(
    name: str, weighted: bool, shape: Shape
) -> None:
    assert_hvp_is_the_definitions(Case(name, shape, "float64", weighted))


@each_loss
def test_in_place_the_cotangent_lies_over_the_output_and_has_the_same_bits(name: str) -> None:
    for weighted in (False, True):
        case = Case(name, (3, 1500, 9), "float32", weighted)
        own, y = case.forward()[2], case.y.copy()
        found = case.loss.vjp(y, case.targets, case.weights, own, Context(Ledger(), "loss", in_place=True))
        assert found is y
        assert found.tobytes() == case.vjp().tobytes()


@each_dtype
@each_loss
def test_nothing_overflows_at_ten_thousand_in_float32(name: str, dtype: str) -> None:
    values = np.array([-1e4, 1e4, -100, 100, 0, 1], dtype)
    case = Case(name, (6, 6), dtype, False)
    case.y = np.array([np.roll(values, n) for n in range(6)])
    if not isinstance(case.loss, OF_CLASSES):
        case.targets = np.resize(np.array([0, 1, 0.5], dtype), (6, 6))
    total, _, own = case.forward()
    product = hvp(case, np.ones((6, 6), dtype))
    assert np.isfinite(total)
    for found in (*own, case.vjp(), product):
        assert np.isfinite(found).all() and found.dtype == dtype
    exact = float(case.loss.apply(case.y.astype(np.float64), case.targets, None))
    assert total == pytest.approx(exact, rel=TOLERANCE[dtype])
    wide = Case(name, (6, 6), "float64", False)
    wide.y = case.y.astype(np.float64)
    wide.targets = case.targets if isinstance(case.loss, OF_CLASSES) else case.targets.astype(np.float64)
    np.testing.assert_allclose(case.vjp(), wide.vjp(), rtol=1e-5, atol=1e-6)


def test_what_is_ignored_counts_nothing_whatever_the_outputs_are() -> None:
    y = np.random.default_rng(0).standard_normal((4, 3))
    y[1] = np.nan
    for ignore in (-100, 255, 1):
        loss, targets = CrossEntropy(ignore=ignore), np.array([0, ignore, 2, ignore])
        for weights in (None, np.array([1.0, 5.0, 0.5, 3.0])):
            kept = None if weights is None else weights[[0, 2]]
            total, count, own = loss.forward(y, targets, weights, Context(Ledger()))
            fewer = CrossEntropy().forward(y[[0, 2]], targets[[0, 2]], kept, Context(Ledger()))
            assert (total, count) == pytest.approx(fewer[:2], rel=1e-14)
            found = loss.vjp(y, targets, weights, own, Context(Ledger()))
            product = loss.hvp(y, y, targets, weights, own, Context(Ledger()))
            assert not found[[1, 3]].any() and not product[[1, 3]].any()
            alone = CrossEntropy().vjp(y[[0, 2]], targets[[0, 2]], kept, fewer[2], Context(Ledger()))
            np.testing.assert_array_equal(found[[0, 2]], alone)
        nothing = loss.forward(y, np.full(4, ignore), None, Context(Ledger()))
        assert nothing[:2] == (0.0, 0.0)
    bytes_ = np.array([0, 255, 2, 255], np.uint8)  # -100 is no byte, and none of them is ignored
    with pytest.raises(ValueError, match=r"\[0, 3\), or be -100.*255"):
        CrossEntropy(ignore=-100).forward(y, bytes_, None, Context(Ledger()))
    assert CrossEntropy(ignore=255).forward(y, bytes_, None, Context(Ledger()))[1] == 2


def test_options_of_losses_that_make_no_sense_are_clear_errors() -> None:
    for smoothing in (-0.1, 1.1, np.nan):
        for kind in (CrossEntropy, SoftTargetCrossEntropy):
            with pytest.raises(ValueError, match=r"label_smoothing lies in \[0, 1\]"):
                kind(label_smoothing=smoothing)
    for ignore in (True, 1.5):
        for of_classes in (CrossEntropy, NegativeLogLikelihood):
            with pytest.raises(ValueError, match="ignore is a whole number or None"):
                of_classes(ignore=ignore)  # type: ignore[arg-type]
    for delta in (0.0, -1.0, np.nan, np.inf):
        with pytest.raises(ValueError, match="delta above 0"):
            Huber(delta)


@pytest.mark.parametrize("target", [-0.1, 1.5, np.nan])
def test_a_target_that_is_no_probability_is_an_error(target: float) -> None:
    with pytest.raises(ValueError, match=r"BinaryCrossEntropy must lie in \[0, 1\]"):
        BinaryCrossEntropy().forward(np.zeros((1, 2)), np.array([[0.5, target]]), None, Context(Ledger()))


def test_a_loss_without_apply_says_what_to_write_when_it_is_asked_for_second_derivatives() -> None:
    class Plain(MeanSquaredError):  # noqa: N818  (it is no exception)
        apply, hvp = Loss.apply, Loss.hvp  # type: ignore[assignment]

    y = np.ones((2, 3))
    with pytest.raises(NotImplementedError, match=r"Plain has no apply: write apply\(self, y, targets, weights\)"):
        Plain().hvp(y, y, y, None, (), Context(Ledger()))


@pytest.mark.parametrize("target", [-0.1, np.nan])
def test_a_soft_target_below_zero_is_an_error(target: float) -> None:
    with pytest.raises(ValueError, match="SoftTargetCrossEntropy are probabilities, from 0 on"):
        SoftTargetCrossEntropy().forward(np.zeros((1, 2)), np.array([[0.5, target]]), None, Context(Ledger()))


def test_likelihoods_of_log_softmax_and_one_hot_targets_are_cross_entropies() -> None:
    generator = np.random.default_rng(2)
    y, targets = generator.standard_normal((6, 4)), generator.integers(0, 4, 6)
    logs = y - np.logaddexp.reduce(y, axis=-1, keepdims=True)
    one_hot = np.eye(4)[targets]
    for smoothing in (0.0, 0.3):
        expected = CrossEntropy(smoothing).forward(y, targets, None, Context(Ledger()))
        found = SoftTargetCrossEntropy(smoothing).forward(y, one_hot, None, Context(Ledger()))
        assert found[:2] == pytest.approx(expected[:2], rel=1e-14)
    found = NegativeLogLikelihood().forward(logs, targets, None, Context(Ledger()))
    assert found[:2] == pytest.approx(CrossEntropy().forward(y, targets, None, Context(Ledger()))[:2], rel=1e-14)
