"""PyTorch as judge of our derivative rules: value, VJP and JVP in float64, on the samples of PyTorch's own operator database.

`TABLE` says which operators of PyTorch are which of our functions, and with which arguments; every sample of these operators is
compared. Three things can become of one:

- passed: value, VJP with a random cotangent and JVP with random tangents agree to 1e-9 relative;
- unsupported: NumPy has no such call. Either the adapter does not take the sample's options or returns None, or NumPy itself
  refuses the call on plain arrays (PyTorch lets a scalar have an axis 0, for instance);
- failed: all else, an exception of ours included.

Run `make test-peers`, or `pytest -m peers -s tests/peers` for the table of counts.
"""

from __future__ import annotations

import inspect
import math
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from framework.differentiation import grad, jvp, vjp
from tests.peers.database import agree, mapped, print_counts, pulled, pushed, quiet, seed, shown, variables

pytestmark = pytest.mark.peers

#: Operators whose forward mode in PyTorch takes tangents to be symmetric; random ones are not, and PyTorch's own VJP has them right.
FORWARD_OF_SYMMETRIC = {"linalg.cholesky"}
#: For each function of ours how many samples passed and were unsupported.
COUNTS: dict[str, Counter[str]] = {}

Adapter = Callable[..., Any]


# -- adapters: (PyTorch's arguments) → NumPy's (args, kwargs), or None where NumPy lacks the option --------------------------------


def same(*args: Any) -> Any:
    return args, {}


def reverse(a: Any, b: Any) -> Any:
    return (b, a), {}


def of_list(*arrays: Any) -> Any:
    return (list(arrays[0]) if isinstance(arrays[0], list | tuple) else list(arrays),), {}


def each(*arrays: Any) -> Any:
    return of_list(*arrays)[0][0], {}


def axis_of(dim: Any) -> Any:
    """PyTorch reduces all axes for dim=(), as NumPy does for None."""
    return None if dim is None or dim == () or dim == [] else tuple(dim) if isinstance(dim, list) else dim


def reduction(x: Any, dim: Any = None, keepdim: bool = False, *, dtype: Any = None) -> Any:
    return (x,), {"axis": axis_of(dim), "keepdims": keepdim} | ({"dtype": dtype} if dtype is not None else {})


def largest(x: Any, dim: Any = None, keepdim: bool = False) -> Any:
    """Maxima by one axis: PyTorch gives a tie to one of the elements, we share it, so a sample with a tie is not compared."""
    if dim is not None and x.ndim and (x.detach() == x.detach().amax(dim, True)).sum(dim).max() > 1:
        return None
    return reduction(x, dim, keepdim)


def smallest(x: Any, dim: Any = None, keepdim: bool = False) -> Any:
    return None if largest(-x, dim, keepdim) is None else reduction(x, dim, keepdim)


def running(x: Any, dim: int, *, dtype: Any = None) -> Any:
    """Of a scalar NumPy makes a vector."""
    if x.ndim == 0:
        return None
    return (x,), {"axis": dim} | ({"dtype": dtype} if dtype is not None else {})


def variance(x: Any, dim: Any = None, unbiased: bool = True, keepdim: bool = False, *, correction: Any = 1) -> Any:
    if isinstance(dim, bool):
        dim, unbiased = None, dim
    ddof = (1 if correction is None else correction) if unbiased else 0
    return (x,), {"axis": axis_of(dim), "ddof": ddof, "keepdims": keepdim}


def median(x: Any, dim: Any = None, keepdim: bool = False) -> Any:
    """PyTorch gives the lower of two middle elements, NumPy their mean."""
    count = x.numel() if dim is None else x.shape[dim] if x.ndim else 1
    return reduction(x, dim, keepdim) if count % 2 else None


def as_median(x: Any, q: Any, dim: Any = None, keepdim: bool = False, *, interpolation: str = "linear") -> Any:
    """np.median is PyTorch's quantile 1/2."""
    return (
        reduction(x, dim, keepdim)
        if isinstance(q, float) and q == 0.5 and interpolation in ("linear", "midpoint")
        else None
    )


def as_quantile(x: Any, q: Any, dim: Any = None, keepdim: bool = False, *, interpolation: str = "linear") -> Any:
    return (x, q), {"axis": axis_of(dim), "keepdims": keepdim, "method": interpolation}


def of_some(x: Any, dim: Any = None, keepdim: bool = False, *, dtype: Any = None, mask: Any = None) -> Any:
    """A reduction of the elements where a mask holds."""
    given, options = reduction(x, dim, keepdim, dtype=dtype)
    return given, options | ({"where": mask} if mask is not None else {})


def masked_mean(x: Any, dim: Any = None, keepdim: bool = False, *, dtype: Any = None, mask: Any = None) -> Any:
    """Of no elements the derivative of the mean is NaN in PyTorch, 0 here."""
    return of_some(x, dim, keepdim, dtype=dtype, mask=mask) if fewest(x, dim, mask) > 0 else None


def fewest(x: Any, dim: Any, mask: Any) -> int:
    """The smallest number of elements that take part in a result."""
    import torch

    there = torch.ones_like(x, dtype=torch.bool) if mask is None else mask.broadcast_to(x.shape)
    counts = there.sum() if axis_of(dim) is None else there.sum(axis_of(dim))
    return int(counts.min()) if counts.numel() else 1


def masked_largest(x: Any, dim: Any = None, keepdim: bool = False, *, dtype: Any = None, mask: Any = None) -> Any:
    given, options = of_some(x, dim, keepdim, mask=mask)
    return given, options | {"initial": -math.inf}


def masked_smallest(x: Any, dim: Any = None, keepdim: bool = False, *, dtype: Any = None, mask: Any = None) -> Any:
    given, options = of_some(x, dim, keepdim, mask=mask)
    return given, options | {"initial": math.inf}


def masked_variance(
    x: Any,
    dim: Any = None,
    unbiased: Any = True,
    keepdim: bool = False,
    *,
    dtype: Any = None,
    mask: Any = None,
    correction: Any = None,
) -> Any:
    ddof = int(unbiased) if correction is None else correction
    given, options = of_some(x, dim, keepdim, mask=mask)
    return given, options | {"ddof": ddof}


def nanmedian(x: Any, dim: Any = None, keepdim: bool = False) -> Any:
    return median(x, dim, keepdim) if not x.isnan().any() else None


def as_percentile(x: Any, q: Any, dim: Any = None, keepdim: bool = False, *, interpolation: str = "linear") -> Any:
    (x, q), options = as_quantile(x, q, dim, keepdim, interpolation=interpolation)
    return None if hasattr(q, "requires_grad") and q.requires_grad else ((x, q * 100), options)


def slopes(x: Any, *, spacing: Any = 1, dim: Any = None, edge_order: int = 1) -> Any:
    """PyTorch takes one spacing for each axis."""
    spacings = spacing if isinstance(spacing, list | tuple) else [spacing]
    return (x, *spacings), {"axis": tuple(dim) if isinstance(dim, list | tuple) else dim, "edge_order": edge_order}


def chosen(x: Any, mask: Any) -> Any:
    return ((mask, x), {}) if mask.shape == x.shape else None


def rows(x: Any, dim: int, index: Any) -> Any:
    """index_select with rising numbers is compress with a mask."""
    numbers = index.ravel().tolist()
    if not x.ndim or sorted(set(numbers)) != numbers:
        return None
    return (np.isin(np.arange(x.shape[dim]), numbers), x), {"axis": dim}


def flat_differences(x: Any, n: int = 1, dim: int = -1, prepend: Any = None, append: Any = None) -> Any:
    return ((x,), {}) if x.ndim == 1 and n == 1 and prepend is None and append is None else None


def pair(arrays: Any, dim: int = 0) -> Any:
    return ((*arrays,), {"axis": dim}) if len(arrays) == 2 else None


def stacked_product(a: Any, b: Any) -> Any:
    return ((a, b), {}) if a.ndim > 1 and b.ndim == 1 else None


def norm(x: Any, ord: Any = None, dim: Any = None, keepdim: bool = False, *, dtype: Any = None) -> Any:
    """The norms of np.linalg.norm that need no singular values: those have no rule, which is asked for elsewhere."""
    axis = axis_of(dim)
    matrix = (isinstance(axis, tuple) and len(axis) == 2) or (axis is None and x.ndim == 2)
    if matrix and ord in (2, -2, "nuc"):
        return None
    return ((x, ord) if ord is not None else (x,)), {"axis": axis, "keepdims": keepdim}


def torch_norm(x: Any, p: Any = "fro", dim: Any = None, keepdim: bool = False) -> Any:
    """torch.norm flattens where np.linalg.norm takes the norm of a matrix."""
    if dim is None and p == "fro":
        return (x,), {"keepdims": keepdim}
    if isinstance(dim, list | tuple) and len(dim) > 1:
        return norm(x, p, dim, keepdim) if p == "fro" else None
    return norm(x, p, dim, keepdim) if dim is not None or x.ndim == 1 else None


def vector_norm(x: Any, ord: Any = 2, dim: Any = None, keepdim: bool = False, *, dtype: Any = None) -> Any:
    return (x,), {"ord": ord, "axis": axis_of(dim), "keepdims": keepdim}


def as_norm(x: Any, ord: Any = 2, dim: Any = None, keepdim: bool = False, *, dtype: Any = None) -> Any:
    """np.linalg.norm is a norm of vectors along one axis."""
    one = isinstance(dim, int) or x.ndim == 1
    return norm(x, ord, dim if isinstance(dim, int) else None, keepdim) if one and x.ndim else None


def matrix_norm(x: Any, ord: Any = "fro", dim: Any = (-2, -1), keepdim: bool = False, *, dtype: Any = None) -> Any:
    if tuple(dim) != (-2, -1) or ord in (2, -2, "nuc"):
        return None
    return (x,), {"ord": ord, "keepdims": keepdim}


def as_matrix_norm(x: Any, ord: Any = "fro", dim: Any = (-2, -1), keepdim: bool = False, *, dtype: Any = None) -> Any:
    return norm(x, ord, dim, keepdim)


def clamp(x: Any, min: Any = None, max: Any = None) -> Any:
    return (x, min, max), {}


def flattened(x: Any, start_dim: int = 0, end_dim: int = -1) -> Any:
    return ((x,), {}) if start_dim == 0 and end_dim == -1 else None


def new_shape(x: Any, *shape: Any) -> Any:
    shape = shape[0] if len(shape) == 1 and not isinstance(shape[0], int) else shape
    return (x, tuple(getattr(shape, "shape", shape))), {}


def unflattened(x: Any, dim: int, sizes: Any) -> Any:
    dim %= x.ndim
    return (x, (*x.shape[:dim], *sizes, *x.shape[dim + 1 :])), {}


def expanded(x: Any, shape: Any) -> Any:
    """-1 keeps a length, which NumPy lacks."""
    shape = tuple(getattr(shape, "shape", shape))
    return None if -1 in shape else ((x, shape), {})


def one_axis(x: Any, dim: Any = None) -> Any:
    """PyTorch leaves alone an axis whose length is not 1, where NumPy refuses it."""
    return (x,), {"axis": dim}


def repeated(x: Any, *reps: Any) -> Any:
    return (x, reps[0] if len(reps) == 1 and not isinstance(reps[0], int) else reps), {}


def interleaved(x: Any, repeats: Any, dim: Any = None, *, output_size: Any = None) -> Any:
    return (x, repeats), {"axis": dim}


def padded(x: Any, pad: Any, mode: Any = "constant", value: Any = 0) -> Any:
    """PyTorch counts from the last axis; negative widths cut, which NumPy lacks."""
    if min(pad) < 0:
        return None
    if not isinstance(mode, str):
        mode, value = "constant", mode
    pairs = list(zip(pad[::2], pad[1::2], strict=True))[::-1]
    widths = [(0, 0)] * (x.ndim - len(pairs)) + pairs
    named = {"constant": "constant", "reflect": "reflect", "replicate": "edge", "circular": "wrap"}[mode]
    return (x, widths), {"mode": named} | ({"constant_values": value or 0} if named == "constant" else {})


def cut_by_length(x: Any, size: Any, dim: int = 0) -> Any:
    """PyTorch's split takes lengths, NumPy's takes places."""
    places = np.arange(size, x.shape[dim], size) if isinstance(size, int) else np.cumsum(size)[:-1]
    return (x, places.tolist()), {"axis": dim}


def cut(x: Any, parts: Any, dim: int = 0) -> Any:
    parts = parts if isinstance(parts, int) else parts.tolist() if hasattr(parts, "tolist") else list(parts)
    return (x, parts), {"axis": dim}


def in_chunks(x: Any, chunks: int, dim: int = 0) -> Any:
    return cut_by_length(x, math.ceil(x.shape[dim] / chunks), dim)


def differences(x: Any, n: int = 1, dim: int = -1, prepend: Any = None, append: Any = None) -> Any:
    ends = {"prepend": prepend, "append": append}
    return (x, n, dim), {name: end for name, end in ends.items() if end is not None}


def diagonal(x: Any, offset: int = 0, dim1: int = 0, dim2: int = 1) -> Any:
    return (x, offset, dim1, dim2), {}


def linalg_diagonal(x: Any, offset: int = 0, dim1: int = -2, dim2: int = -1) -> Any:
    return (x, offset, dim1, dim2), {}


def last_diagonal(x: Any, offset: int = 0, dim1: int = -2, dim2: int = -1) -> Any:
    return ((x,), {"offset": offset}) if (dim1 % x.ndim, dim2 % x.ndim) == (x.ndim - 2, x.ndim - 1) else None


def selected(x: Any, dim: int, index: int) -> Any:
    return (x, (slice(None),) * (dim % x.ndim) + (index,)), {}


def narrowed(x: Any, dim: int, start: Any, length: int) -> Any:
    start = int(start)
    return (x, (slice(None),) * (dim % x.ndim) + (slice(start, start + length),)), {}


def sliced(x: Any, dim: int = 0, start: Any = None, end: Any = None, step: int = 1) -> Any:
    return (x, (slice(None),) * (dim % x.ndim) + (slice(start, end, step),)), {}


def masked(x: Any, mask: Any) -> Any:
    """PyTorch broadcasts x and mask to each other, which NumPy does not."""
    return ((x, mask), {}) if mask.shape == x.shape else None


def gathered(x: Any, dim: int, index: Any) -> Any:
    """PyTorch lets the index be shorter than x in the other axes; NumPy would broadcast it."""
    others = [i for i in range(x.ndim) if i != dim % x.ndim]
    if index.ndim != x.ndim or any(index.shape[i] != x.shape[i] for i in others):
        return None
    return (x, index.long(), dim), {}


def along(x: Any, index: Any, dim: Any = None) -> Any:
    return (x, index), {"axis": dim}


def select_index(x: Any, dim: int, index: Any) -> Any:
    """Of a scalar NumPy makes a vector."""
    if x.ndim == 0:
        return None
    return (x, index), {"axis": dim}


def ascending(x: Any, dim: int = -1, descending: bool = False, stable: bool = False) -> Any:
    return None if descending else ((x,), {"axis": dim})


def first_axis(x: Any) -> Any:
    return (x,), {"axis": 0}


def contraction(a: Any, b: Any, dims: Any) -> Any:
    return (a, b), {"axes": dims}


def along_dim(a: Any, b: Any, *, dim: int = -1) -> Any:
    return (a, b), {"axis": dim}


def cross(a: Any, b: Any, dim: Any = None) -> Any:
    """torch.cross takes the first axis of length 3 where none is named."""
    axis = dim if dim is not None else next(i for i, n in enumerate(a.shape) if n == 3)
    return (a, b), {"axis": axis}


def cross_last(a: Any, b: Any, *, dim: int = -1) -> Any:
    return (a, b), {"axis": dim}


def triangle(a: Any, *, upper: bool = False) -> Any:
    return (a,), {"upper": upper}


def solve(a: Any, b: Any, *, left: bool = True) -> Any:
    """NumPy takes b as vectors only if it has one axis, and has no left=False."""
    vectors = b.ndim == 1 or (b.ndim == a.ndim - 1 and b.shape == a.shape[:-1])
    return ((a, b), {}) if left and (b.ndim == 1 or not vectors) else None


def einsum(operands: Any, subscripts: str) -> Any:
    return (subscripts, *operands), {}


def meshed(*arrays: Any, indexing: str = "ij") -> Any:
    return each(*arrays)[0], {"indexing": indexing}


def integrated(y: Any, x: Any = None, *, dx: float = 1.0, dim: int = -1) -> Any:
    return ((y,) if x is None else (y, x)), {"dx": dx, "axis": dim}


def covariance(x: Any, *, correction: int = 1, fweights: Any = None, aweights: Any = None) -> Any:
    """The samples' aweights are float32, so that PyTorch itself does not compute in float64 there."""
    return ((x,), {"ddof": correction, "fweights": fweights}) if aweights is None else None


def rounded(x: Any, *, decimals: int = 0) -> Any:
    return (x, decimals), {}


def whole_division(a: Any, b: Any, *, rounding_mode: str) -> Any:
    return (a, b), {}


def tensor_inverse(a: Any, ind: int = 2) -> Any:
    return (a, ind), {}


def tensor_solution(a: Any, b: Any, dims: Any = None) -> Any:
    return (a, b), {"axes": dims}


def vandermonde(x: Any, *, N: Any = None) -> Any:
    return (x, N, True), {}


def diagonal_from(x: Any, offset: int = 0) -> Any:
    return (x, offset), {}


def unbound(x: Any, dim: int = 0) -> Any:
    return (x,), {"axis": dim}


def log_det(x: Any) -> Any:
    """torch.logdet is the second result of slogdet where the determinant is positive."""
    return (x,), {}


_UNARY = {
    "absolute": "abs", "negative": "neg", "arcsin": "asin", "arccos": "acos", "arctan": "atan", "arcsinh": "asinh",
    "arccosh": "acosh", "conjugate": "conj", "arctanh": "atanh", "radians": "deg2rad", "degrees": "rad2deg", "fabs": "abs", "rint": "round", "fix": "trunc",
} | {
    name: name
    for name in (
        "positive", "square", "sqrt", "reciprocal", "exp", "exp2", "expm1", "log", "log2", "log10", "log1p", "sin", "cos", "tan",
        "sinh", "cosh", "tanh", "deg2rad", "rad2deg", "sinc", "nan_to_num", "sign", "floor", "ceil", "trunc",
    )
}  # fmt: skip
_BINARY: dict[str, dict[str, Adapter]] = {
    "add": {"add": same, "__radd__": reverse},
    "subtract": {"sub": same, "rsub": reverse, "__rsub__": reverse},
    "multiply": {"mul": same, "__rmul__": reverse},
    "divide": {"div/no_rounding_mode": same, "true_divide": same, "__rdiv__": reverse},
    "floor_divide": {"div/floor_rounding": whole_division},
    "power": {"pow": same, "__rpow__": reverse},
    "float_power": {"float_power": same},
    "maximum": {"maximum": same, "max/binary": same},
    "minimum": {"minimum": same, "min/binary": same},
    "fmax": {"fmax": same},
    "fmin": {"fmin": same},
    "arctan2": {"atan2": same},
    "hypot": {"hypot": same},
    "logaddexp": {"logaddexp": same},
    "logaddexp2": {"logaddexp2": same},
    "remainder": {"remainder": same, "__rmod__": reverse},
    "fmod": {"fmod": same},
    "copysign": {"copysign": same},
}
ELEMENTWISE: dict[str, dict[str, Adapter]] = {name: {op: same} for name, op in _UNARY.items()} | _BINARY

#: NumPy's name, or ours in brackets → {PyTorch's operator: adapter}.
TABLE: dict[str, dict[str, Adapter]] = ELEMENTWISE | {
    "round": {"round": same, "round/decimals_0": rounded, "round/decimals_3": rounded, "round/decimals_neg_3": rounded},
    "[index]": {
        "__getitem__": same, "select": selected, "slice": sliced, "narrow": narrowed, "masked_select": masked,
    },
    "take": {"take": same, "index_select": select_index},
    "take_along_axis": {"gather": gathered, "take_along_dim": along},
    "sort": {"sort": ascending, "msort": first_axis},
    "repeat": {"repeat_interleave": interleaved},
    "diagonal": {"diagonal": diagonal, "linalg.diagonal": linalg_diagonal, "diagonal_copy": diagonal},
    "linalg.diagonal": {"linalg.diagonal": last_diagonal},
    "diag": {"diag": same},
    "diagflat": {"diagflat": diagonal_from},
    "trace": {"trace": same},
    "median": {"median": median, "quantile": as_median},
    "quantile": {"quantile": as_quantile},
    "percentile": {"quantile": as_percentile},
    "nanmedian": {"nanmedian": nanmedian},
    "nanquantile": {"nanquantile": as_quantile},
    "nanpercentile": {"nanquantile": as_percentile},
    "sum": {"sum": reduction, "masked.sum": of_some},
    "max": {"max/reduction_with_dim": largest, "max/reduction_no_dim": largest, "amax": reduction, "masked.amax": masked_largest},
    "min": {"min/reduction_with_dim": smallest, "min/reduction_no_dim": smallest, "amin": reduction, "masked.amin": masked_smallest},
    "amax": {"amax": reduction},
    "amin": {"amin": reduction},
    "prod": {"prod": reduction, "masked.prod": of_some},
    "mean": {"mean": reduction, "masked.mean": masked_mean},
    "var": {"var": variance, "var/unbiased": variance, "masked.var": masked_variance},
    "std": {"std": variance, "std/unbiased": variance, "masked.std": masked_variance},
    "nansum": {"nansum": reduction},
    "nanmean": {"nanmean": reduction},
    "cumsum": {"cumsum": running},
    "cumprod": {"cumprod": running},
    "nancumsum": {"cumsum": running},
    "nancumprod": {"cumprod": running},
    "cumulative_sum": {"cumsum": running},
    "cumulative_prod": {"cumprod": running},
    "gradient": {"gradient": slopes},
    "ediff1d": {"diff": flat_differences},
    "append": {"cat": pair},
    "extract": {"masked_select": chosen},
    "compress": {"index_select": rows},
    "select": {"where": lambda x, condition, other: (([condition], [x], other), {})},
    "matvec": {"mv": same, "matmul": stacked_product},
    "linalg.matmul": {"matmul": same, "mm": same, "bmm": same},
    "linalg.trace": {"trace": same},
    "linalg.tensordot": {"tensordot": contraction},
    "trapezoid": {"trapezoid": integrated, "trapz": integrated},
    "cov": {"cov": covariance},
    "corrcoef": {"corrcoef": same},
    "vander": {"linalg.vander": vandermonde},
    "reshape": {
        "reshape": new_shape, "view": new_shape, "reshape_as": new_shape, "view_as": new_shape, "unflatten": unflattened,
    },
    "ravel": {"ravel": same, "flatten": flattened},
    "squeeze": {"squeeze": one_axis, "squeeze/multiple": one_axis},
    "expand_dims": {"unsqueeze": same},
    "atleast_1d": {"atleast_1d": each},
    "atleast_2d": {"atleast_2d": each},
    "atleast_3d": {"atleast_3d": each},
    "copy": {"clone": same, "contiguous": same},
    "transpose": {"permute": same, "T": same, "t": same},
    "swapaxes": {"transpose": same},
    "matrix_transpose": {"mT": same},
    "linalg.matrix_transpose": {"mT": same},
    "moveaxis": {"movedim": same},
    "flip": {"flip": lambda x, dims: ((x,), {"axis": dims})},
    "fliplr": {"fliplr": same},
    "flipud": {"flipud": same},
    "roll": {"roll": same},
    "rot90": {"rot90": same},
    "broadcast_to": {"broadcast_to": expanded, "expand": expanded, "expand_as": expanded},
    "broadcast_arrays": {"broadcast_tensors": each},
    "meshgrid": {"meshgrid/variadic_tensors": meshed, "meshgrid/list_of_tensors": meshed},
    "tile": {"tile": repeated, "repeat": repeated},
    "tril": {"tril": same},
    "triu": {"triu": same},
    "concatenate": {"cat": lambda arrays, dim=0: ((list(arrays),), {"axis": dim})},
    "stack": {"stack": lambda arrays, dim=0: ((list(arrays),), {"axis": dim})},
    "vstack": {"vstack": of_list},
    "hstack": {"hstack": of_list},
    "dstack": {"dstack": of_list},
    "column_stack": {"column_stack": of_list},
    "split": {"split": cut_by_length, "split/list_args": cut_by_length, "split_with_sizes": cut_by_length, "chunk": in_chunks},
    "array_split": {"tensor_split": cut},
    "hsplit": {"hsplit": same},
    "vsplit": {"vsplit": same},
    "dsplit": {"dsplit": same},
    "unstack": {"unbind": unbound},
    "pad": {
        "constant_pad_nd": padded, "nn.functional.pad/constant": padded, "nn.functional.pad/reflect": padded,
        "nn.functional.pad/replicate": padded, "nn.functional.pad/replicate_negative": padded,
        "nn.functional.pad/circular": padded,
    },
    "where": {"where": lambda x, condition, other: ((condition, x, other), {})},
    "clip": {"clamp": clamp, "clamp_min": clamp, "clamp_max": lambda x, high: ((x, None, high), {})},
    "diff": {"diff": differences},
    "matmul": {"matmul": same, "__rmatmul__": reverse, "mm": same, "bmm": same, "mv": same},
    "einsum": {"einsum": einsum},
    "dot": {"dot": same, "mm": same, "mv": same},
    "tensordot": {"tensordot": contraction},
    "vdot": {"vdot": same},
    "inner": {"inner": same},
    "outer": {"outer": same},
    "linalg.outer": {"outer": same},
    "kron": {"kron": same},
    "cross": {"cross": cross, "linalg.cross": cross_last},
    "linalg.cross": {"linalg.cross": cross_last},
    "vecdot": {"linalg.vecdot": along_dim},
    "linalg.vecdot": {"linalg.vecdot": along_dim},
    "linalg.inv": {"linalg.inv": same},
    "linalg.det": {"linalg.det": same},
    "linalg.slogdet": {"linalg.slogdet": same},
    "[log_det]": {"logdet": log_det},
    "linalg.cholesky": {"cholesky": triangle, "linalg.cholesky": triangle},
    "linalg.solve": {"linalg.solve": solve},
    "linalg.tensorinv": {"linalg.tensorinv": tensor_inverse},
    "linalg.tensorsolve": {"linalg.tensorsolve": tensor_solution},
    "linalg.multi_dot": {"linalg.multi_dot": of_list},
    "linalg.matrix_power": {"linalg.matrix_power": same},
    "linalg.norm": {
        "linalg.norm": norm, "linalg.norm/subgradients_at_zero": norm, "norm": torch_norm, "norm/fro": torch_norm,
        "norm/inf": torch_norm, "linalg.vector_norm": as_norm, "linalg.matrix_norm": as_matrix_norm,
    },
    "linalg.vector_norm": {"linalg.vector_norm": vector_norm},
    "linalg.matrix_norm": {"linalg.matrix_norm": matrix_norm},
}  # fmt: skip

_OWN: dict[str, Callable[..., Any]] = {
    "[index]": lambda x, key: x[key],
    "[log_det]": lambda x: np.where(np.linalg.slogdet(x)[0] > 0, np.linalg.slogdet(x)[1], np.nan),
}


def function_of(name: str) -> Callable[..., Any]:
    if name in _OWN:
        return _OWN[name]
    found: Any = np
    for part in name.split("."):
        found = getattr(found, part)
    return found  # type: ignore[no-any-return]


# -- the comparison ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def operators() -> Any:
    """PyTorch's operator database by name; imported here, so that collecting the tests does not pay for it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch = pytest.importorskip("torch")
        pytest.importorskip("expecttest")
        from torch.testing._internal.common_methods_invocations import op_db

        torch.set_num_threads(1)
    return {op.name + (f"/{op.variant_test_name}" if op.variant_test_name else ""): op for op in op_db}


def samples(op: Any) -> Iterator[tuple[Any, tuple[Any, ...], dict[str, Any]]]:
    """PyTorch's samples, the same in each run."""
    import torch

    seed()
    for sample in op.sample_inputs("cpu", torch.float64, requires_grad=True):
        yield sample.input, sample.args, sample.kwargs


def plain(x: Any) -> Any:
    import torch

    if isinstance(x, torch.dtype):
        return {torch.float64: np.float64, torch.float32: np.float32, torch.int64: np.int64}[x]
    return x.detach().numpy() if x.ndim or x.dtype.is_floating_point else x.item()


def outputs(result: Any) -> list[Any]:
    """The results of floats: max by an axis also gives indices."""
    many = result if isinstance(result, list | tuple) else [result]
    return [y for y in many if y.dtype in (np.float64,) or str(y.dtype) == "torch.float64"]


class Comparison:
    """One sample, both sides of it as functions of the same variables.

    Attributes:
        ours: arrays → list of arrays.
        arrays: The variables' values.
        tensors: The variables themselves.
        supported: Whether NumPy has this call.
    """

    def __init__(self, function: Callable[..., Any], adapter: Adapter, op: Any, sample: Any) -> None:
        source, args, kwargs = sample
        self.op, self.sample = op, sample
        try:
            inspect.signature(adapter).bind(source, *args, **kwargs)
            call = adapter(source, *args, **kwargs)
        except TypeError:
            call = None
        self.supported = call is not None
        if call is None:
            return
        self.tensors = variables(call)
        self.arrays = [x.detach().numpy() for x in self.tensors]

        def ours(*values: Any) -> list[Any]:
            known = list(zip(self.tensors, values, strict=True))
            given, options = mapped(
                call, lambda x: next((v for t, v in known if t is x), None) if _in(x, known) else plain(x)
            )
            result = function(*given, **options)
            return [y for y in (result if isinstance(result, list | tuple) else [result]) if y.dtype == np.float64]

        self.ours = ours
        try:
            self.values = [np.asarray(y) for y in ours(*self.arrays)]
        except (ValueError, TypeError, IndexError, np.exceptions.AxisError, np.linalg.LinAlgError):
            self.supported = False  # NumPy refuses the call on plain arrays

    def theirs(self, *values: Any) -> list[Any]:
        """PyTorch's results, of other values of the variables if they are given."""
        known = list(zip(self.tensors, values or self.tensors, strict=True))
        source, args, kwargs = mapped(list(self.sample), lambda x: next((v for tensor, v in known if tensor is x), x))
        return outputs(self.op(source, *args, **kwargs))


def _in(x: Any, known: list[tuple[Any, Any]]) -> bool:
    return any(x is tensor for tensor, _ in known)


def compare(c: Comparison) -> None:
    rng = np.random.default_rng(0)
    cotangents = [rng.standard_normal(y.shape) for y in c.values]
    tangents = [rng.standard_normal(x.shape) for x in c.arrays]
    forward_mode = c.op.supports_forward_ad and c.op.name not in FORWARD_OF_SYMMETRIC
    ys, back = pulled(c.theirs, c.tensors, cotangents)
    forth = pushed(c.theirs, c.tensors, tangents, forward_mode)
    assert len(c.values) == len(ys), f"{len(c.values)} results instead of {len(ys)}"
    for mine, y in zip(c.values, ys, strict=True):
        agree(mine, y, "value")
    values, pullback = vjp(c.ours, *c.arrays)
    for mine, g in zip(pullback(cotangents), back, strict=True):
        agree(mine, g, "VJP")
    _, moved = jvp(c.ours, tuple(c.arrays), tuple(tangents))
    for mine, value, y, t in zip(moved, values, ys, forth, strict=True):
        agree(value, y, "value under vjp")
        agree(mine, t, "JVP")


@pytest.mark.parametrize("name", TABLE)
def test_value_vjp_and_jvp_are_pytorchs(name: str, operators: Any) -> None:
    counts = COUNTS[name] = Counter()
    failures: list[str] = []
    with quiet():
        for operator, adapter in TABLE[name].items():
            for sample in samples(operators[operator]):
                c = Comparison(function_of(name), adapter, operators[operator], sample)
                if not c.supported:
                    counts["unsupported"] += 1
                    continue
                try:
                    compare(c)
                    counts["passed"] += 1
                except Exception as error:
                    counts["failed"] += 1
                    failures.append(f"{operator} {shown(sample)}: {type(error).__name__}: {error}")
    assert not failures, f"{len(failures)} of {counts.total()} samples; the first: " + "\n".join(failures[:3])
    assert counts["passed"], f"no sample of {name} could be compared"


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_second_derivatives_are_pytorchs(name: str, operators: Any) -> None:
    """H t, as jvp(grad(Σf)) on our side and as double backward on PyTorch's."""
    import torch

    compared = 0
    with quiet():
        for operator, adapter in TABLE[name].items():
            op = operators[operator]
            for sample in samples(op) if op.supports_gradgrad else ():
                c = Comparison(function_of(name), adapter, op, sample)
                if not c.supported or not c.tensors:
                    continue
                rng = np.random.default_rng(0)
                tangents = [rng.standard_normal(x.shape) for x in c.arrays]
                gradient = grad(lambda *xs, f=c.ours: np.sum(f(*xs)[0]), argnums=tuple(range(len(c.arrays))))
                _, mine = jvp(lambda *xs, g=gradient: g(*xs), tuple(c.arrays), tuple(tangents))
                total = c.theirs()[0].sum()
                theirs: Any = [None] * len(mine)
                if total.requires_grad:
                    first = torch.autograd.grad(total, c.tensors, create_graph=True, allow_unused=True)
                    slope = sum(
                        (g * torch.tensor(t)).sum() for g, t in zip(first, tangents, strict=True) if g is not None
                    )
                    if getattr(slope, "requires_grad", False):
                        theirs = torch.autograd.grad(slope, c.tensors, allow_unused=True)
                for m, t, x in zip(mine, theirs, c.tensors, strict=True):
                    agree(m, torch.zeros_like(x) if t is None else t, f"{operator} {shown(sample)}")
                compared += 1
    assert compared


def test_enough_was_compared(operators: Any) -> None:
    """Prints the counts; stands last. It judges a whole run alone."""
    if set(COUNTS) != set(TABLE):
        pytest.skip("only a part of the functions was run")
    total = print_counts("function", COUNTS)
    assert total["failed"] == 0
    assert sum(counts["passed"] > 0 for counts in COUNTS.values()) >= 150
    assert total["passed"] >= 2500
