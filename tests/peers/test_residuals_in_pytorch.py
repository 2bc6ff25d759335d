"""Each layer and loss keeps for the backward at most what PyTorch keeps, and docs/layers.md says both."""

from __future__ import annotations

import pytest

pytestmark = pytest.mark.peers


def test_each_layer_and_loss_keeps_at_most_what_pytorch_keeps() -> None:
    pytest.importorskip("torch")
    from framework.listing import EXAMPLES, Kept
    from tests.peers.residuals import measured

    theirs = measured()
    ours = {name: Kept.by(*example).total for name, example in EXAMPLES.items()}
    assert {name: (kept, theirs[name]) for name, kept in ours.items() if kept > theirs[name]} == {}


def test_the_page_has_what_was_measured() -> None:
    pytest.importorskip("torch")
    from framework.listing import with_table
    from tests.peers.residuals import PAGE, measured

    assert with_table(PAGE.read_text(), measured()) == PAGE.read_text(), "make it anew: python -m tests.peers.residuals"


def test_the_hooks_see_storages_once_and_no_parameters() -> None:
    torch = pytest.importorskip("torch")
    from tests.peers.residuals import saved_bytes

    x = torch.rand(8, 4, requires_grad=True)
    assert saved_bytes(torch.nn.Linear(4, 3), [x]) == x.nbytes
    assert saved_bytes(lambda x: x * x[:4].repeat(2, 1), [x]) == 2 * x.nbytes
    assert saved_bytes(lambda x: torch.tanh(x).sin().cos(), [x]) == 2 * x.nbytes
