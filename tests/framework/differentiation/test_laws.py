"""The laws that every rule obeys, on drawn calls: shapes from 0-d to zero-length, every layout of memory, float32 and float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from framework.differentiation import jvp, vjp
from framework.differentiation.structure import as_arrays, leaves, rebuild
from framework.differentiation.table import CONSTANT, DERIVED, RULES, describe
from framework.measuring import peak_bytes
from tests.framework.differentiation.calls import CALLS, NEVER_EMPTY
from tests.framework.differentiation.drawing import Draw, laid_out

#: Relative errors: of the adjoint identity, and of values, which functions written with others round otherwise.
ADJOINT = {"float32": 2e-4, "float64": 1e-10}
VALUE = {"float32": 2e-5, "float64": 1e-12}
#: Step and relative error of central differences.
STEP, DIFFERENCE = 1e-5, 1e-6


def products(a: Any, b: Any) -> tuple[float, float]:
    """⟨a, b⟩, and the sum of absolute values in it, which its rounding is relative to."""
    each = [np.asarray(x, float) * np.asarray(y, float) for x, y in zip(leaves(a), leaves(b), strict=True)]
    return float(sum(x.sum() for x in each)), float(sum(np.abs(x).sum() for x in each))


def require_equal(a: tuple[float, float], b: tuple[float, float], tolerance: float, what: str) -> None:
    assert abs(a[0] - b[0]) <= tolerance * (a[1] + b[1] + 1e-3), f"{what}: {a[0]!r} and {b[0]!r}"


def require_like(given: Any, like: Any) -> None:
    """Shapes and dtypes are those of the array that a tangent or cotangent belongs to."""
    for a, b in zip(leaves(given), leaves(like), strict=True):
        assert (np.shape(a), a.dtype) == (np.shape(b), b.dtype)


def check_first_order(function: Any, arrays: Any, v: Any, w: Any, y: Any, precision: str) -> None:
    value, moved = jvp(function, arrays, v)
    traced, pullback = vjp(function, *arrays)
    for found in (value, traced):
        require_like(found, y)
        for mine, numpys in zip(leaves(found), leaves(y), strict=True):
            scale = max(float(np.max(np.abs(a), initial=0, where=np.isfinite(a))) for a in (numpys, *arrays))
            np.testing.assert_allclose(mine, numpys, VALUE[precision], VALUE[precision] * scale)
    back = pullback(w)
    require_like(moved, y)
    require_like(back, arrays)
    require_equal(products(w, moved), products(back, v), ADJOINT[precision], "⟨w, J v⟩ and ⟨Jᵀ w, v⟩")


def check_second_order(function: Any, arrays: Any, v: Any, w: Any, u: Any) -> None:
    """⟨w, ∂²f[u, v]⟩ by forward and reverse mode over each other and over themselves."""
    _, by_forward = jvp(lambda *x: jvp(function, x, u)[1], arrays, v)
    _, pullback = vjp(lambda *x: jvp(function, x, u)[1], *arrays)
    _, of_back = jvp(lambda *x: vjp(function, *x)[1](w), arrays, v)
    _, pullback_of_back = vjp(lambda *x: vjp(function, *x)[1](w), *arrays)
    expected = products(w, by_forward)
    for found, what in (
        (products(pullback(w), v), "reverse over forward"),
        (products(of_back, u), "forward over reverse"),
        (products(pullback_of_back(u), v), "reverse over reverse"),
    ):
        require_equal(found, expected, ADJOINT["float64"], f"second derivative, {what} and forward over forward")


def check_differences(function: Any, arrays: Any, v: Any, w: Any) -> None:
    """The JVP is the central difference."""

    def difference(f: Any, weight: Any) -> tuple[float, float]:
        ahead, behind = (f(*(x + sign * STEP * t for x, t in zip(arrays, v, strict=True))) for sign in (1, -1))
        return products(weight, rebuild(as_arrays(ahead), lambda a, b: (a - b) / (2 * STEP), as_arrays(behind)))

    require_equal(products(w, jvp(function, arrays, v)[1]), difference(function, w), DIFFERENCE, "JVP and differences")


@st.composite
def calls(draw: Any, function: Any) -> Any:
    d = Draw(draw)
    call, *arrays = CALLS[function](d)
    return call, tuple(arrays), d.random


def is_empty(drawn: Any) -> bool:
    return any(a.size == 0 for a in drawn[1])


@pytest.mark.parametrize("function", CALLS, ids=describe)
def test_every_rule_obeys_the_laws(function: Any) -> None:
    def law(drawn: Any) -> None:
        call, arrays, random = drawn
        y = as_arrays(call(*arrays))
        precision = "float32" if any(a.dtype == np.float32 for a in (*arrays, *leaves(y))) else "float64"
        v, u = (rebuild(arrays, lambda a: np.asarray(random.standard_normal(a.shape), a.dtype)) for _ in range(2))
        w = rebuild(y, lambda a: np.asarray(random.standard_normal(a.shape), a.dtype))
        check_first_order(call, arrays, v, w, y, precision)
        for layout in ("strided", "reversed"):  # drawn ones seldom lie so
            check_first_order(call, tuple(laid_out(a, layout) for a in arrays), v, w, y, precision)
        if precision == "float64":
            check_second_order(call, arrays, v, w, u)
            if all(np.unique(a).size == a.size for a in arrays):  # no kink is near
                check_differences(call, arrays, v, w)
                check_differences(lambda *x: jvp(call, x, u)[1], arrays, v, w)

    drawn = calls(function)
    _settings(18)(given(drawn)(law))()
    if function not in NEVER_EMPTY:  # the draws above may have none
        _settings(2)(given(drawn.filter(is_empty))(law))()


def _settings(count: int) -> settings:
    checks = list(HealthCheck)
    return settings(derandomize=True, max_examples=count, deadline=None, database=None, suppress_health_check=checks)


def test_every_function_of_the_tables_has_calls() -> None:
    # Rules that tests and users register are not the tables'.
    table = {f for f, rule in RULES.items() if rule.family != "custom"} | set(DERIVED)
    assert {describe(f) for f in table - set(CALLS)} == set()
    assert not CONSTANT & table


@pytest.mark.parametrize("function", [f for f, rule in RULES.items() if rule.kind == "elementwise"], ids=describe)
def test_no_rule_of_an_elementwise_function_forms_a_matrix(function: Any) -> None:
    n = 2000
    x = np.linspace(0.1, 0.9, n)
    if function is np.ldexp:
        arrays, call = (x,), lambda x: np.ldexp(x, 2)
    else:
        arrays, call = (
            (x,) * getattr(function, "nin", 1),
            function if function is not np.clip else lambda x: np.clip(x, 0.2, 0.8),
        )

    def products() -> None:
        with np.errstate(invalid="ignore"):  # arccosh has no such argument
            jvp(call, arrays, arrays)
            vjp(call, *arrays)[1](x)

    assert peak_bytes(products) < 30 * x.nbytes < x.nbytes * n / 50
