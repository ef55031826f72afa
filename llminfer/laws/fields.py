"""What each field of a configuration must be, whatever the others are."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from llminfer.base.errors import MOST_SEED, choice, fail, number, numbers, truth, whole
from llminfer.base.frozen import Classes, frozen_classes, frozen_params, plain
from llminfer.laws.engines import COEFFICIENTS, STEP_LAWS
from llminfer.laws.people import people_law

SERVERS = ("static", "continuous")
ROUTERS = ("round_robin", "random", "least_loaded", "shortest_queue")
CACHE_ROUTERS = ("session", "longest_prefix")

_PARAMS = ("arrival_pattern", "prompt_dist", "output_dist", "batch_control")
_SWITCHES = ("chunked_prefill", "reserve_full_prompt", "prefix_caching")
_SIZES = ("batch_size", "max_batched_tokens", "kv_blocks", "block_size", "replicas")
_CLIENTS = ("max_concurrency", "clients", "queue_limit")
_LAWS = ("think_time", "turns", "patience", "request_timeout")
_COUNTS = ("graph_tokens", "warmup_requests")
_EACH = {"replicas": 10**4, "clients": 10**6, "block_size": 2**20}  # takes memory


def _checked_classes(name: str, given: Any) -> Classes:
    """Classes whose fields, where a configuration has them too, are as there."""
    classes = frozen_classes(name, given)
    for key, its in classes.items():
        for field in its.keys() & CHECKS.keys():
            if its[field] is not None:
                CHECKS[field](f"{name}.{key}.{field}", its[field])
    return classes


CHECKS: Mapping[str, Callable[[str, Any], Any]] = {
    **{f"{name}_params": frozen_params for name in (*_PARAMS, "scheduling_policy")},
    "shared_prefixes": frozen_params,
    "arrival_rate": partial(number, above=0.0),
    "arrival_cv": partial(number, least=0.0, most=100.0),
    "arrival_gaps": lambda name, gaps: numbers(name, plain(gaps), 0.0),
    **dict.fromkeys(("batch_timeout", *COEFFICIENTS), partial(number, least=0.0)),
    **dict.fromkeys((*_SIZES, "num_requests", *_CLIENTS), partial(whole, least=1)),
    **{name: partial(whole, least=1, most=most) for name, most in _EACH.items()},
    **dict.fromkeys(_LAWS, people_law),
    **dict.fromkeys(_COUNTS, partial(whole, least=0)),
    "random_seed": partial(whole, least=0, most=MOST_SEED),
    "server": partial(choice, known=SERVERS),
    "step_law": partial(choice, known=STEP_LAWS),
    "router": partial(choice, known=ROUTERS + CACHE_ROUTERS),
    **dict.fromkeys((*_SWITCHES, "async_scheduling"), truth),
    "request_classes": _checked_classes,
}
_NONE = ("arrival_gaps", "batch_timeout", "kv_blocks", "random_seed")
MAY_BE_NONE = (*_NONE, *_CLIENTS, *_LAWS[1:])


def _policy_classes(name: str, given: Any) -> None:
    """Refuse what is no tuple of request classes."""
    kinds = {type(its).__name__ for its in given} if isinstance(given, tuple) else {0}
    if kinds - {"RequestClass"}:
        raise fail(name, given, "a tuple of RequestClass by number")


_AT_LEAST_0 = "alpha", "beta", "gamma", "aging_rate", "urgency_weight"
POLICY_CHECKS: Mapping[str, Callable[[str, Any], Any]] = {
    **dict.fromkeys(_AT_LEAST_0, partial(number, least=0.0)),
    "base_priority": number,
    "prediction_sigma": partial(number, least=0.0, most=20.0),
    "random_seed": partial(whole, least=0, most=MOST_SEED),
    "request_classes": _policy_classes,
}
