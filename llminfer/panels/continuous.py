"""What a panel draws of continuous batching, beside static on the same requests."""

from matplotlib.figure import Figure

from llminfer import SimulationConfig, Workload, simulate
from llminfer.metrics import MetricsCollector
from llminfer.panels import picture
from llminfer.report.figures import DASHES, log_axis
from llminfer.report.timeline import over_time


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
