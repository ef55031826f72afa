"""Coefficients from a log: the law of step times fitted to a real engine.

The log goes through the simulator, so that queueing, chunks and preemption need no
formula: the coefficients are those whose simulated latencies come nearest. Where the
engine wrote down every step, they follow from the steps themselves, and the requests
only say how good they are. Other logs, loads and settings are then predicted, with
intervals from the coefficients' own uncertainty.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from llminfer.base.arrays import FloatArray
from llminfer.base.errors import ConfigError, TraceError, choice, whole
from llminfer.config import SimulationConfig
from llminfer.data.logs import ServedLog
from llminfer.experiment import simulate
from llminfer.laws.engines import COEFFICIENTS, PRESETS, STEP_LAWS
from llminfer.record import RunRecord
from llminfer.stats.intervals import Estimate, jackknife, require_columns
from llminfer.workload import Workload

MEASURES = ("ttft", "tpot", "latency")
STEP_COLUMNS = ("prefill_tokens", "decode_seqs", "decode_kv", "pairs", "seconds")
_QUANTILES = {"p50": 0.5, "p90": 0.9, "p95": 0.95, "p99": 0.99}
_NORMAL = 1.96  # standard errors to each side of a 95% interval

# Where a log is silent, a coefficient keeps the ratio to gamma that it has on engines
# measured step by step, give or take a factor of e.
_MEASURED = ("opt-13b-a100", "llama-2-70b-dgx-h100")
_LAUNCH = 0.015  # s; this is the CPU's, and hardly depends on the GPU
_NOISE = 0.03  # what the law misses of a latency, relative
_STEP_NOISE = 0.02  # and of the time of a stretch of steps
_ALIKE = 9.0  # requests served together err together: so many count as one
_ROBUST = 0.05  # relative errors above it count linearly, not squared
_FLOOR = 50.0  # TPOTs; shorter times tell more of where in a step somebody arrived
_UNSURE = math.log(2.0)  # a standard error of a factor of two: not identified
_LEAST = 10  # requests to fit to
_GROUPS = 10  # of requests, for the jackknife
_FASTEST = 0.8  # of the TPOT of the fastest tenth is gamma, to begin with
_ROUNDS, _CLOUDS = 7, 2  # of the search; bundles of directions in each round
_WIDE, _FURTHEST = 0.3, 1.0  # widest cloud and longest step, in logarithms
_HANDICAP = {"sum": 1.0, "roofline": 0.8}  # of a law's error, where they compete
_STRETCH = 40  # steps, over which the late clock of single ones averages out
_QUIET = 2  # steps on both sides of a step without prefill, for a cut there

Residuals = Callable[[FloatArray], FloatArray]
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Fitted:
    """Coefficients with their 95% intervals.

    Attributes:
        coefficients: The seven by name.
        unidentified: Those that the data cannot tell.
        settings: Fields of a configuration that go with them, the law among them.
        covariance: Of their logarithms, shape (7, 7).
    """

    coefficients: Mapping[str, Estimate]
    unidentified: tuple[str, ...]
    settings: Mapping[str, Any]
    covariance: FloatArray = field(kw_only=True, default_factory=lambda: np.empty(0))

    def config(self, **changes: Any) -> SimulationConfig:
        """A continuous server with these coefficients and settings, to go on with.

        Args:
            **changes: Other fields.

        Raises:
            ConfigError: A setting or a change cannot be run.
        """
        found = {name: found.value for name, found in self.coefficients.items()}
        base = SimulationConfig(server="continuous", warmup_requests=0)
        return base.replace(**{**self.settings, **found, **changes})

    def draws(self, n: int = 20, seed: int = 0) -> list[SimulationConfig]:
        """So many configurations whose coefficients the data allow as well.

        Args:
            n: How many.
            seed: Of the draws: normal in the logarithms, as the least squares say.
        """
        spread = np.linalg.cholesky(self.covariance)
        noise = np.random.default_rng(seed).normal(size=(n, len(spread)))
        middle = np.log([found.value for found in self.coefficients.values()])
        return [_with(self.config(), middle + spread @ row) for row in noise]

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
        configs = [self.config(), *self.draws(n, seed)]
        runs = [simulate(config.replace(**changes), workload) for config in configs]
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
        rows = {
            name: {**found.row(), "identified": name not in self.unidentified}
            for name, found in self.coefficients.items()
        }
        return pd.DataFrame.from_dict(rows, orient="index").rename_axis("coefficient")

    def __str__(self) -> str:
        lines = [
            f"{name} = {found.value:.3g} ({found.lower:.2g} to {found.upper:.2g})"
            + (": the data cannot tell it" if name in self.unidentified else "")
            for name, found in self.coefficients.items()
        ]
        return "\n".join(lines)


@dataclass(frozen=True, eq=False)
class Calibration(Fitted):
    """A log, and the simulator fitted to its first part.

    Attributes:
        log: What was measured.
        record: The same requests simulated, all of them.
        fitted: Which requests were fitted to, shape (n,); the rest was held back.
        laws: The error of each law that was tried on what was held back, relative:
            root mean square over requests. The roofline is taken unless the sum is
            clearly better, by a fifth: one engine at one budget can hardly tell.
    """

    log: ServedLog
    record: RunRecord
    fitted: Mask
    laws: Mapping[str, float] = field(kw_only=True, default_factory=dict)

    @cached_property
    def simulated(self) -> ServedLog:
        """The log that the simulator would have left."""
        return ServedLog.from_record(self.record)

    def errors(self) -> pd.DataFrame:
        """Relative errors on the part held back: mean and percentiles by measure."""
        return errors(self.log, self.simulated, ~self.fitted)

    def __str__(self) -> str:
        tried = ", ".join(f"{law} {error:.2%}" for law, error in self.laws.items())
        return f"{super().__str__()}\nstep law: {self.settings['step_law']} ({tried})"


def errors(measured: ServedLog, simulated: ServedLog, part: Mask) -> pd.DataFrame:
    """Simulated over measured, less 1: a row a measure, ``mean`` and percentiles.

    Args:
        measured: A log.
        simulated: The same requests, simulated.
        part: Which of them to compare, shape (n,); NaN where there are none.

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
        pair = (getattr(log, name)[part] for log in (simulated, measured))
        ours, real = (pd.Series(values).dropna() for values in pair)
        ratios = {
            key: ours.quantile(q) / real.quantile(q) for key, q in _QUANTILES.items()
        }
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
    sums = np.array(
        [[v[i].sum() for v in pair] for i in np.array_split(order, _GROUPS)]
    )
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
    are simulated; those that complete later do not enter. Where the log cannot tell
    a coefficient it keeps the ratio to gamma that other engines have, and is named
    in ``unidentified``. The requests held back choose between the laws, unless the
    settings name one as ``step_law``.

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

    An engine whose coefficients are known leaves a log; they are found again, or the
    log cannot tell them:

    >>> settings = {"batch_size": 16, "num_requests": 40, "warmup_requests": 0}
    >>> settings["random_seed"] = 1
    >>> engine = SimulationConfig.from_preset("llama-3.1-8b-rtx4090", **settings)
    >>> log = ServedLog.from_record(simulate(engine.replace(server="continuous")))
    >>> found = fit(log, {"batch_size": 16, "step_law": "sum"}, share=1.0)
    >>> print(f"{engine.gamma:.3f}, found {found.coefficients['gamma'].value:.3f}")
    0.017, found 0.017
    >>> found.unidentified[-2:]
    ('epsilon', 'launch')
    """
    return fit_jointly([log], [engine_settings], share, [steps])[0]


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
    runs = [_Run(*row, share) for row in rows]
    named = {its["step_law"] for its in engine_settings if "step_law" in its}
    tries = {name: _fit_law(runs, name) for name in sorted(named or STEP_LAWS)}
    scores = {name: _score(runs, name, found[0]) for name, found in tries.items()}
    law = min(scores, key=lambda name: scores[name] * _HANDICAP[name])
    found, unsure, covariance = _estimates(*tries[law])
    given: dict[str, Any] = {"covariance": covariance, "laws": scores}
    fits = []
    for run in runs:
        settings = {**run.settings, "step_law": law}
        rest = settings, run.log, run.simulate(tries[law][0], law), run.part
        fits.append(Calibration(found, unsure, *rest, **given))
    return fits


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
        stretch: Steps whose sums are fitted to; 1 where each was timed well.
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
    each = steps["seconds"].to_numpy(dtype=np.float64)
    start = _usual(math.log(_FASTEST * float(np.quantile(each, 0.1))))
    misses = partial(stretches.misses, law=step_law)
    found, unidentified, covariance = _estimates(*_least([misses], start, _STEP_NOISE))
    law = {"step_law": step_law, "graph_tokens": graph_tokens}
    return Fitted(found, unidentified, law, covariance=covariance)


class _Run:
    """A log to fit to: which requests, or which steps, under which configuration."""

    def __init__(
        self,
        log: ServedLog,
        settings: Mapping[str, Any],
        steps: pd.DataFrame | None,
        share: float,
    ) -> None:
        self.log, self.settings, self.stretches = log, settings, None
        self.part = part = log.first_completed(share)
        if part.sum() < _LEAST or np.isnan(log.tpot[part]).all():
            what = f"{part.sum()} requests to fit to: must be at least {_LEAST}"
            where = f"log of {len(log)} requests, share={share:g}"
            raise TraceError(f"{where}: {what}, with TPOTs")
        self.base = Fitted({}, (), settings).config(num_requests=len(log))
        if steps is not None:
            require_columns(steps, ["done"])
            early = steps["done"] - log.origin <= log.last_token_time[part].max()
            self.stretches = _Stretches(steps[early], _STRETCH, self.base.graph_tokens)

    def simulate(self, logs: FloatArray, law: str) -> RunRecord:
        """The requests under coefficients of these logarithms."""
        return simulate(_with(self.base.replace(step_law=law), logs), self.log.workload)

    def misses(self, logs: FloatArray, law: str, held_back: bool = False) -> FloatArray:
        """Logarithms of simulated over measured times, of a part of the requests."""
        record, part = self.simulate(logs, law), self.part ^ held_back
        short = _FLOOR * float(np.nanmedian(self.log.tpot[self.part]))
        found = []
        for name in MEASURES:
            real, ours = (getattr(times, name) for times in (self.log, record))
            use, floor = part & (real > 0.0), 0.0 if name == "tpot" else short
            found.append(np.log((ours[use] + floor) / (real[use] + floor)))
        return np.concatenate(found)


class _Stretches:
    """Steps, cut after so many, or sooner where no prefill is near."""

    def __init__(self, steps: pd.DataFrame, longest: int, graph: int) -> None:
        require_columns(steps, list(STEP_COLUMNS))
        *columns, seconds = (_steps_column(steps, name) for name in STEP_COLUMNS)
        busy = np.convolve(columns[0] > 0.0, np.ones(2 * _QUIET + 1), "same") > 0.5
        cuts = [0]
        for step, near in enumerate(busy.tolist()):
            if step - cuts[-1] >= (longest if near else math.ceil(longest / 3)):
                cuts.append(step)
        if len(cuts) <= len(COEFFICIENTS):
            must = f"must be more than {len(COEFFICIENTS)}"
            raise TraceError(f"{len(seconds)} steps, {len(cuts)} stretches: {must}")
        self.columns, self.cuts, self.graph = columns, cuts, graph
        self.seconds = np.add.reduceat(seconds, cuts)

    def misses(self, logs: FloatArray, law: str) -> FloatArray:
        """Logarithms of predicted over measured times, of each stretch."""
        alpha, beta, gamma, delta, kappa, epsilon, launch = np.exp(logs)
        p, b, k, q = self.columns
        own = delta * b + kappa * k + beta * (p > 0.0) + epsilon * q
        if law == "roofline":
            large = np.where(p + b > self.graph, launch, 0.0)
            own += np.maximum(np.maximum(gamma, large), alpha * (p + b))
        else:
            own += alpha * p + gamma * (b > 0.0)
        found: FloatArray = np.log(np.add.reduceat(own, self.cuts) / self.seconds)
        return found


def _steps_column(steps: pd.DataFrame, name: str) -> FloatArray:
    column = pd.to_numeric(steps[name], errors="coerce").to_numpy(dtype=np.float64)
    least = math.ulp(0.0) if name == "seconds" else 0.0
    if (bad := ~((column >= least) & (column < math.inf))).any():
        row = int(np.argmax(bad))
        must = "a finite number " + ("above 0" if least else "of at least 0")
        raise TraceError(f"{name}[{row}]={steps[name].iloc[row]}: must be {must}")
    return column


def _around(answers: Sequence[float]) -> Estimate:
    """The first answer, between bounds as far as the others spread about it."""
    width = math.exp(_NORMAL * float(np.std(np.log(answers[1:]), ddof=1)))
    return Estimate(answers[0], answers[0] / width, answers[0] * width)


def _with(base: SimulationConfig, logs: FloatArray) -> SimulationConfig:
    """``base`` with coefficients of these logarithms."""
    return base.replace(**dict(zip(COEFFICIENTS, np.exp(logs).tolist(), strict=True)))


def _usual(gamma: float) -> FloatArray:
    """Logarithms of all coefficients beside one of gamma, on engines measured."""
    known = np.array([PRESETS[name][:6] for name in _MEASURED])
    known = np.where(known > 0.0, known, np.nan)  # one of them has no epsilon
    logs = gamma + np.nanmean(np.log(known / known[:, 2:3]), axis=0)
    return np.append(logs, math.log(_LAUNCH))


def _robust(errors: FloatArray) -> FloatArray:
    """The root of the soft-L1 loss, so that its squares add up to it."""
    scaled = errors / _ROBUST
    root = np.sqrt(2.0 * (np.sqrt(1.0 + scaled**2) - 1.0))
    return np.asarray(_ROBUST * np.sign(scaled) * root)


def _fit_law(runs: Sequence[_Run], law: str) -> tuple[FloatArray, FloatArray, float]:
    """Logarithms of the coefficients, the Jacobian there, and the noise."""
    parts = [
        partial(run.misses if run.stretches is None else run.stretches.misses, law=law)
        for run in runs
    ]
    fast = min(float(np.nanquantile(run.log.tpot[run.part], 0.1)) for run in runs)
    noise = _NOISE if any(run.stretches is None for run in runs) else _STEP_NOISE
    return _least(parts, _usual(math.log(_FASTEST * fast)), noise)


def _least(
    parts: Sequence[Residuals], start: FloatArray, noise: float
) -> tuple[FloatArray, FloatArray, float]:
    """Logarithms of coefficients with the least squares, the Jacobian, the error.

    A simulation answers in small jumps. So each round looks at a cloud of points, as
    wide as the coefficients are unsure after the round before; a plane through their
    residuals gives the derivatives and the next point.
    """
    rng, size, unsure = np.random.default_rng(0), len(start), noise * math.sqrt(_ALIKE)

    def residuals(logs: FloatArray) -> FloatArray:
        own = [_robust(part(logs)) for part in parts]
        return np.concatenate((*own, unsure * np.delete(logs - _usual(logs[2]), 2)))

    at, spread, best = start, _WIDE * np.eye(size), (math.inf, start, start)
    for last in range(_ROUNDS + 1):
        if (cost := float((here := residuals(at)) @ here)) < best[0]:
            best = cost, at, here
        if last == _ROUNDS:
            at = best[1]  # the derivatives where they are reported
        bundles = np.linalg.qr(rng.normal(size=(_CLOUDS, size, size)))[0]
        moves = math.sqrt(size) * np.concatenate(bundles) @ spread.T
        moves = np.concatenate((moves, -moves))
        seen = [residuals(at + move) for move in moves]
        plane = np.column_stack((np.ones(len(moves)), moves))
        fitted = np.linalg.lstsq(plane, np.stack(seen))[0]
        middle, slopes = fitted[0], np.asarray(fitted[1:].T, np.float64)
        step = -np.linalg.lstsq(slopes, middle)[0]
        at = at + step * min(1.0, _FURTHEST / float(np.abs(step).max()))
        spread[:] = unsure * np.linalg.cholesky(np.linalg.inv(slopes.T @ slopes))
        spread *= min(1.0, _WIDE / float(np.sqrt((spread**2).sum(axis=1)).max()))
    own = best[2][: 1 - size]
    return best[1], slopes, max(noise, float(np.sqrt(np.mean(own**2))))


def _score(runs: Sequence[_Run], law: str, logs: FloatArray) -> float:
    """Root mean square of the errors on what was held back, or on all if nothing."""
    held_back = not all(run.part.all() for run in runs)
    misses = [run.misses(logs, law, held_back) for run in runs]
    return float(np.sqrt(np.mean(_robust(np.concatenate(misses)) ** 2)))


def _estimates(
    logs: FloatArray, slopes: FloatArray, noise: float
) -> tuple[dict[str, Estimate], tuple[str, ...], FloatArray]:
    """Coefficients with intervals, those the data cannot tell, and the covariance."""
    size, variance = len(logs), noise**2 * _ALIKE
    covariance = np.asarray(variance * np.linalg.inv(slopes.T @ slopes), np.float64)
    own = slopes[: 1 - size]  # without the rows of the ratios
    alone = np.linalg.inv(own.T @ own + 1e-9 * np.eye(size)).diagonal()
    width = _NORMAL * np.sqrt(covariance.diagonal())
    bounds = np.exp([logs, logs - width, logs + width]).T
    found = {
        n: Estimate(*map(float, row))
        for n, row in zip(COEFFICIENTS, bounds, strict=True)
    }
    unsure = zip(COEFFICIENTS, np.sqrt(variance * alone) > _UNSURE, strict=True)
    return found, tuple(name for name, bad in unsure if bad), covariance
