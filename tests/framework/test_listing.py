"""The page on layers: its table of residuals is what the footprints say, it lacks no layer, and PyTorch's numbers are no smaller."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import framework
from framework import Layer, Loss, layers
from framework.layers import Adding, Composite, flatten
from framework.listing import EXAMPLES, Kept, with_table
from tests.framework.every import concrete

PAGE = Path(__file__).parents[2] / "docs" / "layers.md"
#: Name and PyTorch's bytes of each row.
TOLD = {name: int(n.replace(",", "")) for name, n in re.findall(r"^\| `(.+?)` .* ([\d,]+) \|$", PAGE.read_text(), re.M)}


def test_the_table_is_made_from_the_footprints() -> None:
    assert with_table(PAGE.read_text(), TOLD) == PAGE.read_text(), "make it anew: python -m tests.peers.residuals"


def test_the_table_has_every_layer_and_loss() -> None:
    kinds = [kind for kind, _ in EXAMPLES.values()]
    there = {type(kind) for kind in kinds} | {Adding}  # which keeps what its layer does
    there |= {type(step.layer) for kind in kinds if isinstance(kind, Composite) for step in flatten(kind)}
    there -= {type(kind) for kind in kinds if isinstance(kind, Composite)}
    assert concrete(Layer) | concrete(Loss) == there
    assert set(TOLD) == set(EXAMPLES)


@pytest.mark.parametrize("name", EXAMPLES)
def test_a_name_is_what_one_writes(name: str) -> None:
    written = eval(name, vars(layers) | vars(framework))
    kind = EXAMPLES[name][0]
    assert type(written) is type(kind) and vars(written) == vars(kind)


@pytest.mark.parametrize("name", EXAMPLES)
def test_none_keeps_more_than_pytorch(name: str) -> None:
    assert Kept.by(*EXAMPLES[name]).total <= TOLD[name]


def test_what_is_kept_adds_up() -> None:
    kept = Kept.by(*EXAMPLES["CausalAttention(4)"])
    assert (kept.own, kept.inputs, kept.output) == (4 * 8 * 4 * 128, 4 * 8 * 128 * 192, 4 * 8 * 128 * 64)
    assert kept.total == kept.own + kept.inputs + kept.output
