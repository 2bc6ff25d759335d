"""A layer of one's own needs `parameters` and `apply`: forward, derivatives and footprint follow from them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from framework import Chain, CrossEntropy, Key, Layer, Ledger, Linear, Spec
from framework.layers import Context, input_specs
from framework.layers.chain import flatten
from framework.parameters import Constant, ParameterSpec, Uniform
from tests.framework.test_layers import numbers, same_bits


@dataclass(frozen=True)
class Affine(Layer):
    """Linear, by its definition alone."""

    features: int

    def parameters(self, x: Spec) -> dict[str, ParameterSpec]:
        start = Uniform(1 / np.sqrt(x.shape[-1]))
        return {
            "weight": ParameterSpec((self.features, x.shape[-1]), x.dtype, start),
            "bias": ParameterSpec((self.features,), x.dtype, start),
        }

    def apply(self, params: Any, x: Any, context: Context) -> Any:
        return x @ params["weight"].T + params["bias"]


class AffineByRows(Affine):
    """The same, traced a block of rows at a time."""

    core_axes = 1


@dataclass(frozen=True)
class Table(Layer):
    """A row for each integer."""

    def parameters(self, x: Spec) -> dict[str, ParameterSpec]:
        return {"rows": ParameterSpec((7, 3), np.dtype(np.float64), Constant(1.0))}

    def apply(self, params: Any, x: Any, context: Context) -> Any:
        return params["rows"][x]


@dataclass(frozen=True)
class Shift(Layer):
    """Integers in, integers out."""

    def apply(self, params: Any, x: Any, context: Context) -> Any:
        return x + 1


def called(layer: Layer, x: np.ndarray, wanted: bool = True, seed: int = 0) -> tuple[Any, ...]:
    """Returns the footprint, output, input's cotangent, gradients, and the ledgers of forward and VJP."""
    generator = np.random.default_rng(seed)
    spec = Spec.of(x.shape, x.dtype)
    footprint = layer.footprint(spec)
    params = {n: numbers(generator, p.shape, p.dtype.name) for n, p in layer.parameters(spec).items()}
    ledgers = Ledger(), Ledger()
    y, own = layer.forward(params, x, Context(ledgers[0]))
    assert own == ()
    cotangent = numbers(generator, y.shape, footprint.output.dtype.name)
    grads = {n: np.full_like(p, np.nan) for n, p in params.items()}
    x_cotangent = layer.vjp(params, x, None, (), cotangent, grads, Context(ledgers[1], wanted=(wanted,)))
    return footprint, y, x_cotangent, grads, *ledgers


@pytest.mark.parametrize("make", [Affine, AffineByRows])
@pytest.mark.parametrize("shape", [(3, 4), (2, 5, 4), (4,), (0, 4), (9000, 4)])
def test_forward_and_vjp_are_those_of_the_layer_by_hand(make: Any, shape: tuple[int, ...]) -> None:
    x = numbers(np.random.default_rng(1), shape, "float64")
    footprint, y, x_cotangent, grads, *ledgers = called(make(5), x)
    _, expected, expected_x, expected_grads, *_ = called(Linear(5), x)
    np.testing.assert_allclose(y, expected, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(x_cotangent, expected_x, rtol=1e-12, atol=1e-12)
    for name, gradient in expected_grads.items():
        np.testing.assert_allclose(grads[name], gradient, rtol=1e-12, atol=1e-12 * max(1, len(x)))
    assert footprint.output == Spec.of(expected.shape, "float64")
    assert (footprint.needs_input, footprint.needs_output, footprint.own) == ((True,), False, ())
    assert ledgers[0].peak == ledgers[0].live == y.nbytes
    assert ledgers[1].peak == ledgers[1].live == x_cotangent.nbytes


def test_the_flops_of_a_matrix_product_are_guessed_about_right() -> None:
    spec = Spec.of((32, 64), "float32")
    guessed, known = Affine(128).footprint(spec), Linear(128).footprint(spec)
    assert 1 <= guessed.forward_flops / known.forward_flops < 1.5
    assert 1 <= guessed.backward_flops / known.backward_flops < 2.5


def test_a_cotangent_that_nobody_reads_is_none_and_the_gradients_have_the_same_bits() -> None:
    x = numbers(np.random.default_rng(1), (6, 4), "float32")
    _, _, unread, grads, _, ledger = called(Affine(5), x, wanted=False)
    _, _, _, expected, *_ = called(Affine(5), x)
    assert unread is None
    assert ledger.peak == 0
    assert all(same_bits(grads[name], expected[name]) for name in expected)


def test_integers_have_no_cotangent_and_may_go_through_a_layer() -> None:
    x = np.array([[0, 6, 6]], np.uint8)
    footprint, _, x_cotangent, grads, *_ = called(Table(), x)
    assert footprint.output == Spec.of((1, 3, 3), "float64")
    assert x_cotangent is None
    assert not grads["rows"][1:6].any()
    specs = input_specs(flatten(Chain(Shift(), Table(), Linear(2))), Spec.of((2, 3), "uint8"))
    assert specs == [Spec.of((2, 3), "uint8"), Spec.of((2, 3), "uint8"), Spec.of((2, 3, 3), "float64")]


def test_the_definition_runs_once_for_the_footprints_of_one_layer_and_spec() -> None:
    runs: list[tuple[int, ...]] = []

    @dataclass(frozen=True)
    class Counted(Layer):
        size: int

        def apply(self, params: Any, x: Any, context: Context) -> Any:
            runs.append(x.shape)
            return x * self.size

    @dataclass(frozen=True)
    class Unhashable(Counted):
        sizes: list[int] = field(default_factory=list)

    for layer in (Counted(2), Counted(2), Counted(3)):
        for rows in (2, 5):
            assert layer.footprint(Spec.of((rows, 3), "float32")).output == Spec.of((rows, 3), "float32")
    assert runs == [(2, 3), (5, 3), (2, 3), (5, 3)]
    for _ in range(2):
        Unhashable(2).footprint(Spec.of((1,), "float32"))
    assert runs[4:] == [(1,), (1,)]


def test_training_and_evaluation_may_give_different_outputs() -> None:
    class Doubling(Layer):
        def apply(self, params: Any, x: Any, context: Context) -> Any:
            return np.concatenate([x, x], axis=-1) if context.training else x

    x = Spec.of((2, 3), "float32")
    assert Doubling().footprint(x).output.shape == (2, 6)
    assert Doubling().footprint(x, training=False).output == x


def test_a_layer_with_neither_apply_nor_forward_says_what_to_write() -> None:
    class Bare(Layer):
        pass

    with pytest.raises(NotImplementedError, match=r"Bare has no apply: write apply\(self, params, x, context\)"):
        Chain(Linear(3), Bare()).layout(Spec.of((2, 3), "float32"))


@pytest.mark.parametrize("rule", ["forward", "vjp"])
def test_a_layer_with_a_rule_of_its_own_and_no_footprint_says_what_to_write(rule: str) -> None:
    half = type("Half", (Affine,), {rule: getattr(Linear, rule)})
    with pytest.raises(NotImplementedError, match=r"Half has a forward or a vjp of its own.*write footprint"):
        half(3).footprint(Spec.of((2, 3), "float32"))


def test_an_input_that_the_definition_does_not_take_names_layer_input_and_error() -> None:
    class Fixed(Layer):
        def apply(self, params: Any, x: Any, context: Context) -> Any:
            return x @ np.ones((4, 2), x.dtype)

    with pytest.raises(ValueError, match=r"step '1': Fixed.apply fails for an input float32\[2, 3\]: ValueError"):
        Chain(Linear(3), Fixed()).layout(Spec.of((2, 3), "float32"))


def test_a_definition_that_warns_of_odd_numbers_does_not_warn_in_the_trial() -> None:
    class Inverse(Layer):
        def apply(self, params: Any, x: Any, context: Context) -> Any:
            return 1 / (x - x)

    assert Inverse().footprint(Spec.of((2,), "float32")).output.shape == (2,)


def test_the_trial_of_a_definition_draws_as_the_layer_does_and_touches_no_ledger() -> None:
    class Noisy(Layer):
        def apply(self, params: Any, x: Any, context: Context) -> Any:
            return x + context.key.generator().standard_normal(x.shape).astype(x.dtype)

    layer, x = Noisy(), np.zeros((2, 3), np.float32)
    layer.footprint(Spec.of(x.shape, x.dtype))
    first, second, other = (layer.forward({}, x, Context(Ledger(), key=Key(k)))[0] for k in (1, 1, 2))
    assert same_bits(first, second)
    assert not same_bits(first, other)


def test_a_loss_takes_what_a_layer_of_ones_own_gives() -> None:
    y = called(Affine(5), numbers(np.random.default_rng(1), (6, 4), "float64"))[1]
    total, count, _ = CrossEntropy().forward(y, np.arange(6) % 5, None, Context(Ledger()))
    assert count == 6
    assert np.isfinite(total)
