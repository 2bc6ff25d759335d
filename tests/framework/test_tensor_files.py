"""Safetensors files that are written block by block: the library reads them, and nothing is copied to write them."""

from __future__ import annotations

import hashlib
import os
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import load

from framework import Ledger
from framework.tensor_files import BLOCK_NBYTES, hash_file, read_tensors, write_tensors

SHAPES = st.lists(st.integers(0, 5), max_size=3).map(tuple)
DTYPES = st.sampled_from(["float16", "float32", "float64"])


def write(path: Path, tensors: dict[str, np.ndarray], metadata: dict[str, str] | None = None) -> tuple[int, str]:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    try:
        written = write_tensors(descriptor, tensors, metadata)
    finally:
        os.close(descriptor)
    return written.nbytes, written.sha256


@given(
    st.dictionaries(st.text(max_size=8), st.tuples(SHAPES, DTYPES), max_size=5),
    st.dictionaries(st.text(max_size=4), st.text(max_size=4)),
)
def test_the_library_reads_what_was_written(
    tmp_path_factory: pytest.TempPathFactory, specs: dict[str, tuple[tuple[int, ...], str]], metadata: dict[str, str]
) -> None:
    specs.pop("__metadata__", None)
    generator, path = np.random.default_rng(0), tmp_path_factory.mktemp("tensors") / "t"
    tensors = {name: generator.standard_normal(shape).astype(dtype) for name, (shape, dtype) in specs.items()}
    nbytes, sha256 = write(path, tensors, metadata)
    content = path.read_bytes()
    assert (nbytes, sha256) == (len(content), hashlib.sha256(content).hexdigest())
    assert hash_file(path).sha256 == sha256
    read = load(content)
    assert set(read) == set(tensors)
    for name, tensor in tensors.items():
        assert (read[name].dtype, read[name].shape) == (tensor.dtype, tensor.shape)
        assert read[name].tobytes() == tensor.tobytes()
    with safe_open(path, framework="numpy") as file:
        assert (file.metadata() or {}) == metadata


@pytest.mark.parametrize("extra", [-1, 0, 1])
def test_tensors_around_the_size_of_a_block_are_whole(tmp_path: Path, extra: int) -> None:
    tensor = np.arange(BLOCK_NBYTES // 4 * 2 + extra, dtype=np.float32)
    tensor[3] = -0.0
    write(tmp_path / "t", {"a": tensor, "b": tensor[:7]})
    read = {"a": np.empty_like(tensor), "b": np.empty(7, np.float32)}
    read_tensors(tmp_path / "t", read, "file", Ledger())
    assert read["a"].tobytes() == tensor.tobytes()
    assert read["b"].tobytes() == tensor[:7].tobytes()


def test_writing_copies_nothing_and_reading_one_tensor_at_a_time(tmp_path: Path) -> None:
    tensors = {name: np.ones(2**20, np.float32) for name in "abcd"}  # 4 MiB each
    tracemalloc.start()
    try:
        write(tmp_path / "t", tensors)
        assert tracemalloc.get_traced_memory()[1] < 2**17
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]
        read_tensors(tmp_path / "t", tensors, "file")
        assert tracemalloc.get_traced_memory()[1] - before < 1.6 * tensors["a"].nbytes
    finally:
        tracemalloc.stop()


def test_big_endian_arrays_are_written_in_the_order_of_the_format(tmp_path: Path) -> None:
    tensor = np.arange(5, dtype=">f8")
    write(tmp_path / "t", {"a": tensor})
    np.testing.assert_array_equal(load((tmp_path / "t").read_bytes())["a"], tensor)
