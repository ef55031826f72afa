"""A trace beside what is usually assumed of traffic, and its synthetic twin."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from llminfer import RunRecord, SimulationConfig, Workload
from llminfer.base.arrays import FloatArray, IntArray
from llminfer.base.columns import mean_rate
from llminfer.base.errors import fail, number, whole
from llminfer.experiment import Row, simulate
from llminfer.laws.lengths import LengthLaw, LogNormal
from llminfer.stats.intervals import Estimate, Values, jackknife, without_one

_TRIALS = 100  # samples that ``distance_by_chance`` draws
_BLOCKS = 10  # consecutive parts of a path, for its interval


def fitted_lognormal(tokens: IntArray) -> LogNormal:
    """The log-normal with the moments that the logs of ``tokens`` have.

    A count k stands for real lengths from k to k + 1, and is taken for their middle.
    The law is clipped to the greatest count, as a context limit does.

    >>> law = fitted_lognormal(np.array([9, 90, 900]))
    >>> round(law.mu, 2), round(law.sigma, 2), law.max
    (4.52, 1.86, 900)
    """
    logs = np.log(tokens + 0.5)
    return LogNormal(float(logs.mean()), float(logs.std()), max=int(tokens.max()))


def twin(trace: Workload) -> dict[str, Any]:
    """The synthetic workload that is usually taken for a trace.

    Returns:
        Fields of a configuration: Poisson arrivals at the trace's mean rate, and
        prompts and outputs from ``fitted_lognormal``, all independent.
    """
    fields: dict[str, Any] = {"arrival_rate": mean_rate(trace.arrival_time)}
    for part in ("prompt", "output"):
        law = fitted_lognormal(getattr(trace, f"{part}_length"))
        fields[f"{part}_length_dist"] = "lognormal"
        params = {"mu": law.mu, "sigma": law.sigma, "max": law.max}
        fields[f"{part}_dist_params"] = params
    return fields


def counts(arrival_time: FloatArray, window: float) -> IntArray:
    """Arrivals in each whole window of so many seconds from the first arrival on.

    Raises:
        ConfigError: A window that is not above 0, or with fewer than two of them.

    >>> counts(np.array([0.0, 0.5, 1.5, 3.5]), window=1.0)
    array([2, 1, 0])
    """
    since = arrival_time - arrival_time[0]
    windows = int(since[-1] // number("window", window, above=0.0))
    if windows < 2:
        raise fail("window", window, f"at most {since[-1] / 2.0:.3g}, half of the time")
    return np.bincount((since / window).astype(np.int64))[:windows]


def dispersion(counted: FloatArray | IntArray) -> float:
    """Variance over mean of counts: 1 where arrivals are Poisson, more in bursts.

    >>> dispersion(np.array([1.0, 3.0, 2.0, 6.0]))
    1.5555555555555556
    """
    return float(counted.var(ddof=1) / counted.mean())


def variation(gaps: FloatArray | IntArray) -> float:
    """Coefficient of variation: 1 where the gaps are exponential.

    >>> round(variation(np.array([1.0, 3.0, 2.0, 6.0])), 2)
    0.72
    """
    return float(gaps.std(ddof=1) / gaps.mean())


def distance(tokens: IntArray, law: LengthLaw) -> float:
    """Greatest gap between the shares of requests above a length, 0 to 1.

    Source: Kolmogorov (1933), here on whole tokens.

    >>> from llminfer.laws.lengths import Uniform
    >>> law = Uniform(min=1, max=4)  # 1, 2 or 3 tokens; of the data none has 3
    >>> round(distance(np.array([1, 2, 2, 2]), law), 2)
    0.33
    """
    above = 1.0 - np.cumsum(np.bincount(tokens)) / len(tokens)
    expected = law.survival(np.arange(len(above), dtype=np.float64))
    return float(np.abs(above - expected).max())


def distance_by_chance(law: LogNormal, n: int) -> float:
    """The distance that 95% of true log-normal samples stay below.

    Each sample is compared with the law fitted to itself, as a trace is.

    Args:
        law: Where the samples come from.
        n: Requests in a sample.

    Source: Lilliefors (1967).
    """
    random = np.random.default_rng(42)
    samples = (law.tokens(random.random(whole("n", n, 2))) for _ in range(_TRIALS))
    found = [distance(tokens, fitted_lognormal(tokens)) for tokens in samples]
    return float(np.quantile(found, 0.95))


def token_times(record: RunRecord) -> dict[str, FloatArray]:
    """``ttft`` of every request and ``tpot`` of those with several tokens, seconds.

    Both in order of arrival.
    """
    return {"ttft": record.ttft, "tpot": record.tpot[record.output_length > 1]}


def replayed(config: SimulationConfig, trace: Workload) -> list[Row]:
    """Median and p99 of TTFT and TPOT in a replay, seconds, with ``by_blocks``.

    The intervals are found on the log scale: half as much is as far as twice as much.

    Returns:
        A row a number: ``metric``, such as ``p99_ttft``; ``mean``, which is the
        number; ``ci_lower`` and ``ci_upper``.
    """
    rows: list[Row] = []
    for name, values in token_times(simulate(config, trace)).items():
        for metric, q in ((f"p50_{name}", 0.5), (f"p99_{name}", 0.99)):
            its = by_blocks(partial(np.quantile, q=q), np.log(values))
            found = Estimate(*np.exp([its.value, its.lower, its.upper]).tolist())
            rows.append({"metric": metric, **found.row()})
    return rows


def typical(values: Values) -> dict[str, float]:
    """Geometric mean and its Student t interval: for rates and for ratios.

    Args:
        values: Above 0, one a part that is nearly independent of the others.

    Returns:
        ``{"mean", "ci_lower", "ci_upper"}``.

    >>> found = typical([1.0, 2.0, 4.0])
    >>> {name: round(value, 2) for name, value in found.items()}
    {'mean': 2.0, 'ci_lower': 0.36, 'ci_upper': 11.19}
    """
    logs = Estimate.of_mean(np.log(values))
    return {name: math.exp(its) for name, its in logs.row().items()}


def by_blocks(statistic: Callable[[Any], float], values: Any) -> Estimate:
    """A number from one path, with a 95% interval from leaving out each of ten blocks.

    Neighbours in a trace are alike, and so are their latencies; blocks of consecutive
    requests are nearly independent if they are long beside the bursts. A trend over
    the whole path is no noise, and no interval from the path covers it.

    Args:
        statistic: Of values, shape (n,) or (n, k).
        values: In order of time, along the first axis.

    Raises:
        ConfigError: Fewer values than two a block.

    Source: the delete-a-group jackknife, Miller (1974).

    >>> found = by_blocks(np.mean, np.arange(20.0))
    >>> round(found.lower, 2), found.value, round(found.upper, 2)
    (5.17, 9.5, 13.83)
    """
    if len(values) < 2 * _BLOCKS:
        raise fail("values", len(values), f"at least {2 * _BLOCKS}, two a block")
    parts = np.array_split(values, _BLOCKS)
    left_out = [float(statistic(rest)) for rest in without_one(parts)]
    return jackknife(float(statistic(values)), left_out)
