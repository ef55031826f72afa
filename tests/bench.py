"""How fast the static server is, beside a brute-force twin: ``python tests/bench.py``.

One core, no store. Each function prints its own lines. Requests a second are of CPU
time, so that what else runs on the machine matters little; a slider's move is timed
by the clock on the wall.
"""

from __future__ import annotations

import statistics
import time
import tracemalloc
import warnings

import simpy
from twin import run_twin

from llminfer import (
    LLMInferenceServer,
    SimulationConfig,
    SimulationRunner,
    Workload,
    simulate,
)
from llminfer.panels import gallery
from llminfer.panels.panel import Panel
from llminfer.panels.picture import BatchSizePicture, LatencyPicture

REQUESTS = 100_000
REPETITIONS = 5
TWIN_REQUESTS = 5_000
GREEDY = SimulationConfig(
    arrival_rate=5.0, batch_timeout=0.0, num_requests=REQUESTS, random_seed=42
)


THINK = {"dist": "exponential", "mean": 1.0}
FEATURES = {
    "plain": {},
    "max_concurrency": {"max_concurrency": 64},
    "clients": {"clients": 64, "think_time": THINK},
    "queue_limit": {"queue_limit": 200},
    "patience": {"patience": {"dist": "exponential", "mean": 300.0}},
    "request_timeout": {"request_timeout": 60.0},
}
ROUTERS = ["round_robin", "least_loaded", "shortest_queue", "session", "longest_prefix"]
BEHIND = SimulationConfig(
    server="continuous",
    batch_size=16,
    prompt_dist_params={"mu": 5, "sigma": 1},
    shared_prefixes={"count": 200, "tokens": 256},
    prefix_caching=True,
    kv_blocks=4000,
    output_length_dist="geometric",
    output_dist_params={"mean": 60},
    alpha=1e-4,
    beta=0.0,
    gamma=0.01,
    num_requests=5000,
    random_seed=3,
)


class CountingEnvironment(simpy.Environment):
    """A SimPy environment that counts the events it is given."""

    events = 0

    def schedule(self, *args, **kwargs):
        self.events += 1
        super().schedule(*args, **kwargs)


def at_load(load, **changes):
    """The greedy configuration at a share of the most it can carry."""
    config = GREEDY.replace(**changes)
    return config.replace(arrival_rate=load * config.max_stable_rate)


RUNS = {
    "FCFS, B = 32, lambda = 5": GREEDY,
    "SJF, B = 32, load 0.9": at_load(0.9, scheduling_policy="SJF"),
    "Priority, B = 32, load 0.9": at_load(0.9, scheduling_policy="Priority"),
    "FCFS, B = 1, lambda = 3": GREEDY.replace(batch_size=1, arrival_rate=3.0),
}


def best_times(tasks, repetitions=REPETITIONS):
    """The least CPU seconds of a few repetitions of each, taken in turns."""
    seconds = {name: [] for name in tasks}
    for _ in range(repetitions):
        for name, task in tasks.items():
            start = time.process_time()
            task()
            seconds[name].append(time.process_time() - start)
    return {name: min(times) for name, times in seconds.items()}


def speed():
    """Requests a second, sampling and metrics included."""
    tasks = {name: SimulationRunner(config).run for name, config in RUNS.items()}
    for name, seconds in best_times(tasks).items():
        print(f"{name:32}{REQUESTS / seconds:12,.0f} requests/s")


def against_the_twin():
    """The same requests through an event an arrival and an event a token."""
    config = GREEDY.replace(num_requests=TWIN_REQUESTS)
    workload = Workload.generate(config)
    seconds = best_times(
        {
            "twin": lambda: run_twin(config, workload),
            "ours": SimulationRunner(config).run,
        }
    )
    name = "twin, FCFS, B = 32, lambda = 5"
    print(f"{name:32}{TWIN_REQUESTS / seconds['twin']:12,.0f} requests/s")
    ratio = seconds["twin"] / seconds["ours"]
    print(f"{'times as fast as the twin':32}{ratio:12,.0f}")


def features():
    """Users, gate and limits: microseconds a request, and times a plain run."""
    for policy in ("FCFS", "SJF"):
        plain = at_load(0.8, scheduling_policy=policy, num_requests=20_000)
        runs = {name: plain.replace(**fields) for name, fields in FEATURES.items()}
        tasks = {name: SimulationRunner(config).run for name, config in runs.items()}
        with warnings.catch_warnings(action="ignore"):
            least = best_times(tasks)
        for name, seconds in least.items():
            each, ratio = 1e6 * seconds / 20_000, seconds / least["plain"]
            print(f"{policy + ', ' + name:32}{each:12.2f} us a request, {ratio:.2f} x")


def routers():
    """Microseconds a request of a router, at 1, 8 and 64 replicas."""
    for router in ROUTERS:
        each = []
        for replicas in (1, 8, 64):
            config = BEHIND.replace(
                router=router, replicas=replicas, arrival_rate=3.0 * replicas
            )
            workload = Workload.generate(config)
            task = {"": lambda: simulate(config, workload)}  # noqa: B023
            seconds = best_times(task, repetitions=2)[""]
            each.append(1e6 * seconds / config.num_requests)
        shown = ", ".join(f"{its:.0f}" for its in each)
        print(f"{router:32}{shown:>12} us a request at 1, 8, 64 replicas")


def memory():
    """Most bytes a request held at once, beyond the table of requests."""
    for name, config in RUNS.items():
        workload = Workload.generate(config)
        runner = SimulationRunner(config, workload)
        runner.run()  # what is made once, in the first run, is no request's
        tracemalloc.start()
        runner.run()
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        print(f"{name:32}{peak / len(workload):12,.0f} bytes a request")


def events():
    """SimPy events a batch."""
    for name, config in RUNS.items():
        env = CountingEnvironment()
        server = LLMInferenceServer(env, config, Workload.generate(config))
        env.process(server.run())
        env.run()
        batches = len(server.record.batch_size)
        print(f"{name:32}{env.events / batches:12.3f} SimPy events a batch")


def sliders():
    """From a slider's move to the picture's new data, median of twenty moves."""
    base = gallery.REPORT
    for picture in (LatencyPicture(), BatchSizePicture()):
        panel = Panel(base, picture, controls=["arrival_rate", "alpha"])
        seconds = []
        for move in range(20):
            slider = panel.controls["alpha" if move % 2 else "arrival_rate"]
            start = time.perf_counter()
            slider.value *= 1.02
            seconds.append(time.perf_counter() - start)
        name = f"a slider of the {type(picture).__name__}"
        print(f"{name:32}{1e3 * statistics.median(seconds):12.0f} ms")


BENCHES = [speed, features, routers, against_the_twin, memory, events, sliders]

if __name__ == "__main__":
    for bench in BENCHES:
        bench()
