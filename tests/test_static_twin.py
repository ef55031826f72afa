"""The server against its brute-force twin, and against itself driven by hand."""

from __future__ import annotations

import numpy as np
from cases import RUNS, serve_by_hand, serve_columns
from hypothesis import given, settings
from twin import run_twin

TIMES = (
    "queue_entry_time",
    "processing_start_time",
    "first_token_time",
    "processing_end_time",
)


def assert_same_times(record, other):
    for name in TIMES:
        np.testing.assert_allclose(
            getattr(record, name), other[name], rtol=1e-9, atol=1e-9, err_msg=name
        )


@settings(max_examples=400)
@given(RUNS)
def test_server_equals_the_brute_force_twin(run):
    config, workload = run
    record = serve_columns(config, workload)
    requests, batches = run_twin(config, workload)
    assert_same_times(
        record, {name: [getattr(r, name) for r in requests] for name in TIMES}
    )
    assert record.batch_size.tolist() == [len(batch) for batch in batches]


@settings(max_examples=200)
@given(RUNS)
def test_server_driven_by_hand_equals_the_run_from_columns(run):
    config, workload = run
    by_hand = serve_by_hand(config, workload)
    assert len(by_hand.arrival_time) == len(workload)
    assert_same_times(serve_columns(config, workload), vars(by_hand))
