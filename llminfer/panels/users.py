"""What a panel draws of users who wait for answers, beside a clock that does not."""

from typing import Any

import numpy as np
from matplotlib.figure import Figure

from llminfer import SimulationConfig, Workload, simulate
from llminfer.base.columns import mean_rate
from llminfer.metrics import MetricsCollector
from llminfer.panels import picture
from llminfer.panels.controls import rounded
from llminfer.report.figures import log_axis
from llminfer.report.timeline import over_time


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
        self.say("users", {"rate X": sent, "X (Z + R)": there})
