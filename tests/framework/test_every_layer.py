"""No layer and no loss that comes with Retape is missing from the laws."""

from __future__ import annotations

import framework
from framework import Layer, Loss, layers, losses
from framework.layers import Adding
from tests.framework import images, recurrent, test_layers, test_losses
from tests.framework.every import concrete

TRIED = {type(family.make("float64")) for family in test_layers.FAMILIES.values()}
TRIED |= {type(layer) for layer, _ in (*images.LAYERS.values(), *recurrent.STEPS.values())}
TRIED.add(Adding)  # another layer that does not overwrite: see test_shared


def test_every_leaf_layer_is_tried_by_the_laws() -> None:
    assert concrete(Layer) - TRIED == set()


def test_every_loss_is_tried_by_the_laws() -> None:
    assert concrete(Loss) - {type(loss) for loss in test_losses.LOSSES.values()} == set()


def test_layers_and_losses_are_exported() -> None:
    assert {kind.__name__ for kind in concrete(Layer)} - set(layers.__all__) == set()
    assert {kind.__name__ for kind in concrete(Loss)} - set(losses.__all__) == set()
    inner = {"Add", "Join", "Adding", "LSTMChunk", "LSTMOutput"}  # composites make them
    assert {kind.__name__ for kind in concrete(Layer) | concrete(Loss)} - set(framework.__all__) == inner


def test_the_search_finds_layers_and_leaves_out_what_is_none() -> None:
    found = concrete(Layer)
    assert {layers.Linear, layers.Add, layers.ReLU, layers.MaxPool2d} <= found
    assert not {layers.Chain, layers.Residual, layers.Concat} & found
    assert losses.Huber in concrete(Loss)
