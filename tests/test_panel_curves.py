"""What the panels draw and say is what runs of their own have."""

from __future__ import annotations

import re

import numpy as np
import pytest
from matplotlib.figure import Figure

from llminfer import SimulationConfig, Workload, goodput, simulate
from llminfer.panels.gallery import ContinuousPicture, UsersPicture
from llminfer.panels.picture import BATCH_LIMITS, BatchSizePicture, LatencyPicture
from llminfer.panels.policy import PolicyPicture
from llminfer.panels.ramp import RampPicture
from llminfer.panels.traffic import TrafficPicture
from llminfer.panels.wave import WavePicture
from llminfer.panels.workload import WorkloadPicture
from llminfer.report.timeline import over_time
from llminfer.study.early_warning import load_ramp

BASE = SimulationConfig(
    arrival_rate=4.0,
    batch_timeout=0.0,
    prompt_dist_params={"mu": 4, "sigma": 1.0, "max": 2048},
    random_seed=5,
)
SHARES = np.linspace(0.0, 1.0, 101)


def quick(kind, requests=300, warmup=40):
    picture = kind()
    picture.requests, picture.warmup = requests, warmup
    return picture


def drawn(picture, name):
    return np.array(picture.lines[name].get_data())


def short(config, requests=300, warmup=40):
    return config.replace(num_requests=requests, warmup_requests=warmup)


WHOLE = "batch limit|share of the|periods|prompt"  # axes that a curve fills


def every_curve_is_seen(picture):
    """None is without points, and what has two ends is drawn to both."""
    for name, line in picture.lines.items():
        points = np.transpose(line.get_data())
        points = points[np.isfinite(points).all(axis=1)]
        assert len(points), name
        curve = line.get_linestyle() != "None"
        if curve and re.search(WHOLE, line.axes.get_xlabel()):
            inside = line.axes.transData + line.axes.transAxes.inverted()
            x, y = inside.transform(points).T
            assert x.min() < 0.05, name
            assert x.max() > 0.95, name
            assert (y < 1.0).any(), name


def said(value):
    """A time as a panel says it."""
    return f"{value:.3g} s"


def test_latency_is_drawn_at_each_load_as_a_run_at_that_rate_has_it():
    picture = quick(LatencyPicture)
    readings = picture.update(BASE)
    config = short(BASE)
    record = simulate(config)
    for name in ("latency", "ttft"):
        values = getattr(record, name)[40:]
        x, share = drawn(picture, name)
        np.testing.assert_array_equal(share, SHARES)
        np.testing.assert_allclose(x, np.clip(np.quantile(values, SHARES), 0.01, 1e3))
    for i, load in enumerate(picture.loads):
        run = simulate(config.replace(arrival_rate=load * config.max_stable_rate))
        late = run.latency[40:]
        assert drawn(picture, "mean")[:, i] == pytest.approx([load, late.mean()])
        assert drawn(picture, "p99")[1, i] == pytest.approx(np.quantile(late, 0.99))
    here = [config.offered_load, record.latency[40:].mean()]
    assert drawn(picture, "here")[:, 0] == pytest.approx(here)
    now = {name: its["now"] for name, its in readings.items()}
    late, first = record.latency[40:], record.ttft[40:]
    assert now["mean latency"] == said(late.mean())
    assert now["median latency"] == said(np.median(late))
    assert now["p99 latency"] == said(np.quantile(late, 0.99))
    assert now["mean TTFT"] == said(first.mean())
    assert now["p99 TTFT"] == said(np.quantile(first, 0.99))
    good = now["goodput (TTFT ≤ 1 s, TPOT ≤ 0.1 s)"]
    assert good == f"{goodput(record, 1.0, 0.1, 40):.3g} requests/s"
    every_curve_is_seen(picture)


@pytest.mark.filterwarnings("ignore::llminfer.OverloadWarning")
def test_the_batch_size_panel_has_the_curves_and_the_least_p99_of_runs_of_their_own():
    picture = quick(BatchSizePicture)
    base = BASE.replace(arrival_rate=6.0)
    readings = picture.update(base)
    config = short(base)
    sizes = [1, 2, 4, 8, 16, 32, 64, 128]
    stable = [b for b in sizes if base.replace(batch_size=b).offered_load < 1.0]
    assert readings["stable from B"] == {"now": str(stable[0])}
    assert stable[0] == 2
    for rule, timeout in (("at once", 0.0), ("until full", None)):
        p99s = {}
        for i, size in enumerate(stable):
            at = config.replace(batch_size=size, batch_timeout=timeout)
            late = simulate(at).latency[40:]
            p99s[size] = np.quantile(late, 0.99)
            mean = drawn(picture, f"{rule} mean")[:, i]
            assert mean == pytest.approx([size, np.clip(late.mean(), 0.05, 1e3)])
            p99 = drawn(picture, f"{rule} p99")[:, i]
            assert p99 == pytest.approx([size, np.clip(p99s[size], 0.05, 1e3)])
        best = min(p99s, key=p99s.__getitem__)
        assert readings["p99 latency"][f"best {rule}"] == said(p99s[best])
        assert readings["batch limit B"][f"best {rule}"] == str(best)
    rates = [BASE.replace(batch_size=b).max_stable_rate for b in sizes]
    np.testing.assert_allclose(drawn(picture, "capacity"), [sizes, rates])
    np.testing.assert_allclose(drawn(picture, "arriving"), [sizes, [6.0] * 8])


def test_short_and_long_requests_are_those_below_and_above_the_mean_prompt():
    base = BASE.replace(batch_size=4, scheduling_policy="SJF")
    picture = quick(PolicyPicture)
    readings = picture.update(base)
    requests = Workload.generate(short(base))
    for name, policy in ((" FCFS", "FCFS"), ("", "SJF")):
        record = simulate(short(base.replace(scheduling_policy=policy)), requests)
        late, prompts = record.latency[40:], record.prompt_length[40:]
        assert readings["mean latency"][policy] == said(late.mean())
        mean = base.prompts.expectation()
        for group, its in (("short", prompts <= mean), ("long", prompts > mean)):
            x, share = drawn(picture, f"{group}{name}")
            np.testing.assert_array_equal(share, SHARES)
            np.testing.assert_allclose(x, np.quantile(late[its], SHARES).clip(0.1, 1e3))
            p99 = np.quantile(late[its], 0.99)
            assert readings[f"p99 of {group} requests"][policy] == said(p99)


def test_both_servers_get_the_same_requests_and_their_numbers_are_those_of_runs():
    engine = SimulationConfig.from_preset(
        "llama-3.1-8b-rtx4090",
        arrival_rate=3.0,
        batch_size=16,
        kv_blocks=500,
        prompt_dist_params={"mu": 4, "sigma": 1.0, "max": 2048},
        random_seed=5,
    )
    picture = quick(ContinuousPicture)
    readings = picture.update(engine)
    config = short(engine)
    requests = Workload.generate(config)
    static = config.replace(server="static", batch_timeout=0.0)
    for name, server in (("continuous", config), ("static", static)):
        record = simulate(server, requests)
        for time in ("ttft", "latency"):
            x, share = drawn(picture, f"{name} {time}")
            np.testing.assert_array_equal(share, SHARES)
            values = getattr(record, time)[40:]
            np.testing.assert_allclose(x, np.quantile(values, SHARES).clip(0.01, 1e3))
        for label in ("TTFT", "TPOT", "latency"):
            values = getattr(record, label.lower())[40:]
            p99 = np.nanquantile(values, 0.99)
            assert readings[f"p99 {label}"][name] == said(p99)
        good = f"{goodput(record, 1.0, 0.1, 40):.3g} requests/s"
        assert readings["goodput (TTFT ≤ 1 s, TPOT ≤ 0.1 s)"][name] == good
    record = simulate(config, requests)
    time, running = drawn(picture, "running")
    assert time[-1] == 1.0
    begun, ended = record.processing_start_time, record.processing_end_time
    inside = [np.sum((begun <= t) & (t < ended)) for t in time * ended.max()]
    # the picture's points are means of stretches: level where the count is
    assert running.max() <= 16.0
    assert np.mean(running) == pytest.approx(np.mean(inside), rel=0.03)


def test_a_climbing_queue_is_what_waits_in_the_record():
    ramp = load_ramp(BASE, 0.4, 1.2, 200.0, 200.0)
    picture = RampPicture()
    picture.threshold = 20.0
    readings = picture.update(ramp)
    config = picture.short(ramp)
    record = simulate(config)
    load, queue = drawn(picture, "queue")
    most = config.max_stable_rate
    seconds = [(x - 0.4) / 0.8 * 200.0 for x in load]
    waits = [
        np.sum((record.arrival_time <= t) & (record.processing_start_time > t))
        for t in seconds
    ]
    np.testing.assert_allclose(queue, np.clip(waits, 1.0, 1e4), atol=1.0)
    assert np.mean(queue == np.clip(waits, 1.0, 1e4)) > 0.9
    first = np.flatnonzero(np.array(waits) > 20)[0]
    assert drawn(picture, "alarm")[:, 0] == pytest.approx([load[first], waits[first]])
    at = seconds[first]
    assert readings["alarm"]["queue over 20"] == f"at {at:,.0f} s"
    assert readings["warning"]["queue over 20"] == f"{at - 150.0:,.0f} s after"
    assert set(readings["load 1 is reached"].values()) == {"at 150 s"}
    assert config.arrivals(150.0) == pytest.approx(most)


def test_a_wave_is_drawn_over_one_period_with_each_controllers_limit():
    picture = quick(WavePicture, 600, 50)
    picture.update(BASE)
    config = picture.short(BASE)
    period = config.arrival_pattern_params["period"]
    assert period == pytest.approx(600 / 2 / 4.0)
    assert config.arrival_pattern_params["amplitude"] == pytest.approx(3.2)
    for name in ("static", "queue"):
        time, limit = drawn(picture, f"{name} limit")
        assert 0.0 <= time[0] < time[-1] <= 1.0
        params = {} if name == "static" else {"interval": period / 12}
        run = config.replace(batch_control=name, batch_control_params=params)
        record = simulate(run)
        path = record.limit_time, record.batch_limit
        least, most = path[1].min(), path[1].max()
        assert least <= limit.min() <= limit.max() <= most
        if name == "queue":
            assert limit.max() > 1.5 * limit.min()
    every_curve_is_seen(picture)


ENGINE = SimulationConfig.from_preset(
    "llama-3.1-8b-rtx4090",
    arrival_rate=4.0,
    batch_size=8,
    kv_blocks=500,
    prompt_dist_params={"mu": 4, "sigma": 1.0, "max": 2048},
    output_dist_params={"mu": 60, "sigma": 20, "min": 10, "max": 90},
    random_seed=5,
)
USERS = ENGINE.replace(clients=12, think_time={"dist": "exponential", "mean": 0.5})


def over_the_run(record):
    """What runs and waits after each event of a record, by the shares of its time."""
    table = over_time(record)
    return {
        "time": table["time"].to_numpy() / table["time"].to_numpy()[-1],
        "running": table["running"].to_numpy(),
        "waiting": table["waiting"].to_numpy(),
        "held": table["held"].to_numpy(),
    }


def test_what_runs_waits_and_is_held_is_drawn_over_the_whole_run():
    picture = quick(ContinuousPicture, 120, 20)
    picture.update(ENGINE)
    seen = over_the_run(simulate(short(ENGINE, 120, 20)))
    for name in ("running", "waiting", "held"):
        time, its = drawn(picture, name)
        np.testing.assert_allclose(time, seen["time"])
        low = picture.lines[name].axes.get_ylim()[0]
        np.testing.assert_allclose(its, np.maximum(seen[name], low))
    assert seen["waiting"].max() > 1.0
    every_curve_is_seen(picture)


@pytest.mark.filterwarnings("ignore::llminfer.OverloadWarning")
def test_users_and_a_stream_are_drawn_over_the_whole_run():
    picture = quick(UsersPicture, 120, 20)
    readings = picture.update(USERS)
    asked = simulate(short(USERS, 120, 20))
    rate = 119.0 / np.ptp(asked.sent_time)
    assert picture.stream.arrival_rate == pytest.approx(rate, rel=1e-3)
    stamps = Workload.generate(picture.stream).arrival_time
    both = {"users": asked}
    both["stream"] = simulate(
        picture.stream,
        Workload.from_arrays(stamps, asked.prompt_length, asked.output_length),
    )
    for who, record in both.items():
        seen = over_the_run(record)
        time, inside = drawn(picture, f"{who} inside")
        np.testing.assert_allclose(time, seen["time"])
        np.testing.assert_allclose(
            inside, np.maximum(seen["running"] + seen["waiting"], 0.8)
        )
        x, share = drawn(picture, f"{who} ttft")
        np.testing.assert_array_equal(share, SHARES)
        first = record.ttft[record.measured(20)]
        np.testing.assert_allclose(x, np.quantile(first, SHARES).clip(0.01, 1e3))
        assert readings["mean TTFT"][who] == said(first.mean())
    assert drawn(picture, "all").tolist() == [[0.0, 1.0], [12.0, 12.0]]
    stay = np.mean(asked.processing_end_time - asked.sent_time)
    law = readings["Little's law, X (Z + R)"]["users"]
    assert law == f"{rate * (0.5 + stay):,.1f} of 12 users"
    every_curve_is_seen(picture)


def test_the_worst_of_each_25_in_a_row_is_drawn_of_a_trace_and_of_its_twin():
    trace = Workload.generate(short(ENGINE, 130))
    picture = TrafficPicture({"log": trace})
    picture.update(ENGINE)
    of = {"": trace.scaled(picture.pace(ENGINE))}
    of[" twin"] = Workload.generate(picture.short(ENGINE))
    for tail, requests in of.items():
        record = simulate(picture.short(ENGINE), requests)
        worst = [record.ttft[i : i + 25].max() for i in range(0, 130, 25)]
        begins, its = drawn(picture, f"path{tail}")
        assert begins.tolist() == [0, 25, 50, 75, 100, 125]
        np.testing.assert_allclose(its, np.clip(worst, 0.01, 1e3))
        for name in ("ttft", "tpot"):
            values = getattr(record, name)
            x, share = drawn(picture, f"{name}{tail}")
            np.testing.assert_array_equal(share, SHARES)
            np.testing.assert_allclose(x, np.quantile(values, SHARES).clip(0.01, 1e3))


WITHIN, OVER = (0.0, 1.02), (0.0, 1.0)  # shares of requests, and of the run
FRAMES = {  # requests, those of the warm-up; then each axes' ends, x and y
    LatencyPicture: (2000, 300, (0.01, 1e3, *WITHIN), (0.0, 1.2, 0.01, 1e3)),
    BatchSizePicture: (1000, 100, (0.9, 142, 0.05, 1e3), (0.9, 142, 0.1, 100)),
    WorkloadPicture: (1000, 100, (0.9, 142, 0.05, 1e3), (1, 8192, *WITHIN)),
    PolicyPicture: (3000, 300, (0.1, 1e3, *WITHIN), (0.1, 1e3, *WITHIN)),
    RampPicture: (12_000, 0, (0.0, 1.6, 1.0, 1e4), (0.0, 1.6, 0.0, 1.6)),
    WavePicture: (3000, 150, (*OVER, 0.8, 160.0), (*OVER, 0.05, 1e3)),
    UsersPicture: (2000, 300, (0.01, 1e3, *WITHIN), (*OVER, 0.8, 2e3)),
    ContinuousPicture: (
        *(1200, 100),
        *((0.01, 1e3, *WITHIN), (*OVER, 0.8, 2e3), (*OVER, 0.0, 1.05)),
    ),
}


@pytest.mark.parametrize("kind", FRAMES)
def test_where_a_picture_ends_and_how_few_its_requests_are(kind):
    picture, figure = kind(), Figure()
    picture.compose(figure)
    ends = [(*ax.get_xlim(), *ax.get_ylim()) for ax in figure.axes]
    assert (picture.requests, picture.warmup, *ends) == FRAMES[kind]


def test_a_traffic_picture_ends_after_its_requests_and_has_as_many_at_most():
    picture, figure = TrafficPicture({"log": Workload.generate(BASE)}), Figure()
    picture.compose(figure)
    assert len(picture.traces["log"]) == picture.requests == 1200
    ends = [(*ax.get_xlim(), *ax.get_ylim()) for ax in figure.axes]
    assert ends == [(0.01, 1e3, *WITHIN), (0.0, 1200.0, 0.01, 1e3)]


def test_loads_and_limits_that_are_drawn():
    assert LatencyPicture.loads == (0.1, 0.3, 0.5, 0.65, 0.8, 0.9, 0.97)
    assert BATCH_LIMITS == (1, 2, 4, 8, 16, 32, 64, 128)
