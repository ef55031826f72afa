"""One request, and the time a batch of them takes."""

from __future__ import annotations

import numpy as np
import pytest
import simpy

from llminfer import BatchProcessor, ConfigError, Request


def test_none_means_not_yet_and_zero_is_a_time():
    request = Request(0, 0.0, 10, 3)
    assert request.queue_wait_time is None
    assert request.processing_time is None
    assert request.total_latency is None
    assert request.ttft is None
    assert request.tpot is None
    request.queue_entry_time = 0.0
    request.processing_start_time = 0.0
    assert request.queue_wait_time == 0.0
    request.first_token_time = 0.0
    assert request.ttft == 0.0
    request.processing_end_time = 0.0
    assert request.processing_time == 0.0
    assert request.total_latency == 0.0


def test_what_is_derived_from_the_times():
    request = Request(7, 1.0, 10, 5)
    assert request.total_tokens == 10
    request.queue_entry_time = 1.5
    request.processing_start_time = 4.0
    request.first_token_time = 6.0
    request.processing_end_time = 12.0
    request.actual_output_length = 5
    assert request.queue_wait_time == 2.5
    assert request.processing_time == 8.0
    assert request.total_latency == 11.0
    assert request.ttft == 5.0
    assert request.tpot == 1.5
    assert request.total_tokens == 15


def test_a_single_token_has_no_time_between_tokens():
    request = Request(0, 0.0, 1, 1)
    request.first_token_time, request.processing_end_time = 1.0, 2.0
    request.actual_output_length = 1
    assert request.tpot is None


@pytest.mark.parametrize(
    "name", ["id", "arrival_time", "prompt_length", "expected_output_length"]
)
def test_what_a_request_asks_is_fixed(name):
    request = Request(1, 2.0, 3, 4)
    with pytest.raises(AttributeError, match=f"{name}: .*fixed"):
        setattr(request, name, 9)
    assert getattr(request, name) != 9


def test_requests_compare_in_order_of_arrival():
    first, second = Request(5, 1.0, 1, 1), Request(0, 2.0, 1, 1)
    twin = Request(6, 1.0, 1, 1)
    assert sorted([second, twin, first]) == [first, twin, second]
    assert first < twin < second


BATCH = [Request(0, 0.0, 100, 3), Request(1, 0.0, 50, 4)]


def test_a_batch_takes_prefill_of_all_prompts_and_padded_decode():
    plain = BatchProcessor(alpha=0.5, beta=2.0, gamma=0.25)
    assert plain.compute_prefill_time(BATCH) == 0.5 * 150 + 2.0
    assert plain.compute_decode_time(BATCH) == 0.25 * 4
    loaded = BatchProcessor(0.5, 2.0, 0.25, delta=0.125, kappa=0.0625)
    steps = [0.25 + 0.125 * 2 + 0.0625 * (150 + 2 * step) for step in range(4)]
    assert loaded.compute_decode_time(BATCH) == sum(steps)


def test_alone_a_request_takes_the_time_of_a_batch_of_one():
    loaded = BatchProcessor(0.5, 2.0, 0.25, delta=0.125, kappa=0.0625)
    for request in BATCH:
        prefill = loaded.compute_prefill_time([request])
        decode = loaded.compute_decode_time([request])
        lengths = request.prompt_length, request.expected_output_length
        assert loaded.step_time.alone(*map(np.float64, lengths)) == prefill + decode


def test_processing_stamps_the_requests_and_counts():
    env = simpy.Environment(initial_time=10.0)
    processor = BatchProcessor(alpha=0.01, beta=0.5, gamma=0.25)
    batch = [Request(0, 9.0, 100, 3), Request(1, 9.5, 50, 4)]
    env.process(processor.process_batch(env, batch))
    env.run()
    for request in batch:
        assert request.processing_start_time == 10.0
        assert request.first_token_time == 12.0
        assert request.processing_end_time == 13.0
        assert request.actual_output_length == request.expected_output_length
    assert processor.get_statistics() == {
        "total_batches": 1,
        "total_requests": 2,
        "avg_batch_size": 2.0,
        "busy_time": 3.0,
    }


@pytest.mark.parametrize("name", ["alpha", "beta", "gamma", "delta", "kappa"])
@pytest.mark.parametrize("value", [-1.0, float("nan"), "x", None])
def test_a_coefficient_that_is_no_time_is_refused(name, value):
    coefficients = {"alpha": 1.0, "beta": 1.0, "gamma": 1.0, name: value}
    with pytest.raises(ConfigError, match=f"^{name}="):
        BatchProcessor(**coefficients)


def test_two_tokens_have_one_time_between_them():
    request = Request(0, 0.0, 1, 2)
    request.first_token_time, request.processing_end_time = 1.0, 3.5
    for made, seconds in ((0, None), (1, None), (2, 2.5), (3, 1.25)):
        request.actual_output_length = made
        assert request.tpot == seconds
        assert request.total_tokens == 1 + made
