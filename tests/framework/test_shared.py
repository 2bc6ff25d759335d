"""Tied weights: one array, one name, and a gradient that is the sum of its parts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from framework import (
    AdamW,
    Chain,
    Concat,
    Dropout,
    Embedding,
    Key,
    Ledger,
    Linear,
    Parameters,
    ReLU,
    Residual,
    Shared,
    Spec,
    Tanh,
    weights,
)
from framework.differentiation import jvp, vjp
from framework.layers import BATCH, Context, Layer, flatten
from framework.layers.sharing import Adding

X = Spec.of((3, 4), "float64")


def tied(name: str = "first.weight", **options: Any) -> Layer:
    return Shared(Linear(4, bias=False, **options), weight=name)


#: Chains, their parameters in order, and what steps know under another name.
CHAINS: dict[str, tuple[Chain, list[str], dict[str, str]]] = {
    "one more user": (
        Chain(first=Linear(4), act=Tanh(), second=tied()),
        ["first.weight", "first.bias"],
        {"second.weight": "first.weight"},
    ),
    "three users": (
        Chain(first=Linear(4), act=Tanh(), second=tied(), third=tied()),
        ["first.weight", "first.bias"],
        {"second.weight": "first.weight", "third.weight": "first.weight"},
    ),
    "the owner is the last": (
        Chain(a=tied("last.weight"), act=Tanh(), last=Linear(4)),
        ["last.weight", "last.bias"],
        {"a.weight": "last.weight"},
    ),
    "all parameters": (
        Chain(first=Linear(4), act=Tanh(), second=Shared(Linear(4), weight="first.weight", bias="first.bias")),
        ["first.weight", "first.bias"],
        {"second.weight": "first.weight", "second.bias": "first.bias"},
    ),
    "some parameters": (
        Chain(first=Linear(4), act=Tanh(), second=Shared(Linear(4), bias="first.bias")),
        ["first.weight", "first.bias", "second.weight"],
        {"second.bias": "first.bias"},
    ),
    "a name of a chain around": (
        Chain(first=Linear(4), deep=Chain(act=Tanh(), r=Residual(Chain(inner=tied(), act=ReLU())))),
        ["first.weight", "first.bias"],
        {"deep.r.inner.weight": "first.weight"},
    ),
    "a name of the innermost chain before that of one around": (
        Chain(first=Linear(4), deep=Chain(first=Linear(4, bias=False), act=Tanh(), second=tied())),
        ["first.weight", "first.bias", "deep.first.weight"],
        {"deep.second.weight": "deep.first.weight"},
    ),
    "a chain with tied weights twice in another": (
        Chain(a=Chain(first=Linear(4), act=Tanh(), second=tied()), b=Chain(first=Linear(4), second=tied())),
        ["a.first.weight", "a.first.bias", "b.first.weight", "b.first.bias"],
        {"a.second.weight": "a.first.weight", "b.second.weight": "b.first.weight"},
    ),
    "into another's inside": (
        Chain(one=Chain(first=Linear(4), act=Tanh()), two=Residual(tied("one.first.weight"))),
        ["one.first.weight", "one.first.bias"],
        {"two.inner.weight": "one.first.weight"},
    ),
    "from within a concat": (
        Chain(first=Linear(4), c=Concat(Chain(tied())), last=Linear(2)),
        ["first.weight", "first.bias", "last.weight", "last.bias"],
        {"c.0.weight": "first.weight"},
    ),
}
each_chain = pytest.mark.parametrize("name", CHAINS)


def made(chain: Chain, seed: int = 1) -> Parameters:
    return Parameters.initialize(chain.layout(X), Key(seed))


def run(chain: Chain, parameters: Parameters, x: Any, cotangent: Any) -> tuple[np.ndarray, Parameters]:
    """The output and the parameters' cotangents, step by step as an executor runs them, from a gradient full of NaN."""
    steps, context = flatten(chain), Context(Ledger())
    params, values, owns = parameters.by_layer(), {BATCH: x}, {}
    gradient = Parameters(parameters.layout, np.full_like(parameters.flat, np.nan))
    grads = gradient.by_layer()

    def inputs(step: Any) -> Any:
        found = tuple(values[source] for source in step.inputs)
        return found if len(found) > 1 else found[0]

    for number, step in enumerate(steps):
        values[number], owns[number] = step.layer.forward(params.get(step.path, {}), inputs(step), context)
    cotangents: dict[int, Any] = {len(steps) - 1: cotangent}
    for number, step in reversed(list(enumerate(steps))):
        local = Context(Ledger(), wanted=(True,) * len(step.inputs))
        given = params.get(step.path, {}), inputs(step), values[number], owns[number]
        found = step.layer.vjp(*given, cotangents[number], grads.get(step.path, {}), local)
        for source, each in zip(step.inputs, found if len(step.inputs) > 1 else (found,), strict=True):
            cotangents[source] = cotangents[source] + each if source in cotangents else each
    return values[len(steps) - 1], gradient


@each_chain
def test_a_shared_parameter_has_one_name_and_one_array(name: str) -> None:
    chain, names, aliases = CHAINS[name]
    parameters = made(chain)
    assert [*parameters] == [*chain.parameters(X)] == names
    assert parameters.layout.aliases == aliases
    assert parameters.layout.size == sum(view.size for view in parameters.values())
    groups = parameters.by_layer()
    for alias, full in aliases.items():
        path, _, local = alias.rpartition(".")
        assert groups[path][local] is not None
        assert np.shares_memory(groups[path][local], parameters[full])


@each_chain
def test_the_gradient_of_a_shared_parameter_is_that_traced_from_the_definition(name: str) -> None:
    chain, _, _ = CHAINS[name]
    parameters, generator = made(chain), np.random.default_rng(3)
    x = generator.standard_normal(X.shape)
    y, pull = vjp(lambda p: chain.apply(p, x, Context(Ledger())), dict(parameters))
    cotangent = generator.standard_normal(y.shape)
    output, gradient = run(chain, parameters, x, cotangent)
    np.testing.assert_allclose(output, y, rtol=1e-12)
    for local, expected in pull(cotangent)[0].items():
        np.testing.assert_allclose(gradient[local], expected, rtol=0, atol=1e-12)


@each_chain
def test_a_chains_jvp_moves_all_users_of_a_parameter(name: str) -> None:
    chain, _, _ = CHAINS[name]
    parameters, direction = made(chain), made(chain, seed=2)
    x, moved = np.random.default_rng(4).standard_normal((2, *X.shape))
    context = Context(Ledger(), key=Key(5))
    found = chain.jvp(dict(parameters), x, dict(direction), moved, context)
    function = lambda p, x: chain.apply(p, x, context)  # noqa: E731
    expected = jvp(function, (dict(parameters), x), (dict(direction), moved))
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-12)


@each_chain
def test_of_all_users_only_the_last_one_writes(name: str) -> None:
    chain, _, aliases = CHAINS[name]
    steps = flatten(chain)
    writers = {}  # of each shared parameter: the last step whose layer does not add to it
    for number, step in enumerate(steps):
        adds = step.layer.names if isinstance(step.layer, Adding) else ()
        for local in step.layer.parameters(X):
            full = aliases.get(f"{step.path}.{local}", f"{step.path}.{local}")
            if full in aliases.values():
                assert local in adds or full not in writers
                if local not in adds:
                    writers[full] = number
                else:
                    assert full not in writers
    assert set(writers) == set(aliases.values())


def test_the_scratch_of_what_is_added_is_in_the_footprint_and_in_the_ledger() -> None:
    chain = Chain(first=Linear(4), act=Tanh(), second=tied())
    adding = flatten(chain)[0].layer
    assert isinstance(adding, Adding)
    assert (adding.kind, adding.names) == ("Linear", ("weight",))
    plain, footprint = Linear(4).footprint(X), adding.footprint(X)
    assert footprint.backward_workspace == plain.backward_workspace + 4 * 4 * 8
    assert footprint.hvp_workspace == plain.hvp_workspace + 2 * 4 * 4 * 8
    params = made(chain).by_layer()["first"]
    grads = {"weight": np.ones((4, 4)), "bias": np.full(4, np.nan)}
    ledger, x = Ledger(), np.ones(X.shape)
    kept = adding.vjp(params, x, None, (), np.ones((3, 4)), grads, Context(ledger))
    assert ledger.live == kept.nbytes
    assert ledger.peak == X.nbytes + footprint.backward_workspace
    np.testing.assert_array_equal(grads["weight"], np.full((4, 4), 4.0))
    np.testing.assert_array_equal(grads["bias"], np.full(4, 3.0))


def test_second_derivatives_of_what_is_added_are_added_in_both_halves() -> None:
    layer, generator = Linear(4), np.random.default_rng(0)
    adding = Adding(layer, ("weight",))
    params, moves = ({n: generator.standard_normal(p.shape) for n, p in layer.parameters(X).items()} for _ in range(2))
    pairs = [tuple(generator.standard_normal((2, 3, 4))) for _ in range(2)]
    alone, over = ([{n: np.full_like(p, start) for n, p in params.items()} for _ in range(2)] for start in (0.0, 2.0))
    ledger = Ledger()
    layer.vjp_with_tangent((params, moves), *pairs, tuple(alone), None, Context(Ledger()))
    adding.vjp_with_tangent((params, moves), *pairs, tuple(over), None, Context(ledger))
    assert ledger.peak == adding.footprint(X).hvp_workspace
    for one, other in zip(alone, over, strict=True):
        np.testing.assert_array_equal(other["weight"], 2 + one["weight"])
        np.testing.assert_array_equal(other["bias"], one["bias"])


def test_a_layer_without_rules_of_its_own_can_share() -> None:
    class Scale(Layer):
        def parameters(self, x: Spec) -> dict[str, Any]:
            return {"weight": Linear(4).parameters(x)["weight"]}

        def apply(self, params: dict[str, np.ndarray], x: Any, context: Context) -> Any:
            return np.matmul(x, params["weight"])

    chain = Chain(first=Scale(), act=Tanh(), second=tied())
    parameters = made(chain)
    x = np.random.default_rng(1).standard_normal(X.shape)
    y, pull = vjp(lambda p: chain.apply(p, x, Context(Ledger())), dict(parameters))
    _, gradient = run(chain, parameters, x, np.ones_like(y))
    np.testing.assert_allclose(gradient["first.weight"], pull(np.ones_like(y))[0]["first.weight"], rtol=1e-12)
    assert flatten(chain)[0].layer.footprint(X).unmeasured


def test_it_starts_as_its_owner_says_and_is_saved_and_read_once(tmp_path: Path) -> None:
    chain = Chain(first=Linear(4), act=Tanh(), second=tied())
    alone = Parameters.initialize(Chain(first=Linear(4)).layout(X), Key(1))
    parameters = made(chain)
    assert parameters.flat.tobytes() == alone.flat.tobytes()
    weights.save(tmp_path / "w.safetensors", parameters)
    again = made(chain, seed=9)
    weights.load(tmp_path / "w.safetensors", again)
    assert again.flat.tobytes() == parameters.flat.tobytes()


def test_it_is_decayed_once() -> None:
    chain = Chain(first=Linear(4, bias=False), act=Tanh(), second=tied())
    parameters, optimizer = made(chain), AdamW(weight_decay=0.5)
    before = parameters.flat.copy()
    state = optimizer.initialize(parameters.layout)
    optimizer.update(parameters.flat, np.zeros_like(before), state, step=0, learning_rate=0.1)
    np.testing.assert_allclose(parameters.flat, before * 0.95, rtol=1e-12)


def test_a_layer_that_draws_numbers_draws_those_of_its_place() -> None:
    class Noisy(Linear):
        """A Linear whose output is dropped in part."""

        def apply(self, params: dict[str, np.ndarray], x: Any, context: Context) -> Any:
            return Dropout(0.5).apply({}, super().apply(params, x, context), context)

    layer = Noisy(4, bias=False)
    x, context = np.ones(X.shape), Context(Ledger(), key=Key(6))
    shared = Chain(first=Linear(4), second=Shared(layer, weight="first.weight"))
    apart = Chain(first=Linear(4), second=layer)
    parameters = made(shared)
    given = {**parameters, "second.weight": parameters["first.weight"]}
    y = shared.apply(dict(parameters), x, context)
    assert y.tobytes() == apart.apply(given, x, context).tobytes()
    assert (y == 0).any()


ERRORS: dict[str, tuple[Chain, str]] = {
    "no such layer": (
        Chain(first=Linear(4), s=tied("frist.weight")),
        r"'s' shares its weight with 'frist.weight', but no step",
    ),
    "no such parameter": (Chain(first=Linear(4), s=tied("first.wait")), r"'first.wait', but no step has a parameter"),
    "a parameter that the owner was made without": (
        Chain(first=Linear(4, bias=False), s=Shared(Linear(4), bias="first.bias")),
        "'first.bias', but no step has a parameter",
    ),
    "a composite": (Chain(first=Chain(Linear(4)), s=tied()), r"'first' must be a single layer"),
    "a name without a layer": (Chain(first=Linear(4), s=tied("weight")), "'weight', but no step"),
    "a parameter of its own that is not there": (
        Chain(first=Linear(4), s=Shared(Linear(4), wait="first.weight")),
        "'s' shares its wait .*Linear has only: weight, bias",
    ),
    "another shape": (
        Chain(first=Linear(3), s=Shared(Linear(4), weight="first.weight")),
        r"float64\[4, 3\], with 'first.weight', which is float64\[3, 4\]",
    ),
    "itself": (Chain(first=Linear(4), s=tied("s.weight")), r"'s.weight', which is itself shared with 's.weight'"),
    "one that is shared": (
        Chain(first=Linear(4), s=tied(), t=tied("s.weight")),
        "'s.weight', which is itself shared with 'first.weight'; name that one",
    ),
    "the same twice": (
        Chain(first=Linear(4), s=Shared(Linear(4), weight="first.bias", bias="first.bias")),
        "'s' uses one parameter, 'first.bias', twice",
    ),
    "of its own layer": (Chain(s=Shared(Linear(4), bias="s.weight")), "'s' uses one parameter, 's.weight', twice"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_what_cannot_be_shared_is_a_clear_error(name: str) -> None:
    chain, message = ERRORS[name]
    with pytest.raises(ValueError, match=message):
        chain.layout(X)


def test_another_dtype_is_an_error() -> None:
    chain = Chain(embedding=Embedding(4, 5, 4, "float32"), s=tied("embedding.token"))
    chain.layout(Spec.of((2, 3), "uint8"))
    chain = Chain(embedding=Embedding(4, 5, 4, "float32"), a=Linear(4), s=tied("embedding.position"))
    with pytest.raises(ValueError, match=r"float32\[4, 4\], with 'embedding.position', which is float32\[5, 4\]"):
        chain.layout(Spec.of((2, 3), "uint8"))


@pytest.mark.parametrize("layer", [Chain(Linear(4)), Residual(Linear(4)), np.tanh])
def test_only_leaf_layers_share(layer: Any) -> None:
    with pytest.raises(TypeError, match="takes a leaf layer"):
        Shared(layer, weight="first.weight")


@pytest.mark.parametrize("names", [{}, {"weight": ""}, {"weight": Linear(3)}])
def test_names_are_needed(names: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"weight='embedding.token'"):
        Shared(Linear(4), **names)


def test_a_part_of_a_chain_that_needs_the_whole_says_so() -> None:
    inner = Chain(act=Tanh(), second=tied())
    with pytest.raises(ValueError, match=r"'first.weight', which is not among the parameters given"):
        inner.apply({}, np.ones(X.shape), Context(Ledger()))
