"""llminfer: what would this LLM inference server do if ...?

The module simulates LLM inference serving: requests arrive, wait, are batched,
prefilled and decoded. ``SimulationConfig`` describes a run, ``SimulationRunner``
runs it, ``sweep`` runs many. Units are seconds and tokens throughout.
"""

from llminfer.arrivals import (
    ArrivalRate,
    constant_rate,
    ramp_rate,
    sinusoidal_rate,
    step_rate,
)
from llminfer.checks import ConfigError, OverloadWarning, TraceError
from llminfer.config import SimulationConfig
from llminfer.experiment import (
    ExperimentConfig,
    ExperimentRunner,
    SimulationRunner,
    save_results,
    simulate,
    sweep,
)
from llminfer.metrics import MetricsCollector
from llminfer.policies import (
    FCFSPolicy,
    PredictedSJFPolicy,
    PriorityPolicy,
    SchedulingPolicy,
    SJFPolicy,
    get_policy,
)
from llminfer.record import RunRecord
from llminfer.request import Request
from llminfer.static import LLMInferenceServer
from llminfer.stats import compute_confidence_interval
from llminfer.timing import PRESETS, BatchProcessor
from llminfer.workload import RequestGenerator, Workload

__all__ = [
    "PRESETS",
    "ArrivalRate",
    "BatchProcessor",
    "ConfigError",
    "ExperimentConfig",
    "ExperimentRunner",
    "FCFSPolicy",
    "LLMInferenceServer",
    "MetricsCollector",
    "OverloadWarning",
    "PredictedSJFPolicy",
    "PriorityPolicy",
    "Request",
    "RequestGenerator",
    "RunRecord",
    "SJFPolicy",
    "SchedulingPolicy",
    "SimulationConfig",
    "SimulationRunner",
    "TraceError",
    "Workload",
    "compute_confidence_interval",
    "constant_rate",
    "get_policy",
    "ramp_rate",
    "save_results",
    "simulate",
    "sinusoidal_rate",
    "step_rate",
    "sweep",
]
