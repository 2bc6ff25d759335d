"""Models that take their sizes from the data."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest

from framework import ArrayDataset, CrossEntropy, Key, MeanSquaredError, Model, Parameters, Spec, build
from framework.architectures import lenet, resnet, unet
from framework.data import clusters, pictures
from framework.layers import BatchNorm, Chain, Context, Conv2d, Layer, flatten, input_specs
from framework.memory import Ledger


def arrays(shape: tuple[int, ...], targets: Any, size: int = 20) -> ArrayDataset:
    return ArrayDataset(
        np.ones((size, *shape), np.float32), np.broadcast_to(targets, (size, *np.shape(targets))).copy()
    )


def output(chain: Chain, x: Spec) -> Spec:
    steps = flatten(chain)
    return steps[-1].layer.footprint(input_specs(steps, x)[-1]).output


DATA: dict[str, tuple[str, ArrayDataset, tuple[int, ...], Any]] = {
    "classes": ("mlp-small", clusters(100, 7, 3), (3,), CrossEntropy()),
    "declared classes": ("mlp-small", ArrayDataset(np.ones((9, 2)), np.zeros(9, int), classes=5), (5,), CrossEntropy()),
    "a number": ("mlp-deep", arrays((4,), np.ones(1, np.float32)), (1,), MeanSquaredError()),
    "numbers": ("mlp-small", arrays((4,), np.ones(6, np.float32)), (6,), MeanSquaredError()),
    "images": ("lenet", pictures(50, (3, 12, 8), 4), (4,), CrossEntropy()),
    "numbers from images": ("resnet-small", arrays((2, 9, 9), np.ones(2, np.float32)), (2,), MeanSquaredError()),
    "images from images": ("unet", arrays((3, 8, 8), np.ones((3, 8, 8), np.float32)), (3, 8, 8), MeanSquaredError()),
}


@pytest.mark.parametrize("name", DATA)
def test_a_model_has_as_many_outputs_as_the_data_ask_for_and_their_loss(name: str) -> None:
    model, data, shape, loss = DATA[name]
    fitted = build(model).fitted(data)
    x = Spec((2, *data.inputs.shape), data.inputs.dtype)
    found = output(fitted.chain, x)
    assert found == Spec((2, *shape), x.dtype)
    assert fitted.loss == loss
    fitted.loss.footprint(found, Spec((2, *data.targets.shape), data.targets.dtype))  # refuses what does not fit
    again = build(**fitted.arguments)
    assert again.chain.layout(x).specs == fitted.chain.layout(x).specs
    assert (again.loss, again.name) == (loss, model)
    assert pickle.loads(pickle.dumps(fitted)).chain.layout(x).size == fitted.chain.layout(x).size


def test_dropout_and_dtype_stay_when_a_model_is_fitted() -> None:
    fitted = build("lenet", "float64", dropout=0.3).fitted(pictures(50, (1, 8, 8), 4, "float64"))
    assert [step.path for step in flatten(fitted.chain)][-2:] == ["dropout", "head"]
    assert fitted.arguments == {"name": "lenet", "dtype": "float64", "dropout": 0.3, "outputs": 4, "regression": False}
    assert fitted.dataset(()).inputs.dtype == "float64"


def test_a_model_of_fixed_sizes_is_fitted_as_it_is() -> None:
    model = build("byte-gpt-tiny")
    assert model.fitted(clusters(100, 7, 3)) is model
    with pytest.raises(ValueError, match="'byte-gpt-tiny' has outputs of its own, so their number cannot be 3"):
        build("byte-gpt-tiny", outputs=3)


class Undeclared:
    """A set of one's own that does not tell its classes."""

    inputs, targets = Spec.of((4,), "float32"), Spec.of((), "int64")


def test_data_that_do_not_tell_their_outputs_are_an_error() -> None:
    with pytest.raises(ValueError, match=r"Undeclared has whole numbers as targets.*attribute `classes`"):
        build("mlp-small").fitted(Undeclared())  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"targets of shape \(n,\); give them another axis: targets\[:, None\]"):
        build("mlp-small").fitted(arrays((4,), np.float32(1)))


@pytest.mark.parametrize("size", [(4, 4), (8, 8), (9, 13), (28, 28), (32, 32)])
def test_images_of_many_sizes_fit(size: tuple[int, int]) -> None:
    x = Spec.of((2, 1, *size), "float32")
    assert output(lenet(7, 0.1), x).shape == (2, 7)
    assert output(resnet(7, 0.1, (4, 8, 16), 1), x).shape == (2, 7)


@pytest.mark.parametrize("widths", [(3,), (3, 4), (3, 4, 5), (2, 3, 4, 5)])
def test_a_unet_gives_an_image_of_the_size_it_takes(widths: tuple[int, ...]) -> None:
    levels = len(widths) - 1
    x = Spec.of((2, 2, 2**levels * 3, 2**levels), "float32")
    chain = unet(5, 0.2, widths)
    assert output(chain, x) == Spec.of((2, 5, *x.shape[2:]), "float32")
    joins = [step.path for step in flatten(chain) if step.path.endswith("join")]
    assert joins == [".".join(["level"] * depth) + ".join" for depth in range(levels, 0, -1)]


def test_a_unet_sees_beyond_a_window_of_its_convolutions() -> None:
    chain, x = unet(1, 0.0, (4, 4, 4)), np.zeros((1, 1, 32, 32))
    parameters = Parameters.initialize(chain.layout(Spec.of(x.shape, x.dtype)), Key(0))
    moved = x.copy()
    moved[0, 0, 0, 0] = 10
    before, after = (chain.apply(dict(parameters), a, Context(Ledger(), training=False)) for a in (x, moved))
    reached = np.argwhere((before != after)[0, 0]).max()
    # Ten 3x3 convolutions reach 2 + 4 + 2 pixels at full, half and quarter resolution; those of full resolution alone reach 4.
    assert 8 <= reached < 32


def test_a_resnet_halves_the_image_where_it_widens_with_a_shortcut_there_alone() -> None:
    chain, x = resnet(10, 0.0, (4, 8, 16), 2), Spec.of((2, 3, 16, 16), "float32")
    steps = flatten(chain)
    outputs = {
        step.path: step.layer.footprint(spec).output.shape[1:]
        for step, spec in zip(steps, input_specs(steps, x), strict=True)
    }
    assert [outputs[f"block{i}.act"] for i in range(6)] == [(4, 16, 16)] * 2 + [(8, 8, 8)] * 2 + [(16, 4, 4)] * 2
    assert [name for name in outputs if name.endswith("shortcut.conv")] == [
        "block2.residual.shortcut.conv", "block4.residual.shortcut.conv",
    ]  # fmt: skip
    convolutions = [step.path for step in steps if isinstance(step.layer, Conv2d)]
    norms = [step.path for step in steps if isinstance(step.layer, BatchNorm)]
    assert [name.replace("conv", "norm") for name in convolutions] == norms
    assert [step.stage for step in steps][-1] == 8  # the stem, six blocks, the pool, the head: each a stage of policies


def test_without_a_model_of_a_name_there_is_nothing_to_build_again() -> None:
    def make(outputs: int, loss: Any) -> Model:
        return Model("own", Chain(head=layer(outputs)), loss, lambda paths: clusters(100, 7, 3))

    def layer(outputs: int) -> Layer:
        return Conv2d(outputs, 1)

    own = Model("own", Chain(head=layer(10)), CrossEntropy(), lambda paths: clusters(100, 7, 3), resize=make)
    fitted = own.fitted(clusters(100, 7, 3))
    assert fitted.arguments == {}
    assert fitted.chain.layers["head"] == Conv2d(3, 1)
