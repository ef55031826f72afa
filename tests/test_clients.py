"""Users, the gate, refusal and impatience: against the twins, and against theory."""

from __future__ import annotations

import math

import numpy as np
import pytest
from cases import RUNS, exact, exact_runs, serve_columns, synthetic_runs
from client_twin import columns, run_closed, run_closed_static
from continuous_cases import EXACT, FREE, serve
from hypothesis import given, settings
from hypothesis import strategies as st
from test_continuous_twin import assert_close, assert_same_steps

from llminfer import SimulationConfig, Workload, simulate
from llminfer.servers.token_gaps import token_gaps

OPTIONAL = {"min_size": 0}


@st.composite
def clients(draw, time, free):
    """Fields of the clients: any of them, alone or together.

    Args:
        time: Strategy of times, seconds.
        free: May laws draw times that are no binary fractions?
    """

    def law():
        constant = time.filter(bool)
        if not free:
            return constant
        laws = st.sampled_from(["exponential", "uniform"])
        if draw(laws) == "uniform":
            return st.builds(
                lambda a: {"dist": "uniform", "min": a, "max": 3 * a}, time
            )
        return st.builds(lambda a: {"dist": "exponential", "mean": a}, constant)

    maybe = st.sampled_from([False, False, True])
    fields = {}
    if draw(st.booleans()):
        fields["max_concurrency"] = draw(st.integers(1, 6))
    if draw(st.booleans()):
        fields["clients"] = draw(st.integers(1, 8))
        fields["think_time"] = draw(st.just(0.0) | law())
    if draw(maybe):
        fields["queue_limit"] = draw(st.integers(1, 5))
    if draw(maybe):
        fields["patience"] = draw(law())
    if draw(maybe):
        fields["request_timeout"] = draw(law())
    return fields or {"max_concurrency": 3}


def with_clients(runs, time, free):
    """Runs with clients, in which every step takes some time."""

    def made(run, fields):
        least = {name: getattr(run[0], name) + 1 / 64 for name in ("beta", "gamma")}
        return run[0].replace(**least, **fields), run[1]

    return st.builds(made, runs, clients(time, free))


def assert_same_columns(record, theirs):
    for name, column in theirs.items():
        assert_close(getattr(record, name), column, name)


def assert_same_run(record, servers, senders):
    assert_same_columns(record, columns(senders))
    log = record.steps
    rows = np.argsort(log.batch_replica, kind="stable")
    steps = [step for server in servers for step in server.steps]
    each = np.repeat(rows, log.batch_steps[rows])
    assert record.batch_size[each].tolist() == [step.size for step in steps]
    assert log.batch_decoding[each].tolist() == [step.decoding for step in steps]
    ends = np.cumsum(log.batch_steps[rows]) - 1
    assert_close(record.batch_end[rows], [steps[i].end for i in ends], "batch end")
    if log.kv_blocks is not None:
        assert log.last_blocks[rows].tolist() == [steps[i].blocks for i in ends]


def assert_same_gaps(record, servers, law):
    done = np.flatnonzero(record.outcome == 0)
    times = {s.request.id: s.token_times for server in servers for s in server.everyone}
    gaps = np.concatenate([[], *(np.diff(times[i]) for i in done)])
    ours = token_gaps(record, law)
    assert ours.number() == len(gaps)
    if len(gaps):
        assert_close(ours.mean(), gaps.mean(), "mean gap", 1e-7)
        shares = [0.0, 0.5, 0.99]
        assert_close(ours.quantiles(shares), np.quantile(gaps, shares), "gaps", 1e-7)


def check(config, workload):
    """The continuous server, one or several, against the twin."""
    record = serve(config, workload)
    servers, senders = run_closed(config, workload)
    assert_same_run(record, servers, senders)
    if config.step_time.decode(1, 1, 1) > 0.0:
        assert_same_gaps(record, servers, config.step_time)


def check_static(config, workload):
    record = serve_columns(config, workload)
    senders, batches = run_closed_static(config, workload)
    assert_same_columns(record, columns(senders))
    assert record.batch_size.tolist() == [size for _, _, size in batches]
    assert_close(record.batch_start, [start for start, _, _ in batches], "start")


DYADIC, REAL = (exact(64, 16), False), (st.floats(0.01, 2.0), True)
CASES = [with_clients(EXACT, *DYADIC), with_clients(FREE, *REAL)]
STATIC = with_clients(exact_runs(), *DYADIC) | with_clients(synthetic_runs(), *REAL)
ROUTERS = st.sampled_from(["round_robin", "random", "least_loaded", "shortest_queue"])


def behind_a_router(run, replicas, router):
    """Servers whose steps never end together: there the last bit would decide."""
    config, workload = run
    fields = {"step_law": "sum", "alpha": 0.00411, "kappa": 0.00017}
    fields |= {"replicas": replicas, "router": router}
    fields |= {"batch_control": "static", "batch_control_params": {}}
    return config.replace(**fields), workload


MANY = st.builds(behind_a_router, CASES[1], st.integers(2, 3), ROUTERS)


@pytest.mark.parametrize(
    "runs", [*CASES, MANY], ids=["events coincide", "continuous times", "replicas"]
)
@settings(max_examples=150)
@given(data=st.data())
def test_continuous_server_with_clients_equals_the_twin(runs, data):
    check(*data.draw(runs))


@settings(max_examples=200)
@given(STATIC)
def test_static_server_with_clients_equals_the_twin(run):
    check_static(*run)
