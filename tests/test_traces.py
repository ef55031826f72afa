"""What real engines left behind, and files that only pretend to be that."""

from __future__ import annotations

import gzip
import json
import lzma
import math
import tracemalloc

import numpy as np
import pytest

from llminfer import (
    ConfigError,
    SimulationConfig,
    TraceError,
    Workload,
    fetch,
    read_settings,
    read_vllm_log,
    simulate,
)
from llminfer.base.trace_csv import text_lines
from llminfer.data import ServedLog, read_bench, read_steps

ROW = {
    "request_id": "a",
    "input_toks": 7,
    "output_toks": 3,
    "arrival_time": 1.7e9,
    "queued_ts": 50.0,
    "scheduled_ts": 50.0,
    "first_token_ts": 51.0,
    "last_token_ts": 52.0,
}
STEP_COLUMNS = (
    "begin,scheduled,done,prefill_tokens,prefill_seqs,prefill_kv,decode_seqs,"
    "decode_kv,running,waiting,preempted"
)
STEPS = ["0.0,0.5,3.5,40,2,20,0,0,2,0,0", "1.0,1.5,4.5,0,0,0,2,60,2,0,0"]
LIMITS = {"max_num_seqs": 8, "max_num_batched_tokens": 512}
BENCH = {
    "date": "20261101-101010",
    "input_lens": [5, 6, 7],
    "output_lens": [3, 1, 2],
    "start_times": [100.0, 99.0, 101.0],
    "ttfts": [0.5, 0.25, 0.125],
    "itls": [[0.25, 0.5], [], [0.125]],
    "errors": ["", "", ""],
}


def jsonl(tmp_path, *rows):
    path = tmp_path / "requests.jsonl"
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.write_text("\n".join(lines))
    return path


def steps(tmp_path, *rows, header=STEP_COLUMNS):
    path = tmp_path / "engine_steps.csv"
    path.write_text("\n".join([header, *rows]))
    return path


def meta(tmp_path, **said):
    path = tmp_path / "meta.json"
    path.write_text(json.dumps(said))
    return path


def bench(tmp_path, **changes):
    path = tmp_path / "result.json"
    path.write_text(json.dumps(BENCH | changes))
    return path


def one_line(reader, path):
    """The message of the error that a reader raises."""
    with pytest.raises(TraceError) as caught:
        reader(path)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 250
    return message


# vLLM's own logs


def test_the_two_clocks_of_a_log_are_lined_up_by_the_least_delay(tmp_path):
    second = {"request_id": "b", "arrival_time": 1.7e9 + 2, "queued_ts": 51.5}
    later = {"scheduled_ts": 51.75, "first_token_ts": 53.0, "last_token_ts": 57.0}
    log = read_vllm_log(jsonl(tmp_path, ROW, "", ROW | second | later))
    # 51.5 - 2 is the smallest difference: the first request was seen 0.5 s late
    assert log.workload.arrival_time.tolist() == [0.0, 2.0]
    assert log.queued_time.tolist() == [0.5, 2.0]
    assert log.scheduled_time.tolist() == [0.5, 2.25]
    assert log.origin == 49.5
    assert log.ttft.tolist() == [1.5, 1.5]
    assert log.tpot.tolist() == [0.5, 2.0]
    assert log.latency.tolist() == [2.5, 5.5]
    assert "2 requests in 7.5 s" in repr(log)


def test_on_one_clock_the_delay_to_the_queue_is_kept(tmp_path):
    log = read_vllm_log(jsonl(tmp_path, ROW | {"arrival_time": 49.75}))
    assert log.queued_time.tolist() == [0.25]
    assert log.ttft.tolist() == [1.25]


def test_a_client_that_knows_no_queue_has_one_clock_too(tmp_path):
    row = {k: v for k, v in ROW.items() if k not in ("queued_ts", "scheduled_ts")}
    log = read_vllm_log(jsonl(tmp_path, row | {"arrival_time": 40.0}))
    assert log.queued_time.tolist() == [0.0]
    assert log.ttft.tolist() == [11.0]
    assert log.scheduled_time is None


def test_requests_come_out_in_order_of_arrival(tmp_path):
    earlier = ROW | {"request_id": "b", "arrival_time": 1.7e9 - 2, "input_toks": 9}
    earlier |= {"queued_ts": 50.000003}  # two engines, and their queues a little off
    earlier |= {"scheduled_ts": 50.5}
    log = read_vllm_log(jsonl(tmp_path, ROW, earlier))
    assert log.workload.prompt_length.tolist() == [9, 7]
    assert log.workload.arrival_time.tolist() == [0.0, 2.0]
    np.testing.assert_allclose(log.queued_time, [2.000003, 2.0], atol=1e-9)


def test_requests_that_arrive_together_keep_their_order(tmp_path):
    rows = [ROW | {"request_id": i, "input_toks": i + 1} for i in range(200)]
    late = ROW | {"request_id": "z", "arrival_time": 1.7e9 + 1, "input_toks": 999}
    log = read_vllm_log(jsonl(tmp_path, late, *rows))
    assert log.workload.prompt_length.tolist() == [*range(1, 201), 999]


def test_what_the_engine_found_in_its_cache_is_kept_where_all_rows_have_it(tmp_path):
    rows = [ROW | {"request_id": i, "cached_toks": i, "prefix": i - 1} for i in (0, 1)]
    log = read_vllm_log(jsonl(tmp_path, *rows))
    assert log.cached_tokens.tolist() == [0, 1]
    assert log.prefix.tolist() == [-1, 0]
    log = read_vllm_log(jsonl(tmp_path, rows[0], ROW | {"cached_toks": None}))
    assert log.cached_tokens is None
    assert log.prefix is None


UNSEEN = {"first_token_ts": None, "last_token_ts": None, "output_toks": 0}
REFUSED = [
    {"error": "HTTP 500"} | UNSEEN,
    {"error": "HTTP 503 Service Unavailable"},
    {"error": "429"},
    {"output_toks": 0, "first_token_ts": None, "last_token_ts": None},
    {"first_token_ts": 0.0, "last_token_ts": 0.0},
]
CUT_OFF = [
    ({"error": "engine died"}, 3),  # tokens had come
    ({"finish_reason": "abort"}, 3),
    ({"last_token_ts": None}, 3),
    ({"output_toks": 0}, 5),  # not known: as long as the longest
    ({"error": "TimeoutError"} | UNSEEN, 5),
    ({"error": "CancelledError: cancelled"} | UNSEEN | {"output_toks": 2}, 2),
]


@pytest.mark.parametrize("failed", REFUSED)
def test_a_request_that_was_refused_is_left_out_and_counted(tmp_path, failed):
    rows = [ROW, ROW | {"request_id": "b"} | failed, ROW | {"request_id": "c"}]
    named = r"^requests.jsonl: 1 of 3 requests \(33.3%; rows 2\) were refused, and are"
    with pytest.warns(UserWarning, match=named):
        log = read_vllm_log(jsonl(tmp_path, *rows))
    assert (len(log), log.refused, log.completed.sum()) == (2, 1, 2)
    assert "1 refused" in repr(log)


@pytest.mark.parametrize(("failed", "made"), CUT_OFF)
def test_a_request_that_was_cut_off_stays_in_the_load(tmp_path, failed, made):
    other = ROW | {"request_id": "c", "output_toks": 5, "arrival_time": 1.7e9 + 0.5}
    other |= {"queued_ts": 50.5, "scheduled_ts": 50.5}
    rows = [ROW | failed, other]
    with pytest.warns(UserWarning, match=r"1 of 2 .* rows 1\) were cut off, and stay"):
        log = read_vllm_log(jsonl(tmp_path, *rows))
    assert log.workload.output_length.tolist() == [made, 5]
    assert log.completed.tolist() == [False, True]
    assert np.isnan([log.ttft[0], log.tpot[0], log.latency[0]]).all()
    assert log.refused == 0
    assert log.first_completed(1.0).tolist() == [False, True]
    assert "1 cut off" in repr(log)


def test_many_that_failed_are_not_all_named(tmp_path):
    rows = [{"request_id": i, "error": "timeout"} for i in range(12)]
    named = r"12 of 13 .*; rows 2, .*, 11, \.\.\.\) were refused, and are left out$"
    with pytest.warns(UserWarning, match=named):
        assert read_vllm_log(jsonl(tmp_path, ROW, *rows)).refused == 12
    with pytest.warns(UserWarning, match=r"10 of 11 .*; rows 2, .*, 10, 11\) were"):
        read_vllm_log(jsonl(tmp_path, ROW, *rows[:10]))
    with pytest.raises(TraceError, match="no requests answered"):
        read_vllm_log(jsonl(tmp_path, *[ROW | row for row in rows]))


def test_a_folder_does_as_well_as_its_file(tmp_path):
    jsonl(tmp_path, ROW)
    assert len(read_vllm_log(tmp_path)) == 1


@pytest.mark.parametrize(("ending", "opened"), [(".gz", gzip.open), (".xz", lzma.open)])
def test_a_packed_log_does_as_well_as_a_plain_one(tmp_path, ending, opened):
    path = tmp_path / f"requests.jsonl{ending}"
    with opened(path, "wt") as file:
        file.write(json.dumps(ROW))
    assert len(read_vllm_log(tmp_path)) == len(read_vllm_log(path)) == 1
    whole = path.read_bytes()
    for broken in (whole[: len(whole) // 2], b"no archive", whole[:12] + b"?" * 40):
        path.write_bytes(broken)
        must = f"requests.jsonl{ending}: damaged: must be a whole archive"
        assert one_line(read_vllm_log, path) == must


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"input_toks": 0}, "row 2, input_toks=0: must be a whole number of at"),
        ({"output_toks": 2.5}, "row 2, output_toks=2.5: must be a whole"),
        ({"output_toks": True}, "row 2, output_toks=True: must be a whole"),
        ({"output_toks": 10**30}, "row 2, output_toks=1000"),
        ({"input_toks": None}, "row 2, input_toks=None: must be"),
        ({"arrival_time": math.nan}, "row 2, arrival_time=nan: must be seconds"),
        ({"arrival_time": True}, "row 2, arrival_time=True: must be seconds"),
        ({"queued_ts": math.inf}, "row 2, queued_ts=inf: must be seconds"),
        ({"queued_ts": 10**400}, "row 2, queued_ts=1000"),
        ({"arrival_time": -5.0}, "row 2, arrival_time=-5.0: must be seconds"),
        ({"arrival_time": "noon"}, "row 2, arrival_time='noon': must be seconds"),
        ({"arrival_time": 1.6e9}, "row 2, queued_ts=50.0: must be within 3600 s of"),
        ({"queued_ts": 50.5}, "row 2, scheduled_ts=50.0: must be seconds, a finite"),
        ({"scheduled_ts": "x"}, "row 2, scheduled_ts='x': must be seconds"),
        ({"cached_toks": -1}, "row 2, cached_toks=-1: must be a whole number of at"),
        ({"prefix": -2}, "row 2, prefix=-2: must be a whole number of at least -1"),
        ({"prefix": 0.5}, "row 2, prefix=0.5: must be a whole"),
        ({"first_token_ts": 49.0}, "row 2, first_token_ts=49.0: must be"),
        ({"last_token_ts": 50.5}, "row 2, last_token_ts=50.5: must be"),
        ({"request_id": "a"}, "row 2, request_id='a': must be a name of its own"),
    ],
)
def test_what_is_bad_in_a_log_is_named_by_row_and_column(tmp_path, changes, message):
    path = jsonl(tmp_path, ROW, ROW | {"request_id": "b"} | changes)
    assert one_line(read_vllm_log, path).startswith(f"requests.jsonl, {message}")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("", "requests.jsonl: empty: must have"),
        ("{", "requests.jsonl: not JSON"),
        ("7", "requests.jsonl: empty: must have a header"),
        ("[7]", "requests.jsonl, row 0: must be a JSON object"),
        ('{"a": 1}\n7', "requests.jsonl, row 2: must be a JSON object"),
        ('{"a": 1}\n{', "requests.jsonl, row 2: not JSON"),
        ("[" * 60_000, "requests.jsonl: not JSON"),
        ('{"a": ' + "9" * 5000 + "}", "requests.jsonl: not JSON"),
        ("PK\x03\x04\0\0", "requests.jsonl, row 1: binary"),
        ("{}", "requests.jsonl, JSON: no requests: must have"),
    ],
)
def test_what_is_no_log_is_refused(tmp_path, line, message):
    assert one_line(read_vllm_log, jsonl(tmp_path, line)).startswith(message)


def test_a_file_that_is_not_there_is_named(tmp_path):
    for reader in (read_vllm_log, read_bench, read_settings):
        assert "cannot be read: No such file" in one_line(reader, tmp_path / "gone")


@pytest.mark.parametrize("reader", [Workload.from_csv, read_vllm_log, read_bench])
def test_a_line_of_100_mb_is_refused_in_little_memory(tmp_path, reader):
    path = tmp_path / "huge"
    with path.open("wb") as file:  # sparse: zeros that take no room on the disk
        file.write(b'{"input_lens": [1, ')
        file.truncate(100 * 2**20)
    tracemalloc.start()
    assert "huge" in one_line(reader, path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 80 * 2**20


@pytest.mark.parametrize("reader", [Workload.from_csv, read_vllm_log])
def test_a_line_of_100_mb_of_text_is_refused_in_little_memory(tmp_path, reader):
    path = tmp_path / "huge"
    block = b"7" * 2**20
    with path.open("wb") as file:
        for _ in range(100):
            file.write(block)
    tracemalloc.start()
    assert "longer than 65536 bytes" in one_line(reader, path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2**20


# The engine's steps


def test_a_step_lasts_from_the_end_of_the_one_before_or_from_its_own_call(tmp_path):
    late = "9.0,9.5,10.5,7,1,5,1,60,2,0,1"  # nobody was there for a while
    table = read_steps(steps(tmp_path, STEPS[0], "", STEPS[1], late))
    assert table["seconds"].tolist() == [3.0, 1.0, 1.0]
    assert table["decode_kv"].tolist() == [0, 60, 60]
    assert table["preempted"].tolist() == [0, 0, 1]
    assert table["pairs"].tolist() == [40 * (20 + 20) / 2, 0.0, 7 * (5 + 3.5)]


def test_pairs_that_the_engine_counted_are_kept(tmp_path):
    rows = [f"{STEPS[0]},900", f"{STEPS[1]},0"]
    table = read_steps(steps(tmp_path, *rows, header=f"{STEP_COLUMNS},pairs"))
    assert table["pairs"].tolist() == [900, 0]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("1.0,1.5,3.5,0,0,0,2,60,2,0,0", "row 3, done='3.5': must be after that of"),
        (
            "1.0,0.9,4.5,0,0,0,2,60,2,0,0",
            "row 3, scheduled='0.9': must be seconds, a finite number of at least 1",
        ),
        ("1.0,1.5,nan,0,0,0,2,60,2,0,0", "row 3, done='nan': must be seconds"),
        (
            "1.0,1.5,4.5,-1,0,0,2,60,2,0,0",
            "row 3, prefill_tokens='-1': must be a whole",
        ),
        ("1.0,1.5,4.5,0,0,0,2,6.5,2,0,0", "row 3, decode_kv='6.5': must be a whole"),
        ("1.0,1.5,4.5,9,0,0,2,60,2,0,0", "row 3, prefill_seqs='0': must be 1 to"),
        ("1.0,1.5,4.5,0,1,0,2,60,2,0,0", "row 3, prefill_seqs='1': must be 1 to"),
        ("1.0,1.5,4.5,0,0,0", "row 3: 6 fields: must have 11"),
    ],
)
def test_what_is_bad_in_steps_is_named_by_row_and_column(tmp_path, row, message):
    path = steps(tmp_path, STEPS[0], row)
    assert one_line(read_steps, path).startswith(f"engine_steps.csv, {message}")


def test_what_are_no_steps_is_refused(tmp_path):
    message = one_line(read_steps, steps(tmp_path, header="begin,done"))
    assert message.startswith(
        "engine_steps.csv, row 1: columns begin,done: must include scheduled,prefill_t"
    )
    assert one_line(read_steps, steps(tmp_path)).startswith(
        "engine_steps.csv: empty: must have a header and rows"
    )


# vllm bench serve --save-detailed


def test_a_benchmark_result_becomes_a_log_in_order_of_sending(tmp_path):
    log = read_bench(bench(tmp_path))
    assert log.workload.arrival_time.tolist() == [0.0, 1.0, 2.0]
    assert log.workload.prompt_length.tolist() == [6, 5, 7]
    assert log.ttft.tolist() == [0.25, 0.5, 0.125]
    assert log.latency.tolist() == [0.25, 1.25, 0.25]
    np.testing.assert_array_equal(log.tpot, [math.nan, 0.375, 0.125])
    assert log.refused == 0
    assert log.completed.all()


@pytest.mark.parametrize("error", ["", "ServerDisconnectedError()", "Not Found"])
def test_a_request_without_a_token_or_a_timeout_was_refused(tmp_path, error):
    lost = {
        "output_lens": [3, 1, 0],
        "ttfts": [0.5, 0.25, 0.0],
        "itls": [[0.25, 0.5], [], []],
    }
    with pytest.warns(UserWarning, match="rows 2.*refused"):
        log = read_bench(bench(tmp_path, errors=["", "", error], **lost))
    assert log.workload.prompt_length.tolist() == [6, 5]
    assert log.refused == 1


@pytest.mark.parametrize(
    "changes", [{"errors": ["", "", "timeout"]}, {"output_lens": [3, 1, 0]}]
)
def test_a_request_that_broke_off_counts_the_tokens_that_came(tmp_path, changes):
    with pytest.warns(UserWarning, match="rows 2.*cut off"):
        log = read_bench(bench(tmp_path, **changes))
    assert log.workload.prompt_length.tolist() == [6, 5, 7]
    assert log.workload.output_length.tolist() == [1, 3, 2]
    assert log.completed.tolist() == [True, True, False]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"start_times": None}, "result.json: no arrivals: 3 requests have input_"),
        ({"ttfts": 0.5}, "result.json: no log of requests: must say when requests"),
        ({"ttfts": [0.5]}, "result.json: columns of unlike length"),
        ({"errors": ["", ""]}, "result.json: columns of unlike length"),
        ({"errors": ["x", "x", "x"]}, "result.json: no requests answered"),
        ({"ttfts": [0.5, math.nan, 0.1]}, "result.json, request 1, ttfts=nan: must"),
        ({"ttfts": [0.5, -1.0, 0.1]}, "result.json, request 1, ttfts=-1.0: must"),
        ({"itls": [[], [], [-0.1]]}, "result.json, request 2, itls=-0.1: must"),
        ({"itls": [[], [], 0.1]}, "result.json, request 2, itls=0.1: must be a list"),
        ({"input_lens": [5, 0, 7]}, "result.json, request 1, input_lens=0: must"),
        ({"output_lens": [3, -1, 2]}, "result.json, request 1, output_lens=-1: must"),
    ],
)
def test_what_is_bad_in_a_result_is_named(tmp_path, changes, message):
    assert one_line(read_bench, bench(tmp_path, **changes)).startswith(message)


@pytest.mark.parametrize(
    "content", [b"[1, 2]", b"{", b"\xff\xfe\x00", b"", b"[" * 10**6]
)
def test_what_is_no_result_is_refused(tmp_path, content):
    path = tmp_path / "result.json"
    path.write_bytes(content)
    assert one_line(read_bench, path).startswith("result.json")
    if content != b"[1, 2]":
        assert one_line(read_settings, path).startswith("result.json")


# The engine's settings


def test_settings_are_those_of_the_engine_and_else_vllms_own(tmp_path):
    settings = read_settings(meta(tmp_path, engine_kwargs=LIMITS))
    assert settings.pop("async_scheduling") is True
    config = SimulationConfig(**settings)
    assert (config.batch_size, config.max_batched_tokens) == (8, 512)
    assert config.kv_blocks is None
    assert config.prefix_caching
    assert config.chunked_prefill
    assert config.server == "continuous"
    assert (config.replicas, config.router) == (1, "round_robin")


@pytest.mark.parametrize(
    ("version", "unasked"),
    [
        ({"vllm_version": "0.13.1"}, False),
        ({"vllm": "0.9.2"}, False),
        ({"vllm": "0.14.0rc1.dev3+g1234"}, True),
        ({"vllm_version": "v1.0"}, True),
        ({"vllm": "a build of ours"}, True),
    ],
)
def test_asynchronous_scheduling_is_the_default_since_0_14(tmp_path, version, unasked):
    said = version | LIMITS
    assert read_settings(meta(tmp_path, **said))["async_scheduling"] is unasked
    said["async_scheduling"] = not unasked
    assert read_settings(meta(tmp_path, **said))["async_scheduling"] is not unasked


def test_what_was_resolved_counts_more_than_what_was_asked_for(tmp_path):
    asked = LIMITS | {"enable_chunked_prefill": None, "enable_prefix_caching": True}
    path = meta(
        tmp_path,
        engine_kwargs=asked,
        kv_cache={"num_gpu_blocks": 100, "block_size": 32},
        resolved_config={
            "cache_config": {"enable_prefix_caching": False},
            "scheduler_config": {"enable_chunked_prefill": False, "policy": "fcfs"},
            "speculative_config": None,
        },
    )
    settings = read_settings(path)
    assert not settings["prefix_caching"]
    assert not settings["chunked_prefill"]
    assert (settings["kv_blocks"], settings["block_size"]) == (99, 32)


def test_engines_in_data_parallel_are_replicas(tmp_path):
    settings = read_settings(meta(tmp_path, **LIMITS, data_parallel_size=2))
    assert (settings["replicas"], settings["router"]) == (2, "least_loaded")


def test_settings_that_are_not_modelled_are_named_in_one_warning(tmp_path, recwarn):
    odd = {"pipeline_parallel_size": 2, "policy": "priority", "enable_dbo": True}
    spec = {"speculative_config": {"method": "ngram"}}
    usual = {"tensor_parallel_size": 4, "enable_expert_parallel": True, "seed": 1}
    read_settings(meta(tmp_path, engine_kwargs=LIMITS | usual))
    assert not recwarn.list
    read_settings(meta(tmp_path, engine_kwargs=LIMITS | odd | spec))
    (said,) = (str(warning.message) for warning in recwarn.list)
    for name, value in (odd | spec).items():
        assert f"{name}={value!r}" in said


@pytest.mark.parametrize("text", ["{}", "[]", '{"engine_kwargs": 5}', "null"])
def test_settings_without_limits_are_refused(tmp_path, text):
    (tmp_path / "meta.json").write_text(text)
    message = one_line(read_settings, tmp_path)
    assert (
        message == "meta.json, max_num_seqs=None: must be a whole number of at least 1"
    )


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"max_num_seqs": 2.5}, "max_num_seqs=2.5: must be a whole number"),
        ({"num_gpu_blocks": 0}, "num_gpu_blocks=0: must be a whole number"),
        ({"async_scheduling": "yes"}, "async_scheduling='yes': must be true or false"),
        ({"data_parallel_size": "two"}, "data_parallel_size='two': must be a whole"),
    ],
)
def test_a_bad_setting_is_named(tmp_path, said, message):
    path = meta(tmp_path, **(LIMITS | said))
    assert one_line(read_settings, path).startswith(f"meta.json, {message}")


# Real logs, and simulated ones


def test_the_real_logs_are_read_to_the_last_request(data):
    folder = data / "vllm-logs" / "rtx4090_llama-3.1-8b"
    log, settings = read_vllm_log(folder), read_settings(folder)
    assert len(log) == 300
    assert (settings["kv_blocks"], settings["block_size"]) == (2588 - 1, 16)
    assert settings["prefix_caching"]
    delay = log.queued_time - log.workload.arrival_time
    assert delay.min() == pytest.approx(0.0, abs=1e-6)
    assert delay.max() < 0.5
    assert (log.ttft > 0.0).all()
    assert (log.tpot > 0.0).all()
    other = data / "vllm-logs" / "rtxpro6000_qwen3-32b"
    assert len(read_vllm_log(other)) == 300
    assert read_settings(other)["kv_blocks"] is None


@pytest.mark.parametrize(
    ("run", "requests", "count", "settings"),
    [
        ("256x2048-closed-16", 130, 1993, (256, 2048, 56104)),
        ("256x2048-conv-10", 400, 5776, (256, 2048, 56104)),
        ("256x512-prefix", 260, 3595, (256, 512, 56116)),
        ("48x2048-kv2000-conv-9", 300, 4730, (48, 2048, 1999)),
    ],
)
def test_the_runs_on_an_h200_are_read(run, requests, count, settings, recwarn):
    folder = fetch(f"vllm-h200-{run}")
    log, table, said = read_vllm_log(folder), read_steps(folder), read_settings(folder)
    assert not recwarn.list
    assert (len(log), len(table)) == (requests, count)
    fields = ("batch_size", "max_batched_tokens", "kv_blocks")
    assert tuple(said[field] for field in fields) == settings
    assert said["async_scheduling"] is True
    lag = log.queued_time - log.workload.arrival_time
    assert 0.0005 < lag.min() < 0.002  # one clock: about a millisecond on the way
    assert (log.scheduled_time >= log.queued_time).all()
    assert (log.cached_tokens.sum() > 0) == (log.prefix.max() > -1) == ("prefix" in run)
    prompts, outputs = log.workload.prompt_length, log.workload.output_length
    if "kv2000" not in run:  # whoever is preempted computes tokens twice
        computed = (prompts - log.cached_tokens).sum()
        assert table["prefill_tokens"].sum() == computed
        assert table["decode_seqs"].sum() == (outputs - 1).sum()
    ends = table["done"].to_numpy() - log.origin
    after = log.first_token_time[0] - ends[ends < log.first_token_time[0]].max()
    assert after < 0.0005  # the token is there with the end of a step


def test_two_engines_in_data_parallel_are_read(data):
    log = read_vllm_log(data / "samples" / "vllm_dp2_requests.jsonl")
    assert len(log) == 50
    assert (np.diff(log.workload.arrival_time) >= 0.0).all()
    assert (np.diff(log.queued_time) < 0.0).any()
    with pytest.warns(
        UserWarning, match="enable_expert_parallel=True: changes the run"
    ):
        settings = read_settings(data / "samples" / "vllm_dp2_meta.json")
    assert settings["replicas"] == 2


def test_a_simulated_run_leaves_a_log_too():
    config = SimulationConfig(server="continuous", num_requests=50, warmup_requests=0)
    record = simulate(config.replace(random_seed=1))
    log = ServedLog.from_record(record)
    np.testing.assert_array_equal(
        log.latency, record.processing_end_time - record.arrival_time
    )
    np.testing.assert_array_equal(log.scheduled_time, record.processing_start_time)
    early = log.first_completed(0.4)
    assert early.sum() == 20
    assert log.last_token_time[early].max() <= log.last_token_time[~early].min()
    for share in (0.0, 1.5, math.nan):
        with pytest.raises(ConfigError, match=r"^share="):
            log.first_completed(share)


@pytest.mark.parametrize(("mib", "reads"), [(40, True), (65, False)])
def test_the_results_of_a_run_may_be_64_mib_on_one_line(tmp_path, mib, reads):
    path = tmp_path / "run.json"
    path.write_bytes(b'{"a": "' + b"x" * (mib * 2**20) + b'"}')
    if reads:
        assert [len(line) for line in text_lines(path)] == [path.stat().st_size]
        return
    with pytest.raises(TraceError, match="row 1: longer than 65536 bytes"):
        list(text_lines(path))


def test_a_header_that_lacks_columns_is_shown_to_its_eightieth_character(tmp_path):
    names = ",".join(f"column{i}" for i in range(40))
    message = one_line(read_steps, steps(tmp_path, header=names))
    assert f"row 1: columns {names[:80]}: must include" in message
