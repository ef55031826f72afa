"""llminfer: what would this LLM inference server do if ...?

The module simulates LLM inference serving: requests arrive, wait, are batched,
prefilled and decoded. ``SimulationConfig`` describes a run, ``SimulationRunner``
runs it, ``sweep`` runs many. Units are seconds and tokens throughout.
"""

import importlib
from typing import Any

from llminfer import theory
from llminfer.base import cache
from llminfer.base.errors import ConfigError, OverloadWarning, TraceError
from llminfer.base.slo import SLO
from llminfer.capacity import capacity, fewest_replicas
from llminfer.config import SimulationConfig
from llminfer.data import read_vllm_log
from llminfer.data.public import fetch
from llminfer.experiment import SimulationRunner, simulate, sweep
from llminfer.laws.engines import PRESETS
from llminfer.metrics import goodput
from llminfer.plan import plan
from llminfer.policies import SchedulingPolicy, register_policy
from llminfer.record import RunRecord
from llminfer.request import Request
from llminfer.servers.continuous import ContinuousBatchingServer
from llminfer.servers.static import LLMInferenceServer
from llminfer.stats.intervals import Estimate
from llminfer.workload import Workload

__version__ = "0.1.0"
__all__ = [
    "PRESETS",
    "SLO",
    "ConfigError",
    "ContinuousBatchingServer",
    "Estimate",
    "LLMInferenceServer",
    "OverloadWarning",
    "Request",
    "RunRecord",
    "SchedulingPolicy",
    "SimulationConfig",
    "SimulationRunner",
    "TraceError",
    "Workload",
    "cache",
    "capacity",
    "fetch",
    "fewest_replicas",
    "goodput",
    "plan",
    "read_vllm_log",
    "register_policy",
    "simulate",
    "sweep",
    "theory",
]

_ELSEWHERE = {  # names of the source design, loaded when they are asked for
    "course": "ExperimentConfig ExperimentRunner RequestGenerator save_results",
    "data": "read_settings",
    "laws.arrivals": "ArrivalRate constant_rate ramp_rate sinusoidal_rate step_rate",
    "metrics": "MetricsCollector",
    "policies": "ClassRoundRobinPolicy FCFSPolicy PredictedSJFPolicy PriorityPolicy "
    "SJFAgingPolicy SJFPolicy WFQPolicy get_policy",
    "report.verdict": "Verdict",
    "request": "RequestClass",
    "servers.by_hand": "BatchProcessor ServerByHand",
    "stats.intervals": "compute_confidence_interval",
}


def __getattr__(name: str) -> Any:
    for module, names in _ELSEWHERE.items():
        if name in names.split():
            return getattr(importlib.import_module(f"llminfer.{module}"), name)
    raise AttributeError(f"module 'llminfer' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
