"""Shows what Jacobian–vector and vector–Jacobian products are and what they cost, computed and measured on this machine.

Sections:
  example      JVP, VJP, columns and rows of a small Jacobian
  sizes        bytes of full Jacobians and of products
  crossover    full Jacobians by JVPs and by VJPs, by shape
  elementwise  diagonal Jacobians
  network      a five-layer network, traced and by the layer engine
  cost         one product, in forward passes
  depth        memory of both modes by depth
  gradient     the gradient is a VJP
  custom       rules of one's own
  hessian      Hessian–vector products

Examples:
  python scripts/differentiate.py
  python scripts/differentiate.py --only example --trace
  python scripts/differentiate.py --html report.html
  python scripts/differentiate.py --quick --quiet --json

The JSON has the options, `sections` (by name, as `framework.differentiation.demonstration` documents them; times in
seconds, memory in bytes) and with --trace `trace` (the example's operations).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import _console
import numpy as np
from _console import console, waiting
from _differentiate_report import Chapter, Grid, chapters
from rich import box
from rich.table import Table
from rich.text import Text
from threadpoolctl import threadpool_limits

from checkpointing import value_and_grad
from framework import Chain, Key, Linear, MeanSquaredError, Parameters, ReLU, Spec
from framework.differentiation.demonstration import SECTIONS, FiveLayers, Settings, Weights, steps

Section = Literal[
    "example", "sizes", "crossover", "elementwise", "network", "cost", "depth", "gradient", "custom", "hessian"
]


@dataclass(frozen=True, kw_only=True)
class Differentiate(_console.Common):
    only: tuple[Section, ...] = ()
    """Sections to show; all where none is named."""
    trace: bool = False
    """List each operation of the example with its value, tangent and cotangent."""
    quick: bool = False
    """Smaller sizes, for a few seconds in all."""
    seed: int = 0
    """Of all random numbers."""
    repetitions: int = 3
    """Timed runs that a median is of."""
    threads: int = 1
    """Threads of matrix products."""
    html: Path | None = None
    """Also write the report with plots as one page that needs no network."""


def main(options: Differentiate) -> dict[str, Any]:
    _require(options)
    chosen = [name for name in SECTIONS if name in options.only or not options.only]
    settings = _settings(options)
    found: dict[str, Any] = {}
    with threadpool_limits(options.threads), waiting() as say:
        for number, name in enumerate(chosen):
            say(f"computing {name} ({number + 1}/{len(chosen)})")
            found[name] = SECTIONS[name](settings)
        trace = steps() if options.trace else ()
    told = chapters(found, trace)
    for number, chapter in enumerate(told):
        draw(number + 1, chapter)
    if options.html is not None:
        from _differentiate_html import page  # plotly takes a second to import

        _console.write(options.html, page(told, found))
    return {
        "seed": options.seed,
        "quick": options.quick,
        "repetitions": options.repetitions,
        "threads": options.threads,
        "sections": {name: _plain(section) for name, section in found.items()},
        **({"trace": _plain(trace)} if options.trace else {}),
    }


def _require(options: Differentiate) -> None:
    """Raises for options that could not give a report, before anything is measured."""
    if options.repetitions < 1 or options.threads < 1:
        raise ValueError(
            f"repetitions and threads must be positive, but got {options.repetitions} and {options.threads}"
        )
    if options.trace and options.only and "example" not in options.only:
        raise ValueError("--trace lists the operations of the example: add example to --only")
    _console.require_new({"--html": options.html, "--save-config": options.save_config}, options.force)


def _settings(options: Differentiate) -> Settings:
    common: dict[str, Any] = {"seed": options.seed, "repetitions": options.repetitions, "engine": engine}
    if not options.quick:
        return Settings(**common)
    return Settings(
        arguments=1000,
        entries=4000,
        elements=10_000,
        networks=((3, 8, 4), (3, 128, 128)),
        depths=(10, 30, 100),
        **common,
    )


def engine(parts: FiveLayers) -> tuple[float, Weights]:
    """Returns loss and gradients of the five-layer network by the layer engine, weights as (in, out) as there."""
    layers: list[Any] = []
    for W, _ in parts.weights:
        layers += [Linear(W.shape[1]), ReLU()]
    chain = Chain(*layers[:-1])
    parameters = Parameters.initialize(chain.layout(Spec.of(parts.x.shape, parts.x.dtype)), Key(0))
    for number, (W, b) in enumerate(parts.weights):
        parameters[f"{2 * number}.weight"][...] = W.T  # Linear holds (out, in)
        parameters[f"{2 * number}.bias"][...] = b
    loss, gradient = value_and_grad(chain, MeanSquaredError())(parameters, parts.x, parts.target)
    names = range(0, 2 * len(parts.weights), 2)
    return loss, [(np.array(gradient[f"{n}.weight"].T), np.array(gradient[f"{n}.bias"])) for n in names]


def draw(number: int, chapter: Chapter) -> None:
    """Prints a chapter."""
    console.print(Text(f"{number}. {chapter.title}", style="bold"))
    # Text is not markup: brackets in it stand for themselves.
    console.print(Text(chapter.about), soft_wrap=False)
    for grid in chapter.grids:
        console.print(table(grid))
    if chapter.found:
        console.print(Text(chapter.found), soft_wrap=False)
    console.print()


def table(grid: Grid) -> Table:
    """Draws a table for the terminal."""
    drawn = Table(box=box.SIMPLE_HEAD, collapse_padding=True)
    for place, name in enumerate(grid.header):
        drawn.add_column(Text(name), justify="left" if place < grid.left else "right", no_wrap=place >= grid.left)
    for row in grid.rows:
        drawn.add_row(*map(Text, row))
    return drawn


def _plain(section: Any) -> Any:
    return [asdict(item) for item in section] if isinstance(section, tuple) else asdict(section)


if __name__ == "__main__":
    _console.run(main, Differentiate(), __doc__ or "")
