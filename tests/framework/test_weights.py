"""Parameters in and out of safetensors files."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from framework import LSTM, Chain, Embedding, Key, LayerNorm, Linear, Parameters, Shared, Spec, weights


def parameters(seed: int = 0, dtype: str = "float32", features: int = 3, **more: Any) -> Parameters:
    chain = Chain(a=Linear(features), norm=LayerNorm(), **more)
    return Parameters.initialize(chain.layout(Spec.of((2, 5), dtype)), Key(seed))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_saved_and_loaded_parameters_have_the_same_bits(tmp_path: Path, dtype: str) -> None:
    saved, loaded = parameters(0, dtype), parameters(1, dtype)
    saved["a.bias"][:2] = [-0.0, 1e-42]
    weights.save(tmp_path / "model.safetensors", saved)
    flat = loaded.flat
    assert loaded.sha256() != saved.sha256()
    weights.load(tmp_path / "model.safetensors", loaded)
    assert loaded.sha256() == saved.sha256()
    assert loaded.flat is flat
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]


def test_the_file_has_each_name_shape_and_the_metadata(tmp_path: Path) -> None:
    saved = parameters()
    weights.save(tmp_path / "m", saved, {"model": "a", "step": "3"})
    with safe_open(tmp_path / "m", framework="numpy") as file:
        assert set(file.keys()) == set(saved)
        assert file.metadata() == {"model": "a", "step": "3"}
        for name, view in saved.items():
            np.testing.assert_array_equal(file.get_tensor(name), view)


def test_saving_again_replaces_the_file(tmp_path: Path) -> None:
    weights.save(tmp_path / "m", parameters(0))
    weights.save(tmp_path / "m", parameters(1))
    loaded = parameters(2)
    weights.load(tmp_path / "m", loaded)
    assert loaded.sha256() == parameters(1).sha256()


OTHERS = {
    "left over": (parameters(b=Linear(2)), ["which has 4 arrays", "2 left over: b.bias, b.weight"]),
    "shape": (
        parameters(features=4),
        ["4 of another shape: a.weight [4, 5] for [3, 5], a.bias [4] for [3]", "norm.bias [4] for [3]"],
    ),
    "dtype": (parameters(dtype="float64"), ["4 of another dtype: a.weight float64 for float32, a.bias float64"]),
    "missing": (
        Parameters.initialize(Chain(a=Linear(3)).layout(Spec.of((2, 5), "float32")), Key(0)),
        ["2 missing: norm.weight, norm.bias"],
    ),
}


@pytest.mark.parametrize("fault", OTHERS)
def test_weights_of_another_model_are_refused_and_change_nothing(tmp_path: Path, fault: str) -> None:
    other, messages = OTHERS[fault]
    weights.save(tmp_path / "m", other)
    loaded = parameters(1)
    before = loaded.sha256()
    with pytest.raises(ValueError, match="of another model") as caught:
        weights.load(tmp_path / "m", loaded)
    assert all(message in str(caught.value) for message in [str(tmp_path / "m"), *messages])
    assert loaded.sha256() == before


def test_all_faults_are_told_at_once(tmp_path: Path) -> None:
    chain = Chain(a=Linear(4, bias=False), **{f"x{i}": Linear(2) for i in range(9)})
    weights.save(tmp_path / "m", Parameters.initialize(chain.layout(Spec.of((2, 5), "float64")), Key(0)))
    with pytest.raises(ValueError, match="of another model") as caught:
        weights.load(tmp_path / "m", parameters())
    assert str(caught.value).split("\n  ")[1:] == [
        "3 missing: a.bias, norm.weight, norm.bias",
        "18 left over: " + ", ".join(f"x{i}.{name}" for i in range(9) for name in ("bias", "weight")),
        "1 of another shape: a.weight [4, 5] for [3, 5]",
        "1 of another dtype: a.weight float64 for float32",
    ]


@pytest.mark.parametrize(
    "content", [b"", b"no safetensors at all", b"\xff" * 100, None], ids=["empty", "text", "bits", "cut"]
)
def test_a_damaged_file_is_a_clear_error_and_changes_nothing(tmp_path: Path, content: bytes | None) -> None:
    path, loaded = tmp_path / "m", parameters(1)
    weights.save(path, parameters(0))
    path.write_bytes(path.read_bytes()[:-8] if content is None else content)
    before = loaded.sha256()
    with pytest.raises(ValueError, match="cannot be read as safetensors") as caught:
        weights.load(path, loaded)
    assert str(path) in str(caught.value)
    assert loaded.sha256() == before


def recurrent(seed: int) -> Parameters:
    """Of layers that PyTorch gives other names, and with a weight that two layers share."""
    chain = Chain(
        words=Embedding(8, None, 6),
        lstm=LSTM(6, chunks=2),
        head=Shared(Linear(8, bias=False), weight="words.token"),
    )
    return Parameters.initialize(chain.layout(Spec.of((2, 4), "int64")), Key(seed))


def stored(parameters: Parameters, bias: np.ndarray) -> dict[str, np.ndarray]:
    """What PyTorch's modules would have in a file, cut into two biases."""
    return {
        "words.weight": parameters["words.token"],
        "lstm.weight_ih_l0": parameters["lstm.weight_ih"],
        "lstm.weight_hh_l0": parameters["lstm.weight_hh"],
        "lstm.bias_ih_l0": bias,
        "lstm.bias_hh_l0": parameters["lstm.bias"] - bias,
        "head.weight": parameters["words.token"].copy(),
    }


@pytest.mark.parametrize("without", ["", "head.weight", "words.weight"])
def test_names_of_pytorchs_own_modules_are_read(tmp_path: Path, without: str) -> None:
    """And a shared weight is there under all of its names, or under one of them."""
    saved, loaded = recurrent(0), recurrent(1)
    saved["lstm.bias"][:] = np.arange(24)
    tensors = stored(saved, np.arange(24, dtype="f4")[::-1].copy())
    tensors.pop(without, None)
    save_file(tensors, tmp_path / "m")
    weights.require_match(tmp_path / "m", loaded.layout)
    weights.load(tmp_path / "m", loaded)
    assert loaded.sha256() == saved.sha256()


def test_a_file_for_pytorch_has_the_names_of_its_modules_and_is_read_here_too(tmp_path: Path) -> None:
    saved, loaded = recurrent(0), recurrent(1)
    weights.save(tmp_path / "m", saved, for_pytorch=True)
    found, expected = load_file(tmp_path / "m"), stored(saved, saved["lstm.bias"])
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array)
    weights.load(tmp_path / "m", loaded)
    assert loaded.sha256() == saved.sha256()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"head.weight": np.ones((8, 6), "f4")}, "1 not equal, though the model shares them: head.weight and words.weight"),
        ({"head.weight": np.ones((7, 6), "f4")}, "1 of another shape: head.weight [7, 6] for [8, 6]"),
        ({"lstm.bias_hh_l0": np.ones(12, "f4")}, "1 of another shape: lstm.bias_hh_l0 [12] for [24]"),
        ({"lstm.bias_hh_l0": None}, "1 missing: lstm.bias"),
        ({"words.token": np.ones((8, 6), "f4")}, "1 left over: words.weight"),
    ],
)  # fmt: skip
def test_faults_under_names_of_pytorch_are_told_and_change_nothing(
    tmp_path: Path, change: dict[str, np.ndarray | None], message: str
) -> None:
    saved, loaded = recurrent(0), recurrent(1)
    before = loaded.sha256()
    tensors = stored(saved, saved["lstm.bias"]) | change
    save_file({name: array for name, array in tensors.items() if array is not None}, tmp_path / "m")
    for call in (
        lambda: weights.load(tmp_path / "m", loaded),
        lambda: weights.require_match(tmp_path / "m", loaded.layout),
    ):
        with pytest.raises(ValueError, match="of another model") as caught:
            call()
        assert message in str(caught.value)
    assert loaded.sha256() == before


def test_copies_of_more_than_a_block_are_compared_to_the_last_number(tmp_path: Path) -> None:
    chain = Chain(words=Embedding(3000, None, 100), head=Shared(Linear(3000, bias=False), weight="words.token"))
    loaded = Parameters.initialize(chain.layout(Spec.of((2, 4), "int64")), Key(0))
    tensors = {"words.token": np.ones((3000, 100), "f4"), "head.weight": np.ones((3000, 100), "f4")}
    save_file(tensors, tmp_path / "m")
    weights.load(tmp_path / "m", loaded)
    assert (loaded.flat == 1).all()
    tensors["head.weight"][-1, -1] = 2
    save_file(tensors, tmp_path / "m")
    with pytest.raises(ValueError, match=r"not equal.*: head\.weight and words\.token"):
        weights.load(tmp_path / "m", loaded)


def test_a_missing_file_is_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no weights file .*nothing"):
        weights.load(tmp_path / "nothing", parameters())


@pytest.fixture
def torn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Writing stops half-way, as on a full disk."""

    write, written = os.write, []

    def torn_write(descriptor: int, data: Any) -> int:
        if written:
            raise OSError("no space is left")
        written.append(data)
        return write(descriptor, memoryview(data)[: len(data) // 2])

    monkeypatch.setattr(os, "write", torn_write)


def test_a_failed_save_leaves_the_old_file_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: Any) -> None:
    weights.save(tmp_path / "m", parameters(0))
    request.getfixturevalue("torn")
    with pytest.raises(OSError, match="no space"):
        weights.save(tmp_path / "m", parameters(1))
    loaded = parameters(2)
    weights.load(tmp_path / "m", loaded)
    assert loaded.sha256() == parameters(0).sha256()


@pytest.mark.usefixtures("torn")
def test_a_failed_save_leaves_no_partial_file_behind(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="no space"):
        weights.save(tmp_path / "m", parameters(1))
    assert list(tmp_path.iterdir()) == []
