"""Randomness from keys, never from a stream.

A key is a list of words: a seed and what the numbers are for. Equal keys give equal numbers, however often and
in whatever order they are drawn, so a recomputed forward draws the mask of the first one, and any number
of workers draws what one would.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class Key:
    """A name for a set of random numbers.

    >>> a = Key(1).fold("dropout", 3).generator().random()
    >>> b = Key(1).fold("dropout").fold(3).generator().random()
    >>> a == b
    True
    """

    seed: int
    words: tuple[int | str, ...] = ()

    def fold(self, *words: int | str) -> Key:
        """Returns the key for a part of what this key is for."""
        plain = (word if isinstance(word, str) else int(word) for word in words)  # a NumPy integer is written otherwise
        return Key(self.seed, (*self.words, *plain))

    def generator(self) -> np.random.Generator:
        """Returns a new generator that starts where this key says.

        Philox (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3") is keyed with a hash of the
        words, so keys that differ in one word are independent.
        """
        digest = hashlib.blake2b(repr((int(self.seed), *self.words)).encode(), digest_size=16).digest()
        return np.random.Generator(np.random.Philox(key=int.from_bytes(digest, "little")))
