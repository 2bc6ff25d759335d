"""Weights pass between PyTorch and us in safetensors files, under the same names."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from checkpointing import predict
from framework import Key, Parameters, Spec, build, weights

pytestmark = pytest.mark.peers

#: All but those that have the layers of others, and take longer.
MODELS = (
    "mlp-small", "mlp-deep", "lenet", "resnet-small", "unet", "byte-gpt-tiny", "byte-gpt-small", "byte-gpt-tiny-tied",
    "byte-gpt-small-tied", "byte-lstm-small",
)  # fmt: skip


class Pair:
    """A model and its twin, both with numbers of their own, and a batch."""

    def __init__(self, name: str) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of an import that is not ours
            self.torch = pytest.importorskip("torch")
            from scripts.benchmarks import pytorch_models as peer
        self.model = build(name, "float64")
        data = self.model.dataset(())
        self.x = np.empty((4, *data.inputs.shape), data.inputs.dtype)
        targets = np.empty((4, *data.targets.shape), data.targets.dtype)
        data.load("train", range(4), self.x, targets)
        spec = Spec.of(self.x.shape, self.x.dtype)
        self.parameters = Parameters.initialize(self.model.chain.layout(spec), Key(2))
        self.module = _of_pytorchs_own(peer.twin(self.model, spec), peer)
        self.tokens, _ = peer.tensors(self.x, targets)
        generator = Key(4).fold(name).generator()
        with self.torch.no_grad():
            for array in (*self.module.parameters(), *self.module.buffers()):
                if array.is_floating_point():
                    array.copy_(self.torch.from_numpy(generator.uniform(0.01, 0.1, tuple(array.shape))))
        self.module.train()
        self.module(self.tokens)  # running statistics move
        self.module.eval()

    def theirs(self) -> np.ndarray:
        with self.torch.no_grad():
            found: np.ndarray = self.module(self.tokens).numpy()
        return found

    def ours(self) -> np.ndarray:
        return predict(self.model.chain, self.parameters, self.x)


def _of_pytorchs_own(module: Any, peer: Any) -> Any:
    """Puts PyTorch's own modules in the places of the twin's, which have our names."""
    from torch import nn

    class LSTM(nn.LSTM):  # type: ignore[misc]
        def forward(self, x: Any) -> Any:
            return super().forward(x)[0]

    class Embedding(nn.Module):  # type: ignore[misc]
        def __init__(self, token: Any, position: Any) -> None:
            super().__init__()
            self.token, self.position = table(token), table(position)

        def forward(self, x: Any) -> Any:
            return self.token(x) + self.position.weight[: x.shape[-1]]

    def table(weight: Any) -> Any:
        made = nn.Embedding(*weight.shape, dtype=weight.dtype)
        made.weight = weight  # the parameter itself, which may be tied
        return made

    for name, child in list(module.named_children()):
        if isinstance(child, peer._LSTM):
            width, given = child.weight_ih.shape
            setattr(module, name, LSTM(given, width // 4, batch_first=True, dtype=child.bias.dtype))
        elif isinstance(child, peer._Embedding):
            alone = child.position is None
            setattr(module, name, table(child.token) if alone else Embedding(child.token, child.position))
    return module


def assert_equal(pair: Pair) -> None:
    np.testing.assert_allclose(pair.ours(), pair.theirs(), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", MODELS)
def test_a_file_written_by_pytorch_is_read_by_us(tmp_path: Path, name: str) -> None:
    pair = Pair(name)
    from safetensors.torch import save_model

    save_model(pair.module, str(tmp_path / "theirs.safetensors"))  # of tied weights one name alone
    before = pair.ours()
    weights.load(tmp_path / "theirs.safetensors", pair.parameters)
    assert_equal(pair)
    assert abs(pair.ours() - before).max() > 1e-3


@pytest.mark.parametrize("name", MODELS)
def test_a_file_written_by_us_is_read_by_pytorch(tmp_path: Path, name: str) -> None:
    pair = Pair(name)
    from safetensors.torch import load_file

    for view in pair.parameters.with_state().values():
        view += 0.01 * np.abs(Key(5).generator().standard_normal(view.shape))
    weights.save(tmp_path / "ours.safetensors", pair.parameters, for_pytorch=name.startswith("byte"))
    before = pair.theirs()
    found: Any = pair.module.load_state_dict(load_file(tmp_path / "ours.safetensors"), strict=False)
    assert not found.unexpected_keys
    # What PyTorch counts besides; nothing reads it.
    assert all(name.endswith("num_batches_tracked") for name in found.missing_keys)
    assert_equal(pair)
    assert abs(pair.theirs() - before).max() > 1e-3
