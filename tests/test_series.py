"""What a run looked like over time."""

import numpy as np
import pytest
from cases import serve_columns
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from llminfer import ConfigError, SimulationConfig, Workload, simulate
from llminfer.timeseries import (
    StepSeries,
    batch_limit,
    latency_quantile,
    queue_length,
    running,
)

RUN = SimulationConfig(
    arrival_rate=4.3, num_requests=5000, warmup_requests=0, random_seed=7
)


@pytest.fixture(scope="module")
def record():
    return simulate(RUN)


def spans(record):
    """From entering to leaving the queue, and from there to the end."""
    return {
        queue_length: (record.queue_entry_time, record.processing_start_time),
        running: (record.processing_start_time, record.processing_end_time),
    }


@pytest.mark.parametrize("series", [queue_length, running])
def test_the_time_average_is_littles(series, record):
    begin, end = spans(record)[series]
    lasted = record.processing_end_time.max()
    (mean,) = series(record).means([0.0, lasted])
    arrival_rate, time_spent = len(begin) / lasted, (end - begin).mean()
    assert mean == pytest.approx(arrival_rate * time_spent, rel=1e-9)


rows = st.lists(
    st.tuples(st.integers(0, 20), st.integers(1, 900), st.integers(1, 400)),
    min_size=1,
    max_size=30,
)
times = st.lists(st.integers(-20, 800).map(lambda n: n / 16.0), min_size=2, max_size=9)


@pytest.mark.parametrize("series", [queue_length, running])
@settings(max_examples=100)
@given(rows, st.integers(1, 5), st.sampled_from([None, 0.0, 1.0]), times)
def test_series_count_what_brute_force_counts(series, rows, size, timeout, edges):
    gaps, prompts, outputs = zip(*rows, strict=True)
    run = RUN.replace(num_requests=len(rows), batch_size=size, batch_timeout=timeout)
    workload = Workload.from_arrays(np.cumsum(gaps) / 8.0, prompts, outputs)
    record = serve_columns(run, workload)
    begin, end = spans(record)[series]
    found = series(record)
    assert np.all(np.diff(found.times) > 0.0)
    grid = np.concatenate((edges, begin, end))
    counted = [np.sum((begin <= t) & (t < end)) for t in grid]
    assert found(grid).tolist() == counted
    edges = np.unique(edges)
    assume(len(edges) > 1)
    overlap = np.minimum(end[:, None], edges[1:]) - np.maximum(
        begin[:, None], edges[:-1]
    )
    exact = np.maximum(overlap, 0.0).sum(axis=0) / np.diff(edges)
    assert found.means(edges) == pytest.approx(exact, rel=1e-9, abs=1e-12)


def test_the_longest_queue_is_the_series_greatest(record):
    assert queue_length(record).values.max() == record.max_queue_length
    assert running(record).values.max() == record.batch_size.max()


def test_means_add_up_to_the_whole(record):
    edges = np.linspace(3.0, 900.0, 120)
    parts = queue_length(record).means(edges)
    (whole,) = queue_length(record).means([3.0, 900.0])
    assert parts.mean() == pytest.approx(whole)


def test_a_step_series_is_zero_before_it_begins_and_stays_at_its_last():
    series = StepSeries(np.array([1.0, 3.0]), np.array([5.0, 2.0]))
    assert series([0.9, 1.0, 2.9, 3.0, 1e9]).tolist() == [0.0, 5.0, 5.0, 2.0, 2.0]
    assert series.means([0.0, 2.0, 4.0, 8.0]).tolist() == [2.5, 3.5, 2.0]


def test_the_limit_over_time_bounds_every_batch():
    params = {"k": 0.4, "interval": 7.0}
    run = RUN.replace(batch_control="queue", batch_control_params=params)
    record = simulate(run)
    limit = batch_limit(record)
    assert np.all(record.batch_size <= limit(record.batch_start))
    assert limit(0.0) == 32
    ticks = np.arange(7.0, record.batch_end[-1], 7.0)
    waiting = queue_length(record)(ticks)
    quiet = ~np.isin(ticks, record.batch_start)  # the tick comes before the dispatch
    wanted = np.clip(1 + np.floor(0.4 * waiting), 1, 128)
    assert np.array_equal(limit(ticks)[quiet], wanted[quiet])


def test_the_rolling_p99_is_of_the_completions_in_the_window(record):
    at = np.linspace(-5.0, 1200.0, 60)
    found = latency_quantile(record, at, window=40.0)
    latency = record.processing_end_time - record.arrival_time
    for t, p99 in zip(at, found, strict=True):
        end = record.processing_end_time
        inside = latency[(end > t - 40.0) & (end <= t)]
        expected = np.quantile(inside, 0.99) if len(inside) else np.nan
        assert p99 == pytest.approx(expected, nan_ok=True)
    assert np.isnan(found[0])
    assert not np.isnan(found[5:50]).any()
    medians = latency_quantile(record, at, 40.0, quantile=0.5)
    assert np.all(medians[5:50] < found[5:50])


@pytest.mark.parametrize(("window", "quantile"), [(0.0, 0.5), (10.0, 1.5)])
def test_a_window_or_quantile_that_cannot_be_is_refused(record, window, quantile):
    with pytest.raises(ConfigError, match="must be a finite number"):
        latency_quantile(record, [1.0], window, quantile)


def test_area_up_to_a_time_is_the_sum_of_what_lies_before_it() -> None:
    series = StepSeries(np.array([1.0, 2.0, 4.0]), np.array([3.0, 0.0, 5.0]))
    assert series.integral([0.5, 1.0, 1.5, 3.0, 6.0]).tolist() == [0, 0, 1.5, 3, 13]
    never = StepSeries(np.empty(0), np.empty(0))
    assert never.integral([0.0, 7.0]).tolist() == [0.0, 0.0]
