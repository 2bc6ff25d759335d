"""Windows of bytes from text files."""

from __future__ import annotations

import hashlib
import math
import os
import sysconfig
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from framework.data.dataset import require_inside
from framework.layers.layer import Spec
from framework.memory import Array

#: One file in so many of a text is for validation.
VALIDATION_EVERY = 20
#: The part held out from the end of a text of fewer files.
VALIDATION_PART = 0.05
_INSTALLED = frozenset({"site-packages", "dist-packages"})
_TESTS = frozenset({"test", "tests", "idle_test"})
_CHUNK = 2**16


@dataclass(frozen=True)
class _Piece:
    """Bytes start..stop of a file that is expected to be `size` bytes long."""

    path: Path
    size: int
    start: int
    stop: int


class _Text:
    """The concatenation of pieces of files, read straight into arrays by positioned reads.

    Memory maps would be a microsecond faster, but what has been read through them stays in the process's resident memory, whose
    budget then depends on the length of the text.
    """

    def __init__(self, pieces: Sequence[_Piece]) -> None:
        self.pieces = tuple(pieces)
        self._ends: list[int] = []
        for piece in self.pieces:
            self._ends.append(len(self) + piece.stop - piece.start)

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def read(self, start: int, out: Array) -> None:
        """Copies bytes from `start` on into `out`, a uint8 vector."""
        number, done = bisect_right(self._ends, start), 0
        while done < out.size:
            piece = self.pieces[number]
            begin = piece.stop - (self._ends[number] - start - done)
            count = min(piece.stop - begin, out.size - done)
            _read(piece, begin, out[done : done + count])
            done += count
            number += 1

    def chunks(self) -> Iterator[Array]:
        """Yields the text in order, at most 64 KiB at a time."""
        for start in range(0, len(self), _CHUNK):
            chunk = np.empty(min(_CHUNK, len(self) - start), np.uint8)
            self.read(start, chunk)
            yield chunk


def _read(piece: _Piece, start: int, out: Array) -> None:
    """Reads a piece's file from byte `start` on into `out`, which it must fill."""
    with piece.path.open("rb", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        if size != piece.size or os.preadv(file.fileno(), [out.data], start) != out.size:
            raise ValueError(
                f"text file {piece.path} has {size} bytes, but had {piece.size} when the run was set up; "
                "the text must not change during a run and be the same for every worker"
            )


class ByteText:
    """Windows of bytes from text files: a window's first bytes are the input, its bytes one later the targets.

    Files of a folder are joined in the order of their sorted relative paths, several paths in the order given. Every 20th file is for validation; of fewer than 20 files, the
    last 5 % of the text are. Windows of `window + 1` bytes do not overlap. The text stays in its files, so it takes no memory.

    Args:
        paths: Files or folders (searched for files at any depth, hidden ones and caches left out). None: the
            sources of the running Python's standard library without site-packages and test folders.
        window: Bytes of an input.

    Raises:
        FileNotFoundError: A path does not exist.
        ValueError: A file is empty, a folder holds none, or the text is shorter than one window for each split.
    """

    def __init__(self, paths: Sequence[str | Path] = (), window: int = 128) -> None:
        self.window = window
        self.inputs = self.targets = Spec.of((window,), np.uint8)
        self.source = [str(path) for path in paths] or ["the standard library of Python"]
        files = _named_files(paths) if paths else _standard_library()
        sizes = [(path, path.stat().st_size) for path in files]
        whole = [_Piece(path, size, 0, size) for path, size in sizes if size]
        if len(whole) >= VALIDATION_EVERY:
            held = whole[VALIDATION_EVERY - 1 :: VALIDATION_EVERY]
            kept = [piece for number, piece in enumerate(whole) if (number + 1) % VALIDATION_EVERY]
        else:
            total = sum(piece.size for piece in whole)
            kept, held = _cut(whole, total - max(window + 1, math.ceil(total * VALIDATION_PART)))
        self._texts = {"train": _Text(kept), "validation": _Text(held)}
        if any(len(text) <= window for text in self._texts.values()):
            train, validation = (len(self._texts[split]) for split in ("train", "validation"))
            raise ValueError(
                f"the text has {train + validation} bytes, {train} of them for training and {validation} for validation, shorter "
                f"than one window of {window + 1} bytes for each; name more text with --data, or a model with a smaller window"
            )

    @property
    def nbytes(self) -> int:
        return 0

    def size(self, split: str) -> int:
        return len(self._texts[split]) // (self.window + 1)

    def load(self, split: str, indices: Sequence[int], x: Array, targets: Array) -> None:
        text = self._texts[split]
        require_inside(split, indices, self.size(split))
        for row, index in enumerate(indices):
            start = int(index) * (self.window + 1)
            text.read(start, x[row])
            text.read(start + 1, targets[row])

    def describe(self) -> dict[str, Any]:
        digest = hashlib.sha256()
        for text in self._texts.values():
            for chunk in text.chunks():
                digest.update(chunk.data)
        return {
            "kind": "bytes of text",
            "source": self.source,
            "files": len({piece.path for text in self._texts.values() for piece in text.pieces}),
            "train_bytes": len(self._texts["train"]),
            "validation_bytes": len(self._texts["validation"]),
            "window": self.window,
            "sha256": digest.hexdigest(),
        }

    def entropies(self, windows: Sequence[int]) -> tuple[float, float]:
        """Returns what simple models of the training text reach, in nats per byte.

        Args:
            windows: The validation windows that the second figure is taken over.

        Returns:
            The entropy of the training text's bytes, and the cross-entropy of the windows' targets under the add-one
            byte-pair counts of the training text.
        """
        pairs = np.zeros(256 * 256, np.int64)
        singles = np.zeros(256, np.int64)
        before = None
        for chunk in self._texts["train"].chunks():
            singles += np.bincount(chunk, minlength=256)
            joined = chunk if before is None else np.concatenate([before, chunk])
            pairs += np.bincount(joined[:-1].astype(np.intp) * 256 + joined[1:], minlength=256 * 256)
            before = chunk[-1:]
        shares = singles[singles > 0] / singles.sum()
        counts = pairs.reshape(256, 256) + 1
        surprise = -np.log(counts / counts.sum(axis=1, keepdims=True))
        x, targets = np.empty((1, self.window), np.uint8), np.empty((1, self.window), np.uint8)
        total = 0.0
        for index in windows:
            self.load("validation", [index], x, targets)
            total += float(surprise[x[0], targets[0]].sum())
        return float(-(shares * np.log(shares)).sum()), total / (self.window * len(windows))


def _standard_library() -> list[Path]:
    root = Path(sysconfig.get_paths()["stdlib"])
    return [path for path in _below(root, _INSTALLED | _TESTS) if path.suffix == ".py"]


def _named_files(paths: Sequence[str | Path]) -> list[Path]:
    found: list[Path] = []
    for path in map(Path, paths):
        if not path.exists():
            raise FileNotFoundError(f"there is no text file or folder {path}")
        files = _below(path, frozenset()) if path.is_dir() else [path]
        if not files:
            raise ValueError(f"folder {path} holds no file to read text from")
        if path.is_file() and not path.stat().st_size:
            raise ValueError(f"text file {path} is empty")
        found.extend(files)
    found = [path.resolve() for path in found]
    if repeated := [path for path, times in Counter(found).items() if times > 1]:
        raise ValueError(
            f"text file {repeated[0]} is named twice, so it would be in training and validation both; name it once"
        )
    return found


def _below(root: Path, skipped: frozenset[str]) -> list[Path]:
    """All files below a folder in the order of their relative paths, without hidden ones, caches and skipped folders."""
    found = []
    for folder, folders, names in os.walk(root):
        folders[:] = [name for name in folders if not name.startswith(".") and name not in skipped | {"__pycache__"}]
        found += [Path(folder, name) for name in names if not name.startswith(".")]
    return sorted((path for path in found if path.is_file()), key=lambda path: path.relative_to(root).as_posix())


def _cut(pieces: Sequence[_Piece], where: int) -> tuple[list[_Piece], list[_Piece]]:
    """Cuts joined pieces into those before and after a byte."""
    before, after, seen = [], [], 0
    for piece in pieces:
        cut = piece.start + max(0, min(where - seen, piece.stop - piece.start))
        seen += piece.stop - piece.start
        if cut > piece.start:
            before.append(_Piece(piece.path, piece.size, piece.start, cut))
        if cut < piece.stop:
            after.append(_Piece(piece.path, piece.size, cut, piece.stop))
    return before, after
