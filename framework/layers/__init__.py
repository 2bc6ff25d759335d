"""Layers: what trains. One family a file; the contract is in `layer`."""

from framework.layers.activations import GELU, ReLU
from framework.layers.attention import CausalAttention
from framework.layers.chain import BATCH, Add, Chain, Composite, Residual, Step, flatten, input_specs
from framework.layers.dropout import Dropout
from framework.layers.embedding import Embedding
from framework.layers.layer import Context, Footprint, Layer, Spec
from framework.layers.linear import Linear
from framework.layers.normalization import LayerNorm

__all__ = [
    "BATCH",
    "GELU",
    "Add",
    "CausalAttention",
    "Chain",
    "Composite",
    "Context",
    "Dropout",
    "Embedding",
    "Footprint",
    "Layer",
    "LayerNorm",
    "Linear",
    "ReLU",
    "Residual",
    "Spec",
    "Step",
    "flatten",
    "input_specs",
]
