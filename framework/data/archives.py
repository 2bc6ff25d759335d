"""Arrays in NPZ files."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from framework.data.examples import Examples
from framework.memory import Array

#: Names of inputs and of targets; with an ending for training examples or for those held out.
_NAMES = (("x", "y"), ("inputs", "targets"), ("X", "Y"), ("X", "y"))
_TRAIN, _HELD = ("", "_train"), ("_test", "_validation", "_val")


def read_npz(path: Path) -> Examples:
    """Reads the arrays `x` and `y`, or `inputs` and `targets`; `x_train` and `y_train` are the same, `x_test` and `y_test` are held out.

    Args:
        path: A file as `numpy.savez` writes it.

    Raises:
        ValueError: It is no such file, or does not hold such arrays; the message says what it holds.
    """
    try:
        # Opened here, since NumPy leaves a file open that it cannot read.
        with path.open("rb") as file:
            arrays = np.load(file, allow_pickle=False)
            if not isinstance(arrays, np.lib.npyio.NpzFile):
                raise ValueError(
                    "it holds a single array; write inputs and targets with numpy.savez(path, x=..., y=...)"
                )
            names = _found(arrays.files, _TRAIN)
            if names is None:
                raise ValueError(
                    "it must hold x and y, or inputs and targets (also as x_train and y_train), but holds "
                    f"{', '.join(arrays.files) or 'nothing'}"
                )
            apart = _found(arrays.files, _HELD)
            x, y = (_array(arrays, name) for name in names)
            test = (_array(arrays, apart[0]), _array(arrays, apart[1])) if apart else None
    except (ValueError, zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise ValueError(f"archive {path} cannot be used: {error}") from error
    if test is not None:
        for one, other, name in zip((x, y), test, apart or (), strict=True):
            if one.shape[1:] != other.shape[1:] or one.dtype.kind != other.dtype.kind:
                raise ValueError(
                    f"archive {path}: {name} has examples {other.dtype.name}{list(other.shape[1:])}, but those for training are "
                    f"{one.dtype.name}{list(one.shape[1:])}"
                )
    return Examples(str(path), x, y, target=names[1], held=test)


def _found(names: list[str], endings: tuple[str, ...]) -> tuple[str, str] | None:
    """The names of inputs and targets that are there."""
    for x, y in _NAMES:
        for ending in endings:
            if x + ending in names and y + ending in names:
                return x + ending, y + ending
    return None


def _array(file: Any, name: str) -> Array:
    a: Array = file[name]
    if a.dtype.kind not in "fiubU" or not a.ndim:
        raise ValueError(
            f"{name} is {a.dtype.name}{list(a.shape)}; examples are arrays of numbers, targets also of words"
        )
    return a
