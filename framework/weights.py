"""Parameters in and out of safetensors files."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from framework.memory import Ledger
from framework.parameters import Layout, Parameters

_DTYPES = {"F32": "float32", "F64": "float64", "F16": "float16", "BF16": "bfloat16"}


def save(path: Path, parameters: Parameters, metadata: dict[str, str] | None = None) -> None:
    """Writes parameters, and the state of their layers, under their names; the file appears whole or not at all."""
    tensors = parameters.with_state()
    for name, view in tensors.items():
        # safetensors writes a non-contiguous array in the wrong order without a word.
        assert view.flags.c_contiguous, name
    aside = path.with_name(path.name + ".part")
    try:
        save_file(tensors, aside, metadata or {})
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


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
    book = ledger or Ledger()
    with _open(path) as file:
        _require_match(path, file, parameters.layout)
        for name, view in parameters.with_state().items():
            passing = book.count(view.nbytes, "workspace", "weights file")
            view[...] = file.get_tensor(name)
            del passing


def require_match(path: Path, layout: Layout) -> None:
    """Checks that a file holds the parameters of a layout, without reading them.

    Raises:
        FileNotFoundError, ValueError: See `load`.
    """
    with _open(path) as file:
        _require_match(path, file, layout)


@contextmanager
def _open(path: Path) -> Iterator[Any]:
    if not path.is_file():
        raise FileNotFoundError(f"there is no weights file {path}")
    try:
        with safe_open(path, framework="numpy") as file:
            yield file
    except SafetensorError as error:
        raise ValueError(f"weights file {path} cannot be read as safetensors: {error}") from error


def _require_match(path: Path, file: Any, layout: Layout) -> None:
    # PyTorch's norms of batches also count their steps, which nothing here reads.
    there = {name for name in file.keys() if name.rpartition(".")[2] != "num_batches_tracked"}  # noqa: SIM118
    specs = {**layout.specs, **layout.state.specs}
    shapes, dtypes = [], []
    for name, spec in specs.items():
        if name not in there:
            continue
        part = file.get_slice(name)
        shape, dtype = tuple(part.get_shape()), _DTYPES.get(part.get_dtype(), part.get_dtype())
        if shape != spec.shape:
            shapes.append(f"{name} {list(shape)} for {list(spec.shape)}")
        if dtype != spec.dtype.name:
            dtypes.append(f"{name} {dtype} for {spec.dtype.name}")
    faults = {
        "missing": [name for name in specs if name not in there],
        "left over": sorted(there - set(specs)),
        "of another shape": shapes,
        "of another dtype": dtypes,
    }
    if told := [f"{len(names)} {fault}: {', '.join(names)}" for fault, names in faults.items() if names]:
        raise ValueError(
            "\n  ".join(
                [f"weights file {path} is of another model, which has {len(specs)} arrays; of the file's", *told]
            )
        )
