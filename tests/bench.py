"""How fast the static server is, beside a brute-force twin: ``python tests/bench.py``.

One core, no store. Each function prints its own lines. Requests a second are of CPU
time, so that what else runs on the machine matters little; a slider's move is timed
by the clock on the wall.
"""

from __future__ import annotations

import statistics
import time
import tracemalloc

import simpy
from twin import run_twin

from llminfer import LLMInferenceServer, SimulationConfig, SimulationRunner, Workload
from llminfer.panels import gallery
from llminfer.panels.panel import Panel
from llminfer.panels.picture import BatchSizePicture, LatencyPicture

REQUESTS = 100_000
REPETITIONS = 5
TWIN_REQUESTS = 5_000
GREEDY = SimulationConfig(
    arrival_rate=5.0, batch_timeout=0.0, num_requests=REQUESTS, random_seed=42
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


BENCHES = [speed, against_the_twin, memory, events, sliders]

if __name__ == "__main__":
    for bench in BENCHES:
        bench()
