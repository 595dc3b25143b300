"""Named random streams: each part of a run draws from its own, so that a change to one leaves the others."""

from __future__ import annotations

import zlib

import numpy as np


class Streams:
    """Generators by name for one replicate of a seeded run; the same name starts the same stream again."""

    def __init__(self, seed: int, replicate: int = 0) -> None:
        self._seed, self._replicate = seed, replicate

    def __call__(self, name: str) -> np.random.Generator:
        """The stream of that name, from its beginning."""
        key = (self._replicate, zlib.crc32(name.encode()))
        return np.random.default_rng(np.random.SeedSequence(self._seed, spawn_key=key))
