"""Tensors in safetensors files: written block by block from where they lie, and read tensor by tensor after a check of all.

A file is the length of its header (8 bytes, little-endian), the header, and the tensors' bytes one after the other. The header is JSON: for
each tensor its dtype, shape, and where its bytes begin and end (https://github.com/huggingface/safetensors#format). The library's own writer copies all
tensors before it writes, for which a budget has no room; this one holds a block of none but the tensor that it writes. Reading is
the library's.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from framework.durable import write_all
from framework.memory import Array, Ledger

#: Names of dtypes in files, and NumPy's.
_DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_CODES = {name: code for code, name in _DTYPES.items()}
#: Bytes that are written, or read to be hashed, at once: they stay in the cache between hashing and copying.
BLOCK_NBYTES = 1 << 20


@dataclass(frozen=True)
class Written:
    """A file that was written.

    Attributes:
        nbytes: Its length.
        sha256: Of its bytes.
    """

    nbytes: int
    sha256: str


@dataclass(frozen=True)
class Scattered:
    """A tensor that several processes hold together, each some of its elements.

    Attributes:
        shape: Of the whole.
        dtype: Its dtype.
        place: Which elements of the whole, flat, this process holds.
        held: These elements.
        blocks: Yields all elements, flat and in order; a block is read before the next one is asked for.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    place: slice
    held: Array
    blocks: Callable[[], Iterator[Array]]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


#: Tensors by name.
Tensors = Mapping[str, Array | Scattered]
#: Shapes and dtypes of tensors by name.
Specs = Mapping[str, tuple[tuple[int, ...], str]]


@dataclass(frozen=True)
class Synonyms:
    """How else a file may name tensors.

    Attributes:
        terms: By tensor, the names in a file that has it under another one; where there are several, it is their sum.
        copies: By tensor, further names that are for the same numbers: a file may have any of them, and all that it has are equal.
    """

    terms: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    copies: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def found(self, name: str, there: set[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Returns the names in a file whose sum a tensor is, none if it is not there, and those of its copies besides."""
        copies = [each for each in self.copies.get(name, ()) if each in there]
        options = [(name,), self.terms.get(name, (name,)), *((each,) for each in copies)]
        taken = next((option for option in options if there.issuperset(option)), ())
        return taken, tuple(each for each in copies if each not in taken)


def write_tensors(descriptor: int, tensors: Tensors, metadata: Mapping[str, str] | None = None) -> Written:
    """Writes a safetensors file, and hashes what it writes.

    Args:
        descriptor: An open file, empty.
        tensors: By name, float and C-contiguous, in the order in which they go into the file. Of one that is scattered, blocks are asked for.
        metadata: Words about them.

    Raises:
        OSError: It could not be written.
    """
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    for name, tensor in tensors.items():
        # A view of its bytes would have another order.
        assert isinstance(tensor, Scattered) or tensor.flags.c_contiguous, name
        begin, end = end, end + tensor.nbytes
        header[name] = {"dtype": _CODES[tensor.dtype.name], "shape": list(tensor.shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # so the tensors are aligned
    digest = hashlib.sha256()
    start = len(text).to_bytes(8, "little") + text
    digest.update(start)
    nbytes = write_all(descriptor, start)
    for tensor in tensors.values():
        for block in tensor.blocks() if isinstance(tensor, Scattered) else _blocks(tensor):
            little = block.astype(block.dtype.newbyteorder("<"), copy=False)
            raw = little.view(np.uint8).data
            digest.update(raw)
            nbytes += write_all(descriptor, raw)
    return Written(nbytes, digest.hexdigest())


def _blocks(tensor: Array) -> Iterator[Array]:
    flat = tensor.reshape(-1)
    height = BLOCK_NBYTES // tensor.dtype.itemsize
    for first in range(0, flat.size, height):
        yield flat[first : first + height]


def hash_file(path: Path) -> Written:
    """Reads a file once, and returns its length and hash."""
    digest, nbytes = hashlib.sha256(), 0
    buffer = bytearray(BLOCK_NBYTES)
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(buffer):
            digest.update(memoryview(buffer)[:count])
            nbytes += count
    return Written(nbytes, digest.hexdigest())


def read_tensors(
    path: Path, views: Tensors, what: str, ledger: Ledger | None = None, synonyms: Synonyms | None = None
) -> None:
    """Reads tensors into arrays, one at a time, after checking all of them.

    Args:
        path: The file.
        views: By name, where they go: all that the file holds. Of one that is scattered, only the elements that are held here are taken.
        what: What the file is called in messages, as "weights file".
        ledger: Counts the tensor that is being read.
        synonyms: How else the file may name them.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is no safetensors file, or holds others; the message names all that is missing, left over, of another shape, or
            of another dtype.
    """
    book = ledger or Ledger()
    with _open(path, what) as file:
        specs = {name: (view.shape, view.dtype.name) for name, view in views.items()}
        found = _require_match(path, file, specs, what, synonyms)
        for name, view in views.items():
            first, *further = found[name]
            if isinstance(view, Scattered) and not view.held.size:
                continue
            passing = book.count(view.nbytes, "workspace", what)
            if isinstance(view, Scattered):
                view.held[...] = file.get_tensor(first).reshape(-1)[view.place]
            else:
                view[...] = file.get_tensor(first)
                for term in further:
                    view += file.get_tensor(term)
            del passing


def require_tensors(path: Path, specs: Specs, what: str, synonyms: Synonyms | None = None) -> None:
    """Checks that a file holds tensors of such shapes and dtypes, without reading any but those that it has twice.

    Raises:
        FileNotFoundError, ValueError: See `read_tensors`.
    """
    with _open(path, what) as file:
        _require_match(path, file, specs, what, synonyms)


@contextmanager
def _open(path: Path, what: str) -> Iterator[Any]:
    if not path.is_file():
        raise FileNotFoundError(f"there is no {what} {path}")
    try:
        with safe_open(path, framework="numpy") as file:
            yield file
    except SafetensorError as error:
        raise ValueError(f"{what} {path} cannot be read as safetensors: {error}") from error


def _require_match(
    path: Path, file: Any, specs: Specs, what: str, synonyms: Synonyms | None
) -> dict[str, tuple[str, ...]]:
    """Returns for each tensor the names in the file whose sum it is."""
    # PyTorch's norms of batches also count their steps, which nothing here reads.
    there = {name for name in file.keys() if name.rpartition(".")[2] != "num_batches_tracked"}  # noqa: SIM118
    known = {name: (synonyms or Synonyms()).found(name, there) for name in specs}
    shapes, dtypes, unequal = [], [], []
    for name, (expected, wanted) in specs.items():
        taken, copies = known[name]
        fits = True
        for each in (*taken, *copies):
            part = file.get_slice(each)
            shape, dtype = tuple(part.get_shape()), _DTYPES.get(part.get_dtype(), part.get_dtype())
            if shape != expected:
                shapes.append(f"{each} {list(shape)} for {list(expected)}")
            if dtype != wanted:
                dtypes.append(f"{each} {dtype} for {wanted}")
            fits = fits and (shape, dtype) == (expected, wanted)
        if fits:
            unequal += [f"{each} and {taken[0]}" for each in copies if not _equal(file, each, taken[0])]
    faults = {
        "missing": [name for name, (taken, _) in known.items() if not taken],
        "left over": sorted(there.difference(*(names for both in known.values() for names in both))),
        "of another shape": shapes,
        "of another dtype": dtypes,
        "not equal, though the model shares them": unequal,
    }
    if told := [f"{len(names)} {fault}: {', '.join(names)}" for fault, names in faults.items() if names]:
        raise ValueError(
            "\n  ".join([f"{what} {path} is of another model, which has {len(specs)} arrays; of the file's", *told])
        )
    return {name: taken for name, (taken, _) in known.items()}


def _equal(file: Any, one: str, other: str) -> bool:
    """Whether two tensors of a file, of one shape with an axis or more and one dtype, have the same bits; few rows of them are read at once."""
    slices = file.get_slice(one), file.get_slice(other)
    rows, *rest = slices[0].get_shape()
    height = max(
        1, BLOCK_NBYTES // 8 // (8 * max(1, math.prod(rest)))
    )  # four copies of so many rows of eight bytes live at once
    for first in range(0, rows, height):
        a, b = (each[first : min(first + height, rows)] for each in slices)
        if a.tobytes() != b.tobytes():
            return False
    return True
