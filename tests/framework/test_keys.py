"""Keys name random numbers."""

import pickle

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from framework import Key

words = st.lists(st.one_of(st.integers(), st.text(max_size=5)), max_size=4)


def numbers(key: Key) -> bytes:
    return key.generator().random(4).tobytes()


@given(seed=st.integers(), first=words, second=words)
def test_folding_at_once_or_one_after_the_other_is_the_same(seed: int, first: list, second: list) -> None:
    at_once, stepwise = Key(seed).fold(*first, *second), Key(seed).fold(*first).fold(*second)
    assert at_once == stepwise
    assert numbers(at_once) == numbers(stepwise)


@given(a=st.tuples(st.integers(), words), b=st.tuples(st.integers(), words))
def test_numbers_are_equal_exactly_when_the_keys_are(a: tuple, b: tuple) -> None:
    left, right = Key(a[0]).fold(*a[1]), Key(b[0]).fold(*b[1])
    assert (left == right) == (numbers(left) == numbers(right))


def test_neighbouring_keys_give_different_numbers() -> None:
    keys = [Key(0), Key(1), Key(0).fold(0), Key(0).fold("0"), Key(0).fold(0, 1), Key(0).fold(1, 0), Key(0).fold("0, 1")]
    assert len({numbers(key) for key in keys}) == len(keys)


def test_a_key_draws_the_same_however_often_and_from_a_pickle() -> None:
    key = Key(7).fold("dropout", 3)
    assert numbers(key) == numbers(key) == numbers(pickle.loads(pickle.dumps(key)))


def test_folding_leaves_the_key_as_it_was() -> None:
    key = Key(7).fold("a")
    key.fold("b")
    assert key == Key(7, ("a",))


def test_equal_keys_give_equal_numbers_for_numpy_integers_too() -> None:
    for seed, word in ((7, np.int64(3)), (np.int64(7), 3)):
        key = Key(seed).fold(word)
        assert key == Key(7).fold(3)
        assert numbers(key) == numbers(Key(7).fold(3))


def test_the_numbers_of_a_key_never_change() -> None:
    # Snapshots rely on it: a resumed run draws what the first one would have.
    assert Key(1).fold("dropout", 3).generator().integers(0, 1000, 4).tolist() == [851, 399, 877, 759]
