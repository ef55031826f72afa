"""Capacity: the largest arrival rate that a server carries within its SLO.

And what follows from it: the table of capacities by setting, and the fewest replicas
that carry a rate, with their cost.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import product
from typing import Any, Self

import numpy as np
import pandas as pd

from llminfer import calibrate
from llminfer.base.arrays import FloatArray, IntArray
from llminfer.base.errors import ConfigError, choice, fail, kind, number, whole
from llminfer.base.settings import check_axes
from llminfer.base.slo import SLO, TIMES
from llminfer.config import SimulationConfig
from llminfer.data.logs import ServedLog
from llminfer.experiment import Metrics, Row, replicated, run_many
from llminfer.laws.lengths import Geometric
from llminfer.laws.prefixes import rounds
from llminfer.record import COMPLETED, RunRecord
from llminfer.servers.overload import described
from llminfer.servers.token_gaps import token_gaps
from llminfer.stats.intervals import FEWEST_MEMORIES, Estimate, jackknife, t_quantile
from llminfer.stats.pooling import by_replication, crossing_logs, kept, left_out_means
from llminfer.theory.known import long_enough, measured_memories
from llminfer.workload import Workload

What = SimulationConfig | calibrate.Calibration | ServedLog

_METRICS = [f"{first}_{time}" for time in TIMES for first in ("p99", "avg")]
_METRICS += ["waiting", "within", "avg_output_length", "largest_batch"]
_FEWEST = 2000  # requests measured in all replications: 20 beyond the p99
_BATCHES = 3  # a run has so many times the requests that the servers hold
_NEAR, _LONGER = 0.95, 3  # from this share of lambda* on so much longer runs decide
_BLOCKS = 10  # of a trace, for its interval
_DRAWS, _REPLAYS = 8, 4  # of the coefficients; replications for each
_FINEST = 1e-4  # tolerance
WORST = 0.15  # error of a mean on the requests held back, relative, of a good fit
_NEARLY = 0.2  # of the rate of one replica, where the search for more begins
_GAPS = 2**14  # between tokens that stand for those of a run
_SCALES = {  # powers of the rate that the parameters of a pattern go with
    **dict.fromkeys(("step_time", "period", "duration"), -1),
    **dict.fromkeys(("step_rate", "amplitude", "end_rate"), 1),
}


@dataclass(frozen=True, eq=False, repr=False)
class Capacity:
    """The largest rate within limits, requests a second; print it.

    Attributes:
        rate: The largest that was seen to keep them.
        bracket: That rate, and the next that was seen to break them.
        interval: Where the largest rate lies with 95% confidence; NaN for a single
            replication. Often wider than the bracket: more replications or longer
            ones narrow it, a smaller tolerance does not.
        metrics: At ``rate``, of the pooled requests: ``p99_`` and ``avg_`` of ``ttft``,
            ``tpot`` and ``latency``, seconds, and those that are limited, as
            ``p50_ttft[chat]``; ``within``, the share within all limits of a request;
            ``goodput``, so many a second; ``avg_output_length``, tokens; ``waiting``,
            how many waited when the last one came, mean over replications; near lambda*
            of the longer run, over the root of 3; ``largest_batch``.
        evaluated: A row a rate, ascending: ``rate``, the metrics, and ``meets``.
        binds: What is broken first above ``rate``: a limit, or the queue.
        slack: By limit how far below it ``rate`` stays, relative; of a goodput how
            far above, as a share.
        basis: What the interval comes from, in words, and what it rests too little on.
        memories: Of the queue at ``rate``, that a run lasts: 300 are sound.
        replicas: That carry it together.
        logs: The rate's logarithm, a number a replication or block of the trace: the
            jackknife's pseudo-values.
        draws: The rate's logarithm under each draw of the coefficients.
    """

    rate: float
    bracket: tuple[float, float]
    interval: tuple[float, float]
    metrics: Metrics
    evaluated: pd.DataFrame
    binds: str
    slack: dict[str, float]
    basis: str
    memories: float
    replicas: int
    logs: FloatArray
    draws: FloatArray

    def __repr__(self) -> str:
        low, high = self.interval
        known = f" ({low:.3g} to {high:.3g})" if low <= high else ""
        slack = "; ".join(f"{name}, {its:.0%}" for name, its in self.slack.items())
        return (
            f"{self.rate:.3g} requests/s{known}, bound by {self.binds}\n"
            f"room left there: {slack}\n95% interval: {self.basis}"
        )

    def against(self, base: Self) -> Estimate:
        """How much more than ``base`` this is, relative, with a 95% interval.

        Both shared their seeds and draws, so the interval is that of their paired
        difference, in logarithms.
        """
        its = _spread(self.logs - base.logs, self.draws - base.draws)
        return Estimate(*(math.expm1(x) for x in (its.value, its.lower, its.upper)))

    def row(self) -> dict[str, Any]:
        """A row of the table of capacities."""
        tokens = self.rate * self.metrics["avg_output_length"]
        tpot = self.metrics["avg_tpot"]
        return {
            **Estimate(self.rate, *self.interval).row("rate"),
            "sound": self.memories >= FEWEST_MEMORIES,
            "binds": self.binds,
            "throughput": tokens,
            "throughput_per_gpu": tokens / self.replicas,
            "user_speed": 1.0 / tpot if tpot else math.inf,
        }


def _spread(logs: FloatArray, draws: FloatArray) -> Estimate:
    """The mean of pseudo-values, with how unsure runs and draws make it."""
    its = Estimate.of_mean(logs)
    half = its.upper - its.value
    if len(draws):
        half = math.hypot(half, t_quantile(0.95, len(draws) - 1) * draws.std(ddof=1))
    return Estimate(its.value, its.value - half, its.value + half)


class KeptNowhere(ConfigError):
    """Limits that no rate keeps."""


def capacity(
    what: What,
    slo: SLO,
    workload: Workload | None = None,
    *,
    over: Mapping[str, Sequence[Any]] | None = None,
    replications: int = 10,
    tolerance: float = 0.02,
    n_jobs: int | None = None,
    random_seed_start: int = 42,
    near: float | None = None,
) -> Any:
    """The largest mean arrival rate that keeps ``slo``.

    Every rate faces the same requests, arriving closer together or further apart (a
    rate that varies keeps its shape; its periods shrink as it grows). The search goes
    from lambda* up or down until it has crossed the limits, then halves that interval
    in log rate. Where limits are kept in several stretches of rates, the answer is the
    upper end of one of them. Finished runs are remembered.

    A finite run above lambda* may keep limits that a longer one breaks, and TPOT never
    feels the queue. So a rate counts only below lambda* of the requests where theory
    has it exactly (FCFS, in static batches or with geometric outputs). Elsewhere the
    queue must not grow: when the last request comes, no more wait than ``tolerance`` of
    all, or than one batch, and near lambda* in a run of three times the length, in
    which a trace goes round, no more than the root of 3 times that (a random walk
    grows so, a queue past lambda* faster). The
    configuration's ``num_requests`` is the length of a replication, warm-up included.

    The interval is the jackknife's, over replications; of a trace over ten blocks of
    its requests, as if these were independent: it should be many times as long as its
    busy periods. A calibration adds how unsure its coefficients are: the rate is found
    again under 8 draws of them, with the same seeds, and the two standard errors of
    the rate's logarithm are added in squares.

    Args:
        what: Everything but the rate: a configuration; a calibration, which is asked
            for requests like those of its log; or a log that knows the settings of
            its engine, to which the engine is fitted first.
        slo: The limits; of a goodput where requests may be refused or given up, who
            miss all of them.
        workload: A trace to replay at scaled rates instead, once.
        over: Values by field: the answer is a table, a row a combination.
        replications: Runs a rate; their requests are judged together.
        tolerance: Greatest ratio of the bracket's ends, less 1.
        n_jobs: Processes; None takes one a core. The answer does not depend on it.
        random_seed_start: First seed.
        near: Where to begin, requests/s, such as what a setting much alike carries:
            fewer rates are tried. None begins at lambda*.

    Returns:
        The capacity; with ``over`` a table of them, which share their seeds: the
        fields, ``rate`` with ``rate_lower`` and ``rate_upper`` (0 where no rate keeps
        the limits), ``sound`` (runs of at least 300 memories of the queue), ``binds``,
        ``throughput`` (output tokens a second), ``throughput_per_gpu`` (a replica
        counts as one), ``user_speed`` (1 / mean TPOT, tokens a second).
        ``report.figures.draw_capacity`` draws it.

    Raises:
        ConfigError: Limits that no rate keeps, too few requests to tell, or users who
            wait for their answers: they send at no rate.

    >>> config = SimulationConfig(batch_size=4, num_requests=2500, batch_timeout=0.0)
    >>> print(capacity(config, SLO(latency={"mean": 2.0}), replications=5, n_jobs=1))
    3.6 requests/s (2.68 to 4.86), bound by mean latency ≤ 2 s
    room left there: mean latency ≤ 2 s, 1%; the queue, 29%
    95% interval: 5 replications
    too short to be sure: a run lasts 24 memories of the queue, 300 take 26,087 requests
    """
    how = slo, workload, replications, n_jobs, random_seed_start, tolerance
    fitted = None if isinstance(what, SimulationConfig) else fitted_to(what)
    base, *draws = loads(fitted or what)
    trials = Trials(base, *how, draws, near, fitted)
    if over is None:
        return trials.found()
    check_axes(over)
    every = [dict(zip(over, its, strict=True)) for its in product(*over.values())]
    return pd.DataFrame([its | trials.row(its) for its in every])


def fitted_to(what: ServedLog | calibrate.Calibration) -> calibrate.Calibration:
    """The engine that left a log, unless it is fitted already.

    Raises:
        ConfigError: A log without settings, or something else.
    """
    if isinstance(what, ServedLog):
        if settings := what.settings:
            return calibrate.fit(what, settings)
        how = 'read_log(path, settings={"max_num_seqs": 256, ...})'
        raise fail("log", what, f"with its engine's settings: {how}")
    if not isinstance(what, calibrate.Calibration):
        raise fail("what", what, "a SimulationConfig, a Calibration or a ServedLog")
    return what


def loads(what: What) -> list[SimulationConfig]:
    """A configuration of ``what``, and others that its coefficients could as well be.

    A calibration is asked for requests like those of its log, as many as it takes.
    """
    if isinstance(what, SimulationConfig):
        return [what]
    its = fitted_to(what)
    return [its.config(), *its.draws(_DRAWS)]


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
    excess = np.log(left_out_means(table.to_numpy()) / limit)
    logs = crossing_logs(excess, table.columns.to_numpy(dtype=np.float64))
    return pd.Series(np.exp(logs), table.index, name="arrival_rate")


@dataclass
class Trials:
    """Tries rates, and remembers what came of each.

    ``draws`` are configurations that ``config`` could as well be; ``near`` is a rate
    to begin at; ``fitted`` is where the coefficients come from.
    """

    config: SimulationConfig
    slo: SLO
    workload: Workload | None
    replications: int
    n_jobs: int | None
    first_seed: int
    tolerance: float = 0.02
    draws: Sequence[SimulationConfig] = ()
    near: float | None = None
    fitted: calibrate.Calibration | None = None
    rows: dict[float, Row] = field(default_factory=dict, init=False)
    numbers: dict[float, pd.DataFrame] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        config, trace = self.config, self.workload
        self._check()
        runs = self.replications if trace is None else 1
        self._configs = replicated(config, runs, self.first_seed)
        n = config.num_requests if trace is None else len(trace)
        holds = config.largest_batch * config.replicas
        measured = config.warmup_requests + math.ceil(_FEWEST / runs)
        if n < (least := max(_BATCHES * holds, measured)):
            must = (
                f"at least {least} requests: {_FEWEST} measured ones in all have 20 "
                f"beyond the p99, and the {holds} in service must be few of a run's"
            )
            raise fail("num_requests" if trace is None else "workload", n, must)
        self._queue = max(self.tolerance * n, holds)
        self._served = served = config if trace is None else described(trace, config)
        self._most, self._exact = served.max_stable_rate, _has_exact_rate(served)
        self._near = math.inf if self._exact else _NEAR * self._most
        self._fills = config.server == "static" and config.batch_timeout is None
        limited = [limit.metric for limit in self.slo.limits]
        self._metrics = list(dict.fromkeys([*_METRICS, *limited]))

    def _check(self) -> None:
        """Refuse what no search can answer."""
        slo, trace, clients = self.slo, self.workload, self.config.clients
        kind("slo", slo, SLO, "an SLO such as SLO(ttft=1.0)")
        if clients is not None:
            must = "None: they send when answered, so no rate is theirs to search for"
            raise fail("clients", clients, must)
        if self.config.sheds and slo.goodput is None:
            must = "of a goodput: those refused or given up have no latency"
            raise fail("slo", slo, must)
        number("tolerance", self.tolerance, least=_FINEST, most=1.0)
        if self.near is not None:
            number("near", self.near, above=0.0)
        most = max(len(self.config.request_classes) - 1, 0)
        if trace is not None:
            if not (isinstance(trace, Workload) and np.ptp(trace.arrival_time) > 0.0):
                must = "a Workload of several requests that come at different times"
                raise fail("workload", trace, must)
            most = max(most, int(trace.request_class.max()))
        for name in slo.classes:
            whole("classes", _class_number(self.config, name), 0, most)

    def changed(self, changes: Mapping[str, Any]) -> Self:
        """Trials of other settings; more replicas serve as many requests each."""
        config, run = self.config, dict(changes)
        if self.workload is None and "replicas" in changes:
            more = changes["replicas"] / config.replicas
            for name in ("num_requests", "warmup_requests"):
                run.setdefault(name, round(more * getattr(config, name)))
        config, *draws = (its.replace(**run) for its in (config, *self.draws))
        return replace(self, config=config, draws=draws)

    def meets(self, rate: float) -> bool:
        """Are the limits kept at ``rate``, and does the queue not grow?"""
        if rate not in self.rows:
            runs = self._run(rate)
            numbers = pd.DataFrame(
                {name: by_replication(runs, name, ["rate"]) for name in self._metrics}
            )
            if rate > self._near and self._worst(numbers, rate)[0] <= 0.0:
                longer = self._run(rate, _LONGER)["waiting"]
                numbers["waiting"] = longer / math.sqrt(_LONGER)
            found: Row = {name: float(numbers[name].mean()) for name in self._metrics}
            found["goodput"] = rate * found["within"]
            kept = self._worst(numbers, rate)[0] <= 0.0
            self.numbers[rate], self.rows[rate] = numbers, found | {"meets": bool(kept)}
        return bool(self.rows[rate]["meets"])

    def excess(self, found: Mapping[str, float], rate: float) -> dict[str, float]:
        """By how much each limit is broken, and the queue's (in logs); 0 or less: not.

        Args:
            found: The metrics at ``rate``.
            rate: Requests a second.
        """
        if self._exact:
            queue = math.log(rate / self._most) + 1e-9
        else:
            queue = math.log(max(found["waiting"], 1e-9) / self._queue)
        own = {str(its): its.excess(found[its.metric]) for its in self.slo.limits}
        return own | {"the queue": queue}

    def _worst(self, numbers: pd.DataFrame, rate: float) -> list[float]:
        """The greatest excess of all replications, then without each in turn."""
        rows = left_out_means(numbers.to_numpy(dtype=np.float64))
        every = (dict(zip(self._metrics, row, strict=True)) for row in rows)
        return [max(self.excess(found, rate).values()) for found in every]

    def sure(self, rate: float) -> bool:
        """Do the replications tell, with 95% confidence, if the limits are kept?"""
        excess, *without = self._worst(self.numbers[rate], rate)
        if len(without) < 2:
            return False
        its = jackknife(excess, np.array(without))
        return its.lower > 0.0 or its.upper <= 0.0

    def found(self) -> Capacity:
        """The largest rate, and how unsure it is under other coefficients too."""
        low, high = self.search()
        logs, few = self.logs(low), min(self.replications, _REPLAYS)
        others = [replace(self, config=c, replications=few) for c in self.draws]
        draws = np.array([its.log_rate(low) for its in others])
        spread = _spread(logs, draws)
        most = self._most if self._exact and not others else math.inf
        metrics, broken = _metrics(self.rows[low]), self.excess(self.rows[high], high)
        part = "replications" if self.workload is None else "blocks of the trace"
        basis = f"{len(logs)} {part}"
        basis += f", {len(draws)} draws of the coefficients" * bool(others)
        there = _at(self._served, low, 1)
        return Capacity(
            rate=low,
            bracket=(low, high),
            interval=(
                min(math.exp(spread.lower), low),
                min(max(math.exp(spread.upper), high), most),
            ),
            metrics=metrics,
            evaluated=_by("rate", self.rows),
            binds=max(broken, key=broken.__getitem__),
            slack={k: -math.expm1(x) for k, x in self.excess(metrics, low).items()},
            basis="\n".join([basis, *self._doubts(metrics, there)]),
            memories=measured_memories(there),
            replicas=self.config.replicas,
            logs=logs,
            draws=draws,
        )

    def _doubts(self, found: Metrics, there: SimulationConfig) -> list[str]:
        """What an answer rests too little on, a line each.

        Args:
            found: The metrics at the largest rate.
            there: What is served at that rate.
        """
        said, memories = [], measured_memories(there)
        if memories < FEWEST_MEMORIES:
            few = f"a run lasts {memories:.0f} memories of the queue"
            need = "and none is long enough"  # so near to lambda*
            if memories > 1e-6:
                need = f"300 take {long_enough(there).num_requests:,} requests"
            said.append(f"too short to be sure: {few}, {need}")
        if self.fitted is not None:
            batch, most = found["largest_batch"], self.fitted.record.batch_size.max()
            if batch > most:
                said.append(f"beyond the log: batches of {batch:.0f}, there of {most}")
            if self.config.kv_blocks is None:
                said.append("KV memory is not given, and taken as without limit")
            off = self.fitted.errors()["mean"].abs()
            if off.max() > WORST:
                what = f"mean {off.idxmax()} of the requests held back"
                said.append(f"the fit is poor: the {what} is {off.max():.0%} off")
        return said

    def row(self, changes: Row, base: Capacity | None = None) -> Row:
        """A row of a table: what other settings carry, and how much more than one."""
        try:
            its = self.changed(changes).found()
        except KeptNowhere as error:
            nothing = Estimate(0.0, 0.0, 0.0).row("rate")
            return {**nothing, "sound": False, "binds": str(error)}
        more = {} if base is None else its.against(base).row("difference")
        return its.row() | more

    def log_rate(self, near: float) -> float:
        """The logarithm of the largest rate, from a few rates around one."""
        try:
            low, _ = self._bracket(near, 1.15)
        except KeptNowhere:
            return math.log(min(self.rows))
        return float(self.logs(low).mean())

    def logs(self, rate: float) -> FloatArray:
        """The logarithm of the largest rate, a pseudo-value a replication or block.

        Args:
            rate: The largest that was seen to keep the limits.
        """
        # below the stretch of rates that ends here another one may begin
        broken = [r for r, row in self.rows.items() if r < rate and not row["meets"]]
        rates = sorted(r for r in self.rows if r > max(broken, default=0.0))
        worst = [self._worst(self.numbers[rate], rate) for rate in rates]
        return crossing_logs(np.array(worst).T, np.array(rates))

    def search(self, tolerance: float | None = None) -> tuple[float, float]:
        """The largest rate that keeps the limits, and the next, which breaks them."""
        if not math.isfinite(self._most):
            must = "above 0: this server takes no time"
            raise fail("gamma", self.config.gamma, must)
        low, high = self._around(self.near) if self.near else self._bracket(self._most)
        while high / low - 1.0 > (tolerance or self.tolerance):
            middle = math.sqrt(low * high)
            low, high = (middle, high) if self.meets(middle) else (low, middle)
        return low, high

    def _around(self, rate: float) -> tuple[float, float]:
        """As ``_bracket``, from a rate that may be near: in steps that grow."""
        kept, least = self.meets(rate), 1e-3 * rate
        step = 1.0 + 0.99 * max(self.tolerance, 0.05)
        while self.meets(after := rate * step if kept else rate / step) is kept:
            rate, step = after, min(step**2, 2.0)
            if rate < least:  # the limits are kept nowhere, or only at higher rates
                return self._bracket(self._most)
        return min(rate, after), max(rate, after)

    def _bracket(self, rate: float, step: float = 2.0) -> tuple[float, float]:
        """A rate that keeps the limits, and a higher one that breaks them."""
        if self.meets(rate):
            while self.meets(1.1 * rate):
                rate *= 1.1
            return rate, 1.1 * rate
        # waiting for full batches breaks limits at low rates too: smaller steps
        step = min(step, 1.2) if self._fills else step
        least = rate * (1e-6 if step > 1.2 else 1e-3)
        while not self.meets(rate / step):
            rate /= step
            if rate < least:
                raise self._kept_nowhere()
        return rate / step, rate

    def _kept_nowhere(self) -> ConfigError:
        best = min(self.rows, key=lambda rate: self.rows[rate]["p99_latency"])
        found = [(its, self.rows[best][its.metric]) for its in self.slo.limits]
        broken = [f"{its}: {x:.3g}" for its, x in found if its.excess(x) > 0.0]
        said = "; ".join(broken or ["the queue grows"])
        trace, why = self.workload, "at the least, requests come one at a time"
        if self._fills:
            why = "batches wait to be full (batch_timeout=None)"
        elif trace is not None and not np.diff(trace.arrival_time).all():
            why = "requests that the trace has at one time come so at every rate"
        return KeptNowhere(
            f"slo: kept at no rate from {min(self.rows):.3g} to {max(self.rows):.3g} "
            f"requests/s; {why}, and at {best:.3g}, the best, {said}"
        )

    def _run(self, rate: float, times: int = 1) -> pd.DataFrame:
        """A row a replication, or block of a trace, at ``rate``.

        Args:
            rate: Requests a second.
            times: How often as long; a trace goes round.
        """
        if (trace := self.workload) is None:
            configs = [_at(its, rate, times) for its in self._configs]
        else:
            configs, trace = self._configs, _round(trace, times, rate)
        blocks = 1 if trace is None else _BLOCKS
        measure = partial(_measured, slo=self.slo, blocks=blocks)
        said = f"{rate:.3g} requests/s"
        runs = run_many(configs, self.n_jobs, said, measure, trace)
        return pd.DataFrame([row for run in runs for row in run["rows"]]).assign(rate=0)


def _at(config: SimulationConfig, rate: float, times: int) -> SimulationConfig:
    """So many times the requests, at a mean rate: all of a pattern faster or slower."""
    n = times * config.num_requests
    factor = rate / config.arrivals.mean(n)
    params = {
        f"arrival_pattern_params.{name}": value * factor ** _SCALES.get(name, 0)
        for name, value in config.arrival_pattern_params.items()
    }
    faster = factor * config.arrival_rate
    return config.replace(num_requests=n, arrival_rate=faster, **params)


def _round(trace: Workload, times: int, rate: float) -> Workload:
    """A trace, so many times in turn, at a mean rate."""
    arrival, n = trace.arrival_time, len(trace)
    pace = (n - 1) / float(arrival[-1] - arrival[0])  # rounds are a mean gap apart
    columns = {name: np.tile(its, times) for name, its in trace.columns.items()}
    begin = np.repeat(np.arange(times), n) * float(n)
    columns["arrival_time"] = np.tile(arrival * pace, times) + begin
    return Workload(**columns, segments=rounds(trace.segments, times)).scaled(rate)


def _measured(
    config: SimulationConfig, record: RunRecord, *, slo: SLO, blocks: int
) -> Row:
    """Numbers of each block of the measured requests, in order of arrival."""
    skip = config.warmup_requests
    waiting = np.sum(record.processing_start_time > record.arrival_time[-1])
    largest = float(record.batch_size.max(initial=0))
    shared: Row = {"waiting": float(waiting), "largest_batch": largest}
    if slo.itl is not None:
        gaps = token_gaps(record, config.step_time, skip)
        some = gaps.sample(_GAPS) if gaps.number() else np.empty(0)
        shared |= {"avg_itl": gaps.mean(), **kept("itl", some, gaps.number())}
    rows = []
    for part in np.array_split(np.arange(skip, len(record.arrival_time)), blocks):
        row = shared | _times(record, part, slo)
        for name, its in slo.classes.items():
            of = record.request_class[part] == _class_number(config, name)
            own = _times(record, part[of], its)
            row |= {f"{key}[{name}]": value for key, value in own.items()}
        rows.append(row)
    return {"rows": rows}


def _class_number(config: SimulationConfig, name: str | int) -> int:
    """The number of a class of requests."""
    if not isinstance(name, str):
        return whole("classes", name, 0)
    if not (names := list(config.request_classes)):
        raise fail("classes", name, "a number: the configuration names no classes")
    return names.index(choice("classes", name, names))


def _times(record: RunRecord, part: IntArray, slo: SLO) -> Row:
    """Times of those completed of some requests, and the share within all limits."""
    found: Row = {"avg_output_length": _mean(record.output_length[part])}
    lost = np.zeros(len(part), dtype=np.bool_)
    if record.outcome is not None:
        lost = record.outcome[part] != COMPLETED
    late = lost.copy()
    for name in TIMES:
        times = getattr(record, name)[part]
        known = np.sort(times[~(lost | np.isnan(times))])
        found |= {**kept(name, known), f"avg_{name}": _mean(known)}
        bounds = [its.bound for its in slo.bounds if its.time == name]
        late |= times > max(bounds, default=math.inf)
    return found | {"within": 1.0 - _mean(late)}


def _mean(values: Any) -> float:
    """The mean, NaN of no values."""
    return float(values.mean()) if len(values) else math.nan


def _has_exact_rate(config: SimulationConfig) -> bool:
    """Is lambda* exact? Other orders, outputs and controllers carry more or less."""
    by_theory = config.server == "static" or isinstance(config.outputs, Geometric)
    free = config.kv_blocks is None and config.batch_control == "static"
    free &= not (config.shared_prefixes and config.prefix_caching)
    return by_theory and free and config.scheduling_policy == "FCFS"


def _metrics(row: Row) -> Metrics:
    """A row without its verdict."""
    return {name: value for name, value in row.items() if name != "meets"}


def _by(name: str, rows: Mapping[Any, Row]) -> pd.DataFrame:
    """A row a value of ``name``, ascending."""
    return pd.DataFrame([{name: key, **rows[key]} for key in sorted(rows)])


@dataclass(frozen=True, eq=False, repr=False)
class Fleet:
    """The fewest replicas that serve a rate within limits; print it.

    Attributes:
        replicas: How many.
        gpus: In all of them.
        metrics: As those of ``Capacity``, with so many.
        evaluated: A row a number of ``replicas``: that, the metrics, and ``meets``.
        sure: With 95% confidence, do so many keep the limits, and one fewer not? Never
            of a single replication.
        cost_per_hour: In the currency of the price; None without one.
        cost_per_million_tokens: Of output; None without a price.
        kilowatts: Of all GPUs; None without a wattage.
        kwh_per_million_tokens: Of output; None without a wattage.
    """

    replicas: int
    gpus: int
    metrics: Metrics
    evaluated: pd.DataFrame
    sure: bool
    cost_per_hour: float | None
    cost_per_million_tokens: float | None
    kilowatts: float | None
    kwh_per_million_tokens: float | None

    def __repr__(self) -> str:
        doubt = "" if self.sure else "; one more or one fewer may do: too few runs"
        prices = {"an hour": self.cost_per_hour, "kW": self.kilowatts}
        prices["a million output tokens"] = self.cost_per_million_tokens
        prices["kWh a million output tokens"] = self.kwh_per_million_tokens
        said = [f"{its:.3g} {of}" for of, its in prices.items() if its is not None]
        n = {"replica": self.replicas, "GPU": self.gpus}
        counts = [f"{its} {of}{'s' * (its > 1)}" for of, its in n.items()]
        return ", ".join([*counts, *said]) + doubt


def fewest_replicas(
    what: What,
    slo: SLO,
    rate: float,
    workload: Workload | None = None,
    *,
    gpus_per_replica: int = 1,
    price_per_gpu_hour: float | None = None,
    watts_per_gpu: float | None = None,
    replications: int = 10,
    n_jobs: int | None = None,
    random_seed_start: int = 42,
) -> Fleet:
    """The fewest replicas that keep ``slo`` at a rate; one fewer does not.

    The search starts from the capacity of one. A run of n replicas has n times the
    requests of the configuration (a trace has its own), so that each serves as many
    as one alone does. GPUs cost and draw the same, busy or idle.

    Args:
        what: One replica, and the router, as of ``capacity``; a configuration needs
            ``server="continuous"`` to have several.
        slo: The limits.
        rate: Mean arrival rate of all together, requests a second.
        workload: A trace to replay at this rate instead, once.
        gpus_per_replica: GPUs that make one replica.
        price_per_gpu_hour: In any currency.
        watts_per_gpu: What a GPU draws, with its part of the machine around it.
        replications: Runs a number of replicas; their requests are judged together.
        n_jobs: Processes; None takes one a core. The answer does not depend on it.
        random_seed_start: First seed.

    Raises:
        ConfigError: As ``capacity``; or a rate, price or wattage that is not above 0.

    >>> server = SimulationConfig(server="continuous", batch_size=4, num_requests=2500)
    >>> few = {"replications": 1, "n_jobs": 1, "price_per_gpu_hour": 2.0}
    >>> fleet = fewest_replicas(server, SLO(ttft=3.0), 4.0, **few)
    >>> fleet.replicas, fleet.cost_per_hour
    (6, 12.0)
    """
    kind("slo", slo, SLO, "an SLO: the order is what, slo, rate")
    number("rate", rate, above=0.0)
    whole("gpus_per_replica", gpus_per_replica, 1)
    prices = {"price_per_gpu_hour": price_per_gpu_hour, "watts_per_gpu": watts_per_gpu}
    for name, its in prices.items():
        if its is not None:
            number(name, its, above=0.0)
    how = slo, workload, replications, n_jobs, random_seed_start
    n, tried = _search(Trials(loads(what)[0].replace(replicas=1), *how), rate)
    rows = {n: trials.rows[rate] for n, trials in tried.items()}
    sure = all(tried[i].sure(rate) for i in (n, n - 1) if i)
    metrics, gpus = _metrics(rows[n]), n * gpus_per_replica
    million = rate * metrics["avg_output_length"] * 3600.0 / 1e6  # tokens an hour
    watts = None if watts_per_gpu is None else watts_per_gpu / 1000.0
    every = [its and gpus * its for its in (price_per_gpu_hour, watts)]
    bill = [part for its in every for part in (its, its and its / million)]
    return Fleet(n, gpus, metrics, _by("replicas", rows), sure, *bill)


def _search(one: Trials, rate: float) -> tuple[int, dict[int, Trials]]:
    """The fewest replicas, and what was tried, the fewest and one less among them."""
    tried: dict[int, Trials] = {}

    def meets(n: int) -> bool:
        tried[n] = one.changed({"replicas": n})
        return tried[n].meets(rate)

    alone, _ = one.search(_NEARLY)
    n = math.ceil(rate / alone)
    while not meets(n):
        n += 1
    while n > 1 and n - 1 not in tried and meets(n - 1):
        n -= 1
    return n, tried
