"""Parameters in and out of safetensors files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from framework.parameters import Parameters

_DTYPES = {"F32": "float32", "F64": "float64", "F16": "float16", "BF16": "bfloat16"}


def save(path: Path, parameters: Parameters, metadata: dict[str, str] | None = None) -> None:
    """Writes parameters under their names; the file appears whole or not at all."""
    for name, view in parameters.items():
        # safetensors writes a non-contiguous array in the wrong order without a word.
        assert view.flags.c_contiguous, name
    aside = path.with_name(path.name + ".part")
    try:
        save_file(dict(parameters), aside, metadata or {})
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


def load(path: Path, parameters: Parameters) -> None:
    """Reads parameters into their views, one tensor at a time, after checking all of them.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is no safetensors file, or not this model's; the message says what differs.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no weights file {path}")
    try:
        with safe_open(path, framework="numpy") as file:
            _require_match(path, file, parameters)
            for name, view in parameters.items():
                view[...] = file.get_tensor(name)
    except SafetensorError as error:
        raise ValueError(f"weights file {path} cannot be read as safetensors: {error}") from error


def _require_match(path: Path, file: Any, parameters: Parameters) -> None:
    there = set(file.keys())
    faults = [f"{name} is missing" for name in parameters if name not in there]
    faults += [f"{name} is left over" for name in sorted(there - set(parameters))]
    for name in parameters:
        if name not in there:
            continue
        part = file.get_slice(name)
        shape, dtype = tuple(part.get_shape()), _DTYPES.get(part.get_dtype(), part.get_dtype())
        view = parameters[name]
        if shape != view.shape or dtype != view.dtype.name:
            faults.append(f"{name} is {dtype}{list(shape)}, but the model has {view.dtype.name}{list(view.shape)}")
    if faults:
        more = f" (and {len(faults) - 5} more)" if len(faults) > 5 else ""
        raise ValueError(f"weights file {path} is of another model: {'; '.join(faults[:5])}{more}")
