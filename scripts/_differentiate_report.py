"""The chapters of `differentiate.py`: what was computed, in words and tables that a terminal and a page both draw."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from framework import format_size

Row = tuple[str, ...]


@dataclass(frozen=True)
class Grid:
    """A table of strings; columns after the first `left` ones are numbers."""

    header: Row
    rows: tuple[Row, ...]
    left: int = 1


@dataclass(frozen=True)
class Chapter:
    """A section for a reader: what it is about, its tables, and what they say."""

    name: str
    title: str
    about: str
    grids: tuple[Grid, ...]
    found: str = ""


def chapters(data: Mapping[str, Any], trace: Sequence[Any] = ()) -> list[Chapter]:
    """Returns the chapters of the sections that were computed.

    Args:
        data: What the functions of `demonstration.SECTIONS` returned, by name.
        trace: The example's operations, for learners.
    """
    made = [(_example(data["example"], trace) if name == "example" else _CHAPTERS[name](data[name])) for name in data]
    return made + ([_summary(data)] if {"crossover", "cost", "depth"} <= data.keys() else [])


def _example(e: Any, trace: Sequence[Any]) -> Chapter:
    x, v, w = numbers(e.point), numbers(e.direction), numbers(e.cotangent)
    products = [
        ("JVP with v: J v", e.jvp),
        ("VJP with w: Jᵀ w", e.vjp),
        *((f"{p.name} of J, a JVP", p) for p in e.columns),
        *((f"{p.name} of J, a VJP", p) for p in e.rows),
    ]
    grids = [
        Grid(
            ("product", "result", "by the exact Jacobian", "difference"),
            tuple((name, numbers(p.result), numbers(p.exact), small(p.difference)) for name, p in products),
        )
    ]
    if trace:
        rows = tuple(
            (s.output, s.name, ", ".join(s.inputs), *map(plain, (s.value, s.tangent, s.cotangent))) for s in trace
        )
        grids.append(Grid(("", "operation", "of", "value", "tangent", "cotangent"), rows, left=3))
    told = (
        " The last table lists the operations in their order. Values and tangents are computed from the top down, in forward "
        "mode together. Cotangents are computed from the bottom up, after all values: where a value is used twice, its "
        "cotangents add."
    )
    return Chapter(
        "example",
        "The products of a small Jacobian",
        f"f(x) = [x1² + x2, x1 x2, sin x1] at x = {x}. Row i of its Jacobian J is the gradient of result i; column j says how all "
        f"results move with argument j. A JVP is J v, a sum of columns: how f moves when x moves along v = {v}. A VJP is Jᵀ w, a "
        f"sum of rows: the gradient of the results weighted by w = {w}. Neither forms J.",
        tuple(grids),
        f"f(x) = {numbers(e.value)}. The largest difference from the exact Jacobian is {small(e.largest_difference)}. The JVP is the "
        f"derivative along v: differences of f give {numbers(e.difference_quotient)}." + (told if trace else ""),
    )


def _sizes(s: Any) -> Chapter:
    rows = tuple(
        (
            c.component,
            f"{c.arguments:,}",
            f"{c.results:,}",
            f"{c.entries:,}",
            size(c.jacobian_bytes),
            size(c.jvp_bytes),
            size(c.vjp_bytes),
        )
        for c in s.components
    )
    header = ("component", "parameters n", "results m", "entries m n", "full Jacobian", "J v", "Jᵀ w")
    counted = "; ".join(f"{c.component}: {c.results_are}" for c in s.components)
    return Chapter(
        "sizes",
        "A full Jacobian is too large; a product is not",
        f"Bytes in float32. J v has m numbers and Jᵀ w has n, whatever the size of the matrix. The results that m counts are, for "
        f"{counted}.",
        (Grid(header, rows),),
        f"Run for the {s.measured}: a JVP held at most {size(s.jvp_peak_bytes)} and a VJP {size(s.vjp_peak_bytes)}, results included.",
    )


def _crossover(c: Any) -> Chapter:
    many = c.many_to_few
    page = Grid(
        ("full Jacobian of W x", "products", "time"),
        (
            (f"{many.arguments:,} → {many.results:,} by JVPs", f"{many.arguments:,}", duration(many.forward_seconds)),
            (f"{many.arguments:,} → {many.results:,} by VJPs", f"{many.results:,}", duration(many.reverse_seconds)),
            (f"{many.arguments:,} → 1 by the one VJP", "1", duration(c.scalar_seconds)),
        ),
    )
    rows = tuple(
        (
            f"{s.arguments:,} → {s.results:,}",
            duration(s.forward_seconds),
            duration(s.reverse_seconds),
            f"{s.ratio:.3g}",
            s.faster,
            s.chosen,
        )
        for s in c.shapes
    )
    header = ("n → m", "n JVPs", "m VJPs", "JVPs / VJPs", "faster", "the rule chooses")
    if c.crossover is None:
        where = "One mode was faster for all these shapes, so there is no crossover among them."
    else:
        m, n = c.crossover_shape
        where = (
            f"Both take equally long at n / m = {c.crossover:.2f}, about {n:,} → {m:,}. By the number of products it would be 1; the "
            "rest is what a JVP and a VJP of this function cost here."
        )
    agree = sum(s.faster == s.chosen for s in c.shapes)
    return Chapter(
        "crossover",
        "The decision rule: fewer products",
        "A full Jacobian takes n JVPs, a column each, or m VJPs, a row each. So JVPs are for few arguments and many results, "
        "and VJPs for many arguments and few results, of which a loss with its one result is the extreme.",
        (page, Grid(header, rows)),
        f"For {many.arguments:,} → {many.results:,}, JVPs take {many.ratio:,.0f} times as long as VJPs. The rule (n ≤ m: forward) chose the faster "
        f"mode for {agree} of {len(c.shapes)} shapes. {where}",
    )


def _elementwise(functions: Any) -> Chapter:
    n = functions[0].elements
    rows = tuple(
        (
            f.name,
            f.factor,
            small(f.jvp_difference),
            small(f.vjp_difference),
            size(f.peak_bytes),
            f"{f.peak_arrays:.1f} n",
            size(f.matrix_bytes),
        )
        for f in functions
    )
    header = ("function", "factor", "JVP differs by", "VJP differs by", "peak", "in numbers", "the n × n matrix")
    return Chapter(
        "elementwise",
        "Elementwise functions: the Jacobian is diagonal",
        f"Their products are factor · tangent and factor · cotangent, element by element. Here n = {n:,}.",
        (Grid(header, rows, left=2),),
        "Differences are from the formula. The peak is that of the function and its VJP, results included: a few arrays of n "
        "numbers.",
    )


def _network(w: Any) -> Chapter:
    engine = w.engine_loss is not None
    rows = tuple(
        (
            g.layer,
            g.parameter,
            "×".join(map(str, g.shape)),
            f"{g.norm:.6g}",
            *((f"{g.engine_norm:.6g}", small(g.difference)) if engine else ()),
        )
        for g in w.gradients
    )
    header: Row = ("layer", "", "shape", "norm of gradient", *(("by the engine", "difference") if engine else ()))
    links = tuple((link.layer, f"{link.tangent_norm:.4g}", f"{link.cotangent_norm:.4g}") for link in w.links)
    compared = (
        f" The layer engine gives {w.engine_loss:.6f}; the largest difference is {small(w.largest_difference)}."
        if engine
        else ""
    )
    return Chapter(
        "network",
        "Products compose: backpropagation",
        "By the chain rule, the JVP of a sequence of layers is each layer's JVP in turn, first to last, during the forward pass. Its "
        "VJP is each layer's VJP in turn, last to first, after it: that is backpropagation. Here "
        f"{' → '.join(map(str, w.widths))} with ReLU between, mean squared error, a batch of {w.batch}.",
        (
            Grid(header, rows, left=2),
            Grid(("one layer at a time", "tangent of its output ↓", "cotangent of its input ↑"), links),
        ),
        f"The loss is {w.loss:.6f}, traced from plain NumPy.{compared} Layer by layer, the JVP differs from that of the whole by "
        f"{small(w.composed_jvp_difference)} and the VJP by {small(w.composed_vjp_difference)}, relatively.",
    )


def _cost(costs: Any) -> Chapter:
    rows = tuple(
        (
            f"{c.layers} × {c.width}, batch {c.batch}",
            c.by,
            duration(c.forward_seconds),
            f"{c.jvp_ratio:.2f}",
            f"{c.vjp_ratio:.2f}",
            f"{c.matrix_products:.2f}",
            f"{c.pullback_ratio:.2f}",
            f"{c.matrix_products - 1:.2f}",
        )
        for c in costs
    )
    header = ("layers", "by", "f alone", "f and JVP", "f and VJP", "by products", "VJP alone", "by products")
    return Chapter(
        "cost",
        "One product costs a few forward passes",
        "Medians, in units of f alone: layers tanh(x W + b), differentiated by the input or by all parameters. Beside them, what "
        "counting matrix products alone would give.",
        (Grid(header, rows, left=2),),
        "Tracing costs some microseconds for each operation, whatever its size, so small networks pay the most for it.",
    )


def _depth(d: Any) -> Chapter:
    rows = tuple(
        (
            f"{at.depth:,}",
            size(at.function_peak_bytes),
            size(at.forward_peak_bytes),
            size(at.reverse_peak_bytes),
            f"{at.reverse_peak_bytes / at.forward_peak_bytes:.1f}",
        )
        for at in d.depths
    )
    return Chapter(
        "depth",
        "Memory: forward mode keeps nothing, reverse mode keeps the way",
        "Peak bytes of layers tanh(W x). Forward mode carries tangents along and forgets the layers behind it. Reverse mode comes "
        "back through them, so it keeps what their rules will read.",
        (Grid(("layers", "f alone", "f and JVP", "f and VJP", "VJP / JVP"), rows),),
        f"A layer's output takes {size(d.activation_bytes)}. Each further layer adds {_growth(d.forward_bytes_per_layer, d)} to forward "
        f"mode's peak and {_growth(d.reverse_bytes_per_layer, d)} to reverse mode's. Recomputation policies bound the latter.",
    )


def _growth(nbytes: float, d: Any) -> str:
    """Writes by how much a peak grows with a layer; what Python's own objects take, either way, is no growth."""
    return "nothing" if abs(nbytes) < d.activation_bytes / 100 else f"{nbytes:,.0f} bytes"


def _gradient(g: Any) -> Chapter:
    rows = (
        ("by one VJP with cotangent 1", "1", duration(g.vjp_seconds)),
        ("by JVPs, one a parameter", f"{g.arguments:,}", duration(g.jvp_seconds)),
    )
    bits = "the same bits" if g.equal_bits else f"other bits in {g.different_elements:,} elements"
    return Chapter(
        "gradient",
        "The gradient is a VJP",
        f"∇L = VJP(L, x, 1). Here L is the loss of the five-layer network with its {g.arguments:,} parameters.",
        (Grid(("gradient", "products", "time"), rows),),
        f"grad(L) and vjp(L)(1) have {bits}. JVPs take {g.ratio:,.0f} times as long and differ by {small(g.jvp_difference)}.",
    )


def _custom(products: Any) -> Chapter:
    rows = tuple((p.name, numbers(p.result), numbers(p.exact), small(p.difference)) for p in products)
    names = (
        ("jvp(f, primals, tangents)", "jax.jvp", "torch.func.jvp"),
        ("vjp(f, *primals)", "jax.vjp", "torch.func.vjp, y.backward(v)"),
        ("grad(f)", "jax.grad", "torch.func.grad, loss.backward()"),
        ("hvp(f, primals, tangents)", "jax.jvp of jax.grad", "torch.func.jvp of torch.func.grad"),
        ("custom_rule", "jax.custom_vjp, jax.custom_jvp", "torch.autograd.Function"),
    )
    return Chapter(
        "custom",
        "Rules of one's own, and other frameworks",
        "A function may bring its own VJP: my_square says cotangent ↦ 2 x cotangent. Its JVP is then the transpose of that. The "
        "cotangent need not be 1.",
        (Grid(("", "result", "by formula", "difference"), rows), Grid(("here", "JAX", "PyTorch"), names, left=3)),
    )


def _hessian(h: Any) -> Chapter:
    rows = tuple(
        (p.mode, small(p.difference), duration(p.seconds), f"{p.ratio:.2f}", size(p.peak_bytes)) for p in h.products
    )
    return Chapter(
        "hessian",
        "Products of products: the Hessian times a vector",
        f"A JVP of a gradient is a Hessian–vector product, and no Hessian is formed. Here the loss of a two-layer network with n = "
        f"{h.arguments} parameters.",
        (Grid(("mode", "differs from H v by", "time", "in gradients", "peak"), rows),),
        f"The Hessian takes {size(h.hessian_bytes)} and {duration(h.hessian_seconds)}, a product is {size(h.product_bytes)}; the largest "
        f"element of H v is {h.largest_entry:.3g}. Differences of gradients differ from H v by {small(h.quotient_difference)}, and H "
        f"from its transpose by {small(h.asymmetry)}.",
    )


def _summary(data: Mapping[str, Any]) -> Chapter:
    many, depth = data["crossover"].many_to_few, data["depth"]
    largest = [c for c in data["cost"] if c.width == data["cost"][-1].width]
    jvps, vjps = (" to ".join(f"{r:.1f}" for r in sorted(ratios)) for ratios in _ratios(largest))
    rows = (
        ("computes", "J v", "Jᵀ w"),
        ("numbers in the result", "m", "n"),
        ("one pass gives", "all results, one direction of arguments", "all arguments, one weighting of results"),
        ("full Jacobian", "n passes", "m passes"),
        (
            f"{many.arguments:,} → {many.results:,}",
            f"{duration(many.forward_seconds)}",
            f"{duration(many.reverse_seconds)}",
        ),
        ("time of f and one product", f"{jvps} times f", f"{vjps} times f"),
        (
            "each further layer adds",
            _growth(depth.forward_bytes_per_layer, depth),
            _growth(depth.reverse_bytes_per_layer, depth),
        ),
        ("best for", "few arguments, many results", "many arguments, few results"),
        ("used for", "directional derivatives, sensitivity, Hessian products", "gradients: backpropagation"),
    )
    return Chapter(
        "summary",
        "JVP and VJP side by side",
        f"Times and bytes are those measured above, of products with {largest[0].layers} layers {largest[0].width} wide.",
        (Grid(("", "JVP (forward mode)", "VJP (reverse mode)"), rows, left=3),),
    )


def _ratios(costs: Iterable[Any]) -> tuple[list[float], list[float]]:
    return [c.jvp_ratio for c in costs], [c.vjp_ratio for c in costs]


_CHAPTERS = {
    "sizes": _sizes,
    "crossover": _crossover,
    "elementwise": _elementwise,
    "network": _network,
    "cost": _cost,
    "depth": _depth,
    "gradient": _gradient,
    "custom": _custom,
    "hessian": _hessian,
}


def numbers(values: Iterable[float]) -> str:
    """Writes a vector."""
    return f"({', '.join(f'{value:.6g}' for value in values)})"


def plain(values: Sequence[float]) -> str:
    """Writes a vector, and one number without brackets."""
    return f"{values[0]:.6g}" if len(values) == 1 else numbers(values)


def small(difference: float | None) -> str:
    """Writes a difference."""
    return "-" if difference is None else "0" if difference == 0 else f"{difference:.1e}"


def duration(seconds: float) -> str:
    """Writes a time."""
    for unit, factor in (("s", 1), ("ms", 1e3)):
        if seconds * factor >= 1:
            return f"{seconds * factor:.3g} {unit}"
    return f"{seconds * 1e6:.3g} µs"


def size(nbytes: float) -> str:
    """Writes bytes, also those of matrices that no machine holds."""
    return f"{nbytes / 2**50:.1f} PiB" if nbytes >= 2**50 else format_size(nbytes)
