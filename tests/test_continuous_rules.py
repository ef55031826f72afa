"""The rules of continuous batching, each on a run small enough to be done by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from continuous_cases import serve

from llminfer import ConfigError, SimulationConfig, Workload
from llminfer.servers.event_log import RequestTimes
from llminfer.servers.queues import waiting_queue
from llminfer.servers.scheduler import Scheduler

# A step of 1 s, 0.1 s a prompt token: whoever decodes shows in the whole seconds.
STEPS = {"alpha": 0.125, "beta": 0.0, "gamma": 1.0, "delta": 0.0, "kappa": 0.0}
SERVER = SimulationConfig(server="continuous", batch_size=4, warmup_requests=0, **STEPS)


def run(arrivals, prompts, outputs, **changes):
    workload = Workload.from_arrays(arrivals, prompts, outputs)
    return serve(SERVER.replace(**changes), workload)


def test_a_request_alone_takes_its_prefill_and_a_decode_step_a_further_token():
    law = {"alpha": 0.5, "beta": 3.0, "gamma": 10.0, "delta": 100.0, "kappa": 1000.0}
    record = run([7.0], [8], [3], **law)
    prefill = 0.5 * 8 + 3.0
    assert record.first_token_time.tolist() == [7.0 + prefill]
    decode = 2 * 110.0 + 1000.0 * (8 + 9)
    assert record.processing_end_time.tolist() == [7.0 + prefill + decode]


def test_a_single_token_is_there_at_the_end_of_the_prefill():
    record = run([0.0], [8], [1])
    assert record.processing_end_time.tolist() == [1.0]
    assert record.steps.batch_decoding.tolist() == [0]


def test_a_step_that_does_both_takes_the_sum_of_both():
    record = run([0.0, 0.5], [8, 16], [3, 2])
    # Alone until 1, then the first decodes while the second is prefilled, to 1 + 1 + 2.
    assert record.first_token_time.tolist() == [1.0, 4.0]
    assert record.processing_end_time.tolist() == [5.0, 5.0]


def test_a_long_prompt_is_prefilled_in_chunks_that_fill_the_budget():
    record = run([0.0], [10], [1], max_batched_tokens=4, beta=100.0)
    assert record.first_token_time.tolist() == [300.0 + 10 * 0.125]


def test_who_decodes_comes_first_and_a_chunk_gets_what_is_left_of_the_budget():
    record = run([0.0, 0.25], [2, 9], [9, 1], max_batched_tokens=4)
    # From 0.25 on a token and a chunk of 3 a step: three steps of 1 + 3/8 s.
    assert record.first_token_time.tolist() == [0.25, 0.25 + 3 * 1.375]


def test_whole_prompts_go_before_who_decodes_and_hold_them_up():
    record = run([0.0, 0.5], [8, 16], [3, 2], chunked_prefill=False)
    # Prefill to 1, prefill of the second to 3, and then both decode.
    assert record.first_token_time.tolist() == [1.0, 3.0]
    assert record.processing_end_time.tolist() == [5.0, 4.0]


def test_a_whole_prompt_over_the_budget_goes_alone():
    arrivals, prompts = [0.0, 0.0, 0.0], [2, 40, 2]
    record = run(
        arrivals, prompts, [1, 1, 1], max_batched_tokens=8, chunked_prefill=False
    )
    assert record.first_token_time.tolist() == [0.25, 5.25, 5.5]


def test_who_was_admitted_last_is_preempted_and_computes_all_its_tokens_again():
    # Two blocks of 4 hold two prompts of 4. Both need a second one for their second
    # token: the first gets it, and the second waits until the first is done at 3. It
    # then prefills 4 + 1 tokens, in 0.625 s, and goes on with its second token.
    record = run([0.0, 0.0], [4, 4], [3, 3], kv_blocks=2, block_size=4)
    assert record.preemptions.tolist() == [0, 1]
    assert record.steps.preempted_time.tolist() == [1.0]
    assert record.steps.resumed_time.tolist() == [3.0]
    assert record.steps.caught_up_time.tolist() == [3.625]
    assert record.first_token_time.tolist() == [1.0, 1.0]
    assert record.processing_end_time.tolist() == [3.0, 4.625]


def test_prefix_caching_finds_again_what_nobody_has_taken():
    # As above, in blocks of one token: the first takes two of the second's blocks,
    # its last ones, while it computes two tokens more.
    memory = {"kv_blocks": 8, "block_size": 1}
    again = run([0.0, 0.0], [4, 4], [3, 3], **memory)
    found = run([0.0, 0.0], [4, 4], [3, 3], prefix_caching=True, **memory)
    assert again.steps.caught_up_time.tolist() == [3.0 + 5 * 0.125]
    assert found.steps.caught_up_time.tolist() == [3.0 + 3 * 0.125]


def test_the_preempted_return_before_those_the_policy_likes_better():
    record = run(
        [0.0, 0.0, 0.5],
        [4, 4, 1],
        [3, 3, 1],
        kv_blocks=2,
        block_size=4,
        scheduling_policy="SJF",
    )
    # It would have fitted at 3, before the second, which takes both blocks again.
    assert record.steps.resumed_time.tolist() == [3.0]
    assert record.processing_start_time[2] == record.processing_end_time[1] == 4.625


def test_a_prompt_that_will_not_fit_waits_unless_its_first_chunk_is_enough():
    # The first holds two of four blocks; a prompt of three blocks does not fit beside
    # it, its first chunk of 4 tokens does.
    arrivals, prompts, outputs = [0.0, 0.5], [8, 12], [9, 1]
    settings = {"kv_blocks": 4, "block_size": 4, "max_batched_tokens": 5}
    whole = run(arrivals, prompts, outputs, **settings)
    chunk = run(arrivals, prompts, outputs, reserve_full_prompt=False, **settings)
    assert whole.processing_start_time[1] == whole.processing_end_time[0]
    assert chunk.processing_start_time[1] < chunk.processing_end_time[0]


@pytest.mark.parametrize("chunked", [True, False])
def test_who_arrives_as_a_step_begins_is_in_it(chunked):
    record = run([0.0, 2.0], [8, 8], [5, 1], chunked_prefill=chunked)
    assert record.processing_start_time.tolist() == [0.0, 2.0]


def test_a_request_that_can_never_fit_is_refused_by_name_before_anything_runs():
    workload = Workload.from_arrays([0.0, 1.0, 2.0], [5, 30, 9], [4, 3, 90])
    config = SERVER.replace(kv_blocks=7, block_size=4)
    with pytest.raises(ConfigError) as refusal:
        serve(config, workload)
    message = "kv_blocks=7: must be at least 25: request 1 (prompt 30, output 3 tokens)"
    assert str(refusal.value) == f"{message} needs 8"
    assert len(serve(config.replace(kv_blocks=25), workload).arrival_time) == 3


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"server": "continous"}, "server='continous': must be one of continuous, "),
        ({"router": "fastest"}, "router='fastest': must be one of least_loaded, "),
        ({"batch_size": 9, "max_batched_tokens": 8}, "max_batched_tokens=8: must be "),
        ({"kv_blocks": 0}, "kv_blocks=0: must be a whole number of at least 1"),
        ({"block_size": 2.5}, "block_size=2.5: must be a whole number of at least 1"),
        ({"replicas": 0}, "replicas=0: must be a whole number of at least 1"),
        ({"chunked_prefill": 1}, "chunked_prefill=1: must be True or False"),
        ({"server": "static", "replicas": 2}, 'replicas=2: must be 1 unless server="'),
        (
            {"replicas": 2, "batch_control": "queue"},
            "batch_control='queue': must be static for several replicas",
        ),
    ],
)
def test_bad_settings_are_refused_in_one_line(fields, message):
    with pytest.raises(ConfigError) as refusal:
        SERVER.replace(**fields)
    assert str(refusal.value).startswith(message)


def test_a_budget_below_the_batch_limit_is_no_matter_to_the_static_server():
    SimulationConfig(batch_size=4096, max_batched_tokens=2048)


@pytest.mark.parametrize("began", [0.0, 1.7, 1e3 / 3.0])
@pytest.mark.parametrize("step", [0.1, 1.0 / 3.0])
@pytest.mark.parametrize("growth", [0.0, 1e-3 / 7.0, 0.01, 0.7])
def test_who_comes_a_last_bit_after_a_step_is_in_the_one_after_it(began, step, growth):
    workload = Workload.from_arrays([0.0], [1], [1])
    line = waiting_queue(SERVER.policy(), workload, every=True, live=False)
    scheduler = Scheduler(SERVER, RequestTimes.of(workload, SERVER), line)
    scheduler.began, scheduler.step, scheduler.growth = began, step, growth
    n = np.arange(1, 400)
    ends = (began + n * step + growth * (n * (n - 1) // 2)).tolist()
    for i, end in enumerate(ends[:-1]):
        for comes, leaves in (
            (math.nextafter(end, 0.0), i),
            (end, i),
            (math.nextafter(end, math.inf), i + 1),
        ):
            assert scheduler.shorten(comes) == ends[leaves]
            assert scheduler.steps == leaves + 1
