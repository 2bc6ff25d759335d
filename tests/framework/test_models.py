"""Models by name, and one's own."""

from __future__ import annotations

import pickle
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from framework import (
    GELU,
    LSTM,
    ArrayDataset,
    ByteText,
    CausalAttention,
    CrossEntropy,
    Dropout,
    Embedding,
    Key,
    Layer,
    LayerNorm,
    Linear,
    MeanSquaredError,
    Model,
    Parameters,
    ReLU,
    Spec,
    build,
)
from framework.layers import Add, flatten, input_specs
from framework.models import MODELS
from framework.parameters import HeNormal

BATCHES = {
    "mlp-small": Spec.of((4, 64), "float32"),
    "mlp-deep": Spec.of((4, 64), "float32"),
    "lenet": Spec.of((4, 1, 16, 16), "float32"),
    "resnet-small": Spec.of((4, 3, 32, 32), "float32"),
    "unet": Spec.of((4, 1, 16, 16), "float32"),
    "byte-gpt-tiny": Spec.of((2, 128), "uint8"),
    "byte-gpt-small": Spec.of((2, 256), "uint8"),
    "byte-gpt-medium": Spec.of((2, 512), "uint8"),
    "byte-gpt-large": Spec.of((2, 1024), "uint8"),
    "byte-gpt-tiny-tied": Spec.of((2, 128), "uint8"),
    "byte-gpt-small-tied": Spec.of((2, 256), "uint8"),
    "byte-lstm-small": Spec.of((2, 128), "uint8"),
}


def batch_of(name: str, dtype: str) -> Spec:
    spec = BATCHES[name]
    return spec if spec.dtype.kind == "u" else Spec.of(spec.shape, dtype)


def gpt_size(layers: int, features: int, window: int) -> int:
    """Tables, for each block two norms, four attention and eight MLP matrices with biases, the last norm, the head."""
    block = 2 * 2 * features + (4 * features**2 + 4 * features) + (8 * features**2 + 5 * features)
    return (256 + window) * features + layers * block + 2 * features + 256 * features


def resnet_size(channels: int, widths: tuple[int, ...], blocks: int) -> int:
    """The stem, two convolutions a block, one of a pixel where the width changes, each with a norm, and the head."""
    size = 9 * channels * widths[0] + 2 * widths[0]
    for before, width in zip((widths[0], *widths), widths, strict=False):
        size += 9 * before * width + (2 * blocks - 1) * 9 * width**2 + 2 * blocks * 2 * width
        size += (before * width + 2 * width) * (before != width)
    return size + widths[-1] * 10 + 10


def unet_size(channels: int, widths: tuple[int, ...]) -> int:
    """Two convolutions on the way down of each level, two on the way up of all but the lowest, and one of a pixel."""
    down = sum(9 * (a + b) * b + 2 * b for a, b in zip((channels, *widths), widths, strict=False))
    up = sum(9 * (2 * a + b) * a + 2 * a for a, b in pairwise(widths))
    return down + up + widths[0] * channels + channels


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("byte-gpt-tiny", 875_264),
        ("byte-gpt-small", 4_935_680),
        ("byte-gpt-medium", gpt_size(12, 512, 512)),
        ("byte-gpt-large", gpt_size(24, 1024, 1024)),
        ("byte-gpt-tiny-tied", 875_264 - 256 * 128),
        ("byte-gpt-small-tied", 4_935_680 - 256 * 256),
        ("byte-lstm-small", 256 * 128 + 1024 * (128 + 256 + 1) + 1024 * (256 + 256 + 1) + 256 * 257),
        ("mlp-small", 64 * 256 + 256 + 256 * 256 + 256 + 256 * 10 + 10),
        ("mlp-deep", 64 * 512 + 512 + 7 * (512 * 512 + 512) + 512 * 10 + 10),
        ("lenet", 25 * 16 + 16 + 25 * 16 * 32 + 32 + 512 * 120 + 120 + 120 * 84 + 84 + 84 * 10 + 10),
        ("resnet-small", resnet_size(3, (16, 32, 64), 2)),
        ("unet", unet_size(1, (16, 32, 64))),
    ],
)
def test_a_model_has_the_number_of_parameters_of_its_formula(name: str, size: int) -> None:
    assert build(name).chain.layout(batch_of(name, "float32")).size == size
    if name in ("byte-gpt-tiny", "byte-gpt-small"):
        assert size == (gpt_size(4, 128, 128) if name == "byte-gpt-tiny" else gpt_size(6, 256, 256))


@pytest.mark.parametrize("name", ["byte-gpt-tiny", "byte-gpt-small"])
def test_a_tied_byte_gpt_differs_from_its_like_in_the_heads_weight_alone(name: str) -> None:
    plain, tied = (build(each).chain for each in (name, f"{name}-tied"))
    assert [step.path for step in flatten(tied)] == [step.path for step in flatten(plain)]
    layouts = [chain.layout(BATCHES[name]) for chain in (plain, tied)]
    assert layouts[1].specs == {n: spec for n, spec in layouts[0].specs.items() if n != "head.weight"}
    assert layouts[1].aliases == {"head.weight": "embedding.token"}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", MODELS)
def test_the_dtype_reaches_every_parameter_and_the_output(name: str, dtype: str) -> None:
    model, batch = build(name, dtype), batch_of(name, dtype)
    assert model.name == name
    assert model.chain.layout(batch).dtype == dtype
    steps = flatten(model.chain)
    output = steps[-1].layer.footprint(input_specs(steps, batch)[-1]).output
    assert output.dtype == dtype
    shapes = {"uint8": (*batch.shape, 256), dtype: batch.shape if name == "unet" else (4, 10)}
    assert output.shape == shapes[batch.dtype.name]
    data = model.dataset(())
    targets = Spec((output.shape[0], *data.targets.shape), data.targets.dtype)
    assert all(own.dtype == dtype for own in model.loss.footprint(output, targets).own)


def kinds(dropout: float) -> list[tuple[str, Layer]]:
    drop = [("dropout", Dropout(dropout))] if dropout else []
    small, branch = 0.02, 0.02 / np.sqrt(8)
    attention = [("norm", LayerNorm()), ("qkv", Linear(384)), ("mix", CausalAttention(4)), ("out", Linear(128)), *drop]
    mlp = [("norm", LayerNorm()), ("up", Linear(512)), ("act", GELU()), ("down", Linear(128)), *drop]
    assert branch < small
    return [
        *((f"attention.{name}", layer) for name, layer in [*attention, ("add", Add())]),
        *((f"mlp.{name}", layer) for name, layer in [*mlp, ("add", Add())]),
    ]


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_a_byte_gpt_is_an_embedding_pre_norm_blocks_a_norm_and_a_head(dropout: float) -> None:
    steps = flatten(build("byte-gpt-tiny", dropout=dropout).chain)
    blocks = [(f"block{i}.{name}", layer) for i in range(4) for name, layer in kinds(dropout)]
    expected = [
        ("embedding", Embedding(256, 128, 128)),
        *blocks,
        ("norm", LayerNorm()),
        ("head", Linear(256, bias=False)),
    ]

    def shape(layer: Layer) -> Layer:
        """The layer without its initializer."""
        return Linear(layer.features, layer.bias) if isinstance(layer, Linear) else layer

    assert [step.path for step in steps] == [name for name, _ in expected]
    for step, (name, layer) in zip(steps, expected, strict=True):
        if not isinstance(layer, Add):
            assert shape(step.layer) == layer, name
    assert [step.stage for step in steps] == [0, *(1 + i for i in range(4) for _ in kinds(dropout)), 5, 6]


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_a_byte_lstm_is_an_embedding_without_positions_lstms_and_a_head(dropout: float) -> None:
    chain = build("byte-lstm-small", dropout=dropout).chain
    drop = [Dropout(dropout)] if dropout else []
    first, *rest = chain
    assert isinstance(first, Embedding)
    assert (first.vocabulary, first.positions, first.features) == (256, None, 128)
    assert rest == [LSTM(256), *drop, LSTM(256), *drop, Linear(256)]
    assert [*chain.layers] == [
        "embedding",
        "lstm0",
        *["dropout0"] * len(drop),
        "lstm1",
        *["dropout1"] * len(drop),
        "head",
    ]
    assert flatten(chain)[-1].stage == 1 + 2 * (8 + len(drop))


def test_weights_that_write_into_the_residual_stream_start_smaller() -> None:
    model = build("byte-gpt-tiny")
    parameters = Parameters.initialize(model.chain.layout(BATCHES["byte-gpt-tiny"]), Key(0))
    for name, view in parameters.items():
        local = name.rpartition(".")[2]
        if local == "bias":
            assert not view.any(), name
        elif "norm" in name:
            assert (view == 1).all(), name
        else:
            std = 0.02 / np.sqrt(8) if name.endswith(("out.weight", "down.weight")) else 0.02
            # Six standard deviations of the standard deviation of independent draws.
            assert abs(view.std() / std - 1) < 6 / np.sqrt(2 * view.size), name


@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_a_small_mlp_has_dropout_after_each_relu(dropout: float) -> None:
    layers = [step.layer for step in flatten(build("mlp-small", dropout=dropout).chain)]
    hidden = [Linear(256, initializer=HeNormal()), ReLU(), *([Dropout(dropout)] if dropout else [])]
    assert layers == [*hidden, *hidden, Linear(10)]


@pytest.mark.parametrize("name", ["gpt", "mlp_small", ""])
def test_an_unknown_model_is_an_error_that_lists_the_known(name: str) -> None:
    with pytest.raises(
        ValueError, match=r"unknown model.*mlp-small, .*, byte-gpt-tiny, byte-gpt-small.*package.module:build"
    ):
        build(name)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"dtype": "float16"}, "float16.*float32, float64"), ({"dropout": 1.0}, r"\[0, 1\)"), ({"dropout": -0.5}, "-0.5")],
)
def test_an_option_that_no_model_takes_is_an_error(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build("mlp-small", **options)


@pytest.mark.parametrize("name", MODELS)
def test_a_model_can_be_sent_to_another_process(name: str) -> None:
    model = build(name, dropout=0.1)
    copy = pickle.loads(pickle.dumps(model))
    batch = batch_of(name, "float32")
    assert [(s.path, type(s.layer)) for s in flatten(copy.chain)] == [
        (s.path, type(s.layer)) for s in flatten(model.chain)
    ]
    assert copy.chain.layout(batch).slices == model.chain.layout(batch).slices
    assert copy.loss == model.loss == (MeanSquaredError() if name == "unet" else CrossEntropy())


OWN = """
from framework import Chain, CrossEntropy, Dropout, Linear, Model

NUMBER = 3

def plain():
    return Model("plain", Chain(Linear(3)), CrossEntropy(), None)

def full(dtype, dropout):
    return Model(f"{dtype} {dropout}", Chain(Linear(3), Dropout(dropout)), CrossEntropy(), None)

def open(**options):
    return Model(str(sorted(options)), Chain(Linear(3)), CrossEntropy(), None)

def wrong():
    return Linear(3)
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a module of one's own that can be imported for the length of a test."""
    (tmp_path / "models_of_a_test.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(__import__("sys").modules, "models_of_a_test", raising=False)
    return "models_of_a_test"


def test_ones_own_model_is_built_with_the_options_that_it_takes(own: str) -> None:
    assert build(f"{own}:plain").name == "plain"
    assert build(f"{own}:full").name == "float32 0.0"
    assert build(f"{own}:full", "float64", 0.25).name == "float64 0.25"
    assert isinstance(build(f"{own}:plain"), Model)


def test_options_reach_a_builder_that_takes_any(own: str) -> None:
    assert build(f"{own}:open", "float64", 0.25).name == "['dropout', 'dtype']"


@pytest.mark.parametrize(
    ("function", "options", "message"),
    [
        ("plain", {"dropout": 0.1}, "dropout=0.1, but plain takes no 'dropout'"),
        ("plain", {"dtype": "float64"}, "dtype=float64, but plain takes no 'dtype'"),
        ("wrong", {}, "must return a framework.Model.*but gave Linear"),
        ("missing", {}, "cannot be imported.*missing.*PYTHONPATH"),
        ("NUMBER", {}, "NUMBER"),
    ],
)
def test_a_model_of_ones_own_that_does_not_fit_is_a_clear_error(
    own: str, function: str, options: dict, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        build(f"{own}:{function}", **options)


@pytest.mark.parametrize("name", ["no_such_module_of_a_test:build", ":build", ".relative:build"])
def test_a_module_that_cannot_be_imported_is_a_clear_error(name: str) -> None:
    with pytest.raises(ValueError, match=r"(?i)cannot be imported|empty module name"):
        build(name)


def test_a_text_model_reads_the_named_files_in_its_window(tmp_path: Path) -> None:
    (tmp_path / "text").write_bytes(bytes(range(256)) * 20)
    dataset = build("byte-gpt-tiny").dataset([str(tmp_path / "text")])
    assert isinstance(dataset, ByteText)
    assert dataset.inputs == dataset.targets == Spec.of((128,), "uint8")


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_small_mlp_has_a_generated_set(dtype: str) -> None:
    make = build("mlp-small", dtype).dataset
    dataset = make([])
    assert isinstance(dataset, ArrayDataset)
    assert dataset.inputs == Spec.of((64,), dtype)
    assert dataset.size("train") + dataset.size("validation") == 4096
    assert set(dataset.y.tolist()) == set(range(10))
    with pytest.raises(FileNotFoundError, match=r"no data a\.txt.*digits, iris"):
        make(["a.txt"])
