"""What the laws of ``theory`` take for granted, checked on a configuration.

Each raises a ``ConfigError`` that names the field, its value and what would do.
"""

from __future__ import annotations

from llminfer.base.errors import ConfigError, fail
from llminfer.config import SimulationConfig
from llminfer.laws.lengths import LengthLaw
from llminfer.policies import FCFSPolicy
from llminfer.theory.service_time import token_pmf
from llminfer.theory.single_server import check_load, orders_as


def served_by(server: str, config: SimulationConfig) -> None:
    """The server is the one the law is about, and its steps are the report's."""
    needs = {"step_law": "sum", "epsilon": 0.0, "async_scheduling": False}
    for name, must in {"server": server, **needs}.items():
        if getattr(config, name) != must:
            raise fail(name, getattr(config, name), f"{must} for this law")


def steady(config: SimulationConfig) -> None:
    """Nothing changes as the run goes on."""
    for name, must in (("arrival_pattern", "constant"), ("batch_control", "static")):
        if getattr(config, name) != must:
            raise fail(name, getattr(config, name), f"{must} for this law")


def poisson(config: SimulationConfig) -> None:
    """Poisson arrivals at a constant rate."""
    steady(config)
    for name, must in (("arrival_cv", 1), ("arrival_gaps", None)):
        if (value := getattr(config, name)) != must:
            raise fail(name, value, f"{must} (Poisson) for this law")


def is_first_come(config: SimulationConfig) -> bool:
    """Whether the policy is FCFS itself: a subclass may order otherwise."""
    return orders_as(config.policy(), FCFSPolicy)


def one_server(config: SimulationConfig) -> None:
    """There are no replicas."""
    if config.replicas > 1:
        raise fail("replicas", config.replicas, "1 for this law")


def without_kv_limit(config: SimulationConfig) -> None:
    """KV memory never runs out."""
    if config.kv_blocks is not None:
        raise fail("kv_blocks", config.kv_blocks, "None for this law")


def first_come(config: SimulationConfig) -> None:
    """FCFS."""
    if not is_first_come(config):
        raise fail("scheduling_policy", config.policy().name, "FCFS for this law")


def single(config: SimulationConfig) -> None:
    """A static server that takes one Poisson request at a time."""
    served_by("static", config)
    poisson(config)
    if config.batch_size != 1:
        raise fail("batch_size", config.batch_size, "1: requests are served one by one")


def least_batch(config: SimulationConfig) -> int:
    """Requests that a static batch waits for, if the bulk queue has an answer."""
    served_by("static", config)
    poisson(config)
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
    without_kv_limit(config)
    one_server(config)
    must = "for the chain, which knows no such limit"
    if not config.chunked_prefill:
        raise fail("chunked_prefill", False, f"True {must}")
    largest = config.batch_size * (len(token_pmf(config.prompts)) - 1)
    if config.max_batched_tokens < largest:
        limit = config.max_batched_tokens
        raise fail("max_batched_tokens", limit, f"at least {largest} {must}")
