"""Parameters are named views of one buffer."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from framework import Key, Ledger, Parameters
from framework.parameters import Constant, HeNormal, Layout, Normal, ParameterSpec, Uniform, sha256_of

SHAPES = st.lists(st.lists(st.integers(0, 5), max_size=3).map(tuple), max_size=5)


def layout_of(*shapes: tuple[int, ...], dtype: str = "float32") -> Layout:
    return Layout({f"layer{i}.weight": ParameterSpec(s, np.dtype(dtype), Normal(1.0)) for i, s in enumerate(shapes)})


@given(SHAPES, st.sampled_from(["float32", "float64"]))
def test_views_lie_one_after_the_other_in_one_buffer(shapes: list[tuple[int, ...]], dtype: str) -> None:
    layout = layout_of(*shapes, dtype=dtype)
    flat = np.arange(layout.size, dtype=layout.dtype)
    parameters = Parameters(layout, flat)
    assert [view.shape for view in parameters.values()] == shapes
    assert np.concatenate([np.empty(0), *(view.reshape(-1) for view in parameters.values())]).tolist() == flat.tolist()
    assert layout.nbytes == flat.nbytes
    assert len(parameters) == len(shapes)
    for name, view in parameters.items():
        assert view.flags.c_contiguous
        assert layout.slices[name].stop - layout.slices[name].start == view.size == layout.specs[name].size
        view[...] = -1
    assert (flat == -1).all()


def test_views_are_grouped_by_the_path_of_their_layer() -> None:
    float32 = np.dtype("float32")
    names = ["block0.mix.qkv.weight", "block0.mix.qkv.bias", "head.weight", "scale"]
    layout = Layout({name: ParameterSpec((2,), float32, Constant(0)) for name in names})
    flat = np.zeros(8, np.float32)
    groups = layout.grouped_views(flat)
    assert {path: list(views) for path, views in groups.items()} == {
        "block0.mix.qkv": ["weight", "bias"],
        "head": ["weight"],
        "": ["scale"],
    }
    groups["head"]["weight"][...] = 1
    assert flat.tolist() == [0, 0, 0, 0, 1, 1, 0, 0]


@pytest.mark.parametrize("dtypes", [("float32", "float64"), ("int64",), ("float32", "int32")])
def test_parameters_of_several_dtypes_or_of_integers_are_refused(dtypes: tuple[str, ...]) -> None:
    specs = {f"p{i}": ParameterSpec((1,), np.dtype(dtype), Constant(0)) for i, dtype in enumerate(dtypes)}
    with pytest.raises(ValueError, match=f"share one float dtype.*{sorted(dtypes)[0]}"):
        Layout(specs)


@pytest.mark.parametrize("flat", [np.zeros(5, np.float32), np.zeros(6), np.zeros((2, 3), np.float32)])
def test_a_buffer_of_another_size_or_dtype_is_refused(flat: np.ndarray) -> None:
    with pytest.raises(ValueError, match="does not hold 6 parameters of float32"):
        Parameters(layout_of((2, 3)), flat)


def test_initial_values_depend_on_the_key_and_the_name_but_not_on_the_order() -> None:
    shapes = {"a": (3, 4), "b": (3, 4), "c": (7,)}

    def values(names: str, seed: int = 0) -> dict[str, bytes]:
        specs = {name: ParameterSpec(shapes[name], np.dtype("float32"), Normal(1.0)) for name in names}
        return {name: view.tobytes() for name, view in Parameters.initialize(Layout(specs), Key(seed)).items()}

    whole = values("abc")
    assert values("cba") == whole
    assert values("b")["b"] == whole["b"]
    assert whole["a"] != whole["b"]
    assert all(values("abc", seed=1)[name] != whole[name] for name in shapes)


def test_initialization_takes_one_array_of_the_ledger() -> None:
    ledger = Ledger()
    parameters = Parameters.initialize(layout_of((3, 4), (5,), dtype="float64"), Key(0), ledger)
    assert ledger.holders() == [("parameters", "model", 17 * 8)]
    assert ledger.peak == 17 * 8
    assert all(np.shares_memory(view, parameters.flat) for view in parameters.values())


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_initializers_draw_what_they_say(dtype: str) -> None:
    out = np.full((200, 100), np.nan, dtype)
    size = out.size
    Constant(0.5)(out, Key(0))
    assert (out == 0.5).all()
    Normal(0.3)(out, Key(0))
    # Six standard deviations of the mean and of the standard deviation of independent draws.
    assert abs(out.mean()) < 6 * 0.3 / np.sqrt(size)
    assert abs(out.std() - 0.3) < 6 * 0.3 / np.sqrt(2 * size)
    Uniform(0.3)(out, Key(0))
    assert abs(out.mean()) < 6 * 0.3 / np.sqrt(3 * size)
    assert -0.3 <= out.min() < -0.299
    assert 0.299 < out.max() <= 0.3


def test_the_hash_is_that_of_the_little_endian_bytes_whatever_the_order_in_memory() -> None:
    values = [1.5, -2.0, 3.25]
    expected = hashlib.sha256(np.array(values, "<f4").tobytes()).hexdigest()
    for dtype in ("<f4", ">f4"):
        assert sha256_of(np.array(values, dtype)) == expected
    assert sha256_of(np.repeat(np.array(values, "<f4"), 2)[::2]) == expected
    parameters = Parameters(layout_of((3,)), np.array(values, np.float32))
    assert parameters.sha256() == expected
    parameters["layer0.weight"][0] = 0
    assert parameters.sha256() != expected


@pytest.mark.parametrize("shape", [(400, 50), (300, 8, 3, 3), (900, 500)])
def test_he_keeps_the_mean_square_of_what_passes_a_relu(shape: tuple[int, ...]) -> None:
    weight = np.empty(shape)
    HeNormal()(weight, Key(1))
    x = np.maximum(np.random.default_rng(0).standard_normal((2000, weight[0].size)), 0)
    y = x @ weight.reshape(len(weight), -1).T
    # The mean square of x is 1/2, that of max(y, 0) half of y's.
    assert np.square(np.maximum(y, 0)).mean() == pytest.approx(0.5, rel=0.1)
    assert abs(weight.mean()) < 5 * weight.std() / np.sqrt(weight.size)
