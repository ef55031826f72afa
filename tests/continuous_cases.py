"""Random runs of the continuous server: small, and under every setting there is."""

from __future__ import annotations

import itertools

import simpy
from cases import ImpatientFirst, LongestFirst, exact
from hypothesis import strategies as st

from llminfer import ContinuousBatchingServer, SimulationConfig, Workload

CLASSES = {
    "chat": {"share": 2, "weight": 3},
    "code": {"base_priority": 0.2},
    "bulk": {},
}
POLICIES = st.sampled_from(
    [
        ("FCFS", {}),
        ("SJF", {}),
        ("Predicted-SJF", {"prediction_sigma": 0.8}),
        ("Priority", {"aging_rate": 2.0}),
        ("SJF-Aging", {}),
        ("Class-RR", {}),
        ("WFQ", {}),
        (LongestFirst(), {}),
        (ImpatientFirst(), {}),
    ]
)


@st.composite
def limits(draw, time):
    """Fields that set the batch limit, and the token budget that goes with them."""
    size = draw(st.integers(1, 6))
    law = draw(st.sampled_from(["static"] * 5 + ["queue", "rate", "latency"]))
    params = {}
    most = size
    if law != "static":
        most = draw(st.integers(size, 8))
        params = {"max_size": most, "interval": draw(st.just(0.0) | time)}
        params |= {"window": 2.0} if law != "queue" else {"k": 0.4}
        params |= {"target": 1.5, "backoff": 0.5} if law == "latency" else {}
    return {
        "batch_size": size,
        "batch_control": law,
        "batch_control_params": params,
        "max_batched_tokens": most + draw(st.sampled_from([0, 0, 1, 3, 10, 100])),
    }


@st.composite
def memory(draw, prompts, outputs):
    """Fields of the KV memory: none, just enough for each request alone, or more."""
    size = draw(st.sampled_from([1, 2, 3, 4, 16]))
    needs = [-(-(p + o - 1) // size) for p, o in zip(prompts, outputs, strict=True)]
    spare = draw(st.sampled_from([0, 0, 1, 3]) | st.integers(0, 3 * max(needs)))
    return {
        "block_size": size,
        "kv_blocks": draw(st.sampled_from([None, *[max(needs) + spare] * 3])),
        "chunked_prefill": draw(st.booleans()),
        "reserve_full_prompt": draw(st.booleans()),
        "prefix_caching": draw(st.booleans()),
    }


@st.composite
def runs(draw, number, coefficient, **fields):
    """A configuration and a workload.

    Args:
        number: Strategy of times, in seconds.
        coefficient: Strategy of seconds a token or step.
        fields: Strategies of more fields.
    """
    n = draw(st.integers(1, 25))
    tokens = st.lists(st.integers(1, draw(st.sampled_from([3, 12, 50]))), **_sized(n))
    prompts, outputs = draw(tokens), draw(tokens)
    rush = draw(st.sampled_from([1, 4, 32]))
    gaps = draw(st.lists(st.just(0.0) | number, **_sized(n)))
    arrivals = [t / rush for t in itertools.accumulate(gaps)]
    policy, params = draw(POLICIES)
    law = {name: draw(coefficient) for name in ("alpha", "beta", "gamma", "delta")}
    config = SimulationConfig(
        server="continuous",
        scheduling_policy=policy,
        scheduling_policy_params=params,
        request_classes=CLASSES,
        kappa=draw(coefficient) / 64.0,
        epsilon=draw(coefficient) / 64.0,
        step_law=(step_law := draw(st.sampled_from(["sum", "roofline"]))),
        launch=draw(coefficient) if step_law == "roofline" else 0.0,
        graph_tokens=draw(st.integers(0, 30)),
        async_scheduling=draw(st.booleans()),
        warmup_requests=0,
        random_seed=draw(st.integers(0, 99)),
        **law,
        **draw(memory(prompts, outputs)) | {f: draw(its) for f, its in fields.items()},
    )
    classes = draw(st.lists(st.integers(0, 2), **_sized(n)))
    return config, Workload.from_arrays(arrivals, prompts, outputs, classes)


@st.composite
def shared(draw, run):
    """Runs whose prompts, and some answers, are on paths with much in common."""
    config, workload = draw(run)
    tree = draw(st.lists(st.integers(1, 30), min_size=1, max_size=6))  # tokens by id
    paths = []
    asks = zip(workload.prompt_length, workload.output_length, strict=True)
    for prompt, output in asks:
        path = []
        room = int(prompt + output)
        while room and draw(st.integers(0, 4)):
            name = draw(st.integers(0, len(tree) - 1))
            path.append((name, min(tree[name], room)))
            room -= path[-1][1]
        paths.append(path)
    columns = workload.columns.values()
    return config, Workload.from_arrays(*columns, segments=paths)


@st.composite
def of_classes(draw, run):
    """Runs whose requests are drawn anew, in classes with lengths of their own.

    Each class has the rows of some of the requests that were there, a prompt with its
    output or each by itself, so that memory still has room for every one alone.
    """
    config, workload = draw(run)
    n = len(workload)
    classes = {}
    for k, name in enumerate(CLASSES):
        rows = slice(min(k, n - 1), n, draw(st.integers(1, 3)))
        prompt, output = workload.prompt_length[rows], workload.output_length[rows]
        together = draw(st.booleans()) or config.kv_blocks is not None
        classes[name] = CLASSES[name] | {
            "prompt_length_dist": "empirical",
            "prompt_dist_params": {"values": prompt},
            "output_length_dist": "paired" if together else "empirical",
            "output_dist_params": {"values": output},
        }
    config = config.replace(request_classes=classes, num_requests=n)
    drawn = Workload.generate(config).columns
    arrivals = {"arrival_time": workload.arrival_time}
    return config, Workload.from_arrays(*(drawn | arrivals).values())


def _sized(n):
    return {"min_size": n, "max_size": n}


def _with_limits(pair, fields):
    config, workload = pair
    return config.replace(**fields), workload


def limited(run, time):
    """Runs with a batch limit of every kind."""
    return st.builds(_with_limits, run, limits(time))


# Binary fractions: arrivals, steps and ticks coincide, and no sum carries rounding.
EXACT = limited(runs(exact(64, 16), exact(32, 256)), exact(64, 16).filter(bool))
FLOATS = st.just(0.0) | st.floats(1e-4, 0.1)
FREE = limited(runs(st.floats(0.0, 3.0), FLOATS), st.floats(0.01, 5.0))


def serve(config, workload):
    """The record of a continuous run."""
    env = simpy.Environment()
    server = ContinuousBatchingServer(env, config, workload)
    env.process(server.run())
    env.run()
    return server.record
