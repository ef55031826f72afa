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
    ClassRoundRobinPolicy,
    FCFSPolicy,
    PredictedSJFPolicy,
    PriorityPolicy,
    SchedulingPolicy,
    SJFAgingPolicy,
    SJFPolicy,
    WFQPolicy,
    get_policy,
    register_policy,
)
from llminfer.record import RunRecord
from llminfer.request import Request, RequestClass
from llminfer.series import (
    StepSeries,
    batch_limit,
    latency_quantile,
    queue_length,
    running,
)
from llminfer.static import LLMInferenceServer
from llminfer.stats import compute_confidence_interval
from llminfer.timing import PRESETS, BatchProcessor
from llminfer.workload import RequestGenerator, Workload

__all__ = [
    "PRESETS",
    "ArrivalRate",
    "BatchProcessor",
    "ClassRoundRobinPolicy",
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
    "RequestClass",
    "RequestGenerator",
    "RunRecord",
    "SJFAgingPolicy",
    "SJFPolicy",
    "SchedulingPolicy",
    "SimulationConfig",
    "SimulationRunner",
    "StepSeries",
    "TraceError",
    "WFQPolicy",
    "Workload",
    "batch_limit",
    "compute_confidence_interval",
    "constant_rate",
    "get_policy",
    "latency_quantile",
    "queue_length",
    "ramp_rate",
    "register_policy",
    "running",
    "save_results",
    "simulate",
    "sinusoidal_rate",
    "step_rate",
    "sweep",
]
