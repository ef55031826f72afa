"""Random runs for the property tests: small, and of every kind there is."""

from __future__ import annotations

import itertools
import pickle

import numpy as np
import simpy
from hypothesis import strategies as st

from llminfer import (
    LLMInferenceServer,
    SchedulingPolicy,
    ServerByHand,
    SimulationConfig,
    Workload,
)


def copies(config):
    """The same configuration by each way in which one is written and read again."""
    return [
        SimulationConfig.from_json(config.to_json()),
        eval(repr(config), {"SimulationConfig": SimulationConfig}),
        pickle.loads(pickle.dumps(config)),
        SimulationConfig(**config.to_dict()),
        config.replace(),
    ]


class LongestFirst(SchedulingPolicy):
    """A reader's own policy, with an order that stays."""

    name = "Longest-First"

    def sort_requests(self, requests, current_time):
        return sorted(requests, key=lambda r: (-r.expected_output_length, r.id))


class ImpatientFirst(SchedulingPolicy):
    """A reader's own policy, with an order that changes as requests wait."""

    name = "Impatient-First"

    def sort_requests(self, requests, current_time):
        def rank(request):
            waited = current_time - request.queue_entry_time
            return waited < 0.61803, request.prompt_length, request.id

        return sorted(requests, key=rank)


POLICIES = st.sampled_from(
    [
        ("FCFS", {}),
        ("SJF", {}),
        ("Predicted-SJF", {}),
        ("Predicted-SJF", {"prediction_sigma": 0.8}),
        ("Priority", {}),
        ("Priority", {"aging_rate": 2.0, "urgency_weight": 0.3, "base_priority": 4}),
        ("Priority", {"aging_rate": 0.0}),
        (LongestFirst(), {}),
        (ImpatientFirst(), {}),
    ]
)
LENGTHS = st.sampled_from(
    [
        ("lognormal", {"mu": 2, "sigma": 1.0}),
        ("lognormal", {"mu": 2, "sigma": 1.5, "min": 3, "max": 40}),
        ("uniform", {"min": 1, "max": 30}),
        ("truncated_normal", {"mu": 10, "sigma": 6, "min": 1, "max": 25}),
        ("powerlaw", {"alpha": 1.5, "min": 1, "max": 60}),
        (
            "bimodal",
            {
                "short_min": 1,
                "short_max": 4,
                "long_min": 20,
                "long_max": 40,
                "short_prob": 0.7,
            },
        ),
        ("geometric", {"mean": 7}),
        ("geometric", {"mean": 7, "max": 12}),
        ("constant", {"value": 5}),
        ("empirical", {"values": [1, 4, 30], "weights": [5, 3, 1]}),
    ]
)
PATTERNS = st.sampled_from(
    [
        ("constant", {}),
        ("step", {"step_time": 2.0, "step_rate": 40.0}),
        ("step", {"step_time": 1.0, "step_rate": 0.5}),
        ("sinusoidal", {"amplitude": 5.0, "period": 3.0}),
        ("ramp", {"end_rate": 0.7, "duration": 4.0}),
    ]
)


@st.composite
def classes(draw):
    """Request classes: none, or some of which a few bring length laws of their own."""
    found = {}
    for name in draw(st.sampled_from([(), ("chat",), ("chat", "code", "bulk")])):
        found[name] = {"share": draw(st.integers(1, 3))}
        for which in ("prompt", "output"):
            if draw(st.booleans()):
                law, params = draw(LENGTHS)
                found[name] |= {f"{which}_length_dist": law}
                found[name] |= {f"{which}_dist_params": params}
    return found


def exact(most: int, parts: int) -> st.SearchStrategy[float]:
    """Multiples of 1/``parts``, a power of two: sums of them carry no rounding."""
    return st.integers(0, most).map(lambda i: i / parts)


@st.composite
def server_settings(draw, coefficient):
    """Fields of a configuration that the server reads."""
    policy, params = draw(POLICIES)
    fields = {name: draw(coefficient) for name in ("alpha", "beta", "gamma")}
    if policy == "Priority":  # two ways of rounding may break a tie in two ways
        fields = {"alpha": 0.0013717, "beta": 0.0521, "gamma": 0.00071}
    loads = draw(st.booleans())  # does a decode step feel the batch and its KV cache
    return fields | {
        "delta": draw(coefficient) if loads else 0.0,
        "kappa": draw(coefficient) / 64 if loads else 0.0,
        "epsilon": draw(coefficient) / 64 if loads else 0.0,
        "step_law": (law := draw(st.sampled_from(["sum", "roofline"]))),
        "launch": draw(coefficient) if law == "roofline" else 0.0,
        "graph_tokens": draw(st.integers(0, 30)),
        "batch_size": draw(st.integers(1, 8)),
        "batch_timeout": draw(st.none() | st.just(0.0) | exact(128, 32)),
        "scheduling_policy": policy,
        "scheduling_policy_params": params,
        "warmup_requests": 0,
        "random_seed": draw(st.integers(0, 2**32)),
    }


@st.composite
def exact_runs(draw):
    """Runs in binary fractions: simultaneous arrivals, and events that coincide."""
    config = SimulationConfig(**draw(server_settings(exact(32, 256))))
    n = draw(st.integers(1, 30))
    gaps = draw(st.lists(exact(12, 16) | st.just(0.0), min_size=n, max_size=n))
    lengths = st.lists(st.integers(1, 12), min_size=n, max_size=n)
    arrivals = list(itertools.accumulate(gaps))
    return config, Workload.from_arrays(arrivals, draw(lengths), draw(lengths))


@st.composite
def synthetic_runs(draw):
    """Runs of generated workloads: every law, pattern and kind of burst."""
    prompt_law, prompt_params = draw(LENGTHS)
    output_law, output_params = draw(LENGTHS)
    pattern, pattern_params = draw(PATTERNS)
    config = SimulationConfig(
        arrival_rate=draw(st.sampled_from([5.0, 11.0, 60.0])),
        arrival_pattern=pattern,
        arrival_pattern_params=pattern_params,
        arrival_cv=draw(st.sampled_from([1.0, 0.0, 0.4, 3.0])),
        prompt_length_dist=prompt_law,
        prompt_dist_params=prompt_params,
        output_length_dist=output_law,
        output_dist_params=output_params,
        request_classes=draw(classes()),
        num_requests=draw(st.integers(1, 40)),
        **draw(server_settings(st.floats(1e-4, 0.02))),
    )
    return config, Workload.generate(config)


RUNS = exact_runs() | synthetic_runs()


def serve_columns(config, workload):
    """The record of the workload's own run."""
    env = simpy.Environment()
    server = LLMInferenceServer(env, config, workload)
    env.process(server.run())
    env.run()
    return server.record


def serve_by_hand(config, workload):
    """The record of a server driven by a client process of the reader's own."""
    env = simpy.Environment()
    server = ServerByHand(env, config)

    def client():
        together = itertools.groupby(workload.requests(), lambda r: r.arrival_time)
        for arrival_time, requests in together:
            yield env.timeout(max(arrival_time - env.now, 0.0))
            for request in requests:
                server.enqueue_request(request)
        server.close()

    env.process(client())
    env.process(server.run())
    env.run()
    return server.record


def differing(record, other):
    """The columns of two records that are not the same to the last bit."""
    return [
        name
        for name, column in vars(record).items()
        if not np.array_equal(column, getattr(other, name))
    ]
