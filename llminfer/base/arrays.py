"""The arrays that columns are made of, and how long and large they may be."""

import os

import numpy as np
import numpy.typing as npt

from llminfer.base.errors import fail

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

MOST_TOKENS = 2**40  # far above any context; keeps sums of tokens exact in a float
# Bytes of memory that a run and its metrics take at most, where requests come by the
# clock and bring fewer than three stretches of steps each; see tests/bench_memory.py
BYTES_A_REQUEST = {"static": 190, "continuous": 380}


def check_room(name: str, count: int, each: int) -> None:
    """Refuse what this machine's memory has no room for.

    Args:
        name: What there are many of.
        count: How many.
        each: Bytes that each of them takes, about.

    Raises:
        ConfigError: There is no room; says how much memory it needs.
    """
    room = 2**34  # bytes, where the machine does not say: Windows
    if hasattr(os, "sysconf"):
        room = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if count * each > room:
        must = f"at most {room // each:,}: it takes {count * each / 2**30:,.0f} GiB"
        raise fail(name, count, must)
