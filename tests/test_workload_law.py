"""A workload as the law of a configuration: rows that go together, gaps in order."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llminfer import ConfigError, SimulationConfig, Workload, capacity, simulate, sweep
from llminfer.capacity import SLO
from llminfer.experiment import metrics_of, run_key
from llminfer.laws.lengths import Constant, Empirical, Paired
from llminfer.servers.overload import described
from llminfer.theory import known
from llminfer.timing import StepTime

ARRIVALS = ("gaps", "gamma", "poisson")
TOKENS = st.integers(1, 400)


@st.composite
def workloads(draw, least=2):
    n = draw(st.integers(least, 12))
    gaps = draw(st.lists(st.floats(0.0, 9.0), min_size=n, max_size=n))
    gaps[-1] += 1.0
    lengths = st.lists(TOKENS, min_size=n, max_size=n)
    return Workload.from_arrays(np.cumsum(gaps), draw(lengths), draw(lengths))


def rows(work):
    return list(zip(work.prompt_length, work.output_length, strict=True))


def bursty(n=300, seed=4):
    """Requests in bursts of ten, long answers to short questions."""
    rng = np.random.default_rng(seed)
    gaps = rng.exponential(1.0, n) * np.where(np.arange(n) % 10 == 0, 5.0, 0.3)
    prompt = rng.integers(20, 2000, n)
    return Workload.from_arrays(np.cumsum(gaps), prompt, 2100 - prompt)


@given(workloads(), st.sampled_from(ARRIVALS), st.integers(0, 2**32))
def test_a_law_goes_wherever_a_configuration_goes(work, arrivals, seed):
    config = SimulationConfig(**work.law(arrivals), random_seed=seed)
    for copy in (
        SimulationConfig.from_json(config.to_json()),
        pickle.loads(pickle.dumps(config)),
        config.replace(gamma=1.0).replace(gamma=config.gamma),
    ):
        assert copy == config
        assert hash(copy) == hash(config)
        assert run_key(copy, metrics_of) == run_key(config, metrics_of) is not None
    span = np.ptp(work.arrival_time)
    assert config.arrival_rate == pytest.approx((len(work) - 1) / span)
    for which in ("prompt", "output"):
        law, tokens = getattr(config, f"{which}s"), getattr(work, f"{which}_length")
        assert law.expectation() == pytest.approx(tokens.mean())
        assert law.variance() == pytest.approx(tokens.var(), abs=1e-6)
    product = work.prompt_length * work.output_length
    assert config.outputs.joint(config.prompts) == pytest.approx(product.mean())


@given(workloads(), st.sampled_from(ARRIVALS), st.integers(0, 99), st.integers(1, 40))
def test_more_requests_begin_with_the_same_ones(work, arrivals, seed, n):
    few, more = (work.resample(size, seed, arrivals) for size in (n, n + 17))
    for name, column in few.columns.items():
        np.testing.assert_array_equal(column, getattr(more, name)[:n])
    assert set(rows(more)) <= set(rows(work))
    config = SimulationConfig(**work.law(arrivals), random_seed=seed)
    slow = Workload.generate(config)
    fast = Workload.generate(config.replace(arrival_rate=2.0 * config.arrival_rate))
    np.testing.assert_allclose(fast.arrival_time * 2.0, slow.arrival_time)
    np.testing.assert_array_equal(fast.output_length, slow.output_length)


def test_rows_come_as_often_as_they_are_there():
    work = Workload.from_arrays([0, 1, 2, 3], [9, 5, 9, 9], [1, 2, 3, 3])
    drawn = work.resample(20_000, seed=1)
    pairs, counts = np.unique(rows(drawn), axis=0, return_counts=True)
    assert pairs.tolist() == [[5, 2], [9, 1], [9, 3]]
    np.testing.assert_allclose(counts / 20_000, [0.25, 0.25, 0.5], atol=0.015)
    config = SimulationConfig(
        prompt_length_dist="empirical",
        prompt_dist_params={"values": [9, 5], "weights": [3, 1]},
        output_length_dist="paired",
        output_dist_params={"values": [1, 2], "weights": [3, 1]},
    )
    assert config.outputs.joint(config.prompts) == pytest.approx(0.75 * 9 + 0.25 * 10)
    assert (Workload.generate(config).output_length == 1).mean() == pytest.approx(
        0.75, abs=0.02
    )


@given(workloads(), st.integers(0, 999))
def test_gaps_come_in_their_order_a_tenth_at_a_time(work, seed):
    gaps = np.diff(work.arrival_time)
    block = -(-len(gaps) // 10)
    found = np.diff(work.resample(8 * block + 1, seed).arrival_time)[: 7 * block]
    found = np.append(work.resample(1, seed).arrival_time, found)[: 7 * block]
    turns = [np.roll(gaps, i)[:block] for i in range(len(gaps))]
    for part in found.reshape(7, block):
        assert min(np.abs(part - turn).max() for turn in turns) < 1e-9 * gaps.sum()
    cv = SimulationConfig(**work.law("gamma")).arrival_cv
    assert cv == pytest.approx(gaps.std() / gaps.mean())


def test_every_place_begins_a_run():
    work = Workload.from_arrays([0.0, 1.0, 3.0, 6.0], [1] * 4, [1] * 4)
    first = [work.resample(1, seed).arrival_time[0] for seed in range(300)]
    values, counts = np.unique(np.round(first, 9), return_counts=True)
    assert values.tolist() == [1.0, 2.0, 3.0]
    assert counts.min() > 70


# E[T_B] and lambda*


@given(
    st.lists(st.tuples(TOKENS, st.integers(1, 60)), min_size=1, max_size=4),
    st.integers(1, 4),
)
def test_prompt_times_longest_output_is_that_of_all_batches(pairs, b):
    prompt, output = np.array(pairs).T
    n = len(pairs)
    batches = np.stack(np.meshgrid(*[range(n)] * b), axis=-1).reshape(-1, b)
    exact = (prompt[batches].sum(axis=1) * output[batches].max(axis=1)).mean() / b
    law = Paired(tuple(output.tolist()))
    assert law.joint(Empirical(tuple(prompt.tolist())), b) == pytest.approx(exact)


def correlated(sign, n=400):
    prompt = np.sort(np.random.default_rng(1).geometric(1.0 / 90.0, n))
    return Workload.from_arrays(np.arange(n), prompt, prompt[::sign])


def flooded(config, n):
    """Requests a second of a server that is never without work."""
    drawn = Workload.generate(config.replace(num_requests=n, random_seed=2))
    flood = Workload.from_arrays(np.zeros(n), drawn.prompt_length, drawn.output_length)
    return n / simulate(config, flood).processing_end_time.max()


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("server", ["static", "continuous"])
def test_the_rate_carried_is_exact_for_lengths_that_go_together(server, sign):
    """``kappa`` counts contexts: a long prompt is held for as long as its output."""
    work = correlated(sign)
    config = SimulationConfig.from_preset(
        "llama-3.1-8b-rtx4090",
        server=server,
        batch_size=8,
        warmup_requests=0,
        **work.law(),
    ).replace(kappa=1e-4)
    if server == "continuous":
        config = config.replace(max_batched_tokens=10**6)
    carried = flooded(config, 60_000)
    assert carried == pytest.approx(config.max_stable_rate, rel=0.01)
    apart = config.replace(output_length_dist="empirical").max_stable_rate
    assert abs(carried / apart - 1.0) > 0.015


@pytest.mark.parametrize("sign", [1, -1])
def test_memory_is_shared_by_what_sequences_hold_while_they_run(sign):
    work = correlated(sign)
    config = SimulationConfig(
        server="continuous", batch_size=512, kv_blocks=500, **work.law()
    )
    prompt, output = work.prompt_length, work.output_length
    held = (prompt * output + output * (output - 1) / 2).sum() / output.sum()
    law = StepTime(config.alpha, config.beta, config.gamma)
    most = law.saturation_rate(config.prompts, config.outputs, 500 * 16 / held)
    assert config.max_stable_rate == pytest.approx(most)


def test_theory_that_takes_lengths_apart_refuses_in_words():
    config = SimulationConfig(**bursty().law("poisson"), batch_size=1)
    config = config.replace(arrival_rate=0.1)
    words = r"^output_length_dist='paired': must be independent of prompts"
    for law in (known.mg1, known.conserved_work, known.priority):
        with pytest.raises(ConfigError, match=words):
            float(law(config).mean)
    eight = config.replace(batch_size=8, batch_timeout=0.0)
    with pytest.raises(ConfigError, match=words):
        float(known.bulk_queue(eight).mean_wait)
    assert known.mean_latency(config) is known.mean_latency(eight) is None
    apart = config.replace(output_length_dist="empirical")
    with pytest.raises(ConfigError, match=r"^arrival_gaps=.*None for this law"):
        known.mg1(apart.replace(arrival_gaps=[1.0, 1.0]))


def test_how_long_a_queue_remembers_counts_gaps_and_pairs():
    config = SimulationConfig(**bursty().law(), batch_size=1)
    pairs = config.replace(gamma=1e-3, alpha=1e-3, beta=0.0, arrival_rate=0.1)
    cv = np.std(config.arrival_gaps) / np.mean(config.arrival_gaps)
    load = pairs.offered_load
    exact = 2.0 * load**2 / (1.0 - load) ** 2  # every request is 2.1 s of work
    assert known.memory(pairs) == pytest.approx(exact * cv**2)
    pairs = pairs.replace(arrival_gaps=None)
    assert known.memory(pairs) == pytest.approx(exact)
    assert known.memory(pairs.replace(output_length_dist="empirical")) > 1.1 * exact


# What is drawn does what the rows do

ENGINE = SimulationConfig.from_preset(
    "llama-3.1-8b-rtx4090", batch_size=32, warmup_requests=0
)


def means(record):
    return [np.nanmean(getattr(record, its)) for its in ("ttft", "tpot", "latency")]


def test_a_run_of_what_is_drawn_has_the_means_of_the_rows_themselves():
    work = bursty(1_500)
    work = work.scaled(0.4 * described(work, ENGINE).max_stable_rate)
    own = means(simulate(ENGINE, work))
    law = ENGINE.replace(**work.law(), num_requests=3_000)
    drawn = [means(simulate(law.replace(random_seed=seed))) for seed in range(4)]
    np.testing.assert_allclose(np.mean(drawn, axis=0), own, rtol=0.06)
    plain = ENGINE.replace(**work.law("poisson"), num_requests=3_000, random_seed=1)
    assert means(simulate(plain))[0] < 0.9 * own[0]  # the bursts matter


def test_a_long_law_is_printed_short():
    text = repr(SimulationConfig(**bursty(900).law(), batch_size=7))
    assert len(text) < 600
    assert ", ...)" in text
    assert text.endswith(", batch_size=7)")
    short = SimulationConfig(**bursty(9).law())
    assert eval(repr(short)) == short


def test_sweeps_and_capacity_take_a_law():
    work = bursty(60)
    config = ENGINE.replace(**work.law(), batch_size=4, num_requests=300)
    table = sweep(config, {"arrival_rate": [0.01, 0.02]}, replications=2, n_jobs=1)
    assert (table["avg_latency"] > 10.0).all()
    found = capacity(
        config.replace(num_requests=2100),
        SLO(latency=200.0),
        replications=1,
        tolerance=0.3,
        n_jobs=1,
    )
    assert 0.0 < found.rate < config.max_stable_rate * 1.05


def test_a_described_workload_has_its_rate_lengths_and_gaps():
    work = bursty(50)
    own = described(work, ENGINE)
    assert own == ENGINE.replace(**work.law(), num_requests=50, warmup_requests=0)
    once = Workload.from_arrays([1.0, 1.0], [3, 4], [5, 6])
    with pytest.raises(ConfigError, match=r"^arrival_rate=inf: must be"):
        described(once, ENGINE)
    assert ENGINE.replace(**once.law() | {"arrival_rate": 2.0}).arrival_gaps is None


# What cannot be


def test_laws_that_do_not_go_together_are_refused_in_words():
    law = bursty(5).law()
    for change, words in {
        "arrival_cv": (2.0, r"^arrival_cv=2.0: must be 1 beside arrival_gaps"),
        "arrival_gaps": ([0.0, 0.0], r"^arrival_gaps=\(0.0, 0.0\): must be of a sum"),
        "arrivals_gaps": (1, "no such field"),
        "prompt_length_dist": ("paired", r"^prompt_length_dist='paired': must be one"),
        "prompt_dist_params": ({"values": [1]}, r"^prompt_length_dist=.*of 5 values"),
    }.items():
        with pytest.raises(ConfigError, match=words[1]):
            SimulationConfig(**law | {change: words[0]})
    for bad in ([], [1.0, -1.0], [1.0, float("nan")], "abc", 3, [True]):
        with pytest.raises(ConfigError, match=r"^arrival_gaps="):
            SimulationConfig(arrival_gaps=bad)
    with pytest.raises(ConfigError, match=r"^prompt_length_dist=Constant\(value=3\)"):
        Paired((1, 2)).joint(Constant(3))
    with pytest.raises(ConfigError, match=r"^arrivals='bursts': must be one of"):
        bursty(5).law("bursts")
    with pytest.raises(ConfigError, match=r"^num_requests=0"):
        bursty(5).resample(0, seed=1)
