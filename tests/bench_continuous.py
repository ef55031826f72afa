"""How fast the continuous server is, beside its twin that takes every step.

One core, no store, CPU time, sampling and metrics included.
"""

from __future__ import annotations

import math
import tracemalloc
import warnings

from bench import best_times
from continuous_cases import serve
from step_twin import run_twins

from llminfer import SimulationConfig, SimulationRunner, Workload, simulate

REQUESTS = 100_000
TWIN_REQUESTS = 3_000
BUSY = SimulationConfig(
    server="continuous",
    arrival_rate=8.0,
    prompt_dist_params={"mu": 6, "sigma": 1},
    output_length_dist="lognormal",
    output_dist_params={"mu": math.log(200), "sigma": 0.7},
    batch_size=256,
    alpha=8.8e-5,
    beta=0.0,
    gamma=0.016,
    delta=5e-5,
    kappa=1.4e-7,
    num_requests=REQUESTS,
    random_seed=42,
)
LONG = {"output_dist_params.mu": math.log(800), "arrival_rate": 2.0}
RUNS = {
    "256 sequences, lambda = 8": BUSY,
    "outputs 4 x, lambda = 2": BUSY.replace(**LONG),
    "2,588 KV blocks, lambda = 8": BUSY.replace(kv_blocks=2588),
    "2,588 KV blocks, lambda = 4": BUSY.replace(kv_blocks=2588, arrival_rate=4.0),
    "256 sequences, lambda = 4": BUSY.replace(arrival_rate=4.0),
}

# Users, impatience and the prefix cache, at a load of about 0.8
PLAIN = SimulationConfig(server="continuous", num_requests=20_000, random_seed=42)
PLAIN = PLAIN.replace(arrival_rate=0.8 * PLAIN.max_stable_rate)
LIMIT = {"dist": "exponential", "mean": 60.0}
USERS = {"clients": 64, "think_time": {"dist": "exponential", "mean": 5.0}}
TURNS = {**USERS, "turns": {"dist": "geometric", "mean": 4}, "prefix_caching": True}
SHARED = {"count": 8, "tokens": 512, "zipf": 1.0}
SHARED = {"shared_prefixes": SHARED, "prefix_caching": True}
LIMITS = {"patience": LIMIT, "request_timeout": LIMIT, "queue_limit": 100}
ALL = {**USERS, **LIMITS, "max_concurrency": 48}
BLOCKS = {"kv_blocks": 4_000}
FEATURES = {
    "none": {},
    "max_concurrency": {"max_concurrency": 24},
    "queue_limit": {"queue_limit": 100},
    "patience": {"patience": LIMIT},
    "request_timeout": {"request_timeout": LIMIT},
    "clients": USERS,
    "all of these": ALL,
    "system prompts": SHARED,
    "turns": TURNS,
    "turns, system prompts": TURNS | SHARED,
    "turns, 4,000 KV blocks": TURNS | BLOCKS,
    "all of these with a cache": ALL | TURNS | SHARED,
}
OFF = {name: getattr(SimulationConfig(), name) for name in (*ALL, *TURNS, *SHARED)}


def run(config):
    """A run under a warning-free roof: overload is on purpose here."""
    workload = Workload.generate(config)
    return SimulationRunner(config, workload).run()


def speed():
    """Requests a second, sampling and metrics included."""
    tasks = {name: lambda c=config: run(c) for name, config in RUNS.items()}
    for name, seconds in best_times(tasks, repetitions=3).items():
        print(f"{name:32}{REQUESTS / seconds:12,.0f} requests/s")


def features():
    """What users, impatience and a prefix cache cost, beside a run without them.

    The other run is of the same steps: who was answered comes when he was sent, with a
    prompt of what was computed of it. So it has as many steps, as long, and the table
    says what deciding costs who comes when and what a cache holds. Memory stays as
    it is: with a limit of blocks the other run may hold a little more in them.
    """
    for name, fields in FEATURES.items():
        config = PLAIN.replace(**fields)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # many give up: it is on purpose
            plain, work = config.replace(**OFF), as_sent(simulate(config))
            tasks = {"with": lambda: simulate(config)}  # noqa: B023
            tasks["without"] = lambda: simulate(plain, work)  # noqa: B023
            seconds = best_times(tasks)
        us = 1e6 * seconds["with"] / config.num_requests
        times = us / (1e6 * seconds["without"] / len(work))
        print(f"{name:32}{us:12.1f} us a request, {times:.2f} times plain")


def as_sent(record):
    """A workload of those who were answered, without what they found in the cache."""
    done, found = record.measured(), record.steps.cached_tokens
    prompt = record.prompt_length if found is None else record.prompt_length - found
    columns = record.sent_time, prompt, record.output_length
    return Workload.from_arrays(*(column[done] for column in columns))


def against_the_twin():
    """The same requests, step by step and token by token."""
    for name, config in RUNS.items():
        some = config.replace(num_requests=TWIN_REQUESTS)
        workload = Workload.generate(some)
        seconds = best_times(
            {"twin": lambda: run_twins(some, workload), "ours": lambda: run(some)},  # noqa: B023
            repetitions=3,
        )
        ratio = seconds["twin"] / seconds["ours"]
        print(f"{name:32}{ratio:12,.0f} times as fast as the twin")


def growth():
    """CPU time a request in runs of ten thousand and of a million."""
    for name, config in list(RUNS.items())[:3:2]:
        few, many = (config.replace(num_requests=n) for n in (10_000, 1_000_000))
        least = best_times({"few": lambda: run(few)})["few"]  # noqa: B023
        most = best_times({"many": lambda: run(many)}, repetitions=1)["many"]  # noqa: B023
        ratio = most / least / 100.0
        print(f"{name:32}{ratio:12.2f} times as long a request in a million")


def memory():
    """Most bytes a request held at once, beyond the table of requests."""
    run(BUSY.replace(num_requests=1_000))  # what is made once is no request's
    for name, config in RUNS.items():
        workload = Workload.generate(config)
        tracemalloc.start()
        SimulationRunner(config, workload).run()
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        print(f"{name:32}{peak / len(workload):12,.0f} bytes a request")


def stretches():
    """Stretches of equal steps a request, each one SimPy event, and steps in each."""
    for name, config in RUNS.items():
        record = serve(config, Workload.generate(config.replace(num_requests=10_000)))
        rows, steps = len(record.batch_start), record.steps.batch_steps.sum()
        each = f"of {steps / rows:.1f} steps each"
        print(f"{name:32}{rows / 10_000:12.2f} SimPy events a request, {each}")


BENCHES = [speed, features, against_the_twin, growth, memory, stretches]

if __name__ == "__main__":
    for bench in BENCHES:
        bench()
