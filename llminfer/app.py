"""The panels that notebooks share with the stand-alone page."""

from __future__ import annotations

from llminfer.config import SimulationConfig
from llminfer.panels import LatencyPicture
from llminfer.widgets import Panel

REPORT = SimulationConfig(  # the course report's server
    arrival_rate=4.0,  # requests/s
    prompt_dist_params={
        "mu": 4,
        "sigma": 1.5,
        "max": 8192,
    },  # tokens, up to the context
    batch_size=32,
    batch_timeout=0.0,  # go at once with what is there
    num_requests=10_500,  # of which 500 warm up
    random_seed=42,
)


def start_panel() -> Panel:
    """The course report's static server, with a slider for all that it has."""
    names = ("arrival_rate", "alpha", "beta", "gamma", "batch_size", "batch_timeout")
    return Panel(REPORT, LatencyPicture(), names)
