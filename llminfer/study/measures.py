"""What a sweep can measure of a run beyond the usual metrics, and how to check it."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from scipy.special import stdtr

from llminfer.base.arrays import FloatArray
from llminfer.base.errors import fail
from llminfer.base.slo import SLO, TIMES
from llminfer.config import SimulationConfig
from llminfer.experiment import Measure, Row, poolable_metrics, sweep
from llminfer.laws.arrivals import SinusoidalRate
from llminfer.metrics import jain
from llminfer.record import RunRecord
from llminfer.stats.intervals import Estimate, summarize, t_quantile
from llminfer.stats.pooling import LEVELS, kept, quantiles
from llminfer.theory.known import measured_memories
from llminfer.timeseries import batch_limit, latency_quantile, queue_length

_POINTS = 60  # a period has so many points on the grid of the series
_POOLED = ("latency", "queue_wait", "ttft", "tpot", "itl")
_SHARES = {"p50": 0.5, "p95": 0.95, "p99": 0.99}


def _tail(name: str, values: FloatArray) -> Row:
    """Mean and quantiles, and what pools them; NaN where there are no values."""
    ordered = np.sort(values[~np.isnan(values)])
    some = ordered if len(ordered) else np.array([np.nan])
    found = quantiles(some, np.array(list(_SHARES.values()))).tolist()
    row: Row = {f"{q}_{name}": x for q, x in zip(_SHARES, found, strict=True)}
    return {f"avg_{name}": float(some.mean()), **row, **kept(name, ordered)}


def by_group(config: SimulationConfig, record: RunRecord) -> Row:
    """Latency, waits and fairness, of all and by group: short and long, each class.

    A request is long if its prompt is longer than the mean of the prompts' law.

    Args:
        config: Of the run.
        record: Of the run; its warm-up is left out.

    Returns:
        ``memories``, ``fairness_index``, and ``avg_``, ``p50_``, ``p95_`` and ``p99_``
        of ``latency`` and ``queue_wait``, seconds; for each group ``short``, ``long``
        and every request class by its name the same of ``latency_<group>``, and
        ``starved_<group>``, the percentage of the group over three times the median
        latency of all; NaN for a group without requests.
    """
    skip = config.warmup_requests
    latency = record.latency[skip:]
    long = record.prompt_length[skip:] > config.prompts.expectation()
    groups = {"short": ~long, "long": long}
    for number, name in enumerate(config.request_classes):
        groups[name] = record.request_class[skip:] == number
    found = {"memories": measured_memories(config), "fairness_index": jain(latency)}
    found |= _tail("latency", latency) | _tail("queue_wait", record.wait[skip:])
    starved = latency > 3.0 * found["p50_latency"]
    for name, members in groups.items():
        found |= _tail(f"latency_{name}", latency[members])
        share = 100.0 * float(starved[members].mean()) if members.any() else np.nan
        found[f"starved_{name}"] = share
    return found


def by_class(
    config: SimulationConfig, record: RunRecord, slo: SLO | None = None
) -> Row:
    """All metrics of each class of requests, ``p99_ttft[chat]`` and so on.

    Rates are over the time of the whole run, so that those of the classes add up.

    Args:
        config: Of the run.
        record: Of the run; its warm-up is left out.
        slo: Limits on each request: those of its class, or where that has none, of
            all; a sweep takes them by ``partial(by_class, slo=slo)``.

    Returns:
        ``memories``; the metrics that requests have, and what pools their quantiles,
        each with the name of the class in brackets, but none of a class of which no
        request was completed; with an ``slo`` also ``goodput[chat]``, requests a second
        within all limits, and ``within[chat]``, their share.

    >>> from llminfer import simulate
    >>> classes = {"chat": {}, "code": {"prompt_dist_params": {"mu": 6, "sigma": 1}}}
    >>> config = SimulationConfig(request_classes=classes, arrival_rate=1.0)
    >>> config = config.replace(random_seed=1, num_requests=900, batch_timeout=0.0)
    >>> found = by_class(config, simulate(config))
    >>> [round(found[f"avg_prompt_length[{name}]"]) for name in classes]
    [143, 650]
    """
    found: Row = {"memories": measured_memories(config)}
    skip = config.warmup_requests
    for kind, name in enumerate(config.request_classes):
        its = record.of_class(kind)
        own: Row = {f"quantiles_{time}": [0.0] for time in _POOLED}  # of none
        if len(its.measured(skip)):
            own |= poolable_metrics(config, its)
            if slo is not None:
                limits = slo.classes.get(name, slo.classes.get(kind, slo))
                good = _within(its, skip, limits)
                own["goodput"] = good / own["simulation_time"]
                own["within"] = good / len(its.asked(skip))
        found |= {f"{k}[{name}]": v for k, v in own.items() if k != "memories"}
    return found


def _within(record: RunRecord, skip: int, slo: SLO) -> int:
    """How many requests were completed within limits."""
    done = record.measured(skip)
    bounds = sorted((its.bound, its.time) for its in slo.bounds if its.time in TIMES)
    loosest = {time: bound for bound, time in bounds}
    late = [getattr(record, time)[done] > bound for time, bound in loosest.items()]
    return len(done) - int(np.any(late, axis=0).sum())


def over_a_wave(config: SimulationConfig, record: RunRecord) -> Row:
    """Latency at the peak of a sinusoidal rate, and the run's path over time.

    Args:
        config: With ``arrival_pattern="sinusoidal"`` and no phase.
        record: Its run.

    Returns:
        ``p99_latency`` and ``avg_latency`` without the warm-up; ``p99_peak`` of
        requests that arrive in the third of a period around its peak; and on a grid of
        60 points a period the lists ``time``, ``queue``, ``limit`` and ``p99`` (of
        requests completed in the tenth of a period before).

    Raises:
        ConfigError: The rate is no such wave.
    """
    wave = config.arrivals
    if not isinstance(wave, SinusoidalRate):
        raise fail("arrival_pattern", config.arrival_pattern, "sinusoidal")
    measured = slice(config.warmup_requests, None)
    latency = record.latency[measured]
    turn = record.arrival_time[measured] / wave.period % 1.0
    at_peak = np.abs(turn - 0.25) <= 1.0 / 6.0
    periods = max(1, round(config.num_requests / wave.rate / wave.period))
    grid = np.linspace(0.0, periods * wave.period, periods * _POINTS + 1)[1:]
    return {
        **_tail("latency", latency),
        **_tail("peak", latency[at_peak]),
        "time": grid.tolist(),
        "queue": queue_length(record)(grid).tolist(),
        "limit": batch_limit(record)(grid).tolist(),
        "p99": latency_quantile(record, grid, wave.period / 10.0).tolist(),
    }


def tails(config: SimulationConfig, record: RunRecord) -> Row:
    """What most sweeps need, in a third of the time that all metrics take.

    Returns:
        ``memories``; ``avg_``, ``p50_``, ``p95_`` and ``p99_`` of ``latency``,
        ``ttft`` and ``tpot``, seconds, without the warm-up; ``utilization`` of the
        whole run; ``busy_rate``, requests completed a second between the first and the
        last twentieth of all completions: in an overloaded run what the server
        carries, filling up and emptying left out.
    """
    found: Row = {"memories": measured_memories(config)}
    for name in ("latency", "ttft", "tpot"):
        found |= _tail(name, getattr(record, name)[config.warmup_requests :])
    busy = float((record.batch_end - record.batch_start).sum())
    lasted = float(record.batch_end.max() - record.arrival_time[0])
    found["utilization"] = busy / lasted / config.replicas if lasted else math.nan
    n = len(record.arrival_time)
    ends = n // 20, n - n // 20 - 1
    first, last = np.partition(record.processing_end_time, ends)[[*ends]].tolist()
    rate = (ends[1] - ends[0]) / (last - first) if last > first else math.nan
    return found | {"busy_rate": rate}


def latency_parts(config: SimulationConfig, record: RunRecord) -> Row:
    """Mean and quantiles of latency, and what the mean is made of, seconds.

    Returns:
        As ``tails``, of latency alone, and five means whose sum is ``avg_latency``:
        ``queue``, the wait while the server serves others; ``company``, the wait of an
        idle server for a full batch; ``own_prompt`` and ``other_prompts``, the prefill
        of one's own prompt and of the others in the batch; ``shared``, which a batch
        pays once: beta and decode. All without the warm-up.

    >>> from llminfer import Workload, simulate
    >>> config = SimulationConfig(batch_size=2, warmup_requests=0)
    >>> work = Workload.from_arrays([0.0, 0.5, 4.0], [100, 50, 200], [20, 10, 30])
    >>> parts = latency_parts(config, simulate(config, work))
    >>> round(parts["company"], 3)  # the first waits 0.5 s for the second
    0.167
    """
    measured = slice(config.warmup_requests, None)
    wait, latency = record.wait[measured], record.latency[measured]
    start = record.processing_start_time[measured]
    queue = _busy_time(record, start)
    queue -= _busy_time(record, record.arrival_time[measured])
    own = config.alpha * record.prompt_length[measured]
    prompts = record.first_token_time[measured] - start - config.beta
    parts = {
        "queue": queue,
        "company": wait - queue,
        "own_prompt": own,
        "other_prompts": prompts - own,
        "shared": latency - wait - prompts,
    }
    means = {name: float(part.mean()) for name, part in parts.items()}
    return {"memories": measured_memories(config)} | _tail("latency", latency) | means


def _busy_time(record: RunRecord, t: FloatArray) -> FloatArray:
    """Seconds that the server has been busy by each time ``t``, same shape."""
    ends = np.stack([record.batch_start, record.batch_end], axis=1)
    lasting = np.stack([np.zeros(len(ends)), ends[:, 1] - ends[:, 0]], axis=1)
    return np.asarray(np.interp(t, ends.ravel(), lasting.ravel().cumsum()))


def observed_memories(runs: pd.DataFrame, by: Sequence[str], of: str) -> pd.Series:
    """How many memories of the queue a run lasts, as its replications show it.

    The mean of n values that remember one another for m varies as that of n / m that
    do not. So where theory does not know m, the variance within runs over that of
    their means says how many memories fit: with ten runs, to a factor of two.

    Args:
        runs: A sweep's table.
        by: The swept fields.
        of: The metric, such as ``ttft``.

    Returns:
        One number a row of ``runs``, the same in all of a group.
    """
    rows = np.array(runs[f"quantiles_{of}"].tolist())[:, 1:]
    mean, square = (np.trapezoid(rows**k, LEVELS, axis=1) for k in (1, 2))
    groups = runs.assign(within=square - mean**2).groupby(list(by), sort=False)
    of_means = groups[f"avg_{of}"].transform("var")
    return groups["within"].transform("mean") / of_means


def beside_long_runs(
    published: Mapping[str, tuple[SimulationConfig, Mapping[str, float] | pd.Series]],
    metric: str,
    measure: Measure = tails,
    longer: float = 3.0,
    replications: int = 3,
) -> pd.DataFrame:
    """Whether intervals hold what a few longer runs from other seeds say.

    Args:
        published: By a name for each setting, the configuration of its runs and the
            row of ``stats.summarize`` that was made of them.
        metric: What the rows are of, such as ``p99_latency``.
        measure: As in ``sweep``.
        longer: How many times the measured requests of a run each of these has.
        replications: How many such runs, pooled.

    Returns:
        A row a setting: ``published`` with its bounds, ``long runs``, ``requests`` in
        each of them, ``covered``; and ``by chance``, how often an interval that is as
        good as it says misses a number that is itself as uncertain as this one.
    """
    long = {}
    for name, (config, _) in published.items():
        n = math.ceil(longer * (config.num_requests - config.warmup_requests))
        long[name] = config.replace(num_requests=config.warmup_requests + n)
    base = next(iter(long.values()))
    runs = sweep(base, {"setting": long}, replications, None, 9000, measure=measure)
    seen = summarize(runs, "setting", metric).set_index("setting")["mean"]
    rows = []
    for name, (_, row) in published.items():
        found, degrees = Estimate.of(row), int(row["n"]) - 1
        spread = math.sqrt(1.0 + row["n"] / (longer * replications))
        held = found.lower <= seen[name] <= found.upper
        by_chance = 2.0 * stdtr(degrees, -t_quantile(0.95, degrees) / spread)
        own = {"long runs": seen[name], "requests": long[name].num_requests}
        said = {"covered": "yes" if held else "no", "by chance": by_chance}
        rows.append({"setting": name, **found.row("published"), **own, **said})
    return pd.DataFrame(rows).set_index("setting")


def misses(checked: pd.DataFrame) -> str:
    """How many intervals of ``beside_long_runs`` miss, and how many would by chance.

    >>> table = pd.DataFrame({"covered": ["yes", "no"], "by chance": [0.09, 0.09]})
    >>> misses(table)
    '1 of 2 intervals miss; by chance it would be 0.2'
    """
    missed, of = sum(checked["covered"] == "no"), len(checked)
    expected = checked["by chance"].sum()
    return f"{missed} of {of} intervals miss; by chance it would be {expected:.1f}"
