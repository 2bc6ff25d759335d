"""Attention and CausalAttention: what the laws of all layers do not say."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from framework import Attention, CausalAttention, Ledger, Spec, kernels
from framework.layers import Context

Kind = type[Attention]
both = pytest.mark.parametrize("kind", [Attention, CausalAttention])


def attend(layer: Attention, x: np.ndarray) -> np.ndarray:
    return layer.forward({}, x, Context(Ledger()))[0]


@given(length=st.sampled_from([2, 5, 64, 65, 130]), data=st.data())
def test_later_tokens_change_no_bit_of_earlier_outputs(length: int, data: st.DataObject) -> None:
    first = data.draw(st.integers(1, length - 1), "the first token that changes")
    generator = np.random.default_rng(length)
    x = generator.standard_normal((2, length, 12)).astype(np.float32)
    changed = x.copy()
    changed[:, first:] = 100 * generator.standard_normal((2, length - first, 12))
    before, after = attend(CausalAttention(2), x), attend(CausalAttention(2), changed)
    assert before[:, :first].tobytes() == after[:, :first].tobytes()
    assert (before[:, first:] != after[:, first:]).any(axis=-1).all()


@pytest.mark.parametrize("length", [5, 64, 130])
def test_earlier_tokens_get_no_cotangent_from_later_inputs(length: int) -> None:
    generator = np.random.default_rng(1)
    layer, x = CausalAttention(2), generator.standard_normal((1, length, 12))
    y, own = layer.forward({}, x, Context(Ledger()))
    cotangent = np.zeros(y.shape)
    cotangent[:, length // 2] = 1
    found = layer.vjp({}, x, y, own, cotangent, {}, Context(Ledger()))
    assert not found[:, length // 2 + 1 :].any()
    assert found[:, : length // 2 + 1].any(axis=-1).all()


def test_the_first_token_reads_itself_alone() -> None:
    x = np.random.default_rng(2).standard_normal((3, 7, 12))
    # Rows are divided by their sum after the product: a weight w once, which rounds w·v/w.
    np.testing.assert_array_max_ulp(attend(CausalAttention(2), x)[:, 0], x[:, 0, 8:], 1)


@pytest.mark.parametrize("length", [1, 5, 64, 65, 150])
def test_the_last_token_reads_all_tokens_whether_causal_or_not(length: int) -> None:
    x = np.random.default_rng(6).standard_normal((2, length, 12))
    np.testing.assert_allclose(attend(Attention(2), x)[:, -1], attend(CausalAttention(2), x)[:, -1], rtol=0, atol=1e-12)


@given(length=st.sampled_from([2, 5, 64, 65, 130]), seed=st.integers(0, 5))
def test_without_a_mask_tokens_in_another_order_give_outputs_in_that_order(length: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    x, order = generator.standard_normal((2, length, 12)), generator.permutation(length)
    np.testing.assert_allclose(attend(Attention(2), x[:, order]), attend(Attention(2), x)[:, order], rtol=0, atol=1e-12)


@pytest.mark.parametrize("length", [5, 130])
def test_without_a_mask_every_token_hears_from_every_output(length: int) -> None:
    layer, x = Attention(2), np.random.default_rng(1).standard_normal((1, length, 12))
    y, own = layer.forward({}, x, Context(Ledger()))
    cotangent = np.zeros(y.shape)
    cotangent[:, length // 2] = 1
    assert layer.vjp({}, x, y, own, cotangent, {}, Context(Ledger())).any(axis=-1).all()


@both
def test_heads_do_not_mix(kind: Kind) -> None:
    x = np.random.default_rng(3).standard_normal((1, 70, 12))
    whole = attend(kind(2), x)
    for head in range(2):
        parts = x.reshape(1, 70, 3, 2, 2)[:, :, :, head].reshape(1, 70, 6).copy()
        np.testing.assert_allclose(attend(kind(1), parts), whole[..., 2 * head : 2 * head + 2], rtol=1e-12)


@both
def test_large_scores_do_not_overflow(kind: Kind) -> None:
    x = np.full((1, 70, 6), 100.0, np.float32)
    x[..., :4] *= 10 * np.sign(np.random.default_rng(4).standard_normal((1, 70, 4)))
    y, (statistic,) = kind(1).forward({}, x, Context(Ledger()))
    assert np.isfinite(statistic).all()
    # Every value is 100, so every mean of values is, up to the rounding of up to 70 weights in float32.
    np.testing.assert_allclose(y, 100, rtol=1e-5)


@both
@pytest.mark.parametrize("size", [1e2, 1e4])
def test_nothing_overflows_at_ten_thousand_in_float32(kind: Kind, size: float) -> None:
    """Scores of 1e4, and inputs of 1e4. Many scores are the largest alike, which half of a sum of four products is in float32, too."""
    generator, layer = np.random.default_rng(7), kind(2)
    x = size * generator.choice(np.array([-1, 1], np.float32), (2, 70, 24))
    x[..., 16:] *= generator.uniform(0.1, 1, (2, 70, 8)).astype(np.float32)
    cotangent = generator.standard_normal((2, 70, 8)).astype(np.float32)
    wide = x.astype(np.float64)
    y, own = layer.forward({}, x, Context(Ledger()))
    exact, exact_own = layer.forward({}, wide, Context(Ledger()))
    np.testing.assert_allclose(exact, layer.apply({}, wide, Context(Ledger())), rtol=1e-5)
    np.testing.assert_allclose(y, exact, rtol=1e-5, atol=1e-6 * size)
    np.testing.assert_allclose(own[0], exact_own[0], rtol=1e-6)
    found = layer.vjp({}, x, y, own, cotangent, {}, Context(Ledger()))
    expected = layer.vjp({}, wide, exact, exact_own, cotangent.astype(np.float64), {}, Context(Ledger()))
    assert np.isfinite(found).all() and found.dtype == np.float32
    # A weight is exp(score - log-sum-exp): of scores of 1e4 float32 keeps 1e-3, of 1e8 not enough for a sum of equal ones.
    if size == 1e2:
        for part in (slice(0, 16), slice(16, 24)):  # of queries and keys, which are larger, and of values
            scale = np.abs(expected[..., part]).max()
            np.testing.assert_allclose(found[..., part], expected[..., part], rtol=0, atol=1e-3 * scale)


@both
def test_own_is_the_log_sum_exp_of_the_scores(kind: Kind) -> None:
    x = np.random.default_rng(5).standard_normal((2, 70, 12))
    _, (statistic,) = kind(2).forward({}, x, Context(Ledger()))
    queries, keys = (x[..., 4 * i : 4 * i + 4].reshape(2, 70, 2, 2) for i in (0, 1))
    scores = np.einsum("bihd,bjhd->bhij", queries, keys) / np.sqrt(2)
    seen = np.tri(70) if kind is CausalAttention else np.ones((70, 70))
    expected = np.log(np.einsum("bhij,ij->bhi", np.exp(scores), seen))
    np.testing.assert_allclose(statistic, expected, rtol=1e-12, atol=1e-12)


@both
@pytest.mark.parametrize("length", [300, 1200])
def test_no_full_matrix_of_weights_is_kept_or_made(kind: Kind, length: int) -> None:
    footprint = kind(2).footprint(Spec.of((3, length, 12), "float32"))
    assert footprint.own_nbytes == 3 * 2 * length * 4
    # Up to five blocks of 64 queries by all keys, of one example.
    for workspace in (footprint.forward_workspace, footprint.backward_workspace, footprint.hvp_workspace):
        assert workspace < 5 * (2 * 64 * length * 4) + 2 * length * 100


@pytest.mark.parametrize("length", [300, 1000])
def test_only_blocks_that_a_causal_mask_leaves_are_computed(length: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each query of a block reads the keys up to the end of that block; so of the pairs about half are left."""
    blocks = [(start, min(length, start + 64)) for start in range(0, length, 64)]
    left = sum((stop - start) * stop for start, stop in blocks) / length**2
    generator, product = np.random.default_rng(0), kernels.matmul
    x, cotangent = generator.standard_normal((1, length, 24)), generator.standard_normal((1, length, 8))

    def count(kind: Kind) -> tuple[int, int]:
        done = 0

        def counted(a: np.ndarray, b: np.ndarray, out: np.ndarray) -> np.ndarray:
            nonlocal done
            done += out.size * a.shape[-1]
            return product(a, b, out=out)

        monkeypatch.setattr(kernels, "matmul", counted)
        y, own = kind(2).forward({}, x, Context(Ledger()))
        forward = done
        kind(2).vjp({}, x, y, own, cotangent, {}, Context(Ledger()))
        return forward, done - forward

    for causal, whole in zip(count(CausalAttention), count(Attention), strict=True):
        assert causal <= left * whole * 1.001


@both
def test_attention_over_no_tokens_runs_or_is_refused_by_its_footprint(kind: Kind) -> None:
    layer, x = kind(2), np.empty((2, 0, 12))
    try:
        layer.footprint(Spec.of(x.shape, x.dtype))
    except ValueError:
        return
    y, own = layer.forward({}, x, Context(Ledger()))
    assert y.shape == (2, 0, 4)
    assert layer.vjp({}, x, y, own, np.empty(y.shape), {}, Context(Ledger())).shape == x.shape
