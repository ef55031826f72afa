"""llminfer: what would this LLM inference server do if ...?

The module simulates LLM inference serving: requests arrive, wait, are batched,
prefilled and decoded. ``SimulationConfig`` describes a run, ``SimulationRunner``
runs it, ``sweep`` runs many. Units are seconds and tokens throughout.
"""

from llminfer import theory
from llminfer.arrivals import (
    ArrivalRate,
    constant_rate,
    ramp_rate,
    sinusoidal_rate,
    step_rate,
)
from llminfer.capacity import SLO, Capacity, capacity, largest_rates
from llminfer.checks import ConfigError, OverloadWarning, TraceError
from llminfer.compare import blocked_anova, paired_differences
from llminfer.config import SimulationConfig
from llminfer.continuous import ContinuousBatchingServer
from llminfer.datasets import DataMissing, fetch
from llminfer.experiment import (
    ExperimentConfig,
    ExperimentRunner,
    SimulationRunner,
    save_results,
    simulate,
    sweep,
)
from llminfer.fleet import Fleet, fewest_replicas
from llminfer.metrics import MetricsCollector, goodput
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
from llminfer.report import save_numbers, save_table, verdict_table
from llminfer.request import Request, RequestClass
from llminfer.runlength import averaged_series, mser5, replicate_until, welch
from llminfer.series import (
    StepSeries,
    batch_limit,
    kv_occupancy,
    latency_quantile,
    queue_length,
    running,
)
from llminfer.static import LLMInferenceServer
from llminfer.stats import (
    Estimate,
    compute_confidence_interval,
    pooled_quantile,
    summarize,
)
from llminfer.timing import PRESETS, BatchProcessor
from llminfer.traces import ServedLog, read_bench, read_settings, read_vllm_log
from llminfer.verdict import Verdict
from llminfer.workload import RequestGenerator, Workload

__all__ = [
    "PRESETS",
    "SLO",
    "ArrivalRate",
    "BatchProcessor",
    "Capacity",
    "ClassRoundRobinPolicy",
    "ConfigError",
    "ContinuousBatchingServer",
    "DataMissing",
    "Estimate",
    "ExperimentConfig",
    "ExperimentRunner",
    "FCFSPolicy",
    "Fleet",
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
    "ServedLog",
    "SimulationConfig",
    "SimulationRunner",
    "StepSeries",
    "TraceError",
    "Verdict",
    "WFQPolicy",
    "Workload",
    "averaged_series",
    "batch_limit",
    "blocked_anova",
    "capacity",
    "compute_confidence_interval",
    "constant_rate",
    "fetch",
    "fewest_replicas",
    "get_policy",
    "goodput",
    "kv_occupancy",
    "largest_rates",
    "latency_quantile",
    "mser5",
    "paired_differences",
    "pooled_quantile",
    "queue_length",
    "ramp_rate",
    "read_bench",
    "read_settings",
    "read_vllm_log",
    "register_policy",
    "replicate_until",
    "running",
    "save_numbers",
    "save_results",
    "save_table",
    "simulate",
    "sinusoidal_rate",
    "step_rate",
    "summarize",
    "sweep",
    "theory",
    "verdict_table",
    "welch",
]
