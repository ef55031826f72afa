"""The prefix cache across requests: by hand, on traces, and on an H200."""

from __future__ import annotations

import math
import pickle
import warnings

import numpy as np
import pytest
from continuous_cases import serve
from step_twin import run_twins

from llminfer import (
    ConfigError,
    OverloadWarning,
    SimulationConfig,
    TraceError,
    Workload,
    read_settings,
    read_vllm_log,
    simulate,
)
from llminfer.calibrate import errors, fit
from llminfer.capacity import _round
from llminfer.data import fetch
from llminfer.data.logs import ServedLog
from llminfer.metrics import MetricsCollector
from llminfer.servers.overload import described

# 0.125 s a prompt token, 1 s a step that decodes, blocks of 4 tokens
STEPS = {"alpha": 0.125, "beta": 0.0, "gamma": 1.0, "delta": 0.0, "kappa": 0.0}
SERVER = SimulationConfig(
    server="continuous",
    prefix_caching=True,
    block_size=4,
    batch_size=4,
    warmup_requests=0,
    **STEPS,
)


def run(arrivals, prompts, outputs, segments, **changes):
    work = Workload.from_arrays(arrivals, prompts, outputs, segments=segments)
    return serve(SERVER.replace(**changes), work)


@pytest.mark.parametrize("kv_blocks", [None, 100])
def test_who_comes_later_computes_only_what_is_not_there(kv_blocks):
    paths = [[(7, 10)], [(7, 10)], [(8, 10)], []]
    record = run([0.0, 9.0, 18.0, 27.0], [12] * 4, [1] * 4, paths, kv_blocks=kv_blocks)
    assert record.steps.cached_tokens.tolist() == [0, 8, 0, 0]  # two full blocks
    assert record.ttft.tolist() == [1.5, 0.5, 1.5, 1.5]
    assert record.to_frame()["cached_tokens"].tolist() == [0, 8, 0, 0]
    metrics = MetricsCollector.compute_metrics(record)
    assert (metrics["cached_tokens"], metrics["kv_hit_rate"]) == (8, 8 / 48)


def test_blocks_can_be_read_as_soon_as_they_are_scheduled():
    record = run([0.0, 0.0], [9, 9], [1, 1], [[(7, 9)], [(7, 9)]])
    assert record.steps.cached_tokens.tolist() == [0, 8]
    assert record.first_token_time.tolist() == [10 * 0.125] * 2


@pytest.mark.parametrize(("prompt", "found"), [(8, 4), (9, 8), (11, 8), (13, 12)])
@pytest.mark.parametrize("kv_blocks", [None, 100])
def test_the_block_of_the_last_token_is_always_computed(prompt, found, kv_blocks):
    paths = [[(7, prompt)]] * 2
    record = run([0.0, 9.0], [prompt] * 2, [1, 1], paths, kv_blocks=kv_blocks)
    assert record.steps.cached_tokens.tolist() == [0, found]


def test_an_answer_is_found_by_the_next_turn():
    # Question of 5, answer of 8, whose last token nobody has computed; then 4 more.
    first = [(0, 5), (1, 8)]
    record = run([0.0, 20.0], [5, 17], [8, 1], [first, [*first, (2, 4)]])
    assert record.steps.cached_tokens.tolist() == [0, 12]


@pytest.mark.parametrize(
    ("between", "again", "found"),
    [(4, 0, 8), (8, 0, 4), (12, 0, 0), (8, 1, 8), (12, 1, 8)],
)
def test_what_was_freed_longest_ago_is_taken_first_its_end_sooner(
    between, again, found
):
    # Five blocks. Each of two prompts has two blocks on its path and one beside it, and
    # the second takes those that are left and the one beside the first. Then somebody
    # takes one to three: the block beside the second, which nobody will look for, and
    # then from the end of the first one's path.
    paths = [[(0, 8)], [(1, 8)], [], [(again, 8)]]
    prompts = [9, 9, between, 9]
    record = run([0.0, 9.0, 18.0, 27.0], prompts, [1] * 4, paths, kv_blocks=5)
    assert record.steps.cached_tokens.tolist() == [0, 0, 0, found]


def test_shared_blocks_count_once():
    # Seven blocks hold five prompts of 9 tokens that share two blocks, 2 + 5 x 1, ...
    alike = run([0.0] * 5, [9] * 5, [4] * 5, [[(7, 8)]] * 5, kv_blocks=7, batch_size=5)
    assert alike.processing_start_time.tolist() == [0.0] * 5
    assert alike.steps.last_blocks.max() == 7
    # ... and two of them if they share nothing.
    apart = run([0.0] * 5, [9] * 5, [4] * 5, None, kv_blocks=7, batch_size=5)
    assert (apart.processing_start_time == 0.0).tolist() == [True, True, *[False] * 3]


def test_cached_tokens_are_attended_to():
    epsilon = {"epsilon": 1.0, "alpha": 0.0, "gamma": 0.0}
    record = run([0.0, 99.0], [10, 10], [1, 1], [[(7, 8)]] * 2, **epsilon)
    assert record.ttft.tolist() == [50.0, 2 * (8 + 2 / 2)]
    kappa = {"kappa": 1.0, "alpha": 0.0, "gamma": 0.0}
    record = run([0.0, 99.0], [10, 10], [2, 2], [[(7, 8)]] * 2, **kappa)
    assert (record.latency - record.ttft).tolist() == [10.0, 10.0]


def test_without_segments_or_a_cache_nothing_changes():
    rng = np.random.default_rng(1)
    arrivals, lengths = np.cumsum(rng.exponential(1.0, 60)), rng.integers(1, 40, 60)
    paths = [[(int(k), 1)] for k in rng.integers(0, 3, 60)]
    plain = Workload.from_arrays(arrivals, lengths, lengths)
    shared = Workload.from_arrays(arrivals, lengths, lengths, segments=paths)
    ends = [
        serve(SERVER.replace(prefix_caching=on, kv_blocks=30), work).processing_end_time
        for on, work in ((False, plain), (False, shared), (True, shared))
    ]  # a token is no full block
    assert ends[0].tolist() == ends[1].tolist()
    alone = serve(SERVER.replace(kv_blocks=30), plain).processing_end_time
    assert ends[2].tolist() == alone.tolist()


def trace(rng, n, block):
    """Paths as in a trace of block hashes: prompts go on where earlier ones ended."""
    paths = []
    for i in range(n):
        old = paths[rng.integers(max(0, i - 40), i)] if i and rng.random() < 0.7 else []
        kept = old[: rng.integers(0, len(old) + 1)]
        new = rng.integers(1, 6)
        paths.append([*kept, *((1000 * i + k, block) for k in range(new))])
    prompts = [sum(t for _, t in path) - int(rng.integers(0, block)) for path in paths]
    paths = [path[:-1] for path in paths]  # a part of a block has no name there
    gaps, outputs = rng.exponential(0.4, n), rng.integers(1, 60, n)
    return Workload.from_arrays(np.cumsum(gaps), prompts, outputs, segments=paths)


@pytest.mark.parametrize("kv_blocks", [None, 300, 120])
def test_a_trace_of_block_hashes_finds_the_same_as_in_the_twin(kv_blocks):
    work = trace(np.random.default_rng(5), 150, block=64)
    config = SERVER.replace(
        kv_blocks=kv_blocks,
        block_size=16,
        max_batched_tokens=128,
        async_scheduling=True,
        alpha=0.001,
        gamma=0.02,
    )
    record = serve(config, work)
    (twin,) = run_twins(config, work)
    assert record.steps.cached_tokens.tolist() == [s.cached for s in twin.everyone]
    ends = [s.token_times[-1] for s in twin.everyone]
    np.testing.assert_allclose(record.processing_end_time, ends, rtol=1e-9)
    rate = MetricsCollector.compute_metrics(record)["kv_hit_rate"]
    assert 0.05 < rate < 0.7


# A law of system prompts

LAW = SERVER.replace(
    shared_prefixes={"count": 3, "tokens": 30}, num_requests=400, random_seed=3
)


def test_system_prompts_come_before_prompts_of_the_law():
    plain = Workload.generate(LAW.replace(shared_prefixes={}))
    shared = Workload.generate(LAW)
    assert (shared.prompt_length - plain.prompt_length == 30).all()
    assert shared.arrival_time.tolist() == plain.arrival_time.tolist()
    drawn = np.bincount([path[0][0] for path in shared.segments], minlength=3)
    assert np.abs(drawn / 400 - 1 / 3).max() < 4 * math.sqrt(2 / 9 / 400)
    zipf = LAW.replace(shared_prefixes={"count": 3, "tokens": 30, "zipf": 1.0})
    drawn = np.bincount([path[0][0] for path in Workload.generate(zipf).segments])
    assert drawn[0] / 400 == pytest.approx(6 / 11, abs=0.1)
    assert LAW.prompts.expectation() == pytest.approx(
        LAW.replace(shared_prefixes={}).prompts.expectation() + 30.0
    )


def test_all_but_the_first_of_each_find_the_system_prompt():
    record = serve(LAW.replace(arrival_rate=0.1), Workload.generate(LAW))
    assert sorted(set(record.steps.cached_tokens.tolist())) == [0, 28]
    assert (record.steps.cached_tokens == 0).sum() == 3


def test_a_cache_raises_what_a_server_carries():
    off = LAW.replace(prefix_caching=False)
    own = off.replace(shared_prefixes={})
    assert off.max_stable_rate < LAW.max_stable_rate <= own.max_stable_rate


@pytest.mark.parametrize(("segments", "load"), [(True, 0.47), (False, 2.03)])
def test_a_handed_workload_is_no_overload_if_the_cache_carries_it(segments, load):
    """Every other request finds 64 tokens of 100, and its double 92: 22 are left."""
    n = 4_000
    paths = [[(0, 64), (1 + i // 2, 30)] for i in range(n)] if segments else None
    arrivals = np.arange(n) / 20.0
    work = Workload.from_arrays(arrivals, [100] * n, [10] * n, segments=paths)
    config = SERVER.replace(alpha=0.001, gamma=0.01, batch_size=64)
    assert described(work, config).offered_load == pytest.approx(load, abs=0.01)
    off = config.replace(prefix_caching=False)
    assert described(work, off).offered_load == pytest.approx(2.03, abs=0.01)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always", OverloadWarning)
        record = simulate(config, work)
    assert bool(said) is not segments
    if segments:  # what was computed is what was promised, but for those who came soon
        computed = 100 - record.steps.cached_tokens.mean()
        assert described(work, config).prompts.expectation() <= computed


def test_a_workload_with_system_prompts_may_be_handed_to_its_own_configuration():
    config = LAW.replace(alpha=0.001, gamma=0.01, arrival_rate=2.0)
    handed = simulate(config, Workload.generate(config))
    own = simulate(config).processing_end_time
    assert handed.processing_end_time.tolist() == own.tolist()


def test_rounds_of_a_trace_have_other_prefixes():
    work = Workload.generate(LAW)
    longer = _round(pickle.loads(pickle.dumps(work)), 3, 0.1)
    record = serve(LAW, longer)
    assert (record.steps.cached_tokens == 0).sum() == 3 * 3
    assert len(list(longer.requests())) == len(longer.to_frame()) == 1200


@pytest.mark.parametrize(
    ("segments", "message"),
    [
        ([[(1, 2)]], "segments: 1 paths: must be 2, a request"),
        ([[(1, 2)], [3]], "segments: must be a path of (id, tokens) a request"),
        (
            [[], [(1, 9), (2, 3)]],
            "segments[1]=[(1, 9), (2, 3)]: must be of tokens",
        ),
        ([[], [(1, 0)]], "segments[1]=[(1, 0)]: must be of tokens, at most"),
    ],
)
def test_paths_that_cannot_be_are_refused(segments, message):
    with pytest.raises(TraceError) as refusal:
        Workload.from_arrays([0.0, 1.0], [5, 6], [5, 5], segments=segments)
    assert str(refusal.value).startswith(message)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"shared_prefixes": {"count": 0, "tokens": 5}}, "shared_prefixes.count=0: "),
        ({"shared_prefixes": {"count": 2}}, "shared_prefixes.tokens=None"),
        ({"router": "longest_prefix", "prefix_caching": False}, "prefix_caching=False"),
    ],
)
def test_settings_of_the_cache_that_cannot_be_are_refused(fields, message):
    with pytest.raises(ConfigError) as refusal:
        SERVER.replace(**fields)
    assert str(refusal.value).startswith(message)


# Routers


def test_routers_that_know_the_cache_find_more_in_it():
    config = SERVER.replace(replicas=4, kv_blocks=80, alpha=1e-3, gamma=0.01)
    prefixes = {"count": 12, "tokens": 64}
    config = config.replace(shared_prefixes=prefixes, arrival_rate=8.0, block_size=16)
    config = config.replace(prompt_dist_params={"mu": 3, "sigma": 0.3})
    config = config.replace(
        output_dist_params={"mu": 20, "sigma": 5, "min": 1, "max": 40}
    )
    work = Workload.generate(config.replace(num_requests=600, random_seed=1))
    found = {}
    for router in ("round_robin", "least_loaded", "session", "longest_prefix"):
        record = serve(config.replace(router=router), work)
        found[router] = record.steps.cached_tokens.sum()
    assert min(found["session"], found["longest_prefix"]) > 1.2 * max(
        found["round_robin"], found["least_loaded"]
    )


def test_a_session_stays_where_it_began():
    config = LAW.replace(replicas=2, router="session")
    work = Workload.generate(config)
    replica = serve(config, work).steps.replica
    by_prefix = {}
    for path, place in zip(work.segments, replica.tolist(), strict=True):
        assert by_prefix.setdefault(path[0][0], place) == place
    assert sorted(by_prefix.values()) == [0, 0, 1]


# An engine


def test_an_engine_is_predicted_with_its_hits():
    folder = fetch("vllm-h200-256x2048-conv-10")
    settings = {**read_settings(folder), "step_law": "roofline"}
    found = fit(read_vllm_log(folder), settings, share=1.0)
    folder = fetch("vllm-h200-256x512-prefix")
    log = read_vllm_log(folder)
    columns = log.workload.columns
    config = found.config(**read_settings(folder))
    record = simulate(config, log.workload)  # which brings its prefixes along
    assert record.steps.cached_tokens.tolist() == log.cached_tokens.tolist()
    ours = ServedLog.from_record(record)
    every = np.ones(len(log), dtype=bool)
    assert errors(log, ours, every)["mean"].abs().max() < 0.05
    last = ours.last_token_time.max() / log.last_token_time.max()
    assert last == pytest.approx(1.0, abs=0.02)  # of as many requests: their rate
    # Without what it shares the same engine is slower than it was.
    alone = Workload.from_arrays(**columns)
    slow = ServedLog.from_record(simulate(config, alone))
    assert errors(log, slow, every)["mean"].min() > 0.5


@pytest.mark.parametrize(("output", "found"), [(4, 4), (5, 8)])
def test_the_last_token_of_an_answer_is_not_in_the_cache(output, found):
    """Nor is it taken for granted in what a workload's requests are said to compute."""
    config = SimulationConfig(
        server="continuous", prefix_caching=True, block_size=4, warmup_requests=0
    )
    work = Workload.from_arrays(
        [0.0, 1000.0], [4, 12], [output, 1], segments=[[(1, 8)], [(1, 8), (2, 4)]]
    )
    record = simulate(config.replace(num_requests=2), work)
    assert record.steps.cached_tokens.tolist() == [0, found]
    computed = described(work, config).prompt_dist_params["values"]
    assert list(computed) == [4, 12 - found]
