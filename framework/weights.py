"""Parameters in and out of safetensors files."""

from __future__ import annotations

from pathlib import Path

from framework.durable import written_aside
from framework.memory import Ledger
from framework.parameters import Layout, Parameters
from framework.tensor_files import read_tensors, require_tensors, write_tensors

_WHAT = "weights file"


def save(path: Path, parameters: Parameters, metadata: dict[str, str] | None = None) -> None:
    """Writes parameters, and the state of their layers, under their names; the file appears whole or not at all.

    Raises:
        OSError: It could not be written; what was there before is still there.
    """
    with written_aside(path) as descriptor:
        write_tensors(descriptor, parameters.with_state(), metadata)


def load(path: Path, parameters: Parameters, ledger: Ledger | None = None) -> None:
    """Reads parameters and the state of their layers into their views, one tensor at a time, after checking all of them.

    Args:
        path: The file.
        parameters: Where they go.
        ledger: Counts the tensor that is being read.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is no safetensors file, or not this model's; the message names all that is missing, left over, of another shape, or
            of another dtype.
    """
    read_tensors(path, parameters.with_state(), _WHAT, ledger)


def require_match(path: Path, layout: Layout) -> None:
    """Checks that a file holds the parameters of a layout, without reading them.

    Raises:
        FileNotFoundError, ValueError: See `load`.
    """
    specs = {**layout.specs, **layout.state.specs}
    require_tensors(path, {name: (spec.shape, spec.dtype.name) for name, spec in specs.items()}, _WHAT)
