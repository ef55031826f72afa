"""Theory of batches, against brute force, special cases and plain simulations."""

from __future__ import annotations

import heapq
import itertools
import math

import numpy as np
import pytest
from made_up import Listed
from scipy.special import gammaincc
from scipy.stats import binom, poisson

from llminfer import ConfigError, SimulationConfig, theory
from llminfer.laws.lengths import Empirical
from llminfer.theory import service_time
from llminfer.theory.random_walk import Circle, circle_for, scaled_counts
from llminfer.theory.single_server import MG1

CAPPED = {"mu": 4, "sigma": 1.5, "max": 8192}
REPORT = SimulationConfig(prompt_dist_params=CAPPED)
REAL = SimulationConfig.from_preset(
    "opt-13b-a100", server="static", epsilon=0.0, prompt_dist_params=CAPPED
)


def at_load(config, load):
    return config.replace(arrival_rate=load * config.max_stable_rate)


def z_score(values, expected):
    values = np.asarray(values)
    error = values.std(ddof=1) / np.sqrt(len(values))
    return (values.mean() - expected) / error


# The bulk queue


@pytest.mark.parametrize("load", [0.02, 0.5, 0.9, 0.99])
@pytest.mark.parametrize("timeout", [0, None])
@pytest.mark.parametrize("base", [REPORT, REAL])
def test_one_at_a_time_is_pollaczek_and_khinchines_queue(base, timeout, load):
    config = at_load(base.replace(batch_size=1, batch_timeout=timeout), load)
    bulk, single = theory.bulk_queue(config), theory.mg1(config)
    assert bulk.mean == pytest.approx(single.mean, rel=1e-8)
    assert bulk.mean_latency == pytest.approx(single.mean_latency, rel=1e-8)
    assert bulk.utilization == pytest.approx(load, rel=1e-9)
    if base is REPORT:
        t = np.array([0.0, 0.05, 0.4, 2.0])
        np.testing.assert_allclose(bulk.survival(t), single.survival(t), atol=1e-7)


def brute_bulk(config, least, states=400):
    """E[W], E[TTFT], E[latency] and E[b] of a small chain, term by term."""
    rate, most = config.arrival_rate, config.batch_size
    prompt = np.array(config.prompts.pmf())
    output = np.cumsum(config.outputs.pmf())
    tokens, law = np.ones(1), {}
    for b in range(1, most + 1):
        tokens = np.convolve(tokens, prompt)
        longest = np.diff(output**b, prepend=0.0)
        total, steps = np.nonzero(np.outer(tokens, longest))
        first = config.alpha * total + config.beta
        step = config.gamma + config.delta * b + config.kappa * total
        later = steps * step + config.kappa * b * steps * (steps - 1) / 2
        law[b] = first + later, tokens[total] * longest[steps], first
    batch = [min(max(n, least), most) for n in range(states)]
    chain = np.zeros((states, states))
    arrivals = {
        b: chance @ poisson.pmf(np.arange(states), rate * seconds[:, None])
        for b, (seconds, chance, _) in law.items()
    }
    for n, b in enumerate(batch):
        behind = max(n - b, 0)
        chain[n, behind:] = arrivals[b][: states - behind]
        chain[n, -1] += 1.0 - chain[n].sum()
    left = np.linalg.matrix_power(chain, 2**14)[0]
    wait = ttft = latency = served = 0.0
    for n, b in enumerate(batch):
        seconds, chance, first = law[b]
        mean, square = chance @ seconds, chance @ seconds**2
        gathering = sum(j / rate for j in range(n, least))
        wait += left[n] * (gathering + max(n - b, 0) * mean + rate * square / 2)
        ttft += left[n] * b * (chance @ first)
        latency += left[n] * b * mean
        served += left[n] * b
    cycles = sum(
        left[n] * (max(least - n, 0) / rate + law[b][1] @ law[b][0])
        for n, b in enumerate(batch)
    )
    wait /= rate * cycles
    return wait, wait + ttft / served, wait + latency / served, served


@pytest.mark.parametrize("least", [1, 3])
@pytest.mark.parametrize("kappa", [0.0, 0.004])
def test_the_bulk_queue_is_its_chain_solved_by_brute_force(least, kappa):
    config = SimulationConfig(
        prompt_length_dist="empirical",
        prompt_dist_params={"values": [1, 6, 20], "weights": [5, 3, 1]},
        output_length_dist="uniform",
        output_dist_params={"min": 1, "max": 9},
        alpha=0.05,
        beta=0.1,
        gamma=0.06,
        delta=kappa * 2,
        kappa=kappa,
        batch_size=3,
        batch_timeout=0 if least == 1 else None,
    )
    config = at_load(config, 0.75)
    found = theory.bulk_queue(config)
    expected = brute_bulk(config, least)
    exact = found.mean, found.mean_ttft, found.mean_latency, found.mean_batch
    assert exact == pytest.approx(expected, rel=1e-8)


@pytest.mark.parametrize("timeout", [0, None])
@pytest.mark.parametrize(("size", "load"), [(2, 0.3), (7, 0.8), (32, 0.95)])
def test_the_waits_distribution_has_the_mean_and_the_chance_of_no_wait(
    size, load, timeout
):
    config = at_load(REPORT.replace(batch_size=size, batch_timeout=timeout), load)
    queue = theory.bulk_queue(config)
    nodes, weights = np.polynomial.legendre.leggauss(30)
    edges = queue.mean * np.array([0, 0.05, 0.2, 0.5, 1, 2, 4, 8, 16, 40, 100])
    half = (edges[1:] - edges[:-1])[:, None] / 2
    t = edges[:-1, None] + half * (nodes + 1)
    area = (half * weights * queue.survival(t)).sum()
    assert area == pytest.approx(queue.mean, rel=2e-5)
    assert queue.survival(1e-7 * queue.mean) == pytest.approx(queue.chance, abs=1e-5)
    median, p99 = queue.quantile(0.5), queue.quantile(0.99)
    assert queue.survival([median, p99]) == pytest.approx(
        [min(0.5, queue.chance), 0.01], abs=1e-6
    )


def test_batches_that_take_no_time_wait_only_to_fill():
    """The wait is an Erlang time of the requests that are still to come."""
    config = REPORT.replace(arrival_rate=4.0, batch_size=6, alpha=0, beta=0, gamma=0)
    queue, t = theory.bulk_queue(config), np.array([0.1, 0.7, 2.0])
    assert queue.mean == pytest.approx(theory.assembly_bound(config), rel=1e-12)
    assert theory.assembly_bound(config) == 5 / 8
    assert queue.mean_latency == pytest.approx(queue.mean)
    waits = gammaincc(np.arange(1, 6)[:, None], 4.0 * t).sum(axis=0) / 6
    np.testing.assert_allclose(queue.survival(t), waits, atol=1e-9)


@pytest.mark.parametrize("base", [REPORT, REAL])
def test_full_batches_wait_longer_than_it_takes_to_fill_them(base):
    for load in (0.1, 0.6, 0.95):
        config = at_load(base.replace(batch_size=9), load)
        assert theory.bulk_queue(config).mean >= theory.assembly_bound(config)


def test_a_limit_above_what_ever_waits_changes_nothing():
    one, other = (
        theory.bulk_queue(
            REAL.replace(arrival_rate=0.6, batch_timeout=0, batch_size=size)
        )
        for size in (30, 45)
    )
    assert one.mean == pytest.approx(other.mean, rel=1e-9)
    assert one.mean_latency == pytest.approx(other.mean_latency, rel=1e-9)


def test_all_times_scale_with_the_coefficients():
    for timeout in (0, None):
        config = at_load(REAL.replace(batch_size=5, batch_timeout=timeout), 0.7)
        slow = config.replace(
            arrival_rate=config.arrival_rate / 3,
            **{name: 3 * getattr(config, name)
               for name in ("alpha", "beta", "gamma", "delta", "kappa")},
        )  # fmt: skip
        one, other = theory.bulk_queue(config), theory.bulk_queue(slow)
        for name in ("mean", "mean_ttft", "mean_latency"):
            assert getattr(other, name) == pytest.approx(3 * getattr(one, name))
        assert other.mean_batch == pytest.approx(one.mean_batch)
        assert other.survival(3 * one.mean) == pytest.approx(one.survival(one.mean))


def test_counts_are_read_off_a_circle_with_points_enough():
    few = Circle(1.001, 512)
    scaled, circle = scaled_counts(lambda z: np.exp(400 * (z - 1)), few)
    assert circle.points >= len(scaled) > few.points
    found = scaled * circle.shrinking(len(scaled))
    expected = poisson.pmf(np.arange(len(scaled)), 400)
    np.testing.assert_allclose(found, expected, atol=1e-15)


# Bounds and identities


@pytest.mark.parametrize("points", [2**17, 2**20, 2**21])
def test_a_queue_is_solved_with_a_million_points_at_most(points):
    height = 64.0 / points * 1.3  # about the logarithm of the best radius
    rate = math.exp(-height)
    count = lambda z: np.exp(rate * (z - 1.0))  # noqa: E731
    if points > 2**20:
        with pytest.raises(ConfigError, match=r"^arrival_rate=7.0: .* too near 1"):
            circle_for(count, 1, 7.0)
    else:
        found = circle_for(count, 1, 7.0)
        assert found.points == points
        assert math.log(found.radius) == pytest.approx(height, rel=0.2)


def test_inoues_identity_holds():
    config = REAL.replace(
        output_length_dist="constant",
        output_dist_params={"value": 20},
        batch_size=128,
        batch_timeout=0,
    )
    for rate in (0.05, 2.0, 12.0):
        server = config.replace(arrival_rate=rate)
        queue = theory.bulk_queue(server)
        identity = theory.inoue_latency(server, queue.mean_batch)
        assert identity == pytest.approx(queue.mean_latency, rel=1e-9)


def test_the_greatest_rate_is_a_batch_over_its_time_and_tends_to_that_of_prefill():
    for size in (1, 32, 4096):
        config = REPORT.replace(batch_size=size)
        assert config.max_stable_rate == config.stable_rate(size)
        assert config.offered_load == pytest.approx(10 / config.stable_rate(size))
    most = 1.0 / (REPORT.alpha * REPORT.prompts.expectation())
    assert most * (1.0 - 1e-3) < config.max_stable_rate < most
    fixed = REPORT.replace(server="continuous", batch_size=32)
    assert fixed.max_stable_rate == chain_rate(fixed)


# Continuous batching


CHAIN = SimulationConfig(
    server="continuous",
    max_batched_tokens=10**6,
    arrival_rate=1.0,
    prompt_length_dist="lognormal",
    prompt_dist_params={"mu": 3, "sigma": 1, "max": 400},
    output_length_dist="geometric",
    output_dist_params={"mean": 12},
    alpha=2e-3,
    beta=0.03,
    gamma=0.02,
    delta=2e-3,
    batch_size=4,
)


def chain_rate(config):
    parts = config.prompts, config.outputs, config.batch_size
    return config.step_time.saturation_rate(*parts)


def serve_in_steps(config, requests, seed):
    """Waits, TTFTs and latencies of a server that walks every step."""
    random = np.random.default_rng(seed)
    arrival = np.cumsum(random.exponential(1 / config.arrival_rate, requests))
    prompt = config.prompts.tokens(random.random(requests))
    output = config.outputs.tokens(random.random(requests))
    times = np.zeros((3, requests))
    running, now, come = {}, 0.0, 0
    while come < requests or running:
        if not running:
            now = max(now, arrival[come])
        admitted = []
        while (
            come < requests
            and arrival[come] <= now
            and len(running) + len(admitted) < config.batch_size
        ):
            admitted.append(come)
            come += 1
        step = config.gamma + config.delta * len(running) if running else 0.0
        contexts = sum(prompt[i] + done - 1 for i, done in running.items())
        step += config.kappa * contexts
        if admitted:
            step += config.alpha * prompt[admitted].sum() + config.beta
            times[0, admitted] = now - arrival[admitted]
        now += step
        times[1, admitted] = now - arrival[admitted]
        running = {i: done + 1 for i, done in running.items()}
        running |= dict.fromkeys(admitted, 1)
        for i in [i for i, done in running.items() if done == output[i]]:
            times[2, i] = now - arrival[i]
            del running[i]
    return times


@pytest.mark.parametrize(
    ("changes", "load"),
    [
        ({"batch_size": 2, "delta": 0.0, "output_dist_params": {"mean": 3}}, 0.5),
        ({"batch_size": 16, "alpha": 1e-4, "beta": 0.002}, 0.8),
    ],
)
def test_the_chain_is_the_mean_of_a_server_that_walks_every_step(changes, load):
    config = CHAIN.replace(**changes)
    config = config.replace(arrival_rate=load * chain_rate(config))
    chain = theory.continuous(config)
    runs = [
        serve_in_steps(config, 3_000, seed)[:, 500:].mean(axis=1) for seed in range(12)
    ]
    exact = chain.mean, chain.mean_ttft, chain.mean_latency
    for values, expected in zip(np.transpose(runs), exact, strict=True):
        assert abs(z_score(values, expected)) < 4.0


@pytest.mark.parametrize("load", [0.01, 0.6, 0.97])
def test_a_chain_of_one_is_pollaczek_and_khinchines_queue(load):
    """Alone, a request is one prefill and one decode step fewer than its tokens."""
    config = CHAIN.replace(batch_size=1)
    config = config.replace(arrival_rate=load * chain_rate(config))
    less = config.gamma + config.delta
    prompts, outputs = config.prompts.pmf(), config.outputs.pmf()
    p, m = np.nonzero(np.outer(prompts, outputs))
    seconds = config.step_time.alone(p, m) - less
    chance = prompts[p] * outputs[m]
    law = Listed(seconds, chance / chance.sum())
    queue, chain = MG1(config.arrival_rate, law), theory.continuous(config)
    assert chain.mean == pytest.approx(queue.mean, rel=1e-8)
    assert chain.mean_latency == pytest.approx(queue.mean_latency, rel=1e-8)
    first = config.step_time.prefill(config.prompts.expectation())
    assert chain.mean_ttft == pytest.approx(queue.mean + first, rel=1e-8)
    itl = (chain.mean_latency - chain.mean_ttft) / (config.outputs.mean - 1.0)
    assert itl == pytest.approx(less, rel=1e-6)
    assert chain.utilization == pytest.approx(queue.load, rel=1e-8)


def brute_chain(config, longest=120):
    """E[W], E[TTFT] and E[latency] of a small chain, state by state."""
    rate, most = config.arrival_rate, config.batch_size
    end = 1 / config.outputs.mean
    prompt, tokens = np.array(config.prompts.pmf()), [np.ones(1)]
    for _ in range(most):
        tokens.append(np.convolve(tokens[-1], prompt))
    size = (most + 1) * (longest + 1)
    chain = np.zeros((size, size))
    busy, idle, waiting, inside, first, served = np.zeros((6, size))
    for m, q in itertools.product(range(most + 1), range(longest + 1)):
        here = m * (longest + 1) + q
        there = q if m + q else 1
        k = min(there, most - m)
        seconds = np.arange(len(tokens[k])) * config.alpha + (config.beta if k else 0)
        seconds = seconds + (config.gamma + config.delta * m if m else 0.0)
        come = tokens[k] @ poisson.pmf(np.arange(longest + 1), rate * seconds[:, None])
        left = np.zeros(longest + 1)
        left[there - k :] = come[: longest + 1 - there + k]
        left[-1] += 1 - left.sum()
        went_on = binom.pmf(np.arange(most + 1), m + k, 1 - end)
        chain[here] = np.outer(went_on, left).ravel()
        mean, square = tokens[k] @ seconds, tokens[k] @ seconds**2
        busy[here], idle[here] = mean, 0.0 if m + q else 1 / rate
        waiting[here] = (there - k) * mean + rate * square / 2
        inside[here] = waiting[here] + (m + k) * mean
        first[here], served[here] = k * mean, k
    state = np.linalg.matrix_power(chain, 2**14)[0]
    time = state @ (busy + idle)
    wait = state @ waiting / time / rate
    return (
        wait,
        wait + state @ first / (state @ served),
        state @ inside / time / rate,
    )


@pytest.mark.parametrize(("size", "load"), [(2, 0.8), (4, 0.6)])
def test_the_chain_is_itself_solved_by_brute_force(size, load):
    config = CHAIN.replace(
        prompt_length_dist="empirical",
        prompt_dist_params={"values": [1, 6, 20], "weights": [5, 3, 1]},
        output_dist_params={"mean": 3},
        batch_size=size,
    )
    config = config.replace(arrival_rate=load * chain_rate(config))
    found = theory.continuous(config)
    exact = found.mean, found.mean_ttft, found.mean_latency
    assert exact == pytest.approx(brute_chain(config), rel=1e-8)


def test_alone_the_greatest_rate_is_a_request_a_service():
    config = CHAIN.replace(batch_size=1, kappa=3e-5)
    prompts, outputs = config.prompts.pmf(), config.outputs.pmf()
    p, m = np.arange(len(prompts))[:, None], np.arange(1, len(outputs))
    steps = (m - 1) * (config.gamma + config.delta + config.kappa * p)
    growth = config.kappa * (m - 1) * (m - 2) / 2
    seconds = config.alpha * p + config.beta + steps + growth
    mean = prompts @ seconds @ outputs[1:]
    assert chain_rate(config) == pytest.approx(1 / mean, rel=1e-9)


@pytest.mark.parametrize("size", [1, 5, 20])
def test_a_chain_of_single_tokens_is_the_greedy_bulk_queue(size):
    config = CHAIN.replace(output_dist_params={"mean": 1}, batch_size=size)
    config = config.replace(arrival_rate=0.85 * chain_rate(config))
    chain = theory.continuous(config)
    static = config.replace(server="static", gamma=0, delta=0, batch_timeout=0)
    bulk = theory.bulk_queue(static)
    assert chain.mean == pytest.approx(bulk.mean, rel=1e-9)
    assert chain.mean_latency == pytest.approx(bulk.mean_latency, rel=1e-9)
    assert chain.mean_latency == pytest.approx(chain.mean_ttft, rel=1e-9)
    assert chain.mean_batch == pytest.approx(bulk.mean_batch, rel=1e-9)


def test_the_chains_times_scale_with_the_coefficients():
    slow = CHAIN.replace(
        arrival_rate=0.5,
        **{name: 2 * getattr(CHAIN, name)
           for name in ("alpha", "beta", "gamma", "delta")},
    )  # fmt: skip
    one, other = theory.continuous(CHAIN), theory.continuous(slow)
    for name in ("mean", "mean_ttft", "mean_latency"):
        assert getattr(other, name) == pytest.approx(2 * getattr(one, name), rel=1e-9)


def test_more_seats_than_are_ever_taken_change_nothing_in_the_chain():
    one, other = (theory.continuous(CHAIN.replace(batch_size=b)) for b in (24, 30))
    assert one.mean_latency == pytest.approx(other.mean_latency, rel=1e-6)


def test_a_saturated_step_server_carries_its_greatest_rate():
    config = CHAIN.replace(arrival_rate=1e7, kappa=3e-5, batch_size=6)
    rates = []
    for seed in range(12):
        times = serve_in_steps(config, 3_000, seed)
        done = np.sort(times[2])[500:2_500]  # while the server is full
        rates.append((len(done) - 1) / (done[-1] - done[0]))
    assert abs(z_score(rates, chain_rate(config))) < 4.0


def test_the_chain_says_what_it_cannot_solve():
    for changes, message in (
        ({"kappa": 1e-6}, r"kappa=1e-06: must be 0"),
        ({"output_dist_params": {"mean": 12, "max": 99}}, r"output_dist_params.max=99"),
        ({"batch_size": 65}, r"batch_size=65: must be at most 64"),
        ({"scheduling_policy": "SJF"}, r"must be FCFS"),
        ({"arrival_rate": 50.0}, r"below 5.772 requests a second: the load is 8.663"),
    ):
        with pytest.raises(ConfigError, match=message):
            theory.continuous(CHAIN.replace(**changes))


# The product form

DECODER = SimulationConfig(
    server="continuous",
    arrival_rate=0.5,
    output_length_dist="empirical",
    output_dist_params={"values": [2, 30], "weights": [2, 1]},
    alpha=0,
    beta=0,
    gamma=0.05,
    delta=0.06,
)


@pytest.mark.parametrize("delta", [0.0, 0.06])
def test_the_product_form_has_as_many_inside_as_the_product_says(delta):
    """P(n) ~ the product over k <= n of lambda E[O] (c0 + c1 k) / k, and Little."""
    latency = theory.product_form_latency(DECODER.replace(delta=delta))
    k = np.arange(1, 2_001)
    flow = 0.5 * Empirical((2, 30), (2, 1)).expectation()
    log = np.cumsum(np.log(flow * (0.05 / k + delta)))
    chance = np.exp(np.concatenate(([0.0], log)))
    inside = chance[1:] @ k / chance.sum()
    assert 0.5 * latency == pytest.approx(inside, rel=1e-9)
    with pytest.raises(ConfigError, match=r"the load is 1\.13"):
        theory.product_form_latency(DECODER.replace(arrival_rate=1.0, delta=0.1))


def share_a_decoder(config, requests, seed):
    """Latencies where n inside each get a token every gamma + delta n, at once."""
    random = np.random.default_rng(seed)
    arrival = np.cumsum(random.exponential(1 / config.arrival_rate, requests))
    output = config.outputs.tokens(random.random(requests))
    now = given = 0.0  # time, and tokens that each request inside was given so far
    inside, latency = [], np.zeros(requests)
    for i in range(requests + 1):
        until = arrival[i] if i < requests else np.inf
        while inside:
            step = config.gamma + config.delta * len(inside)
            ready = now + (inside[0][0] - given) * step
            if ready > until:
                given += (until - now) / step
                break
            given, done = heapq.heappop(inside)
            now = ready
            latency[done] = now - arrival[done]
        now = until
        if i < requests:
            heapq.heappush(inside, (given + output[i], i))
    return latency, output


def test_a_shared_decoder_has_the_product_forms_latencies():
    mean = theory.product_form_latency(DECODER)
    short = mean * 2 / DECODER.outputs.expectation()
    runs = []
    for seed in range(12):
        latency, output = share_a_decoder(DECODER, 4_000, seed)
        latency, output = latency[400:], output[400:]
        runs.append([latency.mean(), latency[output == 2].mean()])
    for values, expected in zip(np.transpose(runs), (mean, short), strict=True):
        assert abs(z_score(values, expected)) < 4.0


@pytest.mark.parametrize("turn", [0.1, 3.0, 40.0, 400.0])
def test_prompts_stretched_by_many_outputs_have_all_digits(turn):
    """Where they are worked out at some slopes only, against the sum at each."""
    pmf = np.r_[0.0, np.linspace(1.0, 2.0, 150)]
    pmf /= pmf.sum()
    slopes = np.linspace(1e-3, 2e-2, 700)
    greatest = 2.0 * turn / np.ptp(slopes) / len(pmf)
    s = greatest * np.array([1j, -0.5j, 0.2 + 0.9j, 0.01])
    exact = np.exp(-np.multiply.outer(np.outer(slopes, s), np.arange(len(pmf)))) @ pmf
    found = service_time._stretched(pmf, slopes, s)
    np.testing.assert_allclose(found, exact, rtol=0.0, atol=1e-10)
