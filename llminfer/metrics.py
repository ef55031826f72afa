"""The metrics of a run, computed from its record: latency, throughput, goodput."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from llminfer.base.arrays import FloatArray
from llminfer.base.errors import ConfigError, fail, number, whole
from llminfer.record import GIVEN_UP, REFUSED, RunRecord
from llminfer.request import Request
from llminfer.servers.token_gaps import Gaps, token_gaps
from llminfer.timing import StepTime


class MetricsCollector:
    """Computes the metrics of a run.

    The quantities of a request come as ``avg_latency``, ``p99_latency`` and the like:
    mean, smallest, largest, standard deviation (``std_``), median and quantiles.

    Metrics:
        latency: Seconds from a request's sending to its last token; also ``e2e``.
        normalized_latency: Latency over the tokens of the answer, seconds a token.
        processing_time: Seconds from a request's first admission to its last token.
        queue_wait: Seconds from its sending to its first admission.
        ttft: Time to first token, seconds from sending.
        tpot: Time per output token after the first, seconds.
        itl: Inter-token latency: the gaps between the tokens of all answers, seconds.
        slowdown: Latency over what the request would take on an idle server.
        client_wait: Seconds that a request waits at the client, before it is sent.
        throughput_req_per_sec: Completed requests a second.
        throughput_tokens_per_sec: Tokens of their answers a second.
        total_requests: Measured requests that were completed.
        simulation_time: Seconds from the first measured arrival to the last completion.
        prompt_length: Tokens of a prompt.
        output_length: Tokens of an answer.
        total_tokens: Of prompts and answers.
        fairness_index: Jain's index of the latencies: 1 if all are equal.
        starvation_rate: Percent of requests over three times the median latency.
        queue_length: Requests that wait, at a moment of the whole run.
        total_batches: Batches of the whole run; steps of a continuous server.
        batch_size: Requests in a batch.
        utilization: Share of the whole run that the server is busy.
        kv_occupancy: Share of the KV memory that is held.
        kv_hit_rate: Share of prompt tokens found in the prefix cache.
        cached_tokens: Prompt tokens found there.
        preemptions: Times that a request lost its KV memory and began again.
        refused_requests: Refused by a full queue; ``refused_share`` of all.
        given_up_requests: Left before their end; ``given_up_share`` of all.
        wasted_tokens: Computed for requests that then left.

    >>> from llminfer import SimulationConfig, Workload, simulate
    >>> work = Workload.from_arrays([0.0, 0.5, 4.0], [100, 50, 200], [20, 10, 30])
    >>> record = simulate(SimulationConfig(batch_size=2, warmup_requests=0), work)
    >>> metrics = MetricsCollector.compute_metrics(record)
    >>> round(metrics["avg_latency"], 3)  # seconds
    0.395
    """

    @staticmethod
    def compute_metrics(
        requests: RunRecord | pd.DataFrame | Sequence[Request],
        warmup_requests: int = 0,
        step_time: StepTime | None = None,
    ) -> dict[str, float]:
        """All metrics of a run by name; times in seconds.

        Args:
            requests: A run's record, its ``.requests`` table, or served requests; of
                one class, its record's ``of_class``.
            warmup_requests: The first so many by arrival are left out of everything
                a request has; queue, batches and utilization are of the whole run.
            step_time: The coefficients, for the slowdown and the gaps between tokens;
                without them there are none.

        Raises:
            ConfigError: Nothing is left to measure.
        """
        record = _as_record(requests)
        skip = _measured(record, warmup_requests)
        return metrics_and_times(record, skip, step_time)[0]


def metrics_and_times(
    record: RunRecord, skip: int, step_time: StepTime | None
) -> tuple[dict[str, float], dict[str, FloatArray], Gaps | None]:
    """All metrics, and what quantiles of several runs can be pooled from.

    Args:
        record: A finished run.
        skip: The first measured request.
        step_time: The coefficients; None leaves out slowdown and gaps.

    Returns:
        The metrics; latency, wait, TTFT and TPOT in ascending order, by the metric's
        name; and the gaps between tokens.
    """
    times = {name: np.sort(its) for name, its in _times(record, skip).items()}
    if not len(times["latency"]):
        raise ConfigError("nothing to measure: no request was completed")
    metrics, asked = _of_requests(record, skip, step_time, times), record.asked(skip)
    metrics |= _whole_run(record) if record.only_class is None else {}
    metrics |= _of_clients(record, asked)
    if record.steps is not None:
        metrics["preemptions"] = int(record.preemptions[asked].sum())
        if (cached := record.steps.cached_tokens) is not None:
            metrics["cached_tokens"] = found = int(cached[asked].sum())
            metrics["kv_hit_rate"] = found / float(record.prompt_length[asked].sum())
    if step_time is None or not len(record.batch_start):
        return metrics, times, None
    gaps = token_gaps(record, step_time, skip)
    return metrics | _gap_metrics(gaps), times, gaps


def goodput(
    requests: RunRecord | pd.DataFrame | Sequence[Request],
    ttft_limit: float,
    tpot_limit: float,
    warmup_requests: int = 0,
) -> float:
    """Requests a second that met both limits, over the measured time.

    TPOT is that of vLLM, from the first token on; a single token has none to miss.

    Args:
        requests: A run's record, its ``.requests`` table, or served requests; of one
            class, its record's ``of_class``.
        ttft_limit: Longest time to the first token, seconds.
        tpot_limit: Longest time an output token after the first, seconds.
        warmup_requests: The first so many by arrival are left out.

    Raises:
        ConfigError: Nothing is left to measure, or a limit is no number.

    >>> from llminfer import SimulationConfig, Workload, simulate
    >>> work = Workload.from_arrays([0.0, 0.5, 4.0], [100, 50, 200], [20, 10, 30])
    >>> record = simulate(SimulationConfig(batch_size=2, warmup_requests=0), work)
    >>> round(goodput(record, ttft_limit=0.6, tpot_limit=0.1), 3)  # two in 4.265 s
    0.469
    """
    record = _as_record(requests)
    skip = _measured(record, warmup_requests)
    in_time = record.ttft <= number("ttft_limit", ttft_limit, least=0.0)
    too_slow = record.tpot > number("tpot_limit", tpot_limit, least=0.0)
    met = int((in_time & ~too_slow)[record.measured(skip)].sum())
    return _ratio(met, _span(record, skip))


def _measured(record: RunRecord, warmup_requests: int) -> int:
    """The number of the first measured request."""
    skip = whole("warmup_requests", warmup_requests, 0)
    if skip >= len(record.arrival_time):
        must = f"below the number of completed requests, {len(record.arrival_time)}"
        raise fail("warmup_requests", warmup_requests, must)
    return skip


def _times(record: RunRecord, skip: int) -> dict[str, FloatArray]:
    """What each measured request took, seconds; no TPOT of a single token."""
    some = record.measured(skip)
    return {
        "latency": record.latency[some],
        "queue_wait": record.wait[some],
        "ttft": record.ttft[some],
        "tpot": record.tpot[some][record.output_length[some] > 1],
    }


def _of_requests(
    record: RunRecord, skip: int, law: StepTime | None, times: Mapping[str, FloatArray]
) -> dict[str, float]:
    """What each measured request has, summed up; ``times`` in ascending order."""
    some = record.measured(skip)
    latency = record.latency[some]
    prompt = record.prompt_length[some].astype(np.float64)
    output = record.output_length[some].astype(np.float64)
    processing = (record.processing_end_time - record.processing_start_time)[some]
    metrics = _spread(
        "latency", times["latency"], "avg median std min max p50 p90 p95 p99"
    )
    metrics |= {f"{key}_e2e": metrics[f"{key}_latency"] for key in _FIELD.split()}
    del metrics["p90_latency"]
    metrics |= _spread("normalized_latency", latency / output, _FIELD)
    metrics |= _spread("processing_time", processing, "avg median max")
    for name, wanted in _WANTED.items():
        metrics |= _spread(name, times[name], wanted)
    if law is not None:
        alone = _alone(record, law, prompt, output)
        with np.errstate(divide="ignore", invalid="ignore"):
            metrics |= _spread("slowdown", latency / alone, "avg p50 p99")
    slow = latency > 3.0 * metrics["median_latency"]
    return (
        metrics
        | _totals(prompt, output, _span(record, skip))
        | {
            "fairness_index": jain(latency),
            "starvation_rate": float(100.0 * np.mean(slow)),
        }
    )


def _of_clients(record: RunRecord, asked: Any) -> dict[str, float]:
    """Waits at the client, and how requests ended; nothing by the clock."""
    if record.outcome is None or record.wasted_tokens is None:
        return {}
    metrics = _spread("client_wait", record.client_wait[asked], "avg max p99")
    for name, outcome in ("refused", REFUSED), ("given_up", GIVEN_UP):
        those = record.outcome[asked] == outcome
        metrics[f"{name}_requests"] = int(those.sum())
        metrics[f"{name}_share"] = float(those.mean())
    return metrics | {"wasted_tokens": int(record.wasted_tokens[asked].sum())}


def _totals(prompt: FloatArray, output: FloatArray, span: float) -> dict[str, float]:
    """Requests and tokens, and how many a second."""
    return {
        "throughput_req_per_sec": _ratio(len(prompt), span),
        "throughput_tokens_per_sec": _ratio(float(output.sum()), span),
        "total_requests": len(prompt),
        "simulation_time": span,
        "avg_prompt_length": float(prompt.mean()),
        "avg_output_length": float(output.mean()),
        "total_tokens": float(prompt.sum() + output.sum()),
    }


def _span(record: RunRecord, skip: int) -> float:
    """Seconds from the first measured sending to the last measured completion."""
    return float(record.processing_end_time[skip:].max() - record.sent_time[skip])


def _alone(
    record: RunRecord, step_time: StepTime, prompt: FloatArray, output: FloatArray
) -> FloatArray:
    if record.steps is None:
        return step_time.alone(prompt, output)
    return step_time.alone_stepwise(prompt, output, record.steps.max_prefill)


def _gap_metrics(gaps: Gaps) -> dict[str, float]:
    keys = _FIELD.split()[1:]
    found = gaps.quantiles([_QUANTILES[key] / 100.0 for key in keys])
    return {
        "avg_itl": gaps.mean(),
        **{f"{key}_itl": float(x) for key, x in zip(keys, found, strict=True)},
    }


def _as_record(requests: RunRecord | pd.DataFrame | Sequence[Request]) -> RunRecord:
    if isinstance(requests, RunRecord):
        return requests
    if isinstance(requests, pd.DataFrame):
        return RunRecord.from_frame(requests)
    return RunRecord.from_requests(requests)


def _whole_run(record: RunRecord) -> dict[str, float]:
    """Queue, batches, utilization and memory of the whole run, warm-up too."""
    time = record.batch_end - record.batch_start
    lasted = float(record.batch_end.max(initial=0.0) - record.arrival_time[0])
    log, steps = record.steps, record.batch_steps
    servers = 1 if log is None else log.replicas
    metrics = {
        "max_queue_length": record.max_queue_length,
        "total_batches": int(steps.sum()),
        "avg_batch_size": _ratio(int(steps @ record.batch_size), int(steps.sum())),
        "utilization": _ratio(float(time.sum()), servers * lasted),
    }
    if log is not None and log.kv_blocks is not None:
        held = (log.first_blocks + log.last_blocks) / 2.0
        memory = servers * log.kv_blocks
        metrics["avg_kv_occupancy"] = _ratio(float(held @ time), memory * lasted)
        metrics["max_kv_occupancy"] = float(log.last_blocks.max()) / log.kv_blocks
    return metrics


_FIELD = "avg p50 p90 p95 p99"  # as vLLM's own benchmark reports a time
_WANTED = {"queue_wait": "avg median max p95 p99 p999", "ttft": _FIELD, "tpot": _FIELD}
_QUANTILES = {"p50": 50.0, "p90": 90.0, "p95": 95.0, "p99": 99.0, "p999": 99.9}


def _spread(name: str, values: FloatArray, wanted: str) -> dict[str, float]:
    """``avg_name``, ``p99_name`` and so on; NaN where there are no values."""
    keys = wanted.split()
    if not len(values):
        return {f"{key}_{name}": math.nan for key in keys}
    ranks = [key for key in keys if key in _QUANTILES]
    found = np.percentile(values, [_QUANTILES[key] for key in ranks] + [50.0])
    known = dict(zip([*ranks, "median"], map(float, found), strict=True))
    made: dict[str, Callable[[FloatArray], Any]]
    made = {"avg": np.mean, "std": np.std, "min": np.min, "max": np.max}
    known |= {key: float(made[key](values)) for key in keys if key in made}
    return {f"{key}_{name}": known[key] for key in keys}


def jain(values: FloatArray) -> float:
    """Jain's fairness index: 1 if all alike, 1/n if one has it all.

    >>> jain(np.array([1.0, 1.0, 1.0, 0.0]))
    0.75
    """
    squares = len(values) * float((values**2).sum())
    return float(values.sum()) ** 2 / squares if squares > 0.0 else 1.0


def _ratio(amount: float, seconds: float) -> float:
    return amount / seconds if seconds > 0.0 else math.nan
