"""Derivatives of NumPy code, layers and their VJPs, losses, optimizers, data, and the ledger that counts every byte."""

from framework.data import ArrayDataset, ByteText, Dataset, EpochOrder
from framework.differentiation import (
    DifferentiationError,
    check_grads,
    custom_rule,
    gauss_newton_vp,
    grad,
    hessian,
    hvp,
    jacobian,
    jacobian_operator,
    jvp,
    linearize,
    stop_gradient,
    value_and_grad,
    vjp,
)
from framework.keys import Key
from framework.layers import (
    GELU,
    CausalAttention,
    Chain,
    Dropout,
    Embedding,
    Layer,
    LayerNorm,
    Linear,
    ReLU,
    Residual,
    Spec,
)
from framework.losses import CrossEntropy, Loss, MeanSquaredError
from framework.memory import BudgetExceeded, Ledger
from framework.models import Model, build
from framework.optimizers import SGD, AdamW, Optimizer
from framework.parameters import Parameters
from framework.schedules import WarmupCosine
from framework.sizes import format_size, parse_size

__all__ = [
    "GELU",
    "SGD",
    "AdamW",
    "ArrayDataset",
    "BudgetExceeded",
    "ByteText",
    "CausalAttention",
    "Chain",
    "CrossEntropy",
    "Dataset",
    "DifferentiationError",
    "Dropout",
    "Embedding",
    "EpochOrder",
    "Key",
    "Layer",
    "LayerNorm",
    "Ledger",
    "Linear",
    "Loss",
    "MeanSquaredError",
    "Model",
    "Optimizer",
    "Parameters",
    "ReLU",
    "Residual",
    "Spec",
    "WarmupCosine",
    "build",
    "check_grads",
    "custom_rule",
    "format_size",
    "gauss_newton_vp",
    "grad",
    "hessian",
    "hvp",
    "jacobian",
    "jacobian_operator",
    "jvp",
    "linearize",
    "parse_size",
    "stop_gradient",
    "value_and_grad",
    "vjp",
]
