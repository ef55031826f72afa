"""Independent streams of random numbers, one a purpose, from one seed."""

import numpy as np

_LAWS = ("arrivals", "prompts", "outputs", "prediction", "classes", "routing")
_PURPOSES = (*_LAWS, "prefixes", "users", "patience")


def stream(seed: int | None, purpose: str, *which: int) -> np.random.Generator:
    """The generator of one purpose, independent of the others of the same seed.

    Args:
        seed: Seed of the run; None draws a fresh one.
        purpose: arrivals, prompts, outputs, prediction, classes, routing, prefixes,
            users or patience.
        which: Numbers of one of many for this purpose, such as of a user.
    """
    child = np.random.SeedSequence(seed, spawn_key=(_PURPOSES.index(purpose), *which))
    return np.random.Generator(np.random.PCG64(child))
