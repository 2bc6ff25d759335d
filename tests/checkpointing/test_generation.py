"""Text from a model, and predictions."""

import numpy as np
import pytest

from checkpointing import predict
from checkpointing.generation import generate
from framework import Key, Ledger, Parameters, Spec, build
from tests.checkpointing.cases import nested, tokens


@pytest.fixture(scope="module", params=["byte-gpt-tiny", "byte-lstm-small"])
def trained(request):  # type: ignore[no-untyped-def]
    model = build(request.param)
    return model, Parameters.initialize(model.chain.layout(Spec.of((1, 1), np.uint8)), Key(1))


def test_generation_repeats_with_its_seed_and_goes_on_beyond_the_window(trained) -> None:  # type: ignore[no-untyped-def]
    model, parameters = trained
    first, again, other = (
        b"".join(generate(model, parameters, b"def " * 31, 12, temperature=1.0, seed=seed)) for seed in (1, 1, 2)
    )
    assert len(first) == 12
    assert first == again != other


def test_temperature_zero_takes_the_likeliest_byte(trained) -> None:  # type: ignore[no-untyped-def]
    model, parameters = trained
    (byte,) = generate(model, parameters, b"import", 1, temperature=0)
    logits = predict(model.chain, parameters, np.frombuffer(b"import", np.uint8)[None])
    assert byte[0] == int(np.argmax(logits[0, -1]))


def test_only_models_over_bytes_write_text() -> None:
    model = build("mlp-small")
    parameters = Parameters.initialize(model.chain.layout(Spec.of((1, 64), np.float32)), Key(1))
    with pytest.raises(ValueError, match="does not write text"):
        next(generate(model, parameters, b"", 1))


@pytest.mark.parametrize("case", [tokens(dropout=0.4), nested(dropout=0.4)], ids=lambda case: case.name)
def test_predictions_are_the_definition_in_evaluation_and_leave_nothing_behind(case) -> None:  # type: ignore[no-untyped-def]
    from framework.layers import Context

    parameters = Parameters.initialize(case.chain.layout(case.specs(1)[0]), Key(1))
    ledger = Ledger()
    y = predict(case.chain, parameters, case.x, ledger)
    expected = case.chain.apply(dict(parameters), case.x, Context(Ledger(), training=False))
    np.testing.assert_allclose(y, expected, rtol=2e-5, atol=2e-6)  # float32: two orders of summation
    assert ledger.live == y.nbytes
