"""The recorder of a user's own engine, beside a server that only pretends to be one."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from llminfer import read_settings, read_vllm_log
from llminfer.data.logs import read_steps

SCRIPT = Path(__file__).parent.parent / "tools" / "record_vllm.py"
LIMITS = {"max_num_seqs": 8, "max_num_batched_tokens": 64}
CACHE = (
    'vllm:cache_config_info{block_size="16",enable_prefix_caching="False",'
    'num_gpu_blocks="574",num_gpu_blocks_override="None"} 1.0\n'
)


@pytest.fixture
def recorder(monkeypatch):
    """The script as a module, which an engine may import by its name."""
    spec = spec_from_file_location("record_vllm", SCRIPT)
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setitem(sys.modules, "record_vllm", module)
    return module


class Fake(BaseHTTPRequestHandler):
    """Streams as many tokens as were asked for, in pieces of odd sizes."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def do_GET(self):
        pages = {
            "/v1/models": json.dumps({"data": [{"id": "fake-8b"}]}),
            "/version": json.dumps({"version": "0.24.0"}),
            "/metrics": CACHE,
        }
        body = pages.get(self.path, "").encode()
        self.send_response(200 if body else 404)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.seen["lock"]:
            self.server.seen["asked"].append(asked)
        self.count(1)
        self.answer(asked)
        self.close_connection = True

    def count(self, more):
        """Note how many are under way, and the most there were."""
        seen = self.server.seen
        with seen["lock"]:
            seen["now"] += more
            seen["most"] = max(seen["most"], seen["now"])

    def answer(self, asked):
        prompt, output = len(asked["prompt"]), asked["max_tokens"]
        if prompt == 13:
            self.send_response(500, "Internal Server Error")
            self.end_headers()
            self.wfile.write(b'{"message": "out of luck"}\n')
            return
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for _ in range(output):
            time.sleep(0.001)
            self.event({"choices": [{"text": "a"}]})
            if prompt == 17:
                self.event({"error": {"message": "the engine died"}})
            if prompt == 19:
                return
        details = {"cached_tokens": 0 if prompt < 8 else 4}
        usage = {"prompt_tokens": prompt, "completion_tokens": output}
        self.event({"choices": [], "usage": usage | {"prompt_tokens_details": details}})
        self.count(-1)
        self.piece(b"data: [DONE]\n\n")
        self.wfile.write(b"0\r\n\r\n")

    def event(self, event):
        text = f"data: {json.dumps(event)}\n\n".encode()
        self.piece(text[:9])
        self.piece(text[9:])

    def piece(self, data):
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
        self.wfile.flush()


@pytest.fixture
def server():
    """A fake server's address, and what it has seen."""
    it = ThreadingHTTPServer(("127.0.0.1", 0), Fake)
    it.daemon_threads = True
    it.handle_error = lambda *_: None  # a client may leave in the middle
    it.seen = {"asked": [], "now": 0, "most": 0, "lock": threading.Lock()}
    threading.Thread(target=it.serve_forever, args=(0.01,), daemon=True).start()
    yield f"http://127.0.0.1:{it.server_port}", it.seen
    it.shutdown()
    it.server_close()


def trace(tmp_path, *rows):
    path = tmp_path / "trace.csv"
    lines = ["arrival_time,prompt_length,output_length"]
    path.write_text("\n".join([*lines, *(",".join(map(str, row)) for row in rows)]))
    return str(path)


def test_a_csv_is_sent_and_the_log_is_read_back(recorder, server, tmp_path):
    url, seen = server
    out = tmp_path / "out"
    path = trace(tmp_path, (5.05, 9, 4), (5.0, 5, 1), (5.1, 7, 3))
    asked = [str(out), "--url", url, "--workload", path, "--engine", json.dumps(LIMITS)]
    assert recorder.main(asked) == 0
    log = read_vllm_log(out)
    assert log.workload.prompt_length.tolist() == [5, 9, 7]
    assert log.workload.output_length.tolist() == [1, 4, 3]
    rows = [json.loads(line) for line in (out / "requests.jsonl").open()]
    planned = sorted(row["planned_arrival"] for row in rows)
    assert planned == pytest.approx([0.2, 0.25, 0.3])
    assert all(row["arrival_time"] >= row["planned_arrival"] for row in rows)
    assert (log.ttft > 0.0).all()
    assert log.cached_tokens.tolist() == [0, 4, 0]
    first = seen["asked"][0]
    assert first["ignore_eos"]
    assert first["min_tokens"] == first["max_tokens"] == 1
    assert all(1000 <= token < 32000 for token in first["prompt"])
    settings = read_settings(out)
    assert (settings["batch_size"], settings["max_batched_tokens"]) == (8, 64)
    assert (settings["kv_blocks"], settings["prefix_caching"]) == (573, False)
    assert settings["async_scheduling"] is True


def test_requests_that_fail_are_recorded_as_such(recorder, server, tmp_path, capsys):
    url, _ = server
    out = tmp_path / "out"
    path = trace(tmp_path, (0, 5, 2), (0, 13, 2), (0, 17, 2), (0, 19, 2), (0, 6, 2))
    assert recorder.main([str(out), "--url", url, "--workload", path]) == 0
    said = capsys.readouterr().out
    assert "--engine: without ['max_num_batched_tokens', 'max_num_seqs']" in said
    assert "5 requests, 3 failed" in said
    rows = [json.loads(line) for line in (out / "requests.jsonl").open()]
    errors = {row["input_toks"]: row.get("error") for row in rows}
    assert errors[5] is None
    assert "HTTP 500 Internal Server Error" in errors[13]
    assert "out of luck" in errors[13]
    assert "the engine died" in errors[17]
    assert "broke off" in errors[19]
    with pytest.warns(UserWarning, match="requests.* were refused, and are left out"):
        log = read_vllm_log(out)
    assert log.completed.sum() == 2
    assert log.refused + len(log) == 5


def test_no_more_are_sent_at_once_than_was_asked_for(recorder, server, tmp_path):
    url, seen = server
    laws = ["--prompt", "constant:value=6", "--output", "uniform:min=2,max=4"]
    asked = [str(tmp_path / "out"), "--url", url, *laws, "--requests", "12"]
    assert recorder.main([*asked, "--max-concurrency", "3"]) == 0
    assert 1 < seen["most"] <= 3
    log = read_vllm_log(tmp_path / "out")
    assert len(log) == 12
    assert log.workload.arrival_time[3] >= log.last_token_time.min()


def test_ctrl_c_keeps_what_was_done(server, tmp_path):
    url, _ = server
    out, slow = tmp_path / "out", [(0, 5, 2), (0, 6, 100_000), (900, 5, 2)]
    asked = [str(out), "--url", url, "--workload", trace(tmp_path, *slow)]
    run = subprocess.Popen(
        [sys.executable, str(SCRIPT), *asked], stdout=subprocess.PIPE, text=True
    )
    log = out / "requests.jsonl"
    until = time.monotonic() + 120.0
    try:
        while not (log.exists() and log.read_text()) and time.monotonic() < until:
            time.sleep(0.01)
        run.send_signal(signal.SIGINT)
        said, _ = run.communicate(timeout=120)
    finally:
        run.kill()
    assert run.returncode == 130
    assert "2 requests, 1 failed interrupted" in said
    with pytest.warns(UserWarning, match="1 of 2 requests .* were cut off"):
        assert read_vllm_log(out).completed.sum() == 1


@pytest.mark.parametrize(
    ("law", "least", "most", "mean"),
    [
        ("constant:value=7", 7, 7, 7.0),
        ("uniform:min=2,max=6", 2, 6, 4.0),
        ("lognormal:mu=3,sigma=1,max=50", 1, 50, 24.0),
        ("geometric:mean=20", 1, None, 20.0),
    ],
)
def test_lengths_follow_their_law(recorder, law, least, most, mean):
    rng = random.Random(1)
    drawn = [recorder.law(law)(rng) for _ in range(4000)]
    assert min(drawn) == least
    assert most is None or max(drawn) == most
    assert sum(drawn) / len(drawn) == pytest.approx(mean, rel=0.1)


def test_a_trace_lends_its_lengths_to_another_rate(recorder, tmp_path):
    path = tmp_path / "azure.csv"
    rows = "2023-11-16 18:15:46.6805900,374,44\n2023-11-16 18:15:50.9951690,396,109\n"
    path.write_text(f"TIMESTAMP,ContextTokens,GeneratedTokens\n{rows}")
    asked = [
        "out",
        "--url",
        "x",
        "--workload",
        str(path),
        "--engine",
        json.dumps(LIMITS),
    ]
    plain = recorder.workload(recorder.arguments(asked), random.Random(1))
    assert [job[1:] for job in plain] == [(374, 44), (396, 109)]
    assert plain[1].at == pytest.approx(4.314579, abs=1e-5)
    more = [*asked, "--rate", "50", "--requests", "2000"]
    drawn = recorder.workload(recorder.arguments(more), random.Random(1))
    assert {job[1:] for job in drawn} == {(374, 44), (396, 109)}
    assert drawn[-1].at == pytest.approx(40.0, rel=0.1)


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (["--rate", "5"], "--url, or --engine with a model: must be given"),
        (["--url", "x", "--rate", "0"], "--workload, or --prompt and --output"),
        (["--url", "x", "--prompt", "normal:mu=3"], "'normal:mu=3': must be like"),
        (["--url", "x", "--steps"], "--steps: must be of a single engine in this"),
        (
            ["--url", "x", "--workload", "y", "--rate", "-1"],
            "--rate=-1.0: must be above",
        ),
        (["--engine", "[1]"], "--engine: must be like"),
    ],
)
def test_what_cannot_be_asked_is_said(recorder, tmp_path, capsys, asked, said):
    with pytest.raises(SystemExit):
        recorder.arguments([str(tmp_path), *asked])
    assert said in capsys.readouterr().err


def test_a_log_is_never_written_over(recorder, tmp_path, capsys):
    (tmp_path / "requests.jsonl").write_text("")
    asked = [str(tmp_path), "--url", "x", "--workload", "y"]
    with pytest.raises(SystemExit):
        recorder.arguments(asked)
    assert "has a log already: name a new folder" in capsys.readouterr().err


# vLLM in the same process


class Steps:
    """As much of vLLM's scheduler as is logged: whole prompts, then a token each."""

    def __init__(self):
        self.requests, self.waiting, self.running = {}, [], []

    def schedule(self):
        chunks = dict.fromkeys(self.running, 1)
        chunks |= {name: self.requests[name].num_prompt_tokens for name in self.waiting}
        self.running, self.waiting = [*chunks], []
        for name, chunk in chunks.items():
            self.requests[name].num_computed_tokens += chunk
        total = sum(chunks.values())
        return SimpleNamespace(
            num_scheduled_tokens=chunks, total_num_scheduled_tokens=total
        )

    def update_from_output(self, step, result):
        return result


class Engine:
    """As much of vLLM's front end as is asked: a loop that steps the scheduler."""

    def __init__(self, args):
        module, name = args.scheduler_cls.split(".")
        self.scheduler = getattr(sys.modules[module], name)()
        self.vllm_config = args.create_engine_config()
        self.made = {}

    async def generate(self, tokens, sampling, name):
        queued = time.monotonic()
        prompt = len(tokens["prompt_token_ids"])
        fresh = SimpleNamespace(num_computed_tokens=0, num_prompt_tokens=prompt)
        self.scheduler.requests[name] = fresh
        self.scheduler.waiting.append(name)
        metrics = SimpleNamespace(queued_ts=queued, scheduled_ts=queued)
        for made in range(1, sampling.max_tokens + 1):
            step = self.scheduler.schedule()
            await asyncio.sleep(0.001)
            self.scheduler.update_from_output(step, None)
            metrics.last_token_ts = time.monotonic()
            metrics.first_token_ts = vars(metrics).get(
                "first_token_ts", metrics.last_token_ts
            )
            reason = "length" if made == sampling.max_tokens else None
            output = SimpleNamespace(token_ids=[0] * made, finish_reason=reason)
            yield SimpleNamespace(
                outputs=[output], metrics=metrics, num_cached_tokens=0
            )
        self.scheduler.running.remove(name)

    def shutdown(self):
        self.closed = True


@pytest.fixture
def vllm(monkeypatch):
    """A package of that name, as small as can be."""
    config = SimpleNamespace(
        cache_config=SimpleNamespace(
            num_gpu_blocks=100, block_size=16, enable_prefix_caching=True
        ),
        scheduler_config=SimpleNamespace(
            **LIMITS, enable_chunked_prefill=True, async_scheduling=True, policy="fcfs"
        ),
        parallel_config=SimpleNamespace(pipeline_parallel_size=1, data_parallel_size=1),
        model_config=SimpleNamespace(get_vocab_size=lambda: 500),
        speculative_config=None,
    )

    class Args(SimpleNamespace):
        def create_engine_config(self):
            return config

    class AsyncLLM:
        from_engine_args = staticmethod(Engine)

    offers = {
        "vllm": {"SamplingParams": SimpleNamespace, "__version__": "0.24.0"},
        "vllm.engine.arg_utils": {"AsyncEngineArgs": Args},
        "vllm.v1.engine.async_llm": {"AsyncLLM": AsyncLLM},
        "vllm.v1.core.sched.async_scheduler": {"AsyncScheduler": Steps},
    }
    for name, names in offers.items():
        parts = name.split(".")
        for end in range(1, len(parts) + 1):
            whole = ".".join(parts[:end])
            if whole not in sys.modules:
                monkeypatch.setitem(sys.modules, whole, ModuleType(whole))
        vars(sys.modules[name]).update(names)
    for name in ("PYTHONPATH", "RECORD_VLLM_STEPS"):
        monkeypatch.setenv(name, os.environ.get(name, ""))


def test_an_engine_in_the_process_leaves_its_steps_too(recorder, vllm, tmp_path):
    out = tmp_path / "out"
    path = trace(tmp_path, (0, 9, 4), (0, 5, 2))
    asked = [str(out), "--engine", '{"model": "m"}', "--steps", "--workload", path]
    assert recorder.main([*asked, "--max-concurrency", "1"]) == 0
    log, steps, settings = read_vllm_log(out), read_steps(out), read_settings(out)
    assert log.workload.output_length.tolist() == [4, 2]
    assert (log.scheduled_time >= log.queued_time).all()
    assert log.cached_tokens.tolist() == [0, 0]
    assert steps["prefill_tokens"].tolist() == [9, 0, 0, 0, 5, 0]
    assert steps["decode_kv"].tolist() == [0, 9, 10, 11, 0, 5]
    assert steps["pairs"].tolist() == [40, 0, 0, 0, 12, 0]
    rows = [json.loads(line) for line in (out / "requests.jsonl").open()]
    for row, (begun, ended) in zip(rows, ((0, 3), (4, 5)), strict=True):
        assert row["queued_ts"] <= steps["begin"][begun] + 2e-6  # both on one clock
        assert steps["done"][begun] <= row["first_token_ts"] + 2e-6
        assert steps["done"][ended] <= row["last_token_ts"] + 2e-6
    assert (settings["kv_blocks"], settings["batch_size"]) == (99, 8)
    assert settings["async_scheduling"] is True
