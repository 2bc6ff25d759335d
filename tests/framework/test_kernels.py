"""Matrix products without copies, and rows cut into blocks."""

from __future__ import annotations

import math
import tracemalloc
from functools import partial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from framework import kernels

GENERATOR = np.random.default_rng(0)
sizes = st.integers(0, 6)


def normal(*shape: int) -> np.ndarray:
    return GENERATOR.standard_normal(shape)


@given(m=sizes, k=sizes, n=sizes, transposed=st.tuples(st.booleans(), st.booleans()), dtype=st.sampled_from("fd"))
def test_matmul_is_the_product_for_either_order_of_an_operand(
    m: int, k: int, n: int, transposed: tuple[bool, bool], dtype: str
) -> None:
    a, b = (
        normal(columns, rows).astype(dtype).T if turned else normal(rows, columns).astype(dtype)
        for (rows, columns), turned in zip(((m, k), (k, n)), transposed, strict=True)
    )
    out = np.full((m, n), np.nan, dtype)
    assert kernels.matmul(a, b, out) is out
    expected = np.einsum("ik,kj->ij", a.astype(float), b.astype(float))
    # float32: six products of numbers of size one, each rounded.
    np.testing.assert_allclose(out, expected, rtol=0, atol=1e-5 if dtype == "f" else 1e-13)


@pytest.mark.parametrize("turned", [(False, False), (False, True), (True, False), (True, True)])
@pytest.mark.parametrize(
    ("m", "k", "n"), [(4, 700, 1000), (17, 600, 130), (1000, 700, 5), (600, 9, 700), (400, 32, 410)]
)
def test_a_product_of_few_rows_columns_or_terms_in_pieces_is_the_whole_one(
    m: int, k: int, n: int, turned: tuple[bool, bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = (
        normal(columns, rows + 3)[:, :rows].T if each else normal(rows, columns + 3)[:, :columns]
        for (rows, columns), each in zip(((m, k), (k, n)), turned, strict=True)
    )
    whole = np.full((m, n + 3), np.nan)
    out, products = whole[:, :n], []
    matmul = np.matmul
    monkeypatch.setattr(np, "matmul", lambda a, b, out: (products.append(out.shape), matmul(a, b, out=out))[1])
    tracemalloc.start()
    try:
        assert kernels.matmul(a, b, out) is out
        assert tracemalloc.get_traced_memory()[1] < 4096  # views, and no copy
    finally:
        tracemalloc.stop()
    np.testing.assert_allclose(out, a @ b, rtol=0, atol=1e-11)
    assert np.isnan(whole[:, n:]).all()
    # Pieces of many rows and many columns are no faster where both operands lie along the sum.
    assert (len(products[0]) == 3) == (min(m, n) <= 32 or turned != (False, True))
    assert sum(math.prod(shape) for shape in products) == m * n


def test_matmul_takes_windows_of_wider_rows_and_stacks() -> None:
    a, b, whole = normal(3, 4, 9)[..., 2:7], normal(3, 5, 8)[..., 1:7], np.zeros((3, 4, 10))
    kernels.matmul(a, b, whole[..., 2:8])
    np.testing.assert_allclose(whole[..., 2:8], np.einsum("sik,skj->sij", a, b), rtol=1e-12, atol=1e-13)
    assert not whole[..., :2].any()
    assert not whole[..., 8:].any()


@pytest.mark.parametrize(
    ("name", "operands"),
    [
        ("a", (normal(4, 10)[:, ::2], normal(5, 3), np.empty((4, 3)))),
        ("a", (normal(4, 5)[:, ::-1], normal(5, 3), np.empty((4, 3)))),
        ("a", (normal(4, 5)[::-1], normal(5, 3), np.empty((4, 3)))),
        ("a", (np.broadcast_to(normal(5), (4, 5)), normal(5, 3), np.empty((4, 3)))),
        ("b", (normal(4, 5), normal(10, 6)[::2, ::2], np.empty((4, 3)))),
        ("b", (normal(2, 4, 5), normal(5, 3, 2).transpose(2, 0, 1), np.empty((2, 4, 3)))),
        ("out", (normal(4, 5), normal(5, 3), np.empty((4, 6))[:, ::2])),
        ("out", (normal(4, 5), normal(5, 3), np.empty((3, 4)).T)),
    ],
)
def test_matmul_refuses_what_numpy_would_copy_and_names_it(name: str, operands: tuple) -> None:
    shape, strides = (operands[["a", "b", "out"].index(name)].shape, operands[["a", "b", "out"].index(name)].strides)
    with pytest.raises(ValueError, match="copy silently") as caught:
        kernels.matmul(*operands)
    assert f"operand {name} of shape {shape} has strides {strides}" in str(caught.value)


@given(rows=st.integers(0, 3 * kernels.BLOCK), width=st.integers(0, 2 * kernels.BLOCK))
def test_blocks_cover_the_rows_once_in_order_and_fit(rows: int, width: int) -> None:
    if rows * max(1, width) > 50 * kernels.BLOCK:
        rows = 50 * kernels.BLOCK // max(1, width)
    blocks = list(kernels.row_blocks(rows, width))
    height = kernels.block_rows(rows, width)
    assert [row for block in blocks for row in range(block.start, block.stop)] == list(range(rows))
    assert all(0 < block.stop - block.start <= height for block in blocks)
    assert all(block.stop - block.start == height for block in blocks[:-1])
    assert height == 1 or (height <= rows and height * width <= kernels.BLOCK)


def test_rows_are_a_view() -> None:
    a = np.zeros((2, 3, 4))
    rows = kernels.as_rows(a)
    assert rows.shape == (6, 4)
    assert np.shares_memory(rows, a)
    assert kernels.as_rows(np.zeros((0, 3, 0))).shape == (0, 0)
    assert kernels.as_rows(np.zeros(4)).shape == (1, 4)


@pytest.mark.parametrize("a", [np.zeros((3, 4)).T, np.zeros((3, 4))[:, ::2], np.zeros((2, 3, 4)).swapaxes(0, 1)])
def test_a_view_that_only_a_copy_could_give_is_an_error(a: np.ndarray) -> None:
    with pytest.raises(ValueError, match="not contiguous"):
        kernels.as_view(a, (-1,))


few = st.integers(0, 9)


@given(
    m=few,
    k=few,
    n=few,
    groups=st.integers(1, 2),
    product=st.integers(1, 40),
    small=st.integers(1, 200),
    rows=st.integers(1, 5),
)
def test_products_in_blocks_are_the_product(
    m: int, k: int, n: int, groups: int, product: int, small: int, rows: int
) -> None:
    a, b, c = normal(groups, m, k + 2)[..., :k], normal(groups, n, k + 1)[..., :k], normal(groups, k, n + 3)[..., :n]
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (("_DOTS", product), ("_PIECE", small), ("_ROWS", rows), ("_GRAIN", 1)):
            patch.setattr(kernels, name, value)
        out = np.full((groups, m, n + 1), np.nan)[..., :n]
        assert kernels.matmul_by_rows(a, b, out) is out
        np.testing.assert_allclose(out, np.einsum("gik,gjk->gij", a, b), rtol=1e-12, atol=1e-13)
        out = np.full((groups, m, n + 1), np.nan)[..., :n]
        for step in kernels.steps_of_matmul(a, c, out):
            step()
        np.testing.assert_allclose(out, np.einsum("gik,gkj->gij", a, c), rtol=1e-12, atol=1e-13)


def test_blocks_are_of_the_size_that_openblas_takes_as_it_lies() -> None:
    for m, n, k in ((64, 288, 512), (16, 48, 2112), (30, 100, 300), (32, 32, 16)):
        by_rows = kernels.steps_by_rows(np.ones((m, k)), np.ones((n, k)), np.empty((m, n)))
        by_columns = kernels.steps_of_matmul(np.ones((m, k)), np.ones((k, n)), np.empty((m, n)))
        for steps, most in ((by_rows, kernels._DOTS), (by_columns, m * n)):
            made = 0
            for step in steps:
                assert isinstance(step, partial)
                out = step.keywords["out"]
                made += out.size
                rows, columns = out.shape[-2:]
                assert rows * columns <= most
                assert rows * columns * k <= kernels._PIECE
            assert made == m * n


def test_a_step_multiplies_what_the_arrays_hold_when_it_is_taken() -> None:
    a, b, out = normal(2, 3, 4), normal(2, 4, 5), np.empty((2, 3, 5))
    (step,) = kernels.steps_of_matmul(a, b, out)
    a[...] = normal(2, 3, 4)
    step()
    np.testing.assert_allclose(out, np.einsum("gik,gkj->gij", a, b), rtol=1e-12, atol=1e-13)
    with pytest.raises(ValueError, match="copy silently"):
        kernels.steps_of_matmul(a, normal(2, 4, 10)[..., ::2], out)
