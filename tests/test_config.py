"""A configuration is one fixed value: written, read, compared, changed by copy."""

from __future__ import annotations

import dataclasses
import json
import math
import pickle
import re
import warnings

import numpy as np
import pytest
from cases import LENGTHS, PATTERNS, POLICIES, LongestFirst, copies
from hypothesis import given
from hypothesis import strategies as st
from test_calibrate import FITTED_TO_OUR_LOGS

from llminfer import (
    PRESETS,
    ConfigError,
    FCFSPolicy,
    OverloadWarning,
    SimulationConfig,
    SimulationRunner,
    Workload,
    get_policy,
    simulate,
    sweep,
)
from llminfer.base.errors import truth
from llminfer.experiment import metrics_of, run_key
from llminfer.laws.engines import COEFFICIENTS
from llminfer.laws.fields import CHECKS
from llminfer.servers.overload import may_carry_more

PRESETS_OF_THE_DESIGN = {
    "report": (1e-3, 5e-2, 5e-4, 0, 0),
    "opt-13b-a100": (1.02e-4, 1.81e-2, 1.99e-2, 3.85e-5, 6.3e-7),
    "llama-3.1-8b-rtx4090": (9.1e-5, 4.2e-3, 1.70e-2, 4.1e-5, 1.42e-7),
    "llama-2-70b-dgx-h100": (9.9e-5, 1.8e-3, 2.98e-2, 2.1e-4, 1.73e-7),
}
WARMUP = {"num_requests": 300, "warmup_requests": 30, "random_seed": 3}


@st.composite
def configs(draw):
    named = POLICIES.filter(lambda policy: isinstance(policy[0], str))
    policy, policy_params = draw(named)
    prompts, prompt_params = draw(LENGTHS)
    outputs, output_params = draw(LENGTHS)
    pattern, pattern_params = draw(PATTERNS)
    return SimulationConfig(
        arrival_rate=draw(st.floats(6.0, 1e3)),
        arrival_pattern=pattern,
        arrival_pattern_params=pattern_params,
        prompt_length_dist=prompts,
        prompt_dist_params=prompt_params,
        output_length_dist=outputs,
        output_dist_params=output_params,
        batch_size=draw(st.integers(1, 10**6)),
        batch_timeout=draw(st.none() | st.floats(0.0, 1e6)),
        scheduling_policy=policy,
        scheduling_policy_params=policy_params,
        alpha=draw(st.floats(0.0, 1.0)),
        kappa=draw(st.sampled_from([0.0, 1e-7, 5e-324])),
        random_seed=draw(st.none() | st.integers(0, 2**70)),
    )


@given(configs())
def test_a_configuration_survives_json_repr_and_pickle(config):
    for back in copies(config):
        assert back == config
        assert hash(back) == hash(config)
        assert repr(back) == repr(config)


def test_json_goes_through_a_file(tmp_path):
    config = SimulationConfig(batch_size=7, prompt_dist_params={"mu": 3, "sigma": 1})
    config.to_json(tmp_path / "run.json")
    assert SimulationConfig.from_json(tmp_path / "run.json") == config
    assert SimulationConfig.from_json(str(tmp_path / "run.json")) == config


def test_repr_shows_what_is_not_default():
    assert repr(SimulationConfig()) == "SimulationConfig()"
    assert repr(SimulationConfig(batch_size=4)) == "SimulationConfig(batch_size=4)"


def test_lengths_of_a_trace_are_plain_and_not_copied_for_every_change():
    given = {"values": np.arange(100, 200)}
    config = SimulationConfig(prompt_length_dist="empirical", prompt_dist_params=given)
    kept = config.prompt_dist_params["values"]
    assert kept == tuple(range(100, 200))
    assert {type(value) for value in kept} == {int}
    changed = config.replace(batch_size=3).replace(arrival_rate=2.0)
    assert changed.prompt_dist_params["values"] is kept
    mixed = config.replace(prompt_dist_params={"values": [np.int64(3), 4, 5]})
    assert mixed.prompt_dist_params["values"] == (3, 4, 5)
    assert {type(value) for value in mixed.prompt_dist_params["values"]} == {int}


@pytest.mark.parametrize("number", [np.float32(2.5), np.float64(2.5), np.int64(2)])
def test_numbers_from_numpy_become_plain(number):
    config = SimulationConfig(
        arrival_rate=number,
        batch_timeout=number,
        prompt_dist_params={"mu": number, "sigma": number},
        num_requests=np.int32(600),
    )
    assert SimulationConfig.from_json(config.to_json()) == config
    assert "np." not in repr(config)


def test_defaults_are_those_of_the_source_design():
    expected = {
        "arrival_rate": 10.0,
        "arrival_pattern": "constant",
        "arrival_pattern_params": {},
        "arrival_cv": 1.0,
        "prompt_length_dist": "lognormal",
        "prompt_dist_params": {"mu": 4, "sigma": 1.5},
        "output_length_dist": "truncated_normal",
        "output_dist_params": {"mu": 100, "sigma": 30, "min": 10, "max": 500},
        "batch_size": 32,
        "batch_timeout": None,
        "scheduling_policy": "FCFS",
        "scheduling_policy_params": {},
        "alpha": 0.001,
        "beta": 0.05,
        "gamma": 0.0005,
        "delta": 0.0,
        "kappa": 0.0,
        "num_requests": 10000,
        "warmup_requests": 500,
        "random_seed": None,
    }
    made = SimulationConfig().to_dict()
    assert {name: made[name] for name in expected} == expected


def test_nothing_in_a_configuration_can_be_changed():
    values = [10, 20]
    config = SimulationConfig(
        prompt_length_dist="empirical", prompt_dist_params={"values": values}
    )
    kept = hash(config)
    values.append(30)
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.batch_size = 4
    for change in (
        lambda p: p.__setitem__("values", [1]),
        lambda p: p.update(values=[1]),
        lambda p: p.pop("values"),
        lambda p: p.clear(),
        lambda p: p["values"].append(30),
    ):
        with pytest.raises((TypeError, AttributeError)):
            change(config.prompt_dist_params)
    assert hash(config) == kept
    assert list(config.prompt_dist_params["values"]) == [10, 20]


def test_replace_takes_dotted_names_and_leaves_the_rest():
    base = SimulationConfig(batch_size=8)
    changed = base.replace(**{"prompt_dist_params.sigma": 0.5, "arrival_rate": 2})
    assert changed.prompt_dist_params == {"mu": 4, "sigma": 0.5}
    assert (changed.arrival_rate, changed.batch_size) == (2.0, 8)
    assert base.prompt_dist_params["sigma"] == 1.5
    other_law = base.replace(
        prompt_length_dist="uniform",
        prompt_dist_params={"min": 1, "max": 9},
        **{"prompt_dist_params.max": 5},
    )
    assert other_law.prompt_dist_params == {"min": 1, "max": 5}


@pytest.mark.parametrize("name", PRESETS_OF_THE_DESIGN)
def test_presets_are_the_published_ones(name):
    config = SimulationConfig.from_preset(name, batch_size=4)
    made = (config.alpha, config.beta, config.gamma, config.delta, config.kappa)
    assert made == PRESETS_OF_THE_DESIGN[name]
    pairs = 1.42e-8 if name == "opt-13b-a100" else 0.0
    assert (config.epsilon, config.launch, config.step_law) == (pairs, 0.0, "sum")
    assert config.async_scheduling is False
    assert config.batch_size == 4
    assert PRESETS[name].source


FITTED = {  # to logs of vLLM: the seven coefficients, and the largest batch
    "llama-3.1-8b-rtx4090-vllm": (
        *(9.19e-5, 1.30e-2, 1.81e-2, 3.77e-5, 1.24e-7, 9.84e-9, 0.0),
        48,
    ),
    "qwen3-32b-2xrtxpro6000": (
        *(1.46e-4, 1.24e-2, 2.69e-2, 5.53e-5, 1.85e-7, 2.84e-8, 0.0),
        128,
    ),
    "llama-3.1-8b-h200": (
        *(2.05e-5, 1.62e-3, 4.83e-3, 1.96e-5, 3.51e-8, 1.25e-9, 1.44e-2),
        28,
    ),
}


@pytest.mark.parametrize("name", FITTED)
def test_presets_that_were_fitted_are_those_of_the_fit(name):
    its = SimulationConfig.from_preset(name)
    made = tuple(getattr(its, key) for key in COEFFICIENTS)
    assert (*made, PRESETS[name].largest_batch) == FITTED[name]
    assert (its.step_law, its.graph_tokens) == ("roofline", 512)
    assert its.async_scheduling is True


def test_other_presets_are_held_to_the_logs_that_they_were_fitted_to():
    assert {*PRESETS} == {*PRESETS_OF_THE_DESIGN, *FITTED_TO_OUR_LOGS}


ALONE = {
    "max_batched_tokens": 4096,
    "kv_blocks": 64,
    "block_size": 32,
    "chunked_prefill": False,
    "reserve_full_prompt": False,
    "prefix_caching": True,
    "replicas": 2,
    "router": "least_loaded",
}


@pytest.mark.parametrize("name", ALONE)
def test_a_static_server_refuses_what_only_a_continuous_one_has(name):
    usual, value = getattr(SimulationConfig(), name), ALONE[name]
    expected = (
        f'{name}={value!r}: must be {usual!r} unless server="continuous", which alone '
        "has it"
    )
    for make in (
        lambda: SimulationConfig(**{name: value}),
        lambda: SimulationConfig().replace(**{name: value}),
        lambda: SimulationConfig(server="continuous").replace(
            server="static", **{name: value}
        ),
        lambda: SimulationConfig.from_json(json.dumps({name: value})),
        lambda: SimulationConfig.from_preset("report", **{name: value}),
    ):
        with pytest.raises(ConfigError) as caught:
            make()
        assert str(caught.value) == expected
    engine = SimulationConfig(server="continuous", **{name: value})
    assert engine.replace(server="static") == SimulationConfig()
    assert getattr(engine.replace(server="continuous"), name) == value


@pytest.mark.parametrize("preset", PRESETS)
def test_an_engine_is_continuous_unless_told_otherwise(preset):
    kind = "static" if preset == "report" else "continuous"
    assert SimulationConfig.from_preset(preset).server == kind
    for server in ("static", "continuous"):
        assert SimulationConfig.from_preset(preset, server=server).server == server
    if kind == "continuous":
        assert SimulationConfig.from_preset(preset, kv_blocks=64).kv_blocks == 64


def test_batches_beyond_those_a_preset_was_fitted_to_are_said():
    fitted = SimulationConfig.from_preset(
        "opt-13b-a100", server="static", batch_size=94, arrival_rate=0.5, **WARMUP
    )
    beyond = fitted.replace(batch_size=95)
    controlled = fitted.replace(
        batch_control="queue", batch_control_params={"max_size": 200}
    )
    for config, size in ((beyond, 95), (controlled, 200)):
        said = f"batches of {size}: opt-13b-a100 was fitted to batches of at most 94;"
        for run in (
            SimulationRunner(config).run,
            lambda config=config: simulate(config),
            lambda config=config: sweep(config, {}, replications=2, n_jobs=1),
        ):
            with pytest.warns(UserWarning, match=said) as caught:
                run()
            assert len(caught) == 1
            assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        SimulationRunner(fitted).run()
        SimulationRunner(beyond.replace(gamma=0.02)).run()  # coefficients of one's own
        SimulationRunner(beyond.replace(**PRESETS["report"].coefficients)).run()


def test_a_continuous_server_says_so_where_its_batches_got_there():
    config = SimulationConfig.from_preset(
        "llama-3.1-8b-h200", batch_size=64, arrival_rate=8.0, **WARMUP
    )
    known = PRESETS["llama-3.1-8b-h200"].largest_batch
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert simulate(config).batch_size.max() <= known
    with pytest.warns(
        UserWarning, match=r"batches of \d+: llama-3.1-8b-h200 was fitted"
    ):
        busy = simulate(config.replace(arrival_rate=60.0))
    assert known < busy.batch_size.max() <= 64


def test_an_unknown_preset_brings_the_nearest():
    with pytest.raises(ConfigError, match=r"did you mean opt-13b-a100\?"):
        SimulationConfig.from_preset("opt13b-a100")


def expected_batch_time(config):
    """E[T_B] from the laws' own tables (THEORY 7)."""
    b = config.batch_size
    chance = config.outputs.pmf()
    greatest = np.diff(np.cumsum(chance) ** b, prepend=0.0)
    m = np.arange(len(chance))
    prompts = config.prompts.pmf()
    tokens = b * (np.arange(len(prompts)) * prompts).sum()
    roofline = config.step_law == "roofline"
    weights = max(config.gamma, config.alpha * b) if roofline else config.gamma
    decode = (weights + config.delta * b) * m
    cache = config.kappa * (tokens * m + b * m * (m - 1) / 2)
    square = (np.arange(len(prompts)) ** 2 * prompts).sum()
    prefill = config.alpha * tokens + config.epsilon * b * square / 2
    return prefill + config.beta + (greatest * (decode + cache)).sum()


@pytest.mark.parametrize("preset", PRESETS_OF_THE_DESIGN)
@pytest.mark.parametrize("batch_size", [1, 8, 256])
def test_the_stable_rate_is_the_batch_over_its_expected_time(preset, batch_size):
    config = SimulationConfig.from_preset(
        preset,
        server="static",
        batch_size=batch_size,
        prompt_dist_params={"mu": 4, "sigma": 1},
    )
    assert config.max_stable_rate == pytest.approx(
        batch_size / expected_batch_time(config), rel=1e-8
    )
    load = config.arrival_rate / config.max_stable_rate
    assert config.offered_load == pytest.approx(load)
    assert config.peak_load == pytest.approx(load)


def test_a_varying_rate_has_a_mean_load_and_a_peak_load():
    wave = SimulationConfig(
        arrival_pattern="sinusoidal",
        arrival_pattern_params={"amplitude": 8, "period": 36},
        num_requests=3_600,  # ten periods
    )
    assert wave.offered_load == pytest.approx(10 / wave.max_stable_rate)
    assert wave.peak_load == pytest.approx(18 / wave.max_stable_rate)
    step = SimulationConfig(
        arrival_rate=1,
        arrival_pattern="step",
        arrival_pattern_params={"step_time": 100, "step_rate": 3},
        num_requests=400,  # a hundred at 1/s, then three hundred at 3/s
        warmup_requests=0,
    )
    assert step.offered_load == pytest.approx(2 / step.max_stable_rate)
    assert step.peak_load == pytest.approx(3 / step.max_stable_rate)


def test_work_that_takes_no_time_never_overloads():
    config = SimulationConfig(alpha=0, beta=0, gamma=0)
    assert config.max_stable_rate == math.inf
    assert config.offered_load == 0.0


@pytest.mark.parametrize("batch_size", [1, 8, 32, 128, 4096])
def test_the_planned_rate_overloads_every_batch_size(batch_size):
    config = SimulationConfig(batch_size=batch_size)
    assert config.offered_load > 1.0
    assert config.max_stable_rate < 1 / (0.001 * config.prompts.expectation()) < 5.97


def test_running_an_overloaded_configuration_warns_with_the_numbers():
    config = SimulationConfig(**WARMUP)
    with pytest.warns(OverloadWarning) as caught:
        SimulationRunner(config).run()
    assert len(caught) == 1
    message = str(caught[0].message)
    assert "10 requests/s" in message
    assert "batch_size=32" in message
    assert f"{config.max_stable_rate:.3g}" in message
    assert f"{config.offered_load:.2f}" in message
    assert caught[0].filename == __file__


def test_a_stable_run_and_a_given_workload_of_less_do_not_warn():
    config = SimulationConfig(**WARMUP)
    stable = config.replace(arrival_rate=2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        SimulationRunner(stable).run()
        SimulationRunner(config, Workload.generate(stable)).run()


GEOMETRIC = {"output_length_dist": "geometric", "output_dist_params": {"mean": 100}}


@pytest.mark.parametrize(
    ("changes", "may"),
    [
        ({}, False),
        ({"scheduling_policy": "SJF"}, True),
        ({"scheduling_policy": "Predicted-SJF"}, True),
        ({"scheduling_policy": "Priority"}, True),
        ({"scheduling_policy": "SJF", "batch_size": 1}, False),
        ({"scheduling_policy": LongestFirst()}, True),
        ({"server": "continuous"}, False),
        ({"server": "continuous", **GEOMETRIC, "scheduling_policy": "SJF"}, False),
        ({"server": "continuous", "output_dist_params.sigma": 5}, True),
        (
            {
                "server": "continuous",
                "output_length_dist": "empirical",
                "output_dist_params": {"values": [20, 100]},
            },
            True,
        ),
        (
            {
                "server": "continuous",
                "output_length_dist": "empirical",
                "output_dist_params": {"values": [20.5, 100, 101]},
            },
            False,
        ),
    ],
)
def test_the_warning_says_may_where_the_rate_is_a_lower_bound(changes, may):
    config = SimulationConfig(**WARMUP).replace(**changes)
    assert may_carry_more(config) is may
    with pytest.warns(OverloadWarning) as caught:
        SimulationRunner(config).run()
    message = str(caught[0].message)
    assert message.startswith("may be overloaded: 10 " if may else "overloaded: 10 ")
    assert ("at least" if may else "at most") in message
    assert ("may grow" in message) is may


def test_sjf_carries_more_in_static_batches_than_the_rate_it_is_warned_of():
    """At load 1.1 the queue of a long run stays short."""
    config = SimulationConfig(
        batch_size=16,
        batch_timeout=0.0,
        scheduling_policy="Predicted-SJF",
        prompt_dist_params={"mu": 4, "sigma": 0.5, "max": 2048},
        output_length_dist="lognormal",
        output_dist_params={"mu": 5, "sigma": 1, "max": 2048},
        num_requests=20_000,
        random_seed=1,
        **PRESETS["llama-3.1-8b-rtx4090"].coefficients,
    )
    config = config.replace(arrival_rate=1.1 * config.max_stable_rate)
    with pytest.warns(OverloadWarning, match=r"^may be overloaded: .*load 1\.10"):
        record = simulate(config)
    assert np.sum(record.processing_start_time > record.arrival_time[-1]) < 400


def test_a_policy_object_works_wherever_a_name_does():
    policy = FCFSPolicy()
    config = SimulationConfig(scheduling_policy=policy)
    assert type(config.policy()) is FCFSPolicy
    assert config.policy() is not policy  # a run leaves no trace in the reader's own
    assert pickle.loads(pickle.dumps(config)).batch_size == 32
    with pytest.raises(ConfigError, match=r"scheduling_policy=.*a name"):
        config.to_json()


def test_a_policy_knows_the_coefficients_of_its_configuration():
    config = SimulationConfig(
        alpha=0.5, beta=0.25, gamma=2.0, scheduling_policy="Priority"
    )
    policy = config.policy()
    assert (policy.alpha, policy.beta, policy.gamma) == (0.5, 0.25, 2.0)
    assert get_policy("Priority", aging_rate=3.0).aging_rate == 3.0


@pytest.mark.parametrize("field", dataclasses.fields(SimulationConfig))
def test_every_field_has_its_check(field):
    by_its_law = "pattern$|dist$|control$|policy$"
    assert field.name in CHECKS or re.search(by_its_law, field.name)
    assert (field.type is bool) == (CHECKS.get(field.name) is truth)


def test_numbers_of_numpy_are_written_as_any_other():
    own = {"patience": np.int64(3), "turns": np.int64(2), "clients": np.int64(4)}
    config = SimulationConfig(**own, alpha=np.float64(0.5))
    assert SimulationConfig.from_json(config.to_json()) == config


# all fields at once, of both servers

WHOLES, SMALL = st.integers(1, 10**6), st.integers(1, 40)
TIMES = st.floats(0.0, 1e6)
PEOPLE = st.one_of(
    st.floats(0.1, 60.0),
    st.fixed_dictionaries(
        {"dist": st.just("exponential"), "mean": st.floats(0.1, 60.0)}
    ),
    st.fixed_dictionaries(
        {
            "dist": st.just("uniform"),
            "min": st.floats(0.1, 1.0),
            "max": st.floats(2.0, 60.0),
        }
    ),
)
SHARED = st.fixed_dictionaries(
    {"count": SMALL, "tokens": SMALL}, optional={"zipf": st.floats(0.0, 2.0)}
)
CLASSES = st.dictionaries(
    st.sampled_from(["chat", "batch", "agent"]),
    st.fixed_dictionaries(
        {"share": st.floats(0.1, 9.0)},
        optional={"weight": st.floats(0.1, 9.0), "base_priority": st.floats(-9.0, 9.0)},
    ),
)
CONTROL = st.one_of(
    st.just(("static", {})),
    st.tuples(
        st.just("latency"),
        st.fixed_dictionaries({"target": st.floats(0.1, 9.0), "max_size": SMALL}),
    ),
)
FREE = {  # fields whose values go with any others
    "max_concurrency": st.none() | WHOLES,
    "clients": WHOLES,
    "think_time": PEOPLE,
    "turns": st.none() | SMALL,
    "queue_limit": st.none() | WHOLES,
    "patience": st.none() | PEOPLE,
    "request_timeout": st.none() | PEOPLE,
    "shared_prefixes": st.just({}) | SHARED,
    "request_classes": CLASSES,
    **dict.fromkeys(("delta", "epsilon", "beta", "gamma"), TIMES),
    "step_law": st.just("roofline"),
    "launch": TIMES,
    "graph_tokens": WHOLES,
    "num_requests": st.integers(501, 10**6),
    "warmup_requests": st.integers(0, 500),
}
OF_THE_CONTINUOUS = {
    "server": st.just("continuous"),
    "max_batched_tokens": st.integers(10**6, 10**7),
    "kv_blocks": st.integers(10**6, 10**7),
    "block_size": SMALL,
    "chunked_prefill": st.booleans(),
    "reserve_full_prompt": st.booleans(),
    "prefix_caching": st.just(True),
    "async_scheduling": st.booleans(),
    "replicas": SMALL,
    "router": st.sampled_from(["random", "least_loaded", "longest_prefix"]),
}


@st.composite
def whole_configs(draw):
    """Configurations of all fields, each of them drawn."""
    config = draw(configs())
    given = {name: draw(law) for name, law in FREE.items()}
    if draw(st.booleans()):
        given |= {name: draw(law) for name, law in OF_THE_CONTINUOUS.items()}
    else:
        control, params = draw(CONTROL)
        given |= {"batch_control": control, "batch_control_params": params}
    if draw(st.booleans()):
        few = st.lists(st.floats(0.1, 9.0), min_size=1, max_size=9)  # repr cuts many
        given |= {"arrival_gaps": draw(few)}
    else:
        given |= {"arrival_cv": draw(st.floats(0.0, 100.0))}
    return config.replace(**given)


def test_the_strategy_draws_every_field():
    """So that none is added without being written and read back."""
    of_laws = "arrival_pattern prompt_length_dist output_length_dist batch_control"
    of_laws += " scheduling_policy arrival_pattern_params prompt_dist_params"
    of_laws += " output_dist_params batch_control_params scheduling_policy_params"
    drawn = {*of_laws.split(), *FREE, *OF_THE_CONTINUOUS, "arrival_gaps", "arrival_cv"}
    drawn |= {"arrival_rate", "batch_size", "batch_timeout", "alpha", "kappa"}
    every = {f.name for f in dataclasses.fields(SimulationConfig)}
    assert every == drawn | {"random_seed"}


@given(whole_configs())
def test_every_field_survives_json_repr_and_pickle(config):
    plain = json.loads(config.to_json())
    for back in copies(config):
        assert back == config
        assert hash(back) == hash(config)
        assert json.loads(back.to_json()) == plain


BASE = {"server": "continuous", "prefix_caching": True, "random_seed": 1}
CLIENTS, ROOFLINE = {"clients": 5}, {"step_law": "roofline"}
RAMPS = [{"end_rate": rate, "duration": 9.0} for rate in (4.0, 5.0)]
TWO_CLASSES = [{"a": {"share": share}, "b": {"share": 1}} for share in (1, 2)]
OTHERWISE = {  # values that are not one more or the opposite, and what goes with them
    "arrival_pattern": ({}, {"arrival_pattern_params": RAMPS[0]}, "ramp"),
    "arrival_pattern_params": (
        {"arrival_pattern": "ramp", "arrival_pattern_params": RAMPS[0]},
        {},
        RAMPS[1],
    ),
    "arrival_gaps": ({}, {}, (1.0, 2.0)),
    "think_time": (CLIENTS, {}, {"dist": "constant", "value": 3.0}),
    "turns": (CLIENTS, {}, 7),
    "prompt_length_dist": ({}, {"prompt_dist_params": {"value": 9}}, "constant"),
    "prompt_dist_params": ({}, {}, {"mu": 4, "sigma": 1.1}),
    "shared_prefixes": ({}, {}, {"count": 3, "tokens": 9}),
    "output_length_dist": ({}, {"output_dist_params": {"mean": 9}}, "geometric"),
    "output_dist_params": ({}, {}, {"mu": 90, "sigma": 30, "min": 10, "max": 500}),
    "batch_control": ({"batch_control": "rate"}, {}, "queue"),
    "batch_control_params": ({"batch_control": "queue"}, {}, {"k": 2.0}),
    "scheduling_policy": ({}, {}, "SJF"),
    "scheduling_policy_params": (
        {"scheduling_policy": "Priority"},
        {},
        {"aging_rate": 3.0},
    ),
    "request_classes": ({"request_classes": TWO_CLASSES[0]}, {}, TWO_CLASSES[1]),
    "step_law": ({}, {}, "roofline"),
    "launch": (ROOFLINE, {}, 1.0),
    "server": ({"prefix_caching": False}, {}, "static"),
    "router": ({"replicas": 2}, {}, "random"),
}


@pytest.mark.parametrize(
    "field", [f.name for f in dataclasses.fields(SimulationConfig)]
)
def test_every_field_tells_configurations_and_their_stored_runs_apart(field):
    before, with_it, value = OTHERWISE.get(field, ({}, {}, None))
    base = SimulationConfig(**{**BASE, **before})
    if field not in OTHERWISE:
        usual = getattr(base, field)
        value = not usual if isinstance(usual, bool) else (usual or 0) + 1
    other = base.replace(**{field: value, **with_it})
    assert other != base
    assert hash(other) != hash(base)
    assert repr(other) != repr(base)
    assert run_key(other, metrics_of) != run_key(base, metrics_of)
    assert run_key(base.replace(), metrics_of) == run_key(base, metrics_of)


def test_classes_in_another_order_are_numbered_otherwise():
    one, other = (
        SimulationConfig(request_classes=its, random_seed=1)
        for its in ({"a": {}, "b": {}}, {"b": {}, "a": {}})
    )
    assert run_key(one, metrics_of) != run_key(other, metrics_of)
