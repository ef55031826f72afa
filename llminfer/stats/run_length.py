"""How long is long enough: replications to add, and the warm-up to drop."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from llminfer.base.arrays import FloatArray
from llminfer.base.errors import ConfigError, fail, number, whole
from llminfer.stats.intervals import Estimate, Values, skewed_mean

_FEWEST_REPLICATIONS = 20  # a half-width from fewer is too noisy to stop on


class Replications(NamedTuple):
    """What ``replicate_until`` ran: the values, their mean, whether it got there."""

    values: tuple[float, ...]
    estimate: Estimate
    reached: bool

    @property
    def n(self) -> int:
        """How many replications."""
        return len(self.values)


def replicate_until(
    run: Callable[[int], float],
    target: float,
    most: int = 1000,
) -> Replications:
    """Replicate until the 95% interval's half-width is within ``target`` of the truth.

    To stop where an interval happens to be narrow is to stop where it is too narrow.
    So once it will do, half as many replications again are run before it is believed,
    and if by then it will not do, more. It is that of ``skewed_mean``.

    Args:
        run: One replication's value from its number 0, 1, 2 ...
        target: Greatest relative error, such as 0.05. The half-width must come down
            to target/(1 + target) of the estimated mean, which makes it at most
            ``target`` of the true one wherever the interval covers.
        most: Replications after which it gives up; ``reached`` is then false.

    Raises:
        ConfigError: A setting that makes no sense, or a value that is not finite.

    Source: Law and Kelton (1982).

    >>> found = replicate_until(lambda i: 10.0 + i % 2, target=0.05)
    >>> found.n, found.reached
    (30, True)
    """
    number("target", target, above=0.0)
    whole("most", most, _FEWEST_REPLICATIONS)
    values: list[float] = []
    believed = 0  # replications before an interval is believed, once one will do
    mean = squares = 0.0  # as they come, Welford (1962)
    bound = target / (1.0 + target)
    while True:
        values.append(number(f"run({len(values)})", run(len(values))))
        n, off = len(values), values[-1] - mean
        mean += off / n
        squares += off * (values[-1] - mean)
        if n < max(_FEWEST_REPLICATIONS, believed):
            continue
        # no interval is narrower than 1.95 standard errors: look only at those near it
        if n < most and 1.95**2 * squares > n * (n - 1) * (bound * mean) ** 2:
            continue
        found = skewed_mean(values)
        half = max(found.upper - found.value, found.value - found.lower)
        reached = half <= bound * abs(found.value)
        if (reached and believed) or n >= most:
            return Replications(tuple(values), found, reached)
        if reached:
            believed = min(math.ceil(1.5 * n), most)


def averaged_series(series_by_replication: Sequence[Values]) -> FloatArray:
    """The mean over replications of the first, second, ... value, shape (shortest,).

    Args:
        series_by_replication: One series a replication, such as the latencies of
            its requests in order of arrival, seconds.

    Raises:
        ConfigError: There is no series, or one is empty.

    >>> averaged_series([[1.0, 2.0, 3.0], [3.0, 4.0]])
    array([2., 3.])
    """
    shortest = min((len(series) for series in series_by_replication), default=0)
    if not shortest:
        raise ConfigError("series_by_replication: must be series of at least one value")
    rows = [np.asarray(row[:shortest], np.float64) for row in series_by_replication]
    return np.asarray(np.mean(rows, axis=0))


def mser5(series: Values) -> int | None:
    """How many values to drop from the front of a series, by the rule MSER-5.

    It cuts where the squared standard error of the mean of the rest, in batches of
    five, is least. Give it the series averaged over replications: on each alone it
    cuts where chance is kind, and spoils the interval.

    Args:
        series: Values in order, at least 50.

    Returns:
        A multiple of 5; None if the best cut lies in the second half: the series
        still drifts, or is too short.

    Raises:
        ConfigError: Fewer than 50 values.

    Source: White, Cobb and Spratt (2000); leaving at least five batches, and when to
    refuse, Hoad, Robinson and Davies (2010).

    >>> series = np.append(np.full(20, 9.0), np.tile([1.0, 2.0], 50))
    >>> mser5(series)
    20
    """
    values = np.asarray(series, dtype=np.float64)
    if not np.isfinite(values).all():
        raise ConfigError("series: must be finite numbers")
    if len(values) < 50:
        raise ConfigError(f"series: {len(values)} values: must be at least 50")
    batches = values[: len(values) // 5 * 5].reshape(-1, 5).mean(axis=1)
    m = len(batches)
    from_end = (batches - batches.mean())[::-1]  # centred, so that nothing cancels
    kept = np.arange(1, m + 1)
    squares = np.cumsum(from_end**2) - np.cumsum(from_end) ** 2 / kept
    by_cut = (squares / kept**2)[::-1]
    cut = int(np.argmin(by_cut[: m - 4]))
    return 5 * cut if cut <= m // 2 else None


def welch(series_by_replication: Sequence[Values], window: int) -> FloatArray:
    """Welch's curve: the averaged series, smoothed; warm-up ends where it levels off.

    Args:
        series_by_replication: One series a replication.
        window: Values on each side of the one smoothed; fewer near the front.

    Returns:
        The moving average, shape (shortest - window,).

    Raises:
        ConfigError: ``window`` is no whole number of at least 1, or the series are
            too short for it.

    Source: Welch (1983).

    >>> welch([np.arange(8.0)], window=2)
    array([0., 1., 2., 3., 4., 5.])
    """
    mean = averaged_series(series_by_replication)
    if 2 * whole("window", window, 1) >= len(mean):
        raise fail("window", window, f"less than half the {len(mean)} values")
    total = np.concatenate(([0.0], np.cumsum(mean)))
    at = np.arange(len(mean) - window)
    reach = np.minimum(at, window)
    return np.asarray((total[at + reach + 1] - total[at - reach]) / (2 * reach + 1))
