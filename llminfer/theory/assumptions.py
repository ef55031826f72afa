"""What the laws of ``theory`` take for granted, checked on a configuration.

Each raises a ``ConfigError`` that names the field, its value and what would do.
"""

from __future__ import annotations

from typing import Any

from llminfer.base.errors import ConfigError, fail
from llminfer.config import SimulationConfig
from llminfer.laws.lengths import LengthLaw
from llminfer.policies import FCFSPolicy
from llminfer.theory.service_time import token_pmf
from llminfer.theory.single_server import check_load, orders_as

REPORTS_STEPS = {"step_law": "sum", "epsilon": 0.0, "async_scheduling": False}
STEADY = {"arrival_pattern": "constant", "batch_control": "static"}
POISSON = {**REPORTS_STEPS, **STEADY, "arrival_cv": 1.0}


def require(config: SimulationConfig, **must: Any) -> None:
    """Fields have the values that a law takes for granted."""
    for name, value in must.items():
        if getattr(config, name) != value:
            raise fail(name, getattr(config, name), f"{value} for this law")


def first_come(config: SimulationConfig) -> None:
    """FCFS itself: a subclass may order otherwise."""
    if not orders_as(config.policy(), FCFSPolicy):
        raise fail("scheduling_policy", config.policy().name, "FCFS for this law")


def single(config: SimulationConfig) -> None:
    """A static server that takes one Poisson request at a time."""
    require(config, server="static", **POISSON, batch_size=1)


def least_batch(config: SimulationConfig) -> int:
    """Requests that a static batch waits for, if the bulk queue has an answer."""
    require(config, server="static", **POISSON)
    first_come(config)
    most, timeout = config.batch_size, config.batch_timeout
    if most > 1 and timeout is not None and timeout > 0.0:
        raise fail("batch_timeout", timeout, "0 or None for the bulk queue")
    check_load(config.arrival_rate, config.max_stable_rate)
    return most if timeout is None else 1


def listed(config: SimulationConfig, which: str) -> LengthLaw:
    """The law of ``which`` lengths, prompt or output, if it can be listed."""
    law = config.prompts if which == "prompt" else config.outputs
    try:
        token_pmf(law)
    except ConfigError as error:
        raise ConfigError(f"{which}_dist_params.{error}") from None
    return law


def unlimited(config: SimulationConfig) -> None:
    """No step of a continuous server is cut short."""
    require(config, kv_blocks=None, replicas=1, chunked_prefill=True)
    largest = config.batch_size * (len(token_pmf(config.prompts)) - 1)
    if config.max_batched_tokens < largest:
        must = f"at least {largest} for the chain, which knows no such limit"
        raise fail("max_batched_tokens", config.max_batched_tokens, must)
