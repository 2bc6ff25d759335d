"""Parameters in and out of safetensors files.

Names are those of PyTorch's modules: the path of a layer, and weight, bias, running_mean or running_var. Where PyTorch's own are others
(`torch.nn.LSTM`, which has two biases, and `torch.nn.Embedding`) a file may have these or ours, and a parameter that layers share under any
of its names.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from framework.durable import written_aside
from framework.memory import Array, Ledger
from framework.parameters import Layout, Parameters
from framework.tensor_files import Synonyms, read_tensors, require_tensors, write_tensors

_WHAT = "weights file"


def save(
    path: Path, parameters: Parameters, metadata: dict[str, str] | None = None, *, for_pytorch: bool = False
) -> None:
    """Writes parameters, and the state of their layers, under their names; the file appears whole or not at all.

    Args:
        path: The file.
        parameters: What is written.
        metadata: Words about it.
        for_pytorch: Write all that ``load_state_dict`` of modules of PyTorch's own wants: its names where they are others, an LSTM's second
            bias, of zeros, and parameters that layers share under each of their names. `load` reads that, too.

    Raises:
        OSError: It could not be written; what was there before is still there.
    """
    tensors = parameters.with_state()
    if for_pytorch:
        tensors = _for_pytorch(tensors, parameters.layout)
    with written_aside(path) as descriptor:
        write_tensors(descriptor, tensors, metadata)


def _for_pytorch(tensors: dict[str, Array], layout: Layout) -> dict[str, Array]:
    found: dict[str, Array] = {}
    for name, view in tensors.items():
        first, *further = layout.pytorch.get(name, (name,))
        found[first] = view
        found |= {term: np.zeros_like(view) for term in further}
        found |= dict.fromkeys(layout.copies.get(name, ()), view)
    return found


def load(path: Path, parameters: Parameters, ledger: Ledger | None = None) -> None:
    """Reads parameters and the state of their layers into their views, one tensor at a time, after checking all of them.

    Args:
        path: The file.
        parameters: Where they go.
        ledger: Counts the tensor that is being read.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is no safetensors file, or not this model's; the message names all that is missing, left over, of another shape, or
            of another dtype, or differs though the model shares it.
    """
    read_tensors(path, parameters.with_state(), _WHAT, ledger, _synonyms(parameters.layout))


def require_match(path: Path, layout: Layout) -> None:
    """Checks that a file holds the parameters of a layout, without reading any but those that it has twice.

    Raises:
        FileNotFoundError, ValueError: See `load`.
    """
    specs = {**layout.specs, **layout.state.specs}
    shapes = {name: (spec.shape, spec.dtype.name) for name, spec in specs.items()}
    require_tensors(path, shapes, _WHAT, _synonyms(layout))


def _synonyms(layout: Layout) -> Synonyms:
    return Synonyms(layout.pytorch, layout.copies)
