"""PyTorch as judge of activations, norms, losses and optimizers: values and VJPs in float64, with every option."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from framework import (
    ELU,
    GELU,
    L1,
    SGD,
    AdamW,
    BinaryCrossEntropy,
    Chain,
    CrossEntropy,
    Hardswish,
    Hardtanh,
    Huber,
    Key,
    Layer,
    LayerNorm,
    LeakyReLU,
    Ledger,
    Linear,
    LogSoftmax,
    Loss,
    MeanSquaredError,
    Mish,
    Optimizer,
    ReLU,
    RMSNorm,
    Sigmoid,
    SiLU,
    Softmax,
    Softplus,
    Spec,
    Tanh,
)
from framework.layers import Context

pytestmark = pytest.mark.peers

torch = pytest.importorskip("torch")
F = torch.nn.functional

RELATIVE = 1e-9
#: Zeros are reached by cancelling numbers of order 1, in another order here than there.
ABSOLUTE = 1e-14
#: Our layer, and PyTorch's function of x and, where it has any, of weight and bias.
LAYERS: dict[str, tuple[Layer, Callable[..., Any]]] = {
    "relu": (ReLU(), F.relu),
    "leaky relu": (LeakyReLU(), F.leaky_relu),
    "leaky relu of slope 0.3": (LeakyReLU(0.3), lambda x: F.leaky_relu(x, 0.3)),
    "leaky relu of slope 2": (LeakyReLU(2.0), lambda x: F.leaky_relu(x, 2.0)),
    "gelu with tanh": (GELU(), lambda x: F.gelu(x, approximate="tanh")),
    "gelu": (GELU(approximate=False), F.gelu),
    "silu": (SiLU(), F.silu),
    "elu": (ELU(), F.elu),
    "elu of alpha 0.3": (ELU(0.3), lambda x: F.elu(x, 0.3)),
    "hardtanh": (Hardtanh(-0.5, 2.0), lambda x: F.hardtanh(x, -0.5, 2.0)),
    "relu6": (Hardtanh(0.0, 6.0), F.relu6),
    "hardswish": (Hardswish(), F.hardswish),
    "mish": (Mish(), F.mish),
    "tanh": (Tanh(), torch.tanh),
    "sigmoid": (Sigmoid(), torch.sigmoid),
    "softplus": (Softplus(), F.softplus),
    "softplus of beta 3": (Softplus(3.0), lambda x: F.softplus(x, 3.0)),
    "softplus of threshold 1": (Softplus(0.7, 1.0), lambda x: F.softplus(x, 0.7, 1.0)),
    "softplus of threshold 30": (Softplus(threshold=30.0), lambda x: F.softplus(x, threshold=30.0)),
    "softplus of threshold -1": (Softplus(2.0, -1.0), lambda x: F.softplus(x, 2.0, -1.0)),
    "softmax": (Softmax(), lambda x: F.softmax(x, -1)),
    "log-softmax": (LogSoftmax(), lambda x: F.log_softmax(x, -1)),
    "layer norm": (LayerNorm(1e-3), lambda x, w, b: F.layer_norm(x, x.shape[-1:], w, b, 1e-3)),
    "rms norm": (RMSNorm(), lambda x, w: F.rms_norm(x, x.shape[-1:], w, 1e-5)),
    "rms norm of epsilon 0.1": (RMSNorm(0.1), lambda x, w: F.rms_norm(x, x.shape[-1:], w, 0.1)),
}
#: Shapes of several axes, of one, of size 1, of no rows, and of several blocks.
SHAPES = [(3, 4, 5), (7,), (4, 1), (0, 3), (300, 70)]
#: Our loss, and PyTorch's of outputs and targets for one reduction.
LOSSES: dict[str, tuple[Loss, Callable[..., Any]]] = {
    "cross-entropy": (CrossEntropy(), F.cross_entropy),
    "smoothed": (CrossEntropy(label_smoothing=0.1), lambda y, t, **o: F.cross_entropy(y, t, label_smoothing=0.1, **o)),
    "ignoring": (CrossEntropy(ignore=-100), F.cross_entropy),
    "smoothed and ignoring a class": (
        CrossEntropy(0.3, ignore=2),
        lambda y, t, **o: F.cross_entropy(y, t, label_smoothing=0.3, ignore_index=2, **o),
    ),
    "all smoothed": (CrossEntropy(1.0), lambda y, t, **o: F.cross_entropy(y, t, label_smoothing=1.0, **o)),
    "mean squared error": (MeanSquaredError(), F.mse_loss),
    "l1": (L1(), F.l1_loss),
    "huber": (Huber(), F.huber_loss),
    "huber of delta 0.3": (Huber(0.3), lambda y, t, **o: F.huber_loss(y, t, delta=0.3, **o)),
    "binary cross-entropy": (BinaryCrossEntropy(), F.binary_cross_entropy_with_logits),
}


def tensor(a: Any) -> Any:
    return torch.from_numpy(np.array(a)).requires_grad_(np.asarray(a).dtype.kind == "f")


def assert_same(found: Any, expected: Any, absolute: float = ABSOLUTE) -> None:
    np.testing.assert_allclose(found, expected.detach().numpy(), rtol=RELATIVE, atol=absolute)


@pytest.mark.parametrize("scale", [1.0, 30.0])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", LAYERS)
def test_values_and_vjps_of_layers_are_pytorchs(name: str, shape: tuple[int, ...], scale: float) -> None:
    layer, theirs = LAYERS[name]
    generator, spec = Key(1).fold(name).generator(), Spec.of(shape, "float64")
    x, cotangent = scale * generator.standard_normal(shape), generator.standard_normal(shape)
    params = {n: generator.standard_normal(p.shape) for n, p in layer.parameters(spec).items()}
    grads = {n: np.full_like(p, np.nan) for n, p in params.items()}
    y, own = layer.forward(params, x, Context(Ledger()))
    back = layer.vjp(params, x, y, own, cotangent, grads, Context(Ledger()))
    given = [tensor(a) for a in (x, *params.values())]
    out = theirs(*given)
    out.backward(torch.from_numpy(cotangent))
    assert_same(y, out)
    for found, tensor_ in zip((back, *grads.values()), given, strict=True):
        # A row of one number is normalized to 0, and what PyTorch leaves there instead grows with the number.
        assert_same(found, tensor_.grad, ABSOLUTE * scale**2)


@pytest.mark.parametrize("shape", [(6, 5), (3, 4, 5), (2, 3000, 5)], ids=str)
@pytest.mark.parametrize("name", LOSSES)
def test_sums_means_and_vjps_of_losses_are_pytorchs(name: str, shape: tuple[int, ...]) -> None:
    loss, theirs = LOSSES[name]
    generator = Key(2).fold(name).generator()
    y = 3 * generator.standard_normal(shape)
    rows: tuple[int, ...] = (-1, shape[-1])
    if isinstance(loss, CrossEntropy):
        targets = generator.integers(0, shape[-1], shape[:-1])
        if loss.ignore is not None:
            targets.reshape(-1)[1::3] = loss.ignore
        rows = (-1,)
    else:
        targets = generator.random(shape)
    total, count, own = loss.forward(y, targets, None, Context(Ledger()))
    given = tensor(y)
    flat = given.reshape(-1, shape[-1]), torch.from_numpy(targets).reshape(rows)
    summed = theirs(*flat, reduction="sum")
    summed.backward()
    assert_same(total, summed)
    assert_same(total / count, theirs(*flat, reduction="mean"))
    assert_same(loss.vjp(y, targets, None, own, Context(Ledger())), given.grad)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (SGD(momentum=0.9, weight_decay=0.1, nesterov=True), ("SGD", {"momentum": 0.9, "nesterov": True})),
        (SGD(momentum=0.9, weight_decay=0.1), ("SGD", {"momentum": 0.9})),
        (AdamW(0.9, 0.99, 1e-6, 0.1), ("AdamW", {"betas": (0.9, 0.99), "eps": 1e-6})),
    ],
    ids=["nesterov", "momentum", "adamw"],
)
def test_optimizers_that_decay_matrices_alone_are_pytorchs_with_two_groups(
    ours: Optimizer, theirs: tuple[str, dict[str, Any]]
) -> None:
    layout = Chain(Linear(4), LayerNorm(), Linear(3)).layout(Spec.of((1, 5), "float64"))
    generator = Key(3).generator()
    flat, gradients = generator.standard_normal(layout.size), generator.standard_normal((5, layout.size))
    tensors = {name: torch.from_numpy(view.copy()) for name, view in layout.views(flat).items()}
    groups = [
        {"params": [t for t in tensors.values() if (t.ndim >= 2) == decays], "weight_decay": 0.1 if decays else 0.0}
        for decays in (True, False)
    ]
    kind, options = theirs
    judge = getattr(torch.optim, kind)(groups, lr=0.05, **options)
    optimizer = type(ours)(**{**vars(ours), "decays": layout.select(least_axes=2)})
    state = optimizer.initialize(layout)
    for step, gradient in enumerate(gradients):
        for name, view in layout.views(gradient).items():
            tensors[name].grad = torch.from_numpy(view.copy())
        judge.step()
        optimizer.update(flat, gradient, state, step=step, learning_rate=0.05)
    for name, view in layout.views(flat).items():
        np.testing.assert_allclose(view, tensors[name].numpy(), rtol=1e-12, atol=1e-14)
