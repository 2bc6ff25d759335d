"""The loops under the layers: matrix products without hidden copies, and rows in cache-sized blocks.

A chain of ufuncs over a large array reads and writes main memory once for each ufunc. Run over blocks of rows that fit the
cache it does so once in all. Block sizes depend on shapes alone, never on the cache, the threads, the budget or an
option, so that results do not either.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import numpy as np

from framework.memory import Array

#: A call of NumPy with all its arrays: a loop that runs often over the same places makes them once.
Step = Callable[[], object]

#: Elements of a block: 128 KiB of float32, so that a handful of blocks fit a level-2 cache. Each call costs a microsecond, so smaller ones are
#: slower although they would fit the first level; twice as large ones are as fast where the cache has 2 MiB.
BLOCK = 32_768

#: The same for rules that make a dozen calls over rows a block, in place.
LARGE_BLOCK = 2 * BLOCK

#: A product of few rows, columns or terms is cut into pieces that BLAS multiplies as they lie: OpenBLAS does so with AVX-512 up to so many
#: multiplications a piece, and so many results where both operands lie along the sum; a larger one it copies into panels first, which takes
#: several times as long as to multiply them.
_FEW, _PIECE, _DOTS = 32, 10**6, 1200
#: Rows or columns of a piece, the widest that fits. Narrower ones would cost a tenth and more where BLAS copies all the same.
_WIDTHS = (128, 64, 32)
#: Rows of a block of a product of rows with rows, and what divides the number of its columns.
_ROWS, _GRAIN = 32, 8


def matmul(a: Array, b: Array, out: Array) -> Array:
    """Writes the matrix product of the last two axes of `a` and `b` into `out`.

    Args:
        a: Shape (..., m, k), one of its last two axes with unit stride.
        b: Shape (..., k, n), likewise.
        out: Shape (..., m, n), its last axis with unit stride.

    Returns:
        `out`.

    Raises:
        ValueError: An operand has a layout that NumPy would copy first, where neither the ledger nor
            `tracemalloc` sees it.
    """
    _require_no_copies(a, b, out)
    if a.ndim == b.ndim == 2 and a.size * out.shape[1] > _PIECE and min(*a.shape, out.shape[1]) <= _FEW:
        return _in_pieces(a, b, out)
    return np.matmul(a, b, out=out)


def _require_no_copies(a: Array, b: Array, out: Array) -> None:
    """Raises an error unless NumPy multiplies the operands as they are."""
    if not (a.dtype == b.dtype == out.dtype):
        raise ValueError(
            f"matmul takes one dtype, but got {a.dtype} and {b.dtype} for {out.dtype}; NumPy would copy silently"
        )
    for name, operand in (("a", a), ("b", b), ("out", out)):
        if not _blas_reads(operand, transposed=name != "out"):
            raise ValueError(
                f"matmul operand {name} of shape {operand.shape} has strides {operand.strides}, which NumPy would "
                "copy silently; pass an array whose last axis (or the one before it) has unit stride"
            )


def _in_pieces(a: Array, b: Array, out: Array) -> Array:
    """Multiplies matrices, some columns of `out` at a time, or some rows where it has more of them."""
    (rows, terms), columns = a.shape, out.shape[1]
    length, other = max(rows, columns), min(rows, columns)
    most = _PIECE // (terms * other)
    if a.strides[1] == b.strides[0] == a.itemsize:
        most = min(most, _DOTS // other)
    width = next((width for width in _WIDTHS if width <= most and width < length), None)
    if width is None:
        return np.matmul(a, b, out=out)
    whole = length - length % width
    if rows > columns:
        np.matmul(a[:whole].reshape(-1, width, terms), b, out=out[:whole].reshape(-1, width, columns))
        rest = (a[whole:], b, out[whole:])
    else:
        b_pieces, out_pieces = (c[:, :whole].reshape(len(c), -1, width).swapaxes(0, 1) for c in (b, out))
        np.matmul(a, b_pieces, out=out_pieces)
        rest = (a, b[:, whole:], out[:, whole:])
    if whole < length:
        np.matmul(*rest[:2], out=rest[2])
    return out


def matmul_by_rows(a: Array, b: Array, out: Array) -> Array:
    """Writes a @ bᵀ into `out`, the products of rows with rows, in blocks that BLAS multiplies as they lie.

    `matmul` cuts only products of few rows, and no stacks of them. With AVX-512, blocks take a quarter to a half off the time; without, they
    cost a fifth.

    Args:
        a: Shape (..., m, k), its last axis with unit stride.
        b: Shape (..., n, k), likewise.
        out: Shape (..., m, n), likewise.

    Returns:
        `out`.

    Raises:
        ValueError: As of `matmul`.
    """
    for step in steps_by_rows(a, b, out):
        step()
    return out


def steps_by_rows(a: Array, b: Array, out: Array) -> list[Step]:
    """Returns the calls of `matmul_by_rows`, for arrays whose values change while their places stay."""
    (m, k), n = a.shape[-2:], b.shape[-2]
    rows = min(m, _ROWS)
    columns = min(_DOTS, _PIECE // max(1, k)) // max(1, rows) // _GRAIN * _GRAIN
    if (m * n <= _DOTS and m * n * k <= _PIECE) or not columns:
        return [_step_of_matmul(a, np.swapaxes(b, -1, -2), out)]
    found = []
    for i in _whole_and_rest(m, rows):
        for j in _whole_and_rest(n, columns):
            some, others, target = a[..., i, :], b[..., j, :], out[..., i, j]
            *outer, down, across = target.shape
            r, c = min(down, rows), min(across, columns)
            step = _step_of_matmul(
                some.reshape(*outer, down // r, 1, r, k),
                np.swapaxes(others.reshape(*outer, 1, across // c, c, k), -1, -2),
                target.reshape(*outer, down // r, r, across // c, c).swapaxes(-3, -2),
            )
            found.append(step)
    return found


def steps_of_matmul(a: Array, b: Array, out: Array) -> list[Step]:
    """Returns calls that together multiply as `matmul` does, for arrays whose values change while their places stay.

    They take equal blocks of columns that BLAS multiplies as they lie. With AVX-512 that takes a sixth off the time; without, it costs some 3 %.

    Args:
        a: Shape (..., m, k), its last axis with unit stride.
        b: Shape (..., k, n), likewise.
        out: Shape (..., m, n), likewise.

    Raises:
        ValueError: As of `matmul`.
    """
    m, (k, n) = a.shape[-2], b.shape[-2:]
    most = _PIECE // max(1, m * k) // _GRAIN * _GRAIN
    if n <= most or most < 2 * _GRAIN:
        return [_step_of_matmul(a, b, out)]
    blocks = -(-n // most)
    width = -(-n // (blocks * _GRAIN)) * _GRAIN
    found = []
    for j in _whole_and_rest(n, width):
        some, target = b[..., j], out[..., j]
        some, target = (c.reshape(*c.shape[:-1], -1, min(c.shape[-1], width)).swapaxes(-3, -2) for c in (some, target))
        found.append(_step_of_matmul(a[..., None, :, :], some, target))
    return found


def _step_of_matmul(a: Array, b: Array, out: Array) -> Step:
    _require_no_copies(a, b, out)
    return partial(np.matmul, a, b, out=out)


def _whole_and_rest(length: int, step: int) -> Iterator[slice]:
    """Cuts a length into the part that blocks of a step fill, and what is left."""
    whole = length - length % step
    for part in (slice(0, whole), slice(whole, length)):
        if part.start < part.stop:
            yield part


def _blas_reads(a: Array, transposed: bool) -> bool:
    """Whether BLAS takes the last two axes of `a` as they are (row-major, or column-major if `transposed` may be)."""
    flags = a.flags
    if flags.c_contiguous or (transposed and flags.f_contiguous and a.ndim == 2) or a.size == 0:
        return True
    (rows, columns), (down, across), item = a.shape[-2:], a.strides[-2:], a.itemsize
    row_major = (across == item or columns == 1) and (down >= columns * item or rows == 1)
    column_major = (down == item or rows == 1) and (across >= rows * item or columns == 1)
    return row_major or (transposed and column_major)


def block_rows(rows: int, width: int, size: int = BLOCK) -> int:
    """Returns how many rows of `width` elements make a block of about `size` elements (at least one, at most all)."""
    return max(1, min(rows, size // max(1, width)))


def row_blocks(rows: int, width: int, size: int = BLOCK) -> Iterator[slice]:
    """Yields slices that cut `rows` rows of `width` elements into blocks."""
    step = block_rows(rows, width, size)
    for start in range(0, rows, step):
        yield slice(start, min(start + step, rows))


def flat_blocks(*arrays: Array, size: int = BLOCK) -> Iterator[list[Array]]:
    """Yields blocks of at most `size` elements of contiguous arrays that are equally large: views of the same elements of each."""
    flat = [as_view(a, (-1,)) for a in arrays]
    if 0 < flat[0].size <= size:  # small layers are many
        yield flat
        return
    for block in row_blocks(flat[0].size, 1, size):
        yield [a[block] for a in flat]


def as_rows(a: Array) -> Array:
    """Returns a view of `a` with all but its last axis merged: shape (rows, width)."""
    if a.ndim == 2 and a.flags.c_contiguous:
        return a
    return as_view(a, (math.prod(a.shape[:-1]), a.shape[-1]))


def as_view(a: Array, shape: tuple[int, ...]) -> Array:
    """Returns `a.reshape(shape)`, refusing what only a copy could do."""
    if not a.flags.c_contiguous:
        raise ValueError(
            f"an array of shape {a.shape} with strides {a.strides} is not contiguous; pass a contiguous one"
        )
    return a.reshape(shape)


def front(scratch: Array, shape: tuple[int, ...]) -> Array:
    """Returns the beginning of flat scratch as a contiguous view of a shape."""
    return scratch[: math.prod(shape)].reshape(shape)


@contextmanager
def small_buffers() -> Iterator[None]:
    """Has ufuncs take small buffers inside.

    Where an operand is not contiguous along all axes, NumPy takes buffers of 8,192 elements for each, even if it needs none: 200 KB that no
    footprint tells. Buffers of an eighth are as fast.
    """
    before = np.setbufsize(1024)
    try:
        yield
    finally:
        np.setbufsize(before)
