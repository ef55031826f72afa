"""The panels that notebooks share with the stand-alone page."""

import ipywidgets as w

from llminfer import PRESETS, SimulationConfig
from llminfer.panels.continuous import ContinuousPicture
from llminfer.panels.controls import OUTPUTS, PROMPTS, Control
from llminfer.panels.panel import Panel
from llminfer.panels.picture import LatencyPicture
from llminfer.panels.users import UsersPicture

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
    return Panel(REPORT, LatencyPicture(), (*names, "batch_timeout"))


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
