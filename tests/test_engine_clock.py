"""Our rules with the clock of a real engine compose what the engine composed."""

from __future__ import annotations

import dataclasses

import pytest
from step_twin import StepTwin

from llminfer import ConfigError, SimulationConfig
from llminfer.data import fetch, read_log, read_steps
from llminfer.request import Request
from llminfer.study.engine_clock import COLUMNS, composed

RUNS = {  # steps of each
    "256x2048-conv-4": 6393,
    "256x2048-conv-10": 5776,
    "256x512-conv-10": 5195,
    "48x2048-kv2000-conv-9": 4730,  # preempts 8 times
    "256x2048-closed-16": 1993,
    "256x512-prefix": 3595,
}
SHORT_OF_MEMORY = "48x2048-kv2000-conv-9"


@pytest.mark.parametrize("run", RUNS)
def test_every_step_holds_what_the_engine_had_in_it(run):
    folder = fetch(f"vllm-h200-{run}")
    steps = read_steps(folder)
    ours = composed(read_log(folder), steps)
    assert len(ours) == RUNS[run]
    assert ours.equals(steps[COLUMNS])


@pytest.mark.parametrize(
    "change",
    [
        {"kv_blocks": 2000},  # one of them is the engine's own
        {"batch_size": 25},
        {"max_batched_tokens": 2047},
        {"async_scheduling": False},
        {"prefix_caching": False},
        {"reserve_full_prompt": False},
    ],
    ids=lambda its: next(iter(its)),
)
def test_another_rule_would_be_noticed(change):
    folder = fetch(f"vllm-h200-{SHORT_OF_MEMORY}")
    log, steps = read_log(folder), read_steps(folder)
    changed = dataclasses.replace(log, settings={**log.settings, **change})
    assert not composed(changed, steps).equals(steps[COLUMNS])


def test_the_twin_composes_them_too():
    """It judges the server on random runs, and the engine judges it."""
    folder = fetch(f"vllm-h200-{SHORT_OF_MEMORY}")
    log, steps = read_log(folder), read_steps(folder)
    ours = composed(log, steps.head(2500))  # with all that are preempted
    twin, before = StepTwin(SimulationConfig(**log.settings)), None
    work = log.workload
    asked = work.prompt_length.tolist(), work.output_length.tolist()
    left = list(zip(sorted(log.queued_time), *asked, strict=True))
    for step, its in zip(steps.itertuples(), ours.itertuples(), strict=False):
        while left and left[0][0] <= step.begin:
            number = len(twin.everyone)
            twin.arrive(Request(number, *left.pop(0)))
        twin.now = step.begin
        made = twin.compose(step.begin)
        assert (made.prefilled, made.decoding) == (its.prefill_tokens, its.decode_seqs)
        if before is not None:
            twin.end(before)
        made.end, before = step.done, made


@pytest.mark.parametrize("settings", [{}, {"server": "continuous", "replicas": 2}])
def test_it_takes_the_settings_of_one_engine(settings):
    folder = fetch(f"vllm-h200-{SHORT_OF_MEMORY}")
    log = dataclasses.replace(read_log(folder), settings=settings)
    with pytest.raises(ConfigError, match="must be those of one engine"):
        composed(log, read_steps(folder))
