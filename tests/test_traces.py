"""What real engines left behind, and files that only pretend to be that."""

from __future__ import annotations

import json
import math
import tracemalloc

import numpy as np
import pytest

from llminfer import (
    ConfigError,
    SimulationConfig,
    TraceError,
    Workload,
    read_settings,
    read_vllm_log,
    simulate,
)
from llminfer.data.logs import ServedLog, read_bench

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
    later = second | {"first_token_ts": 53.0, "last_token_ts": 57.0}
    log = read_vllm_log(jsonl(tmp_path, ROW, "", ROW | later))
    # 51.5 - 2 is the smallest difference: the first request was seen 0.5 s late
    assert log.workload.arrival_time.tolist() == [0.0, 2.0]
    assert log.queued_time.tolist() == [0.5, 2.0]
    assert log.ttft.tolist() == [1.5, 1.5]
    assert log.tpot.tolist() == [0.5, 2.0]
    assert log.latency.tolist() == [2.5, 5.5]
    assert "2 requests in 7.5 s" in repr(log)


def test_a_folder_does_as_well_as_its_file(tmp_path):
    jsonl(tmp_path, ROW)
    assert len(read_vllm_log(tmp_path)) == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"input_toks": 0}, "row 2, input_toks=0: must be a whole number of tokens"),
        ({"output_toks": 2.5}, "row 2, output_toks=2.5: must be a whole"),
        ({"output_toks": True}, "row 2, output_toks=True: must be a whole"),
        ({"output_toks": 10**30}, "row 2, output_toks=1000"),
        ({"input_toks": None}, "row 2, input_toks=None: must be"),
        ({"arrival_time": math.nan}, "row 2, arrival_time=nan: must be seconds"),
        ({"queued_ts": math.inf}, "row 2, queued_ts=inf: must be seconds"),
        ({"queued_ts": 10**400}, "row 2, queued_ts=1000"),
        ({"arrival_time": -5.0}, "row 2, arrival_time=-5.0: must be seconds"),
        ({"arrival_time": "noon"}, "row 2, arrival_time='noon': must be seconds"),
        ({"arrival_time": 1.6e9}, "row 2, arrival_time=1600000000.0: must not be"),
        ({"queued_ts": 49.0}, "row 2, queued_ts=49.0: must be seconds, a finite"),
        ({"first_token_ts": 49.0}, "row 2, first_token_ts=49.0: must be"),
        ({"last_token_ts": 50.5}, "row 2, last_token_ts=50.5: must be"),
        ({"request_id": "a"}, "row 2, request_id='a': must be unlike that of row 1"),
        ({"request_id": ["a"]}, "row 2, request_id=['a']: must be a name"),
    ],
)
def test_what_is_bad_in_a_log_is_named_by_row_and_column(tmp_path, changes, message):
    path = jsonl(tmp_path, ROW, ROW | {"request_id": "b"} | changes)
    assert one_line(read_vllm_log, path).startswith(f"requests.jsonl, {message}")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("", "requests.jsonl: no requests"),
        ("{", "requests.jsonl, row 1: not JSON"),
        ("7", "requests.jsonl, row 1: must be a JSON object"),
        ("[" * 60_000, "requests.jsonl, row 1: not JSON"),
        ('{"a": ' + "9" * 5000 + "}", "requests.jsonl, row 1: not JSON"),
        ("PK\x03\x04\0\0", "requests.jsonl, row 1: binary"),
        ("{}", "requests.jsonl, row 1, request_id=None: must be a name"),
    ],
)
def test_what_is_no_log_is_refused(tmp_path, line, message):
    assert one_line(read_vllm_log, jsonl(tmp_path, line)).startswith(message)


def test_a_file_that_is_not_there_is_named(tmp_path):
    for reader in (read_vllm_log, read_bench, read_settings):
        assert "cannot be read: No such file" in one_line(reader, tmp_path / "gone")
    assert "cannot be read: Is a directory" in one_line(read_bench, tmp_path)


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


# vllm bench serve --save-detailed


def test_a_benchmark_result_becomes_a_log_in_order_of_sending(tmp_path):
    log = read_bench(bench(tmp_path))
    assert log.workload.arrival_time.tolist() == [0.0, 1.0, 2.0]
    assert log.workload.prompt_length.tolist() == [6, 5, 7]
    assert log.ttft.tolist() == [0.25, 0.5, 0.125]
    assert log.latency.tolist() == [0.25, 1.25, 0.25]
    np.testing.assert_array_equal(log.tpot, [math.nan, 0.375, 0.125])
    assert log.failed == 0


@pytest.mark.parametrize(
    "changes", [{"errors": ["", "", "timeout"]}, {"output_lens": [3, 1, 0]}]
)
def test_requests_that_failed_are_left_out_and_counted(tmp_path, changes):
    log = read_bench(bench(tmp_path, **changes))
    assert log.workload.prompt_length.tolist() == [6, 5]
    assert log.failed == 1
    assert "1 failed" in repr(log)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"start_times": None}, "result.json, start_times: missing: must be a list"),
        ({"ttfts": 0.5}, "result.json, ttfts: missing: must be a list"),
        ({"ttfts": [0.5]}, "result.json: columns of unlike length"),
        ({"errors": ["", ""]}, "result.json: columns of unlike length"),
        ({"errors": 5}, "result.json, errors: missing: must be a list"),
        ({"errors": ["x", "x", "x"]}, "result.json: no request succeeded"),
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
    assert one_line(read_bench, path).startswith("result.json: ")
    if content != b"[1, 2]":
        assert one_line(read_settings, path).startswith("result.json: ")


# The engine's settings


def test_settings_are_those_of_the_engine_and_else_vllms_own(tmp_path):
    (tmp_path / "meta.json").write_text(
        '{"engine_kwargs": {"max_num_seqs": 8, "max_num_batched_tokens": 512}}'
    )
    settings = read_settings(tmp_path)
    config = SimulationConfig(**settings)
    assert (config.batch_size, config.max_batched_tokens) == (8, 512)
    assert config.kv_blocks is None
    assert config.prefix_caching
    assert config.chunked_prefill
    assert config.server == "continuous"


@pytest.mark.parametrize("text", ["{}", "[]", '{"engine_kwargs": 5}', "null"])
def test_settings_without_limits_are_refused(tmp_path, text):
    (tmp_path / "meta.json").write_text(text)
    message = one_line(read_settings, tmp_path)
    assert message == "meta.json, engine_kwargs.max_num_seqs: missing"


# Real logs, and simulated ones


def test_the_real_logs_are_read_to_the_last_request(data):
    folder = data / "vllm-logs" / "rtx4090_llama-3.1-8b"
    log, settings = read_vllm_log(folder), read_settings(folder)
    assert len(log) == 300
    assert (settings["kv_blocks"], settings["block_size"]) == (2588, 16)
    assert settings["prefix_caching"]
    delay = log.queued_time - log.workload.arrival_time
    assert delay.min() == pytest.approx(0.0, abs=1e-6)
    assert delay.max() < 0.5
    assert (log.ttft > 0.0).all()
    assert (log.tpot > 0.0).all()
    other = data / "vllm-logs" / "rtxpro6000_qwen3-32b"
    assert len(read_vllm_log(other)) == 300
    assert read_settings(other)["kv_blocks"] is None


def test_a_simulated_run_leaves_a_log_too():
    config = SimulationConfig(server="continuous", num_requests=50, warmup_requests=0)
    record = simulate(config.replace(random_seed=1))
    log = ServedLog.from_record(record)
    np.testing.assert_array_equal(
        log.latency, record.processing_end_time - record.arrival_time
    )
    early = log.first_completed(0.4)
    assert early.sum() == 20
    assert log.last_token_time[early].max() <= log.last_token_time[~early].min()
    for share in (0.0, 1.5, math.nan):
        with pytest.raises(ConfigError, match=r"^share="):
            log.first_completed(share)
