"""PyTorch as judge of the named models: losses, gradients and 50 training steps of twins with the same weights, in float64."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest

from checkpointing import Engine, parse_policy, run_plans, value_and_grad
from framework import AdamW, CrossEntropy, Key, Model, Parameters, Spec, WarmupCosine, build
from framework.layers import (
    GELU,
    AveragePool2d,
    BatchNorm,
    Chain,
    Conv2d,
    Flatten,
    GlobalAveragePool,
    Linear,
    MaxPool2d,
    ReLU,
    Residual,
)
from framework.memory import Array

pytestmark = pytest.mark.peers

EXAMPLES = {
    "mlp-small": 16,
    "mlp-deep": 8,
    "lenet": 8,
    "resnet-small": 4,
    "unet": 4,
    "byte-gpt-tiny": 4,
    "byte-gpt-small": 2,
    "byte-gpt-tiny-tied": 4,
    "byte-gpt-small-tied": 1,
    "byte-lstm-small": 2,
}


@pytest.fixture(scope="module")
def peer() -> Any:
    """The module of twins, with one thread as ours has."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of an import that is not ours
        torch = pytest.importorskip("torch")
        from scripts.benchmarks import pytorch_models
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield pytorch_models
    torch.set_num_threads(before)


def batch(model: Model, examples: int) -> tuple[Array, Array]:
    """Examples of the model's own data."""
    data = model.dataset(())
    x, targets = (np.empty((examples, *spec.shape), spec.dtype) for spec in (data.inputs, data.targets))
    data.load("train", range(examples), x, targets)
    return x, targets


def moved_parameters(model: Model, x: Array) -> Parameters:
    """Parameters all away from where they start, so that a bias of zero or a scale of one hides no mistake."""
    parameters = Parameters.initialize(model.chain.layout(Spec.of(x.shape, x.dtype)), Key(3))
    parameters.flat += 0.1 * Key(3).fold("moved").generator().standard_normal(parameters.flat.size)
    return parameters


@pytest.mark.parametrize("name", EXAMPLES)
def test_loss_and_gradients_are_those_of_the_twin(peer: Any, name: str) -> None:
    model = build(name, "float64")
    require_equal(peer, model, *batch(model, EXAMPLES[name]))


def test_loss_and_gradients_of_an_image_model_are_those_of_the_twin(peer: Any) -> None:
    """Convolutions with strides and groups, BatchNorm, both pools over windows, and residuals with and without a shortcut."""
    inner = Chain(conv1=Conv2d(8, 3, 2, padding=1), act=ReLU(), conv2=Conv2d(8, 3, padding=1, groups=2, bias=False))
    chain = Chain(
        stem=Conv2d(4, 3, padding=1, bias=False),
        norm=BatchNorm(momentum=0.3),
        act=ReLU(),
        pool=MaxPool2d(3, 2, padding=1),
        changed=Residual(inner, Conv2d(8, 1, 2)),
        same=Residual(Conv2d(8, 3, padding=2, dilation=2)),
        average=AveragePool2d(2),
        branch=Residual(Chain(GELU())),
        whole=GlobalAveragePool(),
        flat=Flatten(),
        head=Linear(5),
    )
    generator = Key(7).generator()
    x, targets = generator.standard_normal((6, 3, 16, 16)), generator.integers(5, size=6)
    require_equal(peer, Model("images", chain, CrossEntropy(), no_data), x, targets)


def no_data(paths: Any) -> Any:
    raise AssertionError("the test gives its own")


def require_equal(peer: Any, model: Model, x: Array, targets: Array) -> None:
    """Compares loss, gradients and running statistics with the twin's, in float64."""
    parameters = moved_parameters(model, x)
    loss, gradient = value_and_grad(model.chain, model.loss)(parameters, x, targets)

    module = peer.twin(model, Spec.of(x.shape, x.dtype))
    peer.load_parameters(module, parameters)
    theirs = peer.mean_loss(module, *peer.tensors(x, targets))
    theirs.backward()
    found = peer.gradients(module)

    assert [*found] == [*gradient]
    assert loss == pytest.approx(theirs.item(), rel=1e-10, abs=0)
    for key, expected in found.items():
        off = np.linalg.norm(gradient[key] - expected) / np.linalg.norm(expected)
        assert off <= 1e-10, (key, off)
    for key, kept in (parameters.state or {}).items():
        np.testing.assert_allclose(kept, module.get_buffer(key).numpy(), rtol=1e-10, atol=1e-14, err_msg=key)


def test_fifty_steps_of_adamw_follow_the_twin(peer: Any) -> None:
    """With the learning rates of a schedule, weight decay, and clipping that takes hold."""
    steps, clip, optimizer = 50, 2.5, AdamW(weight_decay=0.1)
    rates = WarmupCosine(3e-3, steps, warmup=5)
    model = build("byte-gpt-tiny", "float64")
    examples, length = 2, 32
    texts = [batch(model, steps * examples)[side][:, :length] for side in (0, 1)]

    specs = [Spec.of((examples, length), text.dtype) for text in texts]
    plan = run_plans(model.chain, model.loss, *specs, optimizer, policy=parse_policy("sqrt-n"), validate=False).train[0]
    layout = model.chain.layout(specs[0])
    engine = Engine(model.chain, model.loss, layout, optimizer, clip=clip, block=True)
    module = peer.twin(model, specs[0])
    peer.load_parameters(module, engine.parameters)
    theirs = peer.optimizer_of(module, optimizer)

    losses, norms = [], []
    for step in range(steps):
        x, targets = (text[step * examples : (step + 1) * examples] for text in texts)

        def load(shard: int, into_x: Array, into_targets: Array, x: Array = x, targets: Array = targets) -> None:
            into_x[...], into_targets[...] = x, targets

        outcome = engine.train_step(plan, load, step, rates(step))
        expected = peer.train_step(module, theirs, *peer.tensors(x, targets), rates(step), clip).item()
        losses.append((outcome.loss, expected))
        norms.append(outcome.gradient_norm)

    ours, others = np.array(losses).T
    np.testing.assert_allclose(ours, others, rtol=1e-8, atol=0)
    assert ours[-1] < ours[0] - 1  # it has learned, so there was something to follow
    assert min(norms) < clip < max(norms)  # some gradients are clipped, some not
