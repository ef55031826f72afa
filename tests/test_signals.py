"""Warning signals against their definitions, spelled out request by request."""

import numpy as np
import pytest

from llminfer import SimulationConfig, simulate
from llminfer.study.signals import (
    SIGNALS,
    STEP,
    WINDOW,
    load_ramp,
    sample_times,
    warning_signals,
)

BASE = SimulationConfig(
    prompt_dist_params={"mu": 4, "sigma": 1.5, "max": 8192},
    batch_size=8,
    batch_timeout=0.0,
    warmup_requests=0,
    random_seed=3,
)
RAMP = load_ramp(BASE, 0.2, 1.3, 500.0, 600.0)
NO_PARAMS = {"arrival_pattern_params": {}, "num_requests": 10_000}
IDLE = BASE.replace(arrival_rate=0.02, num_requests=30)  # windows without a request


def overlap(begin, end, low, high):
    """Seconds that the span from begin to end has in common with low to high."""
    return max(0.0, min(end, high) - max(begin, low))


def by_definition(config, record, t):
    """Every signal at one time, by loops over requests and batches."""
    rows = list(
        zip(
            record.arrival_time.tolist(),
            record.processing_start_time.tolist(),
            record.processing_end_time.tolist(),
            strict=True,
        )
    )
    batches = list(
        zip(record.batch_start, record.batch_end, record.batch_size, strict=True)
    )
    since = t - WINDOW
    now = sum(overlap(a, s, since, t) for a, s, _ in rows) / WINDOW
    before = sum(overlap(a, s, since - WINDOW, since) for a, s, _ in rows) / WINDOW
    begun = [size for start, _, size in batches if since < start <= t]
    done = [end - a for a, _, end in rows if since < end <= t]
    arrived = sum(since < a <= t for a, _, _ in rows)
    return {
        "queue": sum(a <= t < s for a, s, _ in rows),
        "mean_queue": now,
        "queue_growth": (now - before) / WINDOW,
        "rate_ratio": arrived / WINDOW / config.max_stable_rate,
        "utilization": sum(overlap(b, e, since, t) for b, e, _ in batches) / WINDOW,
        "batch_fill": np.mean(begun) / config.batch_size if begun else 0.0,
        "p99_latency": np.percentile(done, 99) if done else np.nan,
    }


@pytest.mark.parametrize("config", [RAMP, IDLE], ids=["ramp", "idle"])
def test_signals_are_what_they_are_said_to_be(config):
    record = simulate(config)
    found = warning_signals(config, record)
    assert found.keys() == {"time", "load", *SIGNALS}
    for i, t in enumerate(found["time"]):
        for name, value in by_definition(config, record, t).items():
            assert found[name][i] == pytest.approx(value, 1e-9, 1e-9, nan_ok=True), name


def test_a_server_that_never_rests_looks_the_same_at_every_look():
    config = RAMP.replace(arrival_rate=50.0, arrival_pattern="constant", **NO_PARAMS)
    found = warning_signals(config, simulate(config))
    late = np.array(found["utilization"])[np.array(found["time"]) > 2.0 * WINDOW]
    assert len(late) > 5
    assert set(late) == {1.0}


def test_the_load_is_the_rate_over_what_the_server_carries():
    found = warning_signals(RAMP, simulate(RAMP))
    expected = np.minimum(0.2 + 1.1 * np.array(found["time"]) / 500.0, 1.3)
    assert found["load"] == pytest.approx(expected, rel=1e-12)


def test_a_load_ramp_lasts_as_long_as_it_is_told():
    last = [simulate(RAMP.replace(random_seed=s)).arrival_time[-1] for s in range(40)]
    error = np.std(last, ddof=1) / np.sqrt(40)
    assert abs(np.mean(last) - 600.0) < 4.0 * error
    assert error < 5.0


def test_looks_begin_after_the_warm_up_and_end_before_the_last_arrival():
    config = RAMP.replace(warmup_requests=500)
    times = sample_times(config)
    assert np.diff(times) == pytest.approx(STEP)
    warm = float(config.arrivals.inverse(np.array([500.0]))[0])
    assert warm < times[0] <= warm + STEP
    ends = [simulate(config.replace(random_seed=s)).arrival_time[-1] for s in range(40)]
    assert times[-1] < min(ends)
    assert times[-1] > 0.9 * max(ends)
