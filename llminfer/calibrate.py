"""Coefficients from a log: the law of step times fitted to a real engine.

The log goes through the simulator, so that queueing, chunks and preemption need no
formula: the coefficients are those whose simulated latencies come nearest. Where the
engine wrote down every step, they follow from the steps themselves, and the requests
only say how good they are. Other logs, loads and settings are then predicted, with
intervals from the coefficients' own uncertainty.
"""

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from llminfer.base.arrays import FloatArray, Mask
from llminfer.base.columns import mean_rate
from llminfer.base.errors import ConfigError, TraceError, choice, whole
from llminfer.config import SimulationConfig
from llminfer.data.logs import ServedLog
from llminfer.experiment import metrics_of, simulate
from llminfer.laws.engines import COEFFICIENTS, PRESETS, STEP_LAWS
from llminfer.record import RunRecord
from llminfer.stats.intervals import Estimate, jackknife, require_columns
from llminfer.stats.least_squares import least_squares, robust
from llminfer.workload import Workload

MEASURES = ("ttft", "tpot", "latency")
STEP_COLUMNS = ("prefill_tokens", "decode_seqs", "decode_kv", "pairs", "seconds")
_QUANTILES = {"p50": 0.5, "p90": 0.9, "p95": 0.95, "p99": 0.99}
_NORMAL = 1.96  # standard errors to each side of a 95% interval

# Where a log is silent, a coefficient keeps the ratio to gamma that it has on engines
# measured step by step, give or take a factor of e. Only one of them has an epsilon, of
# old kernels. But a pair takes 4 d operations a layer where a token takes 24 d^2, d the
# length of its vectors, and FlashAttention is two thirds as efficient (Dao 2023).
_MEASURED = ("opt-13b-a100", "llama-2-70b-dgx-h100")
_PAIR = 1.5 / (6.0 * 4096.0)  # of alpha; d is 4,096 in models of 8 billion weights
_LAUNCH = 0.015  # s; this is the CPU's, and hardly depends on the GPU
_NOISE = 0.03  # what the law misses of a latency, relative
_STEP_NOISE = 0.02  # and of the time of a stretch of steps
_ALIKE = 9.0  # requests served together err together: so many count as one
_FLOOR = 50.0  # TPOTs; shorter times tell more of where in a step somebody arrived
_UNSURE = math.log(2.0)  # a standard error of a factor of two: not identified
_LEAST = 10  # requests to fit to
_GROUPS = 10  # of requests, for the jackknife
_FASTEST = 0.8  # of the TPOT of the fastest tenth is gamma, to begin with
_HANDICAP = {"sum": 1.0, "roofline": 0.8}  # of a law's error, where they compete
# Steps at least, over which averages out by how much the clock of single ones is late,
# and what the law misses of a lone prefill and of one that follows another.
_STRETCH = 40
_QUIET = 2  # steps on both sides of a step without prefill, for a cut there
_REQUESTS = 2000  # of a run with a log's workload, at least
_AT_ONCE = 0.05  # of the mean gap: who is sent so soon after an answer waited for it
_FALSE_ALARM = 1e-3  # chance that Poisson arrivals look like users who wait
_REGULAR = 0.3  # coefficient of variation of gaps; a clock's are below
_LOADS = {"rate": "arrival_rate", "concurrency": "max_concurrency"}
_LOADS |= {"requests": "num_requests", "prompt_length": "prompt_dist_params.value"}
_LOADS |= {"output_length": "output_dist_params.value"}
_CONSTANT: dict[str, Any] = {"arrival_rate": 1e9}  # at once, unless at a rate
_CONSTANT |= {"prompt_length_dist": "constant", "prompt_dist_params": {"value": 1}}
_CONSTANT |= {"output_length_dist": "constant", "output_dist_params": {"value": 1}}
_STATISTICS = {  # a table's columns, and the metrics that they are
    f"{key}_{name}": f"{'avg' if key == 'mean' else key}_{name}"
    for name in ("ttft", "tpot", "itl", "latency")
    for key in ("mean", "p50", "p95", "p99")
} | {"achieved_rate": "throughput_req_per_sec"}


@dataclass(frozen=True, eq=False)
class Fitted:
    """Coefficients with their 95% intervals.

    Attributes:
        coefficients: The seven by name; ``sum`` has no launch.
        unidentified: Those that the data cannot tell.
        settings: Fields of a configuration that go with them, the law among them.
        covariance: Of their logarithms, a row and a column each.
        laws: The error of each law that was tried, relative: root mean square, on what
            was held back if anything was. The roofline is taken unless the sum is
            clearly better, by a fifth: one engine at one budget can hardly tell.
    """

    coefficients: Mapping[str, Estimate]
    unidentified: tuple[str, ...]
    settings: Mapping[str, Any]
    covariance: FloatArray = field(kw_only=True, default_factory=lambda: np.empty(0))
    laws: Mapping[str, float] = field(kw_only=True, default_factory=dict)

    def config(self, **changes: Any) -> SimulationConfig:
        """A continuous server with these coefficients and settings, to go on with.

        It knows no workload: what it is asked is the package's own, unless changed.

        Args:
            **changes: Other fields.

        Raises:
            ConfigError: A setting or a change cannot be run.
        """
        found = {name: found.value for name, found in self.coefficients.items()}
        base = SimulationConfig(server="continuous", warmup_requests=0)
        return base.replace(**{**self.settings, **found, **changes})

    def draws(
        self, n: int = 20, seed: int = 0, **changes: Any
    ) -> list[SimulationConfig]:
        """So many configurations whose coefficients the data allow as well.

        Args:
            n: How many.
            seed: Of the draws: normal in the logarithms, as the least squares say.
            **changes: Other fields.
        """
        spread = np.linalg.cholesky(self.covariance)
        noise = np.random.default_rng(seed).normal(size=(n, len(spread)))
        middle = np.log([found.value for found in self.coefficients.values()])
        base = self.config(**changes)
        return [_with(base, middle + spread @ row) for row in noise]

    def interval(
        self, answer: Callable[[SimulationConfig], float], n: int = 20, seed: int = 0
    ) -> Estimate:
        """What these coefficients answer, and between which bounds they are unsure.

        Args:
            answer: A number above 0 from a configuration: a mean of a run, a capacity.
            n: Draws of the coefficients for the 95% interval, at least 2.
            seed: Of the draws.
        """
        return _around([answer(c) for c in (self.config(), *self.draws(n, seed))])

    def predict(
        self, workload: Workload, n: int = 20, seed: int = 0, **changes: Any
    ) -> pd.DataFrame:
        """Mean, p50 and p99 of a workload's TTFT, TPOT and latency, with intervals.

        Args:
            workload: What is asked of the engine.
            n: Draws of the coefficients for the 95% intervals.
            seed: Of the draws.
            **changes: Settings that are unlike those of the log.

        Raises:
            ConfigError: A change that cannot be run.
        """
        asked = {"arrival_rate": 1.0, **changes}  # the workload has its own
        configs = [self.config(**asked), *self.draws(n, seed, **asked)]
        runs = [simulate(config, workload) for config in configs]
        rows = {}
        for name in MEASURES:
            times = [getattr(run, name) for run in runs]
            rows[name] = _around([np.nanmean(t) for t in times]).row()
            for key in ("p50", "p99"):
                cut = [np.nanquantile(t, _QUANTILES[key]) for t in times]
                rows[name] |= _around(cut).row(key)
        return pd.DataFrame.from_dict(rows, orient="index").rename_axis("measure")

    def table(self) -> pd.DataFrame:
        """A row a coefficient: mean, ci_lower, ci_upper, and if the data tell it."""
        rows = {name: found.row() for name, found in self.coefficients.items()}
        table = pd.DataFrame.from_dict(rows, orient="index").rename_axis("coefficient")
        return table.assign(identified=~table.index.isin(self.unidentified))

    def __str__(self) -> str:
        lines = [
            f"{name} = {found.value:.3g} ({found.lower:.2g} to {found.upper:.2g})"
            + (": the data cannot tell it" if name in self.unidentified else "")
            for name, found in self.coefficients.items()
        ]
        if self.laws:
            tried = ", ".join(f"{law} {error:.2%}" for law, error in self.laws.items())
            lines.append(f"step law: {self.settings['step_law']} ({tried})")
        return "\n".join(lines)


@dataclass(frozen=True, eq=False)
class Calibration(Fitted):
    """A log, and the simulator fitted to its first part.

    Attributes:
        log: What was measured.
        record: The same requests simulated, all of them.
        fitted: Which requests were fitted to, shape (n,); the rest was held back.
    """

    log: ServedLog
    record: RunRecord
    fitted: Mask

    def config(self, **changes: Any) -> SimulationConfig:
        """The engine under the log's own workload: its rows, its rate, its gaps.

        A run is ten times as long as the engine holds requests, 2,000 at least, and
        the first tenth, in which it fills, is not measured. Prompt tokens that the
        prefix cache had are no part of the prompts, nor of what KV memory holds.

        Args:
            **changes: Other fields; ``log.workload.law("poisson")`` has other arrivals.

        Raises:
            ConfigError: A setting or a change cannot be run, or all requests of the
                log come at once and no ``arrival_rate`` is given.
        """
        asked = {**computed(self.log).law(), "num_requests": _REQUESTS, **changes}
        config = super().config(**asked)
        n = max(_REQUESTS, 10 * config.largest_batch * config.replicas)
        n = changes.get("num_requests", n)
        warmup = changes.get("warmup_requests", n // 10)
        return config.replace(num_requests=n, warmup_requests=warmup)

    @cached_property
    def simulated(self) -> ServedLog:
        """The log that the simulator would have left."""
        return ServedLog.from_record(self.record)

    def errors(self) -> pd.DataFrame:
        """Relative errors on the part held back: mean and percentiles by measure."""
        return errors(self.log, self.simulated, ~self.fitted)


def errors(measured: ServedLog, simulated: ServedLog, part: Mask) -> pd.DataFrame:
    """Simulated over measured, less 1: a row a measure, ``mean`` and percentiles.

    Args:
        measured: A log.
        simulated: The same requests, simulated.
        part: Which of them to compare, shape (n,), without those that never completed;
            NaN where there are none.

    >>> from llminfer import Workload
    >>> work = Workload.from_arrays([0.0, 0.0], [9, 9], [2, 3])
    >>> ends = np.array([1.0, 1.0]), np.array([2.0, 3.0])
    >>> real = ServedLog(work, np.zeros(2), *ends)
    >>> ours = ServedLog(work, np.zeros(2), 1.1 * ends[0], ends[1])
    >>> errors(real, ours, np.array([True, True]))["mean"].round(3).to_dict()
    {'ttft': 0.1, 'tpot': -0.075, 'latency': 0.0}
    """
    rows = {}
    for name in MEASURES:
        pair = [getattr(log, name) for log in (simulated, measured)]
        use = part & ~np.isnan(pair[1])
        ours, real = (pd.Series(values[use]) for values in pair)
        cuts = _QUANTILES.items()
        ratios = {key: ours.quantile(q) / real.quantile(q) for key, q in cuts}
        rows[name] = {"mean": ours.mean() / real.mean()} | ratios
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("measure") - 1.0


def mean_error(
    measured: ServedLog, simulated: ServedLog, part: Mask, measure: str
) -> Estimate:
    """The relative error of a simulated mean, with a 95% interval.

    Args:
        measured: A log.
        simulated: The same requests, simulated.
        part: Which of them to compare, shape (n,).
        measure: ttft, tpot or latency.

    Raises:
        ConfigError: Another measure.
        TraceError: Too few requests for an interval.

    Source: the delete-a-group jackknife, Miller (1974), over stretches of requests
    that complete together.
    """
    choice("measure", measure, MEASURES)
    pair = [getattr(log, measure) for log in (measured, simulated)]
    rest = np.flatnonzero(part & ~np.isnan(pair[0]))
    if len(rest) < 2 * _GROUPS:
        must = f"must be at least {2 * _GROUPS}"
        raise TraceError(f"{len(rest)} requests to compare: {must}")
    order = rest[np.argsort(measured.last_token_time[rest], kind="stable")]
    groups = np.array_split(order, _GROUPS)
    sums = np.array([[values[i].sum() for values in pair] for i in groups])
    real, ours = sums.sum(axis=0)
    without = (ours - sums[:, 1]) / (real - sums[:, 0])
    return jackknife(float(ours / real) - 1.0, without - 1.0)


def fit(
    log: ServedLog,
    engine_settings: Mapping[str, Any],
    share: float = 0.4,
    steps: pd.DataFrame | None = None,
) -> Calibration:
    """The law fitted to the requests of ``log`` that complete first.

    Robust least squares on the logarithms of TTFT, TPOT and latency. All requests
    are simulated, those that were given up (NaN times) too; those that complete later
    do not enter. Where the log cannot tell a coefficient it keeps the ratio to gamma
    that other engines have, and is named in ``unidentified``. The requests held back
    choose between the laws, unless the settings name one as ``step_law``. Prompt
    tokens that were found in the prefix cache are not computed: prompts are simulated
    without them, and the KV memory that they hold is not counted.

    Args:
        log: What was measured.
        engine_settings: The engine's limits as fields of a configuration, such as
            ``read_settings`` gives.
        share: The part of the completions to fit to, above 0 and at most 1.
        steps: The engine's steps, such as ``read_steps`` gives; then those up to the
            last completion in that part are fitted to, and no request is.

    Raises:
        ConfigError: A bad setting or share, or a request that can never fit.
        TraceError: Too few requests, or none with two tokens.

    Warns:
        UserWarning: Its requests came when others were answered (``users``).

    An engine whose coefficients are known leaves a log; they are found again, or the
    log cannot tell them:

    >>> settings = {"batch_size": 16, "num_requests": 40, "warmup_requests": 0}
    >>> settings["random_seed"] = 1
    >>> engine = SimulationConfig.from_preset("llama-3.1-8b-rtx4090", **settings)
    >>> log = ServedLog.from_record(simulate(engine.replace(server="continuous")))
    >>> found = fit(log, {"batch_size": 16, "step_law": "sum"}, share=1.0)
    >>> print(f"{engine.gamma:.3f}, found {found.coefficients['gamma'].value:.3f}")
    0.017, found 0.017
    >>> found.unidentified[-1:]
    ('epsilon',)
    """
    return _calibrated([_Run(log, engine_settings, steps, share)])[0]


def fit_jointly(
    logs: Sequence[ServedLog],
    engine_settings: Sequence[Mapping[str, Any]],
    share: float = 0.4,
    steps: Sequence[pd.DataFrame | None] | None = None,
) -> list[Calibration]:
    """One law fitted to several logs of the same engine: a calibration a log.

    Args:
        logs: What was measured.
        engine_settings: The settings of each run.
        share: The part of the completions of each to fit to.
        steps: The steps of each run, or None where they were not written down.

    Raises:
        ConfigError: A bad setting or share, a request that can never fit, or lists
            of unlike length.
        TraceError: Too few requests, or none with two tokens.
    """
    steps = [None] * len(logs) if steps is None else steps
    if not logs or not len(logs) == len(engine_settings) == len(steps):
        sizes = f"{len(logs)}, {len(engine_settings)} and {len(steps)}"
        raise ConfigError(f"logs, settings, steps: {sizes}: must be alike, not 0")
    rows = zip(logs, engine_settings, steps, strict=True)
    return _calibrated([_Run(*row, share) for row in rows])


def _calibrated(runs: list["_Run"]) -> list[Calibration]:
    """The fit to runs, a calibration each; says where users waited for answers."""
    fits = []
    fitted = _fit_laws(runs, [run.settings for run in runs])
    for run, best in zip(runs, fitted, strict=True):
        if "max_concurrency" not in run.settings and (most := users(run.log)):
            said = f"log of {len(run.log)} requests: {most} users, it looks like, who "
            said += f"wait for answers; only max_concurrency={most} as a setting keeps "
            warnings.warn(said + "that", stacklevel=3)
        record, its = simulate(best.config(), run.workload), vars(best)
        fits.append(Calibration(log=run.log, record=record, fitted=run.part, **its))
    return fits


def fit_table(table: pd.DataFrame, engine_settings: Mapping[str, Any]) -> Fitted:
    """The law fitted to what a benchmark says of each load it tried.

    Robust least squares on the logarithms of the statistics that are given; each row
    is a run of the simulator, every prompt and every output as long as the row says.

    Args:
        table: A row a load: ``rate``, of Poisson arrivals, requests a second, or
            ``concurrency``, users who each send a request when the last one is
            answered; ``requests``, how many; ``prompt_length`` and ``output_length``,
            tokens; and at least one of ``achieved_rate`` and ``mean_``, ``p50_``,
            ``p95_`` and ``p99_`` of ``ttft``, ``tpot``, ``itl`` and ``latency``,
            seconds. NaN where a statistic is not known.
        engine_settings: The engine's limits as fields of a configuration.

    Raises:
        ConfigError: A column is missing, or a bad setting.
        TraceError: A value that cannot be, named by row and column.

    >>> table = pd.DataFrame({"rate": [1.0, 8.0], "requests": 100})
    >>> table = table.assign(prompt_length=500, output_length=50)
    >>> table = table.assign(mean_ttft=[0.04, 0.05], mean_tpot=[0.01, 0.013])
    >>> found = fit_table(table, {"batch_size": 64, "step_law": "sum"})
    >>> 0.007 < found.coefficients["gamma"].value < 0.011
    True
    """
    return _fit_laws([_Table(table, engine_settings)], [engine_settings])[0]


def computed(log: ServedLog) -> Workload:
    """The requests of a log, without prompt tokens that its prefix cache had."""
    if log.cached_tokens is None:
        return log.workload
    own = np.maximum(log.workload.prompt_length - log.cached_tokens, 1)
    return replace(log.workload, prompt_length=own, segments=None)


def users(log: ServedLog) -> int:
    """How many users sent a log's requests, each when answered; 0: nobody waited so.

    While the most requests that are ever there at once are there, none comes. Poisson
    arrivals would come then as at any time: the chance that none does, in so much time
    at the highest of so many levels, must be below 1 in 1,000. Where gaps are as even
    as a clock's that says nothing; then most requests must be ``sent_on_answers``.

    >>> arrivals = np.arange(40) // 2 * 3.0
    >>> work = Workload.from_arrays(arrivals, np.full(40, 9), np.full(40, 9))
    >>> users(ServedLog(work, arrivals, arrivals + 1.0, arrivals + 2.9))
    2
    """
    arrival, gaps = log.workload.arrival_time, np.diff(log.workload.arrival_time)
    if not gaps.any():
        return 0
    left = np.sort(log.last_token_time)  # those that never did are last
    left = left[left <= arrival[-1]]
    times = np.concatenate((left, arrival))
    order = np.argsort(times, kind="stable")  # at the same instant one leaves first
    there = np.cumsum(np.where(order < len(left), -1, 1))
    most = int(there.max())
    if gaps.std() <= _REGULAR * gaps.mean():
        return most if sent_on_answers(log) > 0.5 else 0
    full = np.diff(times[order])[there[:-1] == most].sum() / gaps.mean()
    return most if most * math.exp(-full) < _FALSE_ALARM else 0


def think_time(log: ServedLog, clients: int) -> float:
    """Mean seconds from an answer to its user's next request, as a log has them.

    Each request but the first of each user follows an answer. Whose it is does not
    matter: requests and answers are paired in order, and the mean is the same.

    Args:
        log: Of users who wait, each with one request at a time.
        clients: How many they are, such as ``users`` finds.

    Raises:
        ConfigError: No user, or no request but the first ones.
        TraceError: A request was cut off, and its user went on without an answer.

    >>> arrivals = np.arange(40) // 2 * 3.0
    >>> work = Workload.from_arrays(arrivals, np.full(40, 9), np.full(40, 9))
    >>> log = ServedLog(work, arrivals, arrivals + 1.0, arrivals + 2.9)
    >>> print(f"{think_time(log, clients=2):.2f}")
    0.10
    """
    sent = log.workload.arrival_time[whole("clients", clients, 1, len(log) - 1) :]
    if cut := len(log) - int(log.completed.sum()):
        raise TraceError(f"log of {len(log)} requests: {cut} cut off: must be none")
    return float(np.mean(sent - np.sort(log.last_token_time)[: len(sent)]))


def sent_on_answers(log: ServedLog) -> float:
    """The share of a log's requests that were sent as soon as one was answered.

    That is, within a twentieth of the mean gap.
    """
    arrival, ends = log.workload.arrival_time, np.sort(log.last_token_time)
    before = np.searchsorted(ends, arrival, side="right")
    since = arrival - np.append(-math.inf, ends)[before]
    return float(np.mean(since < _AT_ONCE / mean_rate(arrival)))


def fit_steps(
    steps: pd.DataFrame,
    step_law: str = "roofline",
    stretch: int = _STRETCH,
    graph_tokens: int = 512,
) -> Fitted:
    """The law fitted to measured steps: least squares of relative errors.

    Args:
        steps: A row a step, with columns ``prefill_tokens`` (P, 0 if none),
            ``decode_seqs`` (b that decode, 0 if none), ``decode_kv`` (K), ``pairs``
            (Q) and ``seconds``, such as ``read_steps`` gives.
        step_law: sum or roofline.
        stretch: Steps at least whose sums are fitted to, up to three times as many
            where prefills follow one another; 1 where each was timed well.
        graph_tokens: Tokens up to which a step is launched as one CUDA graph.

    Raises:
        ConfigError: A column is missing, or a bad law or stretch.
        TraceError: A value that cannot be, named by row and column; too few rows.

    >>> rng = np.random.default_rng(1)
    >>> p, b = 9 * rng.integers(0, 99, 50), rng.integers(1, 64, 50)
    >>> columns = {"prefill_tokens": p, "pairs": p**2 / 2, "decode_seqs": b}
    >>> steps = pd.DataFrame(columns).assign(decode_kv=500 * b * rng.random(50))
    >>> steps["seconds"] = 1e-4 * p + 0.02 * (p > 0) + 0.01 + 1e-5 * steps["decode_kv"]
    >>> found = fit_steps(steps, "sum", stretch=1)
    >>> print(f"{found.coefficients['alpha'].value:.4f}")
    0.0001
    """
    choice("step_law", step_law, STEP_LAWS)
    stretches = _Stretches(steps, whole("stretch", stretch, least=1), graph_tokens)
    settings = {"step_law": step_law, "graph_tokens": graph_tokens}
    return _fit_laws([stretches], [settings])[0]


class _Source:
    """What is fitted to."""

    noise = _NOISE
    rest: Mask = np.zeros(1, dtype=bool)  # which is held back
    fastest = _LAUNCH  # TPOT or step, seconds, if it is known
    stretches: "_Stretches | None" = None  # which are fitted to instead, if known

    def misses(self, logs: FloatArray, law: str, held_back: bool = False) -> FloatArray:
        """Logarithms of simulated over measured times, of those fitted to, or not."""
        raise NotImplementedError


class _Run(_Source):
    """A log to fit to: which requests, or which steps, under which configuration."""

    def __init__(
        self,
        log: ServedLog,
        settings: Mapping[str, Any],
        steps: pd.DataFrame | None,
        share: float,
    ) -> None:
        self.log, self.settings = log, settings
        self.part = part = log.first_completed(share)
        self.rest = ~part & ~np.isnan(log.last_token_time)
        shares = log.workload.segments is not None and settings.get("prefix_caching")
        self.workload = log.workload if shares else computed(log)
        if part.sum() < _LEAST or np.isnan(log.tpot[part]).all():
            what = f"{part.sum()} requests to fit to: must be at least {_LEAST}"
            where = f"log of {len(log)} requests, share={share:g}"
            raise TraceError(f"{where}: {what}, with TPOTs")
        self.fastest = float(np.nanquantile(log.tpot[part], 0.1))
        self.base = Fitted({}, (), settings).config(num_requests=len(log))
        if steps is not None:
            require_columns(steps, ["done"])
            early = steps["done"] - log.origin <= log.last_token_time[part].max()
            self.stretches = _Stretches(steps[early], _STRETCH, self.base.graph_tokens)

    def misses(self, logs: FloatArray, law: str, held_back: bool = False) -> FloatArray:
        record = simulate(_with(self.base, logs, step_law=law), self.workload)
        part = self.rest if held_back else self.part
        short = _FLOOR * float(np.nanmedian(self.log.tpot[self.part]))
        found = []
        for name in MEASURES:
            real, ours = (getattr(times, name) for times in (self.log, record))
            use, floor = part & (real > 0.0), 0.0 if name == "tpot" else short
            found.append(np.log((ours[use] + floor) / (real[use] + floor)))
        return np.concatenate(found)


class _Table(_Source):
    """Statistics by load: each row is a run of the simulator."""

    def __init__(self, table: pd.DataFrame, settings: Mapping[str, Any]) -> None:
        by = "concurrency" if "concurrency" in table else "rate"
        about = [by, "requests", "prompt_length", "output_length"]
        self.known = [name for name in _STATISTICS if name in table]
        require_columns(table, about + (self.known or ["mean_ttft"]))
        own = {name: _column(table, name) for name in about + self.known}
        self.real = np.column_stack([own[name] for name in self.known])
        counts = dict.fromkeys({*about} - {"rate"}, int)
        loads: Any = pd.DataFrame(own)[about].round(12).astype(counts)
        self.loads = loads.rename(columns=_LOADS).to_dict("records")
        self.base = Fitted({}, (), settings).config(**_CONSTANT, random_seed=0)

    def misses(self, logs: FloatArray, law: str, held_back: bool = False) -> FloatArray:
        base = _with(self.base, logs, step_law=law)
        runs = [base.replace(**load) for load in self.loads]
        every = [metrics_of(run, simulate(run)) for run in runs]
        ours = [[its[_STATISTICS[name]] for name in self.known] for its in every]
        off = np.log(np.array(ours) / self.real)
        return np.asarray(off[~np.isnan(off)])


class _Stretches(_Source):
    """Steps, cut after so many where no prefill is near, and after three times that."""

    noise = _STEP_NOISE

    def __init__(self, steps: pd.DataFrame, least: int, graph: int) -> None:
        require_columns(steps, list(STEP_COLUMNS))
        *columns, seconds = (_column(steps, name) for name in STEP_COLUMNS)
        busy = np.convolve(columns[0] > 0.0, np.ones(2 * _QUIET + 1), "same") > 0.5
        cuts = [0]
        for step, near in enumerate(busy.tolist()):
            if step - cuts[-1] >= (3 * least - 2 if near else least):
                cuts.append(step)
        if len(cuts) <= len(COEFFICIENTS):
            must = f"must be more than {len(COEFFICIENTS)}"
            raise TraceError(f"{len(seconds)} steps, {len(cuts)} stretches: {must}")
        self.columns, self.cuts = columns, cuts
        self.base = Fitted({}, (), {"graph_tokens": graph}).config()
        self.seconds = np.add.reduceat(seconds, cuts)
        self.fastest = float(np.quantile(seconds, 0.1))

    def misses(self, logs: FloatArray, law: str, held_back: bool = False) -> FloatArray:
        step_time = _with(self.base, logs, step_law=law).step_time
        own = np.add.reduceat(step_time.step(*self.columns), self.cuts)
        return np.asarray(np.log(own / self.seconds))


def _column(table: pd.DataFrame, name: str) -> FloatArray:
    column = pd.to_numeric(table[name], errors="coerce").to_numpy(dtype=np.float64)
    least = 0.0 if name in STEP_COLUMNS[:-1] else math.ulp(0.0)
    fine = (column >= least) & (column < math.inf)
    if name in _STATISTICS:
        fine |= table[name].isna()
    if not fine.all():
        row = int(np.argmin(fine))
        must = "a finite number " + ("above 0" if least else "of at least 0")
        raise TraceError(f"{name}[{row}]={table[name].iloc[row]}: must be {must}")
    return column


def _around(answers: Sequence[float]) -> Estimate:
    """The first answer, between bounds as far as the others spread about it."""
    width = math.exp(_NORMAL * float(np.std(np.log(answers[1:]), ddof=1)))
    return Estimate(answers[0], answers[0] / width, answers[0] * width)


def _with(base: SimulationConfig, logs: FloatArray, **law: str) -> SimulationConfig:
    """``base`` with coefficients of these logarithms; the last one may be wanting."""
    found = zip(COEFFICIENTS, np.exp(logs).tolist(), strict=False)
    return base.replace(**law, **dict(found))


def _usual(gamma: float) -> FloatArray:
    """Logarithms of all coefficients beside one of gamma, on engines measured."""
    known = np.log([PRESETS[name][:5] for name in _MEASURED])
    logs = gamma + np.mean(known - known[:, 2:3], axis=0)
    return np.append(logs, [logs[0] + math.log(_PAIR), math.log(_LAUNCH)])


def _fit_laws(
    runs: Sequence["_Source"], settings: Sequence[Mapping[str, Any]]
) -> list[Fitted]:
    """The law they name, or else the best on what was held back, with each settings."""
    named = {its["step_law"] for its in settings if "step_law" in its}
    tries = {name: _fit_law(runs, name) for name in sorted(named or STEP_LAWS)}
    scores = {name: _score(runs, name, found[0]) for name, found in tries.items()}
    law = min(scores, key=lambda name: scores[name] * _HANDICAP[name])
    found, unsure, covariance = _estimates(*tries[law])
    more: Any = {"covariance": covariance, "laws": scores}
    return [Fitted(found, unsure, {**its, "step_law": law}, **more) for its in settings]


def _fit_law(runs: Sequence[_Source], law: str) -> tuple[FloatArray, FloatArray, float]:
    """Logarithms of the coefficients, the Jacobian there, and the noise."""
    start = _usual(math.log(_FASTEST * min(run.fastest for run in runs)))
    start = start[: len(start) - (law == "sum")]  # which has no launch
    start[5] += 1.0  # epsilon is sought from above: while it is small it hardly shows
    sources = [run.stretches or run for run in runs]
    noise = max(source.noise for source in sources)

    def off(logs: FloatArray) -> FloatArray:
        misses = [robust(source.misses(logs, law)) for source in sources]
        ratios = np.delete(logs - _usual(logs[2])[: len(logs)], 2)
        return np.concatenate((*misses, noise * math.sqrt(_ALIKE) * ratios))

    at, slopes, errors = least_squares(off, start, noise * math.sqrt(_ALIKE))
    own = errors[: 1 - len(start)]  # without those of the ratios
    return at, slopes, max(noise, float(np.sqrt(np.mean(own**2))))


def _score(runs: Sequence[_Source], law: str, logs: FloatArray) -> float:
    """Root mean square of the errors on what was held back, or on all if nothing."""
    held_back = any(run.rest.any() for run in runs)
    misses = [run.misses(logs, law, held_back) for run in runs]
    return float(np.sqrt(np.mean(robust(np.concatenate(misses)) ** 2)))


def _estimates(
    logs: FloatArray, slopes: FloatArray, noise: float
) -> tuple[dict[str, Estimate], tuple[str, ...], FloatArray]:
    """Coefficients with intervals, those the data cannot tell, and the covariance."""
    size, variance = len(logs), noise**2 * _ALIKE
    covariance = np.asarray(variance * np.linalg.inv(slopes.T @ slopes), np.float64)
    own = slopes[: 1 - size]  # without the rows of the ratios
    alone = np.linalg.inv(own.T @ own + 1e-9 * np.eye(size)).diagonal()
    width = _NORMAL * np.sqrt(covariance.diagonal())
    bounds = np.exp([logs, logs - width, logs + width]).T.tolist()
    found = dict(zip(COEFFICIENTS, (Estimate(*row) for row in bounds), strict=False))
    unsure = zip(found, np.sqrt(variance * alone) > _UNSURE, strict=True)
    return found, tuple(name for name, bad in unsure if bad), covariance
