"""The demonstration's data: exact products, bytes that grow or do not, and nothing that JSON cannot hold."""

from __future__ import annotations

import dataclasses
import json
import tracemalloc
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from framework.differentiation.demonstration import SECTIONS, FiveLayers, Settings, Weights, steps
from framework.differentiation.demonstration.crossover import equal_at
from framework.differentiation.demonstration.example import example_function, example_jacobian
from framework.measuring import median_seconds, peak_bytes

SMALL = Settings(
    arguments=200, entries=1000, elements=10_000, networks=((2, 8, 4),), depths=(10, 20, 40), repetitions=1
)
EXACT = 1e-12


def by_hand(parts: FiveLayers) -> tuple[float, Weights]:
    """Loss and gradients of the five-layer network by formulas, without any of the project's derivatives."""
    inputs, x = [], parts.x
    for number, (W, b) in enumerate(parts.weights):
        x = np.where(x > 0, x, 0) if number else x
        inputs.append(x)
        x = x @ W + b
    error = x - parts.target
    g, gradients = 2 * error / error.size, []
    for (W, _), x in zip(reversed(parts.weights), reversed(inputs), strict=True):
        gradients.append((x.T @ g, g.sum(axis=0)))
        g = (g @ W.T) * (x > 0)
    return float((error**2).sum() / error.size), gradients[::-1]


@pytest.fixture(scope="module")
def data() -> dict[str, Any]:
    settings = dataclasses.replace(SMALL, engine=by_hand)
    return {name: section(settings) for name, section in SECTIONS.items()}


def test_the_example_s_products_are_those_of_its_exact_jacobian(data: dict[str, Any]) -> None:
    e = data["example"]
    J, v, w = np.array(e.jacobian), np.array(e.direction), np.array(e.cotangent)
    np.testing.assert_array_equal(J, [[3.0, 1.0], [2.0, 1.5], [np.cos(1.5), 0.0]])
    np.testing.assert_allclose(e.jvp.result, J @ v, atol=EXACT)
    np.testing.assert_allclose(e.vjp.result, J.T @ w, atol=EXACT)
    columns, rows = (np.array([p.result for p in products]) for products in (e.columns, e.rows))
    np.testing.assert_allclose(columns.T, J, atol=EXACT)
    np.testing.assert_allclose(rows, J, atol=EXACT)
    np.testing.assert_allclose(e.jvp.result, v @ columns, atol=EXACT)  # a sum of columns
    np.testing.assert_allclose(e.vjp.result, w @ rows, atol=EXACT)  # a sum of rows
    np.testing.assert_allclose(e.difference_quotient, e.jvp.result, atol=1e-8)
    assert e.largest_difference <= EXACT


def test_the_steps_end_in_the_value_and_the_jvp_and_begin_with_the_vjp(data: dict[str, Any]) -> None:
    e, found = data["example"], steps()
    assert [s.output for s in found] == [f"v{i + 1}" for i in range(len(found))]
    assert {"np.multiply", "np.add", "np.sin"} <= {s.name for s in found}
    np.testing.assert_allclose(found[-1].value, e.value, atol=EXACT)
    np.testing.assert_allclose(found[-1].tangent, e.jvp.result, atol=EXACT)
    np.testing.assert_allclose(found[-1].cotangent, e.cotangent, atol=EXACT)
    unpacked = [s for s in found if s.inputs[0] == "x"]
    np.testing.assert_allclose([s.cotangent[0] for s in unpacked], e.vjp.result, atol=EXACT)
    assert all(len(s.value) == len(s.tangent) == len(s.cotangent) for s in found)
    # ⟨Jᵀ w, v⟩ = ⟨w, J v⟩
    through = sum(s.cotangent[0] * s.tangent[0] for s in unpacked)
    assert through == pytest.approx(np.dot(e.cotangent, e.jvp.result), abs=EXACT)


def test_sizes_are_entries_times_four_bytes_and_the_products_that_ran_stay_below(data: dict[str, Any]) -> None:
    s = data["sizes"]
    dense, resnet, gpt = s.components
    assert (dense.arguments, dense.results, dense.entries) == (524_288, 512, 268_435_456)
    assert resnet.arguments == 25_000_000
    assert gpt.arguments == 175_000_000_000
    for c in s.components:
        assert c.entries == c.arguments * c.results
        assert (c.jacobian_bytes, c.jvp_bytes, c.vjp_bytes) == (4 * c.entries, 4 * c.results, 4 * c.arguments)
    assert dense.jvp_bytes <= s.jvp_peak_bytes < 100 * dense.jvp_bytes
    assert dense.vjp_bytes <= s.vjp_peak_bytes < 3 * dense.vjp_bytes


def test_both_modes_give_the_same_jacobian_and_the_rule_counts_products(data: dict[str, Any]) -> None:
    c = data["crossover"]
    assert [s.results * s.arguments for s in c.shapes] == pytest.approx([1000] * len(c.shapes), rel=0.05)
    assert [s.arguments for s in c.shapes] == sorted({s.arguments for s in c.shapes})
    assert (c.many_to_few.results, c.many_to_few.arguments) == (10, 200)
    for s in (*c.shapes, c.many_to_few):
        assert s.difference <= EXACT
        assert s.chosen == ("forward" if s.arguments <= s.results else "reverse")
        assert s.faster == ("forward" if s.ratio < 1 else "reverse")
        assert s.ratio == s.forward_seconds / s.reverse_seconds
    assert (c.crossover is None) == (c.crossover_shape is None)


def test_the_crossover_lies_where_the_ratio_of_times_is_one() -> None:
    assert equal_at([0.01, 1.0, 100.0], [0.1, 0.5, 2.0]) == pytest.approx(10)
    assert equal_at([0.01, 1.0, 100.0], [0.25, 1.0, 2.0]) == pytest.approx(1)
    assert equal_at([0.01, 1.0, 100.0], [0.1, 0.2, 0.9]) is None
    assert equal_at([0.01, 1.0], [1.0, 1.0]) is None


def test_elementwise_products_are_the_formulas_and_form_no_matrix(data: dict[str, Any]) -> None:
    assert [f.name for f in data["elementwise"]] == ["ReLU", "sigmoid", "square"]
    for f in data["elementwise"]:
        assert max(f.jvp_difference, f.vjp_difference) <= EXACT
        assert f.matrix_bytes == 8 * f.elements**2
        assert 1 <= f.peak_arrays < 8
        assert f.peak_bytes < f.matrix_bytes / 1000


def test_the_network_s_gradient_is_that_of_backpropagation_by_hand(data: dict[str, Any]) -> None:
    n = data["network"]
    assert n.loss == pytest.approx(n.engine_loss, abs=EXACT)
    assert n.largest_difference <= EXACT
    assert [g.shape for g in n.gradients] == [(10, 32), (32,), (32, 16), (16,), (16, 1), (1,)]
    for g in n.gradients:
        assert g.norm > 0
        assert g.norm == pytest.approx(g.engine_norm, abs=EXACT)
        assert g.difference <= EXACT


def test_products_taken_layer_by_layer_are_those_of_the_whole(data: dict[str, Any]) -> None:
    n = data["network"]
    assert [link.layer.split()[0] for link in n.links] == ["Linear", "ReLU", "Linear", "ReLU", "Linear", "mean"]
    assert max(n.composed_jvp_difference, n.composed_vjp_difference) <= EXACT
    assert all(link.tangent_norm > 0 and link.cotangent_norm > 0 for link in n.links)


def test_costs_are_in_forward_passes(data: dict[str, Any]) -> None:
    assert [(c.by, c.matrix_products) for c in data["cost"]] == [("input", 2.0), ("parameters", 2.5)]
    for c in data["cost"]:
        assert c.jvp_ratio == c.jvp_seconds / c.forward_seconds
        assert c.vjp_ratio == c.vjp_seconds / c.forward_seconds
        assert c.pullback_ratio == c.pullback_seconds / c.forward_seconds


def test_forward_mode_s_memory_does_not_grow_with_depth_and_reverse_mode_s_does(data: dict[str, Any]) -> None:
    d = data["depth"]
    assert d.forward_bytes_per_layer < d.activation_bytes / 20
    assert d.activation_bytes <= d.reverse_bytes_per_layer < 2 * d.activation_bytes
    for shallow, deep in pairwise(d.depths):
        more = deep.depth - shallow.depth
        assert deep.reverse_peak_bytes - shallow.reverse_peak_bytes >= more * d.activation_bytes
        assert abs(deep.forward_peak_bytes - shallow.forward_peak_bytes) < d.activation_bytes
        assert deep.function_peak_bytes <= deep.forward_peak_bytes < deep.reverse_peak_bytes


@pytest.mark.parametrize("depths", [(), (10,), (10, 10), (20, 10), (0, 10)])
def test_depths_must_grow(depths: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="two or more positive numbers that grow"):
        SECTIONS["depth"](dataclasses.replace(SMALL, depths=depths))


def test_the_gradient_is_the_vjp_of_one_bit_for_bit(data: dict[str, Any]) -> None:
    g = data["gradient"]
    assert g.equal_bits
    assert g.different_elements == 0
    assert g.arguments == 10 * 32 + 32 + 32 * 16 + 16 + 16 + 1
    assert g.jvp_difference <= EXACT


def test_custom_rules_and_cotangents_give_the_closed_forms(data: dict[str, Any]) -> None:
    square, forward, polynomial = data["custom"]
    assert square.result == (2.0, 4.0, 6.0)
    assert forward.result == (2.0, 8.0, 18.0)
    np.testing.assert_allclose(polynomial.result, polynomial.exact, atol=EXACT)


def test_hessian_products_are_the_hessian_times_the_vector_in_all_modes(data: dict[str, Any]) -> None:
    h = data["hessian"]
    assert [p.mode for p in h.products] == ["forward-over-reverse", "reverse-over-forward", "reverse-over-reverse"]
    assert all(p.difference <= EXACT for p in h.products)
    assert h.quotient_difference < 1e-6 * h.largest_entry
    assert h.asymmetry <= EXACT
    assert (h.hessian_bytes, h.product_bytes) == (8 * h.arguments**2, 8 * h.arguments)
    assert all(h.product_bytes <= p.peak_bytes < h.hessian_bytes for p in h.products)


def test_all_that_was_computed_goes_into_json(data: dict[str, Any]) -> None:
    for section in (*data.values(), steps()):
        plain = [dataclasses.asdict(s) for s in section] if isinstance(section, tuple) else dataclasses.asdict(section)
        assert json.loads(json.dumps(plain, allow_nan=False))


def test_numbers_come_from_the_seed_and_not_from_the_sections_before(data: dict[str, Any]) -> None:
    again = SECTIONS["network"](SMALL)
    assert again.loss == data["network"].loss
    assert again.engine_loss is None is again.largest_difference
    assert SECTIONS["network"](dataclasses.replace(SMALL, seed=1)).loss != again.loss


def test_the_jacobian_by_hand_is_that_of_differences() -> None:
    x, h = np.array([0.3, -0.7]), 1e-6
    columns = [(example_function(x + h * e) - example_function(x - h * e)) / (2 * h) for e in np.eye(2)]
    np.testing.assert_allclose(np.array(columns).T, example_jacobian(x), atol=1e-9)


def test_timed_calls_take_turns_after_one_run_each() -> None:
    called: list[str] = []
    times = median_seconds([lambda: called.append("a"), lambda: called.append("b")], 3)
    assert called == ["a", "b"] * 4
    assert len(times) == 2
    with pytest.raises(ValueError, match="at least 1 repetition"):
        median_seconds([], 0)


def test_peak_bytes_counts_what_is_held_at_once_and_leaves_tracemalloc_as_it_was() -> None:
    def twice() -> Any:
        first = np.ones(10_000)
        return first + 1

    assert 160_000 <= peak_bytes(twice) < 165_000
    assert not tracemalloc.is_tracing()
    tracemalloc.start()
    try:
        kept = np.ones(1_000_000)
        assert 160_000 <= peak_bytes(twice) < 165_000
        assert tracemalloc.is_tracing()
        assert kept.size
    finally:
        tracemalloc.stop()
