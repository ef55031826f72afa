"""Capacity: the largest arrival rate that a server carries within its SLO."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from llminfer.base.errors import ConfigError, fail, number, whole
from llminfer.config import SimulationConfig
from llminfer.experiment import Metrics, Row, in_parallel, replicated
from llminfer.laws.lengths import Geometric
from llminfer.laws.prefixes import rounds
from llminfer.record import RunRecord
from llminfer.servers.overload import described
from llminfer.stats.intervals import jackknife
from llminfer.stats.pooling import by_replication
from llminfer.workload import Workload

_TIMES = ("ttft", "tpot", "latency")
_FEWEST = 2000  # requests measured in all replications: 20 beyond the p99
_BATCHES = 3  # a run has so many times the requests that the servers hold
_NEAR, _LONGER = 0.95, 3  # from this share of lambda* on so much longer runs decide


@dataclass(frozen=True)
class SLO:
    """What users are promised: at least one limit, in seconds.

    Each limit is on the p99 of its time. With ``goodput`` it is on each request
    instead, and that share of the requests must be within all limits at once.

    Args:
        ttft: Of the time to the first token.
        tpot: Of the time an output token after the first.
        latency: Of the time to the last token.
        goodput: Share of requests, such as 0.9; None looks at each p99.

    Raises:
        ConfigError: No limit, one that is not above 0, or no share.

    >>> SLO(ttft=1.0, tpot=0.05).limits
    {'ttft': 1.0, 'tpot': 0.05}
    """

    ttft: float | None = None
    tpot: float | None = None
    latency: float | None = None
    goodput: float | None = None

    def __post_init__(self) -> None:
        if not self.limits:
            raise ConfigError("slo: no limit given: must be of ttft, tpot or latency")
        for name, limit in self.limits.items():
            number(name, limit, above=0.0)
        if self.goodput is not None:
            number("goodput", self.goodput, above=0.0, most=1.0)

    @property
    def limits(self) -> dict[str, float]:
        """The limits that are given, by name."""
        given = {name: getattr(self, name) for name in _TIMES}
        return {name: limit for name, limit in given.items() if limit is not None}

    def broken(self, metrics: Metrics) -> list[str]:
        """What ``metrics`` of ``Capacity`` do not keep, in words.

        >>> SLO(ttft=1.0).broken({"p99_ttft": 2.0})
        ['ttft=1: the p99 is 2 s']
        >>> SLO(ttft=1.0, goodput=0.9).broken({"within": 0.8})
        ['goodput=0.9: 80.0% are within the limits']
        """
        if self.goodput is not None:
            share = metrics["within"]
            said = f"goodput={self.goodput:g}: {share:.1%} are within the limits"
            return [said] if share < self.goodput else []
        return [
            f"{name}={limit:g}: the p99 is {metrics[f'p99_{name}']:.3g} s"
            for name, limit in self.limits.items()
            if metrics[f"p99_{name}"] > limit
        ]


@dataclass(frozen=True, eq=False)
class Capacity:
    """The largest rate within limits, requests a second.

    Attributes:
        rate: The largest that was seen to keep them.
        bracket: That rate, and the next that was seen to break them.
        interval: Where the largest rate lies with 95% confidence, by the jackknife over
            replications; NaN for a trace. Often wider than the bracket: more
            replications or longer ones narrow it, a smaller tolerance does not.
        metrics: At ``rate``, of the pooled requests: ``p99_`` and ``avg_`` of ``ttft``,
            ``tpot`` and ``latency``, seconds; ``within``, the share within all limits;
            ``goodput``, so many a second; ``avg_output_length``, tokens; ``waiting``,
            how many waited when the last one came, mean over replications; near lambda*
            of the longer run, over the root of 3.
        evaluated: A row a rate, ascending: ``rate``, the metrics, and ``meets``.
    """

    rate: float
    bracket: tuple[float, float]
    interval: tuple[float, float]
    metrics: Metrics
    evaluated: pd.DataFrame


def capacity(
    config: SimulationConfig,
    slo: SLO,
    workload: Workload | None = None,
    *,
    replications: int = 10,
    tolerance: float = 0.02,
    n_jobs: int | None = None,
    random_seed_start: int = 42,
) -> Capacity:
    """The largest mean arrival rate that keeps ``slo``.

    Every rate faces the same requests, arriving closer together or further apart (a
    rate that varies keeps its shape; its periods shrink as it grows). The search goes
    from lambda* up or down until it has crossed the limits, then halves that interval
    in log rate. Where limits are kept in several stretches of rates, the answer is the
    upper end of one of them.

    A finite run above lambda* may keep limits that a longer one breaks, and TPOT never
    feels the queue. So a rate counts only below lambda* of the requests where theory
    has it exactly (FCFS, in static batches or with geometric outputs). Elsewhere the
    queue must not grow: when the last request comes, no more wait than ``tolerance`` of
    all, or than one batch, and near lambda* in a run of three times the length, in
    which a trace goes round, no more than the root of 3 times that (a random walk
    grows so, a queue past lambda* faster). The
    configuration's ``num_requests`` is the length of a replication, warm-up included.

    Args:
        config: Everything but the rate.
        slo: The limits.
        workload: A trace to replay at scaled rates instead, once.
        replications: Runs a rate; their requests are judged together.
        tolerance: Greatest ratio of the bracket's ends, less 1.
        n_jobs: Processes; None takes one a core. The answer does not depend on it.
        random_seed_start: First seed.

    Raises:
        ConfigError: Limits that no rate keeps, or too few requests to tell.

    >>> config = SimulationConfig(batch_size=4, num_requests=2500, batch_timeout=0.0)
    >>> slo = SLO(latency=5.0)
    >>> found = capacity(config, slo, replications=1, tolerance=0.2, n_jobs=1)
    >>> round(found.rate, 1)
    1.1
    """
    plan = Plan(workload, replications, n_jobs, random_seed_start)
    trials = Trials(config, slo, plan, number("tolerance", tolerance, above=0.0))
    low, high = trials.search()
    interval, evaluated = trials.interval(low), tried("rate", trials.rows)
    return Capacity(low, (low, high), interval, trials.metrics(low), evaluated)


def largest_rates(runs: pd.DataFrame, metric: str, limit: float) -> pd.Series:
    """The rate up to which the runs of a sweep keep a limit, a number a replication.

    Between two rates of the sweep the metric, a quantile of all runs together, is
    taken to grow exponentially. Limits that are kept at all of them give the last,
    those that are kept at none the first.

    Args:
        runs: A sweep's table over ``arrival_rate``, each with the same replications.
        metric: The column that must not be above ``limit``.
        limit: In the unit of the metric.

    Returns:
        By ``replication`` rates whose geometric mean is that of all runs, the
        jackknife's pseudo-values: their interval is the one from leaving out each.

    >>> rates = [1.0, 2.0]
    >>> runs = pd.DataFrame({"replication": [0, 0], "arrival_rate": rates})
    >>> round(largest_rates(runs.assign(p99=[1.0, 4.0]), "p99", limit=2.0)[0], 3)
    np.float64(1.414)
    """
    number("limit", limit, above=0.0)
    numbers = by_replication(runs, metric, ["arrival_rate"])
    table = runs.assign(number=numbers).pivot(
        index="replication", columns="arrival_rate", values="number"
    )
    logs, n = np.log(table.columns.to_numpy(dtype=np.float64)), len(table)
    pooled = table.to_numpy().mean(axis=0)
    without = pooled - (table.to_numpy() - pooled) / max(n - 1, 1)
    found, *left_out = (
        np.interp(np.log(limit), np.maximum.accumulate(np.log(row)), logs)
        for row in [pooled, *without]
    )
    pseudo = found + (n - 1) * (np.mean(left_out) - np.array(left_out))
    return pd.Series(np.exp(pseudo), table.index, name="arrival_rate")


@dataclass(frozen=True)
class Plan:
    """What is replayed how often, and by how many processes."""

    workload: Workload | None
    replications: int
    n_jobs: int | None
    first_seed: int

    def configs(self, config: SimulationConfig) -> list[SimulationConfig]:
        """A configuration a replication, with its seed; one for a trace."""
        whole("replications", self.replications, 1)
        runs = self.replications if self.workload is None else 1
        return replicated(config, runs, self.first_seed)

    def requests(self, config: SimulationConfig) -> Workload:
        """The requests of one replication, at a mean rate of 1 a second."""
        if self.workload is None:
            mean = config.arrivals.mean(config.num_requests)
            return Workload.generate(config).scaled(1.0 / mean)
        arrival = self.workload.arrival_time
        span = float(arrival[-1] - arrival[0])
        if not span > 0.0:
            must = "several requests that come at different times"
            raise fail("workload", self.workload, must)
        return self.workload.scaled(span / len(arrival))

    def longer(self, config: SimulationConfig) -> Workload:
        """The same of a run that is ``_LONGER`` times as long; a trace goes round."""
        if self.workload is None:
            n = _LONGER * config.num_requests
            return self.requests(config.replace(num_requests=n))
        its = self.requests(config)
        after = np.repeat(np.arange(_LONGER), len(its)) * float(len(its))
        columns = {name: np.tile(its, _LONGER) for name, its in its.columns.items()}
        columns["arrival_time"] = columns["arrival_time"] + after
        return Workload(**columns, segments=rounds(its.segments, _LONGER))


@dataclass
class Trials:
    """Tries rates, and remembers what came of each."""

    config: SimulationConfig
    slo: SLO
    plan: Plan
    tolerance: float = 0.02
    rows: dict[float, Row] = field(default_factory=dict)
    _runs: dict[float, list[Row]] = field(default_factory=dict)  # a rate's, by seed

    def __post_init__(self) -> None:
        self._configs = self.plan.configs(self.config)
        self._requests = [self.plan.requests(config) for config in self._configs]
        n = len(self._requests[0])
        holds = self.config.largest_batch * self.config.replicas
        runs = len(self._configs)
        skipped = self.config.warmup_requests
        least = max(_BATCHES * holds, skipped + math.ceil(_FEWEST / runs))
        if n < least:
            name = "num_requests" if self.plan.workload is None else "workload"
            must = (
                f"at least {least} requests: {_FEWEST} measured ones in all have 20 "
                f"beyond the p99, and the {holds} in service must be few of a run's"
            )
            raise fail(name, n, must)
        self._queue = max(self.tolerance * n, holds)
        trace = self.plan.workload
        served = self.config if trace is None else described(trace, self.config)
        self._most, self._exact = served.max_stable_rate, _has_exact_rate(served)
        self._near = math.inf if self._exact else _NEAR * self._most

    def meets(self, rate: float) -> bool:
        """Are the limits kept at ``rate``, and does the queue not grow?"""
        if rate not in self.rows:
            runs = self._run([its.scaled(rate) for its in self._requests])
            found = self._pooled(runs)
            if self._excess(found, rate) <= 0.0 and rate > self._near:
                longer = self._run(
                    [self.plan.longer(its).scaled(rate) for its in self._configs]
                )
                for run, its in zip(runs, longer, strict=True):
                    run["waiting"] = its["waiting"] / math.sqrt(_LONGER)
                found["waiting"] = self._pooled(runs)["waiting"]
            found["goodput"] = rate * found["within"]
            self._runs[rate] = runs
            self.rows[rate] = found | {"meets": self._excess(found, rate) <= 0.0}
        return bool(self.rows[rate]["meets"])

    def _excess(self, found: Row, rate: float) -> float:
        """By how much the worst limit is broken (in logs); 0 or less if none is."""
        if self._exact:
            queue = math.log(rate / self._most) + 1e-9
        else:
            queue = math.log(max(found["waiting"], 1e-9) / self._queue)
        if self.slo.goodput is not None:
            return max(queue, self.slo.goodput - float(found["within"]))
        limits = self.slo.limits.items()
        ratios = [found[f"p99_{name}"] / limit for name, limit in limits]
        return max(queue, *[math.log(ratio) for ratio in ratios if ratio > 0.0])

    def interval(self, rate: float) -> tuple[float, float]:
        """Of the largest rate, by leaving out one replication at a time.

        Args:
            rate: The largest that was seen to keep the limits.
        """
        n = len(self._configs)
        if n < 2:
            return math.nan, math.nan
        # below the stretch of rates that ends here another one may begin
        broken = [r for r, row in self.rows.items() if r < rate and not row["meets"]]
        rates = sorted(r for r in self._runs if r > max(broken, default=0.0))
        every = list(range(n))
        logs = [self._crossing(rates, every[:i] + every[i + 1 :]) for i in every]
        found = jackknife(self._crossing(rates, every), logs)
        lower, upper = math.exp(found.lower), max(math.exp(found.upper), rate)
        return min(lower, rate), min(upper, self._most) if self._exact else upper

    def _crossing(self, rates: list[float], chosen: list[int]) -> float:
        """The log of the rate at which chosen replications begin to break limits."""
        runs = [[self._runs[rate][i] for i in chosen] for rate in rates]
        pooled = [self._pooled(its) for its in runs]
        excess = list(map(self._excess, pooled, rates))
        return float(np.interp(0.0, np.maximum.accumulate(excess), np.log(rates)))

    def metrics(self, rate: float) -> Metrics:
        """What was found at ``rate``."""
        return {k: v for k, v in self.rows[rate].items() if k != "meets"}

    def search(self) -> tuple[float, float]:
        """The largest rate that keeps the limits, and the next, which breaks them."""
        low, high = self._bracket()
        while high / low - 1.0 > self.tolerance:
            middle = math.sqrt(low * high)
            low, high = (middle, high) if self.meets(middle) else (low, middle)
        return low, high

    def _bracket(self) -> tuple[float, float]:
        """A rate that keeps the limits, and a higher one that breaks them."""
        rate = self._carried()
        if self.meets(rate):
            while self.meets(1.1 * rate):
                rate *= 1.1
            return rate, 1.1 * rate
        # waiting for full batches breaks limits at low rates too: smaller steps
        step, least = (1.2, 1e-3 * rate) if self._fills() else (2.0, 1e-6 * rate)
        while not self.meets(rate / step):
            rate /= step
            if rate < least:
                raise self._met_nowhere()
        return rate / step, rate

    def _fills(self) -> bool:
        """Do batches wait until they are full?"""
        return self.config.server == "static" and self.config.batch_timeout is None

    def _met_nowhere(self) -> ConfigError:
        best = min(self.rows, key=lambda rate: self.rows[rate]["p99_latency"])
        said = "; ".join(self.slo.broken(self.rows[best]))
        fills = "batches wait to be full (batch_timeout=None)"
        why = fills if self._fills() else "at the least, requests come one at a time"
        return ConfigError(
            f"slo: kept at no rate from {min(self.rows):.3g} to {max(self.rows):.3g} "
            f"requests/s; {why}, and at {best:.3g}, the best, {said}"
        )

    def _carried(self) -> float:
        """lambda* of these requests, where the search starts."""
        if not math.isfinite(self._most):
            must = "above 0: this server takes no time"
            raise fail("gamma", self.config.gamma, must)
        return self._most

    def _run(self, requests: list[Workload]) -> list[Row]:
        """What came of the requests of each replication."""
        jobs = list(zip(self._configs, requests, strict=True))
        return list(in_parallel(jobs, self.plan.n_jobs, _times))

    def _pooled(self, runs: list[Row]) -> Row:
        """What came of the requests of several replications together."""
        pooled = {name: np.concatenate([run[name] for run in runs]) for name in runs[0]}
        found: Row = {"waiting": float(pooled["waiting"].mean())}
        for name in _TIMES:
            known = pooled[name][~np.isnan(pooled[name])]
            some = len(known) > 0
            found[f"p99_{name}"] = float(np.quantile(known, 0.99)) if some else math.nan
            found[f"avg_{name}"] = float(known.mean()) if some else math.nan
        late = [pooled[name] > limit for name, limit in self.slo.limits.items()]
        found["within"] = 1.0 - float(np.any(late, axis=0).mean())
        found["avg_output_length"] = float(pooled["output"].mean())
        return found


def _times(config: SimulationConfig, record: RunRecord) -> Row:
    """Columns of the measured requests, and how many waited when the last one came."""
    skip = config.warmup_requests
    waiting = np.sum(record.processing_start_time > record.arrival_time[-1])
    return {
        **{name: getattr(record, name)[skip:] for name in _TIMES},
        "output": record.output_length[skip:],
        "waiting": np.array([float(waiting)]),
    }


def _has_exact_rate(config: SimulationConfig) -> bool:
    """Is lambda* exact? Other orders, outputs and controllers carry more or less."""
    by_theory = config.server == "static" or isinstance(config.outputs, Geometric)
    free = config.kv_blocks is None and config.batch_control == "static"
    return by_theory and free and config.scheduling_policy == "FCFS"


def tried(name: str, rows: Mapping[float, Row]) -> pd.DataFrame:
    """A row a value of ``name``, ascending."""
    return pd.DataFrame([{name: key, **rows[key]} for key in sorted(rows)])
