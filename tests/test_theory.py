"""Theory of one server at a time, against closed forms and brute force."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_up import Listed

from llminfer import ConfigError, SimulationConfig, theory
from llminfer.laws.lengths import LENGTH_LAWS, Empirical, Uniform
from llminfer.policies import FCFSPolicy, KeyedPolicy, SJFPolicy
from llminfer.theory.service_time import BatchTime, batch_transforms, invert
from llminfer.theory.single_server import MG1, by_key
from llminfer.timing import StepTime

CAPPED = {"mu": 4, "sigma": 1.5, "max": 8192}
PROMPTS = Empirical((1, 4, 9), (5, 3, 1))
OUTPUTS = Empirical((1, 2, 5), (1, 2, 2))
STEPS = {
    "report": StepTime(0.3, 0.2, 0.1),
    "sequences cost": StepTime(0.3, 0.2, 0.1, 0.05),
    "contexts cost": StepTime(0.3, 0.2, 0.1, 0.05, 0.02),
}
S = np.array([0.3, 1.0 + 2.0j, 0.1 - 5.0j, 4.0j, -0.05])


def all_batches(step, size):
    """Times and chances of every batch there can be."""
    requests = list(itertools.product((1, 4, 9), (1, 2, 5)))
    chance = {(p, o): a * b for p, a in zip((1, 4, 9), (5, 3, 1), strict=True)
              for o, b in zip((1, 2, 5), (1, 2, 2), strict=True)}  # fmt: skip
    seconds, weights = [], []
    for batch in itertools.product(requests, repeat=size):
        tokens, longest = sum(p for p, _ in batch), max(o for _, o in batch)
        decode = sum(
            step.gamma + step.delta * size + step.kappa * (tokens + size * done)
            for done in range(longest)
        )
        seconds.append(step.alpha * tokens + step.beta + decode)
        weights.append(math.prod(chance[request] for request in batch))
    weights = np.array(weights) / sum(weights)
    return np.array(seconds), weights


@pytest.mark.parametrize("name", STEPS)
@pytest.mark.parametrize("size", [1, 2, 3])
def test_a_batchs_time_has_the_moments_and_transform_of_all_batches(name, size):
    step = STEPS[name]
    seconds, chance = all_batches(step, size)
    time = BatchTime(step, PROMPTS, OUTPUTS, size)
    for power in (1, 2, 3):
        assert time.moment(power) == pytest.approx(chance @ seconds**power, rel=1e-12)
    expected = np.exp(-np.outer(S, seconds)) @ chance
    np.testing.assert_allclose(time.transform(S), expected, rtol=1e-12)
    together = batch_transforms(step, PROMPTS, OUTPUTS, [1, 2, 3], S)
    np.testing.assert_allclose(together[size - 1], expected, rtol=1e-12)


def test_many_outputs_that_stretch_prompts_are_interpolated_to_the_last_digits():
    step = StepTime(0.01, 0.0, 0.02, 0.0, 1e-5)
    prompts, outputs = Uniform(1, 60), Uniform(1, 400)
    s = np.array([0.2 + 3.0j, 1.0 + 0.0j])
    p, m = np.arange(1, 60)[:, None], np.arange(1, 400)
    seconds = 0.01 * p + m * (0.02 + 1e-5 * p) + 1e-5 * m * (m - 1) / 2
    direct = np.exp(-s[:, None, None] * seconds).mean(axis=(1, 2))
    found = BatchTime(step, prompts, outputs).transform(s)
    np.testing.assert_allclose(found, direct, rtol=1e-11)


class Exponential:
    """Service times for which everything is known."""

    def __init__(self, mean):
        self.mean = mean

    def moment(self, power):
        return math.factorial(power) * self.mean**power

    def transform(self, s):
        return 1.0 / (1.0 + self.mean * s)


def test_inversion_gives_back_a_known_function():
    t = np.array([0.01, 0.5, 3.0, 20.0])
    np.testing.assert_allclose(invert(lambda s: 1.0 / (s + 0.7), t), np.exp(-0.7 * t),
                               atol=3e-10)  # fmt: skip


def test_mm1_waits_are_exponential_beyond_an_atom():
    queue = MG1(0.6, Exponential(1.25))
    load, decay = 0.75, 0.8 - 0.6
    assert queue.mean == pytest.approx(load / decay, rel=1e-12)
    variance = load * (2 - load) / decay**2
    assert queue.variance == pytest.approx(variance, rel=1e-12)
    t = np.array([0.0, 0.1, 1.0, 7.0, 40.0])
    np.testing.assert_allclose(queue.survival(t), load * np.exp(-decay * t), atol=1e-9)
    assert queue.quantile(0.2) == 0.0
    p99 = math.log(load / 0.01) / decay
    assert queue.quantile(0.99) == pytest.approx(p99, rel=1e-6)
    assert queue.mean_latency == pytest.approx(queue.mean + 1.25)


def test_md1_waits_follow_erlangs_series():
    """Erlang (1909): P(W <= t) as a sum over the services that fit into t."""
    rate, t = 0.7, np.array([0.3, 0.8, 1.5, 2.4, 3.7])
    queue = MG1(rate, Listed(np.array([1.0]), np.array([1.0])))

    def erlang(t):
        terms = ((rate * (k - t)) ** k / math.factorial(k) * math.exp(-rate * (k - t))
                 for k in range(int(t) + 1))  # fmt: skip
        return (1 - rate) * sum(terms)

    expected = [1.0 - erlang(x) for x in t]
    np.testing.assert_allclose(queue.survival(t), expected, atol=2e-4)
    assert queue.mean == pytest.approx(rate / (2 * (1 - rate)))
    assert queue.variance == pytest.approx(queue.mean**2 + rate / (3 * (1 - rate)))


SINGLE = SimulationConfig(batch_size=1, prompt_dist_params=CAPPED)


product_form = theory.product_form_latency


def inoue(config):
    return theory.inoue_latency(config, mean_batch=1.0)


@pytest.mark.parametrize("kappa", [0.0, 2e-5])
def test_the_waits_of_a_configuration_are_those_of_the_sum_of_its_two_laws(kappa):
    config = SINGLE.replace(
        arrival_rate=2.0,
        kappa=kappa,
        prompt_dist_params={"mu": 3, "sigma": 1, "max": 99},
        output_dist_params={"mu": 30, "sigma": 20, "min": 1, "max": 80},
    )
    prompts, outputs = config.prompts.pmf(), config.outputs.pmf()
    p, m = np.nonzero(np.outer(prompts, outputs))
    joint = prompts[p] * outputs[m]
    seconds = config.step_time.alone(p, m)
    brute = MG1(2.0, Listed(seconds, joint / joint.sum()))
    queue = theory.mg1(config)
    assert queue.mean == pytest.approx(brute.mean, rel=1e-12)
    assert queue.variance == pytest.approx(brute.variance, rel=1e-12)
    t = np.array([0.01, 0.1, 0.7])
    np.testing.assert_allclose(queue.survival(t), brute.survival(t), atol=1e-10)
    assert queue.quantile(0.99) == pytest.approx(brute.quantile(0.99), rel=1e-6)


def test_prompts_without_a_cap_have_a_mean_wait_and_no_table():
    config = SINGLE.replace(
        arrival_rate=3.0, prompt_dist_params={"mu": 4, "sigma": 1.5}
    )
    capped = config.replace(prompt_dist_params={"mu": 4, "sigma": 1.5, "max": 10**6})
    assert 1.0 < theory.mg1(config).mean / theory.mg1(capped).mean < 1.001
    for ask in (lambda: theory.mg1(config).variance, lambda: theory.bulk_queue(config)):
        with pytest.raises(ConfigError, match="max=None: must be given"):
            ask()


# Priority


def test_two_classes_are_cobhams():
    rates, mean, square = (
        np.array([0.3, 0.2]),
        np.array([1.0, 2.0]),
        np.array([2.0, 7.0]),
    )
    found = by_key(0.5, [1, 2], rates / 0.5, mean, rates @ square / 0.5)
    first = rates @ square / 2 / (1 - 0.3)
    np.testing.assert_allclose(found.wait, [first, first / (1 - 0.7)], rtol=1e-12)
    np.testing.assert_array_equal(found.key, [1, 2])
    assert found.mean == pytest.approx(0.6 * first + 0.4 * first / 0.3)
    assert found.mean_latency == pytest.approx(found.mean + 1.4)


CLASSES = st.lists(
    st.tuples(st.integers(0, 5), st.floats(0.1, 1.0), st.floats(0.1, 3.0)),
    min_size=1,
    max_size=8,
)


@given(CLASSES, st.floats(0.1, 0.95))
def test_no_order_changes_the_work_that_waits_and_like_classes_merge(classes, load):
    key, share, mean = map(np.array, zip(*classes, strict=True))
    share = share / share.sum()
    rate, second = load / (share @ mean), 2.5 * (share @ mean**2)
    fcfs = by_key(rate, [0], [1], [share @ mean], second)
    found = by_key(rate, key, share, mean, second)
    assert found.mean_work == pytest.approx(fcfs.mean_work, rel=1e-9)
    split = by_key(rate, [*key, *key], [*share / 4, *share * 0.75], [*mean] * 2,
                          second)  # fmt: skip
    np.testing.assert_allclose(split.wait, found.wait, rtol=1e-9)


def test_sjf_by_prompt_beats_fcfs_and_conserves_work():
    config = SINGLE.replace(arrival_rate=3.2)
    fcfs, sjf = (
        theory.priority(config.replace(scheduling_policy=name))
        for name in ("FCFS", "SJF")
    )
    assert fcfs.mean == pytest.approx(theory.mg1(config).mean, rel=1e-12)
    assert sjf.mean < 0.5 * fcfs.mean
    assert sjf.mean_work == pytest.approx(theory.conserved_work(config), rel=1e-9)
    assert (np.diff(sjf.wait) >= 0.0).all()
    assert sjf.share @ sjf.service == pytest.approx(
        theory.mg1(config).service.moment(1)
    )


@pytest.fixture(scope="module")
def predicted():
    """Predicted-SJF where outputs matter as much as prompts do."""
    return SimulationConfig(
        arrival_rate=3.0,
        batch_size=1,
        prompt_length_dist="uniform",
        prompt_dist_params={"min": 1, "max": 200},
        output_length_dist="geometric",
        output_dist_params={"mean": 30, "max": 300},
        gamma=0.003,
        kappa=1e-6,
        scheduling_policy="Predicted-SJF",
    )


def by_pairs(config, key):
    """The waits under any key of (prompt, output), pair by pair."""
    prompts, outputs = config.prompts.pmf(), config.outputs.pmf()
    p, m = np.nonzero(np.outer(prompts, outputs))
    seconds, joint = config.step_time.alone(p, m), prompts[p] * outputs[m]
    second = joint @ seconds**2
    return by_key(config.arrival_rate, key(p, m), joint, seconds, second)


def test_a_perfect_prediction_is_shortest_job_first(predicted):
    config = predicted.replace(kappa=0.0)
    shortest = theory.priority(config)
    brute = by_pairs(config, config.step_time.alone)
    assert shortest.mean == pytest.approx(brute.mean, rel=1e-9)
    by_prompt = theory.priority(config.replace(scheduling_policy="SJF"))
    assert shortest.mean < by_prompt.mean


@pytest.mark.parametrize("policy", ["SJF", "Predicted-SJF"])
def test_a_key_that_knows_nothing_of_the_cache_is_taken_as_it_is(predicted, policy):
    config = predicted.replace(
        arrival_rate=2.0, alpha=0.0013717, kappa=2e-5, scheduling_policy=policy
    )  # an alpha with which no two keys are equal
    known = {
        "SJF": lambda p, m: p,
        "Predicted-SJF": lambda p, m: config.alpha * p + config.gamma * m,
    }[policy]
    found, brute = theory.priority(config), by_pairs(config, known)
    assert found.mean == pytest.approx(brute.mean, rel=1e-9)
    assert found.mean_work == pytest.approx(theory.conserved_work(config), rel=1e-9)


def test_noise_costs_and_grows_out_of_perfect_prediction(predicted):
    waits = [
        theory.priority(
            predicted.replace(scheduling_policy_params={"prediction_sigma": sigma})
        ).mean
        for sigma in (0.0, 0.003, 0.5, 1.0, 2.0)
    ]
    assert waits[1] == pytest.approx(waits[0], rel=1e-4)
    assert (np.diff(waits) > 0.0).all()
    blind = predicted.replace(
        alpha=0.0, scheduling_policy_params={"prediction_sigma": 20.0}
    )
    fcfs = theory.mg1(
        blind.replace(scheduling_policy="FCFS", scheduling_policy_params={})
    )
    assert theory.priority(blind).mean == pytest.approx(fcfs.mean, rel=0.03)


# What lies outside the assumptions


@pytest.mark.parametrize(
    ("ask", "changes", "message"),
    [
        (theory.mg1, {"arrival_rate": 10.0},
         r"arrival_rate=10.0: must be below 3.768 requests a second: .* 2.654"),
        (theory.mg1, {"batch_size": 2}, r"batch_size=2: must be 1"),
        (theory.mg1, {"arrival_pattern": "step", "arrival_pattern_params":
                      {"step_time": 1.0, "step_rate": 1.0}}, "arrival_pattern='step'"),
        (theory.mg1, {"arrival_cv": 2.0}, r"arrival_cv=2.0: must be 1.0 for this law"),
        (theory.mg1, {"scheduling_policy": "SJF"}, "scheduling_policy='SJF': must be"),
        (theory.priority, {"scheduling_policy": "Priority"}, "looks at nothing but"),
        (theory.priority, {"scheduling_policy": "WFQ"}, "whose key never changes"),
        (theory.priority, {"batch_control": "queue"}, "batch_control='queue': must be"),
        (theory.priority, {"arrival_rate": 4.0}, "the load is 1.06"),
        (theory.bulk_queue, {"batch_size": 32, "arrival_rate": 6.0},
         r"below 5.894 requests a second: the load is 1.018"),
        (theory.bulk_queue, {"batch_size": 2, "batch_timeout": 0.5},
         "batch_timeout=0.5: must be 0 or None"),
        (theory.bulk_queue, {"arrival_rate": 3.7679}, "too near 1"),
        (theory.bulk_queue, {"scheduling_policy": "SJF"}, "must be FCFS"),
        (theory.bulk_queue, {"prompt_dist_params": {"mu": 4, "sigma": 1.5}},
         r"prompt_dist_params.max=None: must be given"),
        (theory.continuous, {"server": "continuous"},
         "output_length_dist='truncated_normal'"),
        (inoue, {"batch_timeout": 0}, "must be constant, alike for all classes"),
        (inoue, {}, "batch_timeout=None: must be 0"),
        (theory.assembly_bound, {"batch_timeout": 0}, "timeout=0.0: must be None"),
        (product_form, {"server": "continuous"}, "alpha=0.001: must be 0"),
        (product_form, {}, "server=.static.: must be continuous"),
        (product_form, {"server": "continuous", "kv_blocks": 900}, "kv_blocks"),
        (product_form, {"server": "continuous", "replicas": 2}, "replicas=2"),
    ],
)  # fmt: skip
def test_outside_its_assumptions_theory_says_so_in_one_line(ask, changes, message):
    with pytest.raises(ConfigError, match=message) as error:
        ask(SINGLE.replace(**{"arrival_rate": 2.0, **changes}))
    assert "\n" not in str(error.value)


def test_low_level_functions_check_what_they_are_given():
    with pytest.raises(ConfigError, match=r"q=1.5: must be"):
        MG1(0.5, Exponential(1.0)).quantile(1.5)
    with pytest.raises(ConfigError, match=r"the load is 2"):
        MG1(2.0, Exponential(1.0))


def cobham(rate, share, service, second_moment):
    """E[W] under least key first, one key after another."""
    mean = ahead = 0.0
    for part, time in zip(share, service, strict=True):
        behind = ahead + rate * part * time
        mean += part / ((1.0 - ahead) * (1.0 - behind))
        ahead = behind
    return mean * rate * second_moment / 2.0


@given(
    alpha=st.floats(1.05, 3.0),
    low=st.integers(1, 50),
    high=st.integers(100, 3_000),
    load=st.floats(0.1, 0.9),
)
def test_no_law_of_lengths_has_a_negative_chance(alpha, low, high, load):
    law = {"alpha": alpha, "min": low, "max": high}
    config = SINGLE.replace(
        prompt_length_dist="powerlaw",
        prompt_dist_params=law,
        scheduling_policy="SJF",
    )
    config = config.replace(arrival_rate=load * config.max_stable_rate)
    chance = config.prompts.pmf()
    assert chance.min() >= 0.0
    assert chance.sum() == pytest.approx(1.0, abs=1e-12)
    waits = theory.priority(config)
    assert waits.mean_work == pytest.approx(theory.conserved_work(config), rel=1e-9)
    tokens = np.arange(len(chance))
    steps, spread = config.outputs.expectation(), config.outputs.variance()
    service = config.alpha * tokens + config.beta + config.gamma * steps
    second = chance @ service**2 + config.gamma**2 * spread
    exact = cobham(config.arrival_rate, chance, service, second)
    assert waits.mean == pytest.approx(exact, rel=1e-9)


def test_power_laws_of_outputs_have_an_answer():
    config = SINGLE.replace(
        arrival_rate=1.0,
        output_length_dist="powerlaw",
        output_dist_params={"alpha": 1.6, "min": 10, "max": 3_000},
        prompt_dist_params={"mu": 4, "sigma": 1.5, "max": 400},
        scheduling_policy="Predicted-SJF",
        gamma=0.001,
    )
    waits = theory.priority(config)
    assert waits.mean_work == pytest.approx(theory.conserved_work(config), rel=1e-9)


class OtherTable(Uniform):
    """Its table leaves out the longest prompts, its moments do not."""

    def pmf(self):
        return super().pmf()[:60]


@pytest.mark.parametrize("policy", ["SJF", "FCFS"])
def test_a_law_whose_table_is_not_its_moments_has_no_waits_by_length(
    policy, monkeypatch
):
    law = {"min": 1, "max": 100}
    config = SINGLE.replace(
        arrival_rate=0.01,
        prompt_length_dist="uniform",
        prompt_dist_params=law,
        scheduling_policy=policy,
    )
    exact = theory.priority(config).mean
    monkeypatch.setitem(LENGTH_LAWS, "uniform", OtherTable)
    other = config.replace(num_requests=config.num_requests + 1)
    if policy == "FCFS":  # does not look at the table
        assert theory.priority(other).mean == pytest.approx(exact, rel=1e-12)
        return
    with pytest.raises(ConfigError, match=r"^prompt_length_dist='uniform': .*E\[S W\]"):
        theory.priority(other)


class LastComeFirst(FCFSPolicy):
    name = "LIFO"

    def keys(self, waiting):
        return -waiting.arrival_time


class SortsBackwards(FCFSPolicy):
    name = "backwards"

    def sort_requests(self, requests, current_time):
        return sorted(requests, key=lambda r: -r.arrival_time)


class LongestFirst(SJFPolicy):
    name = "LJF"

    def keys(self, waiting):
        return -waiting.prompt_length.astype(np.float64)


class Guesses(KeyedPolicy):
    name = "a guess for each request"

    def keys(self, waiting):
        return waiting.prompt_length * (1.0 + waiting.id % 7)


@pytest.mark.parametrize("policy", [LastComeFirst, SortsBackwards, LongestFirst])
@pytest.mark.parametrize("ask", [theory.mg1, theory.bulk_queue])
def test_a_subclass_does_not_get_the_theory_of_its_parent(ask, policy):
    config = SINGLE.replace(arrival_rate=2.0, scheduling_policy=policy())
    with pytest.raises(ConfigError, match="scheduling_policy"):
        ask(config)
    assert theory.mean_latency(config) is None


@pytest.mark.parametrize("policy", [LastComeFirst, SortsBackwards, Guesses])
def test_only_a_key_of_lengths_and_class_has_priority_waits(policy):
    config = SINGLE.replace(arrival_rate=2.0, scheduling_policy=policy())
    with pytest.raises(ConfigError, match="scheduling_policy"):
        theory.priority(config)


def test_longest_first_has_its_own_waits():
    config = SINGLE.replace(arrival_rate=2.0, scheduling_policy=LongestFirst())
    longest, shortest = (
        theory.priority(config.replace(scheduling_policy=policy))
        for policy in (LongestFirst(), "SJF")
    )
    assert longest.mean > theory.mg1(config.replace(scheduling_policy="FCFS")).mean
    assert longest.mean_work == pytest.approx(shortest.mean_work, rel=1e-9)


def test_rates_multiply_by_the_replicas():
    one = SINGLE.replace(server="continuous", batch_size=8)
    four = one.replace(replicas=4)
    assert four.max_stable_rate == pytest.approx(4 * one.max_stable_rate)
    assert four.offered_load == pytest.approx(one.offered_load / 4)
    scarce = four.replace(kv_blocks=40, max_batched_tokens=8192, batch_size=64)
    assert scarce.max_stable_rate < scarce.replace(kv_blocks=None).max_stable_rate
