"""Requests to numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd

from llminfer.checks import fail, whole
from llminfer.lengths import FloatArray
from llminfer.record import RunRecord
from llminfer.request import Request
from llminfer.timing import StepTime


class MetricsCollector:
    """Computes the metrics of a run (DESIGN section 7 defines each)."""

    @staticmethod
    def compute_metrics(
        requests: RunRecord | pd.DataFrame | Sequence[Request],
        warmup_requests: int = 0,
        step_time: StepTime | None = None,
    ) -> dict[str, float]:
        """All metrics of a run by name; times in seconds.

        Args:
            requests: A run's record, its ``.requests`` table, or served requests.
            warmup_requests: The first so many by arrival are left out of everything
                a request has; queue, batches and utilization are of the whole run.
            step_time: The coefficients, for the slowdown; without it there is none.

        Raises:
            ConfigError: Nothing is left to measure.
        """
        record = _as_record(requests)
        skip = whole("warmup_requests", warmup_requests, 0)
        if skip >= len(record.arrival_time):
            must = f"below the number of completed requests, {len(record.arrival_time)}"
            raise fail("warmup_requests", warmup_requests, must)
        arrival = record.arrival_time[skip:]
        start = record.processing_start_time[skip:]
        first = record.first_token_time[skip:]
        end = record.processing_end_time[skip:]
        prompt = record.prompt_length[skip:].astype(np.float64)
        output = record.output_length[skip:].astype(np.float64)
        latency = end - arrival
        wait = start - record.queue_entry_time[skip:]
        processing = end - start
        span = float(end.max() - arrival[0])
        several = output > 1.0
        tpot = (end - first)[several] / (output[several] - 1.0)

        metrics = _spread("latency", latency, "avg median std min max p50 p95 p99")
        metrics |= _spread("queue_wait", wait, "avg median max p95 p99 p999")
        metrics |= _spread("processing_time", processing, "avg median max")
        metrics |= _spread("ttft", first - arrival, "avg p50 p90 p95 p99")
        metrics |= _spread("tpot", tpot, "avg p50 p90 p95 p99")
        total_tokens = float(prompt.sum() + output.sum())
        metrics |= {
            "throughput_req_per_sec": _ratio(len(latency), span),
            "throughput_tokens_per_sec": _ratio(float(output.sum()), span),
            "total_requests": len(latency),
            "simulation_time": span,
            "fairness_index": _jain(latency),
            "starvation_rate": float(
                100.0 * np.mean(latency > 3.0 * metrics["median_latency"])
            ),
            "avg_prompt_length": float(prompt.mean()),
            "avg_output_length": float(output.mean()),
            "total_tokens": total_tokens,
        }
        metrics |= _whole_run(record)
        if step_time is not None:
            alone = step_time.alone(prompt, output)
            with np.errstate(divide="ignore", invalid="ignore"):
                metrics |= _spread("slowdown", latency / alone, "avg p50 p99")
        return metrics


def _as_record(requests: RunRecord | pd.DataFrame | Sequence[Request]) -> RunRecord:
    if isinstance(requests, RunRecord):
        return requests
    if isinstance(requests, pd.DataFrame):
        return RunRecord.from_frame(requests)
    return RunRecord.from_requests(requests)


def _whole_run(record: RunRecord) -> dict[str, float]:
    """Queue, batches and utilization of the whole run, warm-up too."""
    busy = float((record.batch_end - record.batch_start).sum())
    lasted = float(record.batch_end.max() - record.arrival_time[0])
    return {
        "max_queue_length": record.max_queue_length,
        "total_batches": len(record.batch_size),
        "avg_batch_size": float(record.batch_size.mean()),
        "utilization": _ratio(busy, lasted),
    }


_QUANTILES = {"p50": 50.0, "p90": 90.0, "p95": 95.0, "p99": 99.0, "p999": 99.9}


def _spread(name: str, values: FloatArray, wanted: str) -> dict[str, float]:
    """``avg_name``, ``p99_name`` and so on; NaN where there are no values."""
    keys = wanted.split()
    if not len(values):
        return {f"{key}_{name}": math.nan for key in keys}
    ranks = [key for key in keys if key in _QUANTILES]
    found = np.percentile(values, [_QUANTILES[key] for key in ranks] + [50.0])
    known = dict(zip([*ranks, "median"], map(float, found), strict=True))
    known |= {
        "avg": float(values.mean()),
        "std": float(values.std()),
        "min": float(values.min()),
        "max": float(values.max()),
    }
    return {f"{key}_{name}": known[key] for key in keys}


def _jain(values: FloatArray) -> float:
    """Jain's fairness index: 1 if all alike, 1/n if one has it all."""
    squares = len(values) * float((values**2).sum())
    return float(values.sum()) ** 2 / squares if squares > 0.0 else 1.0


def _ratio(amount: float, seconds: float) -> float:
    return amount / seconds if seconds > 0.0 else math.nan
