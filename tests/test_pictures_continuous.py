"""The panel on continuous batching, moved by hand."""

from __future__ import annotations

import numpy as np
import pytest

from llminfer import SimulationConfig
from llminfer.panels.gallery import ContinuousPicture
from llminfer.panels.panel import Panel

START = SimulationConfig.from_preset(
    "llama-3.1-8b-rtx4090",
    server="continuous",
    prompt_dist_params={"mu": 4, "sigma": 1.5, "max": 8192},
    output_length_dist="lognormal",
    output_dist_params={"mu": 5, "sigma": 0.8, "max": 2048},
    arrival_rate=4.0,
    batch_size=128,
    kv_blocks=1024,
    random_seed=42,
)
MOVED = ["arrival_rate", "batch_size", "max_batched_tokens", "kv_blocks"]


@pytest.fixture
def panel():
    picture = ContinuousPicture()
    picture.requests = 400
    return Panel(START, picture, [*MOVED, "chunked_prefill"])


def points(panel, name):
    return np.array(panel.picture.lines[name].get_data())


def reading(panel, name, server="continuous"):
    said = panel.picture.update(panel.config)[name][server]
    return float(said.split()[0].replace(",", ""))


def test_the_first_token_comes_before_the_last_and_earlier_than_static(panel):
    first, last = points(panel, "continuous ttft"), points(panel, "continuous latency")
    assert (first[0] < last[0]).all()
    assert np.median(points(panel, "static ttft")[0]) > 5.0 * np.median(first[0])


def test_less_memory_is_fuller_and_preempts(panel):
    wide = points(panel, "held")[1]
    assert reading(panel, "preemptions") == 0.0
    panel.controls["kv_blocks"].value = 640
    panel.controls["arrival_rate"].value = 9.0
    assert points(panel, "held")[1].mean() > 1.2 * wide.mean()
    assert points(panel, "held")[1].max() <= 1.0
    assert reading(panel, "preemptions") > 0.0


def test_no_limit_has_no_curve_of_blocks(panel):
    panel.controls["kv_blocks"].value = float("inf")
    assert panel.config.kv_blocks is None
    assert np.isnan(points(panel, "held")[1]).all()
    assert "Error" not in panel.load.value


def test_a_batch_limit_holds(panel):
    panel.controls["batch_size"].value = 4
    assert points(panel, "running")[1].max() <= 4.0 + 1e-9
    assert points(panel, "waiting")[1].max() > 4.0


def test_whole_prompts_and_small_budgets_change_the_server_alone(panel):
    static = points(panel, "static latency")
    ttft = points(panel, "continuous ttft")
    panel.controls["max_batched_tokens"].value = 256
    slower = points(panel, "continuous ttft")
    assert slower[0].max() > ttft[0].max()
    panel.controls["chunked_prefill"].value = False
    assert panel.config.chunked_prefill is False
    assert not np.array_equal(points(panel, "continuous ttft"), slower)
    assert np.array_equal(points(panel, "static latency"), static)


def test_memory_too_small_for_a_request_is_said_in_words(panel):
    panel.base = panel.config = panel.config.replace(block_size=1)
    panel.controls["kv_blocks"].value = 640
    assert "ConfigError: kv_blocks=640: must be at least" in panel.load.value


def test_goodput_falls_below_the_rate_where_first_tokens_come_late(panel):
    told = "goodput (TTFT ≤ 1 s, TPOT ≤ 0.1 s)"
    assert reading(panel, told) > 0.8 * START.arrival_rate
    panel.controls["batch_size"].value = 4
    assert reading(panel, told) < 0.2 * START.arrival_rate
    assert reading(panel, told, "static") < reading(panel, told) + 0.1
