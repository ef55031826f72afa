"""The rate at which runs begin to break a limit, with how unsure it is."""

import numpy as np
import pandas as pd

from llminfer.base.arrays import FloatArray


def left_out_means(numbers: FloatArray) -> FloatArray:
    """The mean of pseudo-values, then without each in turn, shape (1 + n, ...).

    >>> left_out_means(np.array([[1.0], [3.0]])).tolist()
    [[2.0], [3.0], [1.0]]
    """
    pooled = pd.DataFrame(numbers).mean().to_numpy()
    off = np.nan_to_num(numbers - pooled) / max(len(numbers) - 1, 1)
    return np.concatenate((pooled[None], pooled - off))


def crossing_logs(excess: FloatArray, rates: FloatArray) -> FloatArray:
    """The log rate at which limits begin to break, a pseudo-value a replication.

    Args:
        excess: Of all, and without each replication, shape (1 + n, rates).
        rates: Ascending.

    >>> crossing_logs(np.array([[-1.0, 1.0]] * 3), np.array([1.0, 4.0])).round(3)
    array([0.693, 0.693])
    """
    logs = np.log(rates)
    found, *without = (
        np.interp(0.0, np.maximum.accumulate(row), logs) for row in excess
    )
    return found + (len(without) - 1) * (np.mean(without) - np.array(without))
