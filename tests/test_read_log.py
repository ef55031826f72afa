"""One reader for all files of requests: what it recognises, and what it refuses."""

from __future__ import annotations

import gzip
import json
import warnings
from dataclasses import dataclass

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llminfer import ConfigError, TraceError, Workload, read_settings
from llminfer.data import ServedLog, read_log, readers, rows

CLEAN = {  # samples that load without a word
    "azure2024_conv_sorted.csv": (Workload, 5),
    "mooncake_conversation.jsonl": (Workload, 50),
    "own_closed_loop_table.csv": (pd.DataFrame, 4),
    "own_log_other_names_ms.csv": (ServedLog, 40),
    "vidur_splitwise_conv.csv": (Workload, 50),
    "vllm_bench_detailed_before_2026_shape.json": (ServedLog, 40),
    "vllm_bench_summary_shape.json": (pd.DataFrame, 1),
    "vllm_dp2_requests.jsonl": (ServedLog, 50),
}


def written(tmp_path, content, name="file"):
    """A file of text, of one JSON value, or of several, a line each."""
    path = tmp_path / name
    if isinstance(content, list):
        content = "\n".join(map(json.dumps, content))
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def quietly(path, **how):
    """What is read, and what was said."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        return read_log(path, **how), [str(each.message) for each in said]


# The samples


@pytest.mark.parametrize("name", CLEAN)
def test_a_sample_loads(data, name):
    read, said = quietly(data / "samples" / name)
    assert (type(read), len(read)) == CLEAN[name]
    assert not said


def test_a_log_is_recognised_by_its_columns(data):
    folder = data / "samples"
    for name, source in {
        "aiperf_profile_export_shape.jsonl": "AIPerf profile export",
        "guidellm_shape.json": "GuideLLM",
        "own_log_other_names_ms.csv": "CSV",
        "vllm_bench_detailed_before_2026_shape.json": "vLLM bench serve",
        "vllm_dp2_requests.jsonl": "vLLM engine log",
    }.items():
        log, _ = quietly(folder / name)
        assert log.source == source
        assert f"from {source}" in repr(log)
    table = read_log(folder / "vllm_bench_summary_shape.json")
    assert table.attrs["source"] == "vLLM bench serve summary"


def test_four_formats_of_one_run_hold_the_same_times(data):
    """Twin: the made-up samples are one and the same run, told by four tools."""
    folder = data / "samples"
    names = ["aiperf_profile_export_shape.jsonl", "guidellm_shape.json"]
    own, *others = (
        quietly(folder / name)[0] for name in ("own_log_other_names_ms.csv", *names)
    )
    for log in others:
        assert log.completed.tolist() == [True] * 39 + [False]
        np.testing.assert_array_equal(
            log.workload.prompt_length, own.workload.prompt_length
        )
        arrival = log.workload.arrival_time, own.workload.arrival_time
        np.testing.assert_allclose(*arrival, atol=2e-3)
        np.testing.assert_allclose(log.ttft[:39], own.ttft[:39], atol=2e-3)
        np.testing.assert_allclose(log.latency[:39], own.latency[:39], atol=4e-3)
    bench = read_log(folder / "vllm_bench_detailed_before_2026_shape.json")
    assert set(bench.workload.arrival_time) == {0.0}  # --request-rate inf
    np.testing.assert_allclose(bench.ttft, own.ttft, atol=1e-4)
    np.testing.assert_allclose(bench.latency, own.latency, atol=1e-4)


def test_results_without_arrivals_say_what_they_have_and_what_would_do(data, tmp_path):
    result = json.loads((data / "samples" / "sglang_bench_shape.jsonl").read_text())
    path = tmp_path / "sglang.jsonl"
    path.write_text(json.dumps(result | {"request_rate": 4.0}))
    with pytest.raises(TraceError, match="no arrivals: 40 requests have") as caught:
        read_log(path)
    message = str(caught.value)
    for word in ("ttfts", "input_lens", "'max_concurrency': 8", "request-rate inf"):
        assert word in message


def test_timeouts_stay_in_the_load_and_all_that_is_odd_is_said(data):
    path = data / "samples" / "vllm_bench_with_timeouts_constructed.json"
    log, said = quietly(path)
    assert (len(log), log.completed.sum(), log.refused) == (60, 43, 0)
    assert np.isnan(log.first_token_time[~log.completed]).all()
    assert set(log.workload.output_length[~log.completed]) == {489}  # the longest seen
    assert [words for words in said if "num_prompts=600, and 60 are" in words]
    assert [words for words in said if "only 3 gaps between tokens" in words]
    assert [words for words in said if "17 of 60 requests (28.3%" in words]
    # the gaps that are there, as many as there were tokens
    result = json.loads(path.read_text())
    pace = [np.mean(gaps) for gaps in result["itls"] if gaps]
    np.testing.assert_allclose(log.tpot[log.completed], pace)


def test_failures_of_a_public_trace_are_left_out_with_their_share(data):
    work, said = quietly(data / "samples" / "burstgpt_v11.csv")
    assert work.arrival_time.tolist() == [0.0, 40.0, 113.0]
    (words,) = said
    assert "1 of 4 requests (25.0%) have no output tokens" in words


def test_a_table_of_runs_is_tidy_and_in_seconds(data):
    table = read_log(data / "samples" / "own_closed_loop_table.csv")
    columns = ["concurrency", "requests", "achieved_rate", "prompt_length"]
    columns += ["output_length", "p50_ttft", "p95_ttft", "p50_tpot", "p95_tpot"]
    assert list(table) == columns
    assert table["p95_ttft"].tolist() == [0.034, 0.081, 0.16, 0.41]
    row = read_log(data / "samples" / "vllm_bench_summary_shape.json").iloc[0]
    assert row[["rate", "requests", "prompt_length"]].tolist() == [4.0, 40.0, 750.0]
    assert row["mean_ttft"] == pytest.approx(0.061)
    assert row["achieved_rate"] == pytest.approx(40 / 11.2)


def test_a_log_knows_the_settings_beside_it(data):
    log = read_log(data / "vllm-logs" / "rtx4090_llama-3.1-8b")
    assert log.settings["kv_blocks"] == 2588 - 1  # one is the engine's own
    assert log.settings == read_settings(data / "vllm-logs" / "rtx4090_llama-3.1-8b")
    sample = data / "samples" / "own_log_other_names_ms.csv"
    assert read_log(sample).settings == {}


@dataclass(frozen=True, eq=False)
class Sharing(Workload):
    """A workload that can hold what prompts begin with."""

    segments: tuple[tuple[tuple[int, int], ...], ...] | None = None


def test_what_prompts_share_is_kept(data, monkeypatch):
    monkeypatch.setattr(readers, "Workload", Sharing)
    path = data / "samples" / "mooncake_conversation.jsonl"
    work = read_log(path)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for segments, row in zip(work.segments, rows, strict=True):
        assert [each for each, _ in segments] == row["hash_ids"]
        assert sum(tokens for _, tokens in segments) == row["input_length"]
        assert {tokens for _, tokens in segments[:-1]} <= {512}
    log = read_log(data / "vllm-h200" / "256x512-prefix")
    assert set(log.workload.segments) == {((i, 1024),) for i in range(8)}
    assert read_log(data / "vllm-h200" / "256x2048-conv-4").workload.segments is None


def test_settings_and_steps_name_their_reader(data):
    with pytest.raises(TraceError, match=r"^vllm_dp2_meta.json, .* read_settings\("):
        read_log(data / "samples" / "vllm_dp2_meta.json")
    run = data / "vllm-h200" / "256x2048-conv-4"
    with pytest.raises(TraceError, match=r"^engine_steps.csv, .* read_steps\(path\)"):
        read_log(run / "engine_steps.csv")


# Other public formats

BENCH = {"input_lens": [5, 6], "output_lens": [3, 1], "ttfts": [0.5, 0.25]}
BENCH |= {"itls": [[0.25, 0.5], []], "errors": []}
SGLANG = {"backend": "sglang", "dataset_name": "random", "request_rate": float("inf")}
GUIDELLM = {"prompt_tokens": 9, "output_tokens": 3, "start_time": 1.77e9}
GUIDELLM |= {"first_token_time": 1.77e9 + 0.5, "last_token_time": 1.77e9 + 1.5}
AIPERF = {
    "metadata": {"request_start_ns": 1759813207532900363, "was_cancelled": False},
    "metrics": {
        "input_sequence_length": {"value": 550, "unit": "tokens"},
        "time_to_first_token": {"value": 255.5, "unit": "ms"},
        "request_latency": {"value": 297.5, "unit": "ms"},
        "output_sequence_length": {"value": 9, "unit": "tokens"},
        "inter_chunk_latency": {"value": [4.8, 5.3], "unit": "ms"},
    },
    "error": None,
}
CANCELLED = {
    "metadata": {"request_start_ns": 1759813208532900363, "was_cancelled": True},
    "metrics": {"error_isl": {"value": 70, "unit": "tokens"}},
    "error": {
        "code": 499,
        "type": "RequestCancellationError",
        "message": "Request was",
    },
}
WARM_UP = {"metadata": AIPERF["metadata"] | {"benchmark_phase": "warmup"}}
WARM_UP |= {"metrics": AIPERF["metrics"]}
LLMPERF = {"error_code": None, "error_msg": "", "ttft_s": 0.2, "number_input_tokens": 5}
LLMPERF |= {"number_output_tokens": 7, "end_to_end_latency_s": 1.4}
OPENAI = {"created": 1, "sent_at": "2026-01-01T00:00:00+01:00", "latency_ms": 1500}
OPENAI |= {"usage": {"prompt_tokens": 9, "completion_tokens": 4}}

WORKLOADS = {  # text, how to read it, arrivals, prompts
    "Azure 2024, other zones and unsorted": (
        "TIMESTAMP,ContextTokens,GeneratedTokens\n2024-05-12 00:00:01+00:00,5,3\n"
        "2024-05-12 01:00:00+01:00,7,3\n2024-05-12 00:00:02.5Z,9,1\n",
        {},
        ([0.0, 1.0, 2.5], [7, 5, 9]),
    ),
    "BurstGPT v2": (
        "Timestamp,Session ID,Elapsed time,Model,Request tokens,Response tokens,"
        "Total tokens,Log Type\n19440110.0,1722ac82,43,GPT-4,906,446,1352,Log\n"
        "19440161.0,d5983bf9,2,ChatGPT,36,29,65,Log\n",
        {},
        ([0.0, 51.0], [906, 36]),
    ),
    "Splitwise": (
        "request_id,request_type,application_id,arrival_timestamp,batch_size,"
        "prompt_size,token_size\n0,2,0,0.0,1,374,44\n1,2,0,4.5,1,396,109\n",
        {},
        ([0.0, 4.5], [374, 396]),
    ),
    "nanoseconds by name": (
        "input_toks\toutput_toks\tarrival_time_ns\n9\t2\t0\n7\t3\t2500000000\n",
        {},
        ([0.0, 2.5], [9, 7]),
    ),
    "decimal commas, whole floats": (
        "gesendet;ContextTokens;generated_tokens\n0,5;9,0;2\n1,75;7.0;3\n",
        {"columns": {"arrival_time": "gesendet"}},
        ([0.0, 1.25], [9, 7]),
    ),
    "the clock of day in milliseconds": (
        "ts|prompt_tokens|completion_tokens\n1770000000250|9|2\n1770000001500|7|3\n",
        {},
        ([0.0, 1.25], [9, 7]),
    ),
    "a unit that is given": (
        "time,isl,osl\n100,9,2\n350,7,3\n",
        {"unit": "ms"},
        ([0.0, 0.25], [9, 7]),
    ),
    "ServeGen": (
        [
            {"request_id": i, "timestamp": t, "data": {"input_tokens": n} | OUT}
            for i, t, n, OUT in ((0, 3.5, 9, {"output_tokens": 2}),)
        ],
        {},
        ([0.0], [9]),
    ),
    "Bailian": (
        [{"chat_id": 1, "parent_chat_id": -1, "timestamp": 61.1, "input_length": 20}
         | {"output_length": 5, "type": "text", "turn": 1, "hash_ids": [3, 4]}],
        {},
        ([0.0], [20]),
    ),
    "a latency alone": ([OPENAI], {}, ([0.0], [9])),
}  # fmt: skip


@pytest.mark.parametrize("name", WORKLOADS)
def test_a_trace_of_another_format_is_a_workload(tmp_path, name):
    content, how, (arrivals, prompts) = WORKLOADS[name]
    work, _ = quietly(written(tmp_path, content), **how)
    assert isinstance(work, Workload)
    assert work.arrival_time.tolist() == arrivals
    assert work.prompt_length.tolist() == prompts


LOGS = {  # content, how to read it, source, TTFTs, latencies
    "vLLM bench at rate inf": (
        BENCH | {"request_rate": "inf", "max_concurrency": None, "num_prompts": 2},
        {},
        ("vLLM bench serve", [0.5, 0.25], [1.25, 0.25]),
    ),
    "the second run of SGLang": (
        [SGLANG | BENCH, SGLANG | BENCH | {"ttfts": [0.125, 0.25]}],
        {"run": 2},
        ("SGLang bench_serving", [0.125, 0.25], [0.875, 0.25]),
    ),
    "GuideLLM 0.3, its only benchmark": (
        {"benchmarks": [{"requests": {"successful": [GUIDELLM], "errored": []}}]},
        {},
        ("GuideLLM", [0.5], [1.5]),
    ),
    "AIPerf": ([AIPERF], {}, ("AIPerf profile export", [0.2555], [0.2975])),
    "own JSON with paces": (
        [{"t": 0.5, "n_in": 9, "n_out": 5, "ttft_ms": 250, "tpot_ms": 125}],
        {"columns": {"arrival_time": "t"}},
        ("JSON", [0.25], [0.75]),
    ),
    "own CSV with dates": (
        "start_time,end_time,prompt_tokens,output_tokens,ttft\n"
        "2026-01-01 10:00:00.5,2026-01-01 10:00:02,9,3,0.25\n",
        {},
        ("CSV", [0.25], [1.5]),
    ),
    "microseconds": (
        "sent_us,isl,osl,ttft_us,e2e_us\n5,9,3,250000,1500000\n",
        {},
        ("CSV", [0.25], [1.5]),
    ),
    "an end and a pace, no first token": (
        "sent,isl,osl,tpot,e2e\n0,9,3,0.25,1.5\n",
        {},
        ("CSV", [1.0], [1.5]),
    ),
}


@pytest.mark.parametrize("name", LOGS)
def test_a_result_of_another_format_is_a_log(tmp_path, name):
    content, how, (source, ttfts, latencies) = LOGS[name]
    name = "result.csv" if source == "CSV" else "result.json"
    path = written(tmp_path, content, name)
    log, said = quietly(path, **how)
    assert isinstance(log, ServedLog)
    assert (log.source, said) == (source, [])
    np.testing.assert_allclose(log.ttft, ttfts, atol=1e-6)
    np.testing.assert_allclose(log.latency, latencies, atol=1e-6)


TABLES = {
    "SGLang, a line a run": (
        [
            {"dataset_name": "random", "request_rate": rate, "completed": 40}
            | {"mean_ttft_ms": 60.0 * rate, "median_e2e_latency_ms": 900.0}
            for rate in (1.0, 2.0)
        ],
        {"rate": [1.0, 2.0], "mean_ttft": [0.06, 0.12], "p50_latency": [0.9, 0.9]},
    ),
    "genai-perf and AIPerf": (
        {"time_to_first_token": {"unit": "ms", "avg": 50.0, "p99": 80.0, "std": 3.0}}
        | {"inter_token_latency": {"unit": "ms", "p50": 11.0}},
        {"mean_ttft": [0.05], "p99_ttft": [0.08], "p50_itl": [0.011]},
    ),
    "LLMPerf": (
        {"results_ttft_s_quantiles_p50": 0.2, "results_ttft_s_mean": 0.25}
        | {"results_end_to_end_latency_s_quantiles_p95": 2.5}
        | {"num_concurrent_requests": 4, "results_num_completed_requests": 100},
        {"concurrency": [4], "requests": [100], "mean_ttft": [0.25]}
        | {"p50_ttft": [0.2], "p95_latency": [2.5]},
    ),
    "Locust": (
        "Type,Name,Request Count,Median Response Time,Requests/s\nPOST,/v1,90,250,3\n",
        {"requests": [90], "achieved_rate": [3.0], "p50_latency": [0.25]},
    ),
}


@pytest.mark.parametrize("name", TABLES)
def test_a_summary_of_another_tool_is_a_table(tmp_path, name):
    content, columns = TABLES[name]
    table = read_log(written(tmp_path, content))
    pd.testing.assert_frame_equal(
        table[list(columns)], pd.DataFrame(columns), check_dtype=False
    )


ERRORS = {  # content, how to read it, what is said
    "several runs": ([SGLANG | BENCH] * 2, {}, "run=None: must be one of 2: 2 req"),
    "a run too many": ([SGLANG | BENCH] * 2, {"run": 3}, "run=3: must be one of 2"),
    "LLMPerf": (json.dumps([LLMPERF]), {}, "no arrivals: 1 requests have number_in"),
    "a rate": (
        BENCH | {"request_rate": 3.0, "max_concurrency": 8},
        {},
        "no arrivals: 2 requests have input_lens",
    ),
    "k6": (
        "metric_name,timestamp,metric_value\nhttp_reqs,1,1\n",
        {},
        "columns metric_name,timestamp,metric_value: must include prompt_length,out",
    ),
    "spans as they are exported": ({"resourceSpans": []}, {}, "a span a line"),
    "genai-perf": ({"experiments": []}, {}, "no token counts: export with AIPerf"),
    "no requests": (
        {"benchmarks": [{"requests": {"successful": []}}]},
        {},
        "no requests: must have at least one",
    ),
    "unlike lengths": (BENCH | {"ttfts": [1.0]}, {}, "columns of unlike length"),
    "a column that is not there": (
        "a,b,c\n1,2,3\n",
        {"columns": {"prompt_length": "z"}},
        "columns a,b,c: must include prompt_length,output_length",
    ),
    "not streamed": (
        BENCH | {"request_rate": "inf", "itls": [[], []], "start_times": [0, 1]},
        {},
        r"request 0, itls=\[\]: must be gaps between tokens: stream",
    ),
    "a bad length": (
        "sent,isl,osl,ttft,e2e\n0,9.5,3,0.25,1.5\n",
        {},
        "row 2, isl='9.5': must be a whole number",
    ),
    "an end before its first token": (
        "sent,isl,osl,ttft,e2e\n0,9,3,2.5,1.5\n",
        {},
        "row 2, e2e='1.5': must be seconds, a finite number of at least 2.49",
    ),
    "milliseconds that are called seconds": (
        "sent,isl,osl,ttft,e2e\n0,9,30,50,2500\n",
        {"unit": "s"},
        "requests take, in the median, 84.5 s a token: must be seconds, not ms",
    ),
}


@pytest.mark.parametrize("name", ERRORS)
def test_what_cannot_be_read_says_what_would_do(tmp_path, name):
    content, how, message = ERRORS[name]
    with pytest.raises(TraceError, match=message) as caught:
        quietly(written(tmp_path, content), **how)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


def test_what_a_column_can_hold_is_named(tmp_path):
    path = written(tmp_path, "a,b\n1,2\n")
    with pytest.raises(ConfigError, match="did you mean prompt_length"):
        read_log(path, columns={"prompts": "a"})
    with pytest.raises(ConfigError, match=r"^unit='hours': must be one of"):
        read_log(written(tmp_path, "time,isl,osl\n1,2,3\n"), unit="hours")


def test_warm_up_is_left_out_and_what_was_cancelled_stays(tmp_path):
    log, said = quietly(written(tmp_path, [WARM_UP, AIPERF, CANCELLED]))
    assert log.workload.prompt_length.tolist() == [550, 70]
    assert log.workload.output_length.tolist() == [9, 9]  # as long as the longest
    assert log.completed.tolist() == [True, False]
    assert "1 of 3 requests (33.3%; rows 1) are of the warm-up" in said[0]
    assert "cut off" in said[1]


def test_http_codes_tell_who_was_refused(tmp_path):
    rows = ["0,9,3,0.5,1.5,200", "1,8,0,,,429", "2,7,2,0.5,,504", "3,6,4,0.5,2,200"]
    text = "\n".join(["sent,isl,osl,ttft,e2e,status_code", *rows])
    log, said = quietly(written(tmp_path, text))
    assert log.workload.prompt_length.tolist() == [9, 7, 6]
    assert log.completed.tolist() == [True, False, True]
    assert log.refused == 1
    assert len(said) == 1
    assert "rows 3) were refused" in said[0]
    assert "rows 4) were cut off" in said[0]


HEAD = "sent,isl,osl,ttft,e2e"
DONE, LOST = "0,9,3,0.5,1.5", "1,8,0,,"

ENDS = {  # columns more, of one that was answered, of one that failed; did it stay
    "a code as a float": ("status", "200.0", "504.0", True),
    "a flag as a float": ("cancelled", "0.0", "1.0", True),
    "a deadline": ("status", "OK", "DEADLINE_EXCEEDED", True),
    "a code beside a reason": ("finish_reason,status_code", "stop,200", ",504", True),
    "two words for one flag": (
        "cancelled,timed_out",
        "false,false",
        "false,true",
        True,
    ),
    "a code beside an empty text": ("error_msg,error_code", ",", ",408", True),
    "no success": ("success", "1.0", "0.0", False),
    "too many": ("error,status", "-,ok", "-,429", False),
}


@pytest.mark.parametrize("name", ENDS)
def test_all_that_is_said_of_an_end_counts(tmp_path, name):
    """A timeout in any column keeps a request in the load; a refusal does not."""
    columns, good, bad, stays = ENDS[name]
    text = f"{HEAD},{columns}\n{DONE},{good}\n{LOST},{bad}\n"
    log, (said,) = quietly(written(tmp_path, text))
    assert log.completed.tolist() == [True, False][: 1 + stays]
    assert log.refused == 1 - stays
    assert ("cut off" in said) == stays
    # nor is it an answer because it has all its times
    log, _ = quietly(written(tmp_path, text.replace(LOST, "1,8,3,0.5,1.5")))
    assert log.completed.sum() == 1


@pytest.mark.parametrize("error", ["", "0.0", "0", "200", "ok", "None", "-"])
def test_an_error_that_is_none_is_no_failure(tmp_path, error):
    log, said = quietly(written(tmp_path, f"{HEAD},error_code\n{DONE},{error}\n"))
    assert (len(log), said) == (1, [])


def test_no_errors_in_a_list_are_no_failure(tmp_path):
    row = {"sent": 0, "isl": 9, "osl": 3, "ttft": 0.5, "e2e": 1.5, "errors": []}
    log, said = quietly(written(tmp_path, [row], "file.jsonl"))
    assert (log.completed.tolist(), said) == ([True], [])


SINGLE = {"sent": 0, "isl": 9, "osl": 3, "ttft": 0.5, "e2e": 1.5, "status": "ok"}
TIMED_OUT = {"sent": 1, "isl": 8, "osl": 0, "status": "timeout"}


def test_where_a_result_lies_does_not_hide_how_it_ended(tmp_path):
    rows = {"results": [SINGLE, TIMED_OUT, None]}
    log, (said,) = quietly(written(tmp_path, rows))
    assert log.completed.tolist() == [True, False]
    assert log.refused == 1  # the null, of which nothing is known
    assert "rows 2) were refused" in said


def test_requests_beside_a_run_are_not_dropped(tmp_path):
    path = written(tmp_path, [{"requests": [SINGLE]}, SINGLE, SINGLE], "file.jsonl")
    with pytest.raises(TraceError, match="one of 2: 1 requests, 2 requests"):
        read_log(path)
    assert len(read_log(path, run=2)) == 2


def test_in_a_trace_too_a_timeout_stays_and_a_refusal_does_not(tmp_path):
    text = "sent,isl,osl,status\n0,9,3,ok\n1,8,0,timeout\n2,7,0,429\n3,7,,503\n"
    work, (said,) = quietly(written(tmp_path, text))
    assert work.prompt_length.tolist() == [9, 8]
    assert work.output_length.tolist() == [3, 3]
    assert "rows 4, 5) were refused" in said


def test_one_that_broke_off_has_its_first_token_whatever_the_clock(tmp_path):
    rows = "00,9,3,2026-01-01 10:00:01,2026-01-01 10:00:02,ok\n"
    rows += "2026-01-01 10:00:05,8,2,2026-01-01 10:00:06,,engine error\n"
    head = "sent,isl,osl,first_token_time,end_time,status\n2026-01-01 10:00:"
    log, _ = quietly(written(tmp_path, head + rows))
    assert log.completed.tolist() == [True, False]
    assert log.first_token_time.tolist() == [1.0, 6.0]
    assert log.workload.output_length.tolist() == [3, 2]


ENGINE = {"input_toks": 7, "output_toks": 3, "arrival_time": 1.7e9, "queued_ts": 50.0}
ENGINE |= {"first_token_ts": 51.0, "last_token_ts": 52.0, "prefix": 0}
ENGINE |= {"cached_toks": 4}
GONE = dict.fromkeys(ENGINE) | {"input_toks": 7, "arrival_time": 1.7e9 + 1}


def test_one_that_never_reached_the_engine_does_not_move_its_clock(tmp_path):
    log, _ = quietly(written(tmp_path, [ENGINE, GONE | {"error": "timeout"}]))
    assert log.origin == 50.0
    assert log.queued_time.tolist() == [0.0, 1.0]
    assert log.completed.tolist() == [True, False]
    assert log.workload.segments == (((0, 4),), ())  # its prefix is not known


def test_durations_are_the_clients_whatever_clock_the_queue_has(tmp_path):
    rows = "50,1700000000,9,3,0.5,1.5\n51,1700000001.5,9,3,0.75,1.5\n"
    text = f"sent,queued_ts,isl,osl,ttft,e2e\n{rows}"
    log, _ = quietly(written(tmp_path, text))
    assert log.ttft.tolist() == [0.5, 0.75]
    assert log.queued_time.tolist() == [0.0, 1.5]
    assert log.origin == 1.7e9


ZONED = "sent,isl,osl,first_token_time,end_time\n2026-01-01T10:00:00+01:00,9,3,"
GUESSES = {  # text, what is said
    "another time zone": (
        f"{ZONED}2026-01-01T10:00:01,2026-01-01T10:00:02\n",
        "wait for a first token, at least 3601 s: .* in one time zone",
    ),
    "a zone here, none there": (
        "time,isl,osl\n2026-01-01T10:00:00Z,9,3\n2026-01-01T10:00:01,9,3\n",
        "row 3, time='2026-01-01T10:00:01': must be with a time zone if the first",
    ),
    "thousands with a comma": ("time;isl;osl\n0;1,000;20\n", "isl='1.000': must be"),
    "thousands with a point": ("time;isl;osl\n0;1.000;20\n", "isl='1.000': must be"),
    "one number for all gaps": (
        [{"sent": 0, "isl": 9, "osl": 3, "ttft": 0.5, "itls": 0.1}],
        "itls=0.1: must be a list of seconds",
    ),
    "no pace": (
        "sent,isl,osl,ttft,tpot\n0,9,3,0.5,0.1\n1,9,1,0.5,\n2,9,30,0.5,\n",
        "row 4, tpot='': must be seconds",
    ),
}


@pytest.mark.parametrize("name", GUESSES)
def test_what_could_be_read_in_two_ways_is_not_guessed(tmp_path, name):
    text, message = GUESSES[name]
    with pytest.raises(TraceError, match=message):
        quietly(written(tmp_path, text))


def test_one_who_waits_for_long_is_no_other_unit(tmp_path):
    """Who comes 900 s after the first has waited a second."""
    rows = [{"sent": t, "isl": 9, "osl": 3, "ttft": w} for t, w in ((0, 900), (950, 1))]
    log, _ = quietly(
        written(tmp_path, [its | {"e2e": its["ttft"] + 2.0} for its in rows])
    )
    assert log.ttft.tolist() == [900.0, 1.0]


@pytest.mark.parametrize("wait", [1.0, 890.0, 890.5])
def test_a_first_token_may_take_890_seconds_and_no_longer(tmp_path, wait):
    rows = [{"sent": i, "isl": 9, "osl": 3, "ttft": wait + i} for i in range(2)]
    path = written(tmp_path, [its | {"e2e": its["ttft"] + 2.0} for its in rows])
    if wait > 890.0:
        with pytest.raises(
            TraceError, match="all wait for a first token, at least 890"
        ):
            quietly(path)
        return
    log, _ = quietly(path)
    assert log.ttft.tolist() == [wait, wait + 1.0]


@pytest.mark.parametrize(
    ("name", "times", "seconds"),
    [
        ("arrival [\N{MICRO SIGN}s]", (0, 1_500_000), 1.5),
        ("sent_\N{GREEK SMALL LETTER MU}s", (0, 1_500_000), 1.5),
        ("time", (1.77e15, 1.77e15 + 1.5e6), 1.5),
        ("time", (1.77e18, 1.77e18 + 1.5e9), 1.5),
        ("time", (1.77e9, 1.77e9 + 500), 500.0),
    ],
)
def test_units_in_a_name_or_a_size_are_told(tmp_path, name, times, seconds):
    text = f"{name},isl,osl\n" + "".join(f"{t:.0f},9,3\n" for t in times)
    work, said = quietly(written(tmp_path, text))
    assert work.arrival_time.tolist() == [0.0, seconds]
    assert not said


def test_no_clock_of_day_is_made_of_a_counter(tmp_path):
    path = written(tmp_path, "time,isl,osl\n500000000000000,9,3\n500001000000000,8,2\n")
    with pytest.warns(UserWarning, match="time is read as seconds: give unit="):
        read_log(path)


def test_a_log_too_suspects_milliseconds(tmp_path):
    rows = "0,9,3,50,90\n500,9,30,50,900\n"
    with pytest.warns(UserWarning, match="sent is read as seconds: give unit="):
        read_log(written(tmp_path, f"sent,isl,osl,ttft_ms,e2e_ms\n{rows}"))


def test_names_that_are_not_given_are_not_the_same(tmp_path):
    text = f"request_id,{HEAD}\n,{DONE}\n,{DONE}\n"
    assert len(read_log(written(tmp_path, text))) == 2


def test_all_at_once_and_no_times_is_a_workload(tmp_path):
    asked = {"input_lens": [5, 6], "output_lens": [3, 1], "request_rate": "inf"}
    work, said = quietly(written(tmp_path, asked))
    assert work.arrival_time.tolist() == [0.0, 0.0]
    assert not said


def test_a_table_of_runs_in_milliseconds_is_not_taken_for_seconds(tmp_path):
    path = written(tmp_path, "concurrency,p50_ttft,p50_tpot\n1,34,12\n2,60,13\n")
    with pytest.raises(TraceError, match="row 2, p50_tpot='12': must be seconds, not"):
        read_log(path)
    table = read_log(path, unit="ms")
    np.testing.assert_allclose(table["p50_tpot"], [0.012, 0.013])


def test_a_trace_of_our_own_that_starts_in_our_days_is_suspected(tmp_path):
    head = "arrival_time,prompt_length,output_length"
    path = written(tmp_path, f"{head}\n1770000000,9,2\n1770000001,7,3\n")
    with pytest.warns(UserWarning, match="first arrives at 1770000000 s: subtract"):
        assert Workload.from_csv(path).arrival_time.tolist() == [1.77e9, 1.77e9 + 1]


@pytest.mark.parametrize("opened", [open, gzip.open])
def test_a_document_is_bounded_packed_or_not(tmp_path, monkeypatch, opened):
    monkeypatch.setattr(rows, "_LARGEST", 2**20)
    path = tmp_path / ("a.json.gz" if opened is gzip.open else "a.json")
    with opened(path, "wt") as file:
        file.write("[" + "1,\n" * 2**19 + "1]")
    with pytest.raises(TraceError, match=r"^a.json.*: over 1 MiB: save less"):
        read_log(path)


def test_a_unit_that_does_not_fit_the_clock_of_day_is_suspected(tmp_path):
    rows = "1770000000.5,9,30,50,900\n1770000010.5,9,30,50,900\n"
    path = written(tmp_path, f"{HEAD}\n{rows}")
    with pytest.warns(UserWarning, match="sent is read as ms, and looks like seconds"):
        read_log(path, unit="ms")


def test_of_two_columns_of_one_name_the_first_counts(tmp_path):
    frame = pd.DataFrame([[0, 1, 9, 2]], columns=["sent", "isl", "isl", "osl"])
    assert Workload.from_frame(frame).prompt_length.tolist() == [1]


def test_milliseconds_without_a_unit_are_suspected(tmp_path):
    path = written(tmp_path, "time,isl,osl\n0,9,2\n500,7,3\n1000,8,2\n")
    with pytest.warns(UserWarning, match=r"time is read as seconds: give unit='ms' if"):
        assert read_log(path).arrival_time.tolist() == [0.0, 500.0, 1000.0]
    work, said = quietly(path, unit="ms")
    assert (work.arrival_time.tolist(), said) == ([0.0, 0.5, 1.0], [])


def test_a_packed_file_does_as_well(tmp_path):
    path = tmp_path / "trace.csv.gz"
    with gzip.open(path, "wt") as file:
        file.write("arrived_at,num_prefill_tokens,num_decode_tokens\n2.5,9,2\n4,7,3\n")
    assert read_log(path).arrival_time.tolist() == [0.0, 1.5]


# A table in memory, and the log itself

NAMES = st.sampled_from(["arrived_at", "sent", "timestamp", "start"])
UNITS = {"s": 1.0, "ms": 1e3, "us": 1e6, "ns": 1e9}


@given(
    times=st.lists(st.integers(0, 10**6), min_size=1, max_size=20),
    name=NAMES,
    unit=st.sampled_from([*UNITS]),
    by_name=st.booleans(),
    shuffled=st.randoms(use_true_random=False),
)
def test_units_and_order_do_not_matter(times, name, unit, by_name, shuffled):
    """Whatever the unit, wherever it is said, in any order: the same workload."""
    rows = [(time, 5 + i, 1 + i) for i, time in enumerate(sorted(set(times)))]
    shuffled.shuffle(rows)
    frame = pd.DataFrame(rows, columns=[name, "n_in", "n_out"])
    frame[name] = frame[name] * UNITS[unit]
    if by_name:
        frame = frame.rename(columns={name: f"{name}_{unit}"})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        work = Workload.from_frame(frame, unit=None if by_name else unit)
    want = np.array(sorted(set(times))) - min(times)
    np.testing.assert_allclose(work.arrival_time, want, rtol=1e-9, atol=1e-9)
    assert work.prompt_length.tolist() == list(range(5, 5 + len(rows)))


# Units that no name says

SHAPES = {"durations": ["sent", "ttft", "e2e"]}
SHAPES["clocks"] = ["sent", "first_token_at", "finished_at"]


@st.composite
def served(draw):
    """Arrivals, first and last tokens in seconds, and lengths, as of a real engine."""
    n = draw(st.integers(5, 20))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    gap, pace, wait = (
        draw(st.floats(*its)) for its in ((0.01, 10), (3e-3, 0.4), (0.01, 30))
    )
    sent = rng.exponential(gap, n).cumsum()
    made = rng.integers(2, 300, n)
    first = sent + wait * rng.uniform(0.5, 2.0, n)
    return sent, first, first + pace * (made - 1) * rng.uniform(0.8, 1.2, n), made


@settings(max_examples=25)
@given(
    served(),
    st.tuples(st.sampled_from([*SHAPES]), st.sampled_from([*UNITS]), st.booleans()),
    st.sampled_from([0.0, 1.77e9]),
)
def test_a_log_is_read_in_its_own_unit_whether_its_names_say_it_or_not(
    tmp_path_factory, times, form, epoch
):
    """Whatever is not in seconds and does not say so in its name is said aloud."""
    (sent, first, last, made), (shape, unit, by_name) = times, form
    clocks = np.array([sent, first, last]) + epoch
    if shape == "durations":
        clocks[1:] -= clocks[0]
    cells = (clocks * UNITS[unit]).round(6 if unit == "s" else 0)
    names = [name + f"_{unit}" * by_name for name in SHAPES[shape]]
    table = pd.DataFrame(dict(zip(names, cells, strict=True)))
    table = table if unit == "s" else table.astype("int64")
    path = tmp_path_factory.mktemp("log") / "log.csv"
    table.assign(n_in=9, n_out=made).to_csv(path, index=False)
    log, said = quietly(path)
    np.testing.assert_allclose(log.workload.arrival_time, sent - sent[0], atol=2e-3)
    np.testing.assert_allclose(log.ttft, first - sent, atol=3e-3)
    np.testing.assert_allclose(log.latency, last - sent, atol=3e-3)
    told = by_name or unit == "s" or (epoch and shape == "clocks")
    assert bool(said) != told
    for words in said:
        assert f"no unit, read as {unit}: " in words
        assert " s a token if in s; unit= says another" in words
        assert ("sent" in words) == (epoch == 0.0)


@settings(max_examples=25)
@given(
    st.integers(0, 2**32),
    st.floats(0.02, 5.0),
    st.sampled_from(["ms", "us", "ns"]),
    st.sampled_from(["arrived_at", "arrival_time"]),
)
def test_arrivals_alone_are_in_doubt_and_the_unit_that_is_named_is_theirs(
    seed, gap, unit, name
):
    """Nothing but their gaps tells: they are read as seconds, aloud."""
    sent = np.random.default_rng(seed).exponential(gap, 20).cumsum() * UNITS[unit]
    names = [name, "prompt_length", "output_length"]
    table = pd.DataFrame(dict(zip(names, (sent.astype("int64"), 9, 3), strict=True)))
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        wrong = Workload.from_frame(table)
    assert np.ptp(wrong.arrival_time) == pytest.approx(np.ptp(sent), abs=1.0)
    words = str(said[0].message)
    assert f"{name} is read as seconds: give unit='{unit}' if it is not" in words
    right = np.ptp(Workload.from_frame(table, unit=unit).arrival_time)
    assert right == pytest.approx(np.ptp(sent) / UNITS[unit], abs=2e-3)


def test_no_real_log_or_trace_is_in_doubt(data):
    logs = [*data.glob("vllm-*/*"), *data.glob("azure-2023/*code.csv")]
    logs += (data / "samples").glob("*[!a].json*")
    assert len(logs) >= 15
    for path in logs:
        _, said = quietly(path)
        assert not [words for words in said if "read as" in words], path


UNSURE = {  # content, what is said
    "1 to 4 s a token": (
        "sent,isl,osl,ttft,e2e\n0,9,3,2.5,7.5\n",
        "sent, ttft, e2e: no unit, read as s: 2.5 s a token",
    ),
    "gaps alone": (
        [{"sent": 0.5, "isl": 9, "osl": 3, "ttft": 50, "itls": [12, 14]}],
        "sent, ttft, itls: no unit, read as ms: 13 s a token",
    ),
    "pace alone": (
        "sent,isl,osl,ttft,tpot\n0,9,3,50,12\n",
        "sent, ttft, tpot: no unit, read as ms: 12 s a token",
    ),
    "answers of one token": (
        "sent,isl,osl,ttft,e2e\n0,9,1,50,50\n1,9,1,60,60\n",
        "sent, ttft, e2e: no unit, read as s: 55 s a token",
    ),
    "answers all at once": (
        "sent,isl,osl,ttft,e2e\n0,9,50,850,850\n0,9,60,840,840\n",
        "sent, ttft, e2e: no unit, read as s: 15.5 s a token",
    ),
    "dates beside durations": (
        "sent,isl,osl,ttft,e2e\n2026-01-01 10:00:00,9,30,50,2500\n",
        "file: ttft, e2e: no unit, read as ms: 84.5 s a token",
    ),
}


@pytest.mark.parametrize("name", UNSURE)
def test_what_a_token_takes_tells_the_unit_or_that_it_is_in_doubt(tmp_path, name):
    content, words = UNSURE[name]
    path = written(tmp_path, content)
    log, (said,) = quietly(path)
    assert words in said
    scale = 1.0 if "read as s" in said else 1e-3
    other, nothing = quietly(path, unit="s" if scale == 1.0 else "ms")
    assert not [its for its in nothing if "no unit" in its]
    np.testing.assert_array_equal(log.ttft, other.ttft)


def test_seconds_taken_for_milliseconds_are_refused_too(tmp_path):
    path = written(tmp_path, "sent,isl,osl,ttft,e2e\n0,9,101,0.5,1.5\n")
    assert read_log(path).tpot.tolist() == [0.01]
    with pytest.raises(TraceError, match="median, 1e-05 s a token: must be seconds"):
        read_log(path, unit="ms")


@pytest.mark.parametrize(
    ("column", "value"), [("p50_ttft", 350), ("p99_e2e", 2500), ("mean_tpot", 12)]
)
def test_a_table_of_runs_has_limits_of_what_seconds_can_be(tmp_path, column, value):
    path = written(tmp_path, f"concurrency,{column}\n1,{value}\n")
    with pytest.raises(TraceError, match=f"{column}='{value}': must be seconds, not"):
        read_log(path)
    name = column.replace("e2e", "latency")
    assert read_log(path, unit="ms")[name].tolist() == [pytest.approx(value / 1e3)]
    assert read_log(path, unit="s")[name].tolist() == [value]


SHEET = "Request ID;Start time;Prompt tokens;Output tokens;TTFT (s);Latency (s)\r\n"
SHEET += "1;20.11.2026 14:03:00,250;2882;141;0,098;1,367\r\n"
SHEET += "2;20.11.2026 14:03:01;9;11;0,050;0,550\r\n"
GATEWAY = {
    "created": 1795183380,
    "timestamp": "2026-11-20T14:03:00.250Z",
    "status": 200,
    "usage": {"prompt_tokens": 2882, "completion_tokens": 141},
    "timing": {"time_to_first_token": 98.0, "duration": 1367.0},
}
LATER = GATEWAY | {"timestamp": "2026-11-20T14:03:01Z"}
LATER |= {"usage": {"prompt_tokens": 9, "completion_tokens": 11}}
LATER |= {"timing": {"time_to_first_token": 50.0, "duration": 550.0}}
ODD = {
    "spreadsheet": (SHEET, []),
    "gateway": (
        [GATEWAY, LATER],
        [
            "file: timing.time_to_first_token, timing.duration: no unit, read as ms: "
            "29.5 s a token if in s; unit= says another"
        ],
    ),
    "proxy": (
        "startTime,completionStartTime,endTime,prompt_tok,completion_tok\n"
        "2026-11-20T14:03:00.250,2026-11-20T14:03:00.348,2026-11-20T14:03:01.617,2882,"
        "141\n2026-11-20T14:03:01,2026-11-20T14:03:01.050,2026-11-20T14:03:01.550,9,11\n",
        [],
    ),
}


@pytest.mark.parametrize("name", ODD)
def test_logs_as_people_export_them_hold_the_same(tmp_path, name):
    """Twin: a sheet with decimal commas, a gateway in ms, a proxy's three clocks."""
    content, words = ODD[name]
    log, said = quietly(written(tmp_path, content))
    assert said == words
    np.testing.assert_allclose(log.workload.arrival_time, [0.0, 0.75])
    assert log.workload.prompt_length.tolist() == [2882, 9]
    np.testing.assert_allclose(log.ttft, [0.098, 0.05], atol=1e-6)
    np.testing.assert_allclose(log.latency, [1.367, 0.55], atol=1e-6)


@pytest.mark.parametrize("name", ["ttft_ms_p50", "TTFT (ms) p50", "p50_ttft_ms"])
def test_a_unit_is_told_wherever_in_a_name_it_stands(tmp_path, name):
    table = read_log(written(tmp_path, f"concurrency,{name}\n1,35\n"))
    assert table["p50_ttft"].tolist() == [0.035]


def test_a_frame_is_put_in_order_aloud():
    frame = pd.DataFrame({"when": [3.0, 1.0], "n_in": [9, 7], "n_out": [2, 3]})
    with pytest.warns(UserWarning, match="^frame: not in order of arrival, from row 1"):
        work = Workload.from_frame(frame, columns={"arrival_time": "when"})
    assert work.arrival_time.tolist() == [0.0, 2.0]
    assert work.prompt_length.tolist() == [7, 9]


WORK = Workload.from_arrays([0.0, 1.0, 2.0], [5, 5, 5], [3, 3, 3])
TIMES = {"queued_time": [0.0, 1.0, 2.0], "first_token_time": [0.5, 1.5, 2.5]}
TIMES |= {"last_token_time": [1.0, 2.0, 3.0]}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"first_token_time": [0.5, 1.5]}, r"first_token_time: of shape \(2,\): must"),
        (
            {"first_token_time": [0.5, 0.5, 0.5]},
            r"first_token_time\[1\]=0.5: .*add the",
        ),
        (
            {"last_token_time": [0.5, 0.5, 0.5]},
            r"last_token_time\[1\]=0.5: .*no earlier",
        ),
        ({"queued_time": [0.0, 0.0, 0.0]}, r"queued_time\[1\]=0: .*arrival_time, 1"),
        ({"queued_time": [0.0, np.nan, 2.0]}, r"queued_time\[1\]=nan"),
        ({"first_token_time": [0.5, np.nan, 2.5]}, r"first_token_time\[1\]=nan: .*cut"),
        ({"last_token_time": [1.0, np.inf, 3.0]}, r"last_token_time\[1\]=inf"),
        ({"last_token_time": [999.0, 999.0, 999.0]}, "499 s a token: .* not ms"),
        ({"prefix": np.array([0, 1])}, r"prefix: of shape \(2,\)"),
    ],
)
def test_a_log_checks_what_it_is_given(changes, message):
    with pytest.raises(TraceError, match=message):
        ServedLog(WORK, **TIMES | changes)


def test_a_request_that_was_cut_off_may_lack_its_times():
    nan = np.nan
    log = ServedLog(WORK, [0.0, 1.0, 2.0], [0.5, nan, 2.5], [1.0, nan, nan])
    assert log.completed.tolist() == [True, False, False]
    assert log.latency[0] == 1.0
    assert np.isnan(log.ttft[1:]).all()
    assert "2 cut off" in repr(log)


def test_an_answer_of_one_token_ends_with_it_whatever_the_pace_of_others(tmp_path):
    text = "sent,isl,osl,ttft,tpot\n0,9,3,0.5,0.25\n1,9,1,0.5,0.25\n"
    log, _ = quietly(written(tmp_path, text))
    np.testing.assert_allclose(log.latency, [1.0, 0.5])


def test_answers_in_chunks_alike_are_not_taken_for_gaps_that_were_cut(tmp_path):
    """All have five tokens and one gap: the whole answer came after it."""
    rows = [{"sent": i, "isl": 9, "osl": 5, "ttft": 0.5, "itls": [0.1]} for i in (0, 1)]
    log, said = quietly(written(tmp_path, rows))
    np.testing.assert_allclose(log.latency, 0.6)
    assert not [words for words in said if "gaps between tokens are kept" in words]


def test_of_those_who_complete_at_one_moment_the_first_to_come_count():
    times = np.arange(300.0) / 100
    work = Workload.from_arrays(times, np.full(300, 5), np.full(300, 3))
    ends = np.where(np.arange(300) % 3, 5.0, 4.0)  # every third at once, then the rest
    first = ServedLog(work, times, times + 0.01, ends).first_completed(0.2)
    assert np.flatnonzero(first).tolist() == [*range(0, 180, 3)]


def test_a_share_of_those_completed_is_counted_exactly():
    times = np.arange(100.0)
    work = Workload.from_arrays(times, [5] * 100, [3] * 100)
    log = ServedLog(work, times, times + 0.5, times + 1.0)
    for percent in range(1, 101):
        assert log.first_completed(percent / 100).sum() == percent


# Settings by hand


def test_settings_take_flags_names_and_what_was_read():
    flags = {"--max-num-seqs": "64", "--max-num-batched-tokens": 2048}
    flags |= {"--no-enable-prefix-caching": "", "--data-parallel-size": 2}
    settings = read_settings(flags)
    assert settings["batch_size"] == 64
    assert settings["prefix_caching"] is False
    assert (settings["replicas"], settings["router"]) == (2, "least_loaded")
    ours = {"batch_size": 64, "max_batched_tokens": 2048, "prefix_caching": False}
    assert read_settings(ours | {"replicas": 2}) == settings
    assert read_settings(settings | {"graph_tokens": 0})["graph_tokens"] == 0
    assert read_settings(settings) == settings
    with pytest.raises(TraceError, match=r"^settings, max_num_batched_tokens=None"):
        read_settings({"max_num_seqs": 8})


LIMITS = {"max_num_seqs": 8, "max_num_batched_tokens": 512}


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("kv_block", "kv_blocks"),
        ("--gpu-blocks", "num_gpu_blocks"),
        ("enable_prefix_cache", "enable_prefix_caching"),
        ("replica", "replicas"),
        ("max_concurency", "max_concurrency"),
    ],
)
def test_settings_that_are_misspelt_are_said(name, meant):
    with pytest.warns(UserWarning, match=rf"^settings: {name}: .*mean {meant}\?"):
        read_settings(LIMITS | {name: 5})


def test_other_flags_of_an_engine_need_no_word(recwarn):
    others = {"--model": "a", "tensor_parallel_size": 2, "gpu_memory_utilization": 0.9}
    known = {"num_gpu_blocks_override": 9, "router": "random", "no_enable_lora": True}
    assert read_settings(LIMITS | others | known)["kv_blocks"] == 9 - 1
    assert not recwarn.list


def test_one_of_the_blocks_that_an_engine_counts_is_its_own():
    """vLLM keeps a block that nobody gets; who names ours means those to be had."""
    assert read_settings(LIMITS | {"num_gpu_blocks": 9})["kv_blocks"] == 8
    assert read_settings(LIMITS | {"kv_blocks": 9})["kv_blocks"] == 9
    assert read_settings(LIMITS)["kv_blocks"] is None


def test_settings_by_hand_may_hold_back_requests_and_name_a_law():
    settings = read_settings(LIMITS | {"max_concurrency": 4, "step_law": "sum"})
    assert (settings["max_concurrency"], settings["step_law"]) == (4, "sum")
    assert read_settings(settings) == settings


def test_settings_given_go_with_the_log(data):
    path = data / "samples" / "own_log_other_names_ms.csv"
    limits = {"max_num_seqs": 8, "max_num_batched_tokens": 512}
    assert read_log(path, settings=limits).settings["batch_size"] == 8


def test_a_closed_loop_without_times_tells_when_each_was_sent(tmp_path):
    """Two users: the third request goes out with the first answer."""
    result = {
        **{"backend": "sglang", "request_rate": float("inf"), "max_concurrency": 2},
        **{
            "input_lens": [9] * 4,
            "output_lens": [2] * 4,
            "ttfts": [1.0, 2.0, 1.0, 1.0],
        },
        "itls": [[1.0], [1.5], [3.0], [0.5]],
    }
    path = tmp_path / "result.jsonl"
    path.write_text(json.dumps(result))
    with pytest.warns(UserWarning, match="sent by 2 users without a pause"):
        log = read_log(path, settings={"batch_size": 8, "max_batched_tokens": 64})
    assert log.workload.arrival_time.tolist() == [0.0, 0.0, 2.0, 3.5]
    assert log.last_token_time.tolist() == [2.0, 3.5, 6.0, 5.0]
    assert log.settings["clients"] == 2


def test_steps_without_graphs_are_all_launched():
    asked = LIMITS | {"enforce_eager": True}
    assert read_settings(asked)["graph_tokens"] == 0
    assert read_settings(asked | {"enforce_eager": False})["graph_tokens"] == 16
    assert read_settings(LIMITS | {"max_num_seqs": 300})["graph_tokens"] == 512
