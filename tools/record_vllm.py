"""Record what an LLM server does with timed requests, as a log that llminfer reads.

A server that runs, over HTTP (vLLM, or any other with OpenAI's completions, streaming
and ``ignore_eos``)::

    python record_vllm.py OUT --url http://localhost:8000 \
        --engine '{"max_num_seqs": 256, "max_num_batched_tokens": 2048}' \
        --rate 8 --requests 300 --prompt lognormal:mu=6,sigma=1,max=4000 \
        --output lognormal:mu=5,sigma=1,max=1000

vLLM in this process, without HTTP, and its steps too::

    python record_vllm.py OUT --engine '{"model": "NAME", "max_num_seqs": 256}' \
        --steps --workload trace.csv

OUT is a new folder for ``requests.jsonl``, ``meta.json`` and ``engine_steps.csv``. A
CSV has the columns ``arrival_time,prompt_length,output_length`` (seconds, tokens) or
those of the Azure traces; with ``--rate`` only its lengths are used, drawn at random.
Prompts are random tokens, and output lengths are forced. Ctrl-C keeps what was done.

Needs Python 3.10, and vLLM only to run in this process. All times are seconds on one
clock that starts with the run.
"""

from __future__ import annotations

import argparse
import asyncio
import csv
import json
import math
import os
import random
import re
import socket
import ssl
import sys
import time
import urllib.error
import urllib.request
from array import array
from collections import deque
from collections.abc import AsyncIterator, Callable
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple, TextIO
from urllib.parse import urlsplit

STEP_COLUMNS = (
    "begin,scheduled,done,prefill_tokens,prefill_seqs,prefill_kv,decode_seqs,"
    "decode_kv,running,waiting,preempted,pairs"
)
STEPS_TO = "RECORD_VLLM_STEPS"  # names the file that the engine's process writes
LEAD = 0.2  # s, from the start of the clock to the first request
PLAIN_TOKENS = 1000  # most tokenizers keep bytes and marks below this number


class Job(NamedTuple):
    """A request to send: seconds from the first one, and tokens."""

    at: float
    prompt: int
    output: int


# What to send


def law(text: str) -> Callable[[random.Random], int]:
    """A length law such as ``constant:value=100``, as a function that draws.

    >>> law("uniform:min=5,max=5")(random.Random(1))
    5
    """
    name, _, rest = text.partition(":")
    try:
        its = {k: float(v) for k, v in (pair.split("=") for pair in rest.split(","))}
        laws: dict[str, Callable[[random.Random], float]] = {
            "constant": lambda rng: its["value"],
            "uniform": lambda rng: rng.randint(int(its["min"]), int(its["max"])),
            "lognormal": lambda rng: rng.lognormvariate(its["mu"], its["sigma"]),
            "geometric": lambda rng: 1 + rng.expovariate(-math.log1p(-1 / its["mean"])),
        }
        draw = laws[name]
        draw(random.Random(0))
    except (KeyError, ValueError, ZeroDivisionError):
        known = "constant:value=9, uniform:min=1,max=9, lognormal:mu=5,sigma=1,max=99 "
        must = f"must be like {known}or geometric:mean=9"
        raise argparse.ArgumentTypeError(f"{text!r}: {must}") from None
    least, most = its.get("min", 1.0), its.get("max", math.inf)
    return lambda rng: int(max(1.0, least, min(most, draw(rng))))


def read_csv(path: Path) -> list[Job]:
    """The requests of a CSV in order of arrival; the first arrives at 0."""
    jobs = []
    with path.open(newline="", encoding="utf-8-sig") as file:
        for number, row in enumerate(csv.DictReader(file), start=2):
            try:
                if "TIMESTAMP" in row:  # of the Azure traces, with 7 digits of a second
                    at = datetime.fromisoformat(
                        row["TIMESTAMP"].strip()[:26]
                    ).timestamp()
                    lengths = row["ContextTokens"], row["GeneratedTokens"]
                else:
                    at = float(row["arrival_time"])
                    lengths = row["prompt_length"], row["output_length"]
                job = Job(at, *map(int, lengths))
            except (KeyError, TypeError, ValueError) as error:
                sys.exit(f"{path.name}, row {number}: {error!r}")
            if not (math.isfinite(at) and job.prompt > 0 and job.output > 0):
                sys.exit(
                    f"{path.name}, row {number}: {job}: must be at least one token"
                )
            jobs.append(job)
    if not jobs:
        sys.exit(f"{path.name}: no rows")
    jobs.sort(key=lambda job: job.at)
    return [job._replace(at=job.at - jobs[0].at) for job in jobs]


def workload(args: argparse.Namespace, rng: random.Random) -> list[Job]:
    """The requests that the command line asks for."""
    jobs = read_csv(args.workload) if args.workload else []
    n = args.requests or len(jobs) or 100
    if jobs and not args.rate:
        return jobs[:n]
    if jobs:
        lengths = [job[1:] for job in rng.choices(jobs, k=n)]
    else:
        lengths = [(args.prompt(rng), args.output(rng)) for _ in range(n)]
    at, drawn = 0.0, []
    for prompt, output in lengths:
        drawn.append(Job(at, prompt, output))
        at += rng.expovariate(args.rate) if args.rate else 0.0
    return drawn


# Who is asked


class Server:
    """A server over HTTP."""

    def __init__(self, url: str, model: str | None, said: dict[str, Any]) -> None:
        self.url = url.rstrip("/").removesuffix("/v1")
        parts = urlsplit(self.url)
        secure = parts.scheme == "https"
        host, port = str(parts.hostname), parts.port or (443 if secure else 80)
        try:
            with socket.create_connection((host, port), timeout=10) as found:
                self.at = found.getpeername()[:2]  # so that no request looks it up
        except OSError as error:
            sys.exit(f"{self.url}: cannot be reached: {error}")
        self.tls: dict[str, Any] = {}
        if secure:
            self.tls = {"ssl": ssl.create_default_context(), "server_hostname": host}
        self.headers = {"Host": parts.netloc, "Connection": "close"}
        if key := os.environ.get("OPENAI_API_KEY"):
            self.headers["Authorization"] = f"Bearer {key}"
        served = json.loads(self._get("/v1/models") or "{}").get("data") or [{}]
        self.model = model or served[0].get("id")
        if not self.model:
            sys.exit(
                f"{self.url}: does not say which model it serves: name it by --model"
            )
        self.path = f"{parts.path}/v1/completions"
        self.said = said

    def _get(self, path: str) -> str:
        """What the server says at a path, empty if it knows no such."""
        asked = urllib.request.Request(self.url + path, headers=self.headers)
        try:
            with urllib.request.urlopen(asked, timeout=10) as answer:
                return str(answer.read().decode())
        except urllib.error.HTTPError:
            return ""

    def settings(self) -> dict[str, Any]:
        """What the server tells of itself; its limits are not among that."""
        found: dict[str, Any] = {"model": self.model, "engine": self.said}
        if version := self._get("/version"):
            found["vllm"] = json.loads(version).get("version")
        cache = re.search(r"vllm:cache_config_info\{(.*?)\}", self._get("/metrics"))
        labels = dict(re.findall(r'(\w+)="(.*?)"', cache[1])) if cache else {}
        for name in ("num_gpu_blocks", "block_size"):
            if labels.get(name, "").isdigit():
                found[name] = int(labels[name])
        if caching := labels.get("enable_prefix_caching"):
            found["prefix_caching"] = caching == "True"
        return found

    def prepare(self, number: int, prompt: array[int], output: int) -> bytes:
        """The bytes of a request."""
        asked = {"model": self.model, "prompt": prompt.tolist(), "temperature": 0.0}
        asked |= {"max_tokens": output, "min_tokens": output, "ignore_eos": True}
        asked |= {"stream": True, "stream_options": {"include_usage": True}}
        body = json.dumps(asked).encode()
        kind = {"Content-Type": "application/json", "Content-Length": len(body)}
        lines = [f"POST {self.path} HTTP/1.1"]
        lines += [f"{name}: {value}" for name, value in (self.headers | kind).items()]
        return "\r\n".join([*lines, "", ""]).encode() + body

    async def ask(
        self, request: bytes, row: dict[str, Any], now: Callable[[], float]
    ) -> None:
        """Send a request, and write into its row what comes back, and when."""
        reader, writer = await asyncio.open_connection(*self.at, **self.tls)
        usage: dict[str, Any] = {}
        try:
            writer.write(request)
            async for event in events(reader):
                if error := event.get("error"):
                    raise RuntimeError(f"the server says {error}")
                if event.get("choices"):
                    row["last_token_ts"] = now()
                    row.setdefault("first_token_ts", row["last_token_ts"])
                    row["output_toks"] += 1
                usage = event.get("usage") or usage
        finally:
            writer.close()
        row["output_toks"] = usage.get("completion_tokens", row["output_toks"])
        row["input_toks"] = usage.get("prompt_tokens", row["input_toks"])
        found = (usage.get("prompt_tokens_details") or {}).get("cached_tokens")
        if found is not None:
            row["cached_toks"] = found
        if not row["output_toks"]:
            raise RuntimeError("no token came")

    def close(self) -> None:
        """Leave the server as it is."""


async def events(reader: asyncio.StreamReader) -> AsyncIterator[dict[str, Any]]:
    """The events that an HTTP answer streams, up to ``[DONE]``."""
    status = (await reader.readline()).decode("latin-1").split(maxsplit=2)
    head = b""
    while (line := await reader.readline()).strip():
        head += line.lower()
    rest = b""
    async for data in pieces(reader, b"transfer-encoding: chunked" in head):
        *lines, rest = (rest + data).split(b"\n")
        if status[1:2] != ["200"]:
            rest = rest or lines[0]
            break
        for line in lines:
            if line.startswith(b"data:"):
                if line[5:].strip() == b"[DONE]":
                    return
                yield json.loads(line[5:])
    said = " ".join(status[1:]) or "nothing"
    what = "broke off" if status[1:2] == ["200"] else rest.decode(errors="replace")
    raise RuntimeError(f"HTTP {said}: {what}")


async def pieces(reader: asyncio.StreamReader, chunked: bool) -> AsyncIterator[bytes]:
    """The body of an HTTP answer as it comes."""
    while True:
        if not chunked:
            data = await reader.read(2**16)
        elif size := int((await reader.readline()).split(b";")[0] or b"0", 16):
            data = (await reader.readexactly(size + 2))[:-2]
        else:
            data = b""
        if not data:
            return
        yield data


class Inside:
    """vLLM in this process: its own front end, and an engine beside it."""

    def __init__(self, said: dict[str, Any], steps: Path | None) -> None:
        from vllm import SamplingParams
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.v1.engine.async_llm import AsyncLLM

        args = AsyncEngineArgs(**{"disable_log_stats": False, **said})
        if steps:
            here = str(
                Path(__file__).resolve().parent
            )  # the engine's process looks there
            there = [here, os.environ.get("PYTHONPATH", "")]
            os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, there))
            os.environ[STEPS_TO] = str(steps)
            ahead = args.create_engine_config().scheduler_config.async_scheduling
            name = "LoggedAsyncScheduler" if ahead else "LoggedScheduler"
            args.scheduler_cls = f"{Path(__file__).stem}.{name}"
        self.engine = AsyncLLM.from_engine_args(args)
        self.config = self.engine.vllm_config
        self.sampling = SamplingParams
        self.said = said

    def settings(self) -> dict[str, Any]:
        """The engine's settings as it resolved them."""
        import vllm

        cache, scheduler = self.config.cache_config, self.config.scheduler_config
        parallel, spec = self.config.parallel_config, self.config.speculative_config
        return {
            "model": self.said["model"],
            "vllm": vllm.__version__,
            "engine": self.said,
            "num_gpu_blocks": cache.num_gpu_blocks,
            "block_size": cache.block_size,
            "prefix_caching": bool(cache.enable_prefix_caching),
            "max_num_seqs": scheduler.max_num_seqs,
            "max_num_batched_tokens": scheduler.max_num_batched_tokens,
            "chunked": bool(scheduler.enable_chunked_prefill),
            "async_scheduling": bool(scheduler.async_scheduling),
            "policy": scheduler.policy,
            "pipeline_parallel_size": parallel.pipeline_parallel_size,
            "data_parallel_size": parallel.data_parallel_size,
            "speculative_config": str(spec) if spec else None,
        }

    def prepare(self, number: int, prompt: array[int], output: int) -> Any:
        """A request, as this engine takes it."""
        forced = {"min_tokens": output, "max_tokens": output, "ignore_eos": True}
        sampling = self.sampling(temperature=0.0, detokenize=False, **forced)
        return str(number), prompt, sampling

    async def ask(
        self, request: Any, row: dict[str, Any], now: Callable[[], float]
    ) -> None:
        """Send a request, and write into its row what the engine says of it."""
        number, prompt, sampling = request
        tokens = {"prompt_token_ids": prompt.tolist()}
        last: Any = None
        async for last in self.engine.generate(tokens, sampling, number):
            made = len(last.outputs[0].token_ids)
            if made > row["output_toks"]:
                row["client_last"] = now()
                row.setdefault("client_first", row["client_last"])
                row["output_toks"] = made
        row["finish_reason"] = last.outputs[0].finish_reason
        row["cached_toks"] = last.num_cached_tokens
        offset = time.monotonic() - now()
        for name in ("queued_ts", "scheduled_ts", "first_token_ts", "last_token_ts"):
            row[name] = round(getattr(last.metrics, name) - offset, 6)

    def close(self) -> None:
        """Stop the engine."""
        self.engine.shutdown()


def logged(scheduler: Any) -> Any:
    """A scheduler of vLLM that writes down every step when its result is there."""

    class Logged(scheduler):  # type: ignore[misc]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self._under_way: deque[list[Any]] = deque()
            self._steps = open(os.environ[STEPS_TO], "a", buffering=1)  # noqa: SIM115

        def schedule(self, *args: Any, **kwargs: Any) -> Any:
            begin = time.monotonic()
            step = super().schedule(*args, **kwargs)
            if step.total_num_scheduled_tokens:
                self._under_way.append([begin, time.monotonic(), *self._parts(step)])
            return step

        def update_from_output(self, step: Any, *args: Any, **kwargs: Any) -> Any:
            if step.total_num_scheduled_tokens and self._under_way:
                begin, scheduled, *parts = self._under_way.popleft()
                times = (f"{t:.6f}" for t in (begin, scheduled, time.monotonic()))
                self._steps.write(",".join([*times, *map(str, parts)]) + "\n")
            return super().update_from_output(step, *args, **kwargs)

        def _parts(self, step: Any) -> list[int]:
            prefill, decode, pairs = [0, 0, 0], [0, 0], 0.0
            for name, chunk in step.num_scheduled_tokens.items():
                request = self.requests[name]
                before = request.num_computed_tokens - chunk
                if chunk == 1 and before >= request.num_prompt_tokens:
                    decode = [decode[0] + 1, decode[1] + before]
                else:
                    prefill = [prefill[0] + chunk, prefill[1] + 1, prefill[2] + before]
                    pairs += chunk * (before + chunk / 2)
            queues = len(self.running), len(self.waiting)
            preempted = len(getattr(step, "preempted_req_ids", None) or ())
            return [*prefill, *decode, *queues, preempted, int(pairs)]

    return Logged


def __getattr__(name: str) -> Any:
    """The schedulers, which vLLM asks for by name in the process of the engine."""
    if name == "LoggedScheduler":
        from vllm.v1.core.sched.scheduler import Scheduler

        return logged(Scheduler)
    if name == "LoggedAsyncScheduler":
        from vllm.v1.core.sched.async_scheduler import AsyncScheduler

        return logged(AsyncScheduler)
    raise AttributeError(name)


# The run


async def drive(
    jobs: list[tuple[Job, Any]], engine: Any, at_once: int, log: TextIO, begin: float
) -> None:
    """Send every request at its time, and log it when its answer is there."""
    gate = asyncio.Semaphore(at_once)

    def now() -> float:
        return round(time.monotonic() - begin, 6)

    async def one(number: int) -> None:
        job, request = jobs[number]
        row: dict[str, Any] = {"request_id": number, "input_toks": job.prompt}
        row |= {"output_toks": 0, "planned_arrival": round(LEAD + job.at, 6)}
        async with gate:
            row["arrival_time"] = now()
            try:
                await engine.ask(request, row, now)
            except asyncio.CancelledError:
                row["error"] = "interrupted"
                raise
            except Exception as error:
                row["error"] = f"{type(error).__name__}: {error}"[:200]
            finally:
                log.write(json.dumps(row) + "\n")
                log.flush()

    tasks = []
    try:
        for number, (job, _) in enumerate(jobs):
            await asyncio.sleep(LEAD + job.at - now())
            tasks.append(asyncio.create_task(one(number)))
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def record(args: argparse.Namespace) -> None:
    """Make the folder, run the workload, and leave the log in it."""
    raw = args.out / "engine_steps.raw" if args.steps else None
    args.out.mkdir(parents=True, exist_ok=True)
    if args.url:
        engine: Any = Server(args.url, args.model, args.engine)
        vocabulary = args.vocabulary
    else:
        engine = Inside(args.engine, raw)
        vocabulary = engine.config.model_config.get_vocab_size()
    begin = math.inf
    try:
        rng = random.Random(args.seed)
        ids = range(min(PLAIN_TOKENS, vocabulary // 2), vocabulary)
        jobs = []
        for number, job in enumerate(workload(args, rng)):
            prompt = array("I", rng.choices(ids, k=job.prompt))
            jobs.append((job, engine.prepare(number, prompt, job.output)))
        run = {"requests": len(jobs), "rate": args.rate, "seed": args.seed}
        run |= {"max_concurrency": args.max_concurrency}
        meta = json.dumps({**engine.settings(), "run": run}, indent=1)
        (args.out / "meta.json").write_text(meta + "\n")
        begin = time.monotonic()
        with (args.out / "requests.jsonl").open("x") as log:
            most = args.max_concurrency or len(jobs)
            await drive(jobs, engine, most, log, begin)
    finally:
        engine.close()
        if raw and raw.exists():
            on_the_clock(raw, args.out / "engine_steps.csv", begin)


def on_the_clock(raw: Path, to: Path, begin: float) -> None:
    """The steps that the engine wrote, on the clock of the requests."""
    with raw.open() as steps, to.open("w") as out:
        out.write(STEP_COLUMNS + "\n")
        for line in steps:
            *times, parts = line.split(",", 3)
            seconds = [f"{float(t) - begin:.6f}" for t in times]
            if line.endswith("\n") and float(times[0]) >= begin:
                out.write(",".join([*seconds, parts]))
    raw.unlink()


def arguments(given: list[str] | None = None) -> argparse.Namespace:
    """The command line, checked."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("out", type=Path, metavar="OUT", help="a new folder for the log")
    add("--url", help="of a server that runs; else vLLM runs in this process")
    add("--model", help="the server's name for it; else the first that it serves")
    add("--engine", type=json.loads, default={}, help="settings of the engine, as JSON")
    add("--steps", action="store_true", help="log the engine's steps; in this process")
    add("--workload", type=Path, help="a CSV of requests")
    add("--rate", type=float, help="Poisson arrivals, requests a second; else all at 0")
    add("--requests", type=int, help="how many; else all of the CSV, or 100")
    add("--prompt", type=law, help="law of prompt lengths, where there is no CSV")
    add("--output", type=law, help="law of output lengths")
    add("--max-concurrency", type=int, help="requests unanswered at once, at most")
    add("--vocabulary", type=int, default=32000, help="prompts have ids below this one")
    add("--seed", type=int, default=0)
    args = parser.parse_args(given)
    if not isinstance(args.engine, dict):
        parser.error("--engine: must be like '{\"max_num_seqs\": 256}'")
    if not args.url and "model" not in args.engine:
        parser.error("--url, or --engine with a model: must be given")
    if args.steps and (args.url or args.engine.get("data_parallel_size", 1) > 1):
        parser.error("--steps: must be of a single engine in this process")
    if not args.workload and not (args.prompt and args.output):
        parser.error("--workload, or --prompt and --output: must be given")
    for name in ("rate", "requests", "max_concurrency"):
        if (value := getattr(args, name)) is not None and not value > 0:
            parser.error(f"--{name.replace('_', '-')}={value}: must be above 0")
    if (args.out / "requests.jsonl").exists():
        parser.error(f"{args.out}: has a log already: name a new folder")
    limits = {"max_num_seqs", "max_num_batched_tokens"} - set(args.engine)
    if args.url and limits:
        print(f"--engine: without {sorted(limits)} no simulation can follow from this")
    return args


def main(given: list[str] | None = None) -> int:
    """Record a run; how it ended."""
    args = arguments(given)
    stopped = False
    try:
        asyncio.run(record(args))
    except KeyboardInterrupt:
        stopped = True
    log = args.out / "requests.jsonl"
    lines = log.read_text().splitlines() if log.exists() else []
    rows = [json.loads(line) for line in lines]
    failed = [row["error"] for row in rows if "error" in row]
    print(f"{log}: {len(rows)} requests, {len(failed)} failed", *failed[:1])
    return 130 if stopped else 0


if __name__ == "__main__":
    sys.exit(main())
