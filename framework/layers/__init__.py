"""Layers: what trains. One family a file; the contract is in `layer`."""

from framework.layers.activations import GELU, Mish, Sigmoid, SiLU, Softplus, Tanh
from framework.layers.attention import Attention, CausalAttention
from framework.layers.batch_norm import BatchNorm
from framework.layers.chain import Add, Chain, Composite, Residual, advance_state, flatten
from framework.layers.concat import Concat, Join
from framework.layers.convolution import Conv2d, Upsample2d
from framework.layers.dropout import Dropout
from framework.layers.embedding import Embedding
from framework.layers.group_norm import GroupNorm
from framework.layers.layer import Context, Extent, Footprint, Layer, Spec
from framework.layers.linear import Linear
from framework.layers.lstm import LSTM, LSTMOutput
from framework.layers.lstm_chunk import LSTMChunk
from framework.layers.normalization import LayerNorm, RMSNorm
from framework.layers.pooling import AveragePool2d, GlobalAveragePool, MaxPool2d
from framework.layers.rectifiers import ELU, Hardswish, Hardtanh, LeakyReLU, ReLU
from framework.layers.shapes import Flatten, Reshape
from framework.layers.shared import Shared
from framework.layers.sharing import Adding
from framework.layers.softmax import LogSoftmax, Softmax
from framework.layers.steps import BATCH, Step, input_specs, layout_of

__all__ = [
    "BATCH",
    "ELU",
    "GELU",
    "LSTM",
    "Add",
    "Adding",
    "Attention",
    "AveragePool2d",
    "BatchNorm",
    "CausalAttention",
    "Chain",
    "Composite",
    "Concat",
    "Context",
    "Conv2d",
    "Dropout",
    "Embedding",
    "Extent",
    "Flatten",
    "Footprint",
    "GlobalAveragePool",
    "GroupNorm",
    "Hardswish",
    "Hardtanh",
    "Join",
    "LSTMChunk",
    "LSTMOutput",
    "Layer",
    "LayerNorm",
    "LeakyReLU",
    "Linear",
    "LogSoftmax",
    "MaxPool2d",
    "Mish",
    "RMSNorm",
    "ReLU",
    "Reshape",
    "Residual",
    "Shared",
    "SiLU",
    "Sigmoid",
    "Softmax",
    "Softplus",
    "Spec",
    "Step",
    "Tanh",
    "Upsample2d",
    "advance_state",
    "flatten",
    "input_specs",
    "layout_of",
]
