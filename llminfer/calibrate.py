"""Coefficients from a log: the five-number law fitted to a real engine.

The log goes through the simulator, so that queueing, chunks and preemption need no
formula: the coefficients are those whose simulated latencies come nearest. Where the
time of every step is known, they follow from the steps directly.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.optimize import least_squares, nnls

from llminfer.base.arrays import FloatArray
from llminfer.base.errors import TraceError, choice
from llminfer.config import SimulationConfig
from llminfer.data.logs import ServedLog
from llminfer.experiment import simulate
from llminfer.record import RunRecord
from llminfer.stats.intervals import Estimate, jackknife, require_columns
from llminfer.timing import COEFFICIENTS, PRESETS

MEASURES = ("ttft", "tpot", "latency")
STEP_COLUMNS = ("prefill_tokens", "sequences", "kv_tokens", "seconds")
_QUANTILES = {"p50": 0.5, "p90": 0.9, "p95": 0.95, "p99": 0.99}
_NORMAL = 1.96  # standard errors to each side of a 95% interval

# Where a log is silent, a coefficient keeps the ratio to gamma that it has on engines
# measured step by step, give or take a factor of e.
_MEASURED = ("opt-13b-a100", "llama-2-70b-dgx-h100")
_NOISE = 0.03  # what the law misses of a latency, relative
_ALIKE = 9.0  # requests served together err together: so many count as one
_ROBUST = 0.05  # relative errors above it count linearly, not squared
_FLOOR = 50.0  # TPOTs; shorter times tell more of where in a step somebody arrived
_UNSURE = math.log(2.0)  # a standard error of a factor of two: not identified
_LEAST = 10  # requests to fit to
_GROUPS = 10  # of requests, for the jackknife
_STARTS = ((1.0, 1.0, 1.0), (2.0, 1.0, 0.5), (0.5, 4.0, 1.0), (1.0, 0.2, 2.0))
_WIDE, _NARROW = 0.1, (0.05, 0.02)  # relative steps of the derivatives
_SURVEY = 0.3  # the same for the intervals: over the small jumps of a simulation

Residuals = Callable[[FloatArray], FloatArray]


@dataclass(frozen=True, eq=False)
class Fitted:
    """Coefficients with their 95% intervals.

    Attributes:
        coefficients: The five by name.
        unidentified: Those that the data cannot tell.
        settings: Fields of a configuration that go with them.
    """

    coefficients: Mapping[str, Estimate]
    unidentified: tuple[str, ...]
    settings: Mapping[str, Any]

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
    """

    log: ServedLog
    record: RunRecord
    fitted: npt.NDArray[np.bool_]

    @cached_property
    def simulated(self) -> ServedLog:
        """The log that the simulator would have left."""
        return ServedLog.from_record(self.record)

    def errors(self) -> pd.DataFrame:
        """Relative errors on the part held back: mean and percentiles by measure."""
        return errors(self.log, self.simulated, ~self.fitted)

    def mean_error(self, measure: str) -> Estimate:
        """The relative error of a mean on the part held back, with a 95% interval.

        Args:
            measure: ttft, tpot or latency.

        Raises:
            ConfigError: Another measure.
            TraceError: Too little is held back for an interval.

        Source: the delete-a-group jackknife, Miller (1974), over stretches of
        requests that complete together.
        """
        choice("measure", measure, MEASURES)
        pair = [getattr(log, measure) for log in (self.log, self.simulated)]
        rest = np.flatnonzero(~self.fitted & ~np.isnan(pair[0]))
        if len(rest) < 2 * _GROUPS:
            must = f"must be at least {2 * _GROUPS}"
            raise TraceError(f"{len(rest)} requests held back: {must}")
        order = rest[np.argsort(self.log.last_token_time[rest], kind="stable")]
        sums = np.array(
            [[v[i].sum() for v in pair] for i in np.array_split(order, _GROUPS)]
        )
        real, ours = sums.sum(axis=0)
        without = (ours - sums[:, 1]) / (real - sums[:, 0])
        return jackknife(float(ours / real) - 1.0, without - 1.0)

    def residuals(self) -> pd.DataFrame:
        """A row a request: when it completed, seconds; ``fitted``; relative errors."""
        found = {
            name: getattr(self.simulated, name) / getattr(self.log, name) - 1.0
            for name in MEASURES
        }
        at = {"completed": self.log.last_token_time, "fitted": self.fitted}
        return pd.DataFrame(at | found)


def errors(
    measured: ServedLog, simulated: ServedLog, part: npt.NDArray[np.bool_]
) -> pd.DataFrame:
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
        pair = [getattr(log, name)[part] for log in (measured, simulated)]
        real, ours = (values[~np.isnan(values)] for values in pair)
        if not len(real):
            rows[name] = dict.fromkeys(("mean", *_QUANTILES), math.nan)
            continue
        rows[name] = {"mean": ours.mean() / real.mean() - 1.0} | {
            key: np.quantile(ours, q) / np.quantile(real, q) - 1.0
            for key, q in _QUANTILES.items()
        }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("measure")


def fit(
    log: ServedLog, engine_settings: Mapping[str, Any], share: float = 0.4
) -> Calibration:
    """The law fitted to the requests of ``log`` that complete first.

    Robust least squares on the logarithms of TTFT, TPOT and latency. All requests
    are simulated; those that complete later do not enter. Where the log cannot tell
    a coefficient it keeps the ratio to gamma that other engines have, and is named
    in ``unidentified``.

    Args:
        log: What was measured.
        engine_settings: The engine's limits as fields of a configuration, such as
            ``read_settings`` gives.
        share: The part of the completions to fit to, above 0 and at most 1.

    Raises:
        ConfigError: A bad setting or share, or a request that can never fit.
        TraceError: Too few requests, or none with two tokens.

    An engine whose coefficients are known leaves a log; they are found again, or the
    log cannot tell them:

    >>> settings = {"batch_size": 16, "num_requests": 40, "warmup_requests": 0}
    >>> settings["random_seed"] = 1
    >>> engine = SimulationConfig.from_preset("llama-3.1-8b-rtx4090", **settings)
    >>> log = ServedLog.from_record(simulate(engine.replace(server="continuous")))
    >>> found = fit(log, {"batch_size": 16}, share=1.0)
    >>> print(f"{engine.gamma:.3f}, found {found.coefficients['gamma'].value:.3f}")
    0.017, found 0.017
    >>> found.unidentified
    ('beta', 'delta', 'kappa')
    """
    part = log.first_completed(share)
    if part.sum() < _LEAST or np.isnan(log.tpot[part]).all():
        what = f"{part.sum()} requests to fit to: must be at least {_LEAST}, with TPOTs"
        raise TraceError(f"log of {len(log)} requests, share={share:g}: {what}")
    base = Fitted({}, (), engine_settings).config(num_requests=len(log))
    residuals, start = _objective(log, base, part), _start(log, part)
    logs = _least(residuals, start)
    slopes = _slopes(residuals, logs, _SURVEY)
    rows = len(COEFFICIENTS) - 1  # of the residuals are the ratios'
    noise = max(_NOISE, float(np.sqrt(np.mean(residuals(logs)[:-rows] ** 2))))
    variance = noise**2 * _ALIKE
    sure = np.sqrt(variance * np.diag(np.linalg.inv(slopes.T @ slopes)))
    own = slopes[:-rows].T @ slopes[:-rows] + 1e-9 * np.eye(len(logs))
    alone = np.sqrt(variance * np.diag(np.linalg.inv(own)))
    names = dict(zip(COEFFICIENTS, zip(logs, sure, strict=True), strict=True))
    found = {
        name: Estimate(*np.exp([t, t - _NORMAL * error, t + _NORMAL * error]))
        for name, (t, error) in names.items()
    }
    unsure = zip(COEFFICIENTS, alone, strict=True)
    unidentified = tuple(name for name, error in unsure if error > _UNSURE)
    record = simulate(_with(base, logs), log.workload)
    return Calibration(found, unidentified, engine_settings, log, record, part)


def _with(base: SimulationConfig, logs: FloatArray) -> SimulationConfig:
    """``base`` with coefficients of these logarithms."""
    return base.replace(**dict(zip(COEFFICIENTS, np.exp(logs).tolist(), strict=True)))


def _usual_ratios() -> FloatArray:
    """Logarithms of all coefficients over gamma, on engines measured by the step."""
    known = np.log([PRESETS[name][:5] for name in _MEASURED])
    return np.asarray(known.mean(axis=0) - known.mean(axis=0)[2])


def _start(log: ServedLog, part: npt.NDArray[np.bool_]) -> FloatArray:
    """Where to begin, as logarithms: half of the fastest decode steps is gamma."""
    fastest = float(np.nanquantile(log.tpot[part], 0.1))
    return np.asarray(_usual_ratios() + math.log(max(fastest / 2.0, 1e-9)))


def _objective(
    log: ServedLog, base: SimulationConfig, part: npt.NDArray[np.bool_]
) -> Residuals:
    """What is to be small: errors of the log's part, then of the usual ratios."""
    short = _FLOOR * float(np.nanmedian(log.tpot[part]))
    floors = {"ttft": short, "tpot": 0.0, "latency": short}
    use = {name: part & (getattr(log, name) > 0.0) for name in MEASURES}
    usual, pull = _usual_ratios(), _NOISE * math.sqrt(_ALIKE)

    def seen(served: ServedLog) -> FloatArray:
        columns = [getattr(served, n)[use[n]] + floors[n] for n in MEASURES]
        return np.asarray(np.log(np.concatenate(columns)))

    measured = seen(log)

    def residuals(logs: FloatArray) -> FloatArray:
        record = simulate(_with(base, logs), log.workload)
        errors = (seen(ServedLog.from_record(record)) - measured) / _ROBUST
        # the root of the soft-L1 loss, so that its squares add up to it
        root = np.sqrt(2.0 * (np.sqrt(1.0 + errors**2) - 1.0))
        ratios = np.delete(logs - logs[2] - usual, 2)
        return np.concatenate((_ROBUST * np.sign(errors) * root, pull * ratios))

    return residuals


def _least(residuals: Residuals, start: FloatArray) -> FloatArray:
    """Logarithms of coefficients with the least squares.

    A simulation answers in small jumps, so derivatives are taken over wide steps
    first, from several starts, and over narrow ones from the best.
    """

    def descend(x: FloatArray, step: float) -> Any:
        return least_squares(
            residuals,
            x,
            jac=lambda at: _slopes(residuals, at, step),
            bounds=(start - 8.0, start + 8.0),
            xtol=1e-3,
            ftol=1e-4,
            max_nfev=12,
        )

    tried = []
    for alpha, beta, gamma in _STARTS:
        shift = np.log([alpha, beta, gamma, 1.0, 1.0])
        tried.append(descend(start + shift, _WIDE))
    best = min(tried, key=lambda result: float(result.cost))
    for step in _NARROW:
        best = descend(best.x, step)
    return np.asarray(best.x)


def _slopes(residuals: Residuals, at: FloatArray, step: float) -> FloatArray:
    """The Jacobian, by central differences over ``step``, shape (residuals, n)."""
    moves = step * np.eye(len(at))
    return np.stack(
        [(residuals(at + m) - residuals(at - m)) / (2.0 * step) for m in moves], axis=1
    )


def fit_steps(steps: pd.DataFrame) -> Fitted:
    """The law fitted to measured steps: non-negative least squares, relative errors.

    Args:
        steps: A row a step, with columns ``prefill_tokens`` (P, 0 if none),
            ``sequences`` (b that decode, 0 if none), ``kv_tokens`` (K) and
            ``seconds``.

    Raises:
        ConfigError: A column is missing.
        TraceError: A value that cannot be, named by row and column; too few rows.

    >>> p = np.array([0, 100, 0, 400, 0, 0, 200, 0])
    >>> b = np.array([1, 0, 4, 0, 8, 2, 3, 16])
    >>> k = np.array([100, 0, 800, 0, 2000, 900, 100, 5000])
    >>> seconds = 1e-4 * p + 0.02 * (p > 0) + 0.01 * (b > 0) + 1e-3 * b + 1e-7 * k
    >>> columns = dict(zip(STEP_COLUMNS, (p, b, k, seconds), strict=True))
    >>> print(fit_steps(pd.DataFrame(columns)))
    alpha = 0.0001 (0.0001 to 0.0001)
    beta = 0.02 (0.02 to 0.02)
    gamma = 0.01 (0.01 to 0.01)
    delta = 0.001 (0.001 to 0.001)
    kappa = 1e-07 (1e-07 to 1e-07)
    """
    require_columns(steps, list(STEP_COLUMNS))
    p, b, k, seconds = (_steps_column(steps, name) for name in STEP_COLUMNS)
    if len(seconds) <= len(COEFFICIENTS):
        raise TraceError(f"{len(seconds)} steps: must be more than {len(COEFFICIENTS)}")
    parts = np.stack([p, p > 0.0, b > 0.0, b, k], axis=1) / seconds[:, None]
    size = np.sqrt((parts**2).mean(axis=0))  # how much of a step each may be
    scaled = parts / np.where(size > 0.0, size, 1.0)
    values, norm = nnls(scaled, np.ones(len(seconds)))
    variance = max(norm**2 / (len(seconds) - len(values)), 1e-12)
    spread = np.linalg.pinv(scaled.T @ scaled + 1e-12 * np.eye(len(values)))
    error = np.sqrt(variance * np.diag(spread))
    _, sizes, mixes = np.linalg.svd(scaled, full_matrices=False)
    silent = (np.abs(mixes[sizes < 1e-6 * sizes[0]]) > 1e-3).any(axis=0)
    unit = np.where(size > 0.0, size, np.inf)
    low, high = np.maximum(values - _NORMAL * error, 0.0), values + _NORMAL * error
    found = {
        name: Estimate(values[i] / unit[i], low[i] / unit[i], high[i] / unit[i])
        for i, name in enumerate(COEFFICIENTS)
    }
    unsure = silent | (error > 0.5)  # half of a step's time may be its own or not
    unidentified = tuple(n for n, bad in zip(COEFFICIENTS, unsure, strict=True) if bad)
    return Fitted(found, unidentified, {})


def _steps_column(steps: pd.DataFrame, name: str) -> FloatArray:
    try:
        column = steps[name].to_numpy(dtype=np.float64)
    except (TypeError, ValueError):
        raise TraceError(f"{name}: must be numbers") from None
    least = 0.0 if name != "seconds" else math.ulp(0.0)
    bad = ~((column >= least) & (column < math.inf))
    if bad.any():
        row = int(np.argmax(bad))
        must = "a finite number " + ("above 0" if least else "of at least 0")
        raise TraceError(f"{name}[{row}]={column[row]:g}: must be {must}")
    return column
