"""A plan from a log: what it says, what it refuses, and real runs beside it."""

from __future__ import annotations

import sys
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from made_up import REQUESTS

from llminfer import (
    SLO,
    ConfigError,
    SimulationConfig,
    TraceError,
    Workload,
    calibrate,
    capacity,
    fetch,
    plan,
    read_settings,
    read_vllm_log,
    simulate,
)
from llminfer.data import ServedLog
from llminfer.laws.engines import kv_blocks

ENGINE = SimulationConfig.from_preset(
    "llama-3.1-8b-rtx4090",
    arrival_rate=3.0,
    kv_blocks=400,
    **REQUESTS,
)
SETTINGS = {"batch_size": 16, "kv_blocks": 400, "step_law": "sum"}
LIMITS = SLO(ttft=1.0, tpot=0.04)


def the_log(config=ENGINE, n=300):
    return ServedLog.from_record(simulate(config.replace(num_requests=n)))


@pytest.fixture(scope="module")
def report():
    """With fewer runs and draws than a real one, so that it is quick."""
    patch = pytest.MonkeyPatch()
    patch.setattr(sys.modules["llminfer.capacity"], "_DRAWS", 3)
    patch.setattr(sys.modules["llminfer.plan"], "_RUNS", 3)
    fitted = calibrate.fit(the_log(), SETTINGS)
    yield plan(fitted, LIMITS, n_jobs=1)
    patch.undo()


def test_the_sentence_has_the_capacity_and_what_binds(report):
    its = report.capacity
    low, high = its.interval
    truth = ENGINE.replace(num_requests=2600, warmup_requests=200)
    assert low < capacity(truth, LIMITS, replications=3, n_jobs=1).rate < high
    assert high < 2.0 * low
    for part in (f"{its.rate:.3g} req", "p99 TTFT ≤ 1 s, p99 TPOT ≤ 0.04 s", its.binds):
        assert part in report.sentence
    assert str(report).startswith("This engine carries")
    assert str(its).splitlines()[0] in str(report)


def test_it_says_what_the_log_holds_and_how_good_the_fit_is(report):
    said = " ".join(str(report).split())
    log = report.fitted.log
    share = log.workload.prompt_length.mean()
    assert f"300 requests at {299 / np.ptp(log.workload.arrival_time):.3g}" in said
    assert f"{share:,.0f} prompt" in said
    assert "on 180 requests that the fit did not see" in said
    error = report.fitted.errors()["mean"]["ttft"]
    assert f"ttft {error:+.1%}" in said
    assert f"cannot tell: {', '.join(report.fitted.unidentified)}" in said


def test_changes_are_paired_with_the_engine_as_it_is(report):
    table = report.what_ifs.set_index("setting")
    assert list(table.index) == [
        "as it is",
        "twice the KV memory",
        "1,024 tokens a step"
        if "TPOT" in report.capacity.binds
        else "4,096 tokens a step",
        "2 replicas",
    ]
    two = table.loc["2 replicas"]
    assert two["difference_lower"] < two["difference"] < two["difference_upper"]
    ratio = two["rate"] / table.loc["as it is", "rate"] - 1.0
    assert two["difference"] == pytest.approx(ratio, abs=0.06)
    assert two["difference_lower"] > 0.2


class Tags(HTMLParser):
    def __init__(self):
        super().__init__()
        self.open, self.seen, self.links = [], set(), []

    def handle_starttag(self, tag, attrs):
        self.seen.add(tag)
        self.links += [v for k, v in attrs if k in ("src", "href") and v[:1] != "#"]
        if tag not in ("meta", "br", "img"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.seen.add(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_is_whole_and_needs_nothing_else(report, tmp_path):
    report.to_html(tmp_path / "plan.html")
    page = (tmp_path / "plan.html").read_text("utf-8")
    tags = Tags()
    tags.feed(page)
    assert tags.open == []
    assert {"svg", "table", "h2"} <= tags.seen
    assert tags.links == []
    assert "p99 TTFT ≤ 1 s" in page
    assert "<script" not in page
    assert report._repr_html_().splitlines()[0] in page


def test_a_log_that_cannot_tell_is_refused():
    log = the_log(n=150)
    with pytest.raises(TraceError, match="log: 60 requests: must be at least 100"):
        plan(the_log(n=60), LIMITS)
    with pytest.raises(ConfigError, match="must be with its engine's settings"):
        plan(log, LIMITS)
    n = len(log)
    slower = 1.0 + np.arange(n) / n  # an engine that gets slower as it runs
    queued = log.workload.arrival_time
    drifts = replace(
        log,
        first_token_time=queued + slower * log.ttft,
        last_token_time=queued + slower * log.latency,
    )
    with pytest.raises(TraceError, match=r"held back is \d+% off: must be at most 15%"):
        plan(calibrate.fit(drifts, SETTINGS), LIMITS)


def closed_loop(users, n=200):
    """A log whose requests are each sent when another is answered."""
    rng = np.random.default_rng(1)
    free, arrival, ends = np.zeros(users), [], []
    for _ in range(n):
        who = int(free.argmin())
        arrival.append(free[who] + 0.001)
        ends.append(arrival[-1] + rng.uniform(1.0, 3.0))
        free[who] = ends[-1]
    work = Workload.from_arrays(arrival, [100] * n, [50] * n)
    begun = np.array(arrival)
    return ServedLog(work, begun, begun + 0.1, np.array(ends))


@pytest.mark.parametrize("users", [1, 4, 32])
def test_a_closed_loop_is_refused(users):
    log = closed_loop(users)
    object.__setattr__(log, "settings", SETTINGS)
    with pytest.raises(TraceError, match=r"log: a closed loop: \d+% of its requests"):
        plan(log, LIMITS)


# real runs of vLLM on an H200; the other loads were not seen by the fit


def test_a_real_closed_loop_is_refused_and_open_ones_are_not():
    log = read_vllm_log(fetch("vllm-h200-256x2048-closed-16"))
    with pytest.raises(TraceError, match=r"log: a closed loop: 8\d% of its requests"):
        plan(log, LIMITS)
    for name in ("256x2048-conv-4", "256x512-prefix"):
        log = read_vllm_log(fetch(f"vllm-h200-{name}"))
        with pytest.raises(ConfigError, match="must be with its engine's settings"):
            plan(replace(log, settings={}), LIMITS)


def test_an_h200_carries_what_it_was_measured_to_carry(monkeypatch):
    """Limits as measured at a load are broken above it; the fit saw one of the two."""
    monkeypatch.setattr(sys.modules["llminfer.capacity"], "_DRAWS", 4)
    folders = [fetch(f"vllm-h200-256x2048-conv-{rate}") for rate in (4, 10)]
    logs = [read_vllm_log(folder) for folder in folders]
    fitted = calibrate.fit(logs[1], read_settings(folders[1]))
    carried = []
    for log in logs:
        own = (len(log) - 1) / np.ptp(log.workload.arrival_time)
        slo = SLO(tpot={"p50": float(np.nanmedian(log.tpot))})
        found = capacity(fitted, slo, replications=3, n_jobs=1)
        assert found.interval[0] < own < found.interval[1]
        assert found.rate == pytest.approx(own, rel=0.2)
        carried.append(own)
    slo = SLO(tpot={"p50": 0.0065})  # 0.0055 s were measured at 3.9, 0.0075 at 10.7
    between = capacity(fitted.config(), slo, replications=3, n_jobs=1).rate
    assert carried[0] < between < carried[1]


def test_kv_memory_in_blocks_is_what_vllm_had():
    """GPU memory x 0.9, less 15 GiB of weights and 1.2 GiB of activations."""
    shape = {"layers": 32, "kv_heads": 8, "head_size": 128}  # Llama-3.1-8B
    for memory, blocks in ((23.52, 2588), (139.8, 56105)):  # RTX 4090, H200
        weights = 2.0 * 8.03e9 / 2**30
        found = kv_blocks(0.9 * memory - weights - 1.2, **shape)
        assert found == pytest.approx(blocks, rel=0.02)
    assert kv_blocks(1.0, **shape) == 512
    assert kv_blocks(1.0, **shape, bytes_per_value=1, block_size=32) == 512


def test_requests_that_were_given_up_count_in_what_an_engine_carries(monkeypatch):
    """The slowest tenth timed out: left out, the engine seems to carry less."""
    monkeypatch.setattr(sys.modules["llminfer.capacity"], "_DRAWS", 2)
    config = ENGINE.replace(num_requests=600, kv_blocks=None, arrival_rate=5.2)
    log = the_log(config, 600)
    late = log.latency > np.quantile(log.latency, 0.9)
    cut = {
        name: np.where(late, np.nan, getattr(log, name))
        for name in ("first_token_time", "last_token_time")
    }
    settings = {"batch_size": 16, "step_law": "sum"}
    found = capacity(
        calibrate.fit(replace(log, **cut), settings),
        SLO(tpot=4.0),
        replications=3,
        n_jobs=1,
    )
    assert found.binds == "the queue"
    assert found.rate == pytest.approx(config.max_stable_rate, rel=0.05)


def test_what_is_neither_a_log_nor_fitted_to_one_is_named():
    with pytest.raises(ConfigError, match="what=3: must be"):
        plan(3, LIMITS)
