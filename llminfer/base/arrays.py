"""The arrays that columns are made of, and the largest count of tokens in them."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

MOST_TOKENS = 2**40  # far above any context; keeps sums of tokens exact in a float
