"""Whatever is wrong with a configuration is said in one line, before it runs."""

from __future__ import annotations

import math
from dataclasses import MISSING, fields

import numpy as np
import pytest
from test_lengths import CASES

from llminfer import (
    SLO,
    ConfigError,
    ExperimentConfig,
    FCFSPolicy,
    SimulationConfig,
    SimulationRunner,
    Workload,
    capacity,
    compute_confidence_interval,
    get_policy,
    save_results,
    simulate,
    stats,
    sweep,
)
from llminfer.capacity import fewest_replicas
from llminfer.experiment import run_many
from llminfer.laws.arrivals import ARRIVAL_PATTERNS
from llminfer.laws.lengths import LENGTH_LAWS, length_law

NUMBERS = ("arrival_rate", "arrival_cv", "alpha", "beta", "gamma", "delta", "kappa")
NUMBERS += ("epsilon", "launch")
COUNTS = ("batch_size", "num_requests", "warmup_requests", "random_seed", "replicas")
COUNTS += ("max_batched_tokens", "kv_blocks", "block_size", "graph_tokens", "clients")
COUNTS += ("max_concurrency", "queue_limit")
LAWS = ("think_time", "turns", "patience", "request_timeout")
SWITCHES = ("chunked_prefill", "reserve_full_prompt", "prefix_caching")
SWITCHES += ("async_scheduling",)
NAMES = (
    "arrival_pattern",
    "prompt_length_dist",
    "output_length_dist",
    "scheduling_policy",
    "batch_control",
    "step_law",
    "server",
    "router",
)
PARAMS = (
    "arrival_pattern_params",
    "prompt_dist_params",
    "output_dist_params",
    "scheduling_policy_params",
    "batch_control_params",
    "shared_prefixes",
    "request_classes",
)
NO_NUMBERS = [math.nan, math.inf, -1, -0.5, True, "7", [3], np.array([1.0])]
NO_COUNTS = [*NO_NUMBERS, 2.5, 4.0]
NO_NAMES = ["", "nonesuch", None, 3, ["FCFS"], True]
NO_PARAMS = [math.nan, [1, 2], "sigma", {3: 4}, True]
WRONG = [
    *((name, value) for name in NUMBERS for value in [*NO_NUMBERS, None]),
    *(("batch_timeout", value) for value in NO_NUMBERS),
    *((name, value) for name in COUNTS for value in NO_COUNTS),
    *((name, value) for name in NAMES for value in NO_NAMES),
    *((name, value) for name in PARAMS for value in [*NO_PARAMS, None]),
    *((name, value) for name in SWITCHES for value in [0, 1, "yes", None, [True]]),
    ("arrival_rate", 0),
    ("alpha", 10**400),
    ("batch_size", 0),
    ("batch_size", None),
    ("num_requests", 0),
    ("num_requests", None),
    ("warmup_requests", None),
    ("warmup_requests", 10_000),
    ("arrival_cv", 101),
]


def refused(make, start):
    """Check that ``make`` fails with one line that begins with ``start``."""
    with pytest.raises(ConfigError) as caught:
        make()
    message = str(caught.value)
    assert message.startswith(start), message
    assert "\n" not in message
    assert len(message) < 300
    return message


@pytest.mark.parametrize(("name", "value"), WRONG)
def test_a_wrong_field_is_named_with_its_value_and_what_would_do(name, value):
    shown = repr(value)[:70]
    message = refused(lambda: SimulationConfig(**{name: value}), f"{name}={shown}")
    assert ": must be " in message
    refused(lambda: SimulationConfig().replace(**{name: value}), f"{name}={shown}")


@pytest.mark.parametrize("name", LAWS)
@pytest.mark.parametrize("value", [*NO_NUMBERS, "", {3: 4}])
def test_a_wrong_law_of_people_is_named_with_what_would_do(name, value):
    users = {} if name in ("patience", "request_timeout") else {"clients": 5}
    message = refused(lambda: SimulationConfig(**users, **{name: value}), name)
    assert ": must be " in message or " takes " in message


def test_no_turns_at_all_are_refused():
    for none in (0, False, []):
        refused(lambda its=none: SimulationConfig(clients=5, turns=its), "turns.value=")


@pytest.mark.parametrize("gaps", [3.0, "abc", [], [1.0, -1.0], [math.nan]])
def test_wrong_gaps_are_named_with_what_would_do(gaps):
    message = refused(lambda: SimulationConfig(arrival_gaps=gaps), "arrival_gaps=")
    assert ": must be " in message


def test_every_field_is_tried():
    ours = {name for name, _ in WRONG} | {*LAWS, "arrival_gaps"}
    assert ours == {f.name for f in fields(SimulationConfig)}


def test_a_value_is_shown_in_eighty_characters():
    for n in (0, 78, 79, 500):
        its = repr("x" * n)
        shorter = its if len(its) <= 80 else its[:77] + "..."
        with pytest.raises(ConfigError) as caught:
            SimulationConfig(batch_size="x" * n)
        assert str(caught.value).startswith(f"batch_size={shorter}: must be"), n


def test_the_message_is_a_line_to_act_on():
    with pytest.raises(ConfigError) as caught:
        SimulationConfig(batch_size=0)
    assert str(caught.value) == "batch_size=0: must be a whole number of at least 1"


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ({"batchsize": 4}, "batch_size"),
        ({"arival_rate": 4}, "arrival_rate"),
        ({"lambda_": 4}, "arrival_rate"),
        ({"request_rate": 4}, "arrival_rate"),
        ({"users": 4}, "clients"),
        ({"data_parallel_size": 4}, "replicas"),
        ({"seed": 4}, "random_seed"),
        ({"policy": "SJF"}, "scheduling_policy"),
        ({"max_num_seqs": 256}, "batch_size"),
        ({"max_num_batched_tokens": 2048}, "max_batched_tokens"),
        ({"prompt_length_dist": "log-normal"}, "lognormal"),
        ({"output_length_dist": "trunc_normal"}, "truncated_normal"),
        ({"scheduling_policy": "fcfs"}, "FCFS"),
        ({"scheduling_policy": "predicted_sjf"}, "Predicted-SJF"),
        ({"scheduling_policy": "priorty"}, "Priority"),
        ({"arrival_pattern": "sinusoid"}, "sinusoidal"),
        ({"prompt_dist_params": {"mu": 4, "sigm": 1}}, "sigma"),
        (
            {
                "scheduling_policy": "Priority",
                "scheduling_policy_params": {"ageing_rate": 1},
            },
            "aging_rate",
        ),
        (
            {
                "arrival_pattern": "step",
                "arrival_pattern_params": {"step_times": 1, "step_rate": 2},
            },
            "step_time",
        ),
    ],
)
def test_a_misspelt_name_brings_the_nearest_right_one(given, meant):
    message = refused(lambda: SimulationConfig(**given), "")
    assert message.endswith(f"(did you mean {meant}?)")


@pytest.mark.parametrize("given", [{"batch_size": 4}, "report", None, 3])
@pytest.mark.parametrize(
    ("name", "ask"),
    [
        ("config", simulate),
        ("config", lambda given: SimulationRunner(given).run()),
        ("config", lambda given: run_many([given])),
        ("base", lambda given: sweep(given, {"batch_size": [4]})),
        ("table", lambda given: stats.summarize(given, "batch_size", ["avg_ttft"])),
        ("table", lambda given: stats.paired_differences(given, "avg_ttft", "policy")),
        ("slo", lambda given: capacity(SimulationConfig(), given)),
        ("slo", lambda given: fewest_replicas(SimulationConfig(), given, 1.0)),
    ],
)
def test_another_kind_of_thing_is_refused_by_its_name(name, ask, given):
    assert refused(lambda: ask(given), name + "=").startswith(f"{name}={given!r}: must")


def test_a_limit_of_another_name_is_refused():
    refused(lambda: SLO(e2el=1.0), "e2el=1.0: no such field (did you mean latency?)")
    refused(lambda: SLO(p99=1.0), "p99=1.0: no such field: help(SLO) lists them")


def of_law(name, params, which="prompt"):
    return lambda: SimulationConfig(
        **{f"{which}_length_dist": name, f"{which}_dist_params": params}
    )


@pytest.mark.parametrize("which", ["prompt", "output"])
@pytest.mark.parametrize("name", LENGTH_LAWS)
@pytest.mark.parametrize("value", [math.nan, math.inf, "x", True, [[]]])
def test_a_wrong_parameter_of_a_law_is_named(which, name, value):
    right = CASES[name]
    of_law(name, right, which)()
    for parameter in LENGTH_LAWS[name].__dataclass_fields__:
        start = f"{which}_dist_params.{parameter}="
        refused(of_law(name, {**right, parameter: value}, which), start)


@pytest.mark.parametrize("name", LENGTH_LAWS)
def test_a_missing_or_foreign_parameter_of_a_law_is_named(name):
    right = CASES[name]
    for f in fields(LENGTH_LAWS[name]):
        if f.default is MISSING:
            rest = {k: v for k, v in right.items() if k != f.name}
            message = refused(of_law(name, rest), f"prompt_dist_params.{f.name}=")
            assert "must be given" in message
    refused(of_law(name, {**right, "colour": 3}), "prompt_dist_params.colour=3")


BIMODAL = CASES["bimodal"]


@pytest.mark.parametrize(
    ("name", "params", "field"),
    [
        ("lognormal", {"mu": 4, "sigma": -1}, "sigma"),
        ("lognormal", {"mu": 4, "sigma": 1, "min": 0}, "min"),
        ("lognormal", {"mu": 4, "sigma": 1, "min": 9, "max": 8}, "max"),
        ("lognormal", {"mu": 4, "sigma": 1, "max": 8.5}, "max"),
        ("uniform", {"min": 20, "max": 10}, "max"),
        ("uniform", {"min": 0, "max": 10}, "min"),
        ("uniform", {"min": -5, "max": 10}, "min"),
        ("truncated_normal", {"mu": 5, "sigma": 0, "min": 1, "max": 9}, "sigma"),
        ("truncated_normal", {"mu": 5, "sigma": 1, "min": 9, "max": 1}, "max"),
        ("truncated_normal", {"mu": 1e6, "sigma": 1, "min": 1, "max": 9}, "mu"),
        ("powerlaw", {"alpha": -1, "min": 1, "max": 9}, "alpha"),
        ("powerlaw", {"alpha": 2, "min": 9, "max": 9}, "max"),
        ("bimodal", {**BIMODAL, "short_prob": 1.5}, "short_prob"),
        ("bimodal", {**BIMODAL, "short_min": 60}, "short_max"),
        ("bimodal", {**BIMODAL, "long_max": 20}, "long_max"),
        ("geometric", {"mean": 0.5}, "mean"),
        ("geometric", {"mean": 5, "max": 0}, "max"),
        ("constant", {"value": 0}, "value"),
        ("constant", {"value": 1.5}, "value"),
        ("empirical", {"values": []}, "values"),
        ("empirical", {"values": [3, 0]}, "values"),
        ("empirical", {"values": 3}, "values"),
        ("empirical", {"values": [3, 4], "weights": [1]}, "weights"),
        ("empirical", {"values": [3, 4], "weights": [1, -1]}, "weights"),
        ("empirical", {"values": [3, 4], "weights": [0, 0]}, "weights"),
    ],
)
def test_parameters_that_do_not_fit_together_are_named(name, params, field):
    message = refused(of_law(name, params), f"prompt_dist_params.{field}=")
    assert ": must be " in message


PATTERN_CASES = {
    "constant": {},
    "step": {"step_time": 60, "step_rate": 5},
    "sinusoidal": {"amplitude": 2, "period": 60},
    "ramp": {"end_rate": 3, "duration": 60},
}


@pytest.mark.parametrize("pattern", ARRIVAL_PATTERNS)
def test_a_wrong_parameter_of_a_pattern_is_named(pattern):
    def of(params):
        return lambda: SimulationConfig(
            arrival_pattern=pattern, arrival_pattern_params=params
        )

    right = PATTERN_CASES[pattern]
    of(right)()
    for parameter in right:
        for value in (math.nan, -1, "x", True, None):
            start = f"arrival_pattern_params.{parameter}={value!r}"
            refused(of({**right, parameter: value}), start)
        rest = {k: v for k, v in right.items() if k != parameter}
        refused(of(rest), f"arrival_pattern_params.{parameter}=")
    refused(of({**right, "colour": 3}), "arrival_pattern_params.colour=3")
    refused(of({**right, "rate": 3}), "arrival_pattern_params.rate=3")


def test_a_wave_deeper_than_its_rate_is_refused():
    wave = {"amplitude": 11, "period": 60}
    message = refused(
        lambda: SimulationConfig(
            arrival_pattern="sinusoidal", arrival_pattern_params=wave
        ),
        "arrival_pattern_params.amplitude=11",
    )
    assert "arrival_rate=10" in message


def of_policy(policy, params):
    return lambda: SimulationConfig(
        scheduling_policy=policy, scheduling_policy_params=params
    )


@pytest.mark.parametrize(
    ("policy", "params"),
    [
        ("Predicted-SJF", {"prediction_sigma": -1}),
        ("Predicted-SJF", {"prediction_sigma": math.nan}),
        ("Priority", {"aging_rate": -1}),
        ("Priority", {"aging_rate": "x"}),
        ("Priority", {"urgency_weight": -0.1}),
        ("Priority", {"base_priority": math.inf}),
        ("SJF-Aging", {"aging_rate": -0.1}),
        ("FCFS", {"aging_rate": 1}),
        ("SJF", {"prediction_sigma": 1}),
    ],
)
def test_a_wrong_parameter_of_a_policy_is_named(policy, params):
    (name,) = params
    start = f"scheduling_policy_params.{name}={params[name]!r}"
    refused(of_policy(policy, params), start)
    refused(lambda: get_policy(policy, **params), start)


BASE = SimulationConfig(arrival_rate=2, num_requests=600)
ENDLESS = {"mu": 10, "sigma": 2}


@pytest.mark.parametrize(
    ("make", "start"),
    [
        (lambda: SimulationConfig.from_json("{"), "configuration: not JSON"),
        (of_policy(FCFSPolicy(), {"a": 1}), "scheduling_policy_params={'a'"),
        (lambda: length_law("prompt", "lognormal", ENDLESS).pmf(), "max=None"),
        (of_law("constant", {"value": 2**41}), "prompt_dist_params.value="),
        (lambda: SimulationConfig.from_json('{"batch_size": 0}'), "batch_size=0"),
        (lambda: SimulationConfig.from_json('{"batchsize": 4}'), "batchsize=4"),
        (lambda: SimulationConfig.from_json('{"alpha": NaN}'), "alpha=nan"),
        (lambda: BASE.replace(**{"batch_size.sigma": 3}), "batch_size.sigma=3"),
        (lambda: BASE.replace(**{"nonesuch_params.sigma": 3}), "nonesuch_params="),
        (lambda: SimulationConfig.from_preset("h100"), "preset='h100'"),
        (lambda: get_policy("LIFO"), "scheduling_policy='LIFO'"),
        (lambda: ExperimentConfig("a", "", BASE, 0), "num_replications=0"),
        (lambda: ExperimentConfig("a", "", BASE, 1, -1), "random_seed_start=-1"),
        (lambda: sweep(BASE, {"batch_size": 4}), "batch_size=4: must be a list"),
        (lambda: sweep(BASE, {"batch_size": []}), "batch_size=[]: must be a list"),
        (lambda: sweep(BASE, {"policy": "FCFS"}), "policy='FCFS': must be a list"),
        (lambda: sweep(BASE, {"batch_size": [4, 0]}), "batch_size=0"),
        (lambda: sweep(BASE, {"batchsize": [4]}), "batchsize=4: no such field"),
        (lambda: sweep(BASE, {"prompt_dist_params.s": [1]}), "prompt_dist_params.s=1"),
        (lambda: sweep(BASE, {"server": {"mine": 4}}), "server['mine']=4: must be"),
        (lambda: sweep(BASE, {"batch_size": [4]}, n_jobs=0), "n_jobs=0"),
        (lambda: sweep(BASE, {"batch_size": [4]}, replications=0), "replications=0"),
        (lambda: save_results([], "results.xlsx"), "path='results.xlsx'"),
    ],
)
def test_everything_else_that_is_asked_for_is_checked(make, start):
    refused(make, start)


def test_a_configuration_in_a_file_must_be_an_object(tmp_path):
    path = tmp_path / "run.json"
    path.write_text("[1, 2]")
    refused(lambda: SimulationConfig.from_json(path), "configuration=[1, 2]: must be")


def test_a_workload_shorter_than_the_warmup_is_refused():
    few = Workload.from_arrays([0.0, 1.0], [1, 1], [1, 1])
    message = refused(lambda: SimulationRunner(BASE, few).run(), "warmup_requests=500")
    assert "completed requests, 2" in message


@pytest.mark.parametrize("confidence", [0.0, 1.0, -1, 95, math.nan, "x"])
def test_a_confidence_that_is_no_chance_is_refused(confidence):
    with pytest.raises(ValueError, match=r"^confidence=.*must be"):
        compute_confidence_interval([1.0, 2.0], confidence)


@pytest.mark.parametrize("name", ["values", "weights"])
@pytest.mark.parametrize("scalar", [np.array(3.0), 3.0, "3", None, np.float64(3.0)])
def test_one_number_is_no_list_of_numbers(name, scalar):
    law = {"dist": "empirical", "values": [1.0, 2.0], "weights": [1.0, 1.0]}
    if name == "weights" and scalar is None:
        return  # as often, each of them
    with pytest.raises(ConfigError, match=rf"{name}\b.*a list of numbers"):
        BASE.replace(clients=2, turns={**law, name: scalar})
