"""Independent streams of random numbers, one a purpose, from one seed."""

from __future__ import annotations

import numpy as np

_LAWS = ("arrivals", "prompts", "outputs", "prediction", "classes", "routing")
_PURPOSES = (*_LAWS, "prefixes")


def stream(seed: int | None, purpose: str) -> np.random.Generator:
    """The generator of one purpose, independent of the others of the same seed.

    Args:
        seed: Seed of the run; None draws a fresh one.
        purpose: One of arrivals, prompts, outputs, prediction, classes, routing,
            prefixes.
    """
    child = np.random.SeedSequence(seed, spawn_key=(_PURPOSES.index(purpose),))
    return np.random.Generator(np.random.PCG64(child))
