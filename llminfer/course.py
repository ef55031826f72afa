"""Names that only the source design has, over the module's own ways."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from llminfer.base.cache import made_by
from llminfer.base.errors import fail, whole
from llminfer.config import SimulationConfig
from llminfer.experiment import Metrics, replicated, run_many
from llminfer.laws.arrivals import ArrivalRate
from llminfer.stats.intervals import compute_confidence_interval
from llminfer.workload import Workload

Results = pd.DataFrame | Sequence[Metrics] | Mapping[str, Any]
_USUAL = SimulationConfig()


@dataclass(frozen=True)
class RequestGenerator:
    """Makes workloads from an arrival rate and two length laws.

    Args:
        arrival_rate: lambda(t), from ``constant_rate`` and its kin.
        prompt_length_dist: Law of prompt lengths.
        prompt_dist_params: Its parameters.
        output_length_dist: Law of output lengths.
        output_dist_params: Its parameters.
        arrival_cv: Coefficient of variation of the gaps; 1 is Poisson.
        random_seed: One seed for all streams; None draws a fresh one.

    Raises:
        ConfigError: A law, a parameter or the rate cannot be used.
    """

    arrival_rate: ArrivalRate
    prompt_length_dist: str = _USUAL.prompt_length_dist
    prompt_dist_params: Mapping[str, Any] = _USUAL.prompt_dist_params
    output_length_dist: str = _USUAL.output_length_dist
    output_dist_params: Mapping[str, Any] = _USUAL.output_dist_params
    arrival_cv: float = 1.0
    random_seed: int | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.arrival_rate, ArrivalRate):
            must = "made by constant_rate, step_rate, sinusoidal_rate or ramp_rate"
            raise fail("arrival_rate", self.arrival_rate, must)
        self._config()  # says what is wrong with the rest

    def generate(self, num_requests: int) -> Workload:
        """The first ``num_requests`` requests; more would begin with the same ones."""
        config = self._config()
        return Workload.drawn(
            whole("num_requests", num_requests, 1),
            config.random_seed,
            arrivals=self.arrival_rate,
            prompts=config.prompts,
            outputs=config.outputs,
            arrival_cv=config.arrival_cv,
        )

    def _config(self) -> SimulationConfig:
        return SimulationConfig(**vars(self) | {"arrival_rate": 1.0})


@dataclass(frozen=True)
class ExperimentConfig:
    """A configuration to be run several times, under consecutive seeds."""

    name: str
    description: str
    base_config: SimulationConfig
    num_replications: int = 30
    random_seed_start: int = 42

    def __post_init__(self) -> None:
        whole("num_replications", self.num_replications, 1)
        whole("random_seed_start", self.random_seed_start, 0)

    def get_replication_configs(self) -> list[SimulationConfig]:
        """One configuration a replication, with its seed."""
        return replicated(
            self.base_config, self.num_replications, self.random_seed_start
        )


@dataclass
class ExperimentRunner:
    """Runs a list of configurations, or the replications of an experiment.

    Args:
        configs: Configurations to run, or one ``ExperimentConfig``.
        n_jobs: Processes; None takes one a core.
    """

    configs: Sequence[SimulationConfig] | ExperimentConfig
    n_jobs: int | None = None

    def run_all(self) -> list[Metrics]:
        """The metrics of every run, in the order of the configurations."""
        if isinstance(self.configs, ExperimentConfig):
            return run_many(self.configs.get_replication_configs(), self.n_jobs)
        return run_many(self.configs, self.n_jobs)

    @staticmethod
    def aggregate_results(results: Sequence[Metrics]) -> dict[str, dict[str, float]]:
        """Metric -> ``{"mean", "ci_lower", "ci_upper"}`` (95%, Student t)."""
        return {
            str(name): compute_confidence_interval(values.to_numpy(dtype=float))
            for name, values in pd.DataFrame(results).items()
        }


def save_results(results: Results, path: str | Path, configuration: Any = None) -> Path:
    """Write results as JSON or CSV, by the ending of ``path``, and return the path.

    The lists that quantiles are pooled from are left out. What made the results is
    written beside them, as ``results.csv.made_by.json``: versions, the digest of the
    code, the configuration and its seeds.

    Args:
        results: A sweep's table, a list of metrics, one run's metrics, or what
            ``aggregate_results`` gives (a row a metric).
        path: Ends in ``.json`` or ``.csv``.
        configuration: What was run, or the experiment; a sweep's table knows it.

    Raises:
        ConfigError: Another ending.
    """
    target = Path(path)
    if target.suffix not in (".json", ".csv"):
        raise fail("path", str(path), "a name that ends in .json or .csv")
    if isinstance(results, Mapping):
        intervals = any(isinstance(value, Mapping) for value in results.values())
        rows = ({"metric": name, **its} for name, its in results.items())
        results = list(rows) if intervals else [dict(results)]
    known = getattr(results, "attrs", {}).get("made_by")
    made = known or made_by(configuration=configuration)
    frame = pd.DataFrame(results)
    frame = frame[[name for name in frame if not str(name).startswith("quantiles_")]]
    if target.suffix == ".csv":
        frame.to_csv(target, index=False)
    else:
        known = frame.astype(object).where(frame.notna(), None)  # JSON has no NaN
        records = known.to_dict(orient="records")
        target.write_text(json.dumps(records, indent=1, default=str) + "\n")
    target.with_name(f"{target.name}.made_by.json").write_text(made + "\n")
    return target
