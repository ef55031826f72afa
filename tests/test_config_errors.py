"""Whatever is wrong with a configuration is said in one line, before it runs."""

from __future__ import annotations

import math
import warnings
from dataclasses import MISSING, fields

import numpy as np
import pandas as pd
import pytest
from test_lengths import CASES

from llminfer import (
    PRESETS,
    SLO,
    ConfigError,
    Estimate,
    ExperimentConfig,
    FCFSPolicy,
    RequestClass,
    RequestGenerator,
    SimulationConfig,
    SimulationRunner,
    Workload,
    capacity,
    compute_confidence_interval,
    constant_rate,
    get_policy,
    goodput,
    save_results,
    simulate,
    stats,
    sweep,
    theory,
)
from llminfer.base.workers import as_finished
from llminfer.capacity import Trials, fewest_replicas
from llminfer.data.logs import ServedLog
from llminfer.experiment import run_many
from llminfer.laws.arrivals import ARRIVAL_PATTERNS
from llminfer.laws.engines import COEFFICIENTS
from llminfer.laws.lengths import LENGTH_LAWS, length_law
from llminfer.laws.people import seconds_law
from llminfer.laws.prefixes import SharedPrefixes
from llminfer.report.verdict import Verdict
from llminfer.servers.batch_control import CONTROLLERS
from llminfer.study.traffic import counts
from llminfer.timeseries import latency_quantile
from llminfer.timing import StepTime

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


@pytest.mark.parametrize(
    ("field", "given", "meant"),
    [
        ("think_time", 2000, "2 if 2000 ms"),
        ("patience", 5000.0, "5 if 5000 ms"),
        ("request_timeout", 30_000, "30 if 30000 ms"),
        ("batch_timeout", 250, "0.25 if 250 ms"),
    ],
)
def test_milliseconds_are_suspected_once_and_not_by_each_run(field, given, meant):
    few = {"num_requests": 20, "warmup_requests": 0, "arrival_rate": 0.01}
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("default")
        config = SimulationConfig(**few, clients=2, **{field: given})
        sweep(config, {"batch_size": [1, 2, 4]}, replications=2, n_jobs=1)
    words = [str(its.message) for its in said]
    assert words.count(f"{field}={given:g}: must be seconds: {meant} are meant") == 1
    assert getattr(config, field) == given


def test_times_that_may_be_meant_need_no_word(recwarn):
    law = {"dist": "lognormal", "mu": 8.0, "sigma": 1.0}
    SimulationConfig(clients=2, think_time=900, patience=law, request_timeout=600)
    SimulationConfig(batch_timeout=60.0)
    for preset in PRESETS:
        SimulationConfig.from_preset(preset)
    assert not recwarn.list


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


def test_a_table_is_shown_on_one_line():
    table = pd.DataFrame({"a": [1, 2]})
    refused(lambda: simulate(SimulationConfig(), table), "workload=   a 0  1 1  2: ")


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
PAIR = np.array([1, 2])
PARTLY = {"prompt_dist_params": 3, "prompt_dist_params.sigma": 1.0}


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
        (lambda: sweep(BASE, {"batch_size": [4, 5]}, n_jobs=[1, 2]), "n_jobs=[1, 2]"),
        (lambda: sweep(BASE, {"batch_size": [4, 5]}, n_jobs=PAIR), "n_jobs=array"),
        (lambda: sweep(BASE, {"batch_size": [4, 5]}, n_jobs=pd.NA), "n_jobs=<NA>"),
        (lambda: BASE.replace(**PARTLY), "prompt_dist_params=3: must be a dict"),
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


def field_of(name, **others):
    its = {"warmup_requests": 0, **others}
    return name, lambda value: SimulationConfig(**its | {name: value})


def length_of(law, name, **others):
    its = {k: v for k, v in CASES[law].items() if k != "min" or name != "max"}
    its |= {f.name: 1 for f in fields(LENGTH_LAWS[law]) if f.name == "min"}
    return name, lambda value: LENGTH_LAWS[law](**its | others | {name: value})


def rate_of(pattern, name):
    its = PATTERN_CASES[pattern]
    return name, lambda value: ARRIVAL_PATTERNS[pattern](9.0, **its | {name: value})


def think_of(law, name, **others):
    its = {"dist": law, **others}
    return f"think_time.{name}", lambda value: seconds_law(
        "think_time", its | {name: value}
    )


def control_of(controller, name):
    its = {"target": 9.0} if controller == "latency" else {}
    return name, lambda value: CONTROLLERS[controller](**its | {name: value})


def policy_of(policy, name):
    field = f"scheduling_policy_params.{name}"
    return field, lambda value: get_policy(policy, **{name: value})


def trial_of(name, **others):
    its = {"workload": None, "replications": 9, "n_jobs": 1, "first_seed": 0}
    config = SimulationConfig(batch_size=1, num_requests=12_000)
    return name, lambda value: Trials(config, SLO(1.0), **its | {name: value})


TINY, LESS = 1e-15, 0.9e-15  # the least above 0, and what is too near to it
UP, DOWN = 1.0 + 1e-12, -1e-15
NOT_BELOW_0, ABOVE_0, COUNT = (0.0, DOWN), (TINY, LESS), (1, 0)
MOST_1, LEAST_1, TOKENS = (1.0, UP), (1.0, 1.0 - 1e-12), (2**40, 2**40 + 1)
SEED = (0, -1), (2**128, 2**128 + 1)
MOST_30, MOST_1E15 = (30.0, 30.0 * UP), (1e15, 1e15 * UP)
SERVER = {"server": "continuous", "batch_size": 1}
TWO = Workload.from_arrays([0.0, 1.0], [1, 1], [1, 1])
ENDED = simulate(SimulationConfig(batch_size=1, warmup_requests=0), TWO)
LOG = ServedLog.from_record(ENDED)
QUEUE = theory.mg1(
    SimulationConfig(
        batch_size=1,
        arrival_rate=1.0,
        prompt_length_dist="constant",
        prompt_dist_params={"value": 9},
    )
)
SAMPLES = [np.arange(1000.0)] * 2
ONE = Estimate(1.0, 1.0, 1.0)
# By name what is given, and the last that will do beside the first that will not.
ENDS = [
    *((*field_of(name), NOT_BELOW_0) for name in (*COEFFICIENTS[:6], "batch_timeout")),
    (*field_of("launch", step_law="roofline"), NOT_BELOW_0),
    (*field_of("arrival_rate"), ABOVE_0),
    (*field_of("arrival_cv"), NOT_BELOW_0, (100.0, 100.0 * UP)),
    *((*field_of(name), COUNT) for name in ("batch_size", "num_requests")),
    *((*field_of(name), COUNT) for name in ("queue_limit", "max_concurrency")),
    *(
        (*field_of(name, **SERVER), COUNT)
        for name in ("kv_blocks", "max_batched_tokens")
    ),
    (*field_of("replicas", **SERVER), COUNT, (10**4, 10**4 + 1)),
    (*field_of("clients"), COUNT, (10**6, 10**6 + 1)),
    (*field_of("block_size", **SERVER), COUNT, (2**20, 2**20 + 1)),
    *((*field_of(name), (0, -1)) for name in ("graph_tokens", "warmup_requests")),
    (*field_of("random_seed"), *SEED),
    (*think_of("lognormal", "mu", sigma=1.0), (-1e3, -1e3 * UP), MOST_30),
    (*think_of("lognormal", "sigma", mu=1.0), NOT_BELOW_0, MOST_30),
    (*think_of("constant", "value"), NOT_BELOW_0, MOST_1E15),
    (*think_of("exponential", "mean"), NOT_BELOW_0, MOST_1E15),
    (*think_of("uniform", "min", max=1.0), NOT_BELOW_0),
    (*think_of("uniform", "max", min=0.0), NOT_BELOW_0),
    (*length_of("lognormal", "mu"), MOST_30),
    (*length_of("lognormal", "sigma"), NOT_BELOW_0, (10.0, 10.0 * UP)),
    (*length_of("lognormal", "min"), COUNT, TOKENS),
    (*length_of("lognormal", "max", min=7), (7, 6), TOKENS),
    *((*length_of(law, "min"), LEAST_1) for law in ("uniform", "powerlaw")),
    *((*length_of(law, "max"), TOKENS) for law in ("uniform", "powerlaw")),
    (*length_of("uniform", "max", min=7), (7, 6)),
    (*length_of("powerlaw", "max", min=7), (8, 7)),
    (*length_of("powerlaw", "alpha"), NOT_BELOW_0, (50.0, 50.0 * UP)),
    (*length_of("truncated_normal", "sigma"), (1.0, 0.0)),
    (*length_of("bimodal", "short_prob"), NOT_BELOW_0, MOST_1),
    (*length_of("geometric", "mean"), LEAST_1, (1e9, 1e9 * UP)),
    (*length_of("geometric", "max"), COUNT, TOKENS),
    (*length_of("constant", "value"), COUNT, TOKENS),
    ("count", lambda value: SharedPrefixes(value, 1), COUNT, (10**6, 10**6 + 1)),
    ("tokens", lambda value: SharedPrefixes(1, value), COUNT, TOKENS),
    ("zipf", lambda value: SharedPrefixes(1, 1, value), NOT_BELOW_0),
    ("arrival_rate", constant_rate, ABOVE_0),
    (*rate_of("step", "step_time"), NOT_BELOW_0),
    (*rate_of("step", "step_rate"), ABOVE_0),
    (*rate_of("sinusoidal", "amplitude"), NOT_BELOW_0, (9.0, 9.0 * UP)),
    (*rate_of("sinusoidal", "period"), ABOVE_0),
    (*rate_of("ramp", "end_rate"), ABOVE_0),
    (*rate_of("ramp", "duration"), ABOVE_0),
    *((*control_of(name, "min_size"), COUNT) for name in ("queue", "rate", "latency")),
    *((*control_of(name, "max_size"), COUNT) for name in ("queue", "rate", "latency")),
    (*control_of("queue", "interval"), NOT_BELOW_0, (0.001, 0.000999)),
    (*control_of("queue", "k"), NOT_BELOW_0),
    (*control_of("rate", "window"), ABOVE_0),
    (*control_of("rate", "headroom"), ABOVE_0),
    (*control_of("rate", "max_size"), (4096, 4097)),
    (*control_of("latency", "target"), ABOVE_0),
    (*control_of("latency", "step"), NOT_BELOW_0),
    (*control_of("latency", "backoff"), ABOVE_0, MOST_1),
    *((*policy_of("SJF-Aging", name), NOT_BELOW_0) for name in ("alpha", "aging_rate")),
    *(
        (*policy_of("Priority", name), NOT_BELOW_0)
        for name in ("beta", "urgency_weight")
    ),
    (*policy_of("Predicted-SJF", "prediction_sigma"), NOT_BELOW_0, (20.0, 20.0 * UP)),
    (*policy_of("Predicted-SJF", "random_seed"), *SEED),
    ("share", lambda value: RequestClass(share=value), NOT_BELOW_0),
    ("weight", lambda value: RequestClass(weight=value), ABOVE_0),
    ("ttft", lambda value: SLO(ttft=value), ABOVE_0),
    ("itl", lambda value: SLO(itl=value), ABOVE_0),
    ("goodput", lambda value: SLO(1.0, goodput=value), ABOVE_0, MOST_1),
    (*trial_of("replications"), COUNT),
    (*trial_of("tolerance"), (1e-4, 0.99e-4), MOST_1),
    (*trial_of("near"), ABOVE_0),
    ("gamma", lambda value: StepTime(0.0, 0.0, value), NOT_BELOW_0),
    ("window", lambda value: latency_quantile(ENDED, [1.0], value), ABOVE_0),
    (
        "quantile",
        lambda value: latency_quantile(ENDED, [1.0], 1.0, value),
        NOT_BELOW_0,
        MOST_1,
    ),
    ("ttft_limit", lambda value: goodput(ENDED, value, 1.0), NOT_BELOW_0),
    ("tpot_limit", lambda value: goodput(ENDED, 1.0, value), NOT_BELOW_0),
    ("warmup_requests", lambda value: goodput(ENDED, 1.0, 1.0, value), (1, 2), (0, -1)),
    ("most", lambda value: stats.replicate_until(float, 9.0, value), (20, 19)),
    ("window", lambda value: stats.welch([np.arange(9.0)], value), COUNT, (4, 5)),
    ("q", lambda value: stats.pooled_quantile(SAMPLES, value), (0.9, 1.0), (0.1, LESS)),
    (
        "confidence",
        lambda value: compute_confidence_interval([1.0, 2.0], value),
        (1.0 - 1e-15, 1.0),
        ABOVE_0,
    ),
    ("margin", lambda value: Verdict("", ONE, 0, 1, margin=value), NOT_BELOW_0),
    ("low", lambda value: Verdict.that_between("", ONE, value, 1.0), MOST_1),
    ("t", QUEUE.survival, NOT_BELOW_0),
    ("q", QUEUE.quantile, NOT_BELOW_0, (0.99999, 0.999991)),
    ("num_replications", lambda value: ExperimentConfig("", "", BASE, value), COUNT),
    ("random_seed_start", lambda n: ExperimentConfig("", "", BASE, 1, n), (0, -1)),
    ("num_requests", RequestGenerator(constant_rate(1.0)).generate, COUNT),
    ("window", lambda value: counts(np.array([0.0, 1.0, 4.0]), value), (2.0, 2.1)),
    ("share", LOG.first_completed, ABOVE_0, MOST_1),
    ("rate_factor", TWO.scaled, ABOVE_0),
    ("n_jobs", lambda n: [*as_finished(pow, {0: [1]}, n, 1)], COUNT, (1024, 1025)),
]


@pytest.mark.parametrize(("name", "give", "ends"), [(n, g, e) for n, g, *e in ENDS])
def test_where_what_will_do_ends(name, give, ends):
    for last, beyond in ends:
        give(last)
        said = refused(lambda its=beyond: give(its), f"{name}={beyond!r}: must be ")
        assert "-0 " not in said


@pytest.mark.parametrize(
    ("ask", "said"),
    [
        (lambda: SimulationConfig.from_json(3), "configuration=3: must be a path, or"),
        (
            lambda: get_policy("WFQ", request_classes=[1]),
            "scheduling_policy_params.request_classes=[1]: must be a tuple of RequestC",
        ),
        (
            lambda: capacity(BASE.replace(batch_size=1, **FREE), SLO(ttft=1.0)),
            "gamma=0.0: must be above 0: this server takes no time",
        ),
    ],
)
def test_what_is_refused_later_is_named_too(ask, said):
    refused(ask, said)


FREE = dict.fromkeys(("alpha", "beta", "gamma"), 0.0) | {"num_requests": 12_000}


def test_users_who_wait_have_no_load():
    users = SimulationConfig(clients=5)
    assert math.isnan(users.offered_load)
    assert math.isnan(users.peak_load)


def test_a_static_server_preempts_nobody():
    assert ENDED.preemptions.tolist() == [0, 0]
