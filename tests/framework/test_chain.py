"""Chain and Residual flatten to the leaf steps that run."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from framework import (
    GELU,
    CausalAttention,
    Chain,
    Dropout,
    Embedding,
    Key,
    Layer,
    LayerNorm,
    Ledger,
    Linear,
    Parameters,
    ReLU,
    Residual,
    Spec,
)
from framework.layers import BATCH, Composite, Context, flatten, input_specs

X = Spec.of((2, 5, 6), "float64")


def block() -> Chain:
    """A transformer block with dropout, 6 features wide."""
    attention = {"norm": LayerNorm(), "qkv": Linear(18), "mix": CausalAttention(2), "drop": Dropout(0.5)}
    mlp = {"norm": LayerNorm(), "up": Linear(7), "act": GELU(), "down": Linear(6, bias=False)}
    return Chain(attention=Residual(Chain(**attention)), mlp=Residual(Chain(**mlp)))


NETWORKS: dict[str, tuple[Composite, list[tuple[str, tuple[int, ...], int]]]] = {
    "positional and named": (
        Chain(Linear(6), ReLU(), head=Linear(6)),
        [("0", (BATCH,), 0), ("1", (0,), 1), ("head", (1,), 2)],
    ),
    "nested chains share the stage of the outermost element": (
        Chain(Chain(Linear(6), ReLU()), Linear(6), last=Chain(a=ReLU(), b=Chain(ReLU()))),
        [("0.0", (BATCH,), 0), ("0.1", (0,), 0), ("1", (1,), 1), ("last.a", (2,), 2), ("last.b.0", (3,), 2)],
    ),
    "residual around a chain": (
        Chain(Linear(6), branch=Residual(Chain(up=Linear(8), down=Linear(6)))),
        [("0", (BATCH,), 0), ("branch.up", (0,), 1), ("branch.down", (1,), 1), ("branch.add", (2, 0), 1)],
    ),
    "residual of a single layer": (
        Chain(r=Residual(Linear(6))),
        [("r.inner", (BATCH,), 0), ("r.add", (0, BATCH), 0)],
    ),
    "residual alone": (Residual(Linear(6)), [("inner", (BATCH,), 0), ("add", (0, BATCH), 0)]),
    "residual of nothing doubles its input": (
        Chain(r=Residual(Chain()), a=ReLU()),
        [("r.add", (BATCH, BATCH), 0), ("a", (0,), 1)],
    ),
    "residual within a residual": (
        Chain(a=ReLU(), r=Residual(Chain(x=Linear(6), y=Residual(Chain(z=Linear(6)))))),
        [("a", (BATCH,), 0), ("r.x", (0,), 1), ("r.y.z", (1,), 1), ("r.y.add", (2, 1), 1), ("r.add", (3, 0), 1)],
    ),
    "residual with a shortcut": (
        Chain(a=ReLU(), r=Residual(Chain(up=Linear(8), down=Linear(7)), Chain(fit=Linear(7), act=GELU()))),
        [
            ("a", (BATCH,), 0),
            ("r.up", (0,), 1),
            ("r.down", (1,), 1),
            ("r.shortcut.fit", (0,), 1),
            ("r.shortcut.act", (3,), 1),
            ("r.add", (2, 4), 1),
        ],
    ),
    "shortcuts of a single layer, nested": (
        Residual(Residual(Linear(6), Dropout(0.5)), Residual(Linear(6), Linear(6))),
        [
            ("inner.inner", (BATCH,), 0),
            ("inner.shortcut", (BATCH,), 0),
            ("inner.add", (0, 1), 0),
            ("shortcut.inner", (BATCH,), 0),
            ("shortcut.shortcut", (BATCH,), 0),
            ("shortcut.add", (3, 4), 0),
            ("add", (2, 5), 0),
        ],
    ),
    "transformer block": (
        block(),
        [
            ("attention.norm", (BATCH,), 0),
            ("attention.qkv", (0,), 0),
            ("attention.mix", (1,), 0),
            ("attention.drop", (2,), 0),
            ("attention.add", (3, BATCH), 0),
            ("mlp.norm", (4,), 1),
            ("mlp.up", (5,), 1),
            ("mlp.act", (6,), 1),
            ("mlp.down", (7,), 1),
            ("mlp.add", (8, 4), 1),
        ],
    ),
}
each_network = pytest.mark.parametrize("name", NETWORKS)


@each_network
def test_paths_inputs_and_stages_in_topological_order(name: str) -> None:
    network, expected = NETWORKS[name]
    steps = flatten(network)
    assert [(step.path, step.inputs, step.stage) for step in steps] == expected
    assert all(source < number for number, step in enumerate(steps) for source in step.inputs)


def test_a_leaf_flattens_to_itself_under_the_name_of_its_kind() -> None:
    (step,) = flatten(Linear(3))
    assert (step.path, step.layer, step.inputs, step.stage) == ("Linear", Linear(3), (BATCH,), 0)


@pytest.mark.parametrize("network", [Chain(), Chain(a=Chain(), b=Chain(Chain()))])
def test_an_empty_chain_is_an_error(network: Chain) -> None:
    with pytest.raises(ValueError, match=r"empty.*at least one layer"):
        flatten(network)


def test_what_is_no_layer_is_refused_by_name() -> None:
    with pytest.raises(TypeError, match=r"'act'.*tanh"):
        Chain(Linear(3), act=np.tanh)  # type: ignore[arg-type]


def test_a_chain_has_the_length_and_order_of_its_layers() -> None:
    first, second = Linear(3), ReLU()
    assert list(Chain(first, act=second)) == [first, second]
    assert len(Chain(first, act=second)) == 2


@pytest.mark.parametrize(
    ("make", "weights"),
    [
        (lambda: Residual(Residual(Linear(6))), 1),
        (lambda: Chain(r=Residual(Chain(add=Linear(6)))), 1),
        (lambda: Chain(**{"a.b": Linear(6), "a": Chain(b=Linear(6))}), 2),
        (lambda: Chain(Linear(6), **{"0": Linear(6)}), 2),
    ],
    ids=["residual of a residual", "a layer called add", "a dot in a name", "a keyword that is a position"],
)
def test_paths_are_unique_and_no_layer_is_lost_or_the_names_are_refused(make: Any, weights: int) -> None:
    # Equal paths would mean one key (one dropout mask) and one parameter for two layers.
    try:
        network = make()
        paths = [step.path for step in flatten(network)]
    except (ValueError, TypeError):
        return
    assert len(set(paths)) == len(paths)
    assert sum(name.endswith("weight") for name in network.parameters(X)) == weights


def test_two_shortcuts_of_one_name_are_refused() -> None:
    with pytest.raises(ValueError, match="named 'shortcut', too: rename"):
        Residual(Chain(shortcut=Linear(6)), Linear(6))


def test_parameters_are_named_by_path_in_the_order_of_the_chain() -> None:
    specs = block().parameters(X)
    assert {name: spec.shape for name, spec in specs.items()} == {
        "attention.norm.weight": (6,),
        "attention.norm.bias": (6,),
        "attention.qkv.weight": (18, 6),
        "attention.qkv.bias": (18,),
        "mlp.norm.weight": (6,),
        "mlp.norm.bias": (6,),
        "mlp.up.weight": (7, 6),
        "mlp.up.bias": (7,),
        "mlp.down.weight": (6, 7),
    }
    assert [name.split(".")[1] for name in specs] == ["norm"] * 2 + ["qkv"] * 2 + ["norm"] * 2 + ["up"] * 2 + ["down"]
    assert {spec.dtype.name for spec in specs.values()} == {"float64"}


def test_the_layout_puts_parameters_one_after_the_other() -> None:
    layout = Chain(a=Linear(3), b=ReLU(), c=Linear(2, bias=False)).layout(Spec.of((4, 5), "float32"))
    assert layout.slices == {"a.weight": slice(0, 15), "a.bias": slice(15, 18), "c.weight": slice(18, 24)}
    assert (layout.size, layout.nbytes) == (24, 96)


def test_the_spec_of_each_input_follows_from_the_batch() -> None:
    steps = flatten(Chain(Embedding(9, 5, 6), r=Residual(Chain(Linear(18), CausalAttention(2))), head=Linear(4)))
    tokens, features = Spec.of((2, 5), "uint8"), Spec.of((2, 5, 6), "float32")
    wide = Spec.of((2, 5, 18), "float32")
    assert input_specs(steps, tokens) == [tokens, features, wide, (features, features), features]


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (Chain(a=Linear(6), b=Chain(mix=CausalAttention(4))), r"step 'b\.mix': CausalAttention with 4 heads"),
        (Chain(a=Linear(6), r=Residual(Chain(Linear(5)))), r"step 'r\.add': a Residual adds.*\[2, 5, 6\].*\[2, 5, 5\]"),
        (Chain(r=Residual(Linear(5), Linear(4))), r"step 'r\.add': a Residual adds.*\[2, 5, 4\].*\[2, 5, 5\]"),
        (Chain(Embedding(9, 5, 6)), "step '0': Embedding takes"),
        (Embedding(9, 5, 6), "step 'Embedding': Embedding takes"),
    ],
)
def test_an_error_names_the_path_of_the_step(network: Layer, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        input_specs(flatten(network), X)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("rule", ["apply", "forward"])
@each_network
def test_a_composite_is_its_leaf_steps_one_by_one(name: str, rule: str, training: bool) -> None:
    network, _ = NETWORKS[name]
    key, ledger = Key(5).fold("shard", 0), Ledger()
    parameters = Parameters.initialize(network.layout(X), Key(1))
    groups = parameters.layout.grouped_views(parameters.flat)
    x = np.random.default_rng(0).standard_normal(X.shape)
    values = {BATCH: x}
    for number, step in enumerate(flatten(network)):
        inputs = tuple(values[source] for source in step.inputs)
        one = inputs[0] if len(inputs) == 1 else inputs
        context = Context(ledger, step.path, key.fold(step.path), training)
        found = getattr(step.layer, rule)(groups.get(step.path, {}), one, context)
        values[number] = found if rule == "apply" else found[0]
    whole = network.apply(dict(parameters), x, Context(ledger, "", key, training))
    # forward rounds in another order than apply.
    np.testing.assert_allclose(values[max(values)], whole, rtol=0, atol=0 if rule == "apply" else 1e-12)
    assert np.isfinite(whole).all()


def test_a_composite_does_not_run_itself() -> None:
    chain, context = Chain(Linear(6)), Context(Ledger())
    calls = [
        lambda: chain.forward({}, np.zeros((2, 6)), context),
        lambda: chain.vjp({}, None, None, (), np.zeros(1), {}, context),
        lambda: chain.footprint(X),
    ]
    for call in calls:
        with pytest.raises(NotImplementedError, match=r"Chain has no .*composites flatten"):
            call()
