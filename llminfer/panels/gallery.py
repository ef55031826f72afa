"""The panels that notebooks share with the stand-alone page, and what they draw."""

from typing import Any

import ipywidgets as w
import numpy as np
from matplotlib.figure import Figure

from llminfer import PRESETS, SimulationConfig, Workload, simulate
from llminfer.base.columns import mean_rate
from llminfer.metrics import MetricsCollector
from llminfer.panels import picture
from llminfer.panels.controls import OUTPUTS, PROMPTS, Control, rounded
from llminfer.panels.panel import Panel
from llminfer.report.figures import DASHES, log_axis
from llminfer.report.timeline import over_time

REPORT = SimulationConfig(  # the course report's server
    arrival_rate=4.0,  # requests/s
    prompt_dist_params={"mu": 4, "sigma": 1.5, "max": 8192},  # up to the context
    batch_size=32,
    batch_timeout=0.0,  # go at once with what is there
    num_requests=10_500,  # of which 500 warm up
    random_seed=42,
)
_RTX4090 = REPORT.replace(  # with Llama-3.1-8B, as vLLM serves it
    **PRESETS["llama-3.1-8b-rtx4090"].coefficients,
    server="continuous",
    output_length_dist="lognormal",
    output_dist_params={"mu": 5, "sigma": 0.8, "max": 2048},  # tokens
)


def start_panel() -> Panel:
    """The course report's static server, with a slider for all that it has."""
    normal = {"min": 10, "max": 500, "step": 10, "readout_format": ".0f"}
    outputs = Control(OUTPUTS, "output (mean tokens)", w.FloatSlider, normal)
    names = ("arrival_rate", PROMPTS, outputs, "alpha", "beta", "gamma", "batch_size")
    return Panel(REPORT, picture.LatencyPicture(), (*names, "batch_timeout"))


def continuous_panel() -> Panel:
    """An RTX 4090 with Llama-3.1-8B, as vLLM serves it and as static batches would."""
    sizes = {"batch_size": 128, "kv_blocks": 1024, "num_requests": 3_500}
    server = _RTX4090.replace(arrival_rate=2.2, **sizes)  # requests/s: both carry it
    names = ["arrival_rate", PROMPTS, OUTPUTS, "alpha", "beta", "gamma", "delta"]
    names += ["kappa", "batch_size", "max_batched_tokens", "chunked_prefill"]
    return Panel(server, ContinuousPicture(), [*names, "kv_blocks"])


def users_panel() -> Panel:
    """Users of an RTX 4090 with Llama-3.1-8B, beside a Poisson stream."""
    server = _RTX4090.replace(
        clients=32,
        think_time={"dist": "exponential", "mean": 5.0},  # seconds
        prompt_dist_params={"mu": 5.5, "sigma": 1.0, "max": 8192},  # tokens
        batch_size=16,
        num_requests=8_000,
    )
    names = ["clients", "think_time.mean", "patience", PROMPTS, OUTPUTS, "alpha"]
    names += ["beta", "gamma", "batch_size", "queue_limit", "replicas", "kv_blocks"]
    return Panel(server, UsersPicture(), names)


class ContinuousPicture(picture.GoodputPicture):
    """Left: the share of requests with their first and last token within a time.

    Of the continuous and of the static server, with a square for those of the
    continuous one within the SLO. Right: how many requests run and wait on the
    continuous server over time, and the share of its KV blocks that is held.

    The static server goes at once with what is there; the token budget and the KV
    blocks are nothing to it.
    """

    requests, warmup = 1200, 100
    of = "the continuous server"

    def servers(self, config: SimulationConfig) -> dict[str, SimulationConfig]:
        static = config.replace(server="static", batch_timeout=0.0)
        return {"continuous": config.replace(server="continuous"), "static": static}

    def compose(self, figure: Figure) -> None:
        left, counts, held = figure.subplot_mosaic("lc;lh").values()
        picture.over_shares(left, 0.01, 1000.0, "seconds from arrival")
        self.add(left, "static latency", 0, "static, last token")
        self.add(left, "static ttft", 0, "static, first token", linestyle=":")
        self.add(left, "continuous latency", 1, "continuous, last token")
        first, dots = "continuous, first token", DASHES[4]
        self.add(left, "continuous ttft", 1, first, linestyle=dots)
        good = "continuous, within the SLO"
        self.add(left, "continuous good", 1, good, **picture.SQUARE)
        left.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2)
        log_axis(counts, 0.8, 2000.0)
        self.add(counts, "running", 1, "running", linestyle="-")
        self.add(counts, "waiting", 4, "waiting", linestyle="--")
        counts.set(xlim=(0.0, 1.0), ylabel="requests")
        counts.tick_params(labelbottom=False)
        counts.legend(loc="upper left", ncols=2)
        self.add(held, "held", 1, linestyle="-")
        held.set(xlim=(0.0, 1.0), ylim=(0.0, 1.05), ylabel="blocks held")
        held.set_xlabel("time, share of the continuous run")
        held.yaxis.set_major_formatter("{x:.0%}")

    def compute(self, config: SimulationConfig) -> None:
        requests, skip = Workload.generate(config), self.warmup
        for name, server in self.servers(config).items():
            record = simulate(server, requests)
            found = MetricsCollector.compute_metrics(record, skip)
            self.move_distribution(f"{name} ttft", record.ttft[skip:])
            self.move_distribution(f"{name} latency", record.latency[skip:])
            self.say_times(name, found, "p99 TTFT", "p99 TPOT", "p99 latency")
            self.say_goodput(name, record)
            if record.steps is not None:
                self.say(name, {"preemptions": f"{found['preemptions']:,.0f}"})
                table = over_time(record)
                table["time"] /= table["time"].iloc[-1]  # as a share of the run
                for what in ("running", "waiting", "held"):
                    self.move(what, table["time"], table[what])


class UsersPicture(picture.Picture):
    """Left: the share of requests within a TTFT, of users and of a Poisson stream.

    Right: requests that wait or run over time, below a line for all users. The stream
    sends the same requests at the rate at which the users sent them.
    """

    requests, warmup = 2000, 300
    of = "users"

    def servers(self, config: SimulationConfig) -> dict[str, SimulationConfig]:
        return {"the stream": self.stream}

    def compose(self, figure: Figure) -> None:
        left, right = figure.subplots(1, 2)
        picture.over_shares(left, 0.01, 1000.0, "TTFT, seconds")
        log_axis(right, 0.8, 2000.0)
        for i, who in enumerate(("users", "stream")):
            self.add(left, f"{who} ttft", i, who)
            self.add(right, f"{who} inside", i, who)
        self.add(right, "all", 6, "all users", linestyle=":")
        left.legend(loc="lower right")
        right.set(xlim=(0.0, 1.0), xlabel="time, share of the run")
        right.set_ylabel("requests waiting or running")
        right.legend(loc="upper left", ncols=3)

    def compute(self, config: SimulationConfig) -> None:
        self.move("all", [0.0, 1.0], np.full(2, config.clients))
        asked = simulate(config)
        rate = mean_rate(asked.sent_time)
        by_clock = {"clients": None, "think_time": 0.0, "arrival_rate": rate}
        self.stream = rounded(config.replace(**by_clock))
        stamps = Workload.generate(self.stream).arrival_time
        lengths = asked.prompt_length, asked.output_length
        streamed = simulate(self.stream, Workload.from_arrays(stamps, *lengths))
        for who, record in (("users", asked), ("stream", streamed)):
            found = MetricsCollector.compute_metrics(record, self.warmup)
            ttft = record.ttft[record.measured(self.warmup)]
            self.move_distribution(f"{who} ttft", ttft)
            table = over_time(record)
            inside = table["running"] + table["waiting"]
            self.move(f"{who} inside", table["time"] / table["time"].max(), inside)
            self.say_times(who, found, "mean TTFT", "p99 TTFT", "mean latency")
            lost = found.get("refused_share", 0.0) + found.get("given_up_share", 0.0)
            self.say(who, {"turned away or gone": f"{lost:.1%}"})
        stay = float(np.mean(asked.processing_end_time - asked.sent_time))
        think: Any = config.think_time
        law = rate * (think["mean"] + stay)
        sent, there = picture.per_second(rate), f"{law:,.1f} of {config.clients} users"
        self.say("users", {"rate X": sent, "Little's law, X (Z + R)": there})
