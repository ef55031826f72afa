"""How far an interval can be trusted: the same experiment a thousand times.

At a server that takes one request at a time the waits follow from arrivals and
services in one line, for all replications together. They are what the simulator gives
for the same requests; the tests hold one against the other.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import binomtest

from llminfer import RunRecord, SimulationConfig
from llminfer.base.arrays import FloatArray
from llminfer.base.errors import whole
from llminfer.laws.lengths import LengthLaw
from llminfer.stats.intervals import Estimate, Values, skewed_mean
from llminfer.stats.paired import BLOCK, best_against_rest
from llminfer.stats.run_length import averaged_series, mser5, replicate_until
from llminfer.theory.known import first_come, single

Numbers = dict[str, Any]
_TIED = "best of 8 equals"
_SEED = 42
_CELLS = 2**16  # a power of two: to which a number belongs is exact


def waits(gaps: FloatArray, service: FloatArray) -> FloatArray:
    """Waits in queue at one FCFS server that starts empty, seconds, shape (..., n).

    Args:
        gaps: Seconds since the arrival before, shape (..., n); the first is not used.
        service: Seconds each request takes, same shape.

    Source: W' = max(W + S - gap, 0), Lindley (1952).

    >>> waits(np.array([0.0, 1.0, 5.0]), np.array([3.0, 1.0, 1.0]))
    array([0., 2., 0.])
    """
    walk = np.zeros(gaps.shape)
    np.cumsum(service[..., :-1] - gaps[..., 1:], axis=-1, out=walk[..., 1:])
    return np.asarray(walk - np.minimum.accumulate(walk, axis=-1))


def experiments(
    config: SimulationConfig,
    measure: Callable[[SimulationConfig, FloatArray], Numbers],
    loads: Sequence[float],
    number: int = 1000,
    replications: int = 30,
) -> pd.DataFrame:
    """One experiment many times over, with requests of its own each time.

    The requests are the same whatever the coefficients.

    Args:
        config: Batch size 1, FCFS, Poisson arrivals at a constant rate; the rate
            itself follows from the load.
        measure: Makes an experiment's numbers from the configuration at a load and
            its waits, seconds, shape (replications, num_requests), warm-up too.
        loads: lambda / lambda*; all of them face the same requests.
        number: Experiments at each load.
        replications: Replications an experiment.

    Returns:
        A row an experiment and load: ``load``, ``experiment``, then the numbers.

    Raises:
        ConfigError: The configuration is another one.
    """
    single(config)
    first_come(config)
    most = config.max_stable_rate
    at_loads = {load: config.replace(arrival_rate=load * most) for load in loads}
    shape = whole("replications", replications, 1), config.num_requests
    laws = _fast(config.prompts), _fast(config.outputs)
    rows = []
    for experiment in range(whole("number", number, 1)):
        generator = np.random.default_rng([_SEED, experiment])
        gaps = generator.standard_exponential(shape)
        prompt, output = (tokens(generator.random(shape)) for tokens in laws)
        service = config.step_time.alone(prompt, output)
        for load, at in at_loads.items():
            found = measure(at, waits(gaps / at.arrival_rate, service))
            rows.append({"load": load, "experiment": experiment, **found})
    return pd.DataFrame(rows)


def _fast(law: LengthLaw) -> Callable[[FloatArray], FloatArray]:
    """The law's ``tokens``, read from a table wherever its neighbours are the same."""
    table = law.tokens(np.linspace(0.0, 1.0, _CELLS + 1)).astype(np.float64)
    alike = table[:-1] == table[1:]

    def tokens(u: FloatArray) -> FloatArray:
        cell = (u * _CELLS).astype(np.int64)
        found, rest = table[cell], ~alike[cell]
        found[rest] = law.tokens(u[rest])
        return found

    return tokens


def covers(values: Values, exact: float) -> bool:
    """Whether Student's 95% interval of the values holds the exact mean.

    >>> covers([1.0, 2.0, 3.0], exact=2.5)
    True
    """
    found = Estimate.of_mean(values)
    return found.lower <= exact <= found.upper


def share(hits: Sequence[bool] | pd.Series) -> Numbers:
    """The share of hits among independent trials, with its exact 95% interval.

    Returns:
        ``{"mean", "ci_lower", "ci_upper"}``.

    Source: Clopper and Pearson (1934).

    >>> found = share([True] * 19 + [False])
    >>> {name: round(value, 3) for name, value in found.items()}
    {'mean': 0.95, 'ci_lower': 0.751, 'ci_upper': 0.999}
    """
    n, k = len(hits), int(np.sum(hits))
    bounds = binomtest(k, n).proportion_ci(0.95, "exact")
    return Estimate(k / n, float(bounds.low), float(bounds.high)).row()


def trust(means: FloatArray, exact: float, number: int = 1000) -> pd.DataFrame:
    """Every kind of interval this package gives of runs, tried many times over.

    Args:
        means: Of many independent runs; an experiment draws its own from among them.
        exact: What they estimate.
        number: Experiments.

    Returns:
        A row a kind: ``interval``, in words; ``mean``, the share that holds the truth,
        with ``ci_lower`` and ``ci_upper`` as in ``share``; ``low`` and ``high``, the
        shares that lie below and above it. The last kind compares the best of eight
        that are equally good, and share half of their noise, with the rest.

    >>> found = trust(np.array([1.0, 2.0, 3.0]), exact=2.0, number=20)
    >>> found["interval"].tolist()[-2:]
    ['until ±10%', 'best of 8 equals']
    """
    generator = np.random.default_rng(_SEED)
    block, rule = np.indices((10, 8)).reshape(2, -1)
    kinds = {"Student": Estimate.of_mean, "skewed": skewed_mean}
    tried: list[dict[str, Estimate]] = []
    for _ in range(whole("number", number, 1)):
        runs = generator.choice(means, 1000)
        waits = runs[:80] + runs[80:90][block]
        tied = pd.DataFrame({"wait": waits, "rule": rule, BLOCK: block})
        best = best_against_rest(tied, "wait", "rule", claimed=[0, 1])
        found = {
            f"{k}, {n} runs": of(runs[:n]) for n in (10, 30) for k, of in kinds.items()
        }
        found["until ±10%"] = replicate_until(runs.__getitem__, 0.1).estimate
        tried.append(found | {_TIED: Estimate.of(best, "difference")})
    rows = []
    for kind in tried[0]:
        truth = 0.0 if kind == _TIED else exact
        low = np.array([found[kind].upper < truth for found in tried])
        high = np.array([found[kind].lower > truth for found in tried])
        sides = {"low": low.mean(), "high": high.mean()}
        rows.append({"interval": kind, **share(~(low | high)), **sides})
    return pd.DataFrame(rows)


def behind_cuts(waits: FloatArray, cuts: Sequence[int]) -> Numbers:
    """Mean waits behind a warm-up cut, by how it is chosen.

    Args:
        waits: Seconds, shape (replications, n).
        cuts: Requests to cut.

    Returns:
        ``means``, the replications' behind each of ``cuts``; ``each``, behind the cut
        of MSER-5 for every replication alone; ``common``, behind its cut of the
        averaged series; ``series``, that series.
    """
    series = averaged_series(list(waits))
    each = [float(wait[mser5(wait) or 0 :].mean()) for wait in waits]
    common = waits[:, mser5(series) or 0 :].mean(axis=1)
    means = [waits[:, cut:].mean(axis=1) for cut in cuts]
    return {"means": means, "each": each, "common": common, "series": series}


def p99s(waits: FloatArray, exact: float, sizes: Sequence[int]) -> Numbers:
    """The p99 wait over the exact one, from short runs: mean of p99s, and pooled.

    Args:
        waits: Seconds, shape (replications, n), without the warm-up.
        exact: The p99, seconds.
        sizes: Requests a replication.

    >>> runs = np.arange(200.0).reshape(2, 100)
    >>> found = p99s(runs, exact=198.0, sizes=[100])
    >>> {name: round(float(ratio), 2) for name, ratio in found.items()}
    {'mean 100': 0.75, 'pooled 100': 0.99}
    """
    found: Numbers = {}
    for n in sizes:
        part = waits[:, :n]
        found[f"mean {n}"] = np.quantile(part, 0.99, axis=1).mean() / exact
        found[f"pooled {n}"] = np.quantile(part, 0.99) / exact
    return found


def mean_wait(config: SimulationConfig, record: RunRecord) -> dict[str, float]:
    """The mean wait of a run without its warm-up, seconds: a measure for sweeps."""
    return {"mean_wait": float(record.wait[config.warmup_requests :].mean())}


def stopped(means: FloatArray, exact: float, targets: Sequence[float]) -> Numbers:
    """What ``replicate_until`` does with replications' means, in their order.

    Args:
        means: One a replication, shape (n,).
        exact: What they estimate.
        targets: Relative errors to ask for.

    Returns:
        ``n <target>``, the replications it took, and ``near <target>``, whether the
        truth was as near as asked.

    >>> stopped(np.full(40, 3.0), 3.0, [0.1])
    {'n 0.1': 30, 'near 0.1': True}
    """
    found: Numbers = {}
    for target in targets:
        ran = replicate_until(means.__getitem__, target, most=len(means))
        near = bool(abs(ran.estimate.value / exact - 1.0) <= target)
        found |= {f"n {target}": ran.n, f"near {target}": near}
    return found
